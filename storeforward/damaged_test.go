package storeforward

import (
	"fmt"
	"slices"
	"testing"

	"holdfast/broker/durable"
	"holdfast/broker/message"
)

// P6, P7: a row whose columns are damaged, which SQLite cannot see, ends nobody's
// connection and holds nothing up: it is put aside, counted, and the rest goes on.
func TestDamagedMessagesAreSetAside(t *testing.T) {
	for _, qos := range []byte{1, 2} {
		o := onFile(t)
		s := open(t, o)
		q := uplink(t, s)
		session := s.CreateSession("alice", durable.SessionExpiryNever, nil)
		claims := append(claimFor(q, qos), claimFor(session, qos)...)
		const count = 10
		for i := range count {
			m := &message.Message{Topic: "sensors/a", Payload: fmt.Append(nil, i), Properties: []byte{1, 1}, QoS: qos}
			if err := put(t, s, m, claims, durable.Origin{}).wait(t); err != nil {
				t.Fatal(err)
			}
		}
		closeStore(t, s)
		change(t, o,
			"UPDATE message SET topic = 'sensors/#' WHERE payload = x'31'",
			"UPDATE message SET topic = '' WHERE payload = x'32'",
			"UPDATE message SET topic = CAST(x'61ff' AS TEXT) WHERE payload = x'33'",
			"UPDATE message SET topic = CAST(x'6100' AS TEXT) WHERE payload = x'34'",
			"UPDATE message SET topic = printf('%.*c', 65536, 'x') WHERE payload = x'35'",
			"UPDATE message SET qos = 7 WHERE payload = x'36'",
			"UPDATE message SET properties = x'23ffff' WHERE payload = x'37'",
			"UPDATE claim SET subscription_ids = '1,0,x,,268435456,2'")
		s = open(t, o)
		for _, id := range []durable.QueueID{q, session} {
			r := &taker{}
			if err := s.Attach(id, r); err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, d := range readAll(t, s, id, qos) {
				got = append(got, string(d.Message.Payload))
				if !slices.Equal(d.SubscriptionIDs, []uint32{1, 2}) {
					t.Errorf("subscription identifiers %v", d.SubscriptionIDs)
				}
				if qos == 1 {
					s.Acked(id, d.Seq)
				} else {
					s.Completed(id, d.Seq, nil)
				}
			}
			if want := []string{"0", "8", "9"}; !slices.Equal(got, want) {
				t.Errorf("QoS %d, queue %d: %q, want %q", qos, id, got, want)
			}
		}
		if n := s.Status().Damaged; n != 2*7 {
			t.Errorf("QoS %d: %d damaged in the status", qos, n)
		}
		closeStore(t, s)
		s = open(t, o)
		for _, st := range s.Status().Queues {
			if st.Messages != 0 || st.Dropped[reasonDamaged] != 7 {
				t.Errorf("QoS %d, %s: %d messages are left, dropped %v", qos, st.Name, st.Messages, st.Dropped)
			}
			if want := map[string]int{"cloud": 7}[st.Name]; st.DeadLetters != want {
				t.Errorf("QoS %d, %s: %d dead letters, want %d", qos, st.Name, st.DeadLetters, want)
			}
		}
		closeStore(t, s)
	}
}

// One that was sent is brought to an end: the other side may have its packet id.
func TestDamagedMessageThatWasSent(t *testing.T) {
	o := onFile(t)
	s := open(t, o)
	q := uplink(t, s)
	if err := put(t, s, &message.Message{Topic: "a", QoS: 2}, claimFor(q, 2), durable.Origin{}).wait(t); err != nil {
		t.Fatal(err)
	}
	if err := s.Attach(q, &taker{}); err != nil {
		t.Fatal(err)
	}
	ds := readAll(t, s, q, 2)
	sent := newOutcome()
	s.Sent(q, []durable.Sent{{Seq: ds[0].Seq, PacketID: 7}}, sent.done)
	if err := sent.wait(t); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	change(t, o, "UPDATE message SET topic = '+'")
	s = open(t, o)
	defer closeStore(t, s)
	if err := s.Attach(q, &taker{}); err != nil {
		t.Fatal(err)
	}
	ds = readAll(t, s, q, 2)
	if len(ds) != 1 || !ds[0].Released || ds[0].Message != nil || ds[0].PacketID != 7 {
		t.Errorf("read %+v", ds)
	}
}

