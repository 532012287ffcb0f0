package packet

// Will is the will of a CONNECT packet (MQTT 5.0 §3.1.2.5).
type Will struct {
	Topic      string
	Payload    []byte
	QoS        byte
	Retain     bool
	Properties Properties
}

// Connect asks for a session (MQTT 5.0 §3.1, MQTT 3.1.1 §3.1).
type Connect struct {
	Version Version
	// CleanStart is Clean Session in 3.x.
	CleanStart bool
	// KeepAlive is the longest silence allowed, in seconds; 0 turns it off.
	KeepAlive   uint16
	ClientID    string
	Will        *Will
	HasUsername bool
	Username    string
	HasPassword bool
	Password    []byte
	Properties  Properties
}

// The connect flags (MQTT 5.0 §3.1.2.3).
const (
	connectReserved   = 1 << 0
	connectCleanStart = 1 << 1
	connectWill       = 1 << 2
	connectWillQoS    = 3 << 3
	connectWillRetain = 1 << 5
	connectPassword   = 1 << 6
	connectUsername   = 1 << 7
)

// Type returns [TypeConnect].
func (*Connect) Type() Type { return TypeConnect }

// connect takes the body of a CONNECT. It returns what it could read even
// where it fails, for the version in it.
func (c *cursor) connect(headerFlags byte, minimal bool) *Connect {
	p := &Connect{}
	name := c.binary("protocol name")
	p.Version = Version(c.byte("protocol version"))
	if c.err != nil {
		return p
	}
	if want := p.Version.protocolName(); want == "" || string(name) != want {
		c.fail(refuse(ReasonUnsupportedProtocolVersion, "protocol version",
			"neither MQIsdp 3, MQTT 4 nor MQTT 5"))
		p.Version = 0
		return p
	}
	c.fail(checkFlags(TypeConnect, headerFlags, p.Version))
	if !minimal && p.Version == V5 {
		c.fail(errNotMinimal())
	}
	flags := c.byte("connect flags")
	c.fail(checkConnectFlags(flags, p.Version))
	p.CleanStart = flags&connectCleanStart != 0
	p.KeepAlive = c.uint16("keep alive")
	if p.Version == V5 {
		c.properties(TypeConnect, &p.Properties)
	}

	text := c.string
	if p.Version == V31 {
		text = c.looseString
	}
	p.ClientID = text(fieldClientID)
	if flags&connectWill != 0 {
		p.Will = &Will{QoS: flags & connectWillQoS >> 3, Retain: flags&connectWillRetain != 0}
		if p.Version == V5 {
			c.properties(inWill, &p.Will.Properties)
		}
		p.Will.Topic = c.string(fieldWillTopic)
		p.Will.Payload = c.binaryCopy(fieldWillPayload)
	}
	// In 3.1 the flags may announce a user name and a password that are not
	// there: the remaining length takes precedence (MQTT 3.1 §3.1).
	missing := func() bool { return p.Version == V31 && len(c.b) == 0 }
	if flags&connectUsername != 0 && !missing() {
		p.HasUsername = true
		p.Username = text(fieldUsername)
	}
	if flags&connectPassword != 0 && !missing() {
		p.HasPassword = true
		p.Password = c.binaryCopy(fieldPassword)
	}
	if c.err == nil {
		c.fail(p.check(p.Version))
	}
	return p
}

const (
	fieldClientID    = "client identifier"
	fieldWillTopic   = "will topic"
	fieldWillPayload = "will payload"
	fieldUsername    = "user name"
	fieldPassword    = "password"
)

// checkConnectFlags judges those flags that leave no trace in the value
// (MQTT 5.0 §3.1.2.3 to §3.1.2.7). MQTT 3.1 disregards the reserved bit, and the
// will's bits where there is no will (§3.1).
func checkConnectFlags(flags byte, v Version) *Error {
	const field = "connect flags"
	switch {
	case v == V31:
	case flags&connectReserved != 0:
		return malformed(field, "the reserved bit is set") // [MQTT-3.1.2-3]
	case flags&connectWill == 0 && flags&(connectWillQoS|connectWillRetain) != 0:
		return malformed(field, "will qos or will retain without a will") // [MQTT-3.1.2-11] [MQTT-3.1.2-13]
	}
	return nil
}

// errPasswordAlone is MQTT 3.1.1 §3.1.2.9 [MQTT-3.1.2-22]; 5.0 allows it.
func errPasswordAlone() *Error {
	return malformed("connect flags", "password without user name")
}

// check applies the rules about values, when decoding and when encoding.
func (p *Connect) check(v Version) *Error {
	if v.protocolName() == "" {
		return refuse(ReasonUnsupportedProtocolVersion, "protocol version", "%d is unknown", byte(v))
	}
	if w := p.Will; w != nil && w.QoS > 2 {
		return malformed("connect flags", "will qos %d", w.QoS) // [MQTT-3.1.2-12]
	}
	if v < V5 {
		if p.HasPassword && !p.HasUsername {
			return errPasswordAlone()
		}
		// MQTT 3.1.1 §3.1.3.1 [MQTT-3.1.3-8]; 3.1 asks for at least one character.
		if p.ClientID == "" && (v == V31 || !p.CleanStart) {
			return refuse(ReasonClientIDNotValid, fieldClientID, "is empty")
		}
		return nil
	}
	return p.Properties.checkAuth()
}

// AppendTo appends the packet in wire form. The packet's own Version counts
// where it is set, else v.
func (p *Connect) AppendTo(b []byte, v Version) ([]byte, error) {
	if p.Version != 0 {
		v = p.Version
	}
	w := builder{b: b}
	if err := p.check(v); err != nil {
		w.fail(err)
		return w.done(b, TypeConnect)
	}
	start := w.start(TypeConnect)
	w.rawString(v.protocolName())
	w.byte(byte(v))
	w.byte(p.flags())
	w.uint16(p.KeepAlive)
	if v == V5 {
		w.properties(TypeConnect, &p.Properties)
	}
	text := w.string
	if v == V31 {
		text = w.looseString
	}
	text(fieldClientID, p.ClientID)
	if p.Will != nil {
		if v == V5 {
			w.properties(inWill, &p.Will.Properties)
		}
		w.string(fieldWillTopic, p.Will.Topic)
		w.binary(fieldWillPayload, p.Will.Payload)
	}
	if p.HasUsername {
		text(fieldUsername, p.Username)
	}
	if p.HasPassword {
		w.binary(fieldPassword, p.Password)
	}
	w.shut(start)
	return w.done(b, TypeConnect)
}

func (p *Connect) flags() (flags byte) {
	if p.CleanStart {
		flags |= connectCleanStart
	}
	if p.Will != nil {
		flags |= connectWill | p.Will.QoS<<3
		if p.Will.Retain {
			flags |= connectWillRetain
		}
	}
	if p.HasPassword {
		flags |= connectPassword
	}
	if p.HasUsername {
		flags |= connectUsername
	}
	return flags
}

// PublishProperties returns those properties that travel with the will's
// message when it is published (MQTT 5.0 §3.1.3.2).
func (w *Will) PublishProperties() PublishProperties {
	return PublishProperties{
		HasPayloadFormat: w.Properties.PayloadFormat != 0,
		PayloadFormat:    w.Properties.PayloadFormat,
		ContentType:      w.Properties.ContentType,
		ResponseTopic:    w.Properties.ResponseTopic,
		CorrelationData:  w.Properties.CorrelationData,
		User:             w.Properties.User,
	}
}
