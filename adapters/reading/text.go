package reading

import (
	"bytes"
	"strings"
	"unicode/utf8"
)

// FixedText is what a device has written into a field of fixed length: up to the
// first NUL, without the blanks that fill it up. What is not UTF-8 is Latin-1.
func FixedText(b []byte) string {
	b, _, _ = bytes.Cut(b, []byte{0})
	if utf8.Valid(b) {
		return strings.TrimSpace(string(b))
	}
	r := make([]rune, len(b))
	for i, x := range b {
		r[i] = rune(x)
	}
	return strings.TrimSpace(string(r))
}
