package packet

import (
	"bytes"
	"encoding/binary"
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
	if len(b) > maxField {
		return false
	}
	for ; len(b) >= 8; b = b[8:] { // nearly all there is is ASCII
		const ones, highs = 0x0101010101010101, 0x8080808080808080
		w := binary.LittleEndian.Uint64(b)
		if (w|(w-ones))&highs != 0 { // a byte above 0x7f, or below 1
			break
		}
	}
	for i, c := range b {
		if c-1 >= 0x7f {
			return bytes.IndexByte(b[i:], 0) < 0 && utf8.Valid(b[i:])
		}
	}
	return true
}
