package broker

import "holdfast/broker/packet"

// elsewhere is why this client is sent to another server (MQTT 5.0 §4.11): 0x9C for
// now, 0x9D for good. Success: it belongs here.
func (c *conn) elsewhere() packet.ReasonCode {
	if c.b.opts.Auth == nil {
		return packet.ReasonSuccess
	}
	switch server, forGood := c.b.opts.Auth.Elsewhere(*c.identity); {
	case server == "":
		return packet.ReasonSuccess
	case forGood:
		return packet.ReasonServerMoved
	}
	return packet.ReasonUseAnotherServer
}

// reference is the server that goes with the reason; empty for most.
func (c *conn) reference(reason packet.ReasonCode) string {
	if reason != packet.ReasonUseAnotherServer && reason != packet.ReasonServerMoved {
		return ""
	}
	if c.b.opts.Auth != nil && c.identity != nil {
		if server, _ := c.b.opts.Auth.Elsewhere(*c.identity); server != "" {
			return server
		}
	}
	return c.b.opts.ServerReference
}

// Redirect sends away the clients that belong elsewhere by now, and returns how many
// there were. It does not wait until they are gone.
func (b *Broker) Redirect() int {
	n := 0
	for _, c := range b.owners() {
		if c.cause.Load() != nil {
			continue
		}
		if reason := c.elsewhere(); reason.Failed() {
			b.count.redirected.Add(1)
			c.end(reason, "the client belongs to another server", false)
			n++
		}
	}
	return n
}

// owners are the connections that have a session. By owner: a client whose CONNACK
// is just going out counts too. Their identity is settled.
func (b *Broker) owners() []*conn {
	b.mu.Lock()
	defer b.mu.Unlock()
	conns := make([]*conn, 0, len(b.sessions))
	for _, s := range b.sessions {
		if s.owner != nil {
			conns = append(conns, s.owner)
		}
	}
	return conns
}
