package storeforward

import (
	"errors"
	"fmt"

	"holdfast/broker/durable"
)

// maxDelete bounds the rows that one transaction deletes, so that appends never
// wait long behind a drained queue; deleteSpan is the range that one statement
// looks through.
const (
	maxDelete  = 8192
	deleteSpan = 4096
)

// write makes the batch durable: one transaction, one fsync. It runs on the
// committer's goroutine without the append lock.
func (s *Store) write(b *batch) error {
	if s.single {
		s.connMu.Lock()
		defer s.connMu.Unlock()
	}
	d := s.w
	switch {
	case d == nil:
		return errors.New("commit: the database is not open")
	case s.salvaging: // what is written now would go with it
		return errSalvageCut
	case s.spare != nil:
		return s.spare.cause
	case s.intruder.Load() != nil:
		return *s.intruder.Load()
	}
	err := d.exec("BEGIN IMMEDIATE")
	if err == nil {
		err = s.fill(d, b)
	}
	if err == nil {
		err = d.exec("COMMIT")
	}
	if err == nil {
		err = s.moved() // what is in no file anybody will open is not safe
	}
	if err == nil {
		s.touchedAt(b.clock)
		return nil
	}
	err = fmt.Errorf("commit %d messages and %d changes: %w", b.rows, len(b.ops), err)
	if d.inTransaction() { // some errors roll back by themselves
		err = errors.Join(err, d.exec("ROLLBACK"))
	}
	return err
}

// fill writes the batch inside the transaction. Changes are written between the
// messages appended before and after them.
func (s *Store) fill(d *db, b *batch) error {
	for _, set := range b.newSets {
		if err := set.insert(d); err != nil {
			return err
		}
	}
	retained := latestRetained(b.entries)
	ops := b.ops
	for _, e := range b.entries {
		for len(ops) > 0 && ops[0].after < e.seq {
			if err := ops[0].run(d); err != nil {
				return err
			}
			ops = ops[1:]
		}
		if err := s.writeEntry(d, e, retained); err != nil {
			return err
		}
	}
	for _, o := range ops {
		if err := o.run(d); err != nil {
			return err
		}
	}
	for _, c := range b.cursors {
		if err := writeCursor(d, c); err != nil {
			return err
		}
	}
	for _, x := range b.dropped {
		for reason, n := range x.counts {
			if err := countDropped(d, x.q.id, reason, n); err != nil {
				return err
			}
		}
	}
	if err := deleteRows(d, b); err != nil {
		return err
	}
	for _, set := range b.dropSets {
		if err := d.exec("DELETE FROM claim WHERE claimset = ?", set.id); err != nil {
			return err
		}
	}
	if b.mark != 0 {
		if err := d.exec("UPDATE meta SET value = ? WHERE key = 'seq_mark'", int64(b.mark)); err != nil {
			return err
		}
	}
	every := clockEvery // the rows say the time themselves
	switch {
	case b.probe:
		every = 0
	case b.rows == 0:
		every = clockWithCommit
	}
	var err error
	b.clock, err = s.touch(d, every)
	return err
}

// latestRetained returns for each topic the entry whose retained message counts:
// a newer value makes the older ones safe.
func latestRetained(entries []*entry) map[string]durable.Seq {
	var latest map[string]durable.Seq
	for _, e := range entries {
		if e.m.Retain {
			if latest == nil {
				latest = make(map[string]durable.Seq)
			}
			latest[e.m.Topic] = e.seq
		}
	}
	return latest
}

func (s *Store) writeEntry(d *db, e *entry, retained map[string]durable.Seq) error {
	m := e.m
	if e.set != nil {
		payload := m.Payload
		if payload == nil {
			payload = []byte{}
		}
		err := d.exec("INSERT INTO message (seq, claimset, topic, payload, properties, qos, retain, expiry, received, source) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
			int64(e.seq), e.set.id, m.Topic, payload, m.Properties, int64(m.QoS), flag(m.Retain), expiryValue(m), e.received, m.From)
		if err != nil {
			return err
		}
		if err := writeReserved(d, e); err != nil {
			return err
		}
	}
	if m.Retain && retained[m.Topic] == e.seq {
		if err := writeRetained(d, e); err != nil {
			return err
		}
	}
	if e.from.PacketID != 0 {
		err := d.exec("INSERT OR REPLACE INTO inbound (queue, packet_id, seq) VALUES (?, ?, ?)",
			int64(e.from.Queue), int64(e.from.PacketID), int64(e.seq))
		if err != nil {
			return err
		}
	}
	if e.from.Will != "" {
		return d.exec("DELETE FROM will WHERE client_id = ?", e.from.Will)
	}
	return nil
}

// writeReserved commits the packet ids of the entry's QoS 2 deliveries with it.
// Reserved ids change under the append lock only before and after the commit.
func writeReserved(d *db, e *entry) error {
	for i := range e.claims {
		if c := &e.claims[i]; c.reserved != 0 {
			if err := writeDelivery2(d, c.Queue, e.seq, c.reserved, stateSent); err != nil {
				return err
			}
		}
	}
	return nil
}

func writeDelivery2(d *db, q durable.QueueID, seq durable.Seq, packetID uint16, state byte) error {
	return d.exec("INSERT OR REPLACE INTO delivery2 (queue, seq, packet_id, state) VALUES (?, ?, ?, ?)",
		int64(q), int64(seq), int64(packetID), int64(state))
}

// writeCursor moves a cursor; the states of the deliveries it passes go.
func writeCursor(d *db, c cursorWrite) error {
	q, qos, cursor := int64(c.st.q.id), int64(c.st.qos), int64(c.cursor)
	if err := d.exec("UPDATE stream SET cursor = ? WHERE queue = ? AND qos = ?", cursor, q, qos); err != nil {
		return err
	}
	if c.st.qos != 2 {
		return nil
	}
	return d.exec("DELETE FROM delivery2 WHERE queue = ? AND seq <= ?", q, cursor)
}

// deleteRows deletes what nobody needs any more, up to maxDelete rows.
func deleteRows(d *db, b *batch) error {
	if b.deleteAll {
		return d.exec("DELETE FROM message")
	}
	var total int64
	for i := range b.deletes {
		del := &b.deletes[i]
		del.deleted, del.reached = 0, del.from
		for del.reached < del.to && total < maxDelete {
			to := min(del.to, del.reached+deleteSpan)
			n, err := d.changes("DELETE FROM message WHERE seq > ? AND seq <= ? AND claimset = ?",
				int64(del.reached), int64(to), del.set.id)
			if err != nil {
				return err
			}
			del.deleted += n
			del.reached = to
			total += n + 16 // an empty range costs something too
		}
	}
	return nil
}
