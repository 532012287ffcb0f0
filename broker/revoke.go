package broker

import "holdfast/broker/packet"

// Revoke disconnects the clients whose identity the function names, with 0x87
// not authorized: their user is gone, their password another. Their wills are
// published as after any such end. It returns how many there were, and does not
// wait until they are gone. revoked must not call the broker.
func (b *Broker) Revoke(revoked func(Identity) bool) int {
	// By owner: a client whose CONNACK is just going out counts too.
	b.mu.Lock()
	conns := make([]*conn, 0, len(b.sessions))
	for _, s := range b.sessions {
		if s.owner != nil {
			conns = append(conns, s.owner)
		}
	}
	b.mu.Unlock()
	n := 0
	for _, c := range conns {
		// The identity is settled before a connection owns a session.
		if c.cause.Load() == nil && revoked(*c.identity) {
			c.end(packet.ReasonNotAuthorized, "the right to be connected was taken away", false)
			n++
		}
	}
	return n
}
