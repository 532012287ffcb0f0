package broker

import (
	"container/list"
	"net"
	"net/netip"

	"holdfast/broker/packet"
)

// handshakes are the connections that are not admitted: those that have yet to
// send their CONNECT or to prove who they are, oldest first. There are at most
// Options.MaxHandshakes. One more, and the oldest of the address that has most
// of them is given up: a client needs a moment to get through, and a flood of
// half-open connections makes room for it by itself. Guarded by Broker.mu.
type handshakes struct{ waiting list.List }

func (h *handshakes) addLocked(c *conn) { c.opening = h.waiting.PushBack(c) }

func (h *handshakes) removeLocked(c *conn) {
	if c.opening != nil {
		h.waiting.Remove(c.opening)
		c.opening = nil
	}
}

// victimLocked takes the one to be given up out of the line; nil while there
// are no more than limit.
func (h *handshakes) victimLocked(limit int, placeOf func(*conn) netip.Prefix) *conn {
	if h.waiting.Len() <= limit {
		return nil
	}
	most, at := 0, netip.Prefix{}
	n := make(map[netip.Prefix]int)
	for e := h.waiting.Front(); e != nil; e = e.Next() {
		c, _ := e.Value.(*conn)
		place := placeOf(c)
		if n[place]++; n[place] > most {
			most, at = n[place], place
		}
	}
	for e := h.waiting.Front(); e != nil; e = e.Next() {
		if c, _ := e.Value.(*conn); placeOf(c) == at {
			h.removeLocked(c)
			return c
		}
	}
	return nil
}

// giveUp ends a connection that is still in its handshake, or that lingers
// after it was refused.
func (c *conn) giveUp() {
	c.b.count.handshakesGivenUp.Add(1)
	c.b.log.Warn("handshake given up", "remote", c.remote(), "listener", c.listener.Name)
	if c.cause.Load() != nil {
		c.nc.Close()
		return
	}
	c.end(packet.ReasonServerBusy, "too many connections are in their handshake", true)
}

// accept takes a connection, or closes it unheard: all there are have been
// taken, or its address has too many or is too fast.
func (b *Broker) accept(nc net.Conn, policy *Listener) {
	c := b.newConn(nc, policy)
	b.count.accepted.Add(1)
	from := placeOf(nc.RemoteAddr())
	b.mu.Lock()
	if !b.takesLocked(c, from) {
		b.count.connectsRefused.Add(1)
		b.mu.Unlock()
		nc.Close()
		return
	}
	b.conns[c] = struct{}{}
	if from.IsValid() {
		if b.places[from] == nil {
			b.places[from] = &place{prefix: from}
		}
		c.place = b.places[from]
		c.place.conns++
	}
	b.handshakes.addLocked(c)
	victim := b.handshakes.victimLocked(b.opts.MaxHandshakes, (*conn).from)
	b.spawn(c.serve)
	b.mu.Unlock()
	if victim != nil {
		victim.giveUp()
	}
}

// place is an address, or as much of it as counts for one, with its connections.
type place struct {
	prefix netip.Prefix
	conns  int // guarded by Broker.mu
}

// from is the place that a connection comes from, if that is any.
func (c *conn) from() netip.Prefix {
	if c.place == nil {
		return netip.Prefix{}
	}
	return c.place.prefix
}

func (b *Broker) takesLocked(c *conn, from netip.Prefix) bool {
	// Beside the admitted and those in their handshake there are only those
	// that were given up and have yet to notice.
	if b.state != stateStarted || b.closing || len(b.conns) >= b.opts.MaxConnections+4*b.opts.MaxHandshakes {
		return false
	}
	if !from.IsValid() {
		return true
	}
	if limit := b.opts.MaxConnectionsPerAddress; limit > 0 && b.places[from] != nil && b.places[from].conns >= limit {
		return false
	}
	if b.rates.take(rateKey{place: from}, b.opts.MaxConnectRatePerAddress) {
		return true
	}
	// As many again may come so far as to be told; a TLS handshake for each of
	// a flood would be too dear.
	b.count.connectsTooFast.Add(1)
	c.hurried = true
	return b.rates.take(rateKey{place: from, hash: 1}, b.opts.MaxConnectRatePerAddress)
}

// admit gives a client that has proved who it is one of MaxConnections; false
// when there is none left, or it was given up before.
func (b *Broker) admit(c *conn) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.admitted >= b.opts.MaxConnections || c.cause.Load() != nil {
		return false
	}
	b.admitted++
	c.admitted = true
	b.handshakes.removeLocked(c)
	return true
}

// noRoom is what a client is told that finds none.
func (b *Broker) noRoom() packet.ReasonCode {
	if b.opts.ServerReference != "" {
		return packet.ReasonUseAnotherServer
	}
	return packet.ReasonServerBusy
}

// full says whether all of MaxConnections are taken.
func (b *Broker) full() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.admitted >= b.opts.MaxConnections
}

func (b *Broker) removeConn(c *conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.conns, c)
	b.handshakes.removeLocked(c)
	if c.admitted {
		b.admitted--
	}
	if p := c.place; p != nil {
		if p.conns--; p.conns == 0 {
			delete(b.places, p.prefix)
		}
	}
}
