package packet

import (
	"bytes"
	"encoding/binary"
	"slices"
)

// Publish carries an application message (MQTT 5.0 §3.3). When it comes from a
// Reader its byte slices point into the reader's buffer.
type Publish struct {
	Dup      bool
	QoS      byte
	Retain   bool
	PacketID uint16 // 0 when QoS is 0
	Topic    []byte // empty when only TopicAlias names the topic
	// TopicAlias is 0 when there is none (0 on the wire is refused with 0x94).
	TopicAlias uint16
	// HasExpiry says that MessageExpiry (seconds) was given.
	HasExpiry     bool
	MessageExpiry uint32
	// SubscriptionIDs come from a server only, 1 to 268,435,455 each.
	SubscriptionIDs []uint32
	// Properties are those that travel unaltered (payload format indicator,
	// content type, response topic, correlation data, user properties), in
	// wire form and in order, without the length prefix.
	Properties []byte
	Payload    []byte

	// scratch holds Properties when others stood between them.
	scratch []byte
}

// The flags in the first byte of a PUBLISH (MQTT 5.0 §3.3.1).
const (
	publishRetain = 1 << 0
	publishQoS    = 3 << 1
	publishDup    = 1 << 3
)

const fieldTopic = "topic name"

// maxKept is how much scratch space a Publish that is decoded into again keeps
// for the next packet, in elements; properties that need more are rare.
const maxKept = 512

// Type returns [TypePublish].
func (*Publish) Type() Type { return TypePublish }

// Equal says whether both say the same on the wire.
func (p *Publish) Equal(q *Publish) bool {
	if p == nil || q == nil {
		return p == q
	}
	return p.Dup == q.Dup && p.QoS == q.QoS && p.Retain == q.Retain && p.PacketID == q.PacketID &&
		p.TopicAlias == q.TopicAlias && p.HasExpiry == q.HasExpiry && p.MessageExpiry == q.MessageExpiry &&
		bytes.Equal(p.Topic, q.Topic) && slices.Equal(p.SubscriptionIDs, q.SubscriptionIDs) &&
		bytes.Equal(p.Properties, q.Properties) && bytes.Equal(p.Payload, q.Payload)
}

// checkPublishFlags judges the flags. MQTT 3.1 §2.1 has no rule for DUP at
// QoS 0.
func checkPublishFlags(flags byte, v Version) *Error {
	switch {
	case flags&publishQoS == publishQoS:
		return malformed("fixed header flags", "qos 3") // [MQTT-3.3.1-4]
	case flags&publishQoS == 0 && flags&publishDup != 0 && v != V31:
		return malformed("fixed header flags", "dup with qos 0") // [MQTT-3.3.1-2]
	}
	return nil
}

// publish takes the body of a PUBLISH.
func (c *cursor) publish(flags byte, v Version, p *Publish) *Publish {
	if p == nil {
		p = &Publish{}
	}
	*p = Publish{
		QoS:             flags & publishQoS >> 1,
		Retain:          flags&publishRetain != 0,
		SubscriptionIDs: keep(p.SubscriptionIDs),
		scratch:         keep(p.scratch),
	}
	p.Topic = c.text(fieldTopic)
	if p.QoS > 0 {
		p.Dup = flags&publishDup != 0
		p.PacketID = c.packetID()
	}
	if v >= V5 {
		c.publishProperties(p)
	}
	p.Payload = c.b
	c.b = nil
	if len(p.Topic) == 0 && p.TopicAlias == 0 {
		c.fail(errNoTopic())
	}
	return p
}

// keep empties s for another use, unless it has grown large.
func keep[T any](s []T) []T {
	if cap(s) > maxKept {
		return nil
	}
	return s[:0]
}

// errNoTopic is MQTT 5.0 §3.3.2.1; in 3.x there are no aliases
// (MQTT 3.1.1 §4.7.3 [MQTT-4.7.3-1]).
func errNoTopic() *Error { return protocol(fieldTopic, "is empty and there is no topic alias") }

// publishProperties sorts the properties into those that end here and those
// that travel on. The latter stay where they are while they are one piece.
func (c *cursor) publishProperties(p *Publish) {
	rest := c.section()
	all := c.b
	var seen uint64
	first, last := 0, 0 // all[first:last] travels on; p.scratch once there was a gap
	for len(c.b) > 0 {
		start := len(all) - len(c.b)
		id, name := c.propertyID(TypePublish, &seen)
		switch id {
		case idTopicAlias:
			p.TopicAlias = c.uint16(name)
			if p.TopicAlias == 0 {
				c.fail(refuse(ReasonTopicAliasInvalid, name, "0 is not allowed")) // [MQTT-3.3.2-8]
			}
			continue
		case idMessageExpiry:
			p.HasExpiry, p.MessageExpiry = true, c.uint32(name)
			continue
		case idSubscriptionID:
			p.SubscriptionIDs = append(p.SubscriptionIDs, c.subscriptionID())
			continue
		}
		c.forwarded(id, name)
		if c.err != nil {
			return
		}
		end := len(all) - len(c.b)
		switch {
		case len(p.scratch) > 0:
			p.scratch = append(p.scratch, all[start:end]...)
		case last == 0:
			first, last = start, end
		case last == start:
			last = end
		default:
			p.scratch = append(p.scratch, all[first:last]...)
			p.scratch = append(p.scratch, all[start:end]...)
		}
	}
	if c.err != nil {
		return
	}
	switch {
	case len(p.scratch) > 0:
		p.Properties = p.scratch
	case last > 0:
		p.Properties = all[first:last:last]
	}
	c.resume(rest)
}

