package packet

import (
	"bytes"
	"strings"
	"unicode/utf8"
)

// maxField is the most bytes a string or binary field holds, for its length
// is two bytes (MQTT 5.0 §1.5.4, §1.5.6).
const maxField = 65_535

// ValidString says whether s may be sent as a UTF-8 encoded string: at most
// 65,535 bytes of well-formed UTF-8, so no surrogates and nothing overlong, and
// without U+0000 (MQTT 5.0 §1.5.4 [MQTT-1.5.4-1] [MQTT-1.5.4-2]). Control and
// non-characters, which the specification only advises against, pass.
func ValidString(s string) bool {
	return len(s) <= maxField && strings.IndexByte(s, 0) < 0 && utf8.ValidString(s)
}

// ValidBytes is [ValidString] for bytes.
func ValidBytes(b []byte) bool {
	return len(b) <= maxField && bytes.IndexByte(b, 0) < 0 && utf8.Valid(b)
}
