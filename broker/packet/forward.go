package packet

import (
	"encoding/binary"
	"slices"
)

// Header is what stands before the properties and the payload of a PUBLISH to
// one recipient, the topic name, topic aliases and subscription identifiers
// apart.
type Header struct {
	Dup, Retain bool
	QoS         byte
	PacketID    uint16 // not 0 if QoS is not
	// HasExpiry says that Expiry (seconds) is to be sent.
	HasExpiry bool
	Expiry    uint32
}

// ForwardSize returns the size of the packet that AppendForward appends, in
// bytes; 0 if it were larger than packets can be.
func (h *Header) ForwardSize(v Version, topic string, properties, payload []byte) int {
	_, rest := h.lengths(v, topic, properties, payload)
	if rest > MaxSize {
		return 0
	}
	return 1 + varintLen(uint32(rest)) + rest
}

// AppendForward appends a PUBLISH of what another one brought. It checks
// nothing again: topic, properties and payload come from [Reader.Next] or
// [Decode], and ForwardSize is not 0.
func (h *Header) AppendForward(b []byte, v Version, topic string, properties, payload []byte) []byte {
	own, rest := h.lengths(v, topic, properties, payload)
	b = slices.Grow(b, 1+4+rest) // once
	b = append(b, publishFlags(h.Dup, h.QoS, h.Retain))
	b = appendVarint(b, uint32(rest))
	b = append(b, byte(len(topic)>>8), byte(len(topic)))
	b = append(b, topic...)
	if h.QoS > 0 {
		b = append(b, byte(h.PacketID>>8), byte(h.PacketID))
	}
	if v >= V5 {
		b = appendVarint(b, uint32(own))
		if h.HasExpiry {
			b = append(b, idMessageExpiry)
			b = binary.BigEndian.AppendUint32(b, h.Expiry)
		}
		b = append(b, properties...)
	}
	return append(b, payload...)
}

// lengths returns the property length and the remaining length.
func (h *Header) lengths(v Version, topic string, properties, payload []byte) (own, rest int) {
	rest = 2 + len(topic) + len(payload)
	if h.QoS > 0 {
		rest += 2
	}
	if v < V5 {
		return 0, rest
	}
	own = len(properties)
	if h.HasExpiry {
		own += 5
	}
	return own, rest + varintLen(uint32(own)) + own
}
