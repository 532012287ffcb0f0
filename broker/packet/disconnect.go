package packet

// Disconnect ends the connection (MQTT 5.0 §3.14).
type Disconnect struct {
	Reason     ReasonCode
	Properties Properties
}

// Type returns [TypeDisconnect].
func (*Disconnect) Type() Type { return TypeDisconnect }

// disconnect takes the body of a DISCONNECT, of which all may be missing
// (MQTT 5.0 §3.14.2.1, §3.14.2.2.1).
func (c *cursor) disconnect(v Version) *Disconnect {
	p := &Disconnect{}
	if v < V5 || len(c.b) == 0 {
		return p
	}
	p.Reason = c.reason(TypeDisconnect, c.byte(fieldReason))
	if len(c.b) > 0 {
		c.properties(TypeDisconnect, &p.Properties)
	}
	return p
}

// AppendTo appends the packet in wire form. For 3.x, where only a client sends
// it, the reason is left out (MQTT 3.1.1 §3.14).
func (p *Disconnect) AppendTo(b []byte, v Version) ([]byte, error) {
	w := builder{b: b}
	w.checkReason(TypeDisconnect, p.Reason)
	start := w.start(TypeDisconnect)
	if v >= V5 {
		w.reasonAndProperties(TypeDisconnect, p.Reason, &p.Properties)
	}
	w.shut(start)
	return w.done(b, TypeDisconnect)
}
