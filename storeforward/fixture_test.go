package storeforward

import (
	"compress/gzip"
	"context"
	"database/sql/driver"
	"errors"
	goflag "flag"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"holdfast/broker/durable"
	"holdfast/broker/message"
)

// A database of every schema is kept as a release left it. After a new migration
//
//	go test -run TestEveryReleasedDatabaseOpens ./storeforward -update
//
// makes the one that is missing; those that are there are never made again.
var update = goflag.Bool("update", false, "make the databases that are missing in testdata/schema")

func fixture(version int) string {
	return filepath.Join("testdata", "schema", fmt.Sprintf("%04d.db.gz", version))
}

// TestEveryReleasedDatabaseOpens opens databases of all schemas: nothing that they
// hold is lost, and each becomes one of this release.
func TestEveryReleasedDatabaseOpens(t *testing.T) {
	list, err := loadMigrations(migrations)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range list {
		t.Run(m.name, func(t *testing.T) {
			name := fixture(m.number)
			if _, err := os.Stat(name); *update && errors.Is(err, os.ErrNotExist) {
				makeFixture(t, name, list[:m.number])
			}
			o := onFile(t)
			unpack(t, name, o.Path)
			s := open(t, o)
			if st := s.Status(); st.SetAside != "" {
				t.Fatalf("set aside: %s", st.Salvaged)
			}
			checkFull(t, s, m.number)
			closeStore(t, s)
			s = open(t, o) // and again, as one of this release
			defer closeStore(t, s)
			if version := one(t, s, "PRAGMA user_version"); version != int64(len(list)) {
				t.Errorf("schema %d, want %d", version, len(list))
			}
			if q := uplink(t, s); q != 1 {
				t.Errorf("the uplink has queue %d, want 1", q)
			}
		})
	}
}

