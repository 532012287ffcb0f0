package storeforward

import (
	"errors"
	"io"
	"os"
	"path/filepath"
)

// A young database lives in its log. SQLite deletes a log whose database is missing
// or empty, and writes over one whose header it cannot read, without a word: such a
// log is set aside first.

// errOrphanLog means that there is a log without its database.
var errOrphanLog = errors.New("the database is missing or empty and its log is not")

// inspectLog looks at the log before SQLite does.
func (s *Store) inspectLog() error {
	size, err := s.disk.Size(s.path + "-wal")
	if err != nil || size == 0 {
		return nil //nolint:nilerr // there is none, or SQLite will say what is wrong
	}
	if s.isNew() {
		return errOrphanLog
	}
	if s.single || size <= walHeader {
		return nil
	}
	good, err := readableLog(s.path + "-wal")
	if err != nil || good {
		return err
	}
	aside := s.asideName() + "-wal"
	if err := s.disk.Rename(s.path+"-wal", aside); err != nil {
		return err
	}
	s.setAside, s.logLost = aside, true
	s.salvaged = "the database; what was in the log only is missing"
	s.log.Error("log of the database set aside", "path", aside, "err", "its header is damaged")
	return s.disk.SyncDir(filepath.Dir(s.path))
}

// readableLog says whether SQLite will read the log.
func readableLog(name string) (good bool, err error) {
	f, err := os.Open(name)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	var h [walHeader]byte
	if _, err := io.ReadFull(f, h[:]); err != nil {
		return false, err
	}
	_, good = checkLog(h)
	return good, nil
}

// standIn gives a log that was set aside without its database an empty page to be
// read onto: SQLite deletes the log of an empty file.
func (s *Store) standIn(aside string) error {
	if s.single {
		return nil
	}
	wal, err := os.Stat(aside + "-wal")
	if err != nil || wal.Size() == 0 {
		return nil //nolint:nilerr // it has none
	}
	switch info, err := os.Stat(aside); {
	case err == nil && info.Size() > 0:
		return nil
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return err
	}
	return os.WriteFile(aside, make([]byte, 4096), 0o600)
}