// Numbers that were never given, of rows, cursors and the mark, leave room for what is
// to come: it gets higher ones than all before it, and is delivered.
func TestImpossibleNumbers(t *testing.T) {
	for _, damage := range []string{
		"UPDATE message SET seq = 9223372036854775807 WHERE seq = 2",
		"UPDATE message SET seq = -5 WHERE seq = 2",
		"UPDATE meta SET value = 9223372036854775807 WHERE key = 'seq_mark'",
		"UPDATE meta SET value = -7 WHERE key = 'seq_mark'",
		"UPDATE stream SET cursor = 9223372036854775807",
		"UPDATE stream SET cursor = -1",
		"INSERT INTO retained (topic, seq, payload, properties, qos, expiry, received, source) VALUES ('a', -1, x'31', NULL, 1, NULL, 0, '')",
		"INSERT INTO lane (queue, uplink, lane, latest) VALUES (1, 1, 5, 0)",
	} {
		o := onFile(t)
		s := open(t, o)
		q := uplink(t, s)
		for i := range 3 {
			if err := put(t, s, msg("a", fmt.Sprint(i)), claimFor(q, 1), durable.Origin{}).wait(t); err != nil {
				t.Fatal(err)
			}
		}
		closeStore(t, s)
		change(t, o, damage)
		s = open(t, o)
		if err := put(t, s, msg("a", "new"), claimFor(uplink(t, s), 1), durable.Origin{}).wait(t); err != nil {
			t.Errorf("%s: %v", damage, err)
		}
		if err := s.Attach(q, &taker{}); err != nil {
			t.Errorf("%s: %v", damage, err)
		}
		ds := readAll(t, s, q, 1)
		if n := len(ds); n < 3 || n > 4 || string(ds[n-1].Message.Payload) != "new" {
			t.Errorf("%s: read %d, the last %v", damage, n, ds)
		} else if int64(n)+one(t, s, "SELECT count(*) FROM dead_letter") != 4 {
			t.Errorf("%s: %d read, the others are not dead letters", damage, n)
		}
		closeStore(t, s)
	}
}

// Other damaged rows are not used: the broker would pass them on.
func TestDamagedStateIsNotUsed(t *testing.T) {
	o := onFile(t)
	s := open(t, o)
	furnish(t, s)
	closeStore(t, s)
	change(t, o, "UPDATE retained SET topic = topic || '/#'", "UPDATE will SET qos = 3", "UPDATE subscription SET subscription_id = -1")
	s = open(t, o)
	defer closeStore(t, s)
	if err := s.Retained(t.Context(), func(m *message.Message) error { return fmt.Errorf("retained %q", m.Topic) }); err != nil {
		t.Error(err)
	}
	if wills, err := s.Wills(t.Context()); err != nil || len(wills) > 0 {
		t.Errorf("wills %v, %v", wills, err)
	}
	sessions, err := s.Sessions(t.Context())
	if err != nil || len(sessions) == 0 {
		t.Fatalf("sessions %v, %v", sessions, err)
	}
	for _, x := range sessions {
		if len(x.Subscriptions) > 0 {
			t.Errorf("subscriptions %v", x.Subscriptions)
		}
	}
	if st := s.Status(); st.ReadErrors < 3 || st.Damaged < 3 {
		t.Errorf("%d read errors, %d damaged in the status", st.ReadErrors, st.Damaged)
	}
}