func one(t *testing.T, s *Store, query string) (n int64) {
	t.Helper()
	err := s.read(t.Context(), func(d *db) (err error) {
		n, err = d.queryInt(query)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// unpack puts a fixture at path.
func unpack(t *testing.T, name, path string) {
	t.Helper()
	if err := os.WriteFile(path, unpacked(t, name), 0o600); err != nil {
		t.Fatal(err)
	}
}

func unpacked(t *testing.T, name string) []byte {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatalf("%v: see the comment of the flag -update", err)
	}
	defer func() { _ = f.Close() }()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// makeFixture fills a database of an older schema with what it has room for.
func makeFixture(t *testing.T, name string, list []migration) {
	t.Helper()
	o := onFile(t)
	s := open(t, o)
	furnish(t, s)
	closeStore(t, s)
	old := onFile(t)
	from, err := openDB(o.Path, url.Values{})
	if err != nil {
		t.Fatal(err)
	}
	to, err := openDB(old.Path, url.Values{})
	if err == nil {
		err = to.script("PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = WAL")
	}
	if err == nil {
		err = migrate(to, list)
	}
	for _, table := range salvageTables {
		if err == nil && tables(t, to, table.name) > 0 {
			err = copyTable(from, to, table.name, knownColumns(t.Context(), to, table.name, table.columns))
		}
	}
	if err = errors.Join(err, to.close(), from.close()); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(old.Path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	z := gzip.NewWriter(f)
	_, err = z.Write(b)
	if err = errors.Join(err, z.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

func tables(t *testing.T, d *db, table string) int64 {
	t.Helper()
	n, err := d.queryInt("SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = ?", table)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func copyTable(from, to *db, table, columns string) error {
	marks := strings.TrimSuffix(strings.Repeat("?, ", strings.Count(columns, ",")+1), ", ")
	return from.query(context.Background(), func(row []driver.Value) error {
		return to.exec("INSERT OR REPLACE INTO "+table+" ("+columns+") VALUES ("+marks+")", row...)
	}, "SELECT "+columns+" FROM "+table)
}

// furnish gives a store something of every kind: three days of a gateway with an
// uplink and a session, as [checkFull] wants to find it.
func furnish(t *testing.T, s *Store) {
	t.Helper()
	q := uplink(t, s)
	alice := s.CreateSession("alice", 3600, nil)
	after(t, func(done func(error)) {
		s.Subscribe(alice, []durable.Subscription{{Filter: "a/#", QoS: 2, NoLocal: true, ID: 7}, {Filter: "b", QoS: 1, RetainHandling: 1}}, done)
	})
	after(t, func(done func(error)) { s.SetUser(alice, "mallory", done) })
	after(t, func(done func(error)) { s.SetSessionState(q, "epoch 1", done) })
	after(t, func(done func(error)) {
		s.SetWill(durable.Will{ClientID: "alice", User: "mallory", Delay: 5, Message: &message.Message{Topic: "gone", Payload: []byte("alice"), QoS: 1}}, done)
	})
	for i := range 20 {
		m := msg("a/q1", fmt.Sprint(i))
		m.From, m.Properties = "sensor", []byte{0x03, 0, 1, 'x'} // content type
		if err := put(t, s, m, append(claimFor(q, 1), durable.Claim{Queue: alice, QoS: 1, SubscriptionIDs: []uint32{7}}), durable.Origin{}).wait(t); err != nil {
			t.Fatal(err)
		}
	}
	inFlight(t, s, q)
	for _, d := range readAll(t, s, q, 1)[:5] {
		if string(d.Message.Payload) == "3" {
			after(t, func(done func(error)) { s.Refused(q, d.Seq, 0x99, done) })
			continue
		}
		s.Acked(q, d.Seq)
	}
	for i := range 3 {
		m := &message.Message{Topic: fmt.Sprintf("r/%d", i), Payload: []byte("kept"), QoS: 1, Retain: true}
		if err := put(t, s, m, nil, durable.Origin{Queue: alice, PacketID: uint16(40 + i)}).wait(t); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.SetLanes(q, alarmLanes); err != nil {
		t.Fatal(err)
	}
	if err := put(t, s, msg("alarm/fire", "fire"), claimFor(q, 1), durable.Origin{}).wait(t); err != nil {
		t.Fatal(err)
	}
	if err := put(t, s, msg("a/late", "late"), claimFor(alice, 1), durable.Origin{}).wait(t); err != nil {
		t.Fatal(err)
	}
	after(t, func(done func(error)) { s.Dropped(alice, readLast(t, s, alice), "expired", done) })
}

func readLast(t *testing.T, s *Store, q durable.QueueID) durable.Seq {
	t.Helper()
	if err := s.Attach(q, &taker{}); err != nil {
		t.Fatal(err)
	}
	ds := readAll(t, s, q, 1)
	return ds[len(ds)-1].Seq
}

// checkFull looks for all that furnish has left, as far as the schema has room for it.
func checkFull(t *testing.T, s *Store, version int) {
	t.Helper()
	q, _, err := s.OpenUplink("cloud")
	if err != nil || s.SessionState(q) != "epoch 1" {
		t.Errorf("uplink %d in state %q: %v", q, s.SessionState(q), err)
	}
	sessions, err := s.Sessions(t.Context())
	if err != nil || len(sessions) != 1 {
		t.Fatalf("sessions %+v, %v", sessions, err)
	}
	alice := sessions[0]
	if alice.ClientID != "alice" || alice.Expiry != 3600 || len(alice.Subscriptions) != 2 || alice.Subscriptions[0].ID != 7 || !alice.Subscriptions[0].NoLocal {
		t.Errorf("session %+v", alice)
	}
	if diff := cmp.Diff([]uint16{40, 41, 42}, alice.Received); diff != "" {
		t.Errorf("inbound ids:\n%s", diff)
	}
	if version >= 2 && alice.User != "mallory" {
		t.Errorf("user %q", alice.User)
	}
	if version >= 5 {
		checkLanes(t, s, q)
	}
	checkDeliveries(t, s, q, alice.Queue)
	checkKept(t, s, q, alice.Queue, version)
}

// alarmLanes are lanes for alarms and for states.
var alarmLanes = []durable.LaneRoute{
	{Filter: "alarm/#", Lane: durable.Lane{Number: 7}},
	{Filter: "state/#", Lane: durable.Lane{Number: 7, Latest: true}},
}

// checkLanes looks for the message in the lane of alarms, and for the change that
// made the lane.
func checkLanes(t *testing.T, s *Store, q durable.QueueID) {
	t.Helper()
	lanes, err := s.SetLanes(q, alarmLanes)
	if err != nil || len(lanes.Queues) != 3 || lanes.Queues[1].Lane != alarmLanes[0].Lane || len(lanes.Changes) != 1 || lanes.Changes[0].Routes != nil {
		t.Fatalf("lanes %+v, %v", lanes, err)
	}
	alarms := lanes.Queues[1].Queue
	if err := s.Attach(alarms, &taker{}); err != nil {
		t.Fatal(err)
	}
	if ds := readAll(t, s, alarms, 1); len(ds) != 1 || string(ds[0].Message.Payload) != "fire" {
		t.Errorf("alarms %v", describe(ds))
	}
}

func checkDeliveries(t *testing.T, s *Store, q, alice durable.QueueID) {
	t.Helper()
	for _, id := range []durable.QueueID{q, alice} {
		if err := s.Attach(id, &taker{}); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"PUBREL 11", "resend 2 as 12", "resend 3 as 13", "new 4 as 0"}
	if diff := cmp.Diff(want, describe(readAll(t, s, q, 2))); diff != "" {
		t.Errorf("QoS 2 in flight:\n%s", diff)
	}
	var cloud, local []string
	for _, d := range readAll(t, s, q, 1) {
		cloud = append(cloud, string(d.Message.Payload))
		if d.Message.From != "sensor" || len(d.Message.Properties) != 4 {
			t.Errorf("message %+v", d.Message)
		}
	}
	for _, d := range readAll(t, s, alice, 1) {
		local = append(local, string(d.Message.Payload))
	}
	all := strings.Fields("0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 late")
	if diff := cmp.Diff(all[5:20], cloud); diff != "" {
		t.Errorf("to the cloud:\n%s", diff)
	}
	if diff := cmp.Diff(all, local); diff != "" {
		t.Errorf("to alice:\n%s", diff)
	}
}

func checkKept(t *testing.T, s *Store, q, alice durable.QueueID, version int) {
	t.Helper()
	retained := map[string]string{}
	err := s.Retained(t.Context(), func(m *message.Message) error {
		retained[m.Topic] = string(m.Payload)
		return nil
	})
	if want := map[string]string{"r/0": "kept", "r/1": "kept", "r/2": "kept"}; err != nil || !maps.Equal(want, retained) {
		t.Errorf("retained %v, %v", retained, err)
	}
	if wills, err := s.Wills(t.Context()); err != nil || len(wills) != 1 || wills[0].Delay != 5 || string(wills[0].Message.Payload) != "alice" {
		t.Errorf("wills %+v, %v", wills, err)
	} else if version >= 4 && wills[0].User != "mallory" {
		t.Errorf("will of user %q", wills[0].User)
	}
	var dead []string
	err = s.DeadLetters(t.Context(), q, func(d DeadLetter) error {
		dead = append(dead, fmt.Sprintf("%s %#x", d.Message.Payload, d.Code))
		return nil
	})
	if err != nil || !slices.Equal(dead, []string{"3 0x99"}) {
		t.Errorf("dead letters %v, %v", dead, err)
	}
	for _, x := range s.Status().Queues {
		if x.ID == alice && version >= 3 && x.Dropped["expired"] != 1 {
			t.Errorf("dropped %v", x.Dropped)
		}
	}
}
