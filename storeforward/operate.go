package storeforward

import (
	"context"
	"database/sql/driver"
	"fmt"
	"maps"
	"time"

	"holdfast/broker/durable"
	"holdfast/broker/message"
	"holdfast/broker/topic"
)

// Settle makes everything durable that was appended and acknowledged so far, so
// that the file says what the memory knows.
func (s *Store) Settle(ctx context.Context) error {
	durably := make(chan error, 1)
	s.mu.Lock()
	err := s.refuseLocked()
	if err == nil {
		s.opLocked(func(*db) error { return nil }, nil, func(err error) { durably <- err })
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	select {
	case err := <-durably:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Selection says which messages of a queue are meant. The zero value means all.
type Selection struct {
	Before time.Time   // received before, in wall time; zero is no limit
	Upto   durable.Seq // up to and with; 0 is no limit
	Filter string      // MQTT topic filter; "" is every topic
}

// dropChunk is how many rows one transaction drops, as [maxDelete] bounds them.
const dropChunk = 4096

// Drop drops the messages selected of a queue, save those that have been sent:
// they end by acknowledgement only. It returns how many it dropped, durably; each
// is counted as dropped by the operator. progress is called with the number so
// far, from the caller's goroutine.
func (s *Store) Drop(ctx context.Context, id durable.QueueID, sel Selection, progress func(int64)) (dropped int64, err error) {
	if sel.Filter != "" {
		if err := topic.ValidFilter(sel.Filter); err != nil {
			return 0, err
		}
	}
	if err := s.Settle(ctx); err != nil {
		return 0, err
	}
	for qos := byte(1); qos <= 2; qos++ {
		for from := durable.Seq(0); ; {
			n, reached, err := s.dropSome(ctx, id, qos, from, sel)
			if err != nil {
				return dropped, err
			}
			dropped += n
			if n > 0 && progress != nil {
				progress(dropped)
			}
			if reached == 0 {
				break
			}
			from = reached
		}
	}
	return dropped, nil
}

// dropping is one transaction of a Drop.
//
// A row loses the claim of the queue: it gets the claim set without it, or goes
// with its last claim. While that is on its way to the disk nobody reads the
// stream; what was read from the rows before is read again.
type dropping struct {
	s        *Store
	q        *queue
	st       *stream
	sel      Selection
	from, to durable.Seq
	finished map[durable.Seq]struct{} // out of order, as known when it began
	rows     []droppedRow
	reached  durable.Seq // 0: all has been looked at
}

type droppedRow struct {
	seq       durable.Seq
	size      int64
	old, left *claimset // left is nil when the row goes
}

func (s *Store) dropSome(ctx context.Context, id durable.QueueID, qos byte, from durable.Seq, sel Selection) (n int64, reached durable.Seq, err error) {
	durably := make(chan error, 1)
	s.mu.Lock()
	q := s.queues[id]
	if err := s.refuseLocked(); err != nil || q == nil {
		if err == nil {
			err = durable.ErrNoQueue
		}
		s.mu.Unlock()
		return 0, 0, err
	}
	st := q.stream(qos)
	if st.live { // everything has been sent
		s.mu.Unlock()
		return 0, 0, nil
	}
	x := &dropping{s: s, q: q, st: st, sel: sel, from: max(from, st.pos, st.cursor), to: s.committed, finished: maps.Clone(st.finished)}
	if qos == 2 {
		s.op2Locked(q, x.run, x.applyLocked, func(err error) { durably <- err })
	} else {
		s.opLocked(x.run, func() {
			if st.hold--; st.hold == 0 {
				st.wakeReader()
			}
			if s.queues[id] == q {
				x.applyLocked()
			}
		}, func(err error) { durably <- err })
	}
	st.hold++
	st.round++
	st.waiting = true
	s.mu.Unlock()
	select {
	case err := <-durably:
		return int64(len(x.rows)), x.reached, err
	case <-ctx.Done():
		return 0, 0, ctx.Err()
	}
}

// run changes the rows, on the committer's goroutine; once more after a failed
// commit.
func (x *dropping) run(d *db) error {
	x.rows, x.reached = x.rows[:0], 0
	seen := 0
	upto, before := int64(x.to), int64(1)<<62
	if x.sel.Upto != 0 {
		upto = min(upto, int64(x.sel.Upto))
	}
	if !x.sel.Before.IsZero() {
		before = x.sel.Before.UnixMicro()
	}
	type found struct {
		seq  durable.Seq
		set  int64
		size int64
	}
	var rows []found
	err := d.query(context.Background(), func(row []driver.Value) error {
		seq := durable.Seq(integer(row[0]))
		seen++
		if seen == dropChunk {
			x.reached = seq
		}
		if _, done := x.finished[seq]; done || x.sel.Filter != "" && !topic.Match(x.sel.Filter, text(row[2])) {
			return nil
		}
		rows = append(rows, found{seq, integer(row[1]), integer(row[3])})
		return nil
	}, `SELECT seq, claimset, topic, length(CAST(topic AS BLOB)) + length(payload) + coalesce(length(properties), 0) FROM message
		WHERE seq > ?1 AND seq <= ?2 AND received < ?3 AND claimset IN (SELECT claimset FROM claim WHERE queue = ?4 AND qos = ?5)
		AND NOT EXISTS (SELECT 1 FROM delivery2 d WHERE d.queue = ?4 AND d.seq = message.seq) ORDER BY seq LIMIT ?6`,
		int64(x.from), upto, before, int64(x.q.id), int64(x.st.qos), int64(dropChunk))
	if err != nil {
		return err
	}
	targets := map[int64]droppedRow{}
	for _, r := range rows {
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
		x.rows = append(x.rows, droppedRow{seq: r.seq, size: r.size, old: t.old, left: t.left})
	}
	return nil
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

// applyLocked follows in memory when the rows have changed.
func (x *dropping) applyLocked() {
	for _, r := range x.rows {
		r.old.rows--
		if r.left != nil {
			r.left.stored = true
			r.left.rows++
			r.left.from = min(r.left.from, r.seq-1)
			r.left.used = max(r.left.used, x.s.seq)
		}
		x.q.messages--
		x.q.bytes -= r.size
		x.s.counts.messages--
		x.s.counts.bytes -= r.size
	}
	if n := uint64(len(x.rows)); n > 0 {
		x.q.dropped["operator"] += n
		x.s.deletes = true
		x.s.vacuum = true // this is the committer's goroutine
	}
}

// importWindow is how many messages of an import wait for their commit together.
const importWindow = 1000

// Importer appends messages to one queue.
type Importer struct {
	s       *Store
	id      durable.QueueID
	results chan error
	waiting int
	// Done is how many are durable.
	Done int64
}

// Import starts appending to a queue. One goroutine uses the Importer.
func (s *Store) Import(id durable.QueueID) (*Importer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.queues[id] == nil {
		return nil, s.noQueueLocked()
	}
	return &Importer{s: s, id: id, results: make(chan error, importWindow)}, nil
}

// Add appends a message behind everything the queue has. Its time of arrival is
// kept. It waits while many others are on their way to the disk.
func (im *Importer) Add(ctx context.Context, m *message.Message, qos byte, retain bool) error {
	if qos < 1 || qos > 2 {
		return fmt.Errorf("a queue holds QoS 1 and 2, not %d", qos)
	}
	if err := topic.ValidName(m.Topic); err != nil {
		return err
	}
	for im.waiting >= importWindow {
		if err := im.wait(ctx); err != nil {
			return err
		}
	}
	c := *m
	c.Retain = false // it goes to this queue, not to the retained messages
	im.s.mu.Lock()
	gone := im.s.queues[im.id] == nil
	im.s.mu.Unlock()
	if gone {
		return durable.ErrNoQueue
	}
	claims := []durable.Claim{{Queue: im.id, QoS: qos, Retain: retain}}
	if err := im.s.Append(&c, claims, durable.Origin{}, func(err error) { im.results <- err }); err != nil {
		return err
	}
	im.waiting++
	return nil
}

func (im *Importer) wait(ctx context.Context) error {
	select {
	case err := <-im.results:
		im.waiting--
		if err == nil {
			im.Done++
		}
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Flush waits until everything added is durable.
func (im *Importer) Flush(ctx context.Context) error {
	for im.waiting > 0 {
		if err := im.wait(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Replay queues again, as new messages, what the queue has had since then and the
// database still holds: refused messages (dead letters, which leave their table)
// and delivered ones that others still wait for. The rest is gone: a message is
// deleted when nobody needs it.
func (s *Store) Replay(ctx context.Context, id durable.QueueID, since time.Time, progress func(int64)) (int64, error) {
	if err := s.Settle(ctx); err != nil {
		return 0, err
	}
	im, err := s.Import(id)
	if err != nil {
		return 0, err
	}
	s.mu.Lock()
	upto := s.committed
	s.mu.Unlock()
	for from := durable.Seq(0); ; {
		page, err := s.delivered(ctx, id, from, upto, since)
		if err != nil {
			return im.Done, err
		}
		if len(page) == 0 {
			break
		}
		for _, p := range page {
			if err := im.Add(ctx, p.m, p.qos, p.retain); err != nil {
				return im.Done, err
			}
			from = p.seq
		}
		if err := im.Flush(ctx); err != nil {
			return im.Done, err
		}
		report(progress, im.Done)
	}
	return im.Done, s.replayDeadLetters(ctx, im, since, progress)
}

func report(progress func(int64), n int64) {
	if progress != nil {
		progress(n)
	}
}

type deliveredMessage struct {
	seq    durable.Seq
	m      *message.Message
	qos    byte
	retain bool
}

// delivered reads a page of messages that the queue has finished and others wait
// for.
func (s *Store) delivered(ctx context.Context, id durable.QueueID, from, upto durable.Seq, since time.Time) (page []deliveredMessage, err error) {
	err = s.read(ctx, func(d *db) error {
		return d.query(ctx, func(row []driver.Value) error {
			r := storedFromRow(&s.clock, row)
			page = append(page, deliveredMessage{r.seq, r.m, byte(integer(row[10])), integer(row[11]) != 0})
			return nil
		}, `SELECT m.seq, m.claimset, m.topic, m.payload, m.properties, m.qos, m.retain, m.expiry, m.received, m.source, c.qos, c.retain
			FROM message m JOIN claim c ON c.claimset = m.claimset AND c.queue = ?1 JOIN stream s ON s.queue = ?1 AND s.qos = c.qos
			LEFT JOIN delivery2 d ON d.queue = ?1 AND d.seq = m.seq
			WHERE m.seq > ?2 AND m.seq <= ?3 AND m.received >= ?4 AND (m.seq <= s.cursor OR d.state = 3) ORDER BY m.seq LIMIT ?5`,
			int64(id), int64(from), int64(upto), since.UnixMicro(), int64(importWindow))
	})
	return page, err
}

// replayDeadLetters queues refused messages again; each leaves the table in the
// commit that follows its own.
func (s *Store) replayDeadLetters(ctx context.Context, im *Importer, since time.Time, progress func(int64)) error {
	var letters []DeadLetter // bounded by Options.MaxDeadLetters
	err := s.DeadLetters(ctx, im.id, func(l DeadLetter) error {
		if !l.Refused.Before(since) {
			letters = append(letters, l)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, l := range letters {
		if err := im.Add(ctx, l.Message, max(l.Message.QoS, 1), false); err != nil {
			return err
		}
	}
	if err := im.Flush(ctx); err != nil {
		return err
	}
	report(progress, im.Done)
	return s.forgetDeadLetters(ctx, im.id, letters)
}

func (s *Store) forgetDeadLetters(ctx context.Context, id durable.QueueID, letters []DeadLetter) error {
	if len(letters) == 0 {
		return nil
	}
	durably := make(chan error, 1)
	s.mu.Lock()
	q := s.queues[id]
	if q == nil {
		s.mu.Unlock()
		return durable.ErrNoQueue
	}
	var n int64
	s.opLocked(func(d *db) error {
		n = 0
		for _, l := range letters {
			c, err := d.changes("DELETE FROM dead_letter WHERE queue = ? AND seq = ?", int64(id), int64(l.Seq))
			if err != nil {
				return err
			}
			n += c
		}
		return nil
	}, func() { q.deadLetters -= int(n) }, func(err error) { durably <- err })
	s.mu.Unlock()
	select {
	case err := <-durably:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
