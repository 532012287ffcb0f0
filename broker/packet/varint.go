package packet

// MaxSize is the largest remaining length, in bytes (MQTT 5.0 §2.1.4). A whole
// packet is up to five bytes larger.
const MaxSize = 268_435_455

// readVarint reads a variable byte integer (MQTT 5.0 §1.5.5). n is the number
// of bytes it took; 0 means that b ends too early, and -1 that there is a
// fifth byte.
func readVarint(b []byte) (v uint32, n int) {
	for i := range min(len(b), 4) {
		v |= uint32(b[i]&0x7f) << (7 * i)
		if b[i] < 0x80 {
			return v, i + 1
		}
	}
	if len(b) < 4 {
		return 0, 0
	}
	return 0, -1
}

// varintLen returns how many bytes v takes, which is also the fewest it may
// take (MQTT 5.0 §1.5.5 [MQTT-1.5.5-1]).
func varintLen(v uint32) int {
	switch {
	case v < 1<<7:
		return 1
	case v < 1<<14:
		return 2
	case v < 1<<21:
		return 3
	}
	return 4
}

// appendVarint appends v, at most [MaxSize].
func appendVarint(b []byte, v uint32) []byte {
	for v >= 0x80 {
		b = append(b, byte(v)|0x80)
		v >>= 7
	}
	return append(b, byte(v))
}
