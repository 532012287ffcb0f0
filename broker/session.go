package broker

import (
	"sync"
	"time"

	"holdfast/broker/durable"
	"holdfast/broker/message"
)

// session is what the broker knows of one client id: subscriptions, packet
// ids, what is on its way in both directions. A persistent session has a queue
// in the store and outlives its connections; any other lives in RAM and ends
// with its connection. A persistent session is a [durable.Recipient].
type session struct {
	b        *Broker
	clientID string
	// queue is set once, before the session is seen by others; 0 for a
	// session that ends with its connection.
	queue durable.QueueID

	// Guarded by Broker.mu:
	owner  *conn     // the connection that has it, or is about to
	holder *Identity // whose it is: that of the latest owner
	expire *event    // ends it while it is offline

	mu     sync.Mutex
	conn   *conn  // guarded by mu; nil while offline
	expiry uint32 // guarded by mu; seconds
	// identity is that of the latest connection; guarded by mu.
	identity *Identity
	subs     map[string]*subscription // guarded by mu; by filter as the client wrote it
	in       idTable[inbound]         // guarded by mu; inbound QoS 2
	// Outbound, guarded by mu:
	ids      packetIDs
	out      idTable[outbound]
	sent     map[durable.Seq]uint16 // packet ids of deliveries of the store
	inflight int                    // QoS 1 and 2 sent on this connection, not finished
	finished uint64                 // how many packet ids have been given back
	stuck    stuck
	pending  fifo        // waits in RAM for room
	orphans  []owed      // of pending, once it was given up
	ended    func(error) // when the end of the session is durable; nil for nobody who asks
	catchUp  catchUp
}

// outbound is one QoS 1 or 2 delivery that has a packet id.
type outbound struct {
	seq   durable.Seq // 0 for a session that ends with its connection
	conn  uint64      // connection on which it takes a place of the window; 0 for none
	state outState
	qos   byte
	lent  *lent // QoS 1 of the queue of a shared group
	owed  *owed // QoS 1 to a member of a shared group, outside of the store
}

// outState is how far an outbound delivery has come.
type outState byte

const (
	outReserved outState = iota // id given, not yet sent
	outSaving                   // QoS 2: the id is being made durable
	outSent                     // PUBLISH sent
	outReceived                 // QoS 2: the PUBREC is being made durable
	outReleased                 // QoS 2: PUBREL sent
	outEnding                   // QoS 2: the end is being made durable
)

// packetIDs gives packet ids, 1 to 65535, and skips those in use
// (MQTT 5.0 §2.2.1 [MQTT-2.2.1-3]).
type packetIDs struct{ last uint16 }

// next finds a free id. There always is one: windows are at most half of the
// ids, and ids from the store were given within such windows.
func (p *packetIDs) next(used *idTable[outbound]) uint16 {
	for {
		p.last++
		if p.last == 0 {
			p.last = 1
		}
		if !used.has(p.last) {
			return p.last
		}
	}
}

// waiting is one delivery that waits in RAM for room on the connection.
type waiting struct {
	m      *message.Message
	place  *parked // m's, nil for one that is left to the garbage collector
	ids    []uint32
	qos    byte // the subscription's when kept, else the delivery's
	retain bool
	group  *group // whose member this is sent to; nil without one
	left   bool   // by another member of the group
	kept   bool   // a retained message being handed out: not counted, the index holds it
}

// counts says whether it counts against MaxQueued. What another member of a
// shared group left must not cost this one its connection; it was counted there.
func (w *waiting) counts() bool { return !w.kept && !w.left }

// keptWaiting is how many places an empty fifo keeps. Larger ones lend each other
// their room.
const keptWaiting = 32

// maxWaitingRoom is the largest room that goes back, in places: 300 kB.
const maxWaitingRoom = 4096

// waitingRoom has room for many, all of it zero.
var waitingRoom = sync.Pool{New: func() any { return new(make([]waiting, 0, 8*keptWaiting)) }}

// fifo is a queue of deliveries.
type fifo struct {
	items []waiting
	room  *[]waiting // what items was lent, nil while there are few
	head  int
	count int // those that count against MaxQueued
	bytes int // of those
}

func (f *fifo) len() int { return len(f.items) - f.head }

func (f *fifo) push(w waiting) {
	if f.head > 0 && f.head >= len(f.items)/2 {
		n := copy(f.items, f.items[f.head:])
		clear(f.items[n:])
		f.items, f.head = f.items[:n], 0
	}
	if len(f.items) == cap(f.items) && cap(f.items) >= keptWaiting && f.room == nil {
		f.room, _ = waitingRoom.Get().(*[]waiting)
		f.items = append((*f.room)[:0], f.items...)
	}
	f.items = append(f.items, w)
	if w.counts() {
		f.count++
		f.bytes += w.m.Size()
	}
}

func (f *fifo) front() *waiting { return &f.items[f.head] }

func (f *fifo) pop() {
	w := &f.items[f.head]
	if w.counts() {
		f.count--
		f.bytes -= w.m.Size()
	}
	w.place.letGo()
	*w = waiting{}
	if f.head++; f.head < len(f.items) {
		return
	}
	f.items, f.head = f.items[:0], 0
	if f.room != nil {
		if *f.room = f.items; cap(f.items) <= maxWaitingRoom {
			waitingRoom.Put(f.room)
		}
		*f = fifo{}
	}
}

func (b *Broker) newSession(clientID string) *session {
	return &session{b: b, clientID: clientID, identity: &nobody, holder: &nobody}
}

// roomLocked is how many more QoS 1 and 2 deliveries the client may be sent
// now (MQTT 5.0 §4.9).
func (s *session) roomLocked() int {
	if s.conn == nil {
		return 0
	}
	return s.conn.window - s.inflight - s.catchUp.reserved
}

