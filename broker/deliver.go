package broker

import (
	"time"

	"holdfast/broker/message"
	"holdfast/broker/packet"
)

// frames renders one message for its recipients: every form it needs once, to
// be copied for each of them. It is for one goroutine.
type frames struct {
	m      *message.Message
	lent   bool    // m is the caller's again when it returns, unless keep has made it ours
	park   *parked // where keep put it; nil for what was never lent
	expiry uint32  // what is left of it, in seconds
	single bool    // there is one recipient only: a frame to copy from gains nothing
	shared *sharedFrames
}

// sharedFrames are frames to copy from, by 5.0 or not, QoS above 0 or not.
type sharedFrames struct {
	of   [2][2]packet.Shared
	made [2][2]bool
}

// framesOf prepares m for sending at now. It returns false when the message
// has expired. One with an interval of 0 goes to whom it can go at once.
func framesOf(m *message.Message, now time.Time) (frames, bool) {
	if !m.HasExpiry {
		return frames{m: m}, true
	}
	left, alive := m.Remaining(now)
	return frames{m: m, expiry: left}, alive || m.Expiry == 0
}

// form is how one recipient gets a message.
type form struct {
	qos    byte
	retain bool
	dup    bool
	id     uint16
	subIDs []uint32
	group  *group // whose member this is sent to; nil without one
	left   bool   // by another member of the group
	placed bool   // there was room when it was asked for
}

// keep returns the message for a queue in RAM, which lets go of its place.
func (f *frames) keep() (*message.Message, *parked) {
	if f.lent && f.single {
		p := park(f.m) // the hold is the queue's
		return &p.m, p
	}
	if f.lent {
		f.park = park(f.m)
		f.m, f.lent = &f.park.m, false
	}
	f.park.hold()
	return f.m, f.park
}

func (f *frames) publish(qos byte) packet.Publish {
	return packet.Publish{
		QoS: qos, Topic: []byte(f.m.Topic), Payload: f.m.Payload, Properties: f.m.Properties,
		HasExpiry: f.m.HasExpiry, MessageExpiry: f.expiry,
	}
}

func (f *frames) share(v packet.Version, qos byte) packet.Shared {
	five, acknowledged := 0, 0
	if v == packet.V5 {
		five = 1
	}
	if qos > 0 {
		acknowledged = 1
	}
	if f.shared == nil {
		f.shared = new(sharedFrames)
	}
	if !f.shared.made[five][acknowledged] {
		p := f.publish(qos)
		// An error leaves an empty frame, which is never sent. There is none:
		// the topic was checked when the message came.
		f.shared.of[five][acknowledged], _ = p.Share(v)
		f.shared.made[five][acknowledged] = true
	}
	return f.shared.of[five][acknowledged]
}

// outcome is what became of a packet for one connection.
type outcome byte

const (
	queued outcome = iota
	noRoom         // [output.drained] tells when there is
	tooLarge
	tooLate
	closed
)

// publish queues a PUBLISH, if there is room for it.
func (c *conn) publish(k *cork, f *frames, how *form) outcome {
	if c.version == packet.V5 && (len(how.subIDs) > 0 || !c.given.None()) {
		if !how.placed && !c.out.room() {
			return noRoom
		}
		return c.publishAlone(k, f, how)
	}
	o := &c.out
	if f.single {
		h := packet.Header{
			Dup: how.dup, Retain: how.retain, QoS: how.qos, PacketID: how.id,
			HasExpiry: f.m.HasExpiry, Expiry: f.expiry,
		}
		size := h.ForwardSize(c.version, f.m.Topic, f.m.Properties, f.m.Payload)
		if size == 0 || c.maxPacket > 0 && size > c.maxPacket {
			return tooLarge // MQTT 5.0 §3.1.2.11.4 [MQTT-3.1.2-24]
		}
		o.mu.Lock()
		if became := o.takesLocked(how.placed); became != queued {
			o.mu.Unlock()
			return became
		}
		b := o.bufferLocked()
		*b = h.AppendForward(*b, c.version, f.m.Topic, f.m.Properties, f.m.Payload)
	} else {
		s := f.share(c.version, how.qos)
		if c.maxPacket > 0 && s.Size() > c.maxPacket {
			return tooLarge
		}
		o.mu.Lock()
		if became := o.takesLocked(how.placed); became != queued {
			o.mu.Unlock()
			return became
		}
		b := o.bufferLocked()
		*b, _ = s.AppendTo(*b, how.dup, how.qos, how.retain, how.id)
	}
	o.queuedLocked(k)
	o.mu.Unlock()
	c.published(k, f)
	return queued
}

// publishAlone queues a PUBLISH nobody else gets in the same form.
func (c *conn) publishAlone(k *cork, f *frames, how *form) outcome {
	p := f.publish(how.qos)
	p.Dup, p.Retain, p.PacketID, p.SubscriptionIDs = how.dup, how.retain, how.id, how.subIDs
	if !c.given.None() {
		c.alias(&p, f.m.Topic)
	}
	if c.maxPacket > 0 && p.Size(c.version) > c.maxPacket {
		return tooLarge
	}
	if !c.out.packet(k, &p, c.version) {
		return closed
	}
	c.published(k, f)
	return queued
}

func (c *conn) published(k *cork, f *frames) {
	n := uint64(len(f.m.Payload))
	if k != nil {
		k.count.messagesOut++
		k.count.payloadOut += n
		return
	}
	c.b.count.messagesOut.Add(1)
	c.b.count.payloadOut.Add(n)
}

