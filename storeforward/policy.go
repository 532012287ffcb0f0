package storeforward

import (
	"fmt"
	"slices"
	"time"

	"holdfast/broker/durable"
	"holdfast/broker/topic"
)

// Reasons under which a policy counts what it drops.
const (
	reasonOldest = "oldest"
	reasonNewest = "newest"
	reasonThin   = "thinned"
	reasonAge    = "max_age"
)

// limits are the bounds of a queue and what happens there.
type limits struct {
	routes          []durable.RoutePolicy
	policy          durable.Policy
	messages, bytes int64
	age             time.Duration
}

// SetPolicy bounds a queue, that of an uplink with all its lanes together, and says
// what happens when it is full; it holds from the next Append on and until the store
// is closed.
func (s *Store) SetPolicy(id durable.QueueID, p durable.QueuePolicy) error {
	for _, r := range append(slices.Clone(p.Routes), durable.RoutePolicy{Filter: "#", Policy: p.Policy}) {
		if r.Policy != "" && !slices.Contains(durable.Policies, r.Policy) {
			return fmt.Errorf("policy of queue %d: %q is not one of %v", id, r.Policy, durable.Policies)
		}
		if err := topic.ValidFilter(r.Filter); err != nil {
			return fmt.Errorf("policy of queue %d: %w", id, err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queues[id]
	if q == nil {
		return s.noQueueLocked()
	}
	l := s.opts.limits(q.uplink, p.Policy)
	l.routes = slices.Clone(p.Routes)
	for own, bound := range map[*int64]int64{&l.messages: p.MaxMessages, &l.bytes: p.MaxBytes} {
		if bound > 0 {
			*own = bound
		}
	}
	if p.MaxAge > 0 {
		l.age = p.MaxAge
	}
	for _, lq := range q.all() {
		lq.limits = l
		lq.relief = relief{}
	}
	s.wakeCommitter()
	return nil
}

// limits are the store's own for a queue.
func (o Options) limits(uplink bool, p durable.Policy) limits {
	l := limits{policy: p, messages: o.MaxQueueMessages, bytes: o.MaxQueueBytes, age: o.MaxAge}
	if !uplink {
		l.messages, l.bytes = o.MaxSessionMessages, o.MaxSessionBytes
	}
	return l
}

// load is what queues hold.
type load struct{ messages, bytes int64 }

func (l load) plus(messages, bytes int64) load { return load{l.messages + messages, l.bytes + bytes} }

// over is how far a load is beyond its bounds, or below them.
func (l load) over(most load) load {
	return load{l.messages - most.messages, l.bytes - most.bytes}
}

// room is what queues of that kind may hold together.
func (o Options) room(uplink bool) load {
	if uplink {
		return load{o.MaxMessages, o.MaxBytes}
	}
	return load{o.MaxMessages / 100 * int64(o.SessionShare), o.MaxBytes / 100 * int64(o.SessionShare)}
}

// countLocked notes that a queue holds more, or less.
func (s *Store) countLocked(q *queue, messages, bytes int64) {
	s.counts.load = s.counts.plus(messages, bytes)
	if !q.uplink {
		s.counts.sessions = s.counts.sessions.plus(messages, bytes)
	}
}

// crowdedLocked says whether the store has no room for so many more messages of
// that size for queues of that kind.
func (s *Store) crowdedLocked(uplink bool, messages, size int64) bool {
	over := s.overLocked(uplink)
	return over.messages+messages > 0 || over.bytes+messages*size > 0
}

// overLocked is how far the store is beyond what queues of that kind leave free.
func (s *Store) overLocked(uplink bool) load {
	over := s.counts.load.over(s.opts.room(true))
	if !uplink {
		of := s.counts.sessions.over(s.opts.room(false))
		over.messages, over.bytes = max(over.messages, of.messages), max(over.bytes, of.bytes)
	}
	return over
}

// of is the policy for a topic.
func (l *limits) of(name string) durable.Policy {
	p := l.policy
	for i := range l.routes {
		if topic.Match(l.routes[i].Filter, name) {
			p = l.routes[i].Policy
			break
		}
	}
	if p == "" {
		return durable.PolicyRefuse
	}
	return p
}

// fits says whether the queue has room for one more message.
func (q *queue) fits(size int64) bool {
	messages, bytes := q.bounds()
	return q.messages < messages && q.bytes+size <= bytes
}

// slack is how far beyond its bounds a queue may get that is being relieved, or
// whose publishers wait: a commit with all that was in memory, and no more.
func (s *Store) slack(q *queue, size int64) bool {
	messages, bytes := q.bounds()
	return q.messages < messages+messages/8+1000 && q.bytes+size <= bytes+bytes/8+s.opts.MaxMemoryBytes
}

// relief is what is being done about a queue that is full.
type relief struct {
	// under way: a drop, or a thinning.
	dropping, thinning bool
	// from: nothing up to here can be dropped under drop_oldest.
	from durable.Seq
	// futile: there was nothing to drop. It is tried again when the queue has
	// had room.
	futile bool
}

// admission is what the policy says about one claim.
type admission byte

const (
	admit        admission = iota
	admitWait              // and withhold the acknowledgement
	admitRelieve           // and make room
	admitThin              // and make room in time
	omit                   // the others may have it
	refuse
)

// admitLocked applies the policy of the queue to a message. crowded says that
// there is no room for its kind in the store as a whole.
func (s *Store) admitLocked(q *queue, name string, size int64, from durable.Origin, crowded bool) admission {
	if q.fits(size) && !crowded {
		if q.relief.futile {
			q.relief.futile = false
		}
		if q.nearFull() && !q.relief.thinning && q.limits.of(name) == durable.PolicyThin {
			return admitThin
		}
		return admit
	}
	switch q.limits.of(name) {
	case durable.PolicyDropNewest:
		return omit
	case durable.PolicyDropOldest:
		if !q.relief.futile && s.slack(q, size) {
			return admitRelieve
		}
	case durable.PolicyThin:
		if !q.relief.futile && !crowded && s.slack(q, size) {
			return admitThin
		}
	case durable.PolicyWait:
		// Whose own acknowledgements make the room cannot wait for it. And room
		// in the store as a whole is nothing to wait for: others may take it.
		if !crowded && s.slack(q, size) && (from.Queue == 0 || from.Queue != q.root().id) {
			return admitWait
		}
	case durable.PolicyRefuse:
	}
	return refuse
}

// nearFull is the mark at which thinning begins.
func (q *queue) nearFull() bool {
	messages, bytes := q.bounds()
	return q.messages >= messages-messages/8 || q.bytes >= bytes-bytes/8
}

// relieveLocked drops the oldest messages of the queue under drop_oldest until it
// is a little below its bounds, or leaves room in the store.
func (s *Store) relieveLocked(q *queue) {
	if q.relief.dropping || q.relief.futile {
		return
	}
	mostMessages, mostBytes := q.bounds()
	over, room := s.overLocked(q.uplink), s.opts.room(q.uplink)
	messages := max(q.messages-(mostMessages-mostMessages/64), over.messages+room.messages/256)
	bytes := max(q.bytes-(mostBytes-mostBytes/64), over.bytes+room.bytes/256)
	var m, b int64
	x := &dropping{reason: reasonOldest, from: q.relief.from, look: dropChunk + 2*int(min(max(messages, 0), 1<<20))}
	x.begin = func() { m, b = messages, bytes }
	choose := q.limits
	x.choose = func(c *candidate) verdict {
		switch {
		case m <= 0 && b <= 0:
			return stopHere
		case choose.of(c.topic) != durable.PolicyDropOldest:
			return keepIt
		}
		m--
		b -= c.size
		return dropIt
	}
	whole := q.unsafe == 0 // all of it is on disk
	x.after = func(x *dropping) {
		q.relief.dropping = false
		if len(x.rows) == 0 && x.reached == 0 {
			q.relief.futile = whole
			return
		}
		if x.reached != 0 {
			q.relief.from = max(q.relief.from, x.reached)
		}
		if !q.fits(1) {
			s.relieveLocked(q)
		}
	}
	q.relief.dropping = s.dropLocked(q, x, nil)
	// Otherwise all of it is in memory still; the next one finds it on disk.
}

// ageLocked drops what is older than the queue keeps.
func (s *Store) ageLocked(q *queue, now time.Time) {
	if q.limits.age <= 0 || q.messages == 0 || q.aging {
		return
	}
	oldest := s.clock.now(now.Add(-q.limits.age))
	x := &dropping{reason: reasonAge, look: dropChunk}
	x.choose = func(c *candidate) verdict {
		if s.clock.at(c.seq, c.received) > oldest {
			return stopHere
		}
		return dropIt
	}
	x.after = func(x *dropping) {
		q.aging = false
		if x.reached != 0 {
			s.ageLocked(q, now)
		}
	}
	q.aging = s.dropLocked(q, x, nil)
}

// ageEvery is how often the age of what is kept is looked at; bounds shorter than
// eight times this are looked at more often.
const ageEvery = time.Minute

// agesLocked looks at all queues now and then.
func (s *Store) agesLocked(now time.Time) (wait time.Duration) {
	if wait = s.nextAging.Sub(now); wait > 0 {
		return wait
	}
	wait = ageEvery
	for _, q := range s.queues {
		if q.limits.age <= 0 {
			continue
		}
		wait = max(min(wait, q.limits.age/8), time.Second)
		if q.messages > int64(q.unsafe) {
			s.ageLocked(q, now)
		}
	}
	s.nextAging = now.Add(wait)
	return wait
}

// parked is a message that is safe and whose publisher is not told so before the
// queue has room.
type parked struct{ done func(error) }

// park withholds an acknowledgement. It is called without the append lock.
func (s *Store) park(q *queue, done func(error)) {
	s.mu.Lock()
	if s.queues[q.id] == q && !s.finished && q.crowdLocked() > int64(len(q.parked)) {
		q.parked = append(q.parked, parked{done})
		s.mu.Unlock()
		return
	}
	s.mu.Unlock()
	call(done, nil)
}

// crowdLocked is how many messages the queue has beyond its bounds.
func (q *queue) crowdLocked() int64 {
	messages, bytes := q.bounds()
	over := max(0, q.messages-messages)
	if q.bytes > bytes && q.messages > 0 {
		size := max(q.bytes/q.messages, 1)
		over = max(over, (q.bytes-bytes+size-1)/size)
	}
	return over
}

// unparkLocked returns the acknowledgements for which there is room by now.
func (s *Store) unparkLocked() (calls []func(error)) {
	calls, s.unparked = s.unparked, nil
	for _, q := range s.queues {
		n := len(q.parked) - int(min(q.crowdLocked(), int64(len(q.parked))))
		for _, p := range q.parked[:n] {
			calls = append(calls, p.done)
		}
		if q.parked = q.parked[n:]; len(q.parked) == 0 {
			q.parked = nil
		}
	}
	return calls
}

// withhold makes done wait for room in the queues that have none.
func (s *Store) withhold(queues []*queue, done func(error)) func(error) {
	for _, q := range queues {
		next := done
		done = func(err error) {
			if err != nil {
				call(next, err)
				return
			}
			s.park(q, next)
		}
	}
	return done
}
