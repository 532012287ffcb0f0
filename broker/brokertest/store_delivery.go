package brokertest

import (
	"context"

	"holdfast/broker/durable"
)

// Attach implements broker.Store.
func (s *MemoryStore) Attach(id durable.QueueID, r durable.Recipient) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queues[id]
	if q == nil {
		return durable.ErrNoQueue
	}
	q.detach()
	q.r = r
	return nil
}

func (q *queue) detach() {
	q.r = nil
	for i := range q.streams {
		q.streams[i].live, q.streams[i].pos = false, 0
	}
}

// Detach implements broker.Store.
func (s *MemoryStore) Detach(id durable.QueueID, r durable.Recipient) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if q := s.queues[id]; q != nil && q.r == r {
		q.detach()
	}
}

// Read implements broker.Store.
func (s *MemoryStore) Read(ctx context.Context, id durable.QueueID, qos byte, most, maxBytes int) ([]durable.Delivery, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queues[id]
	if q == nil {
		return nil, false, durable.ErrNoQueue
	}
	if s.reading != nil {
		return nil, false, s.reading
	}
	st := &q.streams[qos-1]
	var ds []durable.Delivery
	size := 0
	for ; st.pos < len(st.records) && len(ds) < most; st.pos++ {
		r := st.records[st.pos]
		if qos == 2 && !r.entry.committed {
			return ds, false, ctx.Err()
		}
		if r.state == stateFinished {
			continue
		}
		if size += r.entry.m.Size(); len(ds) > 0 && size > maxBytes {
			break
		}
		ds = append(ds, r.delivery())
	}
	if len(ds) == 0 {
		st.live = true
	}
	return ds, st.live, ctx.Err()
}

// finishLocked ends a delivery; a message all of whose claims ended is safe.
func (s *MemoryStore) finishLocked(q *queue, seq durable.Seq) *record {
	r := q.bySeq[seq]
	if r == nil {
		return nil
	}
	delete(q.bySeq, seq)
	r.state = stateFinished
	r.entry.unsafe--
	st := &q.streams[r.claim.QoS-1]
	for len(st.records) > 0 && st.records[0].state == stateFinished {
		st.records = st.records[1:]
		st.pos = max(0, st.pos-1)
	}
	return r
}

// Acked implements broker.Store: a message that all recipients have
// acknowledged is safe before any commit.
func (s *MemoryStore) Acked(id durable.QueueID, seq durable.Seq) {
	s.mu.Lock()
	var done func(error)
	if q := s.queues[id]; q != nil {
		r := s.finishLocked(q, seq)
		if r != nil && r.entry.unsafe == 0 && !r.entry.safe && !r.entry.m.Retain && r.entry.from == (durable.Origin{Queue: r.entry.from.Queue}) {
			r.entry.safe = true
			done = r.entry.done
		}
	}
	s.mu.Unlock()
	if done != nil {
		done(nil)
	}
}

// Refused implements broker.Store.
func (s *MemoryStore) Refused(q durable.QueueID, seq durable.Seq, _ byte, done func(error)) {
	s.change(q, func(q *queue) { s.finishLocked(q, seq) }, done)
}

// Dropped implements broker.Store.
func (s *MemoryStore) Dropped(q durable.QueueID, seq durable.Seq, reason string, done func(error)) {
	s.change(q, func(q *queue) {
		q.dropped[reason]++
		s.finishLocked(q, seq)
	}, done)
}

// Sent implements broker.Store.
func (s *MemoryStore) Sent(q durable.QueueID, ids []durable.Sent, done func(error)) {
	s.change(q, func(q *queue) {
		for _, x := range ids {
			if r := q.bySeq[x.Seq]; r != nil {
				r.packetID, r.state = x.PacketID, stateSent
			}
		}
	}, done)
}

// Received implements broker.Store.
func (s *MemoryStore) Received(q durable.QueueID, seq durable.Seq, done func(error)) {
	s.change(q, func(q *queue) {
		if r := q.bySeq[seq]; r != nil {
			r.state = stateReleased
		}
	}, done)
}

// Completed implements broker.Store.
func (s *MemoryStore) Completed(q durable.QueueID, seq durable.Seq, done func(error)) {
	s.change(q, func(q *queue) { s.finishLocked(q, seq) }, done)
}

// Release implements broker.Store.
func (s *MemoryStore) Release(q durable.QueueID, packetID uint16, done func(error)) {
	s.change(q, func(q *queue) { delete(q.received, packetID) }, done)
}
