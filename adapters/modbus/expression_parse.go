package modbus

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// The grammar is that of Go's expressions, with Go's literals and precedence,
// less what has no meaning here. go/parser would do, for 325 kB of the binary.

// nodeKind is what a node of a parsed expression is.
type nodeKind byte

const (
	nodeName   nodeKind = iota // text is the name
	nodeNumber                 // text is a number as it is written
	nodeText                   // text with its quotes
	nodeOther                  // text is a literal of another kind
	nodeMember                 // x.y, which nothing here has
	nodeUnary                  // text is the operator of args[0]
	nodeBinary                 // text is the operator between args[0] and args[1]
	nodeCall                   // args[0] called with the others
	nodeEOF                    // as a token: the end
	nodePunct                  // as a token: text is an operator or a bracket
)

// node is a part of a parsed expression; one without args is a token too.
type node struct {
	kind nodeKind
	text string
	args []*node
}

var errForeign = errors.New("only points, numbers, texts, operators and functions can be used")

// precedence of the binary operators (The Go Programming Language Specification,
// "Operator precedence"). Those of bits are known so that they can be refused by
// their name.
var precedence = map[string]int{
	"||": 1, "&&": 2, "==": 3, "!=": 3, "<": 3, "<=": 3, ">": 3, ">=": 3,
	"+": 4, "-": 4, "|": 4, "^": 4, "*": 5, "/": 5, "%": 5, "<<": 5, ">>": 5, "&": 5, "&^": 5,
}

// exprParser is a parser by precedence climbing with one token read ahead. How deep
// it nests is bounded by maxExpression.
type exprParser struct {
	s   string
	end int // of tok, in s
	at  int // its beginning
	tok node
}

// parseTree is the tree of an expression. Its errors begin with line and column,
// in bytes from 1.
func parseTree(s string) (*node, error) {
	p := exprParser{s: s}
	n, err := p.parse()
	if err != nil {
		before := s[:p.at]
		return nil, fmt.Errorf("%d:%d: %w", strings.Count(before, "\n")+1, len(before)-strings.LastIndexByte(before, '\n'), err)
	}
	return n, nil
}

func (p *exprParser) parse() (*node, error) {
	if err := p.next(); err != nil {
		return nil, err
	}
	n, err := p.binary(1)
	if err != nil {
		return nil, err
	}
	if p.tok.kind != nodeEOF {
		return nil, p.expected("an operator")
	}
	return n, nil
}

func (p *exprParser) expected(what string) error {
	if p.tok.kind == nodeEOF {
		return fmt.Errorf("expected %s, found the end", what)
	}
	return fmt.Errorf("expected %s, found %s", what, p.tok.text)
}

// is says whether the token is that operator or bracket.
func (p *exprParser) is(punct string) bool {
	return p.tok.kind == nodePunct && p.tok.text == punct
}

// binary reads operators that bind at least as tightly as least.
func (p *exprParser) binary(least int) (*node, error) {
	x, err := p.unary()
	if err != nil {
		return nil, err
	}
	for p.tok.kind == nodePunct {
		op := p.tok.text
		if op == "=" {
			return nil, p.expected("==")
		}
		level := precedence[op]
		if level < least { // no operator at all: 0
			return x, nil
		}
		if err := p.next(); err != nil {
			return nil, err
		}
		y, err := p.binary(level + 1)
		if err != nil {
			return nil, err
		}
		x = &node{nodeBinary, op, []*node{x, y}}
	}
	return x, nil
}

func (p *exprParser) unary() (*node, error) {
	if p.tok.kind == nodePunct && strings.Contains("+-!^&", p.tok.text) {
		op := p.tok.text
		if err := p.next(); err != nil {
			return nil, err
		}
		x, err := p.unary()
		return &node{nodeUnary, op, []*node{x}}, err
	}
	return p.operand()
}

