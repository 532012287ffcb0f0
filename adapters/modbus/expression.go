package modbus

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// An expression computes a value from other points of a device. casbin/govaluate and
// expr-lang/expr would do as well, but call methods by name through reflection, so
// that the linker keeps every method of the program: two megabytes more, and three.
//
//	voltage * current / 1000
//	choose(mode == "heating" && flow > 0.5, power, 0)
//	max(point("phase-1"), point("phase-2"))

// kind is what a value is.
type kind string

const (
	aNumber kind = "number"
	aBool   kind = "bool"
	aText   kind = "text"
)

// Why an expression has no value.
var (
	errDivision  = errors.New("division by zero")
	errNotNumber = errors.New(reasonNaN)
)

// maxExpression is the length of an expression: what is longer is a program.
const maxExpression = 1000

// expression is one compiled. It is stateless.
type expression struct {
	kind   kind
	inputs []string // the points it names, each once
	eval   func(env []any) (any, error)
}

// parseExpression compiles s; kindOf says what a point is, and whether there is
// such a one.
func parseExpression(s string, kindOf func(name string) (kind, bool)) (*expression, error) {
	if len(s) > maxExpression {
		return nil, fmt.Errorf("%d characters, at most %d are allowed", len(s), maxExpression)
	}
	tree, err := parseTree(s)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", s, err)
	}
	c := exprCompiler{kindOf: kindOf}
	t, err := c.compile(tree)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", s, err)
	}
	return &expression{kind: t.kind, inputs: c.inputs, eval: t.eval}, nil
}

// value computes the expression: env are the values of its inputs.
func (e *expression) value(env []any) (any, error) {
	v, err := e.eval(env)
	if err != nil {
		return nil, err
	}
	f, ok := v.(float64)
	if !ok {
		return v, nil
	}
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return nil, errNotNumber
	}
	return tidy(f), nil
}

// tidy drops the noise that arithmetic leaves behind the 15 digits that a float64
// has: 0.1+0.2 is 0.3.
func tidy(f float64) float64 {
	var buf [32]byte
	if g, err := strconv.ParseFloat(string(strconv.AppendFloat(buf[:0], f, 'g', 15, 64)), 64); err == nil {
		return g
	}
	return f
}

// term is a part of an expression. Its values are float64, bool or string, as its
// kind says.
type term struct {
	kind kind
	eval func(env []any) (any, error)
}

type exprCompiler struct {
	kindOf func(name string) (kind, bool)
	inputs []string
}

func (c *exprCompiler) compile(n *node) (term, error) {
	switch n.kind {
	case nodeName:
		switch n.text {
		case "true", "false":
			return constant(aBool, n.text == "true"), nil
		}
		return c.point(n.text)
	case nodeNumber, nodeText, nodeOther:
		return literal(n)
	case nodeUnary:
		return c.unary(n)
	case nodeBinary:
		return c.binary(n)
	case nodeCall:
		return c.call(n)
	default:
		return term{}, errForeign
	}
}

func constant(k kind, v any) term {
	return term{kind: k, eval: func([]any) (any, error) { return v, nil }}
}

func literal(n *node) (term, error) {
	switch n.kind {
	case nodeNumber:
		i, err := strconv.ParseInt(n.text, 0, 64)
		if err == nil {
			return constant(aNumber, float64(i)), nil
		}
		f, err := strconv.ParseFloat(n.text, 64)
		// 010 is eight, so 08 is nothing.
		if err != nil || n.text[0] == '0' && !strings.ContainsAny(n.text, ".eEpP") && !errors.Is(err, strconv.ErrRange) {
			return term{}, fmt.Errorf("%s is not a number", n.text)
		}
		return constant(aNumber, f), nil
	case nodeText:
		s, err := strconv.Unquote(n.text)
		if err != nil {
			return term{}, fmt.Errorf("%s is not a text", n.text)
		}
		return constant(aText, s), nil
	default:
		return term{}, fmt.Errorf("%s is neither a number nor a text", n.text)
	}
}

func (c *exprCompiler) point(name string) (term, error) {
	k, ok := c.kindOf(name)
	if !ok {
		return term{}, fmt.Errorf("there is no point %q", name)
	}
	i := slices.Index(c.inputs, name)
	if i < 0 {
		i = len(c.inputs)
		c.inputs = append(c.inputs, name)
	}
	return term{kind: k, eval: func(env []any) (any, error) { return env[i], nil }}, nil
}

func (c *exprCompiler) unary(n *node) (term, error) {
	x, err := c.compile(n.args[0])
	if err != nil {
		return term{}, err
	}
	switch {
	case n.text == "-" && x.kind == aNumber:
		return numbers([]term{x}, func(v []float64) (float64, error) { return -v[0], nil }), nil
	case n.text == "+" && x.kind == aNumber:
		return x, nil
	case n.text == "!" && x.kind == aBool:
		return term{aBool, func(env []any) (any, error) {
			v, err := x.eval(env)
			return v != true, err
		}}, nil
	default:
		return term{}, fmt.Errorf("%s has no meaning for a %s", n.text, x.kind)
	}
}

// arithmetic are the operators of two numbers that make one.
var arithmetic = map[string]func(v []float64) (float64, error){
	"+": func(v []float64) (float64, error) { return v[0] + v[1], nil },
	"-": func(v []float64) (float64, error) { return v[0] - v[1], nil },
	"*": func(v []float64) (float64, error) { return v[0] * v[1], nil },
	"/": func(v []float64) (float64, error) {
		if v[1] == 0 {
			return 0, errDivision
		}
		return v[0] / v[1], nil
	},
	"%": func(v []float64) (float64, error) {
		if v[1] == 0 {
			return 0, errDivision
		}
		return math.Mod(v[0], v[1]), nil
	},
}

