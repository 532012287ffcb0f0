package storeforward

import (
	"context"
	"slices"
	"time"

	"holdfast/broker/durable"
)

// OpenUplink returns the first queue of an uplink, made when there is none, and the
// inbound QoS 2 packet ids whose PUBREL has not come. A new queue is durable when
// OpenUplink returns, or, while the disk fails, with the first commit that works,
// which is also the first that can have a message for it.
func (s *Store) OpenUplink(name string) (id durable.QueueID, received []uint16, err error) {
	s.mu.Lock()
	if q := s.byUplink[name]; q != nil {
		defer s.mu.Unlock()
		return q.id, q.receivedIDs(), nil
	}
	if s.closing {
		s.mu.Unlock()
		return 0, nil, durable.ErrClosed
	}
	if q := s.queues[s.nameless]; q != nil && q.uplink && s.nameless != 0 {
		defer s.mu.Unlock()
		s.adoptLocked(q, name)
		return q.id, q.receivedIDs(), nil
	}
	q := s.newUplink(s.nextQueue, name)
	s.nextQueue++
	for i := range q.streams {
		q.streams[i].cursor = s.seq
	}
	cursor := int64(s.seq)
	durably := make(chan struct{})
	s.opLocked(func(d *db) error {
		if err := d.exec("INSERT OR REPLACE INTO uplink (queue, name, state) VALUES (?, ?, '')", int64(q.id), name); err != nil {
			return err
		}
		return insertQueue(d, q.id, cursor)
	}, nil, func(error) { s.goOn(durably) })
	s.impatient = append(s.impatient, durably)
	failing := s.failing
	s.mu.Unlock()
	if !failing {
		<-durably
	}
	return q.id, nil, nil
}

// adoptLocked gives a queue whose name was lost to the uplink that has none.
func (s *Store) adoptLocked(q *queue, name string) {
	s.log.Warn("queue without a name given to the uplink that had none", "uplink", name, "was", q.name)
	delete(s.byUplink, q.name)
	q.name, s.byUplink[name], s.nameless = name, q, 0
	for _, lq := range q.all() {
		lq.name = name
	}
	s.opLocked(func(d *db) error {
		return d.exec("UPDATE uplink SET name = ? WHERE queue = ?", name, int64(q.id))
	}, nil, nil)
}

// goOn ends the wait of one who waits for a commit, whether or not it has come.
func (s *Store) goOn(durably chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.impatient, durably); i >= 0 {
		s.impatient = slices.Delete(s.impatient, i, i+1)
		close(durably)
	}
}

// Uplinks returns the names of the uplinks that have a queue, so that those no
// longer configured can be shown or ended.
func (s *Store) Uplinks() map[string]durable.QueueID {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := make(map[string]durable.QueueID, len(s.byUplink))
	for name, q := range s.byUplink {
		names[name] = q.id
	}
	return names
}

// ResetUplink says that the peer has no session any more. In one transaction the
// inbound ids are erased, released deliveries finished, and sent ones queued as
// new ones without an id and counted as possible duplicates, in all lanes. Call it
// before Attach.
func (s *Store) ResetUplink(id durable.QueueID, done func(error)) {
	q := s.lockQueue(id, done)
	if q == nil {
		return
	}
	lanes := slices.Clone(q.all())
	for i, lq := range lanes {
		last := func(error) {}
		if i == len(lanes)-1 {
			last = done // all of them are in one transaction
		}
		s.op2Locked(lq, func(d *db) error { return resetQueue(d, lq.id) }, func() { s.resetQueueLocked(lq) }, last)
	}
	s.mu.Unlock()
}

func resetQueue(d *db, id durable.QueueID) error {
	if err := d.exec("DELETE FROM inbound WHERE queue = ?", int64(id)); err != nil {
		return err
	}
	if err := d.exec("UPDATE delivery2 SET state = ? WHERE queue = ? AND state = ?", int64(stateDone), int64(id), int64(stateReleased)); err != nil {
		return err
	}
	return d.exec("DELETE FROM delivery2 WHERE queue = ? AND state = ?", int64(id), int64(stateSent))
}

func (s *Store) resetQueueLocked(q *queue) {
	clear(q.inbound)
	st := q.stream(2)
	for seq, d2 := range st.deliveries {
		switch d2.state {
		case stateReleased:
			d2.state = stateDone
			s.finishUnreadLocked(st, seq, d2.size)
		case stateSent:
			delete(st.deliveries, seq)
			if !d2.fresh || st.find(seq) >= 0 {
				q.possibleDuplicates++
			}
		}
	}
}

// SessionState returns the uplink's own mark, as last set.
func (s *Store) SessionState(id durable.QueueID) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if q := s.queues[id]; q != nil {
		return q.state
	}
	return ""
}

// SetSessionState keeps the uplink's mark; it is empty in a database that was
// salvaged.
func (s *Store) SetSessionState(id durable.QueueID, state string, done func(error)) {
	q := s.lockQueue(id, done)
	if q == nil {
		return
	}
	q.state = state
	s.opLocked(func(d *db) error {
		return d.exec("UPDATE uplink SET state = ? WHERE queue = ?", state, int64(id))
	}, nil, done)
	s.mu.Unlock()
}

// StartNumber is the number of this start of the gateway; it grows by one with
// each Open.
func (s *Store) StartNumber() uint64 { return s.clock.number }

// ClockFloor is a time that has certainly passed: the last that the run before
// knew from a synchronised clock. Zero when it knew none.
func (s *Store) ClockFloor() time.Time { return s.clock.floor }

// Backlog returns how much a queue holds that is not finished; for the first queue
// of an uplink that of all its lanes.
func (s *Store) Backlog(id durable.QueueID) (messages, bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if q := s.queues[id]; q != nil {
		if q.base != nil {
			return q.messages, q.bytes
		}
		for _, lq := range q.all() {
			messages += lq.messages
			bytes += lq.bytes
		}
	}
	return messages, bytes
}

// Held is how many deliveries are not finished, of all queues together, and
// their bytes.
func (s *Store) Held() (messages, bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts.messages, s.counts.bytes
}

// DeadLetters calls fn with the messages that the peer of an uplink has refused,
// oldest first.
func (s *Store) DeadLetters(ctx context.Context, id durable.QueueID, fn func(DeadLetter) error) error {
	return s.read(ctx, func(d *db) error { return deadLetters(ctx, d, &s.clock, int64(id), fn) })
}
