package storeforward

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"time"

	"holdfast/broker/durable"
)

// How often the store's clock is made durable for itself: often while messages
// are kept that grow older, less often while only sessions do. Commits that happen
// anyway carry it along as often as their own rows do not say the time.
const (
	clockEvery        = time.Minute
	clockEverySession = 10 * time.Minute
	clockWithCommit   = 5 * time.Second
)

// ID names this database: it is made at random with it, and made new when the
// database was salvaged, or is older than the one used last (a backup came
// back). Who keeps something at a peer that belongs to this database asks for it.
func (s *Store) ID() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return fmt.Sprintf("%016x", s.id)
}

// startRun continues the store's clock and numbers this start. The mark goes
// with it: it must be durable before the first number is given.
func (s *Store) startRun(ctx context.Context, d *db) error {
	s.clock.start = time.Now()
	s.clock.opened = s.clock.start.UnixMicro()
	var last, lastWall int64
	synced := false
	err := d.query(ctx, func(row []driver.Value) error {
		s.clock.number = uint64(integer(row[0]))
		s.clock.runs = append(s.clock.runs, run{first: durable.Seq(integer(row[1])), opened: integer(row[2]), clock: integer(row[3])})
		last, lastWall, synced = integer(row[4]), integer(row[5]), integer(row[6]) != 0
		if seen := time.UnixMicro(lastWall); synced && seen.After(s.clock.floor) {
			s.clock.floor = seen
		}
		return nil
	}, "SELECT number, first_seq, opened, clock, last, last_wall, synced FROM run ORDER BY number")
	if err != nil {
		return err
	}
	if err := s.loadID(d, last); err != nil {
		return err
	}
	s.clock.number++
	// The last run was open at least until the newest thing it has left. That
	// matters after a power cut, which kept the run from saying so itself.
	newest, err := s.newestTime(ctx, d)
	if err != nil {
		return err
	}
	s.clock.base = max(last, newest)
	if off := s.clock.opened - lastWall; synced && s.synchronised() && off > 0 {
		s.clock.base = max(s.clock.base, last+off)
	}
	s.clock.runs = append(s.clock.runs, run{first: s.seq + 1, opened: s.clock.opened, clock: s.clock.base})
	s.touched = s.clock.start
	s.clock.ended = max(last, newest)
	if s.spare != nil { // nothing is written there
		s.deferRun(s.spare.cause)
		return nil
	}
	err = d.exec("BEGIN IMMEDIATE")
	if err == nil {
		err = s.insertRun(d, s.mark)
	}
	if err == nil {
		err = d.exec("COMMIT")
	}
	if err == nil {
		s.keepKnown(s.clock.base)
		return nil
	}
	if d.inTransaction() {
		err = errors.Join(err, d.exec("ROLLBACK"))
	}
	if !s.crippled || !DiskRefuses(err) {
		return err
	}
	s.deferRun(err)
	return nil
}

// insertRun notes this start. It may be done twice.
func (s *Store) insertRun(d *db, mark durable.Seq) error {
	first := int64(s.clock.runs[len(s.clock.runs)-1].first)
	for _, change := range []struct {
		sql  string
		args []driver.Value
	}{
		{"UPDATE meta SET value = ? WHERE key = 'seq_mark'", []driver.Value{int64(mark)}},
		{"INSERT OR REPLACE INTO meta (key, value) VALUES ('store_id', ?)", []driver.Value{s.id}},
		{"INSERT OR REPLACE INTO run (number, first_seq, opened, clock, last, last_wall, synced) VALUES (?, ?, ?, ?, ?, ?, ?)", []driver.Value{
			int64(s.clock.number), first, s.clock.opened, s.clock.base, s.clock.base, s.clock.opened, flag(s.synchronised()),
		}},
		// Older runs only if no message can be from them.
		{`DELETE FROM run WHERE number < (SELECT max(number) FROM run WHERE first_seq <=
			min(coalesce((SELECT min(seq) FROM message), ?1), coalesce((SELECT min(seq) FROM retained), ?1)))`, []driver.Value{first}},
		// Who was connected when the power went has been offline since.
		{"UPDATE session SET offline = ? WHERE offline IS NULL", []driver.Value{s.clock.ended}},
	} {
		if err := d.exec(change.sql, change.args...); err != nil {
			return err
		}
	}
	return nil
}

// deferRun lets a store start on a disk that takes nothing: it is failing until
// the first commit, which notes the start before all else. Until then nothing
// that carries a number of this run is durable, so that the mark may wait too.
func (s *Store) deferRun(err error) {
	s.failed(err)
	s.mu.Lock()
	defer s.mu.Unlock()
	mark := s.mark
	s.opLocked(func(d *db) error { return s.insertRun(d, mark) }, nil, nil)
}

// newestTime returns the store's clock at the newest thing that is durable.
func (s *Store) newestTime(ctx context.Context, d *db) (newest int64, err error) {
	for _, query := range [...]string{
		"SELECT seq, received FROM message ORDER BY seq DESC LIMIT 1",
		"SELECT seq, received FROM retained WHERE topic = (SELECT topic FROM retained ORDER BY seq DESC LIMIT 1)",
	} {
		err := d.query(ctx, func(row []driver.Value) error {
			if r := s.clock.runOf(durable.Seq(integer(row[0]))); r != nil {
				newest = max(newest, r.clock+integer(row[1])-r.opened)
			}
			return nil
		}, query)
		if err != nil {
			return 0, err
		}
	}
	offline, err := d.queryInt("SELECT max(offline) FROM session")
	return max(newest, offline), err
}

// loadID reads the identity of the database, or makes one.
func (s *Store) loadID(d *db, last int64) error {
	var err error
	if s.id, err = d.queryInt("SELECT value FROM meta WHERE key = 'store_id'"); err != nil {
		return err
	}
	if known := s.lastKnown(); s.id != 0 && known > last {
		s.log.Warn("database is older than the one used last", "path", s.path, "missing", time.Duration(known-last)*time.Microsecond)
		s.id = 0
	}
	if s.logLost { // it is not the database that peers know
		s.id = 0
	}
	if s.id == 0 {
		s.id = newID()
	}
	return nil
}

// touch writes down the store's clock, at most once per interval, and returns it
// when it did.
func (s *Store) touch(d *db, every time.Duration) (clock int64, err error) {
	now := time.Now()
	if now.Sub(s.touched) < every {
		return 0, nil
	}
	clock = s.clock.now(now)
	return clock, d.exec("UPDATE run SET last = ?, last_wall = ?, synced = ? WHERE number = ?",
		clock, now.UnixMicro(), flag(s.synchronised()), int64(s.clock.number))
}

// touchedAt notes that the clock of a touch is durable.
func (s *Store) touchedAt(clock int64) {
	if clock != 0 {
		s.touched = time.Now()
		s.keepKnown(clock)
	}
}

// clockDueLocked says whether the clock must be written though nothing else is, or
// when to look again.
func (s *Store) clockDueLocked(now time.Time) (wait time.Duration, due bool) {
	last := s.touched
	if s.looked.After(last) {
		last = s.looked
	}
	if wait = last.Add(clockEvery).Sub(now); wait > 0 {
		return wait, false
	}
	s.looked = now
	sessions := now.Sub(s.touched) >= clockEverySession
	for _, q := range s.queues {
		if q.messages > int64(q.unsafe) || sessions && !q.uplink && q.r == nil && q.expiry != durable.SessionExpiryNever {
			return 0, true
		}
	}
	return clockEvery, false
}

func (s *Store) synchronised() bool {
	return s.opts.ClockSynchronised != nil && s.opts.ClockSynchronised()
}
