package packet

// Puback answers a PUBLISH of QoS 1 (MQTT 5.0 §3.4).
type Puback struct {
	PacketID   uint16
	Reason     ReasonCode
	Properties Properties
}

// Pubrec answers a PUBLISH of QoS 2 (MQTT 5.0 §3.5).
type Pubrec struct {
	PacketID   uint16
	Reason     ReasonCode
	Properties Properties
}

// Pubrel answers a PUBREC that is a success (MQTT 5.0 §3.6).
type Pubrel struct {
	PacketID   uint16
	Reason     ReasonCode
	Properties Properties
}

// Pubcomp answers a PUBREL (MQTT 5.0 §3.7).
type Pubcomp struct {
	PacketID   uint16
	Reason     ReasonCode
	Properties Properties
}

// Type returns [TypePuback].
func (*Puback) Type() Type { return TypePuback }

// Type returns [TypePubrec].
func (*Pubrec) Type() Type { return TypePubrec }

// Type returns [TypePubrel].
func (*Pubrel) Type() Type { return TypePubrel }

// Type returns [TypePubcomp].
func (*Pubcomp) Type() Type { return TypePubcomp }

// ack takes the body that the four share. The reason code and the property
// length may be missing (MQTT 5.0 §3.4.2.1, §3.4.2.2.1).
func (c *cursor) ack(t Type, v Version, properties *Properties) (id uint16, reason ReasonCode) {
	id = c.packetID()
	if v < V5 || len(c.b) == 0 {
		return id, ReasonSuccess
	}
	reason = c.reason(t, c.byte(fieldReason))
	if len(c.b) > 0 {
		c.properties(t, properties)
	}
	return id, reason
}

// appendAck is the counterpart of ack, and as short as it may be.
func appendAck(b []byte, t Type, v Version, id uint16, reason ReasonCode, properties *Properties) ([]byte, error) {
	w := builder{b: b}
	start := w.start(t)
	w.packetID(id)
	w.checkReason(t, reason)
	if v >= V5 {
		w.reasonAndProperties(t, reason, properties)
	}
	w.shut(start)
	return w.done(b, t)
}

// reasonAndProperties leaves out the property length where there are no
// properties, and then the reason code too where it is success
// (MQTT 5.0 §3.4.2.1, §3.14.2.1, §3.15.2.1).
func (w *builder) reasonAndProperties(t Type, reason ReasonCode, properties *Properties) {
	w.byte(byte(reason))
	start := len(w.b)
	w.properties(t, properties)
	if len(w.b) > start+1 {
		return
	}
	w.b = w.b[:start]
	if reason == ReasonSuccess {
		w.b = w.b[:start-1]
	}
}

// AppendTo appends the packet in wire form. 3.x has no reason codes: there a
// refusal would look like success, and is better left unsent.
func (p *Puback) AppendTo(b []byte, v Version) ([]byte, error) {
	return appendAck(b, TypePuback, v, p.PacketID, p.Reason, &p.Properties)
}

// AppendTo appends the packet in wire form. 3.x has no reason codes: there a
// refusal would look like success, and is better left unsent.
func (p *Pubrec) AppendTo(b []byte, v Version) ([]byte, error) {
	return appendAck(b, TypePubrec, v, p.PacketID, p.Reason, &p.Properties)
}

// AppendTo appends the packet in wire form.
func (p *Pubrel) AppendTo(b []byte, v Version) ([]byte, error) {
	return appendAck(b, TypePubrel, v, p.PacketID, p.Reason, &p.Properties)
}

// AppendTo appends the packet in wire form.
func (p *Pubcomp) AppendTo(b []byte, v Version) ([]byte, error) {
	return appendAck(b, TypePubcomp, v, p.PacketID, p.Reason, &p.Properties)
}
