package storeforward

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"holdfast/broker/durable"
)

// salvaged tables, with their columns; the key comes first. An uplink's state is
// emptied: its peer's session belongs to the state that is lost, so the uplink
// starts clean. Likewise nothing is said of clocks and runs.
var salvageTables = []struct{ name, columns string }{
	{"meta", "key, value"},
	{"run", "number, first_seq, opened, clock, last, last_wall, synced"},
	{"session", "queue, client_id, expiry, offline, user"},
	{"uplink", "queue, name, state"},
	{"lane", "queue, uplink, lane, latest"},
	{"lane_routes", "uplink, upto, routes"},
	{"subscription", "queue, filter, qos, no_local, retain_as_published, retain_handling, subscription_id"},
	{"stream", "queue, qos, cursor"},
	{"claim", "claimset, queue, qos, retain, subscription_ids"},
	{"delivery2", "queue, seq, packet_id, state"},
	{"inbound", "queue, packet_id, seq"},
	{"retained", "topic, seq, payload, properties, qos, expiry, received, source"},
	{"will", "client_id, delay, topic, payload, properties, qos, retain, expiry, user"},
	{"dead_letter", "queue, seq, code, refused, topic, payload, properties, qos, received, source"},
	{"dropped", "queue, reason, count"},
	{"message", "seq, claimset, topic, payload, properties, qos, retain, expiry, received, source"},
}

// salvage copies what can be read of a database that was set aside into the
// fresh one, and says what that was. A table is read from its start until an
// error, and if there was one from its end backwards as well, and page by page.
func (s *Store) salvage(ctx context.Context, aside string) (string, error) {
	params := s.params()
	if !s.single {
		params.Set("mode", "ro")
	}
	old, err := openDB(aside, params)
	if err == nil {
		var app int64
		app, err = old.queryInt("PRAGMA application_id")
		if err == nil && app != applicationID {
			return "nothing: " + errForeign.Error(), old.close()
		}
		if err != nil {
			err, old = errors.Join(err, old.close()), nil
		}
	}
	report, serr := s.salvageFrom(ctx, old, aside)
	if old == nil {
		report = append([]string{"the first page is damaged (" + err.Error() + ")"}, report...)
	} else if err = old.close(); err != nil {
		report = append(report, err.Error())
	}
	if len(report) == 0 {
		report = []string{"nothing was in it"}
	}
	return strings.Join(report, ", "), serr
}

// salvageFrom reads the tables of old, and of the file aside where old, which may be
// nil, gives nothing.
func (s *Store) salvageFrom(ctx context.Context, old *db, aside string) (report []string, err error) {
	if err := s.w.exec("BEGIN IMMEDIATE"); err != nil {
		return nil, err
	}
	damaged := make(map[string]bool)
	for _, t := range salvageTables {
		if old == nil {
			damaged[t.name] = true
			continue
		}
		n, left, damage, refused := s.salvageTable(ctx, old, t.name, t.columns)
		if refused != nil {
			return nil, errors.Join(refused, s.rollback())
		}
		switch {
		case damage != nil:
			damaged[t.name] = true
			report = append(report, fmt.Sprintf("%s %d rows, then damaged (%v)", t.name, n, damage))
		case n > 0:
			report = append(report, fmt.Sprintf("%s %d rows", t.name, n))
		}
		if left > 0 {
			report = append(report, fmt.Sprintf("%s %d rows that make no sense left behind", t.name, left))
		}
	}
	if len(damaged) > 0 && !s.single {
		more, err := s.scanPages(ctx, aside, old, damaged)
		if DiskRefuses(err) {
			return nil, errors.Join(err, s.rollback())
		}
		if err != nil {
			more = "single pages not read: " + err.Error()
		}
		if more != "" {
			report = append(report, more)
		}
	}
	var lost int64
	// Not the database it was: some of what peers know it by is lost.
	err = s.w.exec("DELETE FROM meta WHERE key = 'store_id'")
	if err == nil {
		err = s.w.exec("UPDATE uplink SET state = ''")
	}
	if err == nil {
		err = missingStreams(s.w)
	}
	if err == nil && len(s.setsByID) == 0 && (damaged["uplink"] || damaged["session"]) {
		var n int64
		if n, err = s.keepNameless(damaged["session"]); n > 0 {
			report = append(report, fmt.Sprintf("%d queues whose names are lost", n))
		}
	}
	if err == nil && len(s.setsByID) == 0 { // whom they are for is lost, and memory does not know
		lost, err = s.w.changes("DELETE FROM message WHERE claimset NOT IN (SELECT claimset FROM claim)")
	}
	if err == nil {
		err = s.w.exec("COMMIT")
	}
	if err != nil {
		return nil, errors.Join(err, s.rollback())
	}
	if lost > 0 {
		report = append(report, fmt.Sprintf("%d messages without recipients left behind", lost))
	}
	return report, nil
}

