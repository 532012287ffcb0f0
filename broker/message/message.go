// Package message is the one value that crosses borders: a published message
// on its way from whoever sent it (client socket, adapter, will, cloud) to
// whoever wants it. It opens nothing, starts no goroutines, reads no clock and
// imports only the standard library.
package message

import "time"

// Message is one published message. It is immutable once it has been routed:
// every recipient, the store and the uplink share the same value, and nobody
// may change it or the bytes it points to.
type Message struct {
	// Topic is a valid topic name: 1 to 65535 bytes of UTF-8, no wildcards.
	Topic string
	// Payload is the application message; nil and empty mean the same.
	Payload []byte
	// Properties are the MQTT 5.0 properties that travel with the message
	// unaltered and in order (payload format indicator, content type,
	// response topic, correlation data, user properties), in wire form
	// without the length prefix; nil when there are none. Package packet
	// builds and parses them (MQTT 5.0 §3.3.2.3).
	Properties []byte
	// QoS is the publisher's, 0 to 2.
	QoS byte
	// Retain is the publisher's RETAIN flag: the message becomes the
	// topic's retained message, or clears it when Payload is empty
	// (MQTT 5.0 §3.3.1.3).
	Retain bool
	// HasExpiry says that Expiry counts; 0 is a legal interval.
	HasExpiry bool
	// Expiry is the message expiry interval in seconds, counted from
	// Received (MQTT 5.0 §3.3.2.3.3).
	Expiry uint32
	// Received is when this process accepted the message, with its
	// monotonic reading; for a message read back from the store it is
	// reconstructed so that Received+Expiry is still the right instant.
	Received time.Time
	// From is the client id of the publisher; empty for messages of the
	// gateway itself. Used for no-local (MQTT 5.0 §3.8.3.1) and in logs.
	From string
}

// Remaining returns the seconds until the message expires at now, rounded up,
// and whether it is still alive. A message without expiry is always alive and
// its remaining time is 0 (MQTT 5.0 §3.3.2.3.3 [MQTT-3.3.2-6]).
func (m *Message) Remaining(now time.Time) (seconds uint32, alive bool) {
	if !m.HasExpiry {
		return 0, true
	}
	left := time.Duration(m.Expiry)*time.Second - now.Sub(m.Received)
	if left <= 0 {
		return 0, false
	}
	return uint32((left + time.Second - 1) / time.Second), true
}

// Size is the number of bytes the message weighs in queues and budgets:
// topic, payload and properties.
func (m *Message) Size() int {
	return len(m.Topic) + len(m.Payload) + len(m.Properties)
}
