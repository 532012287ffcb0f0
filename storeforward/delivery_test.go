package storeforward

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"holdfast/broker/durable"
	"holdfast/broker/message"
)

func readAll(t testing.TB, s *Store, q durable.QueueID, qos byte) (all []durable.Delivery) {
	t.Helper()
	for {
		ds, live, err := s.Read(context.Background(), q, qos, 10, 1<<20)
		if err != nil {
			t.Fatalf("read: %v", err)
		}
		all = append(all, ds...)
		if live || len(ds) == 0 {
			return all
		}
	}
}

// describe is what matters of QoS 2 deliveries after a reconnect.
func describe(ds []durable.Delivery) (list []string) {
	for _, d := range ds {
		switch {
		case d.Released:
			list = append(list, fmt.Sprintf("PUBREL %d", d.PacketID))
		case d.Resend:
			list = append(list, fmt.Sprintf("resend %s as %d", d.Message.Payload, d.PacketID))
		default:
			list = append(list, fmt.Sprintf("new %s as %d", d.Message.Payload, d.PacketID))
		}
	}
	return list
}

// after waits for a change.
func after(t testing.TB, change func(done func(error))) {
	t.Helper()
	o := newOutcome()
	change(o.done)
	if err := o.wait(t); err != nil {
		t.Fatal(err)
	}
}

// inFlight leaves five QoS 2 messages: 0 completed, 1 released, 2 and 3 sent, 4
// not sent.
func inFlight(t testing.TB, s *Store, q durable.QueueID) {
	t.Helper()
	for i := range 5 {
		if err := put(t, s, msg("a", fmt.Sprint(i)), claimFor(q, 2), durable.Origin{}).wait(t); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Attach(q, &taker{}); err != nil {
		t.Fatal(err)
	}
	ds := readAll(t, s, q, 2)
	var ids []durable.Sent
	for i := range 4 {
		ids = append(ids, durable.Sent{Seq: ds[i].Seq, PacketID: uint16(10 + i)})
	}
	after(t, func(done func(error)) { s.Sent(q, ids, done) })
	after(t, func(done func(error)) { s.Received(q, ds[0].Seq, done) })
	after(t, func(done func(error)) { s.Received(q, ds[1].Seq, done) })
	after(t, func(done func(error)) { s.Completed(q, ds[0].Seq, done) })
}

func TestExactlyOnceResumes(t *testing.T) {
	o := onFile(t)
	s := open(t, o)
	q := uplink(t, s)
	inFlight(t, s, q)
	want := []string{"PUBREL 11", "resend 2 as 12", "resend 3 as 13", "new 4 as 0"}
	for _, how := range []string{"reconnect", "restart"} {
		if how == "restart" {
			closeStore(t, s)
			s = open(t, o)
		}
		if err := s.Attach(q, &taker{}); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, describe(readAll(t, s, q, 2))); diff != "" {
			t.Errorf("after a %s:\n%s", how, diff)
		}
		if n, _ := s.Backlog(q); n != 4 {
			t.Errorf("backlog %d after a %s, want 4", n, how)
		}
	}
	closeStore(t, s)
}

