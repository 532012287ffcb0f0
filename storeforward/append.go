package storeforward

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"holdfast/broker/durable"
	"holdfast/broker/message"
)

// Append takes a message for its durable recipients, at most one claim for
// each queue. A nil error means that it was taken, and done is called exactly
// once, from any goroutine and possibly before Append returns: with nil when
// the message is safe for all, with an error when it will not become so.
// Otherwise (durable.ErrFull, durable.ErrClosed) nothing was taken and done is
// never called. A claim on a queue that does not exist or has ended is left out.
//
// QoS 1 claims of live streams are offered before Append returns, QoS 2 claims
// after the commit and before done. done must not block nor call the store.
func (s *Store) Append(m *message.Message, claims []durable.Claim, from durable.Origin, done func(error)) error {
	now := time.Now()
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		return durable.ErrClosed
	}
	e, err := s.entryLocked(m, claims, from, now)
	if err != nil {
		s.mu.Unlock()
		return err
	}
	for _, q := range e.omitted {
		q.drop(reasonNewest)
	}
	if e.unsafe == 0 { // nobody durable wants it
		s.mu.Unlock()
		call(done, nil)
		return nil
	}
	e.done = s.withhold(e.waitsFor(), done)
	s.seq++
	e.seq = s.seq
	if from.Will != "" {
		e.mustCommit = true
	}
	s.counts.appended++
	first := s.tail.len() == 0
	s.tail.push(e)
	if e.m.Retain {
		s.keepRetainedLocked(e)
	}
	hurry := e.mustCommit && !(m.QoS == 0 && m.Retain && from == durable.Origin{})
	for i := range e.claims {
		c := &e.claims[i]
		q := c.q
		q.appended++
		q.messages++
		q.bytes += e.size
		q.unsafe++
		s.countLocked(q, 1, e.size)
		if q.lane.Latest && from.PacketID == 0 {
			s.latestLocked(q, m.Topic, waitingMessage{e.seq, e.size})
		}
		if !s.offerLocked(e, c) {
			hurry = true
		}
	}
	for _, r := range e.relief {
		switch r.how {
		case admitRelieve:
			s.relieveLocked(r.q)
		case admitThin:
			s.thinLocked(r.q)
		case admit, admitWait, omit, refuse:
		}
	}
	e.relief, e.omitted = nil, nil
	switch {
	case hurry, s.tail.bytes > s.opts.MaxUnsafeBytes, s.opts.CommitWindow == 0:
		s.hurryLocked()
	case first, s.markDueLocked():
		s.wakeCommitter() // it sets its timer, or reserves numbers
	}
	s.mu.Unlock()
	return nil
}

// waitsFor are the queues whose lack of room withholds the acknowledgement.
func (e *entry) waitsFor() (queues []*queue) {
	for _, r := range e.relief {
		if r.how == admitWait {
			queues = append(queues, r.q)
		}
	}
	return queues
}

// entryLocked checks that there is room for the message everywhere, or nowhere
// (admission is all or nothing), and builds its entry.
func (s *Store) entryLocked(m *message.Message, claims []durable.Claim, from durable.Origin, now time.Time) (*entry, error) {
	e := &entry{m: m, at: now, received: s.clock.wall(m.Received, now), from: from, size: int64(m.Size())}
	e.claims = e.one[:0]
	if len(claims) > 1 {
		e.claims = make([]claim, 0, len(claims))
	}
	wanted := int64(len(claims))
	for _, c := range claims {
		q := s.queues[c.Queue]
		if q == nil {
			// It has ended. Unless that is durable, a power cut brings
			// it back, without the message.
			e.mustCommit = e.mustCommit || s.pendingEnds > 0
			continue
		}
		if q.uplink {
			if q = q.laneFor(m.Topic); q.lane.Latest {
				c.QoS = 1
			}
			c.Queue = q.id
		}
		how := admit
		if !q.lane.Latest || !q.replacesLocked(m.Topic) {
			how = s.admitLocked(q, m.Topic, e.size, from, s.crowdedLocked(q.uplink, wanted, e.size))
		}
		switch how {
		case admit:
		case admitWait, admitRelieve, admitThin:
			e.relief = append(e.relief, reliefFor{q, how})
		case omit:
			e.omitted = append(e.omitted, q)
			continue
		case refuse:
			q.refused++
			s.counts.refused++
			if r, ok := q.r.(durable.Crowded); ok {
				r.Full()
			}
			return nil, fmt.Errorf("queue of %s %q: %w", q.kind(), q.label(), durable.ErrFull)
		}
		e.claims = append(e.claims, claim{Claim: c, q: q})
	}
	slices.SortFunc(e.claims, func(a, b claim) int { return cmp.Compare(a.Queue, b.Queue) })
	for i := 1; i < len(e.claims); i++ {
		if e.claims[i].Queue == e.claims[i-1].Queue {
			return nil, fmt.Errorf("append to %q: two claims for queue %d", m.Topic, e.claims[i].Queue)
		}
	}
	e.mustCommit = e.mustCommit || m.Retain || from.PacketID != 0 && s.queues[from.Queue] != nil || from.Will != ""
	e.unsafe = len(e.claims)
	if e.mustCommit {
		e.unsafe++
	}
	if e.unsafe == 0 {
		return e, nil
	}
	full := s.tail.bytes+e.weight() > s.opts.MaxMemoryBytes ||
		s.retainedFullLocked(m) ||
		// The id of an inbound QoS 2 message must be committed: while the disk
		// fails there is no hope to do so soon.
		from.PacketID != 0 && s.failing
	if full || s.low && !s.leavesLocked(e) {
		s.counts.refused++
		for i := range e.claims {
			e.claims[i].q.refused++
		}
		return nil, durable.ErrFull
	}
	return e, nil
}

