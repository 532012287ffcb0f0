package packet

// Auth carries an extended authentication exchange (MQTT 5.0 §3.15).
type Auth struct {
	Reason     ReasonCode
	Properties Properties
}

// Type returns [TypeAuth].
func (*Auth) Type() Type { return TypeAuth }

// auth takes the body of an AUTH. An empty one stands for success without
// properties (MQTT 5.0 §3.15.2.1).
func (c *cursor) auth() *Auth {
	p := &Auth{}
	if len(c.b) == 0 {
		return p
	}
	p.Reason = c.reason(TypeAuth, c.byte(fieldReason))
	if len(c.b) > 0 {
		c.properties(TypeAuth, &p.Properties)
	}
	if c.err == nil && p.Properties.AuthMethod == "" {
		c.fail(errNoMethod())
	}
	return p
}

// errNoMethod is MQTT 5.0 §3.15.2.2.2.
func errNoMethod() *Error {
	return protocol(propertyTable[idAuthMethod].name, "is missing")
}

// AppendTo appends the packet in wire form; it is an error in 3.x, which has
// no such packet.
func (p *Auth) AppendTo(b []byte, v Version) ([]byte, error) {
	w := builder{b: b}
	if v < V5 {
		w.fail(malformed("packet type", "15 is reserved in MQTT %s", v))
		return w.done(b, TypeAuth)
	}
	w.checkReason(TypeAuth, p.Reason)
	start := w.start(TypeAuth)
	w.reasonAndProperties(TypeAuth, p.Reason, &p.Properties)
	if p.Properties.AuthMethod == "" && len(w.b) > start {
		w.fail(errNoMethod())
	}
	w.shut(start)
	return w.done(b, TypeAuth)
}