func TestResetUplink(t *testing.T) {
	o := onFile(t)
	s := open(t, o)
	q := uplink(t, s)
	inFlight(t, s, q)
	m := &message.Message{Topic: "command", Payload: []byte("x"), QoS: 2, Retain: true}
	if err := put(t, s, m, nil, durable.Origin{Queue: q, PacketID: 77}).wait(t); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	s = open(t, o)
	if id, received, err := s.OpenUplink("cloud"); err != nil || id != q || fmt.Sprint(received) != "[77]" {
		t.Fatalf("uplink %d with ids %v, %v; want %d with [77]", id, received, err, q)
	}
	after(t, func(done func(error)) { s.ResetUplink(q, done) })
	after(t, func(done func(error)) { s.SetSessionState(q, "epoch 2", done) })
	check := func(how string) {
		t.Helper()
		if err := s.Attach(q, &taker{}); err != nil {
			t.Fatal(err)
		}
		want := []string{"new 2 as 0", "new 3 as 0", "new 4 as 0"}
		if diff := cmp.Diff(want, describe(readAll(t, s, q, 2))); diff != "" {
			t.Errorf("%s:\n%s", how, diff)
		}
		if _, received, err := s.OpenUplink("cloud"); err != nil || len(received) != 0 {
			t.Errorf("%s: ids %v, %v; want none", how, received, err)
		}
		if got := s.SessionState(q); got != "epoch 2" {
			t.Errorf("%s: state %q", how, got)
		}
		if n, _ := s.Backlog(q); n != 3 {
			t.Errorf("%s: backlog %d, want 3", how, n)
		}
	}
	check("after the reset")
	if got := s.Status().Queues[0].PossibleDuplicates; got != 2 {
		t.Errorf("%d possible duplicates, want 2", got)
	}
	closeStore(t, s)
	s = open(t, o)
	check("after a restart")
	closeStore(t, s)
}

// A change by the recipient before is made durable before its successor reads:
// else PUBREC would be forgotten, or two ids given.
func TestReadWaitsForTheRecipientBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, disk := onDisk(t)
		s := open(t, o)
		defer closeStore(t, s)
		q := uplink(t, s)
		if err := put(t, s, msg("a", "1"), claimFor(q, 2), durable.Origin{}).wait(t); err != nil {
			t.Fatal(err)
		}
		if err := s.Attach(q, &taker{}); err != nil {
			t.Fatal(err)
		}
		d := readAll(t, s, q, 2)[0]
		disk.FailWrites(0, 3)
		s.Sent(q, []durable.Sent{{Seq: d.Seq, PacketID: 5}}, nil)
		r := &taker{}
		if err := s.Attach(q, r); err != nil {
			t.Fatal(err)
		}
		if ds := readAll(t, s, q, 2); len(ds) != 0 {
			t.Fatalf("read %+v while an id is on its way to the disk", ds)
		}
		wait(time.Minute)
		if r.woken[2] == 0 {
			t.Fatal("not woken")
		}
		if got := describe(readAll(t, s, q, 2)); fmt.Sprint(got) != "[new 1 as 5]" && fmt.Sprint(got) != "[resend 1 as 5]" {
			t.Errorf("read %v, want 1 under id 5", got)
		}
	})
}

// While the disk fails and all that waited has been acknowledged, the store still
// finds out that the disk works again.
func TestHealingWithoutWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, disk := onDisk(t)
		s := open(t, o)
		defer closeStore(t, s)
		q := uplink(t, s)
		r := attachLive(t, s, q, 10)
		wait(time.Minute)
		disk.FailWrites(0, -1)
		safe := put(t, s, msg("a", "1"), claimFor(q, 1), durable.Origin{})
		wait(10 * time.Second) // the window passes, the commit fails
		s.Acked(q, r.take()[0].Seq)
		if err := safe.wait(t); err != nil {
			t.Fatal(err)
		}
		if st := s.Status(); st.State != "failing" {
			t.Fatalf("state %s", st.State)
		}
		wait(time.Minute)
		disk.Heal()
		wait(time.Minute)
		if st := s.Status(); st.State != "ok" {
			t.Errorf("state %s a minute after the disk has healed", st.State)
		}
	})
}

