package storeforward

import (
	"context"
	"crypto/rand"
	"database/sql/driver"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"holdfast/broker/durable"
)

// Repair is the report about a database that was set aside.
type Repair struct {
	Time time.Time `json:"time"`
	// SetAside is where the database is now, Reason what was wrong with it.
	SetAside string `json:"set_aside"`
	Reason   string `json:"reason"`
	// Salvaged says what was saved of it, and Lost how many deliveries to all
	// queues together were not; it is known only when the database broke while
	// the store was open.
	Salvaged string `json:"salvaged"`
	Lost     int64  `json:"lost"`
}

// A database that turns out to be damaged while the store is open is set aside
// and salvaged as at the start. Queues, cursors, packet ids and what waits for a
// commit are in memory and go on; what is lost is messages (and subscriptions,
// retained messages and wills) in the damaged part.

// repairEvery keeps a medium that breaks every file from filling up with them.
const repairEvery = time.Minute

// suspect says that reading has found the database damaged; the committer acts.
func (s *Store) suspect(err error) {
	if !unusable(err) {
		return
	}
	s.mu.Lock()
	if s.damage == nil {
		s.damage = err
		s.hurryLocked()
	}
	s.mu.Unlock()
}

// repair replaces a damaged database. It runs on the committer's goroutine between
// two batches.
func (s *Store) repair(cause error) error {
	if s.single {
		s.connMu.Lock()
		defer s.connMu.Unlock()
	}
	if !s.repaired.IsZero() && time.Since(s.repaired) < repairEvery {
		return fmt.Errorf("repaired a moment ago and damaged again: %w", cause)
	}
	s.repaired = time.Now()
	defer s.pauseKeeper()()
	// Reads under way end first; others wait for the new connections.
	for range cap(s.readers) {
		if d := <-s.readers; d != nil {
			_ = d.close() // of a damaged file
		}
	}
	err := s.replace(cause)
	return errors.Join(err, s.lendAgain())
}

func (s *Store) replace(cause error) error {
	if s.w != nil {
		_ = s.w.close() // of a damaged file
		s.w = nil
	}
	s.salvaging = true
	aside, err := s.beginSalvage()
	if err != nil {
		s.salvaging = s.salvageDue()
		return err
	}
	s.log.Error("database set aside", "path", aside, "err", cause)
	if err := s.openWriterAndMigrate(); err != nil {
		return err
	}
	report, err := s.salvage(context.Background(), aside)
	if err != nil {
		return err
	}
	s.mu.Lock()
	lost, err := s.rebuildLocked(s.w)
	if err == nil {
		s.setAside, s.salvaged, s.damage = aside, report, nil
		s.counts.integrity = ""
		s.files++
	}
	s.mu.Unlock()
	if err == nil {
		err = s.endSalvage()
	}
	if err != nil {
		return fmt.Errorf("rebuild: %w", err)
	}
	s.salvaging = false
	s.log.Warn("database salvaged", "path", aside, "result", report, "lost", lost)
	s.tendLog() // the keeper must come over
	s.reportRepair(Repair{Time: time.Now(), SetAside: aside, Reason: cause.Error(), Salvaged: report, Lost: lost})
	return nil
}

func (s *Store) reportRepair(r Repair) {
	if s.opts.OnRepair != nil {
		s.opts.OnRepair(r)
	}
}

// rebuildLocked writes what memory knows over what was salvaged, and counts
// anew.
func (s *Store) rebuildLocked(d *db) (lost int64, err error) {
	err = d.exec("BEGIN IMMEDIATE")
	for _, step := range []func(*db) error{s.rebuildMeta, s.rebuildQueues, s.rebuildSets, s.dropTailRows} {
		if err == nil {
			err = step(d)
		}
	}
	if err == nil {
		err = d.exec("COMMIT")
	}
	if err != nil {
		if d.inTransaction() {
			err = errors.Join(err, d.exec("ROLLBACK"))
		}
		return 0, err
	}
	return s.recountLocked(d)
}

