package broker

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"holdfast/broker/durable"
)

// A shared group is one durable recipient as soon as one of its members is
// persistent: it has a queue of its own in the store for QoS 1, from which it
// hands to whichever member has room.
//
//	store                     group                          members
//	Offer, Read ------------> head, in turn ---------------> PUBLISH
//	Acked, Refused <------------------------------------- PUBACK
//	                          head <---------------------- connection lost
//
// What a member has not acknowledged when its connection ends goes back to the
// head, and on to another (MQTT 5.0 §4.8.2 leaves it to the server). Should it
// come back to the same session, it does so under the same packet id and with
// DUP (§4.4 [MQTT-4.4.0-1]).
//
// QoS 2 is bound to the member chosen for it when it comes, and stays in that
// member's own queue [MQTT-4.8.2-4] [MQTT-4.8.2-5]. Members that asked for QoS 0
// are given QoS 0 only: QoS 1 goes to those who acknowledge it.

// groupPrefix begins the names of the groups among the client ids of the store.
const groupPrefix = durable.GroupPrefix + "$share/"

func (k groupKey) name() string { return groupPrefix + k.share + "/" + k.filter }

func groupOf(name string) (k groupKey, ok bool) {
	rest, ok := strings.CutPrefix(name, groupPrefix)
	if !ok {
		return k, false
	}
	k.share, k.filter, ok = strings.Cut(rest, "/")
	return k, ok
}

// groupRead is how many messages a group reads at once at most: what it cannot
// place waits in RAM.
const groupRead = 64

// groupQueue is the part of a group that the store knows; it implements
// [durable.Recipient].
type groupQueue struct {
	b  *Broker
	g  *group
	id durable.QueueID

	// hungry says that there is something to hand out, as soon as a member
	// has room.
	hungry  atomic.Bool
	running atomic.Bool // the pump runs
	kicks   atomic.Uint32

	// Guarded by group.mu:
	readable bool    // Read may bring something
	head     []*lent // to be handed out before what is read, by sequence
	drops    []drop  // to be reported by the pump
	closed   bool
}

// lent is a message of the group's queue, at a member or on its way to one.
type lent struct {
	from *groupQueue
	d    durable.Delivery
	// last had it under id when its connection ended, and keeps the id until
	// it is somebody else's; nil for none. Guarded by group.mu.
	last *session
	id   uint16
}

// persistent says whether a member makes its group durable.
func (sub *subscription) persistent() bool { return sub.session.queue != 0 && sub.QoS > 0 }

// keepGroupLocked gives a group its queue: the one kept from before the start,
// or a new one. groups.mu is held.
func (b *Broker) keepGroupLocked(key groupKey, g *group) {
	q := &groupQueue{b: b, g: g}
	if id, ok := b.groups.kept[key]; ok {
		delete(b.groups.kept, key)
		q.id = id
	} else {
		q.id = b.store.CreateSession(key.name(), durable.SessionExpiryNever, func(err error) {
			if err != nil {
				b.count.storeErrors.Add(1)
				g.lose(q) // its members keep what they are given, each for itself
			}
		})
	}
	if q.id == 0 {
		return
	}
	q.readable = true
	b.groups.withQueue(func(qs []*groupQueue) []*groupQueue { return append(qs, q) })
	q.setHungry(true)
	g.mu.Lock()
	g.queue = q
	g.mu.Unlock()
	if err := b.store.Attach(q.id, q); err != nil {
		b.count.storeErrors.Add(1)
		g.lose(q)
	}
}

// lose takes the queue from a group; the store does not have it.
func (g *group) lose(q *groupQueue) {
	g.mu.Lock()
	defer g.mu.Unlock()
	q.closed = true
	if g.queue == q {
		g.queue = nil
	}
}

