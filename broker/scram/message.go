package scram

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxMessage bounds a message, in bytes: a user name of 1024, two nonces and a
// salt are far below it.
const maxMessage = 4096

// attribute takes "name=value" off the front of a message, up to the comma or
// the end (RFC 5802 §5.1).
func attribute(rest, name string) (value, after string, err error) {
	text, after, _ := strings.Cut(rest, ",")
	value, ok := strings.CutPrefix(text, name+"=")
	if !ok {
		return "", "", fmt.Errorf("%w: attribute %q is missing", ErrMessage, name)
	}
	return value, after, nil
}

// checkText bounds a message and refuses what is no text.
func checkText(b []byte) (string, error) {
	if len(b) > maxMessage || !utf8.Valid(b) {
		return "", fmt.Errorf("%w: it is no text of at most %d bytes", ErrMessage, maxMessage)
	}
	return string(b), nil
}

// validNonce: printable ASCII but the comma (RFC 5802 §7).
func validNonce(s string) bool {
	for i := range len(s) {
		if s[i] < 0x21 || s[i] > 0x7e || s[i] == ',' {
			return false
		}
	}
	return s != ""
}

// escape and unescape are the "saslname" of RFC 5802 §5.1.
func escape(s string) string {
	return strings.NewReplacer("=", "=3D", ",", "=2C").Replace(s)
}

func unescape(s string) (string, error) {
	var b strings.Builder
	for {
		before, after, more := strings.Cut(s, "=")
		b.WriteString(before)
		switch {
		case !more:
			return b.String(), nil
		case strings.HasPrefix(after, "2C"):
			b.WriteByte(',')
		case strings.HasPrefix(after, "3D"):
			b.WriteByte('=')
		default:
			return "", fmt.Errorf("%w: the user name has '=' in it", ErrMessage)
		}
		s = after[2:]
	}
}

// prepare makes one text of those that look the same to whoever types them:
// the SASLprep of RFC 4013, without its last step.
//
// ! Unicode normalisation form KC is left out (RFC 4013 §2.2): its tables would
// be larger than the rest of the broker's code. Keyboards give composed
// characters, which it leaves alone.
func prepare(s string) (string, error) {
	if !utf8.ValidString(s) {
		return "", fmt.Errorf("%w: it is not UTF-8", ErrMessage)
	}
	s = strings.Map(func(r rune) rune {
		switch {
		case r > 0x7f && unicode.Is(unicode.Zs, r):
			return ' ' // RFC 3454 C.1.2
		case r == 0xad || r == 0x34f || r == 0x1806 || r >= 0x180b && r <= 0x180d || r >= 0x200b && r <= 0x200d ||
			r == 0x2060 || r >= 0xfe00 && r <= 0xfe0f || r == 0xfeff:
			return -1 // RFC 3454 B.1
		}
		return r
	}, s)
	for _, r := range s {
		if unicode.IsControl(r) || unicode.Is(unicode.Co, r) || r == utf8.RuneError { // RFC 3454 C.2, C.3, C.6
			return "", fmt.Errorf("%w: it has the character %U in it", ErrMessage, r)
		}
	}
	if s == "" {
		return "", fmt.Errorf("%w: it is empty", ErrMessage)
	}
	return s, nil
}
