package packet

// Suback answers a SUBSCRIBE, one code for each filter (MQTT 5.0 §3.9).
type Suback struct {
	PacketID   uint16
	Reasons    []ReasonCode
	Properties Properties
}

// Type returns [TypeSuback].
func (*Suback) Type() Type { return TypeSuback }

// suback takes the body of a SUBACK.
func (c *cursor) suback(v Version) *Suback {
	p := &Suback{PacketID: c.packetID()}
	if v >= V5 {
		c.properties(TypeSuback, &p.Properties)
	}
	p.Reasons = c.reasons(TypeSuback, v)
	return p
}

// reasons takes one code for each filter, as many as there are. Of 3.x only
// SUBACK has codes (MQTT 3.1.1 §3.9.3 [MQTT-3.9.3-2]); 3.1 has none for failure,
// see [Suback.AppendTo].
func (c *cursor) reasons(t Type, v Version) []ReasonCode {
	if c.err != nil {
		return nil
	}
	if len(c.b) == 0 {
		c.fail(errNoReasons())
		return nil
	}
	reasons := make([]ReasonCode, len(c.b))
	for i := range reasons {
		code := c.byte(fieldReason)
		if v < V5 && code > 2 && code != byte(ReasonUnspecified) {
			c.fail(malformed("return code", "0x%02x is reserved", code))
		}
		reasons[i] = c.reason(t, code)
	}
	return reasons
}

func errNoReasons() *Error { return protocol(fieldReason, "there is none") }

// reasons appends one code for each filter.
func (w *builder) reasons(t Type, reasons []ReasonCode) {
	if len(reasons) == 0 {
		w.fail(errNoReasons())
	}
	for _, r := range reasons {
		w.checkReason(t, r)
		w.byte(byte(r))
	}
}

// AppendTo appends the packet in wire form. For 3.x every failure becomes
// 0x80. MQTT 3.1 §3.8 knows no failure and has the server pretend success: its
// clients look at the two lowest bits and see that in 0x80, and those that know
// better see the truth.
func (p *Suback) AppendTo(b []byte, v Version) ([]byte, error) {
	w := builder{b: b}
	start := w.start(TypeSuback)
	w.packetID(p.PacketID)
	if v >= V5 {
		w.properties(TypeSuback, &p.Properties)
	}
	first := len(w.b)
	w.reasons(TypeSuback, p.Reasons)
	if v < V5 {
		for i := first; i < len(w.b); i++ {
			w.b[i] = min(w.b[i], byte(ReasonUnspecified))
		}
	}
	w.shut(start)
	return w.done(b, TypeSuback)
}
