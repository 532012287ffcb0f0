package storeforward

import (
	"slices"
	"time"

	"holdfast/broker/durable"
)

// The committer and its neighbours.
//
//	 any goroutine                any goroutine           recipient's goroutine
//	   Append, Subscribe, ...       Acked, Received, ...    Read
//	      |                            |                     |  rows: on a reader
//	      |  under the append lock     |                     |  connection; then
//	      v                            v                     v  the tail
//	 +----------------------- append lock -----------------------+
//	 | tail (entries not safe) | ops | streams | counters        |
//	 +-----------------------------------------------------------+
//	      ^  take: what is due            ^  settle: safe, offer QoS 2, wake
//	      |                               |
//	 [committer, one goroutine, owns the writing connection]
//	      wait -> take -> BEGIN .. COMMIT (fsync) -> settle -> done(nil), unlocked
//	                          |
//	                          +- failed: reopen, checkpoint, look what landed,
//	                             settle or give back, back off
//	      | tend
//	      v
//	 [keeper] passive checkpoints and a quick check, on its own connection

// batch is what one transaction makes durable: everything appended and changed
// up to last.
type batch struct {
	last    durable.Seq
	entries []*entry // not safe when taken, in order
	rows    int      // of them that are written
	newSets []*claimset
	ops     []*op
	cursors []cursorWrite
	deletes []deletion
	// deleteAll: no row on disk is needed, and the batch has none.
	deleteAll bool
	dropSets  []*claimset
	dropped   []droppedCount
	mark      durable.Seq // new reservation of sequence numbers; 0 is none
	more      bool        // not everything deletable fits
	probe     bool        // write the clock whatever else there is
	clock     int64       // the clock written, 0 for none
}

type droppedCount struct {
	q      *queue
	counts map[string]uint64
}

type cursorWrite struct {
	st     *stream
	cursor durable.Seq
}

// deletion of the rows of a set after from, up to to.
type deletion struct {
	set      *claimset
	from, to durable.Seq
	// deleted rows, and how far it got.
	deleted int64
	reached durable.Seq
}

func (b *batch) empty() bool {
	return len(b.entries) == 0 && len(b.ops) == 0 && len(b.cursors) == 0 && len(b.deletes) == 0 && !b.deleteAll &&
		len(b.dropSets) == 0 && b.mark == 0
}

// seqBlock is how many sequence numbers are reserved at once; a new block is
// reserved when half of one is left, so it costs nothing to speak of.
const seqBlock = 1 << 20

// commitLoop is the committer goroutine.
func (s *Store) commitLoop() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		s.mu.Lock()
		now := time.Now()
		if calls := s.unparkLocked(); len(calls) > 0 {
			s.mu.Unlock()
			for _, done := range calls {
				call(done, nil)
			}
			continue
		}
		if damage := s.damage; damage != nil && !s.closing {
			s.mu.Unlock()
			if !s.repairOrBackOff(damage) {
				s.closeErr = s.finish()
				return
			}
			continue
		}
		agesWait := s.agesLocked(now)
		clockWait, clock := s.clockDueLocked(now)
		wait, due := s.dueLocked(now)
		wait, due = min(wait, clockWait, agesWait), due || clock
		var b *batch
		switch {
		case due:
			b = s.takeLocked(now)
			// All of it may have been acknowledged meanwhile. While the disk
			// fails something is written all the same: only a commit shows
			// that it works again.
			if b.probe = s.failing || clock; b.empty() && !b.probe {
				s.committed = max(s.committed, b.last)
				s.mu.Unlock()
				continue
			}
		case s.closing:
			s.mu.Unlock()
			s.closeErr = s.finish()
			return
		}
		s.mu.Unlock()
		if b != nil {
			s.lastCommit = now
			if !s.commitOrHeal(b) {
				s.closeErr = s.finish()
				return
			}
			continue
		}
		s.restoreReserve()
		if s.trim() {
			continue
		}
		timer.Reset(max(0, min(wait, s.trimIn())))
		select {
		case <-s.wake:
		case <-timer.C:
		}
	}
}

// dueLocked says whether a commit is due, else how long it may wait.
func (s *Store) dueLocked(now time.Time) (wait time.Duration, due bool) {
	wait, due = s.wantedLocked(now)
	wait = min(wait, s.reserveWaitLocked())
	rest := s.lastCommit.Add(s.opts.MinCommitInterval).Sub(now)
	if rest <= 0 || s.closing || s.tail.bytes > s.opts.MaxUnsafeBytes {
		return wait, due
	}
	if due {
		return rest, false
	}
	return max(wait, rest), false
}

