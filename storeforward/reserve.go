package storeforward

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/mattn/go-sqlite3"
)

// The reserve is an empty file beside the database that holds space. When the disk
// is full it is removed, so that cursors, deletions and what was taken before can
// still be written; from then on nothing is taken that would have to be kept.
// When there is room for it again, and a margin so that it does not come and go,
// it is put back and all goes on. Where there is not for a minute, because others have
// the room or the disk is smaller than was thought, half of it has to do, and half of
// that, down to minReserve; the whole is put back when there is room for it.

// reserveEvery is how often it is tried to put the reserve back, and reserveWhole how
// often to make it whole when it has been reduced; after reserveTries it is reduced.
// reserveMargin is how much more must be free, at most.
const (
	reserveEvery  = 5 * time.Second
	reserveTries  = 12
	reserveWhole  = time.Minute
	reserveMargin = 1 << 20
	minReserve    = 256 << 10
)

func (s *Store) reservePath() string { return s.path + ".reserve" }

// takeReserve sets the reserve aside when the store opens. A disk too full for it
// is one that is full.
func (s *Store) takeReserve() {
	if s.low || s.crippled {
		return // it has just been given up, or is of no use
	}
	var err error
	if s.opts.ReserveBytes == 0 {
		err = s.disk.Remove(s.reservePath()) // an earlier configuration's
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	} else if err = s.allocateReserve(s.opts.ReserveBytes); diskFull(err) {
		err = fmt.Errorf("no room for the reserve of %d bytes: %w", s.opts.ReserveBytes, err)
		s.mu.Lock()
		s.low = true
		s.counts.lastErr, s.counts.lastErrAt = err.Error(), time.Now()
		s.mu.Unlock()
	}
	if err != nil {
		s.log.Warn("reserve not set aside", "path", s.reservePath(), "err", err)
	}
}

// releaseReserve gives the reserve up when err says that the disk is full. It
// returns true when that has made room.
func (s *Store) releaseReserve(err error) bool {
	if s.opts.ReserveBytes == 0 || !diskFull(err) && !s.noRoom() {
		return false
	}
	released := s.disk.Remove(s.reservePath()) == nil
	s.mu.Lock()
	s.low, s.reserve = true, 0
	s.counts.lastErr, s.counts.lastErrAt = err.Error(), time.Now()
	s.mu.Unlock()
	s.reserveTried = time.Now()
	if released {
		s.log.Error("disk full, reserve released", "err", err)
	}
	return released
}

// allocateReserve makes the reserve that large.
func (s *Store) allocateReserve(n int64) error {
	err := s.disk.Allocate(s.reservePath(), n)
	if err == nil {
		s.mu.Lock()
		s.reserve = n
		s.mu.Unlock()
	}
	return err
}

// reserveWaitLocked is how long it may take until the reserve is looked at again.
func (s *Store) reserveWaitLocked() time.Duration {
	switch {
	case s.low:
		return reserveEvery
	case s.reserve < s.opts.ReserveBytes && !s.failing:
		return reserveWhole
	default:
		return time.Hour
	}
}

// restoreReserve tries to put the reserve back, now and then.
func (s *Store) restoreReserve() {
	now := time.Now()
	s.mu.Lock()
	low, held, every := s.low, s.reserve, s.reserveWaitLocked()
	s.mu.Unlock()
	if every == time.Hour || now.Sub(s.reserveTried) < every {
		return
	}
	s.reserveTried = now
	want := s.opts.ReserveBytes
	if low {
		want = max(want>>s.reserveHalved, min(want, minReserve))
	}
	err := s.makeReserve(held, want)
	switch {
	case err == nil:
		s.reserveFailed = 0
		s.mu.Lock()
		s.low = false
		s.mu.Unlock()
		if want == s.opts.ReserveBytes {
			s.reserveHalved = 0
		}
		if low {
			s.log.Info("disk has room again, reserve set aside", "bytes", want, "wanted", s.opts.ReserveBytes)
		} else {
			s.log.Info("reserve is whole again", "bytes", want)
		}
		return
	case readOnlyDisk(err):
		// Not for lack of room. Nothing might be written now that says
		// so: a failing store tries the disk.
		s.failed(err)
		s.mu.Lock()
		s.hurryLocked()
		s.mu.Unlock()
	case low && diskFull(err):
		if s.reserveFailed++; s.reserveFailed >= reserveTries && want > minReserve {
			s.reserveFailed = 0
			s.reserveHalved++
			s.log.Warn("reserve reduced: there is no room for it", "bytes", want, "err", err)
		}
	}
	s.log.Debug("reserve not set aside", "err", err)
}

// makeReserve makes the reserve larger than the one that is held, if there is room for
// it and a margin.
func (s *Store) makeReserve(held, want int64) error {
	need := want - held + min(reserveMargin, want)
	free, err := s.disk.Free(filepath.Dir(s.path))
	if err == nil && free < need {
		return fmt.Errorf("%d bytes are free, %d needed: %w", free, need, syscall.ENOSPC)
	}
	if err = s.disk.Allocate(s.reservePath(), want+min(reserveMargin, want)); err == nil {
		return s.allocateReserve(want)
	}
	if held > 0 {
		return errors.Join(err, s.allocateReserve(held))
	}
	if rerr := s.disk.Remove(s.reservePath()); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	return err
}

// noRoom says whether there is too little space even for a small commit.
func (s *Store) noRoom() bool {
	const small = 64 << 10 // a few pages and their checksums
	free, err := s.disk.Free(filepath.Dir(s.path))
	return err == nil && free < small
}

// diskFull says whether an error means that there is no space.
func diskFull(err error) bool {
	if e, ok := errors.AsType[sqlite3.Error](err); ok && (e.Code == sqlite3.ErrFull || e.SystemErrno == syscall.ENOSPC || e.SystemErrno == syscall.EDQUOT) {
		return true
	}
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// Allocate implements Disk.
func (fileSystem) Allocate(name string, bytes int64) error {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err = f.Truncate(bytes); err == nil && bytes > 0 {
		err = syscall.Fallocate(int(f.Fd()), 0, 0, bytes)
	}
	return errors.Join(err, f.Close())
}

// Free implements Disk.
func (fileSystem) Free(dir string) (int64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * int64(st.Bsize), nil //nolint:unconvert // of other types on 32-bit machines
}

// Remove implements Disk.
func (fileSystem) Remove(name string) error { return os.Remove(name) }
