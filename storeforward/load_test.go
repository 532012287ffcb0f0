package storeforward

import (
	"errors"
	"net/url"
	"testing"

	"github.com/mattn/go-sqlite3"

	"holdfast/broker/durable"
	"holdfast/broker/message"
)

// change runs statements on a closed store's database.
func change(t testing.TB, o Options, statements ...string) {
	t.Helper()
	d, err := openDB(o.Path, url.Values{})
	if err != nil {
		t.Fatal(err)
	}
	for _, sql := range statements {
		if err := d.exec(sql); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.close(); err != nil {
		t.Fatal(err)
	}
}

// backlogOf makes a store with an uplink that is owed n messages of 100 bytes.
func backlogOf(t testing.TB, o Options, n int) {
	t.Helper()
	s := open(t, o)
	q := uplink(t, s)
	m := &message.Message{Topic: "sensors/boiler/flow", Payload: make([]byte, 100), QoS: 1, From: "client"}
	if err := put(t, s, m, claimFor(q, 1), durable.Origin{}).wait(t); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	d, err := openDB(o.Path, url.Values{})
	if err != nil {
		t.Fatal(err)
	}
	err = d.exec(`INSERT INTO message (seq, claimset, topic, payload, properties, qos, retain, expiry, received, source)
		WITH RECURSIVE n(i) AS (SELECT 1 WHERE ?1 > 1 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < ?1)
		SELECT m.seq + i, claimset, topic, randomblob(100), properties, qos, retain, expiry, received, source FROM n, message m WHERE m.seq = (SELECT min(seq) FROM message)`, int64(n))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.close(); err != nil {
		t.Fatal(err)
	}
}

// What a start counts is what is in the table, however many portions it is read in:
// rows before a cursor, finished out of order, of sets that nobody knows and of two
// queues, of any size.
func TestStartCountsTheBacklog(t *testing.T) {
	const backlog = 2*countPortion + 100
	o := onFile(t)
	backlogOf(t, o, backlog)
	s := open(t, o)
	created := newOutcome()
	alice := s.CreateSession("alice", 1000, created.done)
	if err := created.wait(t); err != nil {
		t.Fatal(err)
	}
	q := uplink(t, s)
	both := []durable.Claim{{Queue: q, QoS: 1}, {Queue: alice, QoS: 2}}
	for _, m := range []*message.Message{
		{Topic: "ä/ö", Payload: make([]byte, 50_000), Properties: []byte{3, 2, 1}, QoS: 2},
		{Topic: "empty", QoS: 1},
	} {
		if err := put(t, s, m, both, durable.Origin{}).wait(t); err != nil {
			t.Fatal(err)
		}
	}
	closeStore(t, s)
	count := func() (messages, bytes, stored int64) {
		s := open(t, o)
		defer closeStore(t, s)
		st := s.Status()
		for _, q := range st.Queues {
			messages, bytes = messages+q.Messages, bytes+q.Bytes
		}
		if messages != st.Messages || bytes != st.Bytes {
			t.Errorf("queues have %d messages, %d bytes; the store %d and %d", messages, bytes, st.Messages, st.Bytes)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		return messages, bytes, s.spent.stored
	}
	const row = 19 + 100
	const two = 5 + 50_000 + 3 + 5
	messages, bytes, stored := count()
	if messages != backlog+4 || bytes != backlog*row+2*two || stored != backlog+2 {
		t.Errorf("%d messages, %d bytes, %d rows; want %d, %d, %d", messages, bytes, stored, backlog+4, backlog*row+2*two, backlog+2)
	}
	// The uplink has got all but 10 of the many; a set is lost; one of alice's two is done.
	change(t, o,
		"UPDATE stream SET cursor = (SELECT min(seq) FROM message) + 16473 WHERE qos = 1 AND queue = (SELECT queue FROM uplink)",
		"UPDATE message SET claimset = 999 WHERE seq = (SELECT min(seq) FROM message) + 16480",
		"INSERT INTO delivery2 SELECT queue, (SELECT max(seq) FROM message), 7, 3 FROM session",
	)
	left := int64(backlog - 16474 - 1)
	messages, bytes, stored = count()
	if messages != left+3 || bytes != left*row+2*two-5 || stored > backlog+2 {
		t.Errorf("then %d messages, %d bytes, %d rows; want %d, %d", messages, bytes, stored, left+3, left*row+2*two-5)
	}
}

// A table that cannot be counted is one that is set aside.
func TestUncountableIsUnusable(t *testing.T) {
	o := onFile(t)
	backlogOf(t, o, 2)
	d, err := openDB(o.Path, url.Values{})
	if err != nil {
		t.Fatal(err)
	}
	// A table in the place of ours whose rows are not in order.
	for _, sql := range []string{
		"CREATE TEMP TABLE unordered AS SELECT * FROM main.message ORDER BY seq DESC",
		"CREATE TEMP VIEW message AS SELECT * FROM unordered",
	} {
		if err := d.exec(sql); err != nil {
			t.Fatal(err)
		}
	}
	err = d.rowSizes(t.Context(), func(durable.Seq, int64, int64) {})
	if !errors.Is(err, errPacked) || !unusable(err) {
		t.Errorf("rows out of order: %v", err)
	}
	if code, ok := sqliteCode(err); !ok || code != sqlite3.ErrCorrupt {
		t.Errorf("code %v", code)
	}
	if err := d.close(); err != nil {
		t.Fatal(err)
	}
}
