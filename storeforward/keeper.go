package storeforward

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"holdfast/broker/durable"
)

// afterCommit looks after the size of the log. Copying it into the database is
// the keeper's work; the committer does it itself only when the keeper cannot
// keep up, or there is only one connection.
func (s *Store) afterCommit(deleted bool) {
	if deleted {
		s.vacuum, s.deleted = true, time.Now()
	}
	wal := s.size("-wal")
	if wal <= s.opts.WALBytes {
		return
	}
	if s.single || wal > 4*s.opts.WALBytes {
		s.lockSingle()
		err := checkpoint(s.w, "TRUNCATE")
		s.unlockSingle()
		s.noteCheckpoint(err)
		return
	}
	s.tendLog()
}

// tendLog asks the keeper for a checkpoint.
func (s *Store) tendLog() {
	select {
	case s.tend <- struct{}{}:
	default: // it has not come round to the last request
	}
}

func (s *Store) lockSingle() {
	if s.single {
		s.connMu.Lock()
	}
}

func (s *Store) unlockSingle() {
	if s.single {
		s.connMu.Unlock()
	}
}

// size of the database or, with "-wal", its log; 0 when there is none.
func (s *Store) size(suffix string) int64 {
	n, err := s.disk.Size(s.path + suffix)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Debug("size unknown", "path", s.path+suffix, "err", err)
	}
	return n
}

func (s *Store) noteCheckpoint(err error) {
	if err == nil {
		return
	}
	s.mu.Lock()
	s.counts.checkpointErrors++
	s.counts.lastErr, s.counts.lastErrAt = err.Error(), time.Now()
	s.mu.Unlock()
	s.log.Debug("checkpoint failed", "err", err)
}

// keep is the keeper goroutine: passive checkpoints beside the committer, and a
// check of each database it meets.
func (s *Store) keep(ctx context.Context) {
	if s.single {
		return
	}
	for ctx.Err() == nil {
		s.keepFile(ctx)
	}
}

// keepFile keeps one database, until it is replaced.
func (s *Store) keepFile(run context.Context) {
	s.keeperMu.Lock()
	defer s.keeperMu.Unlock()
	ctx, cancel := context.WithCancel(run)
	defer cancel()
	s.mu.Lock()
	files := s.files
	paused := s.keeperPaused
	s.keeperCancel = cancel
	s.mu.Unlock()
	if paused {
		return
	}
	d, err := s.openReader()
	if err != nil {
		s.noteCheckpoint(err)
		select {
		case <-s.tend: // until there is something to do
		case <-ctx.Done():
		}
		return
	}
	defer func() { s.noteCheckpoint(d.close()) }()
	if err := d.script("PRAGMA query_only = OFF"); err != nil {
		s.noteCheckpoint(err)
	}
	s.check(ctx, d, files)
	ticker := time.NewTicker(lookUpEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			s.lookUp()
		case <-s.tend:
			s.mu.Lock()
			replaced := s.files != files
			s.mu.Unlock()
			if replaced {
				return
			}
			s.noteCheckpoint(checkpoint(d, "PASSIVE"))
		case <-ctx.Done():
			return
		}
	}
}

// check reads the whole database once and says what is wrong with it.
func (s *Store) check(ctx context.Context, d *db, files int) {
	result := "ok"
	err := d.query(ctx, func(row []driver.Value) error {
		if r := text(row[0]); r != "ok" {
			result = r
		}
		return nil
	}, "PRAGMA quick_check(1)")
	switch {
	case ctx.Err() != nil:
		return
	case err != nil:
		result = err.Error()
	}
	s.mu.Lock()
	if s.files != files { // of a file that has been set aside meanwhile
		s.mu.Unlock()
		return
	}
	s.counts.integrity = result
	s.mu.Unlock()
	if result != "ok" {
		s.log.Error("database is damaged", "err", result)
		s.mu.Lock()
		if s.files == files {
			s.damage = fmt.Errorf("check: %s", result)
			s.hurryLocked()
		}
		s.mu.Unlock()
	}
}

