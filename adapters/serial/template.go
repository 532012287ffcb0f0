package serial

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// template is what is sent to a device: bytes, the value of a command, and a
// checksum over all before it.
//
//	W?${hex:0D}               bytes that cannot be written
//	SP=${value}               as text; ${value:2} with two decimals
//	SP${value:hex4}           four hexadecimal digits
//	${hex:06}${value:u16}     bytes: u8 u16 u32 i8 i16 i32 f32, or u16le, ...
//	$SET,${value}*${check}    the check of the device's frames
type template struct {
	parts []part
	check *check
	from  int // what the checksum leaves out
}

// part is one piece of a template.
type part struct {
	kind partKind
	text []byte // of a literal
	verb string // of a value
}

type partKind uint8

const (
	partLiteral partKind = iota
	partValue
	partCheck
)

// maxRequest is how long a request may be, in bytes.
const maxRequest = 1024

var valueVerb = regexp.MustCompile(`^([0-9]|hex([1-9]|1[0-6])|([ui](8|16|32)|f32)(le)?)?$`)

// parseTemplate reads what key says.
func parseTemplate(key, s string, c *check, from int) (*template, error) {
	t := &template{check: c, from: from}
	if strings.HasPrefix(s, "0x") {
		b, err := bytesOf(key, s, 1, maxRequest)
		t.parts = []part{{text: b}}
		return t, err
	}
	if s == "" || len(s) > maxRequest {
		return nil, fmt.Errorf("%s: has %d bytes, not 1 to %d", key, len(s), maxRequest)
	}
	for s != "" {
		literal, rest, found := strings.Cut(s, "${")
		if literal != "" {
			t.parts = append(t.parts, part{text: []byte(literal)})
		}
		if !found {
			break
		}
		inside, rest, closed := strings.Cut(rest, "}")
		if !closed {
			return nil, fmt.Errorf("%s: ${ has no }", key)
		}
		s = rest
		name, arg, _ := strings.Cut(inside, ":")
		switch {
		case name == "hex":
			b, err := hex.DecodeString(strings.ReplaceAll(arg, " ", ""))
			if err != nil || len(b) == 0 {
				return nil, fmt.Errorf("%s: ${%s} is not pairs of hexadecimal digits", key, inside)
			}
			t.parts = append(t.parts, part{text: b})
		case name == "value" && valueVerb.MatchString(arg):
			t.parts = append(t.parts, part{kind: partValue, verb: arg})
		case inside == "check" && (c.name == "" || c.name == CheckP1):
			return nil, fmt.Errorf("%s: ${check} needs a check that is not %q", key, c.name)
		case inside == "check":
			t.parts = append(t.parts, part{kind: partCheck})
		default:
			return nil, fmt.Errorf("%s: ${%s} is none of ${value}, ${value:VERB}, ${hex:DIGITS}, ${check}", key, inside)
		}
	}
	return t, nil
}

// valued says whether the template has a value in it, and whether that must be
// a number.
func (t *template) valued() (has, number bool) {
	for _, p := range t.parts {
		if p.kind == partValue {
			has = true
			number = number || p.verb != ""
		}
	}
	return has, number
}

// append appends the request with that value; number is its value as one, if it
// is one.
func (t *template) append(b []byte, value string, number float64) ([]byte, error) {
	start := len(b)
	for _, p := range t.parts {
		switch p.kind {
		case partLiteral:
			b = append(b, p.text...)
		case partCheck:
			b = t.check.append(b, start, start+t.from)
		case partValue:
			var err error
			if b, err = appendValue(b, p.verb, value, number); err != nil {
				return b, err
			}
		}
	}
	return b, nil
}

