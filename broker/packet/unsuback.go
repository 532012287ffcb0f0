package packet

// Unsuback answers an UNSUBSCRIBE; Reasons is empty in 3.x (MQTT 5.0 §3.11).
type Unsuback struct {
	PacketID   uint16
	Reasons    []ReasonCode
	Properties Properties
}

// Type returns [TypeUnsuback].
func (*Unsuback) Type() Type { return TypeUnsuback }

// unsuback takes the body of an UNSUBACK.
func (c *cursor) unsuback(v Version) *Unsuback {
	p := &Unsuback{PacketID: c.packetID()}
	if v >= V5 {
		c.properties(TypeUnsuback, &p.Properties)
		p.Reasons = c.reasons(TypeUnsuback, v)
	}
	return p
}

// AppendTo appends the packet in wire form. For 3.x the reasons are left out.
func (p *Unsuback) AppendTo(b []byte, v Version) ([]byte, error) {
	w := builder{b: b}
	start := w.start(TypeUnsuback)
	w.packetID(p.PacketID)
	if v >= V5 {
		w.properties(TypeUnsuback, &p.Properties)
		w.reasons(TypeUnsuback, p.Reasons)
	}
	w.shut(start)
	return w.done(b, TypeUnsuback)
}
