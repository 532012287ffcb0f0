package packet

import "bytes"

// UserProperty is one name-value pair; order and repetition count
// (MQTT 5.0 §2.2.2.2).
type UserProperty struct{ Key, Value string }

// Properties are the MQTT 5.0 properties of every packet but PUBLISH, and of a
// will. Where absent and zero mean the same by the specification the field is
// a plain value; where they differ it is a pointer. Which of them a packet may
// carry is checked when decoding (MQTT 5.0 table 2-4).
type Properties struct {
	PayloadFormat       byte    // will
	MessageExpiry       *uint32 // will, seconds
	ContentType         string  // will
	ResponseTopic       string  // will
	CorrelationData     []byte  // will
	WillDelay           uint32  // will, seconds
	SubscriptionID      uint32  // SUBSCRIBE, 1 to 268,435,455
	SessionExpiry       *uint32 // CONNECT, CONNACK, DISCONNECT, seconds
	AssignedClientID    string
	ServerKeepAlive     *uint16 // seconds
	AuthMethod          string
	AuthData            []byte
	RequestProblemInfo  *byte // absent means 1
	RequestResponseInfo byte
	ResponseInfo        string
	ServerReference     string
	ReasonString        string
	ReceiveMaximum      uint16 // absent means 65535
	TopicAliasMaximum   uint16
	MaximumQoS          *byte  // absent means 2
	RetainAvailable     *byte  // absent means 1
	MaximumPacketSize   uint32 // absent means no limit
	WildcardAvailable   *byte  // absent means 1
	SubIDAvailable      *byte  // absent means 1
	SharedAvailable     *byte  // absent means 1
	User                []UserProperty
}

// The property identifiers (MQTT 5.0 §2.2.2.2, table 2-4).
const (
	idPayloadFormat       = 0x01
	idMessageExpiry       = 0x02
	idContentType         = 0x03
	idResponseTopic       = 0x08
	idCorrelationData     = 0x09
	idSubscriptionID      = 0x0B
	idSessionExpiry       = 0x11
	idAssignedClientID    = 0x12
	idServerKeepAlive     = 0x13
	idAuthMethod          = 0x15
	idAuthData            = 0x16
	idRequestProblemInfo  = 0x17
	idWillDelay           = 0x18
	idRequestResponseInfo = 0x19
	idResponseInfo        = 0x1A
	idServerReference     = 0x1C
	idReasonString        = 0x1F
	idReceiveMaximum      = 0x21
	idTopicAliasMaximum   = 0x22
	idTopicAlias          = 0x23
	idMaximumQoS          = 0x24
	idRetainAvailable     = 0x25
	idUser                = 0x26
	idMaximumPacketSize   = 0x27
	idWildcardAvailable   = 0x28
	idSubIDAvailable      = 0x29
	idSharedAvailable     = 0x2A
)

// inWill stands for the will properties of a CONNECT where a packet type says
// which properties are allowed; 0 is no packet's type.
const inWill Type = 0

// Sets of packet types, one bit each.
const (
	bitWill        = 1 << inWill
	bitConnect     = 1 << TypeConnect
	bitConnack     = 1 << TypeConnack
	bitPublish     = 1 << TypePublish
	bitSubscribe   = 1 << TypeSubscribe
	bitSuback      = 1 << TypeSuback
	bitUnsubscribe = 1 << TypeUnsubscribe
	bitUnsuback    = 1 << TypeUnsuback
	bitDisconnect  = 1 << TypeDisconnect
	bitAuth        = 1 << TypeAuth
	bitReceipt     = 1<<TypePuback | 1<<TypePubrec
	bitRelease     = 1<<TypePubrel | 1<<TypePubcomp
	bitAcks        = bitReceipt | bitRelease
	bitMessage     = bitPublish | bitWill
)

