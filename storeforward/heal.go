package storeforward

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"holdfast/broker/durable"
)

// commitOrHeal writes the batch. When that fails it heals the database before
// anything else is written, and the batch is either settled (it had landed after
// all) or given back to be taken again. It returns false when the store is
// closing and the disk still fails.
func (s *Store) commitOrHeal(b *batch) bool {
	if s.opts.faults.doneSoon {
		s.acknowledgeSoon(b)
	}
	err := s.write(b)
	if err == nil {
		s.settle(b)
		s.healed()
		s.afterCommit(len(b.deletes) > 0 || b.deleteAll)
		return true
	}
	for {
		if unusable(err) {
			s.giveBack(b)
			return s.repairOrBackOff(err)
		}
		s.failed(err)
		if !s.releaseReserve(err) && !s.backOff() {
			s.giveBack(b)
			return false
		}
		var landed bool
		if landed, err = s.reopen(b); err != nil {
			continue
		}
		if landed {
			s.settle(b)
		} else {
			s.giveBack(b)
		}
		return true
	}
}

// acknowledgeSoon is what a store must never do: it says that the batch is safe
// before it is written.
func (s *Store) acknowledgeSoon(b *batch) {
	var calls []func(error)
	s.mu.Lock()
	said := func(error) {}
	for _, e := range b.entries {
		if e.done != nil {
			calls, e.done = append(calls, e.done), said
		}
	}
	for _, o := range b.ops {
		if o.done != nil {
			calls, o.done = append(calls, o.done), said
		}
	}
	s.mu.Unlock()
	for _, done := range calls {
		done(nil)
	}
}

// repairOrBackOff replaces a damaged database, and waits when that fails. It returns
// false when the store is closing and the disk still fails.
func (s *Store) repairOrBackOff(cause error) bool {
	err := s.repair(cause)
	if err == nil {
		s.healed()
		return true
	}
	s.mu.Lock()
	if s.damage == nil {
		s.damage = cause // nothing is committed to what a repair has left unfinished
	}
	s.mu.Unlock()
	s.failed(err)
	return s.releaseReserve(err) || s.backOff()
}

// failed notes an error of a commit; it is logged when the state changes.
func (s *Store) failed(err error) {
	s.mu.Lock()
	first := !s.failing
	s.failing = true
	for _, c := range s.impatient {
		close(c)
	}
	s.impatient = nil
	s.counts.commitErrors++
	s.counts.lastErr, s.counts.lastErrAt = err.Error(), time.Now()
	s.mu.Unlock()
	if first {
		s.log.Error("commit failed", "err", err)
	}
}

func (s *Store) healed() {
	s.attempt = 0
	s.mu.Lock()
	was := s.failing
	s.failing = false
	s.mu.Unlock()
	if was {
		s.log.Info("disk works again")
	}
}

// backOff waits before the next attempt. It returns false when the store is
// closing and has had a last attempt.
func (s *Store) backOff() bool {
	delay := s.opts.RetryMax
	if s.attempt < 16 {
		delay = min(delay, s.opts.RetryMin<<s.attempt)
	}
	delay += time.Duration(rand.Int64N(int64(delay)/4 + 1)) //nolint:gosec // jitter is no secret
	s.attempt++
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-s.stop:
		s.lastTries++
		return s.lastTries <= 2
	}
}

// reopen gets the writing connection into a known state after a failed commit
// and says whether the batch is on disk.
//
// A commit that failed may have landed: when the write or the fsync of its last
// frame reports an error though the frame is in the log, recovery of the log
// brings the transaction back. So nothing of it may be withdrawn or written
// again before the log has been checkpointed and emptied (TRUNCATE), which
// settles it, and the database has been asked.
func (s *Store) reopen(b *batch) (landed bool, err error) {
	if s.single {
		s.connMu.Lock()
		defer s.connMu.Unlock()
	}
	if s.spare != nil {
		if err := s.leaveSpare(); err != nil {
			err = fmt.Errorf("open store: %w", err)
			s.spare.cause = err
			return false, err
		}
		return false, nil
	}
	if errors.Is(s.moved(), errMoved) {
		if err := s.bringBack(); err != nil {
			return false, fmt.Errorf("reopen: %w", err)
		}
	}
	if s.w != nil {
		// Its state is what is in doubt: an error here says nothing new.
		if err := s.w.close(); err != nil {
			s.log.Debug("database closed after a failed commit", "err", err)
		}
		s.w = nil
	}
	d, err := s.openWriter()
	if err != nil {
		return false, fmt.Errorf("reopen: %w", err)
	}
	if err := checkpoint(d, "TRUNCATE"); err != nil {
		return false, errors.Join(fmt.Errorf("reopen: %w", err), d.close())
	}
	if landed, err = hasLanded(d, b); err != nil {
		return false, errors.Join(fmt.Errorf("reopen: %w", err), d.close())
	}
	s.w = d
	return landed, nil
}