// rollback ends the transaction, if the error has not.
func (s *Store) rollback() error {
	if !s.w.inTransaction() {
		return nil
	}
	return s.w.script("ROLLBACK")
}

func (s *Store) salvageTable(ctx context.Context, old *db, table, columns string) (n, left int, damage, refused error) {
	if there, err := old.queryInt("SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = ?", table); err == nil && there == 0 {
		return 0, 0, nil, nil // an older schema
	}
	columns = knownColumns(ctx, old, table, columns)
	marks := strings.TrimSuffix(strings.Repeat("?, ", strings.Count(columns, ",")+1), ", ")
	insert := "INSERT OR REPLACE INTO " + table + " (" + columns + ") VALUES (" + marks + ")"
	copyRow := func(row []driver.Value) error {
		err := s.w.exec(insert, row...)
		switch {
		case err == nil:
			n++
		case DiskRefuses(err): // of the fresh database: nothing is wrong with the row
			refused = err
			return err
		default:
			left++
		}
		return nil
	}
	key, _, _ := strings.Cut(columns, ",")
	query := "SELECT " + columns + " FROM " + table + " ORDER BY " + key
	damage = old.query(ctx, copyRow, query)
	if damage != nil && refused == nil {
		// The rows on the far side of the damage; what comes twice is replaced.
		damage = errors.Join(damage, old.query(ctx, copyRow, query+" DESC"))
	}
	return n, left, damage, refused
}

// knownColumns leaves out those that the table does not have: they came with a
// later version, and have defaults. A schema that cannot be read changes nothing.
func knownColumns(ctx context.Context, old *db, table, columns string) string {
	have := make(map[string]bool)
	err := old.query(ctx, func(row []driver.Value) error {
		have[text(row[0])] = true
		return nil
	}, "SELECT name FROM pragma_table_info(?)", table)
	if err != nil {
		return columns
	}
	var known []string
	for c := range strings.SplitSeq(columns, ", ") {
		if have[c] {
			known = append(known, c)
		}
	}
	if len(known) == 0 {
		return columns
	}
	return strings.Join(known, ", ")
}

// keepNameless keeps the queues of those whose row is lost, as uplinks with names
// made of their numbers: they can be looked at and exported. When it is only one, and
// that of an uplink, the next uplink that has no queue gets it.
func (s *Store) keepNameless(sessions bool) (n int64, err error) {
	n, err = s.w.changes(`INSERT OR IGNORE INTO uplink (queue, name, state)
		SELECT DISTINCT queue, 'salvaged-' || queue, '' FROM stream WHERE queue IN (SELECT queue FROM claim)
		AND queue NOT IN (SELECT queue FROM session UNION SELECT queue FROM uplink UNION SELECT queue FROM lane)`)
	if n == 1 && !sessions && err == nil {
		var queue int64
		queue, err = s.w.queryInt("SELECT queue FROM uplink WHERE name = 'salvaged-' || queue")
		s.nameless = durable.QueueID(queue)
	}
	return n, err
}

// A salvage that is cut short begins anew with the next start: until it has ended a
// file beside the database says what was set aside, and what is at the path is only
// the part that was copied.

var errSalvageCut = errors.New("the salvage of a damaged database was cut short")

func (s *Store) salvagePath() string { return s.path + ".salvage" }

// salvageDue says whether a salvage has begun and not ended.
func (s *Store) salvageDue() bool {
	_, err := s.disk.Size(s.salvagePath())
	return err == nil
}

// beginSalvage sets the database aside, or takes up a salvage that was cut short.
func (s *Store) beginSalvage() (aside string, err error) {
	dir := filepath.Dir(s.path)
	b, err := s.disk.ReadFile(s.salvagePath())
	if aside = filepath.Join(dir, filepath.Base(string(b))); err != nil || len(b) == 0 {
		aside = s.asideName()
		if err := s.disk.WriteFile(s.salvagePath(), []byte(filepath.Base(aside))); err != nil {
			return "", fmt.Errorf("set aside: %w", err)
		}
		if err := s.disk.SyncDir(dir); err != nil {
			return "", fmt.Errorf("set aside: %w", err)
		}
	}
	if _, err := s.disk.Size(aside); err == nil { // all of it is there: the database goes last
		for _, suffix := range []string{"", "-wal", "-shm"} {
			if err := s.disk.Remove(s.path + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return "", fmt.Errorf("begin the salvage anew: %w", err)
			}
		}
		return aside, nil
	}
	if err := s.moveAsideTo(aside); err != nil {
		return "", err
	}
	return aside, s.standIn(aside)
}

// endSalvage notes that what could be saved is in the fresh database.
func (s *Store) endSalvage() error {
	err := s.disk.Remove(s.salvagePath())
	if err == nil {
		err = s.disk.SyncDir(filepath.Dir(s.path))
	}
	if err != nil {
		return fmt.Errorf("end the salvage: %w", err)
	}
	return nil
}
