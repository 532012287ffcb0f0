package modbus

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Why a value cannot be written.
var (
	errNoNumber = errors.New("not a number")
	errNoValue  = errors.New("what stands for no value")
	errNoBool   = errors.New("neither true nor false, on nor off, 1 nor 0")
)

// change is what to write: the bytes of a point's registers as they go over the
// wire, and which of their bits are the point's, nil for all. For a coil it
// is one byte, 0 or 1.
type change struct{ data, mask []byte }

// encode is the inverse of decode: what decode makes of the result is value. The
// value is a json.Number, a bool or a string.
func (f *format) encode(value any) (change, error) {
	if f.typ == "string" {
		return f.encodeString(value)
	}
	value = f.unnamed(value)
	raw, err := f.raw(value)
	if err != nil {
		return change{}, err
	}
	mask := uint64(math.MaxUint64)
	switch {
	case f.bit != noBit:
		mask = 1 << f.bit
		raw <<= f.bit
	case f.bits.n > 0:
		if raw>>f.bits.n != 0 {
			return change{}, fmt.Errorf("more than %d bits hold", f.bits.n)
		}
		mask = (1<<f.bits.n - 1) << f.bits.first
		raw <<= f.bits.first
	case slices.Contains(f.invalid, raw):
		return change{}, errNoValue
	case f.typ == "int8" || f.typ == "uint8":
		mask = 0xff
	}
	c := change{data: f.wire(raw)}
	if mask != math.MaxUint64 {
		c.mask = f.wire(mask)
	}
	return c, nil
}

// unnamed is the number that a name stands for, or else the value itself.
func (f *format) unnamed(value any) any {
	name, ok := value.(string)
	if !ok {
		return value
	}
	for v, n := range f.names {
		switch {
		case n != name:
		case strings.HasPrefix(f.typ, "int"):
			return json.Number(strconv.FormatInt(int64(v), 10))
		default:
			return json.Number(strconv.FormatUint(v, 10))
		}
	}
	return value
}

// wire arranges a raw value as its registers are sent.
func (f *format) wire(raw uint64) []byte {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], raw)
	out := make([]byte, 2*f.n)
	f.order.arrange(out, b[8-2*f.n:]) // its own inverse
	return out
}

// raw is the content of the registers, least significant bit last, in the type's
// width.
func (f *format) raw(value any) (uint64, error) {
	if f.typ == "bool" {
		on, err := asBool(value)
		if on {
			return 1, err
		}
		return 0, err
	}
	text, err := asNumber(value)
	if err != nil {
		return 0, err
	}
	switch f.typ {
	case "int8", "int16", "int32", "int64":
		n, err := f.integer(text)
		width := f.width()
		if least := int64(-1) << (width - 1); err == nil && (n < least || n > -1-least) {
			return 0, f.outside()
		}
		return uint64(n) & (math.MaxUint64 >> (64 - width)), err
	case "float16", "float32", "float64":
		return f.rawFloat(text)
	case "bcd16", "bcd32", "bcd64":
		n, err := f.unsignedInteger(text)
		var raw uint64
		for shift := 0; err == nil && n > 0; shift += 4 {
			if shift >= f.width() {
				return 0, f.outside()
			}
			raw |= n % 10 << shift
			n /= 10
		}
		return raw, err
	default: // uint8, uint16, uint32, uint64
		n, err := f.unsignedInteger(text)
		if err == nil && n > math.MaxUint64>>(64-f.width()) {
			return 0, f.outside()
		}
		return n, err
	}
}

func (f *format) outside() error { return fmt.Errorf("outside of what a %s holds", f.typ) }

// integer undoes scale and offset. Without them it is exact over all 64 bits.
func (f *format) integer(text string) (int64, error) {
	if f.plain() {
		if n, err := strconv.ParseInt(text, 10, 64); err == nil {
			return n, nil
		}
	}
	x, err := f.whole(text)
	if err == nil && (x < math.MinInt64 || x >= math.MaxInt64) {
		err = f.outside()
	}
	if err != nil {
		return 0, err
	}
	return int64(x), nil
}