// operand reads a name, a literal or what is in parentheses, and what is behind it.
func (p *exprParser) operand() (*node, error) {
	var x *node
	switch {
	case p.is("("):
		if err := p.next(); err != nil {
			return nil, err
		}
		inner, err := p.binary(1)
		if err != nil {
			return nil, err
		}
		if !p.is(")") {
			return nil, p.expected(")")
		}
		x = inner
	case p.tok.kind < nodeMember:
		tok := p.tok
		x = &tok
	default:
		return nil, p.expected("operand")
	}
	for {
		if err := p.next(); err != nil {
			return nil, err
		}
		switch {
		case p.is("("):
			args, err := p.arguments()
			if err != nil {
				return nil, err
			}
			x = &node{nodeCall, "", append([]*node{x}, args...)}
		case p.is("."):
			if err := p.next(); err != nil {
				return nil, err
			}
			if p.tok.kind != nodeName {
				return nil, p.expected("a name")
			}
			x = &node{kind: nodeMember}
		case p.is("["), p.is("{"):
			return nil, errForeign
		default:
			return x, nil
		}
	}
}

// arguments reads from behind "(" up to ")".
func (p *exprParser) arguments() (args []*node, err error) {
	for {
		if err := p.next(); err != nil {
			return nil, err
		}
		if p.is(")") { // none, or behind a last comma
			return args, nil
		}
		a, err := p.binary(1)
		if err != nil {
			return nil, err
		}
		args = append(args, a)
		switch {
		case p.is(")"):
			return args, nil
		case !p.is(","):
			return nil, p.expected(", or )")
		}
	}
}

// next reads a token.
func (p *exprParser) next() error {
	rest := strings.TrimLeft(p.s[p.end:], " \t\r\n")
	p.at = len(p.s) - len(rest)
	p.end = p.at
	if rest == "" {
		p.tok = node{kind: nodeEOF}
		return nil
	}
	kind := nodePunct
	var n int
	switch c, size := utf8.DecodeRuneInString(rest); {
	case isLetter(c):
		kind, n = nodeName, nameLen(rest)
	case isDigit(c), c == '.' && len(rest) > 1 && isDigit(rune(rest[1])):
		kind, n = nodeNumber, numberLen(rest)
		if rest[n-1] == 'i' {
			kind = nodeOther
		}
	case c == '"', c == '\'', c == '`':
		if n = quotedLen(rest); n == 0 {
			return errors.New("text not terminated")
		}
		if kind = nodeText; c == '\'' {
			kind = nodeOther
		}
	default:
		if len(rest) > 1 && (precedence[rest[:2]] > 0) {
			size = 2
		} else if !strings.ContainsRune("()[]{},.=!+-*/%<>&|^", c) {
			return fmt.Errorf("illegal character %q", rest[:size])
		}
		n = size
	}
	p.tok, p.end = node{kind: kind, text: rest[:n]}, p.at+n
	return nil
}

func isLetter(c rune) bool { return c == '_' || unicode.IsLetter(c) }
func isDigit(c rune) bool  { return c >= '0' && c <= '9' }

func nameLen(s string) int {
	n := strings.IndexFunc(s, func(c rune) bool { return !isLetter(c) && !unicode.IsDigit(c) })
	if n < 0 {
		return len(s)
	}
	return n
}

// numberLen takes all that could be a number, with the sign of an exponent; whether
// it is one strconv says.
func numberLen(s string) int {
	exponent := "eE"
	if len(s) > 1 && (s[1] == 'x' || s[1] == 'X') {
		exponent = "pP"
	}
	n := 1
	for n < len(s) {
		c := s[n]
		sign := (c == '+' || c == '-') && strings.IndexByte(exponent, s[n-1]) >= 0
		if !sign && c != '.' && c != '_' && !isDigit(rune(c)) && (c|0x20 < 'a' || c|0x20 > 'z') {
			break
		}
		n++
	}
	return n
}

// quotedLen is the length of the text in quotes that s begins with, 0 without an
// end.
func quotedLen(s string) int {
	for n := 1; n < len(s); n++ {
		switch {
		case s[n] == s[0]:
			return n + 1
		case s[0] == '`':
		case s[n] == '\n':
			return 0
		case s[n] == '\\':
			n++
		}
	}
	return 0
}
