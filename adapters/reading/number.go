package reading

import (
	"bytes"
	"math"
	"strconv"
)

// maxDecimals is where rounding ends: a float64 holds 15 decimal digits
// whatever they are, and a larger count would only keep the noise.
const maxDecimals = 15

// Scale returns value*scale+offset as the decimal number that a person would
// compute: Scale(3, 0.1, 0) is 0.3, not 0.30000000000000004. The result is
// rounded to the number of decimals that the exact result can have.
func Scale(value, scale, offset float64) float64 {
	f := value*scale + offset
	if scale == 1 && offset == 0 || math.IsNaN(f) || math.IsInf(f, 0) {
		return f
	}
	dv, ds, do := decimals(value), decimals(scale), decimals(offset)
	if dv < 0 || ds < 0 || do < 0 {
		return f
	}
	n := max(dv+ds, do)
	// More digits than a float64 holds: nothing is left to round away.
	if n > maxDecimals || math.Abs(f) >= 1e15 {
		return f
	}
	var buf [48]byte
	g, err := strconv.ParseFloat(string(strconv.AppendFloat(buf[:0], f, 'f', n, 64)), 64)
	if err != nil {
		return f
	}
	return g
}

// decimals counts the digits after the point of the shortest decimal form of
// f; -1 when f has none (NaN, infinity) or needs an exponent to be short.
func decimals(f float64) int {
	if f == math.Trunc(f) {
		return 0
	}
	if math.IsNaN(f) || math.IsInf(f, 0) || math.Abs(f) < 1e-15 {
		return -1
	}
	var buf [48]byte
	s := strconv.AppendFloat(buf[:0], f, 'f', -1, 64)
	point := bytes.IndexByte(s, '.')
	if point < 0 {
		return 0
	}
	return len(s) - point - 1
}

// Float32 returns the float64 with the same shortest decimal form as f, so
// that 21.3 out of a 32-bit register stays 21.3 and does not become
// 21.299999237060547.
func Float32(f float32) float64 {
	d := float64(f)
	if math.IsNaN(d) || math.IsInf(d, 0) {
		return d
	}
	var buf [32]byte
	g, err := strconv.ParseFloat(string(strconv.AppendFloat(buf[:0], d, 'g', -1, 32)), 64)
	if err != nil {
		return d
	}
	return g
}

// Float16 is the number in half precision (IEEE 754-2008 §3.6) that h are the bits
// of.
func Float16(h uint16) float64 {
	sign := 1.0
	if h&0x8000 != 0 {
		sign = -1
	}
	exp, frac := int(h>>10&0x1f), float64(h&0x3ff)
	switch exp {
	case 0:
		return sign * math.Ldexp(frac, -24)
	case 31:
		if frac != 0 {
			return math.NaN()
		}
		return math.Inf(int(sign))
	}
	return sign * math.Ldexp(1024+frac, exp-25)
}

// Number returns the number that the value of a reading is; false for a bool, a
// text, or none.
func Number(v any) (f float64, ok bool) {
	switch v := v.(type) {
	case float64:
		return v, true
	case int64:
		return float64(v), true
	case uint64:
		return float64(v), true
	default:
		return 0, false
	}
}
