package broker

import (
	"holdfast/broker/durable"
	"holdfast/broker/packet"
)

// handlePuback ends a QoS 1 delivery (MQTT 5.0 §3.4).
func (c *conn) handlePuback(p *packet.Puback) error {
	s := c.session
	s.mu.Lock()
	o := s.out.get(p.PacketID)
	if o != nil && o.qos != 1 {
		s.mu.Unlock()
		return protocolError(p.Type(), "packet identifier", "is that of a QoS 2 delivery")
	}
	if o == nil {
		// Late, or of a session we do not remember: nothing depends on it.
		s.mu.Unlock()
		c.b.count.unknownAcks.Add(1)
		return nil
	}
	seq, queue := o.seq, s.queue
	if l := o.lent; l != nil {
		if o.state != outSent { // it is not that client's any more
			s.mu.Unlock()
			c.b.count.unknownAcks.Add(1)
			return nil
		}
		seq, queue = l.d.Seq, l.from.id
	}
	s.freeLocked(p.PacketID, o)
	if p.Reason.Failed() {
		c.b.count.refusedByClient.Add(1)
	}
	if seq == 0 {
		s.proceedLocked(c, c.cork)
		s.mu.Unlock()
		return nil
	}
	s.mu.Unlock()
	if p.Reason.Failed() {
		c.b.store.Refused(queue, seq, byte(p.Reason), nil)
	} else {
		c.b.store.Acked(queue, seq)
	}
	s.proceed(c, c.cork)
	return nil
}

// handlePubrec makes a QoS 2 delivery the client's: PUBREL follows once that
// is durable (MQTT 5.0 §3.5, §4.3.3 [MQTT-4.3.3-4]).
func (c *conn) handlePubrec(p *packet.Pubrec) error {
	s, id := c.session, p.PacketID
	s.mu.Lock()
	o := s.out.get(id)
	if o != nil && o.qos != 2 {
		s.mu.Unlock()
		return protocolError(p.Type(), "packet identifier", "is that of a QoS 1 delivery")
	}
	if o == nil {
		s.mu.Unlock()
		c.b.count.unknownAcks.Add(1)
		if p.Reason.Failed() {
			return nil
		}
		// So that the client forgets it too (MQTT 5.0 §3.6.2.1).
		return c.acknowledgeWith(c.cork, packet.TypePubrel, id, packet.ReasonPacketIDNotFound)
	}
	seq := o.seq
	switch o.state {
	case outReceived, outEnding:
		s.mu.Unlock() // the answer is on its way
		return nil
	case outReleased:
		s.mu.Unlock()
		if p.Reason.Failed() {
			return nil
		}
		return c.acknowledgeWith(c.cork, packet.TypePubrel, id, packet.ReasonSuccess)
	case outReserved, outSaving:
		s.mu.Unlock()
		return protocolError(p.Type(), "packet identifier", "was not sent")
	case outSent:
	}
	if p.Reason.Failed() {
		// MQTT 5.0 §4.3.3 [MQTT-4.3.3-4]: it ends here.
		c.b.count.refusedByClient.Add(1)
		if c.finishDelivery(id, o) {
			c.b.store.Refused(s.queue, seq, byte(p.Reason), s.freeWhenDone(id, seq))
		}
		return nil
	}
	if seq == 0 {
		o.state = outReleased
		s.mu.Unlock()
		return c.acknowledgeWith(c.cork, packet.TypePubrel, id, packet.ReasonSuccess)
	}
	o.state = outReceived
	s.mu.Unlock()
	c.b.store.Received(s.queue, seq, func(err error) { s.released(c, id, seq, err) })
	return nil
}

// released is called by the store when a PUBREC is durable, or is not.
func (s *session) released(c *conn, id uint16, seq durable.Seq, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.out.get(id)
	if o == nil || o.seq != seq || o.state != outReceived {
		return
	}
	if err != nil {
		o.state = outSent
		s.storeFailedLocked(err)
		return
	}
	o.state = outReleased
	if s.conn == c {
		_ = c.acknowledgeWith(nil, packet.TypePubrel, id, packet.ReasonSuccess)
	}
}

// finishDelivery ends a QoS 2 delivery; the session's lock is held, and let go.
// stored says that the store is to be told, and the packet id free when that is
// done.
func (c *conn) finishDelivery(id uint16, o *outbound) (stored bool) {
	s := c.session
	if o.seq == 0 {
		s.freeLocked(id, o)
		s.proceedLocked(c, c.cork)
		s.mu.Unlock()
		return false
	}
	o.state = outEnding
	s.mu.Unlock()
	return true
}

// handlePubcomp ends a QoS 2 delivery. 0x92, packet identifier not found, ends
// it as well as success does (MQTT 5.0 §3.7.2.1).
func (c *conn) handlePubcomp(p *packet.Pubcomp) error {
	s, id := c.session, p.PacketID
	s.mu.Lock()
	o := s.out.get(id)
	switch {
	case o == nil:
		s.mu.Unlock()
		c.b.count.unknownAcks.Add(1)
		return nil
	case o.state == outEnding:
		s.mu.Unlock()
		return nil
	case o.qos != 2 || o.state != outReleased:
		s.mu.Unlock()
		return protocolError(p.Type(), "packet identifier", "PUBCOMP without PUBREL")
	}
	seq := o.seq
	if c.finishDelivery(id, o) {
		c.b.store.Completed(s.queue, seq, s.freeWhenDone(id, seq))
	}
	return nil
}

// handlePubrel releases an inbound QoS 2 packet id: PUBCOMP follows once that
// is durable (MQTT 5.0 §3.6, §4.3.3 [MQTT-4.3.3-11]).
func (c *conn) handlePubrel(p *packet.Pubrel) error {
	s, id := c.session, p.PacketID
	s.mu.Lock()
	in := s.in.get(id)
	if in == nil {
		s.mu.Unlock()
		// Released before, and the PUBCOMP got lost (MQTT 5.0 §3.7.2.1).
		return c.acknowledgeWith(c.cork, packet.TypePubcomp, id, packet.ReasonPacketIDNotFound)
	}
	switch in.state {
	case inCommitting:
		s.mu.Unlock()
		return protocolError(p.Type(), "packet identifier", "PUBREL before PUBREC")
	case inReleasing:
		s.mu.Unlock() // PUBCOMP is on its way
		return nil
	case inReceived:
	}
	if s.queue == 0 {
		counted := in.conn == c.number
		s.in.remove(id)
		s.mu.Unlock()
		if counted {
			c.line.released()
		}
		return c.acknowledgeWith(c.cork, packet.TypePubcomp, id, packet.ReasonSuccess)
	}
	in.state = inReleasing
	s.mu.Unlock()
	c.b.store.Release(s.queue, id, func(err error) { s.completed(id, err) })
	return nil
}

// completed is called by the store when an inbound packet id is gone for good,
// or is not. PUBCOMP goes to whichever connection the session has by now.
func (s *session) completed(id uint16, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	in := s.in.get(id)
	if in == nil {
		return // never: while it is being released it goes only here
	}
	if err != nil {
		in.state = inReceived
		s.storeFailedLocked(err)
		return
	}
	conn := in.conn
	s.in.remove(id)
	c := s.conn
	if c == nil {
		return
	}
	if conn == c.number {
		c.line.released()
	}
	_ = c.acknowledgeWith(nil, packet.TypePubcomp, id, packet.ReasonSuccess)
}
