// Package cbor writes and reads the heads of CBOR items (RFC 8949 §3), of
// definite length. It opens nothing, starts no goroutines and reads no clock.
// What cannot be read is an error that wraps [ErrMalformed].
package cbor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// ErrMalformed means that bytes are no CBOR, or of a kind that is not used here.
var ErrMalformed = errors.New("malformed CBOR")

// The major types (RFC 8949 §3.1).
const (
	Uint   = 0
	Nint   = 1
	Bytes  = 2
	Text   = 3
	Array  = 4
	Map    = 5
	Tag    = 6
	Simple = 7
)

// Null is the simple value null, as a byte.
const Null = 0xf6

// AppendHead appends the head of an item, in its shortest form.
func AppendHead(b []byte, major byte, n uint64) []byte {
	m := major << 5
	switch {
	case n < 24:
		return append(b, m|byte(n))
	case n <= math.MaxUint8:
		return append(b, m|24, byte(n))
	case n <= math.MaxUint16:
		return binary.BigEndian.AppendUint16(append(b, m|25), uint16(n))
	case n <= math.MaxUint32:
		return binary.BigEndian.AppendUint32(append(b, m|26), uint32(n))
	default:
		return binary.BigEndian.AppendUint64(append(b, m|27), n)
	}
}

// AppendInt appends a number.
func AppendInt(b []byte, n int64) []byte {
	if n < 0 {
		return AppendHead(b, Nint, uint64(-1-n))
	}
	return AppendHead(b, Uint, uint64(n))
}

// AppendText appends a text.
func AppendText(b []byte, s string) []byte {
	return append(AppendHead(b, Text, uint64(len(s))), s...)
}

// Head takes the head of an item from the front of b. For type 7, size tells a
// simple value (0, 1) from a float (2, 4, 8 bytes), whose bits are n.
func Head(b []byte) (major byte, n uint64, size int, rest []byte, err error) {
	if len(b) == 0 {
		return 0, 0, 0, nil, fmt.Errorf("%w: it is cut off", ErrMalformed)
	}
	first := b[0]
	major, n = first>>5, uint64(first&31)
	switch {
	case n < 24:
	case n <= 27:
		size = 1 << (n - 24)
	default:
		return 0, 0, 0, nil, fmt.Errorf("%w: byte 0x%02x is not used here", ErrMalformed, first)
	}
	if len(b) < 1+size {
		return 0, 0, 0, nil, fmt.Errorf("%w: it is cut off", ErrMalformed)
	}
	if size > 0 {
		n = 0
		for _, x := range b[1 : 1+size] {
			n = n<<8 | uint64(x)
		}
	}
	return major, n, size, b[1+size:], nil
}
