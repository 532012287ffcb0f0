package storeforward

import (
	"bytes"
	"context"
	"database/sql/driver"
	"errors"
	"math/bits"
	"time"

	"holdfast/broker/durable"
	"holdfast/broker/packet"
)

// Thinning keeps of each topic one message for each slot of time, with slots that
// are as long as the messages are old, divided by a resolution: of a long outage
// the whole remains, coarser with age. Slots are powers of two of microseconds and
// begin at multiples of their length, so a longer one is made of shorter ones and
// the message that is first in it was the first in one of those: thinning again,
// later or harder, drops from what is left and never regrets what it dropped.
//
// A message is first in its slot of 2^k µs if its time and that of its topic's
// message before it differ in bit k or above. So for each message there is one
// coarsest resolution that still keeps it, and one look at all of them, counting,
// finds the finest resolution that frees enough. The first and last message of a
// topic stay, and those with the user property "holdfast-event".

// thinKeep is how much of its bounds a queue holds after thinning.
const thinKeep = 0.75

// thinLocked asks for thinning of a queue.
func (s *Store) thinLocked(q *queue) {
	if q.relief.thinning || q.relief.futile {
		return
	}
	q.relief.thinning = true
	s.toThin = append(s.toThin, q)
	select {
	case s.thinner <- struct{}{}:
	default: // it has been woken and has not looked yet
	}
}

// thin is the thinner goroutine.
func (s *Store) thin(ctx context.Context) {
	for {
		select {
		case <-s.thinner:
		case <-ctx.Done():
			return
		}
		for ctx.Err() == nil {
			s.mu.Lock()
			if len(s.toThin) == 0 {
				s.mu.Unlock()
				break
			}
			q := s.toThin[0]
			s.toThin = s.toThin[1:]
			s.mu.Unlock()
			freed, err := s.thinQueue(ctx, q)
			if err != nil {
				s.log.Debug("queue not thinned", "queue", q.label(), "err", err)
				pause := time.NewTimer(s.opts.RetryMax) // the disk fails
				select {
				case <-pause.C:
				case <-ctx.Done():
				}
				pause.Stop()
			}
			s.mu.Lock()
			q.relief.thinning = false
			// Less than this is not worth another look before there is room.
			most, _ := q.bounds()
			q.relief.futile = err == nil && freed <= most/1024
			s.mu.Unlock()
			if freed > 0 {
				s.log.Info("queue thinned", "queue", q.label(), "messages", freed)
			}
		}
	}
}

// thinning is one look at a queue.
type thinning struct {
	s      *Store
	limits limits
	bases  [2]durable.Seq
	now    int64 // the store's clock
	topics map[string]*topicTimes
	// counts of messages by the coarsest resolution that keeps them.
	counts [resolutions]int64
}

// resolutions are powers of two from 2^-64 to 2^64, by index, and one for what is
// always kept.
const (
	resolutions = 130
	alwaysKept  = 0
)

type topicTimes struct {
	previous int64 // time of the message before
	last     durable.Seq
	seen     bool
}

// thinQueue thins a queue once and returns how many messages went.
func (s *Store) thinQueue(ctx context.Context, q *queue) (freed int64, err error) {
	s.mu.Lock()
	if s.queues[q.id] != q {
		s.mu.Unlock()
		return 0, nil
	}
	t := &thinning{s: s, limits: q.limits, now: s.clock.now(time.Now()), topics: make(map[string]*topicTimes)}
	for i := range q.streams {
		t.bases[i] = max(q.streams[i].sentTo, q.streams[i].cursor)
	}
	t.limits.messages, t.limits.bytes = q.bounds()
	to := s.committed
	messages, bytes := q.messages, q.bytes
	s.mu.Unlock()
	var seen int64
	if err := t.scan(ctx, q.id, to, func(c *candidate, event bool) error {
		t.counts[t.resolution(c, event)]++
		t.topics[c.topic].last = c.seq
		seen++
		return nil
	}); err != nil {
		return 0, err
	}
	full := max(float64(messages)/float64(t.limits.messages), float64(bytes)/float64(t.limits.bytes))
	excess := messages - int64(float64(messages)*thinKeep/full)
	finest, kept := resolutions-1, seen
	for ; finest > alwaysKept && seen-kept < excess; finest-- {
		kept -= t.counts[finest]
	}
	if seen == kept {
		return 0, nil
	}
	return t.drop(ctx, q.id, to, finest)
}

