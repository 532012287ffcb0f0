package storeforward

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/mattn/go-sqlite3"

	"holdfast/broker/durable"
)

// readerConns is how many may read rows at the same time; more wait. Reads are
// short, and the writer is never blocked by them.
const readerConns = 2

// Open opens the store, made when there is none. A database that cannot be used
// (damaged, or not ours) is set aside with a time stamp and what can be read of
// it is copied into a fresh one; one from a newer version is an error and left
// unchanged.
func Open(ctx context.Context, opts Options, log *slog.Logger) (*Store, error) {
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	s := &Store{
		opts: opts, log: log.With("component", "store"), disk: opts.Disk, path: opts.Path,
		wake: make(chan struct{}, 1), tend: make(chan struct{}, 1), thinner: make(chan struct{}, 1),
		stop: make(chan struct{}), stopped: make(chan struct{}),
		sets: make(map[string]*claimset), setsByID: make(map[int64]*claimset),
		queues: make(map[durable.QueueID]*queue), bySession: make(map[string]*queue), byUplink: make(map[string]*queue),
		retained: make(map[string]struct{}),
		late:     make(map[*stream]time.Time),
		vacuum:   true, // the last run may have had no time for it
	}
	s.single = s.disk != nil
	if s.disk == nil {
		s.disk = fileSystem{}
	}
	if !s.single {
		s.path = resolveLink(s.path)
	}
	if err := s.takeLock(); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	s.beginProbation()
	if err := s.openDatabase(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open store: %w", err), s.giveLock())
	}
	if opts.Sync != SyncFull {
		s.log.Warn("commits are not flushed to the medium", "sync", opts.Sync)
	}
	s.takeReserve()
	run, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	s.wg.Go(s.commitLoop)
	s.wg.Go(func() { s.keep(run) })
	s.wg.Go(func() { s.thin(run) })
	return s, nil
}

// resolveLink returns the file that a symbolic link stands for, there or not: what
// lies beside the database lies beside that file.
func resolveLink(path string) string {
	for range 40 { // as many as Linux follows
		to, err := os.Readlink(path)
		if err != nil {
			break
		}
		if !filepath.IsAbs(to) {
			to = filepath.Join(filepath.Dir(path), to)
		}
		path = to
	}
	if dir, err := filepath.EvalSymlinks(filepath.Dir(path)); err == nil {
		path = filepath.Join(dir, filepath.Base(path))
	}
	return path
}

// openDatabase opens the file, and a fresh one when it is beyond use. On a disk
// that is full the reserve is given up for it; on one that takes nothing at all a
// database that can be read is served as it is, see [Store.deferRun].
func (s *Store) openDatabase(ctx context.Context) error {
	if err := s.takeBack(); err != nil {
		if DiskRefuses(err) {
			return s.useSpare(ctx, err)
		}
		return err
	}
	err := s.openOrReplace(ctx)
	if err == nil || !DiskRefuses(err) {
		return err
	}
	first := err
	if s.releaseReserve(err) {
		s.forget()
		if err = s.openOrReplace(ctx); err == nil || !DiskRefuses(err) {
			return err
		}
	}
	if s.salvageDue() {
		return errors.Join(err, errSalvageCut) // what is at the path now is not the database
	}
	s.crippled = true
	if s.isNew() {
		return s.useSpare(ctx, first)
	}
	s.forget()
	if err = s.openAndLoad(ctx); err != nil && DiskRefuses(err) && !s.single {
		s.heapIndex = true
		s.forget()
		err = s.openAndLoad(ctx)
	}
	if err != nil {
		return s.useSpare(ctx, first)
	}
	return nil
}

// DiskRefuses says whether an error is one of a disk that is full, broken, or not to
// be written.
func DiskRefuses(err error) bool {
	code, ok := sqliteCode(err)
	return ok && (code == sqlite3.ErrFull || code == sqlite3.ErrIoErr || code == sqlite3.ErrReadonly || code == sqlite3.ErrCantOpen) ||
		diskFull(err) || readOnlyDisk(err)
}

// readOnlyDisk says whether an error means that nothing can be written at all.
func readOnlyDisk(err error) bool {
	for _, is := range [...]error{syscall.EROFS, syscall.EIO, fs.ErrPermission} {
		if errors.Is(err, is) {
			return true
		}
	}
	return false
}

// isNew says whether there is no database yet.
func (s *Store) isNew() bool {
	size, err := s.disk.Size(s.path)
	return errors.Is(err, fs.ErrNotExist) || err == nil && size == 0
}

