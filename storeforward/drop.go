package storeforward

import (
	"context"
	"database/sql/driver"
	"errors"

	"holdfast/broker/durable"
)

// dropChunk is how many rows one transaction looks at, as [maxDelete] bounds those
// it deletes.
const dropChunk = 4096

// candidate is a row that may be dropped: on disk, not finished and never sent.
type candidate struct {
	seq      durable.Seq
	qos      byte // of the delivery
	topic    string
	received int64 // as stored
	size     int64
	set      int64
}

type verdict byte

const (
	keepIt verdict = iota
	dropIt
	stopHere // keep it and look no further
)

// dropping is one transaction that drops messages of a queue by licence of the
// operator: by hand, or by a policy.
//
// A row loses the claim of the queue: it gets the claim set without it, or goes
// with its last claim. While that is on its way to the disk nobody reads the
// queue; what was read from the rows before is read again. What has been sent is
// not among the candidates: deliveries are handed out in order, so it is what
// lies up to the furthest one handed out (stream.sentTo).
type dropping struct {
	reason string
	from   durable.Seq // candidates come after it
	look   int         // rows looked at
	// choose is called with the candidates in order, on the committer's
	// goroutine without the append lock; again after a failed commit.
	choose func(*candidate) verdict
	begin  func()            // called before the first choose, if not nil
	after  func(x *dropping) // called under the append lock when durable

	s       *Store
	q       *queue
	bases   [2]durable.Seq // nothing up to here is a candidate; by QoS
	to      durable.Seq
	rows    []droppedRow
	reached durable.Seq // 0: all has been looked at
}

type droppedRow struct {
	seq       durable.Seq
	topic     string
	size      int64
	old, left *claimset // left is nil when the row goes
}

// everySeq is above all sequence numbers.
const everySeq = durable.Seq(1) << 62

// dropLocked queues the drop for the next commit. It returns false when there is
// nothing that could be dropped.
func (s *Store) dropLocked(q *queue, x *dropping, done func(error)) bool {
	x.s, x.q, x.to = s, q, s.committed
	from := everySeq
	for i := range q.streams {
		st := &q.streams[i]
		x.bases[i] = max(st.sentTo, st.cursor)
		if st.live { // everything has been sent
			x.bases[i] = everySeq
		}
		from = min(from, x.bases[i])
	}
	x.from = max(x.from, from)
	if x.from >= x.to {
		return false
	}
	held := make([]*stream, 0, 2)
	for i := range q.streams {
		if st := &q.streams[i]; !st.live {
			st.dropping++
			s.forgetAheadLocked(st)
			st.round++ // what is being read meanwhile is read again
			st.waiting = true
			held = append(held, st)
		}
	}
	s.opLocked(x.run, func() {
		for _, st := range held {
			if st.dropping--; st.dropping == 0 {
				st.wakeReader()
			}
		}
		if s.queues[q.id] == q {
			x.applyLocked()
			if x.after != nil {
				x.after(x)
			}
		}
	}, done)
	return true
}

