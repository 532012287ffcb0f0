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
// it is put back and all goes on.

// reserveEvery is how often it is tried to put the reserve back, reserveMargin how
// much more than the reserve must be free for it.
const (
	reserveEvery  = 5 * time.Second
	reserveMargin = 1 << 20
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
	} else if err = s.disk.Allocate(s.reservePath(), s.opts.ReserveBytes); diskFull(err) {
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
	s.low = true
	s.counts.lastErr, s.counts.lastErrAt = err.Error(), time.Now()
	s.mu.Unlock()
	s.reserveTried = time.Now()
	if released {
		s.log.Error("disk full, reserve released", "err", err)
	}
	return released
}

// restoreReserve tries to put the reserve back, now and then.
func (s *Store) restoreReserve() {
	now := time.Now()
	s.mu.Lock()
	low := s.low
	s.mu.Unlock()
	if !low || now.Sub(s.reserveTried) < reserveEvery {
		return
	}
	s.reserveTried = now
	err := s.disk.Allocate(s.reservePath(), s.opts.ReserveBytes+reserveMargin)
	if err == nil {
		err = s.disk.Allocate(s.reservePath(), s.opts.ReserveBytes)
	}
	if err != nil {
		if rerr := s.disk.Remove(s.reservePath()); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
		if readOnlyDisk(err) {
			// Not for lack of room. Nothing might be written now that says
			// so: a failing store tries the disk.
			s.failed(err)
			s.mu.Lock()
			s.hurryLocked()
			s.mu.Unlock()
		}
		s.log.Debug("reserve not set aside", "err", err)
		return
	}
	s.mu.Lock()
	s.low = false
	s.mu.Unlock()
	s.log.Info("disk has room again, reserve set aside")
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