func TestSessionsAndWills(t *testing.T) {
	o := onFile(t)
	s := open(t, o)
	alice := s.CreateSession("alice", 60, nil)
	bob := s.CreateSession("bob", durable.SessionExpiryNever, nil)
	subs := []durable.Subscription{
		{Filter: "$share/g/a/#", QoS: 2, ID: 268_435_455},
		{Filter: "b/+", QoS: 1, NoLocal: true, RetainAsPublished: true, RetainHandling: 2},
	}
	after(t, func(done func(error)) { s.Subscribe(alice, subs, done) })
	after(t, func(done func(error)) { s.Subscribe(bob, subs[:1], done) })
	after(t, func(done func(error)) { s.Unsubscribe(bob, []string{"$share/g/a/#", "unknown"}, done) })
	after(t, func(done func(error)) { s.UpdateSession(alice, 90, true, done) })
	will := durable.Will{ClientID: "alice", User: "al", Delay: 7, Message: &message.Message{
		Topic: "w", Payload: []byte("gone"), Properties: []byte{1, 1}, QoS: 1, Retain: true, HasExpiry: true, From: "alice",
	}}
	after(t, func(done func(error)) { s.SetWill(will, done) })
	after(t, func(done func(error)) { s.SetWill(durable.Will{ClientID: "bob", Message: msg("w", "")}, done) })
	if err := put(t, s, msg("w", ""), nil, durable.Origin{Will: "bob"}).wait(t); err != nil {
		t.Fatal(err)
	}
	gone := s.CreateSession("gone", 1, nil)
	after(t, func(done func(error)) { s.End(gone, done) })
	closeStore(t, s)
	s = open(t, o)
	defer closeStore(t, s)
	sessions, err := s.Sessions(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for i := range sessions {
		sessions[i].Offline = time.Time{}
	}
	want := []durable.Session{
		{ClientID: "alice", Queue: alice, Expiry: 90, Subscriptions: subs, Received: []uint16{}},
		{ClientID: "bob", Queue: bob, Expiry: durable.SessionExpiryNever, Received: []uint16{}},
	}
	if diff := cmp.Diff(want, sessions); diff != "" {
		t.Errorf("sessions:\n%s", diff)
	}
	wills, err := s.Wills(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]durable.Will{will}, wills); diff != "" {
		t.Errorf("wills:\n%s", diff)
	}
	if again := s.CreateSession("new", 1, nil); again <= gone {
		t.Errorf("queue id %d after %d was given", again, gone)
	}
	after(t, func(done func(error)) { s.ClearWill("alice", done) })
	if err := s.Attach(gone, &taker{}); !errors.Is(err, durable.ErrNoQueue) {
		t.Errorf("attach to a session that has ended: %v, want ErrNoQueue", err)
	}
}

// Everything of a message and its claim survives.
func TestMessagesComeBackAsTheyWere(t *testing.T) {
	o := onFile(t)
	s := open(t, o)
	q, alice := uplink(t, s), s.CreateSession("alice", 60, nil)
	now := time.Now()
	messages := []*message.Message{
		{Topic: "a", QoS: 1, Received: now},
		{Topic: "ünï/cödé", Payload: []byte{0, 0xFF}, Properties: []byte{3, 0, 1, 'x'}, QoS: 2, Retain: true, HasExpiry: true, Expiry: 5000, Received: now, From: "pub"},
	}
	for _, m := range messages {
		claims := []durable.Claim{{Queue: alice, QoS: 1, Retain: true, SubscriptionIDs: []uint32{1, 268_435_455}}, {Queue: q, QoS: 1}}
		if err := put(t, s, m, claims, durable.Origin{}).wait(t); err != nil {
			t.Fatal(err)
		}
	}
	s.CreateSession(durable.GroupPrefix+"$share/g/a/+", durable.SessionExpiryNever, nil)
	var names []string
	for _, q := range s.Status().Queues {
		names = append(names, q.Kind+" "+q.Name)
	}
	if fmt.Sprint(names) != "[uplink cloud session alice group $share/g/a/+]" {
		t.Errorf("queues %q", names)
	}
	closeStore(t, s)
	list, err := ListQueues(context.Background(), o.Path)
	names = nil
	for _, q := range list {
		names = append(names, q.String())
	}
	if err != nil || fmt.Sprint(names) != "[uplink/cloud session/alice $share/g/a/+]" || list[0].Messages != 2 {
		t.Errorf("list %+v, %v", list, err)
	}
	var shown []string
	err = ShowQueue(context.Background(), o.Path, []durable.QueueID{alice}, 0, 10, func(m QueuedMessage) error {
		shown = append(shown, m.Message.Topic)
		return nil
	})
	if err != nil || fmt.Sprint(shown) != "[a ünï/cödé]" {
		t.Errorf("show %v, %v", shown, err)
	}
	if _, err := ListQueues(context.Background(), filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a list of nothing")
	}
	s = open(t, o)
	defer closeStore(t, s)
	if err := s.Attach(alice, &taker{}); err != nil {
		t.Fatal(err)
	}
	for i, d := range readAll(t, s, alice, 1) {
		if !d.Retain || fmt.Sprint(d.SubscriptionIDs) != "[1 268435455]" {
			t.Errorf("claim %+v", d)
		}
		left, _ := d.Message.Remaining(time.Now())
		if want, _ := messages[i].Remaining(time.Now()); left > want+1 || left+60 < want {
			t.Errorf("%d s left, want about %d", left, want)
		}
		d.Message.Received = now
		if diff := cmp.Diff(messages[i], d.Message); diff != "" {
			t.Errorf("message:\n%s", diff)
		}
	}
}

