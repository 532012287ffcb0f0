package modbustest

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
)

// crc is the CRC-16 of MODBUS Serial Line V1.02 §6.2.2, bit by bit; package
// modbus does it with a table.
func crc(b []byte) uint16 {
	c := uint16(0xffff)
	for _, x := range b {
		c ^= uint16(x)
		for range 8 {
			if c&1 != 0 {
				c = c>>1 ^ 0xa001
			} else {
				c >>= 1
			}
		}
	}
	return c
}

// appendCRC appends the CRC of all of b, low byte first.
func appendCRC(b []byte) []byte {
	c := crc(b)
	return append(b, byte(c), byte(c>>8))
}

// asciiFrame is b with its LRC in hexadecimal, as MODBUS Serial Line V1.02
// §2.5.2.1 frames it.
func asciiFrame(b []byte) []byte {
	var sum byte
	for _, x := range b {
		sum -= x
	}
	return fmt.Appendf(nil, ":%X\r\n", append(slices.Clone(b), sum))
}

// unASCII is the inverse of asciiFrame.
func unASCII(text []byte) (id byte, pdu []byte, ok bool) {
	b, err := hex.DecodeString(strings.TrimRight(strings.TrimPrefix(string(text), ":"), "\r\n"))
	if err != nil || len(b) < 3 {
		return 0, nil, false
	}
	var sum byte
	for _, x := range b {
		sum += x
	}
	return b[0], b[1 : len(b)-1], sum == 0
}

// requestFrame returns the length of the request at the start of b, or 0; need
// then says that more bytes could still make it one.
func requestFrame(b []byte) (n int, need bool) {
	if len(b) < 2 {
		return 0, true
	}
	switch b[1] {
	case 1, 2, 3, 4, 5, 6, 8:
		n = 8
	case 7, 11, 12, 17:
		n = 4
	case 15, 16:
		if len(b) < 7 {
			return 0, true
		}
		n = 9 + int(b[6])
	case 22:
		n = 10
	case 23:
		if len(b) < 11 {
			return 0, true
		}
		n = 13 + int(b[10])
	case 43:
		n = 7
	default:
		return 0, false
	}
	if len(b) < n {
		return 0, true
	}
	if c := crc(b[:n-2]); b[n-2] != byte(c) || b[n-1] != byte(c>>8) {
		return 0, false
	}
	return n, false
}

// Request is what a unit was asked, as faults and callbacks see it.
type Request struct {
	Unit     byte
	Function byte
	Addr     uint16 // of functions 1 to 6, 15, 16, 22
	Count    uint16 // registers or bits; 1 for single writes
	PDU      []byte // function code and data; do not change
}

func parseRequest(r request) Request {
	q := Request{Unit: r.id, Function: r.pdu[0], PDU: r.pdu}
	if len(r.pdu) >= 5 {
		q.Addr = uint16(r.pdu[1])<<8 | uint16(r.pdu[2])
		q.Count = uint16(r.pdu[3])<<8 | uint16(r.pdu[4])
	}
	if q.Function == 5 || q.Function == 6 || q.Function == 22 {
		q.Count = 1
	}
	return q
}
