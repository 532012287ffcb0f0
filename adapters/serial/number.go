package serial

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"holdfast/adapters/reading"
)

// numberStyle is how a device writes numbers.
type numberStyle struct {
	decimal, thousands string
	signAfter          bool
}

// plain writes a number as programs do, with a point and nothing between the
// digits. False: it is not written in this style.
func (n *numberStyle) plain(s string) (string, bool) {
	sign := ""
	switch {
	case s != "" && (s[0] == '+' || s[0] == '-'):
		// Scales fill up with blanks between the sign and the number.
		sign, s = s[:1], strings.TrimLeft(s[1:], " ")
	case n.signAfter && s != "" && (s[len(s)-1] == '+' || s[len(s)-1] == '-'):
		sign, s = s[len(s)-1:], strings.TrimRight(s[:len(s)-1], " ")
	}
	if s == "" || s[0] == '+' || s[0] == '-' {
		return "", false
	}
	whole, fraction, has := strings.Cut(s, n.decimal)
	if n.thousands != "" && strings.Contains(whole, n.thousands) {
		groups := strings.Split(whole, n.thousands)
		for i, g := range groups {
			if i == 0 && (g == "" || len(g) > 3) || i > 0 && len(g) != 3 {
				return "", false
			}
		}
		whole = strings.Join(groups, "")
	}
	if n.decimal != "." && strings.Contains(whole+fraction, ".") {
		return "", false
	}
	if has {
		whole += "." + fraction
	}
	return sign + whole, true
}

// number keeps whole numbers whole as long as nothing is to be computed.
func (p *point) number(s string, style numberStyle) (v any, invalid bool, err error) {
	text := s
	for _, suffix := range p.Suffixes {
		if rest, ok := strings.CutSuffix(text, suffix); ok {
			text = strings.TrimRight(rest, " ")
			break
		}
	}
	plain, ok := style.plain(text)
	if !ok || !isDecimal(plain) {
		return nil, false, fmt.Errorf("%s is not a number", short(s))
	}
	f, err := strconv.ParseFloat(plain, 64)
	if err != nil {
		return nil, false, fmt.Errorf("%s is not a number that fits", short(s))
	}
	if slices.Contains(p.invalidNumbers, f) {
		return nil, true, nil
	}
	if p.Scale == 1 && p.Offset == 0 {
		if i, err := strconv.ParseInt(plain, 10, 64); err == nil {
			return i, false, nil
		}
		if u, err := strconv.ParseUint(plain, 10, 64); err == nil {
			return u, false, nil
		}
	}
	return reading.Scale(f, p.Scale, p.Offset), false, nil
}

// scaled is number for what is one already: a float64, int64 or uint64.
func (p *point) scaled(v any) (any, bool) {
	f, _ := reading.Number(v)
	if math.IsNaN(f) || math.IsInf(f, 0) || slices.Contains(p.invalidNumbers, f) {
		return nil, true
	}
	if p.Scale == 1 && p.Offset == 0 {
		return v, false
	}
	return reading.Scale(f, p.Scale, p.Offset), false
}

// isDecimal lets pass what people write as numbers; ParseFloat would take
// "infinity", "nan" and hexadecimal floats too.
func isDecimal(s string) bool {
	return s != "" && strings.Trim(s, "0123456789+-.eE") == "" && strings.ContainsAny(s, "0123456789")
}