func (f *format) unsignedInteger(text string) (uint64, error) {
	if f.plain() {
		if n, err := strconv.ParseUint(text, 10, 64); err == nil {
			return n, nil
		}
	}
	x, err := f.whole(text)
	if err == nil && (x < 0 || x >= math.MaxUint64) {
		err = f.outside()
	}
	if err != nil {
		return 0, err
	}
	return uint64(x), nil
}

// nearWhole is how far from a whole number the noise of a division leaves one,
// relative to its size.
const nearWhole = 1e-9

// whole is the content of an integer register for that value; what lies between
// two is refused, not rounded: a setpoint that is not what was asked for is none. What
// was measured may be rounded.
func (f *format) whole(text string) (float64, error) {
	v, err := finite(text)
	if err != nil {
		return 0, err
	}
	x := (v - f.offset) / f.scale
	n := math.Round(x)
	if !f.nearest && math.Abs(x-n) > nearWhole*max(1, math.Abs(x)) {
		return 0, fmt.Errorf("not in steps of %v", math.Abs(f.scale))
	}
	return n, nil
}

func (f *format) rawFloat(text string) (uint64, error) {
	v, err := finite(text)
	if err != nil {
		return 0, err
	}
	if !f.plain() {
		v = (v - f.offset) / f.scale
	}
	if slices.Contains(f.invalidValues, v) {
		return 0, errNoValue
	}
	switch f.typ {
	case "float16":
		h, ok := half(v)
		if !ok {
			return 0, f.outside()
		}
		return uint64(h), nil
	case "float32":
		if math.IsInf(float64(float32(v)), 0) {
			return 0, f.outside()
		}
		return uint64(math.Float32bits(float32(v))), nil
	default:
		if math.IsInf(v, 0) {
			return 0, f.outside()
		}
		return math.Float64bits(v), nil
	}
}

// half is the nearest number of half precision (IEEE 754-2008 §3.6); false when it
// is too large for one.
func half(v float64) (uint16, bool) {
	var sign uint16
	if math.Signbit(v) {
		sign, v = 0x8000, -v
	}
	if v == 0 {
		return sign, true
	}
	frac, exp := math.Frexp(v) // v = frac * 2^exp, frac within 0.5 to 1
	if exp += 14; exp <= 0 {
		return sign | uint16(math.RoundToEven(math.Ldexp(v, 24))), true
	}
	// A fraction that rounds up to 1 makes the exponent one more.
	bits := exp<<10 + int(math.RoundToEven(math.Ldexp(frac, 11))) - 1024
	if bits >= 31<<10 {
		return 0, false
	}
	return sign | uint16(bits), true
}

func (f *format) encodeString(value any) (change, error) {
	s, ok := value.(string)
	if n, isNumber := value.(json.Number); isNumber {
		s, ok = n.String(), true
	}
	switch {
	case !ok:
		return change{}, errors.New("not a text")
	case !utf8.ValidString(s) || strings.ContainsRune(s, 0):
		return change{}, errors.New("not a text without NUL")
	case len(s) > 2*f.n:
		return change{}, fmt.Errorf("%d bytes, the device takes %d", len(s), 2*f.n)
	}
	b := make([]byte, 2*f.n)
	copy(b, s)
	out := make([]byte, len(b))
	f.order.arrange(out, b)
	return change{data: out}, nil
}

func asBool(value any) (bool, error) {
	switch v := value.(type) {
	case bool:
		return v, nil
	case json.Number:
		switch v {
		case "0":
			return false, nil
		case "1":
			return true, nil
		}
	case string:
		switch strings.ToLower(v) {
		case "0", "off", "false":
			return false, nil
		case "1", "on", "true":
			return true, nil
		}
	}
	return false, errNoBool
}

// asNumber returns a decimal number as it was written.
func asNumber(value any) (string, error) {
	var s string
	switch v := value.(type) {
	case json.Number:
		s = v.String()
	case string:
		s = strings.TrimSpace(v)
	}
	// strconv knows more than anybody would write on purpose.
	if s == "" || strings.Trim(s, "0123456789+-.eE") != "" || len(s) > 64 {
		return "", errNoNumber
	}
	if _, err := finite(s); err != nil {
		return "", err
	}
	return s, nil
}

func finite(text string) (float64, error) {
	v, err := strconv.ParseFloat(text, 64)
	if err != nil || math.IsInf(v, 0) || math.IsNaN(v) {
		return 0, errNoNumber
	}
	return v, nil
}
