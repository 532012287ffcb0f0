package storeforward

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync/atomic"
)

// A disk that takes nothing when the store opens (it is mounted read-only, full, or
// broken for now) leaves it without a database that it could write: there is none
// yet, or a migration is due, or SQLite needs a log beside the file even to read it.
// The store then reads from a spare: the file itself, as one that nobody changes, or
// a copy of it in memory, brought up to the schema of this release. Nothing is ever
// committed to a spare: the store is failing, and each attempt to commit tries to
// open the file. When that works the file takes the place of the spare, which holds
// the same, and what has gathered in memory is committed.

// maxSpareBytes bounds the copy in memory.
const maxSpareBytes = 64 << 20

// spare is where a store reads whose file cannot be written.
type spare struct {
	path   string
	params url.Values
	cause  error // why the file was not opened
}

// spares counts the copies in memory, for their names.
var spares atomic.Int64

// useSpare opens a spare in the place of the database.
func (s *Store) useSpare(ctx context.Context, cause error) error {
	s.crippled, s.heapIndex = true, false
	err := s.openAsIs(ctx, cause)
	if err != nil {
		if errors.Is(err, ErrNewerVersion) {
			return err
		}
		if err = s.openCopy(ctx, cause); err != nil {
			return errors.Join(cause, err)
		}
	}
	s.log.Error("database not opened for writing", "path", s.path, "err", cause)
	return nil
}

// openAsIs serves the file as one that nobody changes, which needs neither its log
// nor shared memory.
func (s *Store) openAsIs(ctx context.Context, cause error) error {
	if s.single || s.isNew() || s.size("-wal") > 0 {
		return errors.New("not one file that could be read as it is")
	}
	s.forget()
	s.spare = &spare{s.path, url.Values{"_mutex": {"no"}, "mode": {"ro"}, "immutable": {"1"}}, cause}
	d, err := s.openSpare()
	if err != nil {
		return err
	}
	list, err := loadMigrations(migrations)
	if err == nil {
		err = s.inspectHeader(d)
	}
	if err == nil {
		var version int64
		if version, err = d.queryInt("PRAGMA user_version"); err == nil && version != int64(len(list)) {
			err = errors.New("a migration is due")
		}
	}
	return s.serveSpare(ctx, d, err)
}

// openCopy copies the file into memory and brings it up to this release.
func (s *Store) openCopy(ctx context.Context, cause error) error {
	s.forget()
	s.spare = &spare{
		fmt.Sprintf("/holdfast-spare-%d", spares.Add(1)), // a name with a slash is shared within the process
		url.Values{"_mutex": {"no"}, "_busy_timeout": {"5000"}, "vfs": {"memdb"}},
		cause,
	}
	d, err := s.openSpare()
	if err != nil {
		return err
	}
	if !s.isNew() {
		err = s.copyToSpare()
	}
	list, lerr := loadMigrations(migrations)
	if err = errors.Join(err, lerr); err == nil {
		err = migrate(d, list)
	}
	return s.serveSpare(ctx, d, err)
}

func (s *Store) copyToSpare() (err error) {
	if size := s.size("") + s.size("-wal"); size > maxSpareBytes {
		return fmt.Errorf("%d bytes are too many for a copy in memory", size)
	}
	from, err := s.openSource()
	if err != nil {
		return err
	}
	if err = s.inspectHeader(from); err == nil {
		// Not by the backup: a copy in memory cannot have a log, and would say
		// that it has one.
		err = from.exec("VACUUM INTO ?", "file:"+s.spare.path+"?vfs=memdb")
	}
	return errors.Join(err, from.close())
}

// openSource opens the file for reading where SQLite cannot: it reads nothing
// without making shared memory beside it.
func (s *Store) openSource() (*db, error) {
	if s.single {
		return openDB(s.path, s.params())
	}
	pages, err := openPages(s.path)
	if err != nil {
		return nil, err
	}
	image, err := pages.image()
	if err = errors.Join(err, pages.close()); err != nil {
		return nil, err
	}
	d, err := openDB(":memory:", url.Values{"mode": {"memory"}})
	if err != nil {
		return nil, err
	}
	if err := d.c.Deserialize(image, "main"); err != nil {
		return nil, errors.Join(err, d.close())
	}
	return d, nil
}

func (s *Store) openSpare() (*db, error) {
	d, err := openDB(s.spare.path, s.spare.params)
	if err != nil {
		s.spare = nil
	}
	return d, err
}

// serveSpare reads the spare d, unless there was an error before.
func (s *Store) serveSpare(ctx context.Context, d *db, err error) error {
	if err != nil {
		s.spare = nil
		return errors.Join(err, d.close())
	}
	s.w = d
	if err = s.load(ctx); err == nil {
		err = s.openReaders()
	}
	if err != nil {
		err = errors.Join(err, s.closeConnections())
		s.spare = nil
	}
	return err
}

// errOtherDatabase means that the file is not what the spare was made from.
var errOtherDatabase = errors.New("another database has come into the place of the one that was there at the start; a restart uses it")

// leaveSpare opens the file in the place of the spare. It runs on the committer's
// goroutine, which has the only connection of a single one.
func (s *Store) leaveSpare() (err error) {
	if !s.single {
		defer s.pauseKeeper()() // it opens connections too
	}
	before, err := s.sameness(s.w)
	if err != nil {
		return err
	}
	if !s.single {
		if err := os.MkdirAll(filepath.Dir(s.path), 0o750); err != nil {
			return err
		}
		if err := s.keepLock(); err != nil {
			return err
		}
	}
	was, old := s.spare, s.w
	s.spare, s.w = nil, nil
	defer func() {
		if err == nil {
			return
		}
		if s.w != nil {
			err = errors.Join(err, s.w.close())
		}
		s.opened.Store(nil)
		s.spare, s.w = was, old
	}()
	if err := s.takeBack(); err != nil {
		return err
	}
	if err := s.inspect(); err != nil {
		return err
	}
	if err := s.openWriterAndMigrate(); err != nil {
		return err
	}
	if err := s.disk.SyncDir(filepath.Dir(s.path)); err != nil {
		return err
	}
	after, err := s.sameness(s.w)
	if err != nil {
		return err
	}
	if before != after {
		return errOtherDatabase
	}
	if !s.single {
		for range cap(s.readers) { // reads under way end first, others wait
			if d := <-s.readers; d != nil {
				s.noteCheckpoint(d.close())
			}
		}
		s.noteCheckpoint(s.lendAgain())
	}
	s.noteCheckpoint(old.close())
	s.mu.Lock()
	s.files++
	s.mu.Unlock()
	s.log.Info("database opened", "path", s.path)
	return nil
}

// sameness is what tells two states of a database apart: every start, and whatever
// a start does, changes some of it.
func (s *Store) sameness(d *db) (state [6]int64, err error) {
	for i, query := range [...]string{
		"SELECT max(number) FROM run",
		"SELECT max(last) FROM run",
		"SELECT value FROM meta WHERE key = 'seq_mark'",
		"SELECT value FROM meta WHERE key = 'next_queue'",
		"SELECT value FROM meta WHERE key = 'store_id'",
		"SELECT max(seq) FROM message",
	} {
		err := d.query(context.Background(), func(row []driver.Value) error {
			state[i] = integer(row[0])
			return nil
		}, query)
		if err != nil {
			return state, err
		}
	}
	return state, nil
}
