package storeforward

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// The lock file keeps a second daemon away from the database: SQLite's own locks
// would let it in between two commits. It also knows until when the database was
// used: one that ends earlier has been put in its place.

func (s *Store) lockPath() string { return s.path + ".lock" }

// errIntruder means that another process holds the lock of a database in use.
var errIntruder = errors.New("in use by another process")

// takeLock takes the lock. A disk that takes nothing leaves the store without one
// until keepLock finds that it can be had.
func (s *Store) takeLock() error {
	if s.single {
		return nil
	}
	f, err := os.OpenFile(s.lockPath(), os.O_RDWR|os.O_CREATE, 0o600)
	if lockless(err) {
		if f, err = os.Open(s.lockPath()); lockless(err) {
			s.log.Warn("lock file not made", "path", s.lockPath(), "err", err)
			return nil
		}
	}
	if err != nil {
		return err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return errors.Join(fmt.Errorf("%s is %w: %w", s.path, errIntruder, err), f.Close())
	}
	s.lock.Store(f)
	return nil
}

// lockless says whether an error leaves a store without its lock for now.
func lockless(err error) bool {
	return readOnlyDisk(err) || diskFull(err) || errors.Is(err, fs.ErrNotExist)
}

// keepLock takes the lock when the store has none, or has one that nobody else would
// meet: the file has been removed or replaced. If another process has come in
// between, both would give the same numbers to different messages, and what is in
// memory here is not what is in the file: nothing is committed any more.
func (s *Store) keepLock() error {
	if s.single {
		return nil
	}
	old := s.lock.Load()
	if old != nil {
		was, err := old.Stat()
		if err != nil {
			return err
		}
		is, err := os.Stat(s.lockPath())
		if err == nil && os.SameFile(was, is) || err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil
		}
	}
	if err := s.takeLock(); err != nil {
		if errors.Is(err, errIntruder) && s.intruder.Load() == nil {
			err = fmt.Errorf("%w, which has come in after the lock file was removed; a restart is needed", err)
			s.intruder.Store(&err)
		}
		return err
	}
	if old != nil && s.lock.Load() != old {
		s.log.Warn("lock file was removed or replaced, locked again", "path", s.lockPath())
		return old.Close()
	}
	return nil
}

func (s *Store) giveLock() error {
	if f := s.lock.Load(); f != nil {
		return f.Close()
	}
	return nil
}

// lastKnown is the store's clock as the lock file has it, 0 for unknown.
func (s *Store) lastKnown() int64 {
	f := s.lock.Load()
	if f == nil {
		return 0
	}
	var b [32]byte
	n, _ := f.ReadAt(b[:], 0) // one that cannot be read says nothing
	known, err := strconv.ParseInt(strings.TrimSpace(string(b[:n])), 10, 64)
	if err != nil {
		return 0
	}
	return known
}

// keepKnown notes the store's clock after it has become durable. It is not
// synced: a value that is too low says less and nothing wrong.
func (s *Store) keepKnown(clock int64) {
	f := s.lock.Load()
	if f == nil || clock == 0 {
		return
	}
	if _, err := f.WriteAt(fmt.Appendf(nil, "%20d\n", clock), 0); err != nil {
		s.log.Debug("lock file not written", "path", s.lockPath(), "err", err)
	}
}