// resolution returns the coarsest resolution that keeps the message, as an index.
func (t *thinning) resolution(c *candidate, event bool) int {
	at := t.s.clock.at(c.seq, c.received)
	topic := t.topics[c.topic]
	if topic == nil {
		topic = &topicTimes{}
		t.topics[c.topic] = topic
	}
	first, differs := !topic.seen, at^topic.previous
	topic.seen, topic.previous = true, at
	if first || event {
		return alwaysKept
	}
	age := bits.Len64(uint64(max(t.now-at, 0)))      // of its slot at resolution 1, plus one
	slot := bits.Len64(uint64(differs) &^ (1 << 63)) // of the longest it is first in, plus one
	return min(max(age-slot+resolutions/2, alwaysKept+1), resolutions-1)
}

// scan calls fn with all that may be thinned.
func (t *thinning) scan(ctx context.Context, q durable.QueueID, to durable.Seq, fn func(c *candidate, event bool) error) error {
	from := min(t.bases[0], t.bases[1])
	for from < to {
		n := 0
		err := t.s.read(ctx, func(d *db) error {
			return scanEvents(ctx, d, q, from, to, func(c *candidate, event bool) error {
				n++
				from = c.seq
				if c.seq <= t.bases[c.qos-1] || t.limits.of(c.topic) != durable.PolicyThin {
					return nil
				}
				return fn(c, event)
			})
		})
		if err != nil {
			return err
		}
		if n < dropChunk {
			return nil
		}
	}
	return nil
}

// drop drops what the resolution does not keep, some in each transaction.
func (t *thinning) drop(ctx context.Context, q durable.QueueID, to durable.Seq, finest int) (freed int64, err error) {
	for _, topic := range t.topics {
		topic.seen = false
	}
	gone := make(map[durable.Seq]struct{})
	var first, last durable.Seq
	flush := func() error {
		if len(gone) == 0 {
			return nil
		}
		x, err := t.s.dropSome(ctx, q, &dropping{reason: reasonThin, from: first - 1, look: int(min(last-first+1, 1<<30)), choose: func(c *candidate) verdict {
			if c.seq > last {
				return stopHere
			}
			if _, ok := gone[c.seq]; ok {
				return dropIt
			}
			return keepIt
		}})
		if err == nil {
			freed += int64(len(x.rows))
			clear(gone)
		}
		return err
	}
	// The drops happen outside of the scan: it holds a reading connection.
	for from := min(t.bases[0], t.bases[1]); from < to; {
		upto, n := from, 0
		err := t.s.read(ctx, func(d *db) error {
			return scanEvents(ctx, d, q, from, to, func(c *candidate, event bool) error {
				n++
				upto = c.seq
				if c.seq <= t.bases[c.qos-1] || t.limits.of(c.topic) != durable.PolicyThin {
					return nil
				}
				if t.resolution(c, event) > finest && t.topics[c.topic].last != c.seq {
					if len(gone) == 0 {
						first = c.seq
					}
					gone[c.seq], last = struct{}{}, c.seq
				}
				return nil
			})
		})
		if err == nil {
			err = flush()
		}
		if err != nil || n < dropChunk {
			return freed, err
		}
		from = upto
	}
	return freed, nil
}

// scanEvents is scanQueue for one chunk, and says which messages are events.
func scanEvents(ctx context.Context, d *db, q durable.QueueID, from, to durable.Seq, fn func(c *candidate, event bool) error) error {
	err := d.query(ctx, func(row []driver.Value) error {
		c := candidate{
			seq: durable.Seq(integer(row[0])), topic: text(row[1]), received: integer(row[2]), qos: byte(integer(row[3])),
		}
		if c.qos != 1 && c.qos != 2 {
			return nil // a damaged file
		}
		return fn(&c, isEvent(blob(row[4])))
	}, `SELECT m.seq, m.topic, m.received, c.qos, m.properties FROM message m CROSS JOIN claim c ON c.claimset = m.claimset AND c.queue = ?
		WHERE m.seq > ? AND m.seq <= ? ORDER BY m.seq LIMIT ?`, int64(q), int64(from), int64(to), int64(dropChunk))
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

// isEvent says whether the publisher marked the message as an event.
func isEvent(properties []byte) bool {
	if !bytes.Contains(properties, []byte(durable.EventProperty)) {
		return false
	}
	p, err := packet.ParsePublishProperties(properties)
	if err != nil {
		return true // not ours to judge
	}
	for _, u := range p.User {
		if u.Key == durable.EventProperty {
			return true
		}
	}
	return false
}
