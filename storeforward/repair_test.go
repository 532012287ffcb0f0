package storeforward

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/broker/durable"
)

// breakMiddle overwrites three pages in the middle of the file, as a worn medium
// would.
func breakMiddle(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	info, err := f.Stat()
	if err == nil {
		_, err = f.WriteAt(bytes.Repeat([]byte{0xFF}, 3*4096), info.Size()/2/4096*4096)
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// A database that breaks while the store is open is set aside, and the store goes
// on with what is left of it: the same queues, new messages, no restart.
func TestDamageAtRunTime(t *testing.T) {
	o := onFile(t)
	reports := make(chan Repair, 4)
	o.OnRepair = func(r Repair) { reports <- r }
	o.WALBytes = 64 << 10
	s := open(t, o)
	defer closeStore(t, s)
	q := uplink(t, s)
	alice := s.CreateSession("alice", 3600, nil)
	after(t, func(done func(error)) { s.Subscribe(alice, []durable.Subscription{{Filter: "a/#", QoS: 1}}, done) })
	const n = 30_000 // more than the cache of a connection holds
	for i := range n {
		claims := []durable.Claim{{Queue: q, QoS: 1}, {Queue: alice, QoS: 1}}
		if done := put(t, s, msg(fmt.Sprintf("a/%d", i), strings.Repeat("x", 200)), claims, durable.Origin{}); i%500 == 499 {
			if err := done.wait(t); err != nil {
				t.Fatal(err)
			}
		}
	}
	id := s.ID()
	breakMiddle(t, o.Path)
	r := &taker{}
	if err := s.Attach(q, r); err != nil {
		t.Fatal(err)
	}
	// Reading comes upon it.
	deadline, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for {
		ds, live, err := s.Read(deadline, q, 1, 100, 1<<20)
		if err != nil {
			break
		}
		if live && len(ds) == 0 {
			t.Fatal("read everything of a damaged database")
		}
		for _, d := range ds[:min(len(ds), 50)] {
			s.Acked(q, d.Seq)
		}
	}
	var report Repair
	select {
	case report = <-reports:
	case <-deadline.Done():
		t.Fatalf("no report: %+v", s.Status())
	}
	if _, err := os.Stat(report.SetAside); err != nil || report.Reason == "" || report.Lost == 0 || !strings.Contains(report.Salvaged, "message") {
		t.Errorf("report %+v, %v", report, err)
	}
	if s.ID() == id {
		t.Error("the fresh database has the identity of the broken one")
	}
	if err := put(t, s, msg("a/new", "new"), claimFor(alice, 1), durable.Origin{}).wait(t); err != nil {
		t.Fatal(err)
	}
	sessions, err := s.Sessions(deadline)
	if err != nil || len(sessions) != 1 || len(sessions[0].Subscriptions) != 1 {
		t.Errorf("sessions %+v, %v", sessions, err)
	}
	for name, queue := range map[string]durable.QueueID{"cloud": q, "alice": alice} {
		r := &taker{window: 1 << 20}
		if err := s.Attach(queue, r); err != nil {
			t.Fatal(err)
		}
		held, _ := s.Backlog(queue)
		ds := readAll(t, s, queue, 1)
		if int64(len(ds)) != held || held < n/2 || held >= n {
			t.Errorf("%s: %d messages read of %d held, of %d there were", name, len(ds), held, n)
		}
		for _, d := range ds {
			s.Acked(queue, d.Seq)
		}
		if left, size := s.Backlog(queue); left != 0 || size != 0 {
			t.Errorf("%s: %d messages and %d bytes left of nothing", name, left, size)
		}
		if queue == alice && string(ds[len(ds)-1].Message.Payload) != "new" {
			t.Error("the message appended after the repair is not the last")
		}
	}
	if st := s.Status(); st.State != "ok" || st.SetAside != report.SetAside || st.Messages != 0 {
		t.Errorf("state %s, set aside %q, %d messages", st.State, st.SetAside, st.Messages)
	}
}

// What memory knows goes on over a repair: packet ids in both directions, cursors,
// what waits for a commit.
func TestRepairKeepsWhatMemoryKnows(t *testing.T) {
	o := onFile(t)
	s := open(t, o)
	q := uplink(t, s)
	inFlight(t, s, q)
	if err := put(t, s, msg("b", "inbound"), nil, durable.Origin{Queue: q, PacketID: 9}).wait(t); err != nil {
		t.Fatal(err)
	}
	s.suspect(errForeign)
	if err := put(t, s, msg("a", "5"), claimFor(q, 2), durable.Origin{}).wait(t); err != nil {
		t.Fatal(err)
	}
	if s.Status().SetAside == "" {
		t.Fatal("not set aside")
	}
	for range 2 { // in this run, and in the next
		if err := s.Attach(q, &taker{}); err != nil {
			t.Fatal(err)
		}
		got := fmt.Sprint(describe(readAll(t, s, q, 2)))
		if want := "[PUBREL 11 resend 2 as 12 resend 3 as 13 new 4 as 0 new 5 as 0]"; got != want {
			t.Errorf("deliveries %s, want %s", got, want)
		}
		if n, _ := s.Backlog(q); n != 5 {
			t.Errorf("backlog %d, want 5", n)
		}
		closeStore(t, s)
		s = open(t, o)
		if _, received, err := s.OpenUplink("cloud"); err != nil || len(received) != 1 || received[0] != 9 {
			t.Errorf("inbound ids %v, %v, want 9", received, err)
		}
	}
	closeStore(t, s)
}

// Reads that wait while a database is replaced go on with the fresh one, and give
// back no more connections than there are.
func TestReadsDuringARepair(t *testing.T) {
	o := onFile(t)
	s := open(t, o)
	defer closeStore(t, s)
	q := uplink(t, s)
	for i := range 20 {
		if err := put(t, s, msg("a", fmt.Sprint(i)), claimFor(q, 1), durable.Origin{}).wait(t); err != nil {
			t.Fatal(err)
		}
	}
	stop := make(chan struct{})
	var reading sync.WaitGroup
	for range 8 {
		reading.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					_, _ = s.Sessions(t.Context()) // it may fail while there is no database
				}
			}
		})
	}
	for range 10 {
		s.mu.Lock()
		s.damage = errForeign
		s.hurryLocked()
		s.mu.Unlock()
		eventually(t, "no repair", func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.damage == nil
		})
		after(t, func(done func(error)) { // the committer is idle again
			s.SetSessionState(q, "x", done)
		})
		s.repaired = time.Time{}
	}
	close(stop)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		reading.Wait()
	}()
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Fatal("reads hang")
	}
	if n := rowsOf(t, s); n != 20 {
		t.Errorf("%d rows, want 20", n)
	}
}