// dropSome is dropLocked for those who wait for it.
func (s *Store) dropSome(ctx context.Context, id durable.QueueID, x *dropping) (*dropping, error) {
	durably := make(chan error, 1)
	s.mu.Lock()
	q := s.queues[id]
	err := s.refuseLocked()
	if errors.Is(err, durable.ErrFull) && !s.failing {
		err = nil // the disk is full: that is what drops are for
	}
	if err == nil && q == nil {
		err = durable.ErrNoQueue
	}
	if err == nil && !s.dropLocked(q, x, func(err error) { durably <- err }) {
		durably <- nil
	}
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	select {
	case err := <-durably:
		return x, err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// run changes the rows, on the committer's goroutine; once more after a failed
// commit.
func (x *dropping) run(d *db) error {
	x.rows = x.rows[:0]
	if x.begin != nil {
		x.begin()
	}
	chosen, err := x.candidates(d)
	if err != nil {
		return err
	}
	targets := map[int64]droppedRow{}
	for _, r := range chosen {
		t, ok := targets[r.set]
		if !ok {
			if t, err = x.target(d, r.set); err != nil {
				return err
			}
			targets[r.set] = t
		}
		switch {
		case t.old == nil:
			continue
		case t.left == nil:
			err = d.exec("DELETE FROM message WHERE seq = ?", int64(r.seq))
		default:
			err = d.exec("UPDATE message SET claimset = ? WHERE seq = ?", t.left.id, int64(r.seq))
		}
		if err != nil {
			return err
		}
		x.rows = append(x.rows, droppedRow{seq: r.seq, topic: r.topic, size: r.size, old: t.old, left: t.left})
	}
	if len(x.rows) == 0 {
		return nil
	}
	return countDropped(d, x.q.id, x.reason, uint64(len(x.rows)))
}

// candidates returns the rows chosen.
func (x *dropping) candidates(d *db) (chosen []candidate, err error) {
	x.reached = 0
	seen := 0
	err = scanQueue(context.Background(), d, x.q.id, x.from, x.to, x.look, func(c *candidate) error {
		if seen++; seen == x.look {
			x.reached = c.seq
		}
		if c.seq <= x.bases[c.qos-1] {
			return nil
		}
		switch x.choose(c) {
		case dropIt:
			chosen = append(chosen, *c)
		case stopHere:
			x.reached = 0
			return errEnough
		case keepIt:
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return chosen, err
}

// scanQueue calls fn with up to limit rows of a queue after from, up to to, both
// streams, in order.
func scanQueue(ctx context.Context, d *db, q durable.QueueID, from, to durable.Seq, limit int, fn func(*candidate) error) error {
	var c candidate
	return d.query(ctx, func(row []driver.Value) error {
		c = candidate{
			seq: durable.Seq(integer(row[0])), set: integer(row[1]), topic: text(row[2]), size: integer(row[3]),
			received: integer(row[4]), qos: byte(integer(row[5])),
		}
		if c.qos != 1 && c.qos != 2 {
			return nil // a damaged file
		}
		return fn(&c)
	}, `SELECT m.seq, m.claimset, m.topic, length(CAST(m.topic AS BLOB)) + length(m.payload) + coalesce(length(m.properties), 0), m.received, c.qos
		FROM message m CROSS JOIN claim c ON c.claimset = m.claimset AND c.queue = ?
		WHERE m.seq > ? AND m.seq <= ? ORDER BY m.seq LIMIT ?`,
		int64(q), int64(from), int64(to), int64(limit))
}

// target returns what becomes of the rows of a claim set.
func (x *dropping) target(d *db, id int64) (droppedRow, error) {
	s := x.s
	s.mu.Lock()
	old := s.setsByID[id]
	if old == nil {
		s.mu.Unlock()
		return droppedRow{}, nil
	}
	var others []durable.Claim
	for _, c := range old.claims {
		if c.Queue != x.q.id && s.queues[c.Queue] != nil {
			others = append(others, c)
		}
	}
	if len(others) == 0 {
		s.mu.Unlock()
		return droppedRow{old: old}, nil
	}
	left := s.internLocked(others)
	// With very many sets those without rows are being forgotten, perhaps
	// by this very transaction.
	forgotten := left.stored && left.rows == 0 && s.uselessLocked(left)
	s.mu.Unlock()
	if forgotten {
		return droppedRow{}, nil
	}
	return droppedRow{old: old, left: left}, left.insert(d)
}

// movedLocked follows in memory when the row has lost a claim.
func (r *droppedRow) movedLocked(s *Store) {
	r.old.rows--
	if r.left == nil {
		s.spent.gone(1)
		return
	}
	r.left.stored = true
	r.left.rows++
	r.left.from = min(r.left.from, r.seq-1)
	r.left.last = max(r.left.last, r.seq)
	r.left.used = max(r.left.used, s.seq)
}

// applyLocked follows in memory when the rows have changed.
func (x *dropping) applyLocked() {
	for _, r := range x.rows {
		r.movedLocked(x.s)
		if _, replaced := x.q.latest.replaced[r.seq]; replaced {
			continue // and no longer counted
		}
		if x.q.latest.newest[r.topic].seq == r.seq {
			delete(x.q.latest.newest, r.topic)
		}
		x.q.messages--
		x.q.bytes -= r.size
		x.s.countLocked(x.q, -1, -r.size)
	}
	if n := uint64(len(x.rows)); n > 0 {
		x.q.dropped[x.reason] += n
		x.s.spent.add(0)
		x.s.vacuum = true // this is the committer's goroutine
		x.s.wakeCommitter()
	}
}

// countDropped adds to the durable count of what a recipient was not given.
func countDropped(d *db, q durable.QueueID, reason string, n uint64) error {
	return d.exec("INSERT INTO dropped (queue, reason, count) VALUES (?, ?, ?) ON CONFLICT (queue, reason) DO UPDATE SET count = count + excluded.count",
		int64(q), reason, int64(n))
}