// attach gives the session to a connection; its CONNACK has been queued.
func (s *session) attach(c *conn) {
	s.mu.Lock()
	s.conn = c
	s.inflight = 0
	s.stuck = stuck{}
	s.catchUp.restart()
	s.mu.Unlock()
	if s.queue == 0 {
		s.b.feedGroups()
		return
	}
	if err := s.b.store.Attach(s.queue, s); err != nil {
		c.storeFailed(err)
		return
	}
	s.mu.Lock()
	s.catchUp.attached = true
	s.catchUp.readable = [2]bool{true, true}
	s.kickLocked()
	s.mu.Unlock()
}

// detach takes the session from its connection. When it returns nothing of the
// old connection acts on it any more.
func (s *session) detach(c *conn) {
	s.mu.Lock()
	if s.conn != c {
		s.mu.Unlock()
		return
	}
	s.conn = nil
	for s.catchUp.running {
		if s.catchUp.idle == nil {
			s.catchUp.idle = sync.NewCond(&s.mu)
		}
		s.catchUp.idle.Wait()
	}
	s.catchUp.restart()
	s.orphanPendingLocked()
	back := s.takeLentLocked()
	s.mu.Unlock()
	s.giveBack(back)
	if s.queue != 0 {
		s.b.store.Detach(s.queue, s)
	}
}

// leave frees the session from the connection whose reader calls, publishes
// the will if it is due, and ends the session or lets it wait.
func (c *conn) leave() {
	c.line.kill()
	c.auth.stop()
	s := c.session
	if s == nil {
		return
	}
	b := c.b
	s.detach(c)
	s.mu.Lock()
	expiry := s.expiry
	if s.queue == 0 {
		expiry = 0
	}
	s.mu.Unlock()
	c.logLeave(s)

	w := c.will
	if w != nil && c.normal {
		// MQTT 5.0 §3.14.4 [MQTT-3.14.4-3].
		b.forgetWill(s.clientID, w)
		w = nil
	}
	b.mu.Lock()
	if b.closing {
		// Sessions and wills stay in the store; the wills wait there for
		// their clients to come back to the next start.
		s.owner = nil
		b.mu.Unlock()
		if expiry == 0 {
			b.endSession(s)
		} else {
			b.store.UpdateSession(s.queue, expiry, false, nil)
		}
		return
	}
	b.mu.Unlock()
	delay := time.Duration(0)
	if w != nil && expiry > 0 {
		delay = time.Duration(min(w.delay, expiry)) * time.Second
	}
	if w != nil && delay == 0 {
		b.fireWill(s.clientID, w)
		w = nil
	}
	if expiry == 0 {
		b.endSession(s)
		b.redeliver(s.takeOrphans())
		b.mu.Lock()
		s.owner = nil
		delete(b.sessions, s.clientID)
		b.mu.Unlock()
		return
	}
	b.store.UpdateSession(s.queue, expiry, false, nil)
	b.mu.Lock()
	if w != nil {
		b.delayWillLocked(s.clientID, w, delay, false)
	}
	b.expireLaterLocked(s, expiry, time.Duration(expiry)*time.Second)
	s.owner = nil
	b.mu.Unlock()
}

// expireLaterLocked lets an offline session end after d; Broker.mu is held.
func (b *Broker) expireLaterLocked(s *session, expiry uint32, d time.Duration) {
	if expiry == durable.SessionExpiryNever {
		return
	}
	s.expire = b.clock.after(d, func() { b.expired(s) })
}

// expired is called by the session clock.
func (b *Broker) expired(s *session) {
	if b.endAway(s) {
		b.count.sessionsExpired.Add(1)
		b.log.Info("session expired", "client_id", s.clientID)
	}
}

// endAway ends a session if its client is away. The session clock's goroutine
// calls it.
func (b *Broker) endAway(s *session) bool {
	b.mu.Lock()
	if s.owner != nil || b.sessions[s.clientID] != s || b.closing {
		b.mu.Unlock()
		return false
	}
	delete(b.sessions, s.clientID)
	b.clock.cancel(s.expire)
	s.expire = nil
	w := b.takeWillLocked(s.clientID)
	done := b.workOnLocked(s.clientID)
	defer done()
	b.mu.Unlock()
	if w != nil {
		b.fireWill(s.clientID, w.will) // it ends with the session (MQTT 5.0 §3.1.3.2.2)
	}
	b.endSession(s)
	return true
}

// endSession removes what a session holds: its subscriptions and, if it is
// persistent, its queue. Its place in the map is the caller's affair.
func (b *Broker) endSession(s *session) { b.endSessionDone(s, nil) }

func (b *Broker) endSessionDone(s *session, done func(error)) {
	s.mu.Lock()
	subs, told := s.subs, s.ended
	s.subs, s.ended = nil, nil
	s.mu.Unlock()
	for _, sub := range subs {
		b.dropSubscription(sub)
	}
	switch {
	case s.queue != 0:
		b.store.End(s.queue, both(done, told))
	case told != nil:
		told(nil)
	}
}

// both calls two functions that may be nil.
func both(f, g func(error)) func(error) {
	switch {
	case f == nil:
		return g
	case g == nil:
		return f
	}
	return func(err error) {
		f(err)
		g(err)
	}
}

func (c *conn) logLeave(s *session) {
	cause := c.cause.Load()
	c.b.log.Info("client left", "client_id", s.clientID, "remote", c.remote(),
		"reason", cause.reason.String(), "detail", cause.detail, "connected_for", time.Since(c.since).Round(time.Millisecond))
}