// propertyTable gives each property its name and where it may be
// (MQTT 5.0 table 2-4).
var propertyTable = [...]struct {
	name string
	in   uint16
}{
	idPayloadFormat:       {"payload format indicator", bitMessage},
	idMessageExpiry:       {"message expiry interval", bitMessage},
	idContentType:         {"content type", bitMessage},
	idResponseTopic:       {"response topic", bitMessage},
	idCorrelationData:     {"correlation data", bitMessage},
	idSubscriptionID:      {"subscription identifier", bitPublish | bitSubscribe},
	idSessionExpiry:       {"session expiry interval", bitConnect | bitConnack | bitDisconnect},
	idAssignedClientID:    {"assigned client identifier", bitConnack},
	idServerKeepAlive:     {"server keep alive", bitConnack},
	idAuthMethod:          {"authentication method", bitConnect | bitConnack | bitAuth},
	idAuthData:            {"authentication data", bitConnect | bitConnack | bitAuth},
	idRequestProblemInfo:  {"request problem information", bitConnect},
	idWillDelay:           {"will delay interval", bitWill},
	idRequestResponseInfo: {"request response information", bitConnect},
	idResponseInfo:        {"response information", bitConnack},
	idServerReference:     {"server reference", bitConnack | bitDisconnect},
	idReasonString:        {"reason string", bitConnack | bitAcks | bitSuback | bitUnsuback | bitDisconnect | bitAuth},
	idReceiveMaximum:      {"receive maximum", bitConnect | bitConnack},
	idTopicAliasMaximum:   {"topic alias maximum", bitConnect | bitConnack},
	idTopicAlias:          {"topic alias", bitPublish},
	idMaximumQoS:          {"maximum qos", bitConnack},
	idRetainAvailable:     {"retain available", bitConnack},
	idUser: {"user property", bitMessage | bitConnect | bitConnack | bitAcks | bitSubscribe | bitSuback |
		bitUnsubscribe | bitUnsuback | bitDisconnect | bitAuth},
	idMaximumPacketSize: {"maximum packet size", bitConnect | bitConnack},
	idWildcardAvailable: {"wildcard subscription available", bitConnack},
	idSubIDAvailable:    {"subscription identifier available", bitConnack},
	idSharedAvailable:   {"shared subscription available", bitConnack},
}

// allowed says whether the property may be in that packet.
func allowed(id uint32, in Type) bool {
	return id < uint32(len(propertyTable)) && propertyTable[id].in&(1<<in) != 0
}

// propertyID takes a property's identifier. A property that the packet may not
// have is malformed, one too many a protocol error (MQTT 5.0 §2.2.2.2).
func (c *cursor) propertyID(in Type, seen *uint64) (id uint32, name string) {
	id = c.varint("property identifier")
	if c.err != nil {
		return 0, ""
	}
	if !allowed(id, in) {
		c.fail(malformed("property identifier", "0x%02x is not allowed here", id))
		return 0, ""
	}
	name = propertyTable[id].name
	if id == idUser {
		if c.had++; c.users > 0 && c.had > c.users {
			c.fail(refuse(ReasonQuotaExceeded, name, "more than %d", c.users))
			return 0, ""
		}
	}
	many := id == idUser || id == idSubscriptionID && in == TypePublish
	if *seen&(1<<id) != 0 && !many {
		c.fail(protocol(name, "is there twice"))
		return 0, ""
	}
	*seen |= 1 << id
	return id, name
}

// section takes the property length and cuts the cursor to it; resume, once
// those are read, continues with the rest.
func (c *cursor) section() (rest []byte) {
	n := int(c.varint("property length"))
	if n > len(c.b) {
		c.short("property length", n)
		return nil
	}
	rest = c.b[n:]
	c.b = c.b[:n]
	return rest
}

func (c *cursor) resume(rest []byte) {
	if c.err == nil {
		c.b = rest
	}
}

