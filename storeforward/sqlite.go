package storeforward

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net/url"

	"github.com/mattn/go-sqlite3"
)

// db is one SQLite connection with its prepared statements. One goroutine uses
// it at a time. It speaks to the driver directly: database/sql would add its
// locks and conversions to every row.
type db struct {
	c     *sqlite3.SQLiteConn
	stmts map[string]*statement
}

type statement struct {
	s    *sqlite3.SQLiteStmt
	args []driver.NamedValue
}

// openDB opens the file with the URI parameters given.
func openDB(path string, params url.Values) (*db, error) {
	if err := extendSQLite(); err != nil {
		return nil, err
	}
	u := url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: params.Encode()}
	c, err := (&sqlite3.SQLiteDriver{}).Open(u.String())
	if err != nil {
		return nil, err
	}
	sc, ok := c.(*sqlite3.SQLiteConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("unexpected connection type %T", c), c.Close())
	}
	return &db{c: sc, stmts: make(map[string]*statement)}, nil
}

// prepared returns the statement of the query with its arguments bound in Go
// memory. Queries are constants of this package, so their number is bounded.
func (d *db) prepared(query string, args []driver.Value) (*statement, error) {
	st := d.stmts[query]
	if st == nil {
		ds, err := d.c.Prepare(query)
		if err != nil {
			return nil, fmt.Errorf("prepare %q: %w", query, err)
		}
		s, ok := ds.(*sqlite3.SQLiteStmt)
		if !ok {
			return nil, fmt.Errorf("unexpected statement type %T", ds)
		}
		st = &statement{s: s}
		d.stmts[query] = st
	}
	st.args = st.args[:0]
	for i, a := range args {
		st.args = append(st.args, driver.NamedValue{Ordinal: i + 1, Value: a})
	}
	return st, nil
}

// exec runs a statement that returns no rows.
func (d *db) exec(query string, args ...driver.Value) error {
	st, err := d.prepared(query, args)
	if err != nil {
		return err
	}
	_, err = st.s.ExecContext(context.Background(), st.args)
	clear(st.args)
	return err
}

// errEnough stops a query.
var errEnough = errors.New("enough")

// query calls fn with each row; the values are fn's to keep. The slice is not.
func (d *db) query(ctx context.Context, fn func(row []driver.Value) error, query string, args ...driver.Value) (err error) {
	st, err := d.prepared(query, args)
	if err != nil {
		return err
	}
	rows, err := st.s.QueryContext(ctx, st.args)
	clear(st.args)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	row := make([]driver.Value, len(rows.Columns()))
	for {
		switch err := rows.Next(row); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		if err := fn(row); err != nil {
			return err
		}
	}
}

// queryInt returns the first column of the first row, 0 when there is none.
func (d *db) queryInt(query string, args ...driver.Value) (n int64, err error) {
	err = d.query(context.Background(), func(row []driver.Value) error {
		n = integer(row[0])
		return nil
	}, query, args...)
	return n, err
}

// queryText is queryInt for text.
func (d *db) queryText(query string, args ...driver.Value) (s string, err error) {
	err = d.query(context.Background(), func(row []driver.Value) error {
		s = text(row[0])
		return nil
	}, query, args...)
	return s, err
}

// script runs several statements without arguments, not prepared for later.
func (d *db) script(sql string) error {
	_, err := d.c.ExecContext(context.Background(), sql, nil)
	return err
}

// inTransaction says whether a transaction is open.
func (d *db) inTransaction() bool { return !d.c.AutoCommit() }

func (d *db) close() error {
	var err error
	for _, st := range d.stmts {
		err = errors.Join(err, st.s.Close())
	}
	clear(d.stmts)
	return errors.Join(err, d.c.Close())
}

// The columns as Go values; a column of another type (a damaged file) is the
// zero value.
func integer(v driver.Value) int64 {
	n, ok := v.(int64)
	if !ok {
		return 0
	}
	return n
}

func text(v driver.Value) string {
	switch s := v.(type) {
	case string:
		return s
	case []byte:
		return string(s)
	default:
		return ""
	}
}

func blob(v driver.Value) []byte {
	b, ok := v.([]byte)
	if !ok || len(b) == 0 {
		return nil
	}
	return b
}

func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// sqliteCode returns the primary result code of an error of SQLite.
func sqliteCode(err error) (sqlite3.ErrNo, bool) {
	if e, ok := errors.AsType[sqlite3.Error](err); ok {
		return e.Code, true
	}
	return 0, false
}

// changes is exec that returns the number of rows changed.
func (d *db) changes(query string, args ...driver.Value) (int64, error) {
	st, err := d.prepared(query, args)
	if err != nil {
		return 0, err
	}
	res, err := st.s.ExecContext(context.Background(), st.args)
	clear(st.args)
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}
