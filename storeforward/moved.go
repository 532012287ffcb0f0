package storeforward

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"time"
)

// Files of Unix can be removed, renamed or replaced while they are open; whoever
// has them open goes on with files that are lost when they are closed. So after
// each commit, and now and then, the names are looked up again. What is open is
// whole: it is copied to where it belongs, and what is there by then set aside.

// lookUpEvery is how often an idle store looks.
const lookUpEvery = 5 * time.Second

// errMoved means that the files that are open are no longer those of the path.
var errMoved = errors.New("removed or replaced while in use")

// fileSuffixes are of the files that a commit relies on.
var fileSuffixes = [...]string{"", "-wal"}

// noteFiles remembers which files the path stands for, after they were opened.
func (s *Store) noteFiles() {
	if s.single {
		return
	}
	var opened [len(fileSuffixes)]os.FileInfo
	for i, suffix := range fileSuffixes {
		if info, err := os.Stat(s.path + suffix); err == nil {
			opened[i] = info
		}
	}
	s.opened.Store(&opened)
}

// moved says whether the path still stands for the files that are open.
func (s *Store) moved() error {
	opened := s.opened.Load()
	if opened == nil {
		return nil
	}
	for i, was := range opened {
		if was == nil {
			continue
		}
		is, err := os.Stat(s.path + fileSuffixes[i])
		if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(was, is) {
			return fmt.Errorf("%s: %w", s.path+fileSuffixes[i], errMoved)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// lookUp makes the committer act when the files have moved though nothing is
// committed.
func (s *Store) lookUp() {
	s.lookAtProbation()
	err := s.keepLock()
	if errors.Is(err, errIntruder) || s.intruder.Load() != nil {
		err = *s.intruder.Load()
	} else {
		err = s.moved()
	}
	if err == nil {
		return
	}
	s.failed(err)
	s.mu.Lock()
	s.hurryLocked() // a failing store commits something
	s.mu.Unlock()
}

// pauseKeeper makes the keeper close its connection until resume is called. The
// last connection of a file that closes removes the log under its name, which may
// be another file's by then: all must be closed before another one is there.
func (s *Store) pauseKeeper() (resume func()) {
	s.mu.Lock()
	s.keeperPaused = true
	cancel := s.keeperCancel
	s.mu.Unlock()
	if cancel != nil {
		cancel()
	}
	s.keeperMu.Lock() // it is held while the connection is open
	return func() {
		s.mu.Lock()
		s.keeperPaused = false
		s.mu.Unlock()
		s.keeperMu.Unlock()
		s.tendLog()
	}
}

// bringBack puts a copy of what is open where it belongs, with the folder if that is
// gone, and closes every connection. It runs on the committer's goroutine.
func (s *Store) bringBack() error {
	part := s.path + ".part"
	err := os.MkdirAll(filepath.Dir(s.path), 0o750)
	if err == nil {
		err = s.keepLock()
	}
	if err == nil {
		err = removeDatabase(part)
	}
	if err == nil {
		err = s.copyOpen(part)
	}
	if err == nil {
		err = finishMove(part)
	}
	if err == nil { // complete: a start takes it if there is nothing else
		err = s.disk.Rename(part, s.backPath())
	}
	if err == nil {
		err = s.disk.SyncDir(filepath.Dir(s.path))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("bring the database back: %w", err), removeDatabase(part))
	}
	defer s.pauseKeeper()()
	for range cap(s.readers) { // reads under way end first, others wait
		if d := <-s.readers; d != nil {
			s.noteCheckpoint(d.close())
		}
	}
	aside, err := s.moveAside()
	if err != nil {
		s.noteCheckpoint(s.lendAgain())
		return fmt.Errorf("bring the database back: %w", err)
	}
	if s.w != nil {
		s.noteCheckpoint(s.w.close())
		s.w = nil
	}
	s.opened.Store(nil)
	if err = s.disk.Rename(s.backPath(), s.path); err == nil {
		err = s.disk.SyncDir(filepath.Dir(s.path))
	}
	if err == nil {
		s.w, err = s.openWriter()
	}
	s.noteCheckpoint(s.lendAgain())
	if err != nil {
		return fmt.Errorf("bring the database back: %w", err)
	}
	s.log.Warn("database brought back", "path", s.path, "set_aside", aside)
	return nil
}

// copyOpen copies the database that is open. After an error of the disk the writing
// connection may be closed; those for reading still have it.
func (s *Store) copyOpen(to string) error {
	ctx := context.Background()
	if s.w != nil {
		return copyDatabase(ctx, s.w, to, nil)
	}
	for range cap(s.readers) {
		d := <-s.readers
		if d == nil {
			s.readers <- d
			continue
		}
		err := copyDatabase(ctx, d, to, nil)
		s.readers <- d
		return err
	}
	return errNotOpen
}

func (s *Store) backPath() string { return s.path + ".back" }

// takeBack ends a bringBack that was cut short.
func (s *Store) takeBack() error {
	if size, err := s.disk.Size(s.backPath()); err != nil || size == 0 || !s.isNew() {
		return nil //nolint:nilerr // there is none, or the disk will say so again
	}
	s.log.Warn("database brought back", "path", s.path)
	if _, err := s.moveAside(); err != nil {
		return err
	}
	if err := s.disk.Rename(s.backPath(), s.path); err != nil {
		return err
	}
	return s.disk.SyncDir(filepath.Dir(s.path))
}

// lendAgain opens connections for reading in the place of those that were taken
// from s.readers, all of them; reads fail while there are none. As many are put back
// as were taken: whoever waits for one may have it before the next is there.
func (s *Store) lendAgain() error {
	err := errSalvageCut // part of a copy has gaps
	if !s.salvaging {
		err = s.openReaders()
	}
	if err != nil {
		for range cap(s.readers) {
			s.readers <- nil // reads fail instead of waiting
		}
	}
	return err
}

// finishMove checks the copy and makes it durable.
func finishMove(name string) (err error) {
	d, err := openDB(name, url.Values{"_mutex": {"no"}})
	if err != nil {
		return err
	}
	err = d.script("PRAGMA journal_mode = DELETE; PRAGMA synchronous = FULL")
	if err == nil {
		err = d.query(context.Background(), func(row []driver.Value) error {
			if s := text(row[0]); s != "ok" {
				return fmt.Errorf("the copy fails its check: %s", s)
			}
			return nil
		}, "PRAGMA quick_check")
	}
	if err = errors.Join(err, d.close()); err != nil {
		return err
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
