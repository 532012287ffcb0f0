package broker

import (
	"context"
	"errors"
	"sync"
	"time"

	"holdfast/broker/durable"
	"holdfast/broker/packet"
)

// How a persistent session gets what the store keeps for it.
//
//	store, under its append lock          session
//	----------------------------          -------
//	live:        Offer(delivery) -------> sent at once, or no room:
//	                                      false, and readable
//	catching up: Wake ------------------> readable
//	                                      readable and room: the pump runs
//	             Read <------------------ pump
//	             deliveries ------------> sent, in order
//	             empty, live -----------> Offers follow
//
// The pump is a goroutine that runs only while there is both something to read
// and room for it; Read may wait for the disk, which no reader goroutine and
// no committer may.

const (
	// readBytes is about how much one Read may bring into RAM.
	readBytes = 256 << 10
	// resumeBatch is how many QoS 2 deliveries with a packet id of a former
	// connection are read at once.
	resumeBatch = 64
	// readRetry is the pause after a Read that found the disk in trouble.
	readRetry = time.Second
)

// catchUp is the part of a session that reads from the store. Guarded by
// session.mu.
type catchUp struct {
	attached bool
	running  bool       // the pump runs
	idle     *sync.Cond // of those who wait for its end, nil for nobody
	readable [2]bool    // by QoS-1: Read may bring something
	// resuming is set until all QoS 2 packet ids of former connections have
	// been read. Before that no new id is given: it could be one of them.
	resuming bool
	reserved int              // room set aside for a Read that is under way
	stored   []storedDelivery // QoS 2: read, waiting for its id to be saved or for room
	drops    []drop           // to be reported by the pump
}

// storedDelivery is a QoS 2 delivery under its packet id.
type storedDelivery struct {
	durable.Delivery
	id uint16
}

// drop is a delivery that can never be sent.
type drop struct {
	seq    durable.Seq
	id     uint16 // to be freed once that is durable; 0 for none
	reason string
}

// Why deliveries are dropped, as the store counts them.
const (
	dropExpired  = "expired"
	dropTooLarge = "too large"
	dropDenied   = "not allowed" // the right to it was taken away since it was stored
)

func (cu *catchUp) restart() {
	cu.attached, cu.resuming, cu.reserved = false, true, 0
	cu.readable = [2]bool{}
	cu.stored, cu.drops = nil, nil
}

// Offer implements [durable.Recipient].
func (s *session) Offer(d durable.Delivery) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.conn
	if c == nil || !s.catchUp.attached {
		return false
	}
	if d.QoS == 2 {
		// Its place was reserved before the commit.
		s.offerExactlyOnceLocked(d)
		return true
	}
	if s.roomLocked() <= 0 || !c.out.room() {
		s.catchUp.readable[0] = true
		return false
	}
	s.sendStoredOnceLocked(nil, d)
	s.kickLocked() // if it was dropped, the pump says so
	return true
}

func (s *session) offerExactlyOnceLocked(d durable.Delivery) {
	o := s.out.put(d.PacketID)
	o.qos = 2
	s.nameLocked(o, d.Seq, d.PacketID)
	s.catchUp.stored = append(s.catchUp.stored, storedDelivery{d, d.PacketID})
	s.sendStoredLocked(nil)
	s.kickLocked()
}

// nameLocked joins a delivery and its packet id.
func (s *session) nameLocked(o *outbound, seq durable.Seq, id uint16) {
	o.seq = seq
	if s.sent == nil {
		s.sent = make(map[durable.Seq]uint16)
	}
	s.sent[seq] = id
}

// Reserve implements [durable.Recipient].
func (s *session) Reserve() (packetID uint16, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == nil || s.catchUp.resuming || s.roomLocked() <= 0 || !s.conn.out.room() {
		s.catchUp.readable[1] = true
		return 0, false
	}
	id := s.ids.next(&s.out)
	*s.out.put(id) = outbound{qos: 2, state: outReserved, conn: s.conn.number}
	s.inflight++
	return id, true
}

// Unreserve implements [durable.Recipient].
func (s *session) Unreserve(packetID uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o := s.out.get(packetID); o != nil && o.seq == 0 && o.state == outReserved {
		s.freeLocked(packetID, o)
	}
}

// Wake implements [durable.Recipient].
func (s *session) Wake(qos byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if qos < 1 || qos > 2 {
		return
	}
	s.catchUp.readable[qos-1] = true
	s.kickLocked()
}

// kickLocked starts the pump if there is something for it to do.
func (s *session) kickLocked() {
	if s.conn == nil || s.catchUp.running {
		return
	}
	if qos, _ := s.nextReadLocked(); qos == 0 && len(s.catchUp.drops) == 0 {
		return
	}
	s.catchUp.running = true
	s.b.spawn(s.pump)
}