// markDueLocked says whether numbers must be reserved. That is a commit of its own,
// which takes along nothing that could still be acknowledged: P5.
func (s *Store) markDueLocked() bool { return s.seq+seqBlock/2 > s.mark }

// wantedLocked is dueLocked as if commits cost nothing.
func (s *Store) wantedLocked(now time.Time) (wait time.Duration, due bool) {
	wait = time.Hour
	switch {
	case s.commitNow, s.tail.bytes > s.opts.MaxUnsafeBytes, s.unsaved >= s.opts.MaxUnsavedAcks, s.markDueLocked():
		return 0, true
	case s.closing && (s.tail.len() > 0 || s.unsaved > 0 || len(s.ops) > 0):
		return 0, true
	}
	if e := s.tail.first(); e != nil {
		wait = min(wait, e.at.Add(s.opts.CommitWindow).Sub(now))
	}
	if s.unsaved > 0 {
		wait = min(wait, s.unsavedSince.Add(s.opts.CommitWindow).Sub(now))
	}
	for _, since := range s.late {
		wait = min(wait, since.Add(s.opts.CommitWindow/2).Sub(now))
	}
	wait = min(wait, s.deleteDueLocked(now))
	if !s.lazySince.IsZero() {
		wait = min(wait, s.lazySince.Add(s.opts.CommitWindow).Sub(now))
	}
	return wait, wait <= 0
}

// tailDueLocked says whether what is not safe goes with the commit that is due.
// A commit that only keeps the books of rows written before leaves young
// messages to their recipients: else each would write those that are on their
// way just then, their acknowledgements would ask for the next commit, and a
// healthy link would never be without (P5).
func (s *Store) tailDueLocked(now time.Time) bool {
	e := s.tail.first()
	for _, since := range s.late {
		if now.Sub(since) >= s.opts.CommitWindow/2 {
			return true
		}
	}
	return e == nil || s.commitNow || s.closing || s.failing || len(s.ops) > 0 ||
		s.tail.bytes > s.opts.MaxUnsafeBytes || now.Sub(e.at) >= s.opts.CommitWindow
}

// takeLocked takes everything that is not safe, or the books alone.
func (s *Store) takeLocked(now time.Time) *batch {
	if !s.tailDueLocked(now) {
		b := &batch{last: s.committed}
		s.takeRestLocked(b)
		return b
	}
	b := &batch{last: s.seq, ops: s.ops}
	s.ops, s.commitNow, s.lazySince = nil, false, time.Time{}
	clear(s.late)
	for _, o := range b.ops {
		o.taken = true
	}
	var claims []durable.Claim
	var last *claimset
	b.entries = make([]*entry, 0, s.tail.len())
	s.tail.after(0, func(e *entry) bool {
		b.entries = append(b.entries, e)
		claims = claims[:0]
		for i := range e.claims {
			c := &e.claims[i]
			if c.state != claimUnsafe && c.state != claimKept || s.queues[c.Queue] != c.q {
				continue
			}
			c.inRow = true
			claims = append(claims, c.Claim)
			if c.QoS == 2 {
				s.reserveLocked(c)
			}
		}
		if len(claims) == 0 {
			return true
		}
		if last == nil || !sameClaims(last.claims, claims) {
			last = s.internLocked(claims)
		}
		e.set, last.used = last, b.last
		b.rows++
		if !last.stored {
			last.stored = true
			b.newSets = append(b.newSets, last)
		}
		return true
	})
	s.takeRestLocked(b)
	return b
}

// takeRestLocked takes what goes with a commit beside messages and changes.
func (s *Store) takeRestLocked(b *batch) {
	if s.markDueLocked() {
		b.mark = s.seq + seqBlock
	}
	s.takeCursorsLocked(b)
	if !b.empty() || b.probe { // alone they are not worth a commit
		for _, q := range s.queues {
			if q.droppedNew != nil {
				b.dropped = append(b.dropped, droppedCount{q, q.droppedNew})
				q.droppedNew = nil
			}
		}
	}
}

// sameClaims is what almost always holds for two messages in a row.
func sameClaims(a, b []durable.Claim) bool {
	return slices.EqualFunc(a, b, func(a, b durable.Claim) bool {
		return a.Queue == b.Queue && a.QoS == b.QoS && a.Retain == b.Retain && slices.Equal(a.SubscriptionIDs, b.SubscriptionIDs)
	})
}