func (s *Store) openOrReplace(ctx context.Context) error {
	var err error
	if s.salvageDue() {
		err = errSalvageCut
	} else if err = s.openAndLoad(ctx); err == nil || !unusable(err) {
		return err
	}
	aside, asideErr := s.beginSalvage()
	if asideErr != nil {
		return errors.Join(err, asideErr)
	}
	s.setAside = aside
	s.log.Error("database set aside", "path", aside, "err", err)
	if err := s.openWriterAndMigrate(); err != nil {
		return err
	}
	s.forget() // what of it had been loaded
	reason := err
	s.salvaged, err = s.salvage(ctx, aside)
	if err == nil {
		s.log.Warn("database salvaged", "path", aside, "result", s.salvaged)
		err = s.endSalvage()
	}
	if err == nil {
		err = s.load(ctx)
	}
	if err == nil {
		s.openedRepair(reason)
		return s.openReaders()
	}
	return errors.Join(err, s.closeConnections())
}

func (s *Store) openAndLoad(ctx context.Context) error {
	if err := s.inspect(); err != nil {
		return err
	}
	err := s.openWriterAndMigrate()
	if err == nil {
		err = s.load(ctx)
	}
	if err == nil {
		err = s.openReaders()
	}
	if err != nil {
		return errors.Join(err, s.closeConnections())
	}
	return nil
}

// errForeign means that the file is a database of some other program.
var errForeign = errors.New("not a database of Holdfast")

// unusable says whether an error means that the file will never open.
func unusable(err error) bool {
	if errors.Is(err, errForeign) || errors.Is(err, errOrphanLog) {
		return true
	}
	code, ok := sqliteCode(err)
	return ok && (code == sqlite3.ErrCorrupt || code == sqlite3.ErrNotADB)
}

