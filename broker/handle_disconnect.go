package broker

import (
	"holdfast/broker/durable"
	"holdfast/broker/packet"
)

// handleDisconnect ends a connection as the client wishes (MQTT 5.0 §3.14,
// MQTT 3.1.1 §3.14).
func (c *conn) handleDisconnect(p *packet.Disconnect) error {
	if x := p.Properties.SessionExpiry; x != nil {
		s := c.session
		s.mu.Lock()
		before := s.expiry
		if before != 0 {
			s.expiry = c.b.opts.boundExpiry(*x)
		}
		s.mu.Unlock()
		if before == 0 && *x != 0 {
			// A session that was to end with its connection cannot be kept
			// any more (MQTT 5.0 §3.14.2.2.2).
			return protocolError(p.Type(), "session expiry interval", "was 0 in CONNECT")
		}
	}
	// Any reason but 0x00 leaves the will to be published
	// (MQTT 5.0 §3.14.2.1, §3.1.2.5 [MQTT-3.1.2-10]).
	c.normal = p.Reason == packet.ReasonSuccess
	detail := "the client disconnected"
	if !c.normal {
		detail = "the client disconnected with a reason"
	}
	c.end(p.Reason, detail, true)
	return errEnded
}

// boundExpiry applies MaxSessionExpiry to what a client asked for, in seconds.
func (o Options) boundExpiry(seconds uint32) uint32 {
	if o.MaxSessionExpiry <= 0 {
		return seconds
	}
	limit := o.MaxSessionExpiry.Seconds()
	if limit >= float64(durable.SessionExpiryNever) {
		return seconds
	}
	return min(seconds, uint32(limit))
}