// leavesLocked says whether a message is likely to be acknowledged before it must
// be written, or takes no room: the rest is not taken while the disk is full.
func (s *Store) leavesLocked(e *entry) bool {
	switch {
	case e.from.Will != "", len(e.claims) == 0 && e.m.Retain && len(e.m.Payload) == 0:
		return true // its row goes
	case e.mustCommit:
		return false
	}
	for i := range e.claims {
		if c := &e.claims[i]; c.QoS == 2 || !c.q.stream(1).live {
			return false
		}
	}
	return true
}

// offerLocked hands the claim to its recipient if it is QoS 1 and the stream is
// live. False means that only a commit helps.
func (s *Store) offerLocked(e *entry, c *claim) bool {
	st := c.q.stream(c.QoS)
	if c.QoS == 2 || !st.live {
		if c.QoS == 1 {
			st.wakeReader()
			return s.lateLocked(st)
		}
		return false
	}
	full := len(st.out) >= s.opts.MaxUnfinished
	if full || !c.q.r.Offer(s.deliveryLocked(e, c)) {
		st.live = false
		st.pos = max(st.pos, e.seq-1) // it has been handed all there was
		st.waiting = full             // it is told to read when the oldest are finished
		return s.lateLocked(st)
	}
	st.handOut(e.seq, e.received, e.size)
	return true
}

// lateLocked notes that a recipient without room at the moment is to read the
// message. As long as it is only behind the tail, that is, not behind the disk, it
// gets half a commit window for it; the other half is for its acknowledgement.
// False: there is no such hope.
func (s *Store) lateLocked(st *stream) bool {
	if st.q.r == nil || st.hold > 0 || st.dropping > 0 || st.pos < s.committed || len(st.out) >= s.opts.MaxUnfinished {
		return false
	}
	if _, ok := s.late[st]; !ok {
		s.late[st] = time.Now()
		s.wakeCommitter() // it sets its timer
	}
	return true
}

// wakeReader tells a recipient that found nothing that there is something now.
func (st *stream) wakeReader() {
	if st.waiting && st.q.r != nil {
		st.waiting = false
		st.q.r.Wake(st.qos)
	}
}

func (s *Store) deliveryLocked(e *entry, c *claim) durable.Delivery {
	return durable.Delivery{Seq: e.seq, Message: e.m, QoS: c.QoS, Retain: c.Retain, SubscriptionIDs: c.SubscriptionIDs}
}

// safeLocked counts one claim of an entry as safe and returns done when it was
// the last one.
func (s *Store) safeLocked(e *entry, c *claim) (done func(error)) {
	c.q.unsafe--
	e.unsafe--
	if e.unsafe > 0 {
		return nil
	}
	s.tail.remove(e)
	s.counts.safeByAck++
	done, e.done = e.done, nil
	return done
}

// Acked says that the recipient has acknowledged a QoS 1 delivery with success.
func (s *Store) Acked(q durable.QueueID, seq durable.Seq) {
	s.mu.Lock()
	done := s.finishLocked(s.queues[q], 1, seq)
	s.mu.Unlock()
	call(done, nil)
}

// AckedAll is Acked for many of one queue, as they come in one read from a
// socket: the lock is taken for many at a time, and whoever waits for them is told
// one right after the other.
func (s *Store) AckedAll(q durable.QueueID, seqs []durable.Seq) {
	var room [ackedAtOnce]func(error)
	for some := range slices.Chunk(seqs, ackedAtOnce) {
		calls := room[:0]
		s.mu.Lock()
		to := s.queues[q]
		for _, seq := range some {
			if done := s.finishLocked(to, 1, seq); done != nil {
				calls = append(calls, done)
			}
		}
		s.mu.Unlock()
		for _, done := range calls {
			done(nil)
		}
	}
}

// ackedAtOnce is how many acknowledgements are taken in before another goroutine
// may have the lock.
const ackedAtOnce = 64

// finishLocked ends a delivery; when that makes the message safe it returns
// what to call.
func (s *Store) finishLocked(q *queue, qos byte, seq durable.Seq) (done func(error)) {
	if q == nil {
		return nil
	}
	st := q.stream(qos)
	bytes := q.bytes
	full := len(st.out) >= s.opts.MaxUnfinished
	if !st.finish(seq) {
		return nil
	}
	s.countLocked(q, -1, q.bytes-bytes)
	if len(q.parked) > 0 {
		s.wakeCommitter()
	}
	if full && len(st.out) < s.opts.MaxUnfinished {
		st.wakeReader()
	}
	e := s.tail.get(seq)
	if e == nil {
		s.storedFinishedLocked(st, bytes-q.bytes)
		return nil
	}
	for i := range e.claims {
		c := &e.claims[i]
		if c.q != q || c.state != claimUnsafe {
			continue
		}
		if q.latest.comesBack() {
			c.state = claimKept
			s.storedFinishedLocked(st, e.size)
			return nil
		}
		c.state = claimFinished
		if c.inRow {
			s.storedFinishedLocked(st, e.size)
		} else {
			q.safeByAck++
		}
		return s.safeLocked(e, c)
	}
	return nil
}

// storedFinishedLocked notes that a delivery with a row has been finished: the
// cursor must become durable soon and the row may go.
func (s *Store) storedFinishedLocked(st *stream, size int64) {
	st.dirty = true
	st.q.latest.behind = st.q.lane.Latest
	s.spent.add(rowSize(size))
	s.unsaved++
	switch s.unsaved {
	case 1:
		s.unsavedSince = time.Now()
		s.wakeCommitter()
	case s.opts.MaxUnsavedAcks:
		s.wakeCommitter()
	}
}