// nextReadLocked says which stream to read and how many deliveries there is
// room for; QoS 0 is none.
func (s *session) nextReadLocked() (qos byte, most int) {
	cu := &s.catchUp
	if s.conn == nil || !cu.attached {
		return 0, 0
	}
	if cu.resuming {
		if cu.readable[1] {
			return 2, resumeBatch
		}
		return 0, 0
	}
	room := s.roomLocked() - len(cu.stored)
	// A Read for every single acknowledgement would be a query each.
	if room <= 0 || room < s.conn.window/4 && s.inflight > 0 || !s.conn.out.room() {
		return 0, 0
	}
	switch {
	case cu.readable[1] && len(cu.stored) == 0:
		return 2, room
	case cu.readable[0]:
		return 1, room
	}
	return 0, 0
}

// pump reads until there is nothing more, or no room.
func (s *session) pump(ctx context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	cu := &s.catchUp
	for s.conn != nil {
		if len(cu.drops) > 0 {
			s.reportDropsLocked()
			continue
		}
		qos, most := s.nextReadLocked()
		if qos == 0 {
			break
		}
		c, resuming := s.conn, cu.resuming
		cu.readable[qos-1] = false
		if !resuming {
			cu.reserved += most
		}
		s.mu.Unlock()
		ds, live, err := s.b.store.Read(ctx, s.queue, qos, most, readBytes)
		s.mu.Lock()
		if !resuming {
			cu.reserved -= most
		}
		if s.conn != c {
			break // what was read is read again after the next Attach
		}
		if err != nil {
			s.readFailedLocked(ctx, c, qos, err)
			break
		}
		if len(ds) == 0 {
			cu.resuming = cu.resuming && !(qos == 2 && live)
			continue
		}
		cu.readable[qos-1] = true
		s.takeLocked(qos, ds)
	}
	cu.running = false
	if cu.idle != nil {
		cu.idle.Broadcast()
	}
	s.b.feedGroups() // all former packet ids may be known now
}

func (s *session) readFailedLocked(ctx context.Context, c *conn, qos byte, err error) {
	if ctx.Err() != nil || errors.Is(err, durable.ErrClosed) || errors.Is(err, durable.ErrNoQueue) {
		return
	}
	s.b.count.storeErrors.Add(1)
	s.b.log.Error("stored messages not read", "client_id", s.clientID, "qos", qos, "err", err, "delay", readRetry)
	s.b.clock.after(readRetry, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.conn == c {
			s.catchUp.readable[qos-1] = true
			s.kickLocked()
		}
	})
}

// reportDropsLocked tells the store what can never be sent. The lock is let go
// meanwhile.
func (s *session) reportDropsLocked() {
	drops := s.catchUp.drops
	s.catchUp.drops = nil
	s.mu.Unlock()
	for _, d := range drops {
		s.b.countDrop(d.reason)
		s.b.store.Dropped(s.queue, d.seq, d.reason, s.freeWhenDone(d.id, d.seq))
	}
	s.mu.Lock()
}

// countDrop counts a delivery that can never be sent.
func (b *Broker) countDrop(reason string) {
	switch reason {
	case dropExpired:
		b.count.droppedExpired.Add(1)
	case dropDenied:
		b.count.droppedDenied.Add(1)
	default:
		b.count.droppedTooLarge.Add(1)
	}
}

// takeLocked sends what was read, as far as there is room for it.
func (s *session) takeLocked(qos byte, ds []durable.Delivery) {
	var k cork
	var save []durable.Sent
	for _, d := range ds {
		if qos == 1 {
			s.sendStoredOnceLocked(&k, d)
		} else {
			save = s.takeExactlyOnceLocked(&k, d, save)
		}
	}
	s.sendStoredLocked(&k)
	s.mu.Unlock()
	k.flush(&s.b.count)
	if len(save) > 0 {
		s.b.store.Sent(s.queue, save, func(err error) { s.saved(save, err) })
	}
	s.mu.Lock()
}

// sendStoredOnceLocked sends a QoS 1 delivery of the store: under the packet
// id it already had on a former connection, with DUP, or under a new one
// (MQTT 5.0 §4.4 [MQTT-4.4.0-1]).
func (s *session) sendStoredOnceLocked(k *cork, d durable.Delivery) {
	id, again := s.sent[d.Seq]
	if !s.mayReceiveLocked(d.Message.Topic) {
		if again {
			s.freeLocked(id, s.out.get(id))
		}
		s.catchUp.drops = append(s.catchUp.drops, drop{seq: d.Seq, reason: dropDenied})
		return
	}
	f, alive := framesOf(d.Message, time.Now())
	if !alive && !again {
		s.catchUp.drops = append(s.catchUp.drops, drop{seq: d.Seq, reason: dropExpired})
		return
	}
	if !again {
		id = s.ids.next(&s.out)
	}
	how := form{qos: 1, retain: d.Retain, dup: again, id: id, subIDs: d.SubscriptionIDs, placed: true}
	f.single = true
	if s.conn.publish(k, &f, &how) == tooLarge {
		if again {
			s.freeLocked(id, s.out.get(id))
		}
		s.catchUp.drops = append(s.catchUp.drops, drop{seq: d.Seq, reason: dropTooLarge})
		return
	}
	o := s.out.put(id)
	if again && o.conn == s.conn.number {
		return // its place is taken already
	}
	*o = outbound{qos: 1, state: outSent, conn: s.conn.number}
	s.nameLocked(o, d.Seq, id)
	s.inflight++
}

