package storeforward

import (
	"time"

	"holdfast/broker/durable"
)

// Refused says that the recipient answered a delivery with a code of 0x80 or
// above (PUBACK for QoS 1, PUBREC for QoS 2): the delivery is finished, though
// that makes the message safe only with the next commit. An uplink's refused
// messages are kept as dead letters. done is called when this is durable; a
// QoS 2 packet id is free then.
func (s *Store) Refused(id durable.QueueID, seq durable.Seq, code byte, done func(error)) {
	s.mu.Lock()
	q, st, err := s.unfinishedLocked(id, seq)
	if st == nil {
		s.mu.Unlock()
		call(done, err)
		return
	}
	e := s.tail.get(seq)
	run := s.deadLetter(q, seq, code, e)
	if st.qos == 2 {
		s.finish2Locked(q, seq, run, done)
		s.mu.Unlock()
		return
	}
	finished := s.refuse1Locked(q, st, seq, e)
	if !finished {
		run = nil // it was finished before
	}
	s.opLocked(func(d *db) error {
		if run == nil {
			return nil
		}
		return run(d)
	}, nil, done)
	s.mu.Unlock()
}

// refuse1Locked finishes a QoS 1 delivery without making its message safe.
func (s *Store) refuse1Locked(q *queue, st *stream, seq durable.Seq, e *entry) bool {
	bytes := q.bytes
	if !st.finish(seq) {
		return false
	}
	s.countLocked(q, -1, q.bytes-bytes)
	if e == nil {
		s.storedFinishedLocked(st, bytes-q.bytes)
		return true
	}
	for i := range e.claims {
		if c := &e.claims[i]; c.q == q && c.state == claimUnsafe {
			late := q.latest.comesBack()
			if c.state = claimRefused; late {
				c.state = claimKept
			}
			if c.inRow || late {
				s.storedFinishedLocked(st, e.size)
			}
		}
	}
	return true
}

// deadLetter keeps a refused message of an uplink. e is its entry when it is
// not committed yet.
func (s *Store) deadLetter(q *queue, seq durable.Seq, code byte, e *entry) func(d *db) error {
	if !q.uplink || s.opts.MaxDeadLetters == 0 {
		return func(*db) error { return nil }
	}
	q = q.root()
	now := time.Now().UnixMicro()
	if q.deadLetters < s.opts.MaxDeadLetters {
		q.deadLetters++
	} else {
		q.drop("dead_letter") // the oldest one goes
	}
	most := int64(s.opts.MaxDeadLetters)
	return func(d *db) error {
		var err error
		if e != nil {
			payload := e.m.Payload
			if payload == nil {
				payload = []byte{}
			}
			err = d.exec("INSERT OR REPLACE INTO dead_letter (queue, seq, code, refused, topic, payload, properties, qos, received, source) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
				int64(q.id), int64(seq), int64(code), now, e.m.Topic, payload, e.m.Properties, int64(e.m.QoS), e.received, e.m.From)
		} else {
			err = d.exec(`INSERT OR REPLACE INTO dead_letter (queue, seq, code, refused, topic, payload, properties, qos, received, source)
				SELECT ?, seq, ?, ?, topic, payload, properties, qos, received, source FROM message WHERE seq = ?`,
				int64(q.id), int64(code), now, int64(seq))
		}
		if err != nil {
			return err
		}
		return d.exec("DELETE FROM dead_letter WHERE queue = ? AND seq NOT IN (SELECT seq FROM dead_letter WHERE queue = ? ORDER BY seq DESC LIMIT ?)",
			int64(q.id), int64(q.id), most)
	}
}

// Dropped finishes a delivery that can never be sent: it has expired, or is
// larger than the peer takes. It is counted by reason. done is called at once,
// or when it is durable for a QoS 2 delivery.
func (s *Store) Dropped(id durable.QueueID, seq durable.Seq, reason string, done func(error)) {
	s.mu.Lock()
	q, st, err := s.unfinishedLocked(id, seq)
	if st == nil {
		s.mu.Unlock()
		call(done, err)
		return
	}
	q.drop(reason)
	if st.qos == 2 {
		s.finish2Locked(q, seq, nil, done)
		s.mu.Unlock()
		return
	}
	safe := s.finishLocked(q, 1, seq)
	s.mu.Unlock()
	call(safe, nil)
	call(done, nil)
}

// unfinishedLocked returns the stream that has the delivery in hands; nil when
// it was finished before, which is no error, or the queue is gone, which is.
func (s *Store) unfinishedLocked(id durable.QueueID, seq durable.Seq) (*queue, *stream, error) {
	q := s.queues[id]
	if q == nil {
		return nil, nil, s.noQueueLocked()
	}
	return q, q.streamOf(seq), nil
}

// lockQueue takes the append lock and returns the queue. When there is none it
// gives the lock back, calls done with the reason, and returns nil.
func (s *Store) lockQueue(id durable.QueueID, done func(error)) *queue {
	s.mu.Lock()
	if q := s.queues[id]; q != nil {
		return q
	}
	err := s.noQueueLocked()
	s.mu.Unlock()
	call(done, err)
	return nil
}

// noQueueLocked is the error for a queue that is not there; after Close none is.
func (s *Store) noQueueLocked() error {
	if s.finished {
		return durable.ErrClosed
	}
	return durable.ErrNoQueue
}

