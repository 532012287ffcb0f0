package storeforward

import (
	"context"
	"database/sql/driver"
	"slices"

	"holdfast/broker/durable"
)

// Latest-only lanes are queues of topics: of each topic the newest message waits,
// and what has been sent stays until it is acknowledged. A newer message takes the
// place of the one that waits:
//
//	tail     it gets no row, and its publisher is told with the commit that
//	         writes the newer one (as a retained message, it is safe when this or
//	         a newer value of the topic is)
//	on disk  its row goes in the transaction that writes the newer one
//
// so that at any instant the disk has one of them, and as many rows as topics. The
// new one is last in the queue: topics go by when they last changed. What was
// replaced is counted. All of it goes as QoS 1, so there is one stream.

// maxLatestTopics bounds the topics of one lane, which are in memory: 15 MB.
const maxLatestTopics = 100_000

// reasonReplaced is the count of messages whose place a newer one has taken.
const reasonReplaced = "replaced"

// latestSet is what a queue that keeps the latest knows. Guarded by the append lock.
type latestSet struct {
	// newest is the newest message of each topic, if it waits; it may also have
	// been sent meanwhile.
	newest map[string]waitingMessage
	// replaced are messages that have, or may have, a row which is on its way to
	// be removed. Nobody reads them.
	replaced map[durable.Seq]struct{}
	removal  *removal // that has not been taken by a commit
	// behind: rows were finished of which the disk does not know it: the cursor
	// is behind them.
	behind bool
}

// comesBack says that a power cut could bring back a row that is finished or was
// replaced. It would be sent again, after newer messages of its topic of which the
// disk knows nothing, and be the last word. So these get rows too, whoever has
// acknowledged them, and are safe with the commit that writes them.
func (ls *latestSet) comesBack() bool { return ls.behind || len(ls.replaced) > 0 }

type waitingMessage struct {
	seq  durable.Seq
	size int64
}

// removal is one change that removes rows of replaced messages.
type removal struct {
	op   *op
	seqs []durable.Seq
	// rows that went, and messages whose rows could not.
	rows []droppedRow
	left []durable.Seq
}

// finishedLate says that deliveries behind the cursor are finished.
func (st *stream) finishedLate() bool {
	return len(st.finished) > 0 || slices.ContainsFunc(st.out, func(h handed) bool { return h.finished })
}

func (q *queue) sentOrDone(seq durable.Seq) bool {
	st := q.stream(1)
	return seq <= max(st.sentTo, st.cursor)
}

// replacesLocked says whether a message of the topic takes the place of one that
// waits, and so no room.
func (q *queue) replacesLocked(topic string) bool {
	old, ok := q.latest.newest[topic]
	return ok && !q.sentOrDone(old.seq)
}

// latestLocked notes that the queue has a message of the topic, which takes the
// place of an older one, or finds a newer one in it.
func (s *Store) latestLocked(q *queue, topic string, m waitingMessage) {
	ls := &q.latest
	if ls.newest == nil {
		ls.newest = make(map[string]waitingMessage)
	}
	old, ok := ls.newest[topic]
	if ok && old.seq > m.seq {
		old, m = m, old
	}
	ls.newest[topic] = m
	if ok && !q.sentOrDone(old.seq) {
		s.replaceLocked(q, old)
	}
	if len(ls.newest) > 1024 && int64(len(ls.newest)) > 2*q.messages {
		for name, x := range ls.newest {
			if q.sentOrDone(x.seq) {
				delete(ls.newest, name)
			}
		}
	}
}

// replaceLocked takes a message that waits out of the queue.
func (s *Store) replaceLocked(q *queue, old waitingMessage) {
	q.drop(reasonReplaced)
	q.messages--
	q.bytes -= old.size
	s.countLocked(q, -1, -old.size)
	if e := s.tail.get(old.seq); e != nil {
		for i := range e.claims {
			c := &e.claims[i]
			if c.q != q || c.state != claimUnsafe {
				continue
			}
			c.state = claimRefused
			if !c.inRow {
				return // and will not be
			}
		}
	}
	s.removeRowLocked(q, old.seq)
}