func TestSecondProcessIsKeptOut(t *testing.T) {
	o := onFile(t)
	s := open(t, o)
	if _, err := Open(context.Background(), o, s.log); err == nil {
		t.Error("opened twice")
	}
	closeStore(t, s)
	closeStore(t, open(t, o))
}

func TestRetainedAreBounded(t *testing.T) {
	o := onFile(t)
	o.MaxRetained = 2
	s := open(t, o)
	defer closeStore(t, s)
	set := func(topic, payload string) error {
		done := newOutcome()
		err := s.Append(&message.Message{Topic: topic, Payload: []byte(payload), Retain: true, QoS: 1}, nil, durable.Origin{}, done.done)
		if err == nil {
			err = done.wait(t)
		}
		return err
	}
	for i, step := range []struct {
		topic, payload string
		want           error
	}{
		{"a", "1", nil},
		{"b", "1", nil},
		{"c", "1", durable.ErrFull},
		{"a", "2", nil},
		{"b", "", nil},
		{"c", "1", nil},
	} {
		if err := set(step.topic, step.payload); !errors.Is(err, step.want) {
			t.Errorf("step %d: %v, want %v", i, err, step.want)
		}
	}
	var have []string
	err := s.Retained(context.Background(), func(m *message.Message) error {
		have = append(have, m.Topic+"="+string(m.Payload))
		return nil
	})
	if err != nil || fmt.Sprint(have) != "[a=2 c=1]" {
		t.Errorf("retained %v, %v", have, err)
	}
}

// A delivery that is done keeps its state while an older one is not: its packet
// id is free and may be given again.
func TestDoneOutOfOrderStaysDone(t *testing.T) {
	o := onFile(t)
	s := open(t, o)
	q := uplink(t, s)
	for i := range 3 {
		if err := put(t, s, msg("a", fmt.Sprint(i)), claimFor(q, 2), durable.Origin{}).wait(t); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Attach(q, &taker{}); err != nil {
		t.Fatal(err)
	}
	ds := readAll(t, s, q, 2)
	after(t, func(done func(error)) {
		s.Sent(q, []durable.Sent{{Seq: ds[0].Seq, PacketID: 1}, {Seq: ds[1].Seq, PacketID: 2}}, done)
	})
	after(t, func(done func(error)) { s.Received(q, ds[1].Seq, done) })
	after(t, func(done func(error)) { s.Completed(q, ds[1].Seq, done) })
	after(t, func(done func(error)) { s.Sent(q, []durable.Sent{{Seq: ds[2].Seq, PacketID: 2}}, done) })
	closeStore(t, s)
	s = open(t, o)
	defer closeStore(t, s)
	if err := s.Attach(q, &taker{}); err != nil {
		t.Fatal(err)
	}
	want := []string{"resend 0 as 1", "resend 2 as 2"}
	if diff := cmp.Diff(want, describe(readAll(t, s, q, 2))); diff != "" {
		t.Error(diff)
	}
	if n, _ := s.Backlog(q); n != 2 {
		t.Errorf("backlog %d, want 2", n)
	}
}