func appendValue(b []byte, verb, value string, number float64) ([]byte, error) {
	if verb == "" {
		return append(b, value...), nil
	}
	if n, err := strconv.Atoi(verb); err == nil {
		return strconv.AppendFloat(b, number, 'f', n, 64), nil
	}
	if verb == "f32" || verb == "f32le" {
		return appendOrdered(b, uint64(math.Float32bits(float32(number))), 4, verb == "f32le"), nil
	}
	whole := math.Trunc(number)
	if whole != number {
		return b, fmt.Errorf("%v is not a whole number", number)
	}
	if width, ok := strings.CutPrefix(verb, "hex"); ok {
		n, _ := strconv.Atoi(width) // the pattern has checked it
		digits := ""
		if whole >= 0 && whole < 1<<53 {
			digits = strings.ToUpper(strconv.FormatUint(uint64(whole), 16))
		}
		if digits == "" || len(digits) > n {
			return b, fmt.Errorf("%v does not fit into %d hexadecimal digits", number, n)
		}
		return append(append(b, strings.Repeat("0", n-len(digits))...), digits...), nil
	}
	verb, little := strings.CutSuffix(verb, "le")
	width, _ := strconv.Atoi(verb[1:]) // the pattern has checked it
	least, most := 0.0, math.Ldexp(1, width)-1
	if verb[0] == 'i' {
		least, most = -math.Ldexp(1, width-1), math.Ldexp(1, width-1)-1
	}
	if whole < least || whole > most {
		return b, fmt.Errorf("%v is outside %v..%v", number, least, most)
	}
	return appendOrdered(b, uint64(int64(whole)), width/8, little), nil
}

func appendOrdered(b []byte, v uint64, n int, little bool) []byte {
	var wide [8]byte
	binary.BigEndian.PutUint64(wide[:], v)
	raw := wide[8-n:]
	if little {
		slices.Reverse(raw)
	}
	return append(b, raw...)
}

// append appends the checksum of what a request has so far, which begins at
// start; what stands before from is left out.
func (c *check) append(b []byte, start, from int) []byte {
	over := b[min(from, len(b)):]
	asHex := c.hex
	if c.name == CheckNMEA {
		asHex = true
		over = b[start:]
		if len(over) > 0 && (over[0] == '$' || over[0] == '!') {
			over = over[1:]
		}
		if n := len(over); n > 0 && over[n-1] == '*' {
			over = over[:n-1]
		}
	}
	raw := appendOrdered(nil, uint64(c.mask(c.sum(over))), c.size, c.little)
	if !asHex {
		return append(b, raw...)
	}
	return append(b, strings.ToUpper(hex.EncodeToString(raw))...)
}

// TypeNone is the type of a command without a value.
const TypeNone = "none"

// valueRule says what a command's value may be.
type valueRule struct {
	typ      string
	min, max float64
	allow    *regexp.Regexp
	maxLen   int
	on, off  string
}

var errTooLong = errors.New("value is too long")

// read reads a payload. Whatever comes from outside ends up between bytes that
// mean something to the device: what could end a request and begin another one
// is refused.
func (r *valueRule) read(payload []byte) (text string, number float64, err error) {
	if r.typ == TypeNone {
		return "", 0, nil
	}
	if len(payload) > r.maxLen {
		return "", 0, errTooLong
	}
	text = string(payload)
	switch r.typ {
	case TypeNumber:
		text = strings.TrimSpace(text)
		number, err = strconv.ParseFloat(text, 64)
		if err != nil || !isDecimal(text) {
			return "", 0, fmt.Errorf("%s is not a number", short(text))
		}
		if number < r.min || number > r.max {
			return "", 0, fmt.Errorf("%v is outside %v..%v", number, r.min, r.max)
		}
		return strconv.FormatFloat(number, 'f', -1, 64), number, nil
	case TypeBool:
		on, err := parseBool(strings.TrimSpace(text))
		if err != nil {
			return "", 0, err
		}
		if on {
			return r.on, 1, nil
		}
		return r.off, 0, nil
	}
	if r.allow != nil {
		if !r.allow.MatchString(text) {
			return "", 0, fmt.Errorf("%s is not allowed", short(text))
		}
		return text, 0, nil
	}
	for _, c := range []byte(text) {
		if c < 0x20 || c > 0x7e {
			return "", 0, fmt.Errorf("%s has a character that is not printable ASCII", short(text))
		}
	}
	return text, 0, nil
}
