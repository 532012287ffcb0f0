package broker

import "holdfast/broker/packet"

// Revoke disconnects the clients whose identity the function names, with 0x87
// not authorized: their user is gone, their password another. Their wills are
// published as after any such end. It returns how many there were, and does not
// wait until they are gone. revoked must not call the broker.
func (b *Broker) Revoke(revoked func(Identity) bool) int {
	b.mu.Lock()
	sessions := make([]*session, 0, len(b.sessions))
	for _, s := range b.sessions {
		if s.owner != nil {
			sessions = append(sessions, s)
		}
	}
	b.mu.Unlock()
	n := 0
	for _, s := range sessions {
		s.mu.Lock()
		c, id := s.conn, s.identity
		s.mu.Unlock()
		if c != nil && revoked(id) {
			c.end(packet.ReasonNotAuthorized, "the right to be connected was taken away", false)
			n++
		}
	}
	return n
}