// endGroupLocked ends the queue of a group without members that could be given
// what is in it. groups.mu is held.
func (b *Broker) endGroupLocked(g *group) {
	g.mu.Lock()
	q := g.queue
	g.mu.Unlock()
	if q == nil {
		return
	}
	g.lose(q)
	q.setHungry(false)
	b.groups.withQueue(func(qs []*groupQueue) []*groupQueue {
		return slices.DeleteFunc(qs, func(x *groupQueue) bool { return x == q })
	})
	b.store.Detach(q.id, q)
	b.store.End(q.id, nil)
}

// keptGroups remembers the queues of groups from before the start.
func (b *Broker) keptGroups(sessions []durable.Session) {
	b.groups.mu.Lock()
	defer b.groups.mu.Unlock()
	b.groups.kept = make(map[groupKey]durable.QueueID)
	for _, s := range sessions {
		if key, ok := groupOf(s.ClientID); ok {
			b.groups.kept[key] = s.Queue
		}
	}
}

// endKeptGroups ends those whose persistent members are gone.
func (b *Broker) endKeptGroups() {
	b.groups.mu.Lock()
	defer b.groups.mu.Unlock()
	for _, q := range b.groups.kept {
		b.store.End(q, nil)
	}
	b.groups.kept = nil
}

// withQueue changes the list of queues, which is read without a lock.
func (gs *groups) withQueue(change func([]*groupQueue) []*groupQueue) {
	var qs []*groupQueue
	if old := gs.queues.Load(); old != nil {
		qs = slices.Clone(*old)
	}
	qs = change(qs)
	gs.queues.Store(&qs)
}

// detachGroups ends all handing out; the queues stay in the store.
func (b *Broker) detachGroups() {
	b.groups.mu.Lock()
	defer b.groups.mu.Unlock()
	qs := b.groups.queues.Load()
	if qs == nil {
		return
	}
	for _, q := range *qs {
		q.g.mu.Lock()
		q.closed = true
		q.g.mu.Unlock()
		q.setHungry(false)
		b.store.Detach(q.id, q)
	}
}

// feedGroups is called when a session has room again, with whatever locks.
func (b *Broker) feedGroups() {
	if b.groups.hungry.Load() == 0 {
		return
	}
	for _, q := range *b.groups.queues.Load() {
		q.kick()
	}
}

func (q *groupQueue) setHungry(hungry bool) {
	if q.hungry.Swap(hungry) == hungry {
		return
	}
	if hungry {
		q.b.groups.hungry.Add(1)
	} else {
		q.b.groups.hungry.Add(-1)
	}
}

// kick starts the pump if there is something for it to do. It takes no lock.
func (q *groupQueue) kick() {
	if !q.hungry.Load() {
		return
	}
	q.kicks.Add(1)
	if q.running.CompareAndSwap(false, true) {
		q.b.spawn(q.pump)
	}
}

// Offer implements [durable.Recipient].
func (q *groupQueue) Offer(d durable.Delivery) bool {
	g := q.g
	g.mu.Lock()
	defer g.mu.Unlock()
	if q.closed {
		return false
	}
	if len(q.head) == 0 && q.placeLocked(&lent{from: q, d: d}) {
		if len(q.drops) > 0 {
			q.setHungry(true)
			q.kick()
		}
		return true
	}
	q.readable = true
	q.setHungry(true)
	q.kick() // room may have come before anybody could know that it is wanted
	return false
}

// Reserve implements [durable.Recipient]; QoS 2 has no claims on a group.
func (*groupQueue) Reserve() (packetID uint16, ok bool) { return 0, false }

// Unreserve implements [durable.Recipient].
func (*groupQueue) Unreserve(uint16) {}

// Wake implements [durable.Recipient].
func (q *groupQueue) Wake(qos byte) {
	q.g.mu.Lock()
	defer q.g.mu.Unlock()
	if qos != 1 || q.closed {
		return
	}
	q.readable = true
	q.setHungry(true)
	q.kick()
}

