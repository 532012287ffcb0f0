package packet

// PublishProperties are the properties of a PUBLISH that travel with the
// message unaltered (MQTT 5.0 §3.3.2.3), taken apart. [Publish.Properties] is
// their wire form.
type PublishProperties struct {
	// HasPayloadFormat says that PayloadFormat was given; absent means 0.
	HasPayloadFormat bool
	// PayloadFormat is 0 for bytes and 1 for UTF-8 text.
	PayloadFormat byte
	ContentType   string
	ResponseTopic string
	// CorrelationData is nil when absent.
	CorrelationData []byte
	User            []UserProperty
}

// ParsePublishProperties takes apart the wire form. The result shares nothing
// with b.
func ParsePublishProperties(b []byte) (PublishProperties, error) {
	var p PublishProperties
	var seen uint64
	c := cursor{b: b}
	for len(c.b) > 0 {
		id, name := c.propertyID(TypePublish, &seen)
		switch id {
		case idPayloadFormat:
			p.HasPayloadFormat, p.PayloadFormat = true, c.flag(name)
		case idContentType:
			p.ContentType = c.string(name)
		case idResponseTopic:
			p.ResponseTopic = string(c.responseTopic())
		case idCorrelationData:
			p.CorrelationData = c.binaryCopy(name)
		case idUser:
			p.User = append(p.User, c.user())
		default:
			c.fail(malformed("property identifier", "0x%02x does not travel on", id))
		}
	}
	if c.err != nil {
		c.err.Type = TypePublish
		return PublishProperties{}, c.err
	}
	return p, nil
}

// AppendTo appends the wire form, without a length in front.
func (p PublishProperties) AppendTo(b []byte) ([]byte, error) {
	w := builder{b: b}
	if p.HasPayloadFormat {
		w.propertyFlag(TypePublish, idPayloadFormat, p.PayloadFormat)
	}
	w.propertyString(TypePublish, idContentType, p.ContentType)
	w.propertyResponseTopic(TypePublish, p.ResponseTopic)
	w.propertyBinary(TypePublish, idCorrelationData, p.CorrelationData)
	w.propertyUser(TypePublish, p.User)
	return w.done(b, TypePublish)
}
