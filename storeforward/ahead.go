package storeforward

import (
	"context"
	"fmt"

	"holdfast/broker/durable"
	"holdfast/broker/message"
)

// Rows are read before they are asked for, so that the disk and the socket work at
// the same time and a query brings many of them:
//
//	             pos                  ahead.to
//	  handed out  |  ahead.rows, in RAM  |  rows on disk, then the tail
//	--------------+----------------------+------------------------------>  seq
//
// Whatever starts the stream anew (round) forgets them.
const (
	// aheadRows and aheadBytes bound one query. Larger ones gained nothing: the
	// cost of the query itself is that of 20 rows.
	aheadRows  = 1024
	aheadBytes = 256 << 10
	// aheadTotal bounds what all streams together have read ahead; with it used
	// up a query brings what was asked for and no more.
	aheadTotal = 8 << 20
)

// storedMessage is a row of the message table.
type storedMessage struct {
	seq      durable.Seq
	setID    int64
	set      *claimset
	received int64
	m        *message.Message
	damaged  bool // the message is none that anybody could have published
}

// ahead is what has been read of a stream and not been asked for. Guarded by the
// append lock.
type ahead struct {
	rows  []storedMessage // in order, after pos
	bytes int64           // what they take in memory
	to    durable.Seq     // on disk there is nothing between the last of them and here
	fetch *fetch          // the query under way, nil for none
	// unknown is a row whose claim set was not known when it was read.
	unknown durable.Seq
}

// fetch is a query that is under way. err may be read when done is closed.
type fetch struct {
	done chan struct{}
	err  error
}

func (r *storedMessage) weight() int64 { return int64(r.m.Size()) + entryOverhead }

// forgetAheadLocked makes the stream read from pos again.
func (s *Store) forgetAheadLocked(st *stream) {
	s.aheadBytes -= st.ahead.bytes
	if f := st.ahead.fetch; f != nil {
		close(f.done)
	}
	st.ahead = ahead{}
	delete(s.late, st) // whoever reads it next begins with the disk, or has ended
}

// readOnLocked returns what comes next, or the query to wait for.
func (s *Store) readOnLocked(st *stream, limit, maxBytes int) (ds []durable.Delivery, live bool, f *fetch) {
	a := &st.ahead
	for {
		if len(a.rows) > 0 {
			ds = s.takeAheadLocked(st, limit, maxBytes)
			if !s.single && len(a.rows) < aheadRows/2 && a.bytes < aheadBytes/2 && s.aheadBytes < aheadTotal {
				s.fetchLocked(st, aheadRows, aheadBytes)
			}
			if len(ds) > 0 {
				return ds, false, nil
			}
			continue
		}
		st.pos = max(st.pos, a.to)
		switch {
		case a.fetch != nil:
			return nil, false, a.fetch
		case st.pos >= s.committed:
			ds, live = s.readTailLocked(st, limit, maxBytes)
			return ds, live, nil
		case s.aheadBytes < aheadTotal:
			limit, maxBytes = max(limit, aheadRows), max(maxBytes, aheadBytes)
		}
		s.fetchLocked(st, limit, maxBytes)
		return nil, false, a.fetch
	}
}

// takeAheadLocked turns rows into deliveries.
func (s *Store) takeAheadLocked(st *stream, limit, maxBytes int) (ds []durable.Delivery) {
	a := &st.ahead
	n := 0
	ds = make([]durable.Delivery, 0, min(limit, len(a.rows)))
	for ; n < len(a.rows) && len(ds) < limit && maxBytes > 0; n++ {
		r := &a.rows[n]
		a.bytes -= r.weight()
		s.aheadBytes -= r.weight()
		size := int64(r.m.Size())
		c, ok := r.set.claimOf(st.q.id, st.qos)
		if _, gone := st.q.latest.replaced[r.seq]; !ok || gone || r.seq <= st.pos || !st.take(r.seq, r.received, size) {
			continue
		}
		maxBytes -= int(size)
		d := durable.Delivery{Seq: r.seq, Message: r.m, QoS: st.qos, Retain: c.Retain, SubscriptionIDs: c.SubscriptionIDs}
		d2 := st.deliveries[r.seq]
		sent := d2 != nil && !d2.fresh
		if r.damaged {
			s.damagedLocked(st, r, sent)
			if !sent {
				continue
			}
		}
		if d2 != nil {
			d2.size = uint32(size)
			d.PacketID = d2.packetID
			d.Resend = sent
			if d2.state == stateReleased || r.damaged {
				d.Released, d.Message = true, nil
			}
		}
		ds = append(ds, d)
	}
	clear(a.rows[:n])
	a.rows = a.rows[n:]
	return ds
}

// fetchLocked starts a query for what comes behind the rows that are there.
func (s *Store) fetchLocked(st *stream, limit, maxBytes int) {
	a := &st.ahead
	from, to := max(st.pos, a.to), s.committed
	if a.fetch != nil || from >= to {
		return
	}
	f := &fetch{done: make(chan struct{})}
	if s.closing { // Close waits for those that are under way, and for no more
		f.err = durable.ErrClosed
		close(f.done)
		if len(a.rows) == 0 {
			a.fetch = f
		}
		return
	}
	a.fetch = f
	s.wg.Go(func() {
		rows, all, err := s.readRows(context.Background(), st.q.id, st.qos, from, to, limit, maxBytes)
		s.mu.Lock()
		defer s.mu.Unlock()
		if a.fetch != f {
			return // it has been forgotten
		}
		f.err = err
		if err == nil {
			s.fetchedLocked(st, rows, all, to)
		}
		a.fetch = nil
		close(f.done)
	})
}

// fetchedLocked puts rows behind those that are there. all says that there are no
// more up to to.
func (s *Store) fetchedLocked(st *stream, rows []storedMessage, all bool, to durable.Seq) {
	a := &st.ahead
	for i := range rows {
		r := &rows[i]
		if r.set = s.setsByID[r.setID]; r.set == nil {
			// A drop may have given the row another one since it was read, so
			// it is read again; once. Else the file is damaged.
			if a.unknown != r.seq {
				a.unknown = r.seq
				return
			}
			s.counts.readErrors++
			a.to = r.seq
			continue
		}
		a.rows = append(a.rows, *r)
		a.bytes += r.weight()
		s.aheadBytes += r.weight()
		a.to = r.seq
	}
	if all {
		a.to = max(a.to, to)
	}
}

// readRows reads committed rows of a stream after from, up to to. all says that
// there are no more of them.
func (s *Store) readRows(ctx context.Context, q durable.QueueID, qos byte, from, to durable.Seq, limit, maxBytes int) (rows []storedMessage, all bool, err error) {
	var packed []byte
	err = s.read(ctx, func(d *db) (err error) {
		// They come in the order of seq, the table's own; unpackRows looks.
		packed, all, err = d.packed(ctx, `SELECT holdfast_pack(?, ?, seq, claimset, topic, payload, properties, qos, retain, expiry, received, source) FROM message
			WHERE seq > ? AND seq <= ? AND claimset IN (SELECT claimset FROM claim WHERE queue = ? AND qos = ?)`,
			int64(limit), int64(maxBytes), int64(from), int64(to), int64(q), int64(qos))
		return err
	})
	if err == nil {
		rows, err = unpackRows(&s.clock, packed)
	}
	if err != nil {
		s.mu.Lock()
		s.counts.readErrors++
		s.counts.lastErr = err.Error()
		s.mu.Unlock()
		return nil, false, fmt.Errorf("read queue %d: %w", q, err)
	}
	return rows, all, nil
}