// forwarded takes the value of a property that travels on, for its validity.
func (c *cursor) forwarded(id uint32, name string) {
	switch id {
	case idPayloadFormat:
		c.flag(name)
	case idContentType:
		c.text(name)
	case idResponseTopic:
		c.responseTopic()
	case idCorrelationData:
		c.binary(name)
	case idUser:
		c.text(name)
		c.text(name)
	}
}

// Size returns the size of the whole packet for that version, in bytes, to be
// compared with the peer's maximum packet size (MQTT 5.0 §3.1.2.11.4).
func (p *Publish) Size(v Version) int {
	_, rest := p.lengths(v)
	return 1 + varintLen(uint32(rest)) + rest
}

// lengths returns the property length and the remaining length.
func (p *Publish) lengths(v Version) (properties, remaining int) {
	remaining = 2 + len(p.Topic) + len(p.Payload)
	if p.QoS > 0 {
		remaining += 2
	}
	if v < V5 {
		return 0, remaining
	}
	if p.TopicAlias != 0 {
		properties += 3
	}
	if p.HasExpiry {
		properties += 5
	}
	for _, id := range p.SubscriptionIDs {
		properties += 1 + varintLen(id)
	}
	properties += len(p.Properties)
	return properties, remaining + varintLen(uint32(properties)) + properties
}

// check applies the rules about values.
func (p *Publish) check(v Version) *Error {
	switch {
	case p.QoS > 2:
		return malformed("fixed header flags", "qos %d", p.QoS)
	case p.QoS > 0 && p.PacketID == 0:
		return errPacketID()
	case len(p.Topic) > maxField:
		return tooLong(fieldTopic, len(p.Topic))
	case len(p.Topic) == 0 && (p.TopicAlias == 0 || v < V5):
		return errNoTopic()
	case !ValidBytes(p.Topic):
		return malformed(fieldTopic, "%s", whyInvalid(p.Topic))
	}
	if v >= V5 {
		for _, id := range p.SubscriptionIDs {
			if id == 0 || id > MaxSize {
				return protocol(propertyTable[idSubscriptionID].name, "%d is outside 1 to %d", id, MaxSize)
			}
		}
	}
	return nil
}

// AppendTo appends the packet in wire form. Properties are taken as they are:
// they come from [Decode] or from [PublishProperties.AppendTo]. DUP is left out
// at QoS 0 [MQTT-3.3.1-2].
func (p *Publish) AppendTo(b []byte, v Version) ([]byte, error) {
	out, _, err := p.AppendHeaderTo(b, v)
	if err != nil {
		return b, err
	}
	if v >= V5 {
		out = append(out, p.Properties...)
	}
	return append(out, p.Payload...), nil
}

// AppendHeaderTo appends that part of the packet that differs between its
// recipients: all that stands before Properties and Payload. The packet is this
// header, then in 5.0 Properties, then Payload, which many packets may share
// without copying them. idAt is where in the result the two bytes of the packet
// identifier are; 0 at QoS 0.
func (p *Publish) AppendHeaderTo(b []byte, v Version) (out []byte, idAt int, err error) {
	if err := p.check(v); err != nil {
		err.Type = TypePublish
		return b, 0, err
	}
	properties, remaining := p.lengths(v)
	if remaining > MaxSize {
		err := tooLarge(remaining)
		err.Type = TypePublish
		return b, 0, err
	}
	out = append(b, publishFlags(p.Dup, p.QoS, p.Retain))
	out = appendVarint(out, uint32(remaining))
	out = binary.BigEndian.AppendUint16(out, uint16(len(p.Topic)))
	out = append(out, p.Topic...)
	if p.QoS > 0 {
		idAt = len(out)
		out = binary.BigEndian.AppendUint16(out, p.PacketID)
	}
	if v < V5 {
		return out, idAt, nil
	}
	out = appendVarint(out, uint32(properties))
	if p.TopicAlias != 0 {
		out = append(out, idTopicAlias)
		out = binary.BigEndian.AppendUint16(out, p.TopicAlias)
	}
	if p.HasExpiry {
		out = append(out, idMessageExpiry)
		out = binary.BigEndian.AppendUint32(out, p.MessageExpiry)
	}
	for _, id := range p.SubscriptionIDs {
		out = appendVarint(append(out, idSubscriptionID), id)
	}
	return out, idAt, nil
}

// publishFlags returns the first byte of a PUBLISH.
func publishFlags(dup bool, qos byte, retain bool) byte {
	first := byte(TypePublish)<<4 | qos<<1
	if dup && qos > 0 {
		first |= publishDup
	}
	if retain {
		first |= publishRetain
	}
	return first
}