// placeLocked gives a message to the next member that has room for it. True
// says that the group need not keep it any more: a member has it, or nobody ever
// will.
func (q *groupQueue) placeLocked(l *lent) bool {
	g, topic := q.g, l.d.Message.Topic
	somebody := false
	for i := range g.members {
		n := (g.next + i) % len(g.members)
		sub := g.members[n]
		if sub.QoS == 0 || !q.b.mayReceive(sub.session, topic) {
			continue
		}
		somebody = true
		switch sub.session.lend(l, sub) {
		case queued:
			g.next = (n + 1) % len(g.members)
			return true
		case tooLarge:
			// MQTT 5.0 §3.1.2.11.4: "choose whether to discard the message
			// without sending it to any of the clients, or to send it to one
			// of the clients that can receive it".
			q.dropLocked(l, dropTooLarge)
			return true
		case tooLate:
			q.dropLocked(l, dropExpired)
			return true
		case noRoom, closed:
		}
	}
	if !somebody {
		q.dropLocked(l, dropDenied)
		return true
	}
	return false
}

func (q *groupQueue) dropLocked(l *lent, reason string) {
	l.letGo(nil)
	q.drops = append(q.drops, drop{seq: l.d.Seq, reason: reason})
}

// letGo frees the packet id that another session than that keeps for it.
func (l *lent) letGo(but *session) {
	s := l.last
	if s == nil || s == but {
		return
	}
	l.last = nil
	s.mu.Lock()
	defer s.mu.Unlock()
	if o := s.out.get(l.id); o != nil && o.lent == l {
		s.freeLocked(l.id, o)
	}
}

// lend sends a message of its group's queue to a member, if that has room now;
// closed says that it has not. group.mu is held.
func (s *session) lend(l *lent, sub *subscription) outcome {
	l.letGo(s)
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.conn
	if !s.takesLocked() {
		return closed
	}
	f, alive := framesOf(l.d.Message, time.Now())
	again := l.last == s
	if !alive && !again {
		return tooLate
	}
	how := form{qos: 1, retain: l.d.Retain && sub.RetainAsPublished, dup: again, id: l.id}
	if !again {
		how.id = s.ids.next(&s.out)
	}
	if sub.ID != 0 {
		how.subIDs = []uint32{sub.ID}
	}
	f.single, how.placed = true, true
	became := c.publish(nil, &f, &how)
	if became != queued {
		if again && became == tooLarge {
			s.freeLocked(l.id, s.out.get(l.id))
			l.last = nil
		}
		return became
	}
	l.last = nil
	*s.out.put(how.id) = outbound{qos: 1, state: outSent, conn: c.number, lent: l}
	s.inflight++
	return queued
}

// takesLocked says whether the client can be sent a QoS 1 message now. Until
// all packet ids of former connections are known there is none to send it under.
func (s *session) takesLocked() bool {
	c := s.conn
	return c != nil && c.cause.Load() == nil && (s.queue == 0 || s.catchUp.attached && !s.catchUp.resuming) &&
		s.pending.len() == 0 && s.roomLocked() > 0 && c.out.room()
}

// takeLentLocked returns what the client of a connection that is over has not
// acknowledged. The session keeps the packet ids for now. Its mu is held.
func (s *session) takeLentLocked() []*lent {
	var back []*lent
	for id, o := range s.out.all() {
		if o.lent != nil && o.state == outSent {
			o.state = outReserved
			o.lent.id = id
			back = append(back, o.lent)
		}
	}
	return back
}