// properties takes the properties of anything but a PUBLISH.
func (c *cursor) properties(in Type, p *Properties) {
	rest := c.section()
	var seen uint64
	for len(c.b) > 0 {
		id, name := c.propertyID(in, &seen)
		switch id {
		case idPayloadFormat:
			p.PayloadFormat = c.flag(name)
		case idMessageExpiry:
			p.MessageExpiry = new(c.uint32(name))
		case idContentType:
			p.ContentType = c.string(name)
		case idResponseTopic:
			p.ResponseTopic = string(c.responseTopic())
		case idCorrelationData:
			p.CorrelationData = c.binaryCopy(name)
		case idSubscriptionID:
			p.SubscriptionID = c.subscriptionID()
		case idSessionExpiry:
			p.SessionExpiry = new(c.uint32(name))
		case idAssignedClientID:
			p.AssignedClientID = c.string(name)
		case idServerKeepAlive:
			p.ServerKeepAlive = new(c.uint16(name))
		case idAuthMethod:
			p.AuthMethod = c.string(name)
		case idAuthData:
			p.AuthData = c.binaryCopy(name)
		case idRequestProblemInfo:
			p.RequestProblemInfo = new(c.flag(name))
		case idWillDelay:
			p.WillDelay = c.uint32(name)
		case idRequestResponseInfo:
			p.RequestResponseInfo = c.flag(name)
		case idResponseInfo:
			p.ResponseInfo = c.string(name)
		case idServerReference:
			p.ServerReference = c.string(name)
		case idReasonString:
			p.ReasonString = c.string(name)
		case idReceiveMaximum:
			p.ReceiveMaximum = c.uint16(name)
			c.notZero(name, p.ReceiveMaximum != 0)
		case idTopicAliasMaximum:
			p.TopicAliasMaximum = c.uint16(name)
		case idMaximumQoS:
			p.MaximumQoS = new(c.flag(name))
		case idRetainAvailable:
			p.RetainAvailable = new(c.flag(name))
		case idUser:
			p.User = append(p.User, c.user())
		case idMaximumPacketSize:
			p.MaximumPacketSize = c.uint32(name)
			c.notZero(name, p.MaximumPacketSize != 0)
		case idWildcardAvailable:
			p.WildcardAvailable = new(c.flag(name))
		case idSubIDAvailable:
			p.SubIDAvailable = new(c.flag(name))
		case idSharedAvailable:
			p.SharedAvailable = new(c.flag(name))
		}
	}
	c.resume(rest)
}

func (c *cursor) notZero(field string, ok bool) {
	if !ok {
		c.fail(protocol(field, "0 is not allowed"))
	}
}

func (c *cursor) subscriptionID() uint32 {
	name := propertyTable[idSubscriptionID].name
	id := c.varint(name)
	c.notZero(name, id != 0)
	return id
}

// responseTopic takes a response topic. It is checked here, and not with the
// other topics, because on its way through nobody else unpacks it
// (MQTT 5.0 §3.3.2.3.5 [MQTT-3.3.2-14]).
func (c *cursor) responseTopic() []byte {
	v := c.text(propertyTable[idResponseTopic].name)
	if c.err == nil {
		c.fail(checkResponseTopic(v))
	}
	return v
}

func checkResponseTopic(v []byte) *Error {
	name := propertyTable[idResponseTopic].name
	if len(v) == 0 {
		return protocol(name, "is empty")
	}
	if bytes.ContainsAny(v, "+#") {
		return protocol(name, "contains a wildcard")
	}
	return nil
}

func (c *cursor) user() UserProperty {
	name := propertyTable[idUser].name
	return UserProperty{Key: c.string(name), Value: c.string(name)}
}

// The functions below append one property each, if it is there.

// property appends an identifier, if it is allowed there.
func (w *builder) property(in Type, id uint32) (name string) {
	name = propertyTable[id].name
	if !allowed(id, in) {
		w.fail(malformed(name, "is not allowed here"))
	}
	w.byte(byte(id))
	return name
}

func (w *builder) propertyFlag(in Type, id uint32, v byte) {
	name := w.property(in, id)
	if v > 1 {
		w.fail(protocol(name, "%d is neither 0 nor 1", v))
	}
	w.byte(v)
}

func (w *builder) propertyFlagPtr(in Type, id uint32, v *byte) {
	if v != nil {
		w.propertyFlag(in, id, *v)
	}
}

func (w *builder) propertyUint16(in Type, id uint32, v uint16) {
	w.property(in, id)
	w.uint16(v)
}

