package packet

import "strconv"

// Type is the control packet type (MQTT 5.0 §2.1.2).
type Type byte

// The control packet types.
const (
	TypeConnect Type = iota + 1
	TypeConnack
	TypePublish
	TypePuback
	TypePubrec
	TypePubrel
	TypePubcomp
	TypeSubscribe
	TypeSuback
	TypeUnsubscribe
	TypeUnsuback
	TypePingreq
	TypePingresp
	TypeDisconnect
	TypeAuth
)

// Packet is one control packet. The values are pointers to the structs of
// this package: *Connect, *Publish, ...
type Packet interface {
	Type() Type
	// AppendTo appends the packet in wire form for that version. What the
	// version does not know (properties, reason codes) is left out; what
	// cannot be said at all (a string over 65535 bytes, QoS 3, a packet over
	// 268,435,455 bytes) is an error, and b comes back unchanged.
	AppendTo(b []byte, v Version) ([]byte, error)
}

var typeNames = [...]string{
	TypeConnect:     "CONNECT",
	TypeConnack:     "CONNACK",
	TypePublish:     "PUBLISH",
	TypePuback:      "PUBACK",
	TypePubrec:      "PUBREC",
	TypePubrel:      "PUBREL",
	TypePubcomp:     "PUBCOMP",
	TypeSubscribe:   "SUBSCRIBE",
	TypeSuback:      "SUBACK",
	TypeUnsubscribe: "UNSUBSCRIBE",
	TypeUnsuback:    "UNSUBACK",
	TypePingreq:     "PINGREQ",
	TypePingresp:    "PINGRESP",
	TypeDisconnect:  "DISCONNECT",
	TypeAuth:        "AUTH",
}

// String returns the specification's name, such as "PUBLISH".
func (t Type) String() string {
	if t == 0 || int(t) >= len(typeNames) {
		return "type " + strconv.Itoa(int(t))
	}
	return typeNames[t]
}

// flags are the low four bits of the first byte of every type but PUBLISH
// (MQTT 5.0 §2.1.3, table 2-2).
func (t Type) flags() byte {
	switch t {
	case TypePubrel, TypeSubscribe, TypeUnsubscribe:
		return 0x02
	default:
		return 0
	}
}

// start appends the first byte of every type but PUBLISH.
func (w *builder) start(t Type) int {
	w.byte(byte(t)<<4 | t.flags())
	return w.open()
}

// Frame looks at the start of b. n > 0 is the size in bytes of the first
// packet, header included, whether or not all of it is there yet; n == 0 says
// that the header is not complete. A packet of more than limit bytes is refused
// with reason 0x95 as soon as its header is known; limit 0 or less stands for
// the largest packet there is. It looks at no more than five bytes
// (MQTT 5.0 §2.1).
func Frame(b []byte, limit int) (n int, err error) {
	if len(b) == 0 {
		return 0, nil
	}
	t := Type(b[0] >> 4)
	if t == 0 {
		return 0, malformed("packet type", "0 is reserved")
	}
	rest, k := readVarint(b[1:])
	switch {
	case k < 0:
		e := malformed("remaining length", "takes more than 4 bytes")
		e.Type = t
		return 0, e
	case k == 0:
		return 0, nil
	}
	n = 1 + k + int(rest)
	if limit > 0 && n > limit {
		e := refuse(ReasonPacketTooLarge, "packet", "%d bytes are more than %d", n, limit)
		e.Type = t
		return 0, e
	}
	return n, nil
}

// checkHeader judges a packet by its first byte, so that a wrong one is
// refused before its body is waited for.
func checkHeader(first byte, v Version) *Error {
	t, flags := Type(first>>4), first&0x0f
	switch t {
	case 0:
		return malformed("packet type", "0 is reserved")
	case TypeConnect:
		return nil // its version is not known yet, decodeConnect does it
	case TypePublish:
		return checkPublishFlags(flags, v)
	case TypeAuth:
		if v < V5 {
			return malformed("packet type", "15 is reserved in MQTT %s", v)
		}
	default:
	}
	return checkFlags(t, flags, v)
}

