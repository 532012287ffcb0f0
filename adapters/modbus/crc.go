package modbus

// crcTable is the CRC-16 of MODBUS Serial Line V1.02 §6.2.2 (polynomial 0xA001,
// reflected), a byte at a time.
var crcTable = func() (t [256]uint16) {
	for i := range t {
		c := uint16(i)
		for range 8 {
			if c&1 != 0 {
				c = c>>1 ^ 0xa001
			} else {
				c >>= 1
			}
		}
		t[i] = c
	}
	return t
}()

// CRC returns the checksum of an RTU frame; it goes onto the wire low byte
// first, so that the CRC of a whole frame is 0.
func CRC(b []byte) uint16 {
	c := uint16(0xffff)
	for _, x := range b {
		c = c>>8 ^ crcTable[byte(c)^x]
	}
	return c
}