// streamOf returns the stream that has the unfinished delivery in hands.
func (q *queue) streamOf(seq durable.Seq) *stream {
	for i := range q.streams {
		st := &q.streams[i]
		if j := st.find(seq); j >= 0 && !st.out[j].finished {
			return st
		}
	}
	return nil
}

// Sent gives QoS 2 deliveries the packet ids under which they will be sent; done
// is called when that is durable, and only then may they go out.
func (s *Store) Sent(id durable.QueueID, ids []durable.Sent, done func(error)) {
	q := s.lockQueue(id, done)
	if q == nil {
		return
	}
	st := q.stream(2)
	s.op2Locked(q, func(d *db) error {
		for _, x := range ids {
			if err := writeDelivery2(d, id, x.Seq, x.PacketID, stateSent); err != nil {
				return err
			}
		}
		return nil
	}, func() {
		for _, x := range ids {
			i := st.find(x.Seq)
			d2 := &delivery2{packetID: x.PacketID, state: stateSent, fresh: i < 0}
			if i >= 0 {
				d2.size = st.out[i].size
			}
			st.deliveries[x.Seq] = d2
			st.sentTo = max(st.sentTo, x.Seq)
		}
	}, done)
	s.mu.Unlock()
}

// Received says that PUBREC with success has come; PUBREL goes out on done.
func (s *Store) Received(id durable.QueueID, seq durable.Seq, done func(error)) {
	s.state2(id, seq, stateReleased, done)
}

// Completed says that PUBCOMP has come; the packet id is free on done.
func (s *Store) Completed(id durable.QueueID, seq durable.Seq, done func(error)) {
	s.state2(id, seq, stateDone, done)
}

func (s *Store) state2(id durable.QueueID, seq durable.Seq, state byte, done func(error)) {
	q := s.lockQueue(id, done)
	if q == nil {
		return
	}
	if state == stateDone {
		s.finish2Locked(q, seq, nil, done)
		s.mu.Unlock()
		return
	}
	st := q.stream(2)
	s.op2Locked(q, func(d *db) error {
		return d.exec("UPDATE delivery2 SET state = ? WHERE queue = ? AND seq = ? AND state = ?",
			int64(state), int64(id), int64(seq), int64(stateSent))
	}, func() {
		if d2 := st.deliveries[seq]; d2 != nil && d2.state == stateSent {
			d2.state = state
		}
	}, done)
	s.mu.Unlock()
}

// finish2Locked ends a QoS 2 delivery when that is durable: until then it would
// come again with its old state. Its row stays until the cursor has passed it,
// so that it never comes again though older ones are unfinished.
func (s *Store) finish2Locked(q *queue, seq durable.Seq, also func(d *db) error, done func(error)) {
	st := q.stream(2)
	var size uint32
	if i := st.find(seq); i >= 0 {
		size = st.out[i].size
	} else if d2 := st.deliveries[seq]; d2 != nil {
		size = d2.size
	}
	s.op2Locked(q, func(d *db) error {
		if also != nil {
			if err := also(d); err != nil {
				return err
			}
		}
		return d.exec(`INSERT INTO delivery2 (queue, seq, packet_id, state) VALUES (?, ?, 0, ?)
			ON CONFLICT (queue, seq) DO UPDATE SET state = excluded.state`, int64(q.id), int64(seq), int64(stateDone))
	}, func() {
		if d2 := st.deliveries[seq]; d2 != nil {
			d2.state = stateDone
		}
		if st.find(seq) >= 0 {
			s.finishLocked(q, 2, seq) // it has left the tail: there is nobody to tell
		} else {
			// Another recipient has been attached meanwhile and reads it
			// only now: it must not come again.
			s.finishUnreadLocked(st, seq, size)
		}
	}, done)
}

// finishUnreadLocked ends a delivery with a row that nobody has in hands.
func (s *Store) finishUnreadLocked(st *stream, seq durable.Seq, size uint32) {
	if !st.finishUnread(seq, size) {
		return
	}
	s.countLocked(st.q, -1, -int64(size))
	s.storedFinishedLocked(st, int64(size))
}

// op2Locked queues a change of the QoS 2 state of a queue.
func (s *Store) op2Locked(q *queue, run func(d *db) error, apply func(), done func(error)) {
	q.ops++
	round := q.stream(2).round
	s.opLocked(run, func() {
		q.ops--
		if s.queues[q.id] != q {
			return // it has ended, and is no longer counted
		}
		apply()
		st := q.stream(2)
		if st.round != round && st.hold > 0 {
			if st.hold--; st.hold == 0 {
				st.wakeReader()
			}
		}
	}, done)
}

// Release says that PUBREL has come for an inbound packet id; PUBCOMP goes out
// on done.
func (s *Store) Release(id durable.QueueID, packetID uint16, done func(error)) {
	q := s.lockQueue(id, done)
	if q == nil {
		return
	}
	s.opLocked(func(d *db) error {
		return d.exec("DELETE FROM inbound WHERE queue = ? AND packet_id = ?", int64(id), int64(packetID))
	}, func() { delete(q.inbound, packetID) }, done)
	s.mu.Unlock()
}
