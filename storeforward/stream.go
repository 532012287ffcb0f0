package storeforward

import (
	"context"
	"database/sql/driver"
	"errors"
	"strconv"

	"holdfast/broker/durable"
	"holdfast/broker/message"
)

// Attach makes r the running side of the queue, in place of the one before. Both
// streams catch up from the oldest delivery that is not finished: QoS 1 that was
// not acknowledged comes again, QoS 2 in flight with its packet id. The recipient
// reads until it is told that it is live. It must not Read after its Detach.
func (s *Store) Attach(id durable.QueueID, r durable.Recipient) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queues[id]
	switch {
	case s.closing:
		return durable.ErrClosed
	case q == nil:
		return durable.ErrNoQueue
	}
	q.r = r
	s.resetLocked(q)
	return nil
}

// Detach says that r has stopped. What it has not acknowledged is committed at
// once. Nothing happens when another recipient has been attached since.
func (s *Store) Detach(id durable.QueueID, r durable.Recipient) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queues[id]
	if q == nil || q.r == nil || q.r != r {
		return
	}
	q.r = nil
	for i := range q.streams {
		st := &q.streams[i]
		st.live, st.waiting = false, false
		s.forgetAheadLocked(st)
		st.round++
	}
	if q.unsafe > 0 {
		s.hurryLocked()
	}
}

func (s *Store) resetLocked(q *queue) {
	for i := range q.streams {
		s.forgetAheadLocked(&q.streams[i])
		q.streams[i].reset()
	}
	if q.unsafe > 0 {
		s.hurryLocked()
	}
}

// Read returns the next deliveries of a stream that is catching up, in order, at
// most limit and about maxBytes of them (at least one). None and live: it has
// caught up and is offered what follows. None and not live: something is on its
// way, Wake tells when. A QoS 2 delivery without a packet id must be given one
// by Sent before it goes out; one with a packet id has it for good, also when it
// comes from Reserve and has not been sent (Resend false).
func (s *Store) Read(ctx context.Context, id durable.QueueID, qos byte, limit, maxBytes int) (ds []durable.Delivery, live bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var round uint64
	for first := true; ; first = false {
		q := s.queues[id]
		if q == nil {
			return nil, false, s.noQueueLocked()
		}
		st := q.stream(qos)
		if first {
			round = st.round
		}
		if q.r == nil || st.round != round {
			return nil, false, nil // just detached, or another recipient reads it now
		}
		room := s.opts.MaxUnfinished - len(st.out)
		if st.live {
			return nil, true, nil
		}
		if st.hold > 0 || st.dropping > 0 || room <= 0 {
			st.waiting = true
			return nil, false, nil
		}
		onProbation := s.probation.on.Load()
		if onProbation {
			limit = 1
		}
		ds, live, f := s.readOnLocked(st, min(max(limit, 1), room), max(maxBytes, 1))
		if f == nil {
			if onProbation && len(ds) > 0 {
				s.inHand(reader(id, qos), "message", strconv.FormatUint(uint64(ds[0].Seq), 10))
			}
			return ds, live, nil
		}
		if err := s.awaitLocked(ctx, f); err != nil {
			return nil, false, err
		}
	}
}

// awaitLocked lets the lock go while a query is under way.
func (s *Store) awaitLocked(ctx context.Context, f *fetch) error {
	s.mu.Unlock()
	defer s.mu.Lock()
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// readTailLocked reads on behind the committed rows. QoS 2 is never read before
// its commit.
func (s *Store) readTailLocked(st *stream, limit, maxBytes int) (ds []durable.Delivery, live bool) {
	if st.qos == 2 && st.inCommit {
		st.waiting = true
		return nil, false
	}
	if st.qos == 1 {
		s.tail.after(st.pos, func(e *entry) bool {
			for i := range e.claims {
				c := &e.claims[i]
				if c.q != st.q || c.QoS != 1 {
					continue
				}
				if c.state == claimUnsafe && st.take(e.seq, e.received, e.size) {
					ds = append(ds, s.deliveryLocked(e, c))
					maxBytes -= int(e.size)
				}
			}
			return len(ds) < limit && (maxBytes > 0 || len(ds) == 0)
		})
	}
	if len(ds) > 0 {
		return ds, false
	}
	st.live, st.waiting = true, false
	delete(s.late, st)
	st.pos = max(st.pos, s.committed)
	clear(st.finished) // whatever is still there never got a row
	return nil, true
}

// take hands out a delivery unless it was finished before.
func (st *stream) take(seq durable.Seq, received, size int64) bool {
	st.handOut(seq, received, size)
	if _, done := st.finished[seq]; !done {
		return true
	}
	delete(st.finished, seq)
	st.out[len(st.out)-1].finished = true
	st.advance()
	return false
}

// storedFromRow reads the columns seq, claimset, topic, payload, properties,
// qos, retain, expiry, received, source.
func storedFromRow(clock *storeClock, row []driver.Value) storedMessage {
	r := storedMessage{seq: durable.Seq(integer(row[0])), setID: integer(row[1]), received: integer(row[8])}
	r.m = &message.Message{
		Topic: text(row[2]), Payload: blob(row[3]), Properties: blob(row[4]), QoS: byte(integer(row[5])),
		Retain: integer(row[6]) != 0, Received: clock.received(r.seq, r.received), From: text(row[9]),
	}
	setExpiry(r.m, row[7])
	return r
}

var errNotOpen = errors.New("the database is not open")

// read lends a connection for reading.
func (s *Store) read(ctx context.Context, fn func(*db) error) error {
	if s.single {
		s.connMu.Lock()
		defer s.connMu.Unlock()
		if s.w == nil || s.salvaging { // part of a copy has gaps
			return errNotOpen
		}
		err := fn(s.w)
		s.suspect(err)
		return err
	}
	select {
	case d := <-s.readers:
		defer func() { s.readers <- d }()
		if d == nil {
			return errNotOpen
		}
		err := fn(d)
		s.suspect(err)
		return err
	case <-s.stopped:
		return durable.ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}