// reserveLocked asks the recipient of a live QoS 2 stream for the packet id to
// commit with the message.
func (s *Store) reserveLocked(c *claim) {
	st := c.q.stream(2)
	st.inCommit = true
	if !st.live {
		return
	}
	id, ok := uint16(0), false
	if len(st.out) < s.opts.MaxUnfinished {
		id, ok = c.q.r.Reserve()
	} else {
		st.waiting = true // it reads when the oldest are finished
	}
	if !ok {
		st.live = false
		return
	}
	c.reserved, c.round = id, st.round
}

// takeCursorsLocked adds cursors that are behind and rows that nobody needs.
func (s *Store) takeCursorsLocked(b *batch) {
	if s.unsaved > 0 {
		for _, q := range s.queues {
			for i := range q.streams {
				if st := &q.streams[i]; st.dirty {
					st.dirty = false
					b.cursors = append(b.cursors, cursorWrite{st: st, cursor: st.cursor})
				}
			}
		}
		s.unsaved = 0
	}
	s.takeDeletesLocked(b)
}

// uselessLocked says whether a set without rows may be forgotten: no message
// will have it again, or there are very many sets.
func (s *Store) uselessLocked(set *claimset) bool {
	const manySets = 4096
	if len(s.sets) > manySets {
		return true
	}
	return slices.ContainsFunc(set.claims, func(c durable.Claim) bool { return s.queues[c.Queue] == nil })
}

// settle makes the effects of a durable batch visible, under the append lock,
// then calls back.
func (s *Store) settle(b *batch) {
	var calls []func(error)
	s.mu.Lock()
	s.counts.commits++
	s.counts.written += uint64(b.rows)
	s.committed = max(s.committed, b.last)
	s.mark = max(s.mark, b.mark)
	for _, o := range b.ops {
		if o.apply != nil {
			o.apply()
		}
		if o.done != nil {
			calls = append(calls, o.done)
		}
	}
	s.settleDeletesLocked(b)
	for _, c := range b.cursors {
		c.st.q.latest.behind = c.st.q.lane.Latest && (c.st.dirty || c.st.finishedLate())
	}
	for _, set := range b.dropSets {
		delete(s.sets, set.key)
		delete(s.setsByID, set.id)
	}
	s.settleLatestLocked(b.entries)
	wake := s.settleEntriesLocked(b, &calls)
	for _, st := range wake {
		st.inCommit = false
		st.wakeReader()
	}
	s.mu.Unlock()
	for _, done := range calls {
		done(nil)
	}
}

// settleEntriesLocked makes the entries of the batch safe and offers their
// QoS 2 deliveries. It returns the streams that had some.
func (s *Store) settleEntriesLocked(b *batch, calls *[]func(error)) (streams []*stream) {
	for _, e := range b.entries {
		if e.set != nil {
			e.set.rows++
			e.set.last = e.seq
			s.spent.stored++
			s.spent.storedBytes += rowSize(e.size)
		}
		for i := range e.claims {
			c := &e.claims[i]
			if c.inRow {
				c.q.committed++
			}
			if c.inRow && c.QoS == 2 {
				st := c.q.stream(2)
				if !slices.Contains(streams, st) {
					streams = append(streams, st)
				}
				s.offer2Locked(e, c)
			}
			if c.state != claimFinished {
				c.q.unsafe--
			}
		}
		if e.from.PacketID != 0 {
			if q := s.queues[e.from.Queue]; q != nil {
				q.inbound[e.from.PacketID] = struct{}{}
			}
		}
		if e.unsafe > 0 {
			e.unsafe = 0
			s.tail.remove(e)
			if e.done != nil {
				*calls = append(*calls, e.done)
				e.done = nil
			}
		}
	}
	return streams
}

// offer2Locked hands over a committed QoS 2 delivery whose id was reserved.
func (s *Store) offer2Locked(e *entry, c *claim) {
	if c.reserved == 0 {
		return
	}
	id := c.reserved
	c.reserved = 0
	if s.queues[c.Queue] != c.q {
		return // it has ended
	}
	st := c.q.stream(2)
	st.sentTo = max(st.sentTo, e.seq)
	st.deliveries[e.seq] = &delivery2{packetID: id, state: stateSent, fresh: true, size: uint32(e.size)}
	// Not to another recipient, and not past one that was not taken: those
	// are read, with the id they have.
	if c.q.r == nil || st.round != c.round || st.refusedAt == s.committed {
		return
	}
	d := s.deliveryLocked(e, c)
	d.PacketID = id
	if !c.q.r.Offer(d) {
		st.live = false
		st.refusedAt = s.committed
		return
	}
	st.handOut(e.seq, e.received, e.size)
}
