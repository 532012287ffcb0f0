package modbus

import (
	"encoding/binary"
	"fmt"
)

// Lengths of Modbus/TCP frames (MODBUS Messaging on TCP/IP V1.0b §3.1.3, §4.1).
const (
	mbapHeader = 7
	maxMBAP    = mbapHeader + maxPDU
)

// AppendMBAP appends the Modbus/TCP frame that carries pdu: transaction id,
// protocol 0, length, unit, PDU (MODBUS Messaging on TCP/IP V1.0b §3.1.3). It
// is the same over UDP and TLS.
func AppendMBAP(b []byte, transaction uint16, unit byte, pdu []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, transaction)
	b = binary.BigEndian.AppendUint16(b, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(len(pdu)+1))
	return append(append(b, unit), pdu...)
}

// ParseMBAP reads the frame at the start of b: n is its length, pdu, of at least
// one byte, points into b. n is 0 when b holds only the start of a frame. An
// error, which wraps [ErrMalformed], means that no frame starts here, and that in
// a stream it is not known where the next one does.
func ParseMBAP(b []byte) (transaction uint16, unit byte, pdu []byte, n int, err error) {
	if len(b) < 6 {
		return 0, 0, nil, 0, nil
	}
	if p := binary.BigEndian.Uint16(b[2:]); p != 0 {
		return 0, 0, nil, 0, fmt.Errorf("%w: protocol %d is not Modbus, which is 0", ErrMalformed, p)
	}
	length := int(binary.BigEndian.Uint16(b[4:]))
	if length < 2 || length > maxPDU+1 {
		return 0, 0, nil, 0, fmt.Errorf("%w: a length of %d is outside 2..%d", ErrMalformed, length, maxPDU+1)
	}
	n = 6 + length
	if len(b) < n {
		return 0, 0, nil, 0, nil
	}
	return binary.BigEndian.Uint16(b), b[6], b[mbapHeader:n], n, nil
}