// deliver hands a message to a session whose deliveries are not in the store:
// QoS 0 to any, QoS 1 and 2 to one that ends with its connection. It returns
// false if the client is gone.
func (s *session) deliver(f *frames, how *form, k *cork) (taken bool) {
	s.mu.Lock()
	taken = s.deliverLocked(f, how, k)
	s.mu.Unlock()
	return taken
}

func (s *session) deliverLocked(f *frames, how *form, k *cork) (taken bool) {
	c := s.conn
	if c == nil {
		return false
	}
	if how.qos == 0 {
		switch c.publish(k, f, how) {
		case noRoom:
			s.b.count.droppedSlow.Add(1)
		case tooLarge:
			s.b.count.droppedTooLarge.Add(1)
		case queued, closed, tooLate:
		}
		return true
	}
	if s.pending.len() == 0 && s.roomLocked() > 0 {
		if became := s.sendLocked(k, f, how); became != noRoom {
			return became != closed
		}
	}
	size := f.m.Size()
	full := s.pending.count >= s.b.opts.MaxQueued || s.pending.count > 0 && s.pending.bytes+size > s.b.opts.MaxQueuedBytes
	if full && !how.left {
		lost := s.orphanPendingLocked()
		if how.group == nil {
			lost++
		}
		s.b.count.droppedQueueFull.Add(lost)
		s.b.tooSlow(c, "too many messages are waiting for the client")
		return false
	}
	m, place := f.keep()
	s.pending.push(waiting{m: m, place: place, qos: how.qos, retain: how.retain, ids: how.subIDs, group: how.group, left: how.left})
	return true
}

// sendLocked sends a QoS 1 or 2 message that is not in the store.
func (s *session) sendLocked(k *cork, f *frames, how *form) outcome {
	last := s.ids
	how.id = s.ids.next(&s.out)
	became := s.conn.publish(k, f, how)
	switch became {
	case noRoom:
		s.ids = last
	case tooLarge:
		s.b.count.droppedTooLarge.Add(1)
	case queued:
		o := s.out.put(how.id)
		*o = outbound{qos: how.qos, state: outSent, conn: s.conn.number}
		if how.group != nil && how.qos == 1 {
			o.owed = &owed{m: f.m, group: how.group} // never lent, see plan.passing
		}
		s.inflight++
	case closed, tooLate: // the session ends with the connection
	}
	return became
}

// freeLocked gives a packet id back, and its place in the window.
func (s *session) freeLocked(id uint16, o *outbound) {
	s.finished++
	if o.seq != 0 {
		delete(s.sent, o.seq)
	}
	if s.conn != nil && o.conn == s.conn.number {
		s.inflight--
	}
	s.out.remove(id)
}

// hand puts retained messages in line for a new subscription. They take no
// place of MaxQueued, since the index holds them anyway; but a client that
// subscribes again and again and does not read is disconnected when it has all
// of them waiting twice, and MaxQueued more.
func (s *session) hand(ws []waiting, k *cork) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == nil {
		return
	}
	for _, w := range ws {
		s.pending.push(w)
	}
	s.sendPendingLocked(k)
	if s.pending.len() > s.b.opts.MaxQueued+2*s.b.retained.index.Len() {
		s.b.count.droppedQueueFull.Add(uint64(s.pending.len()))
		s.pending = fifo{}
		s.b.tooSlow(s.conn, "too many retained messages are waiting for the client")
	}
}

// sendPendingLocked sends what waits in RAM while there is room.
func (s *session) sendPendingLocked(k *cork) {
	for s.pending.len() > 0 {
		w := s.pending.front()
		m, qos := w.m, w.qos
		if w.kept {
			m, qos = s.keptNow(w)
		}
		if m != nil && qos > 0 && s.roomLocked() <= 0 {
			return
		}
		if m != nil {
			how := form{qos: qos, retain: w.retain, subIDs: w.ids, group: w.group}
			if became := s.sendWaitingLocked(k, m, &how); became == closed || became == noRoom {
				return
			}
		}
		s.pending.pop()
	}
}

// keptNow is what has become of a retained message that was waiting to be
// handed out; nil if it is not to be. The client may have got a newer one
// meanwhile, live: the old one must not come after that.
func (s *session) keptNow(w *waiting) (*message.Message, byte) {
	m, ok := s.b.retained.index.Get(w.m.Topic)
	if !ok {
		return nil, 0
	}
	qos := min(m.QoS, w.qos)
	if qos > 0 && s.queue != 0 {
		return nil, 0 // newer than the subscription, so it comes through the store
	}
	return m, qos
}

func (s *session) sendWaitingLocked(k *cork, m *message.Message, how *form) outcome {
	f, alive := frames{m: m}, true
	if m.HasExpiry {
		f, alive = framesOf(m, time.Now())
	}
	f.single = true
	switch {
	case !alive:
		s.b.count.droppedExpired.Add(1)
		return tooLate
	case !s.mayReceiveLocked(m.Topic):
		s.b.count.droppedDenied.Add(1) // while it waited
		return tooLate
	case how.qos > 0:
		return s.sendLocked(k, &f, how)
	}
	became := s.conn.publish(k, &f, how)
	if became == tooLarge {
		s.b.count.droppedTooLarge.Add(1)
	}
	return became
}

// proceed sends what waited for room on the connection. k is the reader's cork
// if the reader calls, else nil.
func (s *session) proceed(c *conn, k *cork) {
	s.mu.Lock()
	s.proceedLocked(c, k)
	s.mu.Unlock()
}

func (s *session) proceedLocked(c *conn, k *cork) {
	if s.conn != c {
		return
	}
	s.sendPendingLocked(k)
	if s.queue != 0 {
		s.sendStoredLocked(k)
		s.kickLocked()
	}
	s.b.feedGroups()
}
