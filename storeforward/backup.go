package storeforward

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
)

// backupPages is how much is copied between two looks at ctx: 1 MB.
const backupPages = 256

// Backup copies the database at path, which a daemon may be using, into the file
// dst as of one moment. The copy is checked, and durable under its name when
// Backup returns; until then there is only dst with .part behind it, and a file
// that was at dst before stays as it is. The copy can be put in the place of the
// database; it gets an identity of its own there, so that peers do not take it
// for the one that they have gone on with. progress is called with pages.
func Backup(ctx context.Context, path, dst string, progress func(done, total int)) (err error) {
	part := dst + ".part"
	if err := removeDatabase(part); err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	f, err := os.OpenFile(part, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			err = fmt.Errorf("backup to %s: %w", dst, errors.Join(err, removeDatabase(part)))
		}
	}()
	if err := readOnly(path, func(src *db) error { return copyDatabase(ctx, src, part, progress) }); err != nil {
		return err
	}
	if err := finishCopy(ctx, part); err != nil {
		return err
	}
	// SQLite has replaced nothing: f is still the file.
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(part, dst); err != nil {
		return err
	}
	return fileSystem{}.SyncDir(filepath.Dir(dst))
}

func removeDatabase(name string) error {
	var err error
	for _, suffix := range []string{"", "-wal", "-shm", "-journal"} {
		if rerr := os.Remove(name + suffix); rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	return err
}

func copyDatabase(ctx context.Context, src *db, dst string, progress func(done, total int)) (err error) {
	to, err := openDB(dst, url.Values{"_mutex": {"no"}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.close()) }()
	// With a snapshot held, commits of the daemon do not start the copy
	// over; else a busy one would never be copied.
	if err := src.script("BEGIN; SELECT count(*) FROM sqlite_schema"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.script("ROLLBACK")) }()
	b, err := to.c.Backup("main", src.c, "main")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Finish()) }()
	for {
		done, err := b.Step(backupPages)
		if err != nil {
			return err
		}
		if progress != nil {
			progress(b.PageCount()-b.Remaining(), b.PageCount())
		}
		if done {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

// finishCopy makes the copy one file with no identity, and checks it.
func finishCopy(ctx context.Context, name string) (err error) {
	d, err := openDB(name, url.Values{"_mutex": {"no"}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	if err := d.script("PRAGMA journal_mode = DELETE; PRAGMA synchronous = FULL; DELETE FROM meta WHERE key = 'store_id'"); err != nil {
		return err
	}
	return d.query(ctx, func(row []driver.Value) error {
		if s := text(row[0]); s != "ok" {
			return fmt.Errorf("the copy fails its check: %s", s)
		}
		return nil
	}, "PRAGMA quick_check")
}
