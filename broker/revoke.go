package broker

import "holdfast/broker/packet"

// Revoke disconnects the clients whose identity the function names, with 0x87
// not authorized: their user is gone, their password another. Their wills are
// published as after any such end. It returns how many there were, and does not
// wait until they are gone. revoked must not call the broker.
func (b *Broker) Revoke(revoked func(Identity) bool) int {
	n := 0
	for _, c := range b.owners() {
		if c.cause.Load() == nil && revoked(*c.identity) {
			c.end(packet.ReasonNotAuthorized, "the right to be connected was taken away", false)
			n++
		}
	}
	return n
}
