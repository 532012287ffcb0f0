package main

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/mattn/go-sqlite3"
)

// sqliteBatches are the rows per transaction; 200 is as many as the publishers
// have in flight.
var sqliteBatches = []int{1, 10, 100, 200, 1000}

func sqliteRows(batch int) string  { return fmt.Sprintf("%d per transaction, rows/s", batch) }
func sqliteBytes(batch int) string { return fmt.Sprintf("%d per transaction, bytes per row", batch) }

func sqliteCPU(batch int) string { return fmt.Sprintf("%d per transaction, CPU µs per row", batch) }

const (
	sqliteSelect    = "rows selected/s"
	sqliteSelectCPU = "CPU µs per row selected"
)

// sqlite measures the limit: the same driver, used as directly as the store does,
// with the store's pragmas and rows of 150 bytes.
func (b *storeBench) sqlite(ctx context.Context) error {
	for _, batch := range sqliteBatches {
		if err := b.sqliteBatch(ctx, batch); err != nil {
			return err
		}
	}
	return nil
}

func (b *storeBench) sqliteBatch(ctx context.Context, batch int) error {
	return withDatabase(ctx, func(c *sqlite3.SQLiteConn) error {
		before, err := writtenBytes(os.Getpid())
		if err != nil {
			return err
		}
		cpu, err := ownCPU()
		if err != nil {
			return err
		}
		rows, took, err := insertFor(ctx, c, batch, b.length)
		if err != nil {
			return err
		}
		if err := b.noteOwnCPU(sqliteCPU(batch), cpu, rows); err != nil {
			return err
		}
		after, err := writtenBytes(os.Getpid())
		if err != nil {
			return err
		}
		b.note(sqliteRows(batch), bare, float64(rows)/took.Seconds())
		b.note(sqliteBytes(batch), bare, float64(after-before)/float64(rows))
		if batch == sqliteBatches[len(sqliteBatches)-1] {
			return b.selectAll(ctx, c, rows)
		}
		return nil
	})
}

// commitsAlone is how many transactions of one row there are in a second.
func commitsAlone(ctx context.Context, length time.Duration) (perSecond float64, err error) {
	err = withDatabase(ctx, func(c *sqlite3.SQLiteConn) error {
		rows, took, err := insertFor(ctx, c, 1, length)
		perSecond = float64(rows) / took.Seconds()
		return err
	})
	return perSecond, err
}

// withDatabase lends a fresh database with the table of the store.
func withDatabase(ctx context.Context, fn func(*sqlite3.SQLiteConn) error) (err error) {
	dir, err := os.MkdirTemp("", "holdfast-bench")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	dc, err := (&sqlite3.SQLiteDriver{}).Open("file:" + filepath.Join(dir, "bare.db") + "?_mutex=no")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dc.Close()) }()
	c, ok := dc.(*sqlite3.SQLiteConn)
	if !ok {
		return fmt.Errorf("unexpected connection type %T", dc)
	}
	const setup = `PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA cache_size = -4096; PRAGMA temp_store = MEMORY;
		CREATE TABLE message (seq INTEGER PRIMARY KEY, claimset INTEGER NOT NULL, topic TEXT NOT NULL, payload BLOB NOT NULL, properties BLOB, qos INTEGER NOT NULL,
			retain INTEGER NOT NULL, expiry INTEGER, received INTEGER NOT NULL, source TEXT NOT NULL) STRICT`
	if _, err := c.ExecContext(ctx, setup, nil); err != nil {
		return err
	}
	return fn(c)
}

func insertFor(ctx context.Context, c *sqlite3.SQLiteConn, batch int, length time.Duration) (rows int, took time.Duration, err error) {
	const text = "INSERT INTO message (seq, claimset, topic, payload, properties, qos, retain, expiry, received, source) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
	var stmts [3]*sqlite3.SQLiteStmt
	for i, sql := range []string{"BEGIN IMMEDIATE", text, "COMMIT"} {
		s, err := c.Prepare(sql)
		if err != nil {
			return 0, 0, err
		}
		defer func() { err = errors.Join(err, s.Close()) }()
		stmts[i], _ = s.(*sqlite3.SQLiteStmt)
	}
	payload := make([]byte, storePayload)
	args := make([]driver.NamedValue, 10)
	began := time.Now()
	for time.Since(began) < length {
		if _, err := stmts[0].ExecContext(ctx, nil); err != nil {
			return 0, 0, err
		}
		for range batch {
			rows++
			for i, v := range []driver.Value{int64(rows), int64(1), "q/1", payload, nil, int64(1), int64(0), nil, began.UnixMicro(), "publisher of 25 bytes' id"} {
				args[i] = driver.NamedValue{Ordinal: i + 1, Value: v}
			}
			if _, err := stmts[1].ExecContext(ctx, args); err != nil {
				return 0, 0, err
			}
		}
		if _, err := stmts[2].ExecContext(ctx, nil); err != nil {
			return 0, 0, err
		}
	}
	return rows, time.Since(began), nil
}

func (b *storeBench) selectAll(ctx context.Context, c *sqlite3.SQLiteConn, rows int) (err error) {
	cpu, err := ownCPU()
	if err != nil {
		return err
	}
	began := time.Now()
	cursor, err := c.QueryContext(ctx, "SELECT seq, claimset, topic, payload, properties, qos, retain, expiry, received, source FROM message", nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cursor.Close()) }()
	row := make([]driver.Value, 10)
	n := 0
	for {
		err := cursor.Next(row)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		n++
	}
	if n != rows {
		return fmt.Errorf("selected %d of %d rows", n, rows)
	}
	b.note(sqliteSelect, bare, float64(n)/time.Since(began).Seconds())
	return b.noteOwnCPU(sqliteSelectCPU, cpu, n)
}

// ownCPU is the CPU time this process has used.
func ownCPU() (time.Duration, error) {
	var u syscall.Rusage
	err := syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), err
}

func (b *storeBench) noteOwnCPU(measure string, before time.Duration, rows int) error {
	after, err := ownCPU()
	if err == nil {
		b.note(measure, bare, float64((after-before).Nanoseconds())/1e3/float64(rows))
	}
	return err
}