// removeRowLocked removes the row of a replaced message with the next commit.
func (s *Store) removeRowLocked(q *queue, seq durable.Seq) {
	ls := &q.latest
	if ls.replaced == nil {
		ls.replaced = make(map[durable.Seq]struct{})
	}
	ls.replaced[seq] = struct{}{}
	if r := ls.removal; r != nil && !r.op.taken {
		r.seqs = append(r.seqs, seq)
		return
	}
	r := &removal{seqs: []durable.Seq{seq}}
	s.opLocked(func(d *db) error { return r.run(s, q, d) }, func() { r.applyLocked(s, q) }, nil)
	r.op = s.ops[len(s.ops)-1]
	ls.removal = r
}

// run removes the rows, or the claim of the queue from those that others need. It
// may run again after a failed commit.
func (r *removal) run(s *Store, q *queue, d *db) error {
	r.rows, r.left = r.rows[:0], r.left[:0]
	x := dropping{s: s, q: q}
	for _, seq := range r.seqs {
		set, err := d.queryInt("SELECT claimset FROM message WHERE seq = ?", int64(seq))
		if err != nil {
			return err
		}
		if set == 0 {
			continue // it never got one
		}
		t, err := x.target(d, set)
		switch {
		case err != nil:
			return err
		case t.old == nil:
			r.left = append(r.left, seq)
			continue
		case t.left == nil:
			err = d.exec("DELETE FROM message WHERE seq = ?", int64(seq))
		default:
			err = d.exec("UPDATE message SET claimset = ? WHERE seq = ?", t.left.id, int64(seq))
		}
		if err != nil {
			return err
		}
		t.seq = seq
		r.rows = append(r.rows, t)
	}
	return nil
}

func (r *removal) applyLocked(s *Store, q *queue) {
	for i := range r.rows {
		r.rows[i].movedLocked(s)
	}
	s.spent.add(0)
	s.vacuum = s.vacuum || len(r.rows) > 0 // this is the committer's goroutine
	s.forgetAheadLocked(q.stream(1))       // rows may have been read before they went
	for _, seq := range r.seqs {
		delete(q.latest.replaced, seq)
	}
	for _, seq := range r.left {
		s.removeRowLocked(q, seq)
	}
}

// settleLatestLocked does for messages of an inbound QoS 2 exchange, which a failed
// commit withdraws, what Append does for all others.
func (s *Store) settleLatestLocked(entries []*entry) {
	for _, e := range entries {
		if e.from.PacketID == 0 {
			continue
		}
		for i := range e.claims {
			if c := &e.claims[i]; c.q.lane.Latest && c.inRow && c.state == claimUnsafe && s.queues[c.Queue] == c.q {
				s.latestLocked(c.q, e.m.Topic, waitingMessage{e.seq, e.size})
			}
		}
	}
}

// loadLatest finds the newest message of each topic on disk. One that has another
// before it was sent, or the other would not be there.
func (s *Store) loadLatest(ctx context.Context, d *db) error {
	for _, q := range s.queues {
		if !q.lane.Latest {
			continue
		}
		st := q.stream(1)
		newest := make(map[string]waitingMessage)
		err := d.query(ctx, func(row []driver.Value) error {
			seq, name := durable.Seq(integer(row[0])), text(row[1])
			if _, gone := q.latest.replaced[seq]; gone {
				return nil
			}
			if older, ok := newest[name]; ok {
				st.sentTo = max(st.sentTo, older.seq)
			}
			newest[name] = waitingMessage{seq, integer(row[2])}
			return nil
		}, `SELECT seq, topic, length(CAST(topic AS BLOB)) + length(payload) + coalesce(length(properties), 0) FROM message
			WHERE seq > ? AND claimset IN (SELECT claimset FROM claim WHERE queue = ?) ORDER BY seq`, int64(st.cursor), int64(q.id))
		if err != nil {
			return err
		}
		q.latest.newest = newest
	}
	return nil
}

// reloadLatest is loadLatest for a store that is in use.
func (s *Store) reloadLatest(d *db) error {
	if err := s.loadLatest(context.Background(), d); err != nil {
		return err
	}
	s.tail.after(0, func(e *entry) bool {
		for i := range e.claims {
			if c := &e.claims[i]; c.q.lane.Latest && c.state == claimUnsafe && e.from.PacketID == 0 {
				c.q.latest.newest[e.m.Topic] = waitingMessage{e.seq, e.size}
			}
		}
		return true
	})
	return nil
}
