package packet

import (
	"bytes"
	"encoding/binary"
	"strings"
)

// cursor takes fields from the front of a packet's body. The first error
// sticks and empties the cursor, so that loops over its bytes end.
type cursor struct {
	b   []byte
	err *Error
	// users is how many user properties may come, 0 for any number; had is how
	// many have.
	users, had int
}

// fail keeps the first error.
func (c *cursor) fail(err *Error) {
	if c.err == nil && err != nil {
		c.err = err
		c.b = nil
	}
}

// short fails a field that needs more bytes than are left.
func (c *cursor) short(field string, need int) {
	if c.err == nil {
		c.fail(malformed(field, "needs %d bytes, has %d", need, len(c.b)))
	}
}

func (c *cursor) byte(field string) byte {
	if len(c.b) < 1 {
		c.short(field, 1)
		return 0
	}
	v := c.b[0]
	c.b = c.b[1:]
	return v
}

// flag takes a byte that is 0 or 1.
func (c *cursor) flag(field string) byte {
	v := c.byte(field)
	if v > 1 {
		c.fail(protocol(field, "%d is neither 0 nor 1", v))
	}
	return v
}

func (c *cursor) uint16(field string) uint16 {
	if len(c.b) < 2 {
		c.short(field, 2)
		return 0
	}
	v := binary.BigEndian.Uint16(c.b)
	c.b = c.b[2:]
	return v
}

func (c *cursor) uint32(field string) uint32 {
	if len(c.b) < 4 {
		c.short(field, 4)
		return 0
	}
	v := binary.BigEndian.Uint32(c.b)
	c.b = c.b[4:]
	return v
}

// varint takes a variable byte integer in its shortest form
// (MQTT 5.0 §1.5.5 [MQTT-1.5.5-1]).
func (c *cursor) varint(field string) uint32 {
	v, n := readVarint(c.b)
	switch {
	case n == 0:
		c.short(field, len(c.b)+1)
	case n < 0:
		c.fail(malformed(field, "takes more than 4 bytes"))
	case n != varintLen(v):
		c.fail(malformed(field, "%d is written in %d bytes", v, n))
	default:
		c.b = c.b[n:]
		return v
	}
	return 0
}

// bytes takes n bytes. They still belong to the packet.
func (c *cursor) bytes(field string, n int) []byte {
	if len(c.b) < n {
		c.short(field, n)
		return nil
	}
	v := c.b[:n:n]
	c.b = c.b[n:]
	return v
}

// binary takes a two byte length and as many bytes, which still belong to the
// packet (MQTT 5.0 §1.5.6).
func (c *cursor) binary(field string) []byte {
	return c.bytes(field, int(c.uint16(field)))
}

// binaryCopy is binary for a value that outlives the packet; never nil.
func (c *cursor) binaryCopy(field string) []byte {
	return append([]byte{}, c.binary(field)...)
}

// text takes a UTF-8 encoded string, which still belongs to the packet.
func (c *cursor) text(field string) []byte {
	v := c.binary(field)
	if c.err == nil && !ValidBytes(v) {
		c.fail(malformed(field, "%s", whyInvalid(v)))
	}
	return v
}

// string takes a UTF-8 encoded string for a value that outlives the packet.
func (c *cursor) string(field string) string { return string(c.text(field)) }

// looseString takes a string of MQTT 3.1, which asks for a UTF-8 of Java's
// kind (§2.5). We ask only that it has no NUL.
func (c *cursor) looseString(field string) string {
	v := c.binary(field)
	if bytes.IndexByte(v, 0) >= 0 {
		c.fail(malformed(field, "contains U+0000"))
	}
	return string(v)
}

// packetID takes a packet identifier (MQTT 5.0 §2.2.1 [MQTT-2.2.1-3]).
func (c *cursor) packetID() uint16 {
	id := c.uint16(fieldPacketID)
	if id == 0 && c.err == nil {
		c.fail(errPacketID())
	}
	return id
}

const fieldPacketID = "packet identifier"

func errPacketID() *Error { return protocol(fieldPacketID, "0 is not allowed") }

// end fails if anything is left.
func (c *cursor) end() {
	if len(c.b) > 0 {
		c.fail(malformed("remaining length", "%d more than the fields take", len(c.b)))
	}
}

// builder appends a packet. The first error sticks.
type builder struct {
	b   []byte
	err *Error
}

func (w *builder) fail(err *Error) {
	if w.err == nil {
		w.err = err
	}
}

func (w *builder) byte(v byte)     { w.b = append(w.b, v) }
func (w *builder) uint16(v uint16) { w.b = binary.BigEndian.AppendUint16(w.b, v) }
func (w *builder) uint32(v uint32) { w.b = binary.BigEndian.AppendUint32(w.b, v) }

func (w *builder) binary(field string, v []byte) {
	if len(v) > maxField {
		w.fail(tooLong(field, len(v)))
		return
	}
	w.uint16(uint16(len(v)))
	w.b = append(w.b, v...)
}

func (w *builder) string(field, v string) {
	if len(v) > maxField {
		w.fail(tooLong(field, len(v)))
		return
	}
	if !ValidString(v) {
		w.fail(malformed(field, "%s", whyInvalid([]byte(v))))
	}
	w.rawString(v)
}

// looseString is the counterpart of cursor.looseString.
func (w *builder) looseString(field, v string) {
	if len(v) > maxField {
		w.fail(tooLong(field, len(v)))
		return
	}
	if strings.IndexByte(v, 0) >= 0 {
		w.fail(malformed(field, "contains U+0000"))
	}
	w.rawString(v)
}

func (w *builder) rawString(v string) {
	w.uint16(uint16(len(v)))
	w.b = append(w.b, v...)
}

func (w *builder) packetID(id uint16) {
	if id == 0 {
		w.fail(errPacketID())
	}
	w.uint16(id)
}

// open makes room for a length of one byte, which is what most lengths take.
// Hand its result to shut.
func (w *builder) open() int {
	w.b = append(w.b, 0)
	return len(w.b)
}

// shut writes the length of what was appended since open, moving it on where
// the length takes more than one byte.
func (w *builder) shut(start int) {
	n := len(w.b) - start
	if n > MaxSize {
		w.fail(tooLarge(n))
		return
	}
	if n < 0x80 {
		w.b[start-1] = byte(n)
		return
	}
	more := varintLen(uint32(n)) - 1
	for range more {
		w.b = append(w.b, 0)
	}
	copy(w.b[start+more:], w.b[start:start+n])
	appendVarint(w.b[:start-1], uint32(n))
}

// done returns the result of AppendTo: what was built, or b as it was.
func (w *builder) done(b []byte, t Type) ([]byte, error) {
	if w.err != nil {
		w.err.Type = t
		return b, w.err
	}
	return w.b, nil
}

func whyInvalid(v []byte) string {
	if bytes.IndexByte(v, 0) >= 0 {
		return "contains U+0000"
	}
	return "is not valid UTF-8"
}

func tooLong(field string, n int) *Error {
	return malformed(field, "%d bytes are more than 65535", n)
}

func tooLarge(n int) *Error {
	return refuse(ReasonPacketTooLarge, "remaining length", "%d bytes are more than %d", n, MaxSize)
}
