package storeforward

import (
	"context"
	"database/sql/driver"
	"fmt"
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
	before := sel.Before.UnixMicro()
	choose := func(c *candidate) verdict {
		switch {
		case sel.Upto != 0 && c.seq > sel.Upto:
			return stopHere
		case !sel.Before.IsZero() && c.received >= before, sel.Filter != "" && !topic.Match(sel.Filter, c.topic):
			return keepIt
		default:
			return dropIt
		}
	}
	for from := durable.Seq(0); ; {
		x, err := s.dropSome(ctx, id, &dropping{reason: "operator", from: from, look: dropChunk, choose: choose})
		if err != nil {
			return dropped, err
		}
		dropped += int64(len(x.rows))
		if len(x.rows) > 0 && progress != nil {
			progress(dropped)
		}
		if x.reached == 0 {
			return dropped, nil
		}
		from = x.reached
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
// deleted when nobody needs it, or some time later.
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
			WHERE m.seq > ?2 AND m.seq <= ?3 AND m.received >= ?4 AND (m.seq <= s.cursor OR d.state = 3)
				AND NOT EXISTS (SELECT 1 FROM dead_letter x WHERE x.queue = ?1 AND x.seq = m.seq) ORDER BY m.seq LIMIT ?5`,
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