func (w *builder) propertyUint32(in Type, id, v uint32) {
	w.property(in, id)
	w.uint32(v)
}

func (w *builder) propertyString(in Type, id uint32, v string) {
	if v != "" {
		w.string(w.property(in, id), v)
	}
}

func (w *builder) propertyResponseTopic(in Type, v string) {
	if v == "" {
		return
	}
	if err := checkResponseTopic([]byte(v)); err != nil {
		w.fail(err)
	}
	w.propertyString(in, idResponseTopic, v)
}

func (w *builder) propertyBinary(in Type, id uint32, v []byte) {
	if v != nil {
		w.binary(w.property(in, id), v)
	}
}

func (w *builder) propertyUser(in Type, users []UserProperty) {
	for i := range users {
		name := w.property(in, idUser)
		w.string(name, users[i].Key)
		w.string(name, users[i].Value)
	}
}

// properties appends the properties and their length.
func (w *builder) properties(in Type, p *Properties) {
	start := w.open()
	if p.PayloadFormat != 0 {
		w.propertyFlag(in, idPayloadFormat, p.PayloadFormat)
	}
	if p.MessageExpiry != nil {
		w.propertyUint32(in, idMessageExpiry, *p.MessageExpiry)
	}
	w.propertyString(in, idContentType, p.ContentType)
	w.propertyResponseTopic(in, p.ResponseTopic)
	w.propertyBinary(in, idCorrelationData, p.CorrelationData)
	if p.SubscriptionID != 0 {
		name := w.property(in, idSubscriptionID)
		if p.SubscriptionID > MaxSize {
			w.fail(malformed(name, "%d is more than %d", p.SubscriptionID, MaxSize))
		} else {
			w.b = appendVarint(w.b, p.SubscriptionID)
		}
	}
	if p.SessionExpiry != nil {
		w.propertyUint32(in, idSessionExpiry, *p.SessionExpiry)
	}
	w.propertyString(in, idAssignedClientID, p.AssignedClientID)
	if p.ServerKeepAlive != nil {
		w.propertyUint16(in, idServerKeepAlive, *p.ServerKeepAlive)
	}
	w.propertyString(in, idAuthMethod, p.AuthMethod)
	w.propertyBinary(in, idAuthData, p.AuthData)
	w.propertyFlagPtr(in, idRequestProblemInfo, p.RequestProblemInfo)
	if p.WillDelay != 0 {
		w.propertyUint32(in, idWillDelay, p.WillDelay)
	}
	if p.RequestResponseInfo != 0 {
		w.propertyFlag(in, idRequestResponseInfo, p.RequestResponseInfo)
	}
	w.propertyString(in, idResponseInfo, p.ResponseInfo)
	w.propertyString(in, idServerReference, p.ServerReference)
	w.propertyString(in, idReasonString, p.ReasonString)
	if p.ReceiveMaximum != 0 {
		w.propertyUint16(in, idReceiveMaximum, p.ReceiveMaximum)
	}
	if p.TopicAliasMaximum != 0 {
		w.propertyUint16(in, idTopicAliasMaximum, p.TopicAliasMaximum)
	}
	w.propertyFlagPtr(in, idMaximumQoS, p.MaximumQoS)
	w.propertyFlagPtr(in, idRetainAvailable, p.RetainAvailable)
	w.propertyUser(in, p.User)
	if p.MaximumPacketSize != 0 {
		w.propertyUint32(in, idMaximumPacketSize, p.MaximumPacketSize)
	}
	w.propertyFlagPtr(in, idWildcardAvailable, p.WildcardAvailable)
	w.propertyFlagPtr(in, idSubIDAvailable, p.SubIDAvailable)
	w.propertyFlagPtr(in, idSharedAvailable, p.SharedAvailable)
	w.shut(start)
}

// checkAuth refuses authentication data without a method
// (MQTT 5.0 §3.1.2.11.10).
func (p *Properties) checkAuth() *Error {
	if p.AuthMethod == "" && p.AuthData != nil {
		return protocol(propertyTable[idAuthData].name, "is there without an authentication method")
	}
	return nil
}
