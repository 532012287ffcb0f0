package storeforward

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"

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
		st.round++
	}
	if q.unsafe > 0 {
		s.hurryLocked()
	}
}

func (s *Store) resetLocked(q *queue) {
	for i := range q.streams {
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
	limit = max(limit, 1)
	for {
		s.mu.Lock()
		q := s.queues[id]
		if q == nil || q.r == nil {
			err := s.noQueueLocked()
			s.mu.Unlock()
			if q != nil {
				err = nil // just detached
			}
			return nil, false, err
		}
		st := q.stream(qos)
		room := s.opts.MaxUnfinished - len(st.out)
		switch {
		case st.live:
			s.mu.Unlock()
			return nil, true, nil
		case st.hold > 0, st.dropping > 0, room <= 0:
			st.waiting = true
			s.mu.Unlock()
			return nil, false, nil
		case st.pos >= s.committed:
			ds, live = s.readTailLocked(st, min(limit, room), maxBytes)
			s.mu.Unlock()
			return ds, live, nil
		}
		from, to, round := st.pos, s.committed, st.round
		s.mu.Unlock()
		rows, all, err := s.readRows(ctx, id, qos, from, to, min(limit, room), maxBytes)
		if err != nil {
			return nil, false, err
		}
		s.mu.Lock()
		if st.round != round {
			s.mu.Unlock()
			return nil, false, nil // another recipient reads it now
		}
		if st.pos == from {
			ds = s.takeRowsLocked(st, rows)
			if all {
				st.pos = max(st.pos, to)
			}
		}
		s.mu.Unlock()
		if len(ds) > 0 {
			return ds, false, nil
		}
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

// storedMessage is a row of the message table.
type storedMessage struct {
	seq      durable.Seq
	set      int64
	received int64
	m        *message.Message
}

// takeRowsLocked turns rows into deliveries.
func (s *Store) takeRowsLocked(st *stream, rows []storedMessage) (ds []durable.Delivery) {
	for _, r := range rows {
		set := s.setsByID[r.set]
		if set == nil {
			s.counts.readErrors++ // its claims are gone: a damaged file
			continue
		}
		c, ok := set.claimOf(st.q.id, st.qos)
		size := int64(r.m.Size())
		if !ok || r.seq <= st.pos || !st.take(r.seq, r.received, size) {
			continue
		}
		d := durable.Delivery{Seq: r.seq, Message: r.m, QoS: st.qos, Retain: c.Retain, SubscriptionIDs: c.SubscriptionIDs}
		if d2 := st.deliveries[r.seq]; d2 != nil {
			d2.size = uint32(size)
			d.PacketID = d2.packetID
			d.Resend = !d2.fresh
			if d2.state == stateReleased {
				d.Released, d.Message = true, nil
			}
		}
		ds = append(ds, d)
	}
	return ds
}

// errEnough stops a query.
var errEnough = errors.New("enough")

// readRows reads committed rows of a stream after from, up to to. all says that
// there are no more of them.
func (s *Store) readRows(ctx context.Context, q durable.QueueID, qos byte, from, to durable.Seq, limit, maxBytes int) (rows []storedMessage, all bool, err error) {
	all = true
	err = s.read(ctx, func(d *db) error {
		return d.query(ctx, func(row []driver.Value) error {
			r := storedFromRow(&s.clock, row)
			rows = append(rows, r)
			maxBytes -= r.m.Size()
			if len(rows) >= limit || maxBytes <= 0 {
				all = false
				return errEnough
			}
			return nil
		}, `SELECT seq, claimset, topic, payload, properties, qos, retain, expiry, received, source FROM message
			WHERE seq > ? AND seq <= ? AND claimset IN (SELECT claimset FROM claim WHERE queue = ? AND qos = ?) ORDER BY seq`,
			int64(from), int64(to), int64(q), int64(qos))
	})
	if err != nil && !errors.Is(err, errEnough) {
		s.mu.Lock()
		s.counts.readErrors++
		s.counts.lastErr = err.Error()
		s.mu.Unlock()
		return nil, false, fmt.Errorf("read queue %d: %w", q, err)
	}
	return rows, all, nil
}

// storedFromRow reads the columns seq, claimset, topic, payload, properties,
// qos, retain, expiry, received, source.
func storedFromRow(clock *storeClock, row []driver.Value) storedMessage {
	r := storedMessage{seq: durable.Seq(integer(row[0])), set: integer(row[1]), received: integer(row[8])}
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
		if s.w == nil {
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
