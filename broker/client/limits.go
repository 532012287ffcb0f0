package client

import (
	"time"

	"holdfast/broker/packet"
)

// Limits are what the two sides agreed on in CONNECT and CONNACK, with the
// defaults of the specification filled in (MQTT 5.0 §3.2.2.3); 3.1.1 has none of
// them.
type Limits struct {
	// ClientID is ours, or the one the server gave.
	ClientID string
	// KeepAlive is what counts: the server's word overrules ours.
	KeepAlive time.Duration
	// SessionExpiry in seconds; the server may have shortened ours. In 3.1.1
	// 0 or 0xFFFFFFFF.
	SessionExpiry uint32
	// ReceiveMaximum is how many QoS 1 and QoS 2 messages may be on the way
	// to the server. 3.1.1 has no such limit; it is 20 there all the same,
	// because Mosquitto 2.0 answers PUBREC to further QoS 2 messages and drops
	// them: by default it has room for 20 and 3.1.1 no code to say so.
	ReceiveMaximum uint16
	// MaximumQoS the server takes, 0 to 2.
	MaximumQoS byte
	// MaximumPacketSize the server takes, in bytes.
	MaximumPacketSize uint32
	// TopicAliasMaximum is how many aliases we may use; 0 means none.
	TopicAliasMaximum uint16
	// Retain, Wildcards, SubscriptionIDs and Shared say whether the server
	// knows these.
	Retain, Wildcards, SubscriptionIDs, Shared bool
}

func limitsOf(o *Options, ack *packet.Connack) Limits {
	v := o.Version
	l := Limits{
		ClientID:          o.ClientID,
		KeepAlive:         o.KeepAlive,
		SessionExpiry:     o.SessionExpiry,
		ReceiveMaximum:    65535,
		MaximumQoS:        2,
		MaximumPacketSize: packet.MaxSize + 5, // type and length come on top
		Retain:            true,
		Wildcards:         true,
		SubscriptionIDs:   v == packet.V5,
		Shared:            v == packet.V5,
	}
	if v != packet.V5 {
		l.ReceiveMaximum = 20
		l.SessionExpiry = 0xFFFFFFFF
		if o.CleanStart && o.SessionExpiry == 0 {
			l.SessionExpiry = 0
		}
		return l
	}
	p := &ack.Properties
	if p.AssignedClientID != "" {
		l.ClientID = p.AssignedClientID
	}
	if p.ServerKeepAlive != nil {
		l.KeepAlive = time.Duration(*p.ServerKeepAlive) * time.Second
	}
	if p.SessionExpiry != nil {
		l.SessionExpiry = *p.SessionExpiry
	}
	if p.ReceiveMaximum != 0 {
		l.ReceiveMaximum = p.ReceiveMaximum
	}
	if p.MaximumQoS != nil {
		l.MaximumQoS = *p.MaximumQoS
	}
	if p.MaximumPacketSize != 0 {
		l.MaximumPacketSize = p.MaximumPacketSize
	}
	l.TopicAliasMaximum = p.TopicAliasMaximum
	yes := func(b *byte) bool { return b == nil || *b != 0 }
	l.Retain = yes(p.RetainAvailable)
	l.Wildcards = yes(p.WildcardAvailable)
	l.SubscriptionIDs = yes(p.SubIDAvailable)
	l.Shared = yes(p.SharedAvailable)
	return l
}