// checkFlags applies MQTT 5.0 §2.1.3 [MQTT-2.1.3-1] and MQTT 3.1.1 §2.2.2
// [MQTT-2.2.2-2]. MQTT 3.1 §2.1 has DUP and QoS mean something in SUBSCRIBE,
// UNSUBSCRIBE and PUBREL and says "not used" elsewhere; nothing depends on them.
func checkFlags(t Type, flags byte, v Version) *Error {
	if v != V31 && flags != t.flags() {
		return malformed("fixed header flags", "0x%x is not 0x%x", flags, t.flags())
	}
	return nil
}

// targets are values that decoding uses again instead of allocating; each may
// be nil.
type targets struct {
	publish *Publish
	puback  *Puback
	pubrec  *Pubrec
	pubrel  *Pubrel
	pubcomp *Pubcomp
	users   int // user properties there may be, 0 for any number
}

// reuse returns p, emptied, or a new value.
func reuse[T any](p *T) *T {
	if p == nil {
		return new(T)
	}
	var zero T
	*p = zero
	return p
}

// Decode decodes one whole packet, header included. A CONNECT says its version
// itself. A PUBLISH is decoded into pub if that is not nil, without allocation,
// and its byte slices point into frame; all other values share nothing with it.
// The error is always of type [*Error].
func Decode(frame []byte, v Version, pub *Publish) (Packet, error) {
	return decode(frame, v, targets{publish: pub})
}

func decode(frame []byte, v Version, into targets) (Packet, error) {
	if len(frame) == 0 {
		return nil, malformed("packet", "is empty")
	}
	t := Type(frame[0] >> 4)
	c := cursor{b: frame[1:], users: into.users}
	minimal := c.remaining()
	c.fail(checkHeader(frame[0], v))
	if !minimal && v >= V5 && t != TypeConnect {
		c.fail(errNotMinimal())
	}
	var p Packet
	if c.err == nil {
		p = c.packet(t, frame[0]&0x0f, minimal, v, into)
		c.end()
	}
	if c.err != nil {
		c.err.Type = t
		if connect, ok := p.(*Connect); ok && connect.Version.protocolName() != "" {
			c.err.Version = connect.Version
		}
		return nil, c.err
	}
	return p, nil
}

// remaining takes the remaining length, which has to be all that is left, and
// says whether it has its shortest form: MQTT 5.0 §1.5.5 [MQTT-1.5.5-1] asks
// for it, earlier versions do not.
func (c *cursor) remaining() (minimal bool) {
	const field = "remaining length"
	n, k := readVarint(c.b)
	switch {
	case k == 0:
		c.short(field, len(c.b)+1)
	case k < 0:
		c.fail(malformed(field, "takes more than 4 bytes"))
	case int(n) != len(c.b)-k:
		c.fail(malformed(field, "is %d, but %d bytes follow", n, len(c.b)-k))
	default:
		c.b = c.b[k:]
	}
	return k == varintLen(n)
}

func errNotMinimal() *Error {
	return malformed("remaining length", "is not written in the fewest bytes")
}

// packet decodes a body.
func (c *cursor) packet(t Type, flags byte, minimal bool, v Version, into targets) Packet {
	switch t {
	case TypeConnect:
		return c.connect(flags, minimal)
	case TypeConnack:
		return c.connack(v)
	case TypePublish:
		return c.publish(flags, v, into.publish)
	case TypePuback:
		p := reuse(into.puback)
		p.PacketID, p.Reason = c.ack(t, v, &p.Properties)
		return p
	case TypePubrec:
		p := reuse(into.pubrec)
		p.PacketID, p.Reason = c.ack(t, v, &p.Properties)
		return p
	case TypePubrel:
		p := reuse(into.pubrel)
		p.PacketID, p.Reason = c.ack(t, v, &p.Properties)
		return p
	case TypePubcomp:
		p := reuse(into.pubcomp)
		p.PacketID, p.Reason = c.ack(t, v, &p.Properties)
		return p
	case TypeSubscribe:
		return c.subscribe(v)
	case TypeSuback:
		return c.suback(v)
	case TypeUnsubscribe:
		return c.unsubscribe(v)
	case TypeUnsuback:
		return c.unsuback(v)
	case TypePingreq:
		return &Pingreq{}
	case TypePingresp:
		return &Pingresp{}
	case TypeDisconnect:
		return c.disconnect(v)
	case TypeAuth:
		return c.auth()
	default:
		panic("packet: type 0 passed checkHeader")
	}
}
