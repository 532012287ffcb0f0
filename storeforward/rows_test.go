package storeforward

import (
	"bytes"
	"context"
	"database/sql/driver"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"holdfast/broker/durable"
	"holdfast/broker/message"
)

// Rows that are read packed are those that are read one by one, whatever their
// columns hold, and come in portions of what was asked for.
func TestPackedRowsAreTheRows(t *testing.T) {
	s := open(t, onFile(t))
	defer closeStore(t, s)
	q := uplink(t, s)
	long := strings.Repeat("\x00\xff", 150<<10)
	messages := []*message.Message{
		{Topic: "a", Payload: []byte("1"), QoS: 1, From: "client"},
		{Topic: "a", QoS: 1, From: "client"},
		{Topic: "a/ä", Payload: []byte("\x00"), Properties: []byte{1, 1}, QoS: 2},
		{Topic: "b", Payload: []byte(long), QoS: 1, Retain: true, From: "other"},
		{Topic: "b", Payload: []byte("2"), QoS: 1, HasExpiry: true, Expiry: 1<<32 - 1},
		{Topic: "b", Payload: []byte("3"), QoS: 1, HasExpiry: true},
		{Topic: "a", Payload: []byte("4"), QoS: 1, From: "client"},
	}
	for _, m := range messages {
		if err := put(t, s, m, claimFor(q, 1), durable.Origin{}).wait(t); err != nil {
			t.Fatal(err)
		}
	}
	var want []storedMessage
	err := s.read(t.Context(), func(d *db) error {
		return d.query(context.Background(), func(row []driver.Value) error {
			want = append(want, storedFromRow(&s.clock, row))
			return nil
		}, "SELECT seq, claimset, topic, payload, properties, qos, retain, expiry, received, source FROM message ORDER BY seq")
	})
	if err != nil || len(want) != len(messages) {
		t.Fatalf("%d rows, %v", len(want), err)
	}
	type portion struct{ limit, maxBytes int }
	for _, p := range []portion{{100, 1 << 30}, {1, 1 << 30}, {3, 1 << 30}, {len(messages), 1 << 30}, {100, 1}, {100, 1000}, {100, len(long) + 10}} {
		var got []storedMessage
		for from, all := want[0].seq-1, false; !all; {
			var rows []storedMessage
			rows, all, err = s.readRows(t.Context(), q, 1, from, everySeq, p.limit, p.maxBytes)
			if err != nil || len(rows) == 0 && !all || len(rows) > p.limit {
				t.Fatalf("%+v after %d: %d rows, %v", p, from, len(rows), err)
			}
			size := 0
			for i, r := range rows {
				if size >= p.maxBytes {
					t.Errorf("%+v: row %d comes after %d bytes", p, i, size)
				}
				size += r.m.Size()
				from = r.seq
			}
			got = append(got, rows...)
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(storedMessage{}, claimset{}), cmp.Comparer(bytes.Equal), cmp.Comparer(func(a, b time.Time) bool { return a.Equal(b) })); diff != "" {
			t.Errorf("%+v (-one by one, +packed):\n%s", p, diff)
		}
	}
}

// A row whose columns have the wrong type (a damaged file) is read as zero values.
func TestPackedRowOfWrongTypes(t *testing.T) {
	s := open(t, onFile(t))
	defer closeStore(t, s)
	var packed []byte
	err := s.read(t.Context(), func(d *db) (err error) {
		packed, _, err = d.packed(t.Context(), "SELECT holdfast_pack(9, 9, 7, 'x', 1, 2.5, 3, x'01', NULL, 'y', 1.5, NULL)")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	rows, err := unpackRows(&s.clock, packed)
	if err != nil || len(rows) != 1 {
		t.Fatalf("%d rows, %v", len(rows), err)
	}
	m := rows[0].m
	if rows[0].seq != 7 || rows[0].setID != 0 || m.Topic != "" || m.Payload != nil || m.Properties != nil || m.From != "" || m.HasExpiry || m.QoS != 0 || m.Retain {
		t.Errorf("read %+v with %+v", rows[0], *m)
	}
}

// FuzzUnpackRows: whatever the blob holds, rows are in order and lie inside it.
func FuzzUnpackRows(f *testing.F) {
	head := make([]byte, packedRow)
	head[0] = 1
	f.Add(head)
	f.Add(append(bytes.Clone(head), head...))
	f.Add(head[:packedRow-1])
	clock := &storeClock{start: time.Now(), runs: []run{{first: 1}}}
	f.Fuzz(func(t *testing.T, b []byte) {
		rows, err := unpackRows(clock, b)
		size := 0
		for i, r := range rows {
			if i > 0 && r.seq <= rows[i-1].seq {
				t.Errorf("row %d has seq %d after %d", i, r.seq, rows[i-1].seq)
			}
			size += packedRow + r.m.Size() + len(r.m.From)
		}
		if err == nil && size != len(b) {
			t.Errorf("%d bytes of %d", size, len(b))
		}
	})
}