// comparison are those that make a bool.
var comparison = map[string]func(a, b float64) bool{
	"<":  func(a, b float64) bool { return a < b },
	"<=": func(a, b float64) bool { return a <= b },
	">":  func(a, b float64) bool { return a > b },
	">=": func(a, b float64) bool { return a >= b },
}

func (c *exprCompiler) binary(n *node) (term, error) {
	x, err := c.compile(n.args[0])
	if err != nil {
		return term{}, err
	}
	y, err := c.compile(n.args[1])
	if err != nil {
		return term{}, err
	}
	both := func(of kind) bool { return x.kind == of && y.kind == of }
	if fn, ok := arithmetic[n.text]; ok && both(aNumber) {
		return numbers([]term{x, y}, fn), nil
	}
	var fn func(a, b any) bool
	switch compare, ok := comparison[n.text]; {
	case ok && both(aNumber):
		fn = func(a, b any) bool {
			fa, _ := a.(float64)
			fb, _ := b.(float64)
			return compare(fa, fb)
		}
	case n.text == "==" && x.kind == y.kind:
		fn = func(a, b any) bool { return a == b }
	case n.text == "!=" && x.kind == y.kind:
		fn = func(a, b any) bool { return a != b }
	case n.text == "&&" && both(aBool):
		fn = func(a, b any) bool { return a == true && b == true }
	case n.text == "||" && both(aBool):
		fn = func(a, b any) bool { return a == true || b == true }
	default:
		return term{}, fmt.Errorf("%s has no meaning between a %s and a %s", n.text, x.kind, y.kind)
	}
	return term{aBool, func(env []any) (any, error) {
		a, err := x.eval(env)
		if err != nil {
			return nil, err
		}
		b, err := y.eval(env)
		return fn(a, b), err
	}}, nil
}

// numbers is a function of numbers.
func numbers(args []term, fn func(v []float64) (float64, error)) term {
	return term{aNumber, func(env []any) (any, error) {
		v := make([]float64, len(args))
		for i, a := range args {
			x, err := a.eval(env)
			if err != nil {
				return nil, err
			}
			v[i], _ = x.(float64) // it is one: the kinds have been checked
		}
		f, err := fn(v)
		if err == nil && (math.IsNaN(f) || math.IsInf(f, 0)) {
			err = errNotNumber // what is made of it could look good: 1/f is 0, f > 1 is false
		}
		return f, err
	}}
}

// function is one of numbers, with at least so many and at most so many of them.
type function struct {
	least, most int
	fn          func(v []float64) (float64, error)
}

func of1(fn func(float64) float64) function {
	return function{1, 1, func(v []float64) (float64, error) { return fn(v[0]), nil }}
}

// functions are what an expression can call, besides choose and point.
var functions = map[string]function{
	"abs": of1(math.Abs), "floor": of1(math.Floor), "ceil": of1(math.Ceil), "sqrt": of1(math.Sqrt),
	"exp": of1(math.Exp), "ln": of1(math.Log), "log10": of1(math.Log10),
	"pow": {2, 2, func(v []float64) (float64, error) { return math.Pow(v[0], v[1]), nil }},
	"min": {1, 16, func(v []float64) (float64, error) { return slices.Min(v), nil }},
	"max": {1, 16, func(v []float64) (float64, error) { return slices.Max(v), nil }},
	"round": {1, 2, func(v []float64) (float64, error) {
		if len(v) == 1 {
			return math.Round(v[0]), nil
		}
		return round(v[0], int(min(max(v[1], 0), 15))), nil
	}},
}

func (c *exprCompiler) call(n *node) (term, error) {
	if n.args[0].kind != nodeName {
		return term{}, errors.New("only functions can be called")
	}
	name, given := n.args[0].text, n.args[1:]
	if name == "point" {
		if len(given) == 1 && given[0].kind == nodeText {
			if s, err := strconv.Unquote(given[0].text); err == nil {
				return c.point(s)
			}
		}
		return term{}, errors.New(`point takes a name in quotes, as in point("phase-1")`)
	}
	args := make([]term, len(given))
	for i, a := range given {
		var err error
		if args[i], err = c.compile(a); err != nil {
			return term{}, err
		}
	}
	if name == "choose" {
		return choose(args)
	}
	f, ok := functions[name]
	if !ok {
		return term{}, fmt.Errorf("there is no function %s", name)
	}
	if len(args) < f.least || len(args) > f.most || slices.ContainsFunc(args, func(t term) bool { return t.kind != aNumber }) {
		return term{}, fmt.Errorf("%s takes %d to %d numbers", name, f.least, f.most)
	}
	return numbers(args, f.fn), nil
}

// choose is its second argument if the first is true, else the third. Only that
// is computed: choose(b != 0, a/b, 0) divides by nothing.
func choose(args []term) (term, error) {
	if len(args) != 3 || args[0].kind != aBool || args[1].kind != args[2].kind {
		return term{}, errors.New("choose takes a bool and two values of one kind")
	}
	return term{args[1].kind, func(env []any) (any, error) {
		v, err := args[0].eval(env)
		if err != nil {
			return nil, err
		}
		if v == true {
			return args[1].eval(env)
		}
		return args[2].eval(env)
	}}, nil
}