// takeExactlyOnceLocked puts a QoS 2 delivery in line, and asks for its packet
// id to be made durable if it has none: it is durable before the first
// send, or a power cut would make another message of it.
func (s *session) takeExactlyOnceLocked(k *cork, d durable.Delivery, save []durable.Sent) []durable.Sent {
	id := d.PacketID
	if id == 0 {
		s.catchUp.resuming = false // ids are given in order: no former one follows
		if known, ok := s.sent[d.Seq]; ok {
			id = known // it is being made durable since a former connection
		}
	}
	if id == 0 {
		id = s.ids.next(&s.out)
		o := s.out.put(id)
		*o = outbound{qos: 2, state: outSaving}
		s.nameLocked(o, d.Seq, id)
		s.catchUp.stored = append(s.catchUp.stored, storedDelivery{d, id})
		return append(save, durable.Sent{Seq: d.Seq, PacketID: id})
	}
	o := s.out.get(id)
	if o == nil {
		o = s.out.put(id)
		*o = outbound{qos: 2, state: outReserved}
	}
	s.nameLocked(o, d.Seq, id)
	if d.Released {
		// PUBREL takes no place of the window (MQTT 5.0 §4.9).
		o.state = outReleased
		_ = s.conn.send(k, &packet.Pubrel{PacketID: id})
		return save
	}
	s.catchUp.stored = append(s.catchUp.stored, storedDelivery{d, id})
	return save
}

// saved is called by the store when packet ids are durable, or are not.
func (s *session) saved(ids []durable.Sent, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range ids {
		o := s.out.get(x.PacketID)
		if o == nil || o.seq != x.Seq || o.state != outSaving {
			continue
		}
		if err != nil {
			s.freeLocked(x.PacketID, o)
			continue
		}
		o.state = outReserved
	}
	if s.conn == nil {
		return
	}
	if err != nil {
		// Reading starts again with the next connection.
		s.catchUp.stored = nil
		s.storeFailedLocked(err)
		return
	}
	s.sendStoredLocked(nil)
	s.kickLocked()
}

// storeFailedLocked ends the connection of a session whose state could not be
// made durable: nothing was promised to the client, and it will try again.
func (s *session) storeFailedLocked(err error) {
	if s.conn != nil {
		s.conn.storeFailed(err)
	}
}

// sendStoredLocked sends QoS 2 deliveries in order while there is room.
func (s *session) sendStoredLocked(k *cork) {
	cu := &s.catchUp
	if len(cu.stored) == 0 {
		return
	}
	now := time.Now()
	for len(cu.stored) > 0 && s.conn != nil {
		d := cu.stored[0]
		o := s.out.get(d.id)
		if o == nil || o.state == outSaving {
			return
		}
		counted := o.conn == s.conn.number
		if !counted && s.roomLocked() <= 0 || !s.conn.out.room() {
			return
		}
		cu.stored[0] = storedDelivery{}
		if cu.stored = cu.stored[1:]; len(cu.stored) == 0 {
			cu.stored = nil
		}
		again := d.Resend || o.state == outSent
		if !again && !s.mayReceiveLocked(d.Message.Topic) {
			// Once sent it has to be finished: the client may wait for the
			// PUBREL, and its packet id would stand for another message.
			cu.drops = append(cu.drops, drop{d.Seq, d.id, dropDenied})
			continue
		}
		f, alive := framesOf(d.Message, now)
		if !alive && !again {
			cu.drops = append(cu.drops, drop{d.Seq, d.id, dropExpired})
			continue
		}
		how := form{qos: 2, retain: d.Retain, dup: again, id: d.id, subIDs: d.SubscriptionIDs, placed: true}
		f.single = true
		if s.conn.publish(k, &f, &how) == tooLarge {
			cu.drops = append(cu.drops, drop{d.Seq, d.id, dropTooLarge})
			continue
		}
		o.state = outSent
		if !counted {
			o.conn = s.conn.number
			s.inflight++
		}
	}
}

// freeWhenDone returns a done callback that gives a QoS 2 packet id back;
// nil when there is none.
func (s *session) freeWhenDone(id uint16, seq durable.Seq) func(error) {
	if id == 0 {
		return nil
	}
	return func(err error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if err != nil {
			s.storeFailedLocked(err)
			return
		}
		if o := s.out.get(id); o != nil && o.seq == seq {
			s.freeLocked(id, o)
		}
		if s.conn != nil {
			s.sendPendingLocked(nil)
			s.sendStoredLocked(nil)
			s.kickLocked()
			s.b.feedGroups()
		}
	}
}
