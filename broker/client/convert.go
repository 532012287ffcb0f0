package client

import (
	"time"

	"holdfast/broker/message"
	"holdfast/broker/packet"
)

// MessageOf makes a message of a PUBLISH, received at now. What p points to is
// copied, once; topic aliases are resolved already (see [Conn.Run]).
func MessageOf(p *packet.Publish, now time.Time) *message.Message {
	// One allocation holds both; full slice expressions keep them apart.
	b := make([]byte, 0, len(p.Payload)+len(p.Properties))
	b = append(append(b, p.Payload...), p.Properties...)
	n := len(p.Payload)
	m := &message.Message{
		Topic:     string(p.Topic),
		QoS:       p.QoS,
		Retain:    p.Retain,
		HasExpiry: p.HasExpiry,
		Expiry:    p.MessageExpiry,
		Received:  now,
	}
	if n > 0 {
		m.Payload = b[:n:n]
	}
	if len(p.Properties) > 0 {
		m.Properties = b[n:]
	}
	return m
}

// PublishOf fills p with m as it is at now: QoS and RETAIN are the message's,
// the expiry is what remains, everything else is zero; it returns false when
// nothing remains (MQTT 5.0 §3.3.2.3.3). p shares m's payload and properties,
// and its Topic is written over: p must own that slice, so a p from a reader
// will not do. Used again, p needs no allocation.
func PublishOf(p *packet.Publish, m *message.Message, now time.Time) (alive bool) {
	remaining, alive := m.Remaining(now)
	*p = packet.Publish{
		QoS:           m.QoS,
		Retain:        m.Retain,
		Topic:         append(p.Topic[:0], m.Topic...),
		HasExpiry:     m.HasExpiry,
		MessageExpiry: remaining,
		Properties:    m.Properties,
		Payload:       m.Payload,
	}
	return alive
}