// giveBack puts what a session has not acknowledged at the heads of its groups,
// each group's at once: between two of them the second could go out first.
func (s *session) giveBack(back []*lent) {
	slices.SortFunc(back, func(x, y *lent) int {
		return cmp.Or(cmp.Compare(x.from.id, y.from.id), cmp.Compare(x.d.Seq, y.d.Seq))
	})
	for len(back) > 0 {
		q, n := back[0].from, 0
		q.g.mu.Lock()
		for ; n < len(back) && back[n].from == q; n++ {
			l := back[n]
			l.last = s
			at, _ := slices.BinarySearchFunc(q.head, l.d.Seq, func(x *lent, seq durable.Seq) int {
				return cmp.Compare(x.d.Seq, seq)
			})
			q.head = slices.Insert(q.head, at, l)
		}
		back = back[n:]
		if !q.closed {
			q.setHungry(true)
		}
		q.g.mu.Unlock()
		q.kick()
	}
}

// pump hands out what there is until no member has room.
func (q *groupQueue) pump(ctx context.Context) {
	for {
		kicks := q.kicks.Load()
		for q.step(ctx) {
		}
		q.running.Store(false)
		// Whoever kicked meanwhile has left it to us.
		if q.kicks.Load() == kicks || !q.running.CompareAndSwap(false, true) {
			return
		}
	}
}

// step reports drops, hands out what waits, or reads more; false if there is
// nothing that it can do.
func (q *groupQueue) step(ctx context.Context) bool {
	g := q.g
	g.mu.Lock()
	if q.closed {
		q.setHungry(false)
		g.mu.Unlock()
		return false
	}
	q.setHungry(true) // before the look: whoever makes room after it kicks
	placed := 0
	var stays []string // topics: room that comes meanwhile is for the first of each
	q.head = slices.DeleteFunc(q.head, func(l *lent) bool {
		name := l.d.Message.Topic
		if slices.Contains(stays, name) {
			return false
		}
		if !q.placeLocked(l) {
			stays = append(stays, name)
			return false
		}
		placed++
		return true
	})
	drops, waiting, readable := q.drops, len(q.head), q.readable
	q.drops = nil
	room := q.roomLocked()
	read := waiting == 0 && readable && room > 0
	if read {
		q.readable = false
	}
	q.setHungry(waiting > 0 || readable)
	g.mu.Unlock()
	for _, d := range drops {
		q.b.countDrop(d.reason)
		q.b.store.Dropped(q.id, d.seq, d.reason, nil)
	}
	if !read {
		return placed > 0 && readable && room > 0
	}
	ds, _, err := q.b.store.Read(ctx, q.id, 1, min(room, groupRead), readBytes)
	g.mu.Lock()
	defer g.mu.Unlock()
	if err != nil {
		q.readFailedLocked(ctx, err)
		return false
	}
	for _, d := range ds {
		q.head = append(q.head, &lent{from: q, d: d})
	}
	if len(ds) > 0 {
		q.readable = true
	}
	return true
}

func (q *groupQueue) readFailedLocked(ctx context.Context, err error) {
	if ctx.Err() != nil || errors.Is(err, durable.ErrClosed) || errors.Is(err, durable.ErrNoQueue) {
		q.setHungry(false)
		return
	}
	q.b.count.storeErrors.Add(1)
	q.b.log.Error("stored messages not read", "share", q.g.entry.inner, "err", err, "delay", readRetry)
	q.setHungry(false) // until then
	q.b.clock.after(readRetry, func() { q.Wake(1) })
}

// roomLocked is how many messages the members have room for.
func (q *groupQueue) roomLocked() int {
	room := 0
	for _, sub := range q.g.members {
		s := sub.session
		if sub.QoS == 0 {
			continue
		}
		s.mu.Lock()
		if s.takesLocked() {
			room += s.roomLocked()
		}
		s.mu.Unlock()
	}
	return room
}

// durableQueue is the queue for a message of that QoS, 0 for none: the group
// has none, or nobody in it may have the message at QoS 1.
func (g *group) durableQueue(qos byte, allowed func(*session) bool) durable.QueueID {
	if qos == 0 {
		return 0
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.queue == nil {
		return 0
	}
	for _, sub := range g.members {
		if sub.QoS > 0 && allowed(sub.session) {
			return g.queue.id
		}
	}
	return 0
}
