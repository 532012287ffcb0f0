package storeforward

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
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
// error, and if there was one from its end backwards as well.
func (s *Store) salvage(ctx context.Context, aside string) string {
	params := s.params()
	if !s.single {
		params.Set("mode", "ro")
	}
	if err := s.standIn(aside); err != nil {
		return "nothing: " + err.Error()
	}
	old, err := openDB(aside, params)
	if err != nil {
		return "nothing: " + err.Error()
	}
	report, err := s.salvageFrom(ctx, old)
	if err = errors.Join(err, old.close()); err != nil {
		report += "; " + err.Error()
	}
	return report
}

func (s *Store) salvageFrom(ctx context.Context, old *db) (string, error) {
	app, err := old.queryInt("PRAGMA application_id")
	if err != nil || app != applicationID {
		return "nothing", err
	}
	if err := s.w.exec("BEGIN IMMEDIATE"); err != nil {
		return "nothing", err
	}
	var report []string
	for _, t := range salvageTables {
		n, damage := s.salvageTable(ctx, old, t.name, t.columns)
		switch {
		case damage != nil:
			report = append(report, fmt.Sprintf("%s %d rows, then damaged (%v)", t.name, n, damage))
		case n > 0:
			report = append(report, fmt.Sprintf("%s %d rows", t.name, n))
		}
	}
	// Not the database it was: some of what peers know it by is lost.
	err = s.w.exec("DELETE FROM meta WHERE key = 'store_id'")
	if err == nil {
		err = s.w.exec("UPDATE uplink SET state = ''")
	}
	if err == nil {
		err = missingStreams(s.w)
	}
	if err == nil {
		err = s.w.exec("COMMIT")
	}
	if err != nil {
		return "nothing", errors.Join(err, s.w.script("ROLLBACK"))
	}
	if len(report) == 0 {
		return "nothing was in it", nil
	}
	return strings.Join(report, ", "), nil
}

func (s *Store) salvageTable(ctx context.Context, old *db, table, columns string) (n int, damage error) {
	columns = knownColumns(ctx, old, table, columns)
	marks := strings.TrimSuffix(strings.Repeat("?, ", strings.Count(columns, ",")+1), ", ")
	insert := "INSERT OR REPLACE INTO " + table + " (" + columns + ") VALUES (" + marks + ")"
	copyRow := func(row []driver.Value) error {
		if s.w.exec(insert, row...) == nil { // a row that is nonsense is left behind
			n++
		}
		return nil
	}
	key, _, _ := strings.Cut(columns, ",")
	query := "SELECT " + columns + " FROM " + table + " ORDER BY " + key
	damage = old.query(ctx, copyRow, query)
	if damage != nil {
		// The rows on the far side of the damage; what comes twice is replaced.
		damage = errors.Join(damage, old.query(ctx, copyRow, query+" DESC"))
	}
	return n, damage
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