// hasLanded looks for a row that only this batch can have written. A batch
// without one can be written twice without harm.
func hasLanded(d *db, b *batch) (bool, error) {
	for _, e := range b.entries {
		if e.set != nil {
			n, err := d.queryInt("SELECT count(*) FROM message WHERE seq = ?", int64(e.seq))
			return n > 0, err
		}
		if e.from.PacketID != 0 {
			n, err := d.queryInt("SELECT count(*) FROM inbound WHERE queue = ? AND packet_id = ? AND seq = ?",
				int64(e.from.Queue), int64(e.from.PacketID), int64(e.seq))
			return n > 0, err
		}
	}
	return false, nil
}

// checkpoint copies the log into the database.
func checkpoint(d *db, mode string) error {
	busy := false
	err := d.query(context.Background(), func(row []driver.Value) error {
		busy = integer(row[0]) != 0
		return nil
	}, "PRAGMA wal_checkpoint("+mode+")")
	switch {
	case err != nil:
		return fmt.Errorf("checkpoint: %w", err)
	case busy && mode != "PASSIVE":
		return errors.New("checkpoint: the database is busy")
	default:
		return nil
	}
}

// giveBack returns a batch that is certainly not on disk. Inbound QoS 2
// messages are withdrawn, so that the publisher's resend is a new one.
func (s *Store) giveBack(b *batch) {
	var calls []func(error)
	s.mu.Lock()
	for _, o := range b.ops {
		o.taken = false
	}
	s.ops = append(b.ops, s.ops...)
	for _, set := range b.newSets {
		set.stored = false
	}
	for _, set := range b.dropSets {
		set.stored = false // or it is: then its claims are written once more
	}
	for _, x := range b.dropped {
		for reason, n := range x.q.droppedNew {
			x.counts[reason] += n
		}
		x.q.droppedNew = x.counts
	}
	for _, c := range b.cursors {
		c.st.dirty = true
		s.unsaved = max(s.unsaved, 1)
	}
	if b.deleteAll || len(b.deletes) > 0 || len(b.dropSets) > 0 {
		s.spent.look, s.spent.now = true, true
	}
	for _, e := range b.entries {
		e.set = nil
		for i := range e.claims {
			s.giveBackClaimLocked(&e.claims[i])
		}
		if e.unsafe > 0 && e.from.PacketID != 0 {
			calls = append(calls, s.withdrawLocked(e))
		}
	}
	s.hurryLocked()
	s.mu.Unlock()
	for _, done := range calls {
		call(done, fmt.Errorf("commit failed: %w", durable.ErrFull))
	}
}

func (s *Store) giveBackClaimLocked(c *claim) {
	c.inRow = false
	st := c.q.stream(c.QoS)
	if c.reserved != 0 && c.q.r != nil && st.round == c.round {
		c.q.r.Unreserve(c.reserved)
	}
	c.reserved = 0
	st.inCommit = false
	if c.QoS == 2 {
		st.wakeReader()
	}
}

// withdrawLocked takes an entry back. A QoS 1 delivery that has been offered
// stays out: it may come twice, which QoS 1 allows.
func (s *Store) withdrawLocked(e *entry) (done func(error)) {
	s.counts.withdrawn++
	for i := range e.claims {
		c := &e.claims[i]
		if c.state == claimFinished {
			continue
		}
		c.q.unsafe--
		if c.state == claimRefused || c.state == claimKept || s.queues[c.Queue] != c.q {
			continue // no longer counted
		}
		s.countLocked(c.q, -1, -e.size)
		if !c.q.stream(c.QoS).finish(e.seq) {
			c.q.messages--
			c.q.bytes -= e.size
		}
	}
	e.unsafe = 0
	s.tail.remove(e)
	done, e.done = e.done, nil
	return done
}
