package packet

// Connack answers a CONNECT (MQTT 5.0 §3.2). Reason is a 5.0 reason code; for
// 3.x it is translated to and from the return codes 0 to 5.
type Connack struct {
	SessionPresent bool
	Reason         ReasonCode
	Properties     Properties
}

// Type returns [TypeConnack].
func (*Connack) Type() Type { return TypeConnack }

// connack takes the body of a CONNACK.
func (c *cursor) connack(v Version) *Connack {
	p := &Connack{}
	// A server that does not know 5.0 refuses in the form it knows, which is a
	// byte shorter than any CONNACK of 5.0 (MQTT 3.1.1 §3.1.2.2 [MQTT-3.1.2-2]).
	old := v < V5 || len(c.b) == 2
	flags := c.byte("connect acknowledge flags")
	if v != V31 { // MQTT 3.1 §3.2: the byte is not used
		if flags > 1 {
			c.fail(malformed("connect acknowledge flags", "reserved bits are set")) // [MQTT-3.2.2-1]
		}
		p.SessionPresent = flags&1 != 0
	}
	code := c.byte(fieldReason)
	if old {
		p.Reason = c.returnCode(code)
		if v == V5 && p.Reason == ReasonSuccess {
			c.short("property length", 1)
		}
	} else {
		p.Reason = c.reason(TypeConnack, code)
		c.properties(TypeConnack, &p.Properties)
	}
	if c.err == nil {
		c.fail(p.check())
	}
	return p
}

// check applies the rules about values.
func (p *Connack) check() *Error {
	if p.SessionPresent && p.Reason != ReasonSuccess {
		return protocol("session present", "is set in a refusal") // MQTT 5.0 [MQTT-3.2.2-6]
	}
	return p.Properties.checkAuth()
}

// AppendTo appends the packet in wire form.
func (p *Connack) AppendTo(b []byte, v Version) ([]byte, error) {
	w := builder{b: b}
	if err := p.check(); err != nil {
		w.fail(err)
	}
	w.checkReason(TypeConnack, p.Reason)
	start := w.start(TypeConnack)
	var flags byte
	if p.SessionPresent && v != V31 {
		flags = 1
	}
	w.byte(flags)
	if v < V5 {
		w.byte(p.Reason.ReturnCode())
	} else {
		w.byte(byte(p.Reason))
		w.properties(TypeConnack, &p.Properties)
	}
	w.shut(start)
	return w.done(b, TypeConnack)
}

// returnCodes are the return codes of 3.x as reason codes
// (MQTT 3.1.1 §3.2.2.3, table 3.1).
var returnCodes = [...]ReasonCode{
	ReasonSuccess,
	ReasonUnsupportedProtocolVersion,
	ReasonClientIDNotValid,
	ReasonServerUnavailable,
	ReasonBadUserNameOrPassword,
	ReasonNotAuthorized,
}

func (c *cursor) returnCode(code byte) ReasonCode {
	if int(code) >= len(returnCodes) {
		c.fail(malformed("return code", "%d is reserved", code))
		return ReasonUnspecified
	}
	return returnCodes[code]
}

// ReturnCode translates a CONNACK's reason code to the return code of 3.x that
// says most of it: 0 to 5 (MQTT 3.1.1 §3.2.2.3). What has no like there becomes
// 3, server unavailable.
func (r ReasonCode) ReturnCode() byte {
	switch r {
	case ReasonUnsupportedProtocolVersion:
		return 1
	case ReasonClientIDNotValid:
		return 2
	case ReasonBadUserNameOrPassword, ReasonBadAuthenticationMethod:
		return 4
	case ReasonNotAuthorized, ReasonBanned:
		return 5
	default:
		if !r.Failed() {
			return 0
		}
		return 3
	}
}