// inspect looks at an existing file without changing it.
func (s *Store) inspect() error {
	if err := s.inspectLog(); err != nil {
		return err
	}
	size, err := s.disk.Size(s.path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && size == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	params := s.params()
	if !s.single && !s.heapIndex { // who may only read has no index in memory
		params.Set("mode", "ro")
	}
	d, err := openDB(s.path, params)
	if err != nil {
		return err
	}
	return errors.Join(s.inspectHeader(d), d.close())
}

func (s *Store) inspectHeader(d *db) error {
	app, err := d.queryInt("PRAGMA application_id")
	if err != nil {
		return err
	}
	version, err := d.queryInt("PRAGMA user_version")
	if err != nil {
		return err
	}
	tables, err := d.queryInt("SELECT count(*) FROM sqlite_schema")
	if err != nil {
		return err
	}
	list, err := loadMigrations(migrations)
	if err != nil {
		return err
	}
	switch {
	case tables == 0 && version == 0:
		return nil // power was cut while it was being made
	case app != applicationID:
		return errForeign
	case version > int64(len(list)):
		return fmt.Errorf("%s has schema %d, this release knows %d: %w", s.path, version, len(list), ErrNewerVersion)
	default:
		return nil
	}
}

func (s *Store) params() url.Values {
	// One goroutine uses a connection at a time, so it needs no mutex.
	params := url.Values{"_mutex": {"no"}, "_busy_timeout": {"5000"}}
	switch {
	case s.single:
		params.Set("vfs", s.disk.VFS())
		params.Set("_locking_mode", "EXCLUSIVE")
	case s.heapIndex:
		params.Set("vfs", "unix-excl")
	}
	return params
}

func (s *Store) openWriterAndMigrate() error {
	d, err := s.openWriter()
	if err != nil {
		return err
	}
	if s.crippled {
		// What is in the log may find room in the database.
		s.noteCheckpoint(checkpoint(d, "TRUNCATE"))
	}
	list, err := loadMigrations(migrations)
	if err == nil {
		err = migrate(d, list)
	}
	if err == nil && !s.crippled {
		// The file and its log exist now; their folder must know it.
		err = s.disk.SyncDir(filepath.Dir(s.path))
	}
	if err != nil {
		return errors.Join(err, d.close())
	}
	s.w = d
	return nil
}

// openWriter opens the connection that writes and asserts that its commits are
// synced.
func (s *Store) openWriter() (*db, error) {
	// This pragma writes the first page each time it is given.
	setup, fresh := "", s.isNew()
	if fresh {
		setup = "PRAGMA auto_vacuum = INCREMENTAL; "
	}
	d, err := openDB(s.path, s.params())
	if err != nil {
		return nil, err
	}
	sync := strings.ToUpper(s.opts.Sync)
	if s.opts.faults.syncOff {
		sync = "OFF"
	}
	setup += "PRAGMA journal_mode = WAL; PRAGMA synchronous = " + sync + `;
		PRAGMA wal_autocheckpoint = 0; PRAGMA cache_size = -4096; PRAGMA temp_store = MEMORY; PRAGMA trusted_schema = OFF;
		PRAGMA journal_size_limit = ` + strconv.FormatInt(s.opts.WALBytes, 10)
	if err = d.script(setup); err == nil {
		err = assertDurable(d, sync)
	}
	if err == nil {
		_, err = d.queryInt("SELECT count(*) FROM sqlite_schema") // opens the log
	}
	if err == nil && fresh {
		// A log must not be durable without its database.
		err = s.disk.SyncDir(filepath.Dir(s.path))
	}
	if err != nil {
		return nil, errors.Join(err, d.close())
	}
	s.noteFiles()
	return d, nil
}

// assertDurable asks the connection itself: a pragma that does not take is silent.
func assertDurable(d *db, sync string) error {
	mode, err := d.queryText("PRAGMA journal_mode")
	if err != nil {
		return err
	}
	level, err := d.queryInt("PRAGMA synchronous")
	if err != nil {
		return err
	}
	if want := map[string]int64{"OFF": 0, "NORMAL": 1, "FULL": 2}[sync]; mode != "wal" || level != want {
		return fmt.Errorf("database is in journal mode %q with synchronous %d, want wal and %d", mode, level, want)
	}
	return nil
}

func (s *Store) openReaders() error {
	if s.single {
		return nil
	}
	if s.readers == nil {
		s.readers = make(chan *db, readerConns)
	}
	var conns [readerConns]*db
	for i := range conns {
		d, err := s.openReader()
		if err != nil {
			for _, d := range conns[:i] {
				err = errors.Join(err, d.close())
			}
			return err
		}
		conns[i] = d
	}
	for _, d := range conns {
		s.readers <- d
	}
	return nil
}

func (s *Store) openReader() (*db, error) {
	path, params := s.path, s.params()
	params.Set("mode", "rw") // the writer makes the file
	if s.spare != nil {
		path, params = s.spare.path, s.spare.params
	}
	d, err := openDB(path, params)
	if err != nil {
		return nil, err
	}
	err = d.script("PRAGMA query_only = ON; PRAGMA synchronous = FULL; PRAGMA cache_size = -1024; PRAGMA wal_autocheckpoint = 0; PRAGMA trusted_schema = OFF")
	if err == nil && s.spare == nil {
		err = assertDurable(d, "FULL")
	}
	if err != nil {
		return nil, errors.Join(err, d.close())
	}
	return d, nil
}

func (s *Store) closeConnections() error {
	var err error
	for len(s.readers) > 0 {
		if d := <-s.readers; d != nil {
			err = errors.Join(err, d.close())
		}
	}
	if s.w != nil {
		err = errors.Join(err, s.w.close())
		s.w = nil
	}
	return err
}

// moveAside renames the database and its log with a time stamp; nothing is ever
// deleted.
func (s *Store) moveAside() (string, error) {
	aside := s.asideName()
	return aside, s.moveAsideTo(aside)
}

func (s *Store) moveAsideTo(aside string) error {
	// The shared memory file is an index of the log and made again.
	for _, suffix := range []string{"-wal", "-shm", ""} {
		switch _, err := s.disk.Size(s.path + suffix); {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return fmt.Errorf("set aside: %w", err)
		}
		if err := s.disk.Rename(s.path+suffix, aside+suffix); err != nil {
			return fmt.Errorf("set aside: %w", err)
		}
	}
	if err := s.disk.SyncDir(filepath.Dir(s.path)); err != nil {
		return fmt.Errorf("set aside: %w", err)
	}
	return nil
}

func (s *Store) asideName() string {
	return s.path + ".aside-" + time.Now().UTC().Format("20060102T150405.000000000")
}

// fileSystem is the real disk.
type fileSystem struct{}

// VFS implements Disk: SQLite's own.
func (fileSystem) VFS() string { return "" }

// Size implements Disk.
func (fileSystem) Size(name string) (int64, error) {
	info, err := os.Stat(name)
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// Rename implements Disk; SyncDir makes it durable.
func (fileSystem) Rename(from, to string) error { return os.Rename(from, to) }

// ReadFile implements Disk.
func (fileSystem) ReadFile(name string) ([]byte, error) { return os.ReadFile(name) }

// WriteFile implements Disk.
func (fileSystem) WriteFile(name string, b []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

// SyncDir implements Disk.
func (fileSystem) SyncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