func (s *Store) rebuildMeta(d *db) error {
	s.id = newID()
	for key, value := range map[string]int64{"seq_mark": int64(s.mark), "next_queue": int64(s.nextQueue), "store_id": s.id} {
		if err := d.exec("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", key, value); err != nil {
			return err
		}
	}
	if err := writeNumbers(d, s.numbers); err != nil {
		return err
	}
	now := time.Now()
	for i, r := range s.clock.runs {
		number := int64(s.clock.number) - int64(len(s.clock.runs)-1-i)
		err := d.exec("INSERT OR REPLACE INTO run (number, first_seq, opened, clock, last, last_wall, synced) VALUES (?, ?, ?, ?, ?, ?, ?)",
			number, int64(r.first), r.opened, r.clock, s.clock.now(now), now.UnixMicro(), flag(s.synchronised()))
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) rebuildQueues(d *db) error {
	for _, q := range s.queues {
		id := int64(q.id)
		var err error
		switch {
		case q.base != nil: // with the first one
		case q.uplink:
			q.state = "" // see salvageTables
			err = d.exec("INSERT OR REPLACE INTO uplink (queue, name, state) VALUES (?, ?, '')", id, q.name)
			if err == nil {
				err = rebuildLanes(d, q)
			}
		default:
			err = d.exec("INSERT OR IGNORE INTO session (queue, client_id, expiry, offline, user) VALUES (?, ?, ?, ?, ?)",
				id, q.name, int64(q.expiry), offlineValue(q, s.clock.now(time.Now())), q.user)
		}
		if err == nil {
			err = rebuildStreams(d, q)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func offlineValue(q *queue, now int64) driver.Value {
	if q.r != nil {
		return nil
	}
	return now
}

func rebuildStreams(d *db, q *queue) error {
	id := int64(q.id)
	for _, query := range [...]string{"DELETE FROM delivery2 WHERE queue = ?", "DELETE FROM inbound WHERE queue = ?"} {
		if err := d.exec(query, id); err != nil {
			return err
		}
	}
	for i := range q.streams {
		st := &q.streams[i]
		if err := d.exec("INSERT OR REPLACE INTO stream (queue, qos, cursor) VALUES (?, ?, ?)", id, int64(st.qos), int64(st.cursor)); err != nil {
			return err
		}
	}
	for packetID := range q.inbound {
		if err := d.exec("INSERT INTO inbound (queue, packet_id, seq) VALUES (?, ?, 0)", id, int64(packetID)); err != nil {
			return err
		}
	}
	st := q.stream(2)
	for seq, d2 := range st.deliveries {
		if err := writeDelivery2(d, q.id, seq, d2.packetID, d2.state); err != nil {
			return err
		}
	}
	done := make([]durable.Seq, 0, len(st.finished))
	for seq := range st.finished {
		done = append(done, seq)
	}
	for _, h := range st.out {
		if h.finished {
			done = append(done, h.seq)
		}
	}
	for _, seq := range done {
		if err := writeDelivery2(d, q.id, seq, 0, stateDone); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) rebuildSets(d *db) error {
	if err := d.exec("DELETE FROM claim"); err != nil {
		return err
	}
	for _, set := range s.sets {
		set.stored = true
		if err := set.insert(d); err != nil {
			return err
		}
	}
	return nil
}

// dropTailRows removes rows of a commit that had landed and is to be made again.
func (s *Store) dropTailRows(d *db) (err error) {
	s.tail.after(0, func(e *entry) bool {
		err = d.exec("DELETE FROM message WHERE seq = ?", int64(e.seq))
		return err == nil
	})
	return err
}

// recountLocked counts what there is, and what is not there any more.
func (s *Store) recountLocked(d *db) (lost int64, err error) {
	before := make(map[*queue]int64, len(s.queues))
	for _, q := range s.queues {
		before[q] = q.messages
		q.messages, q.bytes = 0, 0
	}
	s.counts.load, s.counts.sessions = load{}, load{}
	for _, set := range s.sets {
		set.rows, set.from, set.last = 0, 0, 0
	}
	s.spent = spentRows{}
	have := make(map[*stream]map[durable.Seq]bool)
	err = d.rowSizes(context.Background(), func(seq durable.Seq, setID, size int64) {
		s.recountRow(seq, s.setsByID[setID], size, have)
	})
	if err != nil {
		return 0, err
	}
	s.tail.after(0, func(e *entry) bool {
		for i := range e.claims {
			if c := &e.claims[i]; c.state == claimUnsafe && s.queues[c.Queue] == c.q {
				s.countIn(c.q, e.size)
			}
		}
		return true
	})
	for _, q := range s.queues {
		for i := range q.streams {
			s.forgetAheadLocked(&q.streams[i])
			s.forgetLost(&q.streams[i], have[&q.streams[i]])
		}
		if n := before[q] - q.messages; n > 0 {
			lost += n
			for range n {
				q.drop("damaged")
			}
		}
	}
	if err := s.reloadLatest(d); err != nil {
		return 0, err
	}
	clear(s.retained)
	err = d.query(context.Background(), func(row []driver.Value) error {
		s.retained[text(row[0])] = struct{}{}
		return nil
	}, "SELECT topic FROM retained")
	s.tail.after(0, func(e *entry) bool {
		if e.m.Retain {
			s.keepRetainedLocked(e)
		}
		return true
	})
	s.spent.add(0)
	s.spent.now = true
	return lost, err
}

func (s *Store) countIn(q *queue, size int64) {
	q.messages++
	q.bytes += size
	s.countLocked(q, 1, size)
}

func (s *Store) recountRow(seq durable.Seq, set *claimset, size int64, have map[*stream]map[durable.Seq]bool) {
	s.spent.noteRow(set, seq, size)
	if set == nil {
		return
	}
	for _, c := range set.claims {
		q := s.queues[c.Queue]
		if q == nil {
			continue
		}
		st := q.stream(c.QoS)
		i := st.find(seq)
		if _, gone := q.latest.replaced[seq]; gone {
			continue
		}
		if _, done := st.finished[seq]; done || seq <= st.cursor || i >= 0 && st.out[i].finished {
			continue
		}
		s.countIn(q, size)
		if i >= 0 {
			if have[st] == nil {
				have[st] = make(map[durable.Seq]bool)
			}
			have[st][seq] = true
		}
	}
}

// forgetLost finishes deliveries in the recipient's hands that have no row any
// more: they cannot be sent again, and an acknowledgement may still come.
func (s *Store) forgetLost(st *stream, have map[durable.Seq]bool) {
	for i := range st.out {
		h := &st.out[i]
		if h.finished || have[h.seq] || s.tail.get(h.seq) != nil {
			continue
		}
		h.finished = true
		st.dirty = true
	}
	st.advance()
}

// openedRepair reports a database set aside by Open.
func (s *Store) openedRepair(cause error) {
	s.reportRepair(Repair{Time: time.Now(), SetAside: s.setAside, Reason: cause.Error(), Salvaged: s.salvaged})
}

// missingStreams gives queues that were salvaged without their cursors new ones:
// what was finished comes again rather than not at all.
func missingStreams(d *db) error {
	for qos := int64(1); qos <= 2; qos++ {
		err := d.exec("INSERT OR IGNORE INTO stream (queue, qos, cursor) SELECT queue, ?1, 0 FROM session UNION SELECT queue, ?1, 0 FROM uplink UNION SELECT queue, ?1, 0 FROM lane", qos)
		if err != nil {
			return err
		}
	}
	return nil
}

// newID returns a random number that is not 0.
func newID() int64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // it never fails
	return int64(binary.LittleEndian.Uint64(b[:])>>1) | 1
}