// vacuumStep is how many pages one step gives back, and keepFree how many may
// stay for new rows.
const (
	vacuumStep = 256
	keepFree   = 256
	// vacuumAfter is how long no row must have been deleted: in the middle of a
	// drain pages would be moved that are free themselves a moment later.
	vacuumAfter = time.Second
)

// trimIn is how long trim is not worth calling.
func (s *Store) trimIn() time.Duration {
	if !s.vacuum {
		return time.Hour
	}
	return time.Until(s.deleted.Add(vacuumAfter))
}

// trim gives space back to the file system, a little at a time while there is
// nothing else to do. It returns true when there is more.
func (s *Store) trim() bool {
	if !s.vacuum || s.trimIn() > 0 {
		return false
	}
	s.vacuum = false
	s.lockSingle()
	defer s.unlockSingle()
	if s.w == nil || s.spare != nil {
		return false
	}
	free, err := s.w.queryInt("PRAGMA freelist_count")
	if err == nil && free > keepFree+vacuumStep {
		err = s.w.query(context.Background(), func([]driver.Value) error { return nil }, "PRAGMA incremental_vacuum(256)")
		s.vacuum, s.trimmed = err == nil, true
	}
	if err == nil && !s.vacuum && s.trimmed { // the file shrinks when the log is copied into it
		s.trimmed = false
		if s.single {
			err = checkpoint(s.w, "TRUNCATE")
		} else {
			s.tendLog()
		}
	}
	s.noteCheckpoint(err)
	return s.vacuum
}

// Close takes nothing any more, commits everything appended, and closes the
// database. It returns after every done has been called; what could not be
// committed was told durable.ErrClosed.
func (s *Store) Close() error {
	s.mu.Lock()
	first := !s.closing
	s.closing = true
	s.mu.Unlock()
	if !first {
		<-s.stopped
		return nil
	}
	close(s.stop)
	s.wakeCommitter()
	s.cancel()
	s.wg.Wait()
	err := s.closeReaders()
	if !s.single {
		s.forgetCrashes()
	}
	defer close(s.stopped)
	return errors.Join(s.closeErr, err, s.giveLock())
}

// closeReaders waits for reads under way.
func (s *Store) closeReaders() error {
	var err error
	for range cap(s.readers) {
		if d := <-s.readers; d != nil {
			err = errors.Join(err, d.close())
		}
	}
	return err
}

// finish is the committer's last act.
func (s *Store) finish() error {
	var calls []func(error)
	s.mu.Lock()
	s.finished = true
	unsafe := s.tail.len()
	s.tail.after(0, func(e *entry) bool {
		calls = append(calls, e.done)
		return true
	})
	for _, o := range s.ops {
		calls = append(calls, o.done)
	}
	withheld := s.unparked // what they stand for is safe
	for _, q := range s.queues {
		for _, p := range q.parked {
			withheld = append(withheld, p.done)
		}
	}
	s.tail, s.ops, s.unparked = tail{}, nil, nil
	clear(s.queues)
	s.mu.Unlock()
	for _, done := range withheld {
		call(done, nil)
	}
	for _, done := range calls {
		call(done, durable.ErrClosed)
	}
	err := s.closeWriter()
	if unsafe > 0 {
		s.log.Error("store closed with messages not safe", "messages", unsafe)
	}
	return err
}

func (s *Store) closeWriter() error {
	s.lockSingle()
	defer s.unlockSingle()
	if s.w == nil {
		return nil
	}
	if s.spare != nil || s.salvaging || s.intruder.Load() != nil { // nothing to be written there
		err := s.w.close()
		s.w = nil
		return err
	}
	clock, err := s.touch(s.w, 0)
	if err == nil {
		s.touchedAt(clock)
	}
	if cerr := checkpoint(s.w, "PASSIVE"); cerr != nil {
		s.log.Debug("checkpoint failed", "err", cerr)
	}
	err = errors.Join(err, s.w.close())
	s.w = nil
	return err
}
