package storeforward

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"holdfast/broker/durable"
	"holdfast/broker/message"
	"holdfast/broker/packet"
)

func setPolicy(t testing.TB, s *Store, q durable.QueueID, p durable.QueuePolicy) {
	t.Helper()
	if err := s.SetPolicy(q, p); err != nil {
		t.Fatal(err)
	}
}

// payloads reads everything there is for a new recipient, without acknowledging.
func payloads(t testing.TB, s *Store, q durable.QueueID, qos byte) (list []string) {
	t.Helper()
	r := &taker{window: 1 << 20}
	if err := s.Attach(q, r); err != nil {
		t.Fatal(err)
	}
	for _, d := range readAll(t, s, q, qos) {
		list = append(list, string(d.Message.Payload))
	}
	s.Detach(q, r)
	return list
}

func droppedOf(t testing.TB, s *Store, q durable.QueueID) map[string]uint64 {
	t.Helper()
	for _, st := range s.Status().Queues {
		if st.ID == q {
			return st.Dropped
		}
	}
	t.Fatalf("queue %d is not in the status", q)
	return nil
}

func TestDropOldest(t *testing.T) {
	for qos := byte(1); qos <= 2; qos++ {
		t.Run(fmt.Sprintf("QoS %d", qos), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o, disk := onDisk(t)
				s := open(t, o)
				q := uplink(t, s)
				setPolicy(t, s, q, durable.QueuePolicy{Policy: durable.PolicyDropOldest, MaxMessages: 100})
				for i := range 1000 {
					done := put(t, s, msg("a", fmt.Sprint(i)), claimFor(q, qos), durable.Origin{})
					if i%7 == 0 {
						if err := done.wait(t); err != nil {
							t.Fatal(err)
						}
					}
				}
				wait(time.Second)
				n, _ := s.Backlog(q)
				if n < 90 || n > 100 {
					t.Errorf("%d messages kept, want about 100", n)
				}
				if rows := rowsOf(t, s); rows != n {
					t.Errorf("%d rows for %d messages", rows, n)
				}
				if d := droppedOf(t, s, q)[reasonOldest]; d != uint64(1000-n) {
					t.Errorf("%d counted as dropped, want %d", d, 1000-n)
				}
				closeStore(t, s)
				s = open(t, o)
				defer closeStore(t, s)
				want := make([]string, 0, n)
				for i := 1000 - int(n); i < 1000; i++ {
					want = append(want, fmt.Sprint(i))
				}
				if diff := cmp.Diff(want, payloads(t, s, q, qos)); diff != "" {
					t.Errorf("what is left (-want +got):\n%s", diff)
				}
				if d := droppedOf(t, s, q)[reasonOldest]; d != uint64(1000-n) {
					t.Errorf("%d counted as dropped after a restart, want %d", d, 1000-n)
				}
				_ = disk
			})
		})
	}
}

// What has been sent stays, also when the link is gone and back, and what another
// recipient waits for stays for it.
func TestDropOldestLeavesWhatHasBeenSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, _ := onDisk(t)
		s := open(t, o)
		defer closeStore(t, s)
		q := uplink(t, s)
		alice := s.CreateSession("alice", 3600, nil)
		setPolicy(t, s, q, durable.QueuePolicy{Policy: durable.PolicyDropOldest, MaxMessages: 20})
		both := []durable.Claim{{Queue: q, QoS: 1}, {Queue: alice, QoS: 1}}
		for i := range 10 {
			put(t, s, msg("a", fmt.Sprint(i)), both, durable.Origin{})
		}
		wait(time.Second)
		r := &taker{}
		if err := s.Attach(q, r); err != nil {
			t.Fatal(err)
		}
		if ds, _, err := s.Read(context.Background(), q, 1, 5, 1<<20); len(ds) != 5 || err != nil {
			t.Fatalf("read %d, %v", len(ds), err)
		}
		s.Detach(q, r)
		for i := 10; i < 50; i++ {
			put(t, s, msg("a", fmt.Sprint(i)), both, durable.Origin{})
			synctest.Wait()
			if i == 30 { // the new recipient has read nothing yet
				if err := s.Attach(q, &taker{}); err != nil {
					t.Fatal(err)
				}
			}
		}
		wait(time.Second)
		got := payloads(t, s, q, 1)
		if len(got) < 15 || len(got) > 20 || !slices.Equal(got[:5], []string{"0", "1", "2", "3", "4"}) || got[len(got)-1] != "49" {
			t.Errorf("kept %v, want the five sent and the newest", got)
		}
		if got := payloads(t, s, alice, 1); len(got) != 50 {
			t.Errorf("%d messages for the other recipient, want 50", len(got))
		}
	})
}

// A route that may not drop keeps its messages while another gives way, and is
// refused when only its own are left.
func TestPoliciesOfRoutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, _ := onDisk(t)
		s := open(t, o)
		defer closeStore(t, s)
		q := uplink(t, s)
		setPolicy(t, s, q, durable.QueuePolicy{MaxMessages: 20, Routes: []durable.RoutePolicy{
			{Filter: "data/#", Policy: durable.PolicyDropOldest}, {Filter: "junk/#", Policy: durable.PolicyDropNewest},
		}})
		refused := 0
		for i := range 30 {
			for _, topic := range []string{"data/1", "alarm/1", "junk/1"} {
				err := s.Append(msg(topic, fmt.Sprintf("%s %d", topic, i)), claimFor(q, 1), durable.Origin{}, nil)
				synctest.Wait()
				switch {
				case errors.Is(err, durable.ErrFull) && topic == "alarm/1":
					refused++
				case err != nil && topic == "junk/1":
					t.Fatalf("%s: %v", topic, err)
				}
			}
		}
		wait(time.Second)
		kept := map[string]int{}
		for _, p := range payloads(t, s, q, 1) {
			kept[p[:5]]++
		}
		d := droppedOf(t, s, q)
		if kept["alarm"]+refused != 30 {
			t.Errorf("%d alarms kept and %d refused, want all of 30", kept["alarm"], refused)
		}
		if kept["junk/"]+int(d[reasonNewest]) != 30 || d[reasonNewest] == 0 {
			t.Errorf("%d junk kept and %d dropped, want all of 30", kept["junk/"], d[reasonNewest])
		}
		if d[reasonOldest] == 0 {
			t.Error("no data was dropped")
		}
	})
}

func TestPolicyWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, _ := onDisk(t)
		s := open(t, o)
		q := uplink(t, s)
		alice := s.CreateSession("alice", 3600, nil)
		setPolicy(t, s, q, durable.QueuePolicy{Policy: durable.PolicyWait, MaxMessages: 10})
		setPolicy(t, s, alice, durable.QueuePolicy{Policy: durable.PolicyWait, MaxMessages: 1})
		var told []*outcome
		for i := range 15 {
			told = append(told, put(t, s, msg("a", fmt.Sprint(i)), claimFor(q, 1), durable.Origin{}))
		}
		wait(time.Minute)
		for i, o := range told {
			if o.called() != (i < 10) {
				t.Errorf("message %d of a queue of 10: acknowledged %v", i, o.called())
			}
		}
		r := &taker{window: 100}
		if err := s.Attach(q, r); err != nil {
			t.Fatal(err)
		}
		for i, d := range readAll(t, s, q, 1)[:3] {
			s.Acked(q, d.Seq)
			synctest.Wait()
			if !told[10+i].called() || told[11+i].called() {
				t.Errorf("after %d acknowledgements of the peer: message %d told %v, %d told %v", i+1, 10+i, told[10+i].called(), 11+i, told[11+i].called())
			}
		}
		// Its own acknowledgements would make the room.
		put(t, s, msg("b", "1"), claimFor(alice, 1), durable.Origin{Queue: alice})
		if err := s.Append(msg("b", "2"), claimFor(alice, 1), durable.Origin{Queue: alice}, nil); !errors.Is(err, durable.ErrFull) {
			t.Errorf("a session waits for itself: %v, want %v", err, durable.ErrFull)
		}
		ended := put(t, s, msg("b", "2"), claimFor(alice, 1), durable.Origin{})
		wait(time.Second)
		if ended.called() {
			t.Error("acknowledged though the queue is full")
		}
		s.End(alice, nil)
		if err := ended.wait(t); err != nil {
			t.Errorf("the queue that it waited for has ended: %v", err)
		}
		closeStore(t, s)
		if err := told[14].wait(t); err != nil {
			t.Errorf("it is safe, and was told %v at the end", err)
		}
	})
}

// Sessions have smaller bounds than uplinks, and all of them together leave the
// uplinks their room, across a restart too.
func TestSessionsLeaveUplinksTheirRoom(t *testing.T) {
	o := onFile(t)
	o.CommitWindow = 0
	o.MaxMessages, o.SessionShare, o.MaxSessionMessages = 100, 50, 30
	s := open(t, o)
	q := uplink(t, s)
	sessions := []durable.QueueID{s.CreateSession("x", 3600, nil), s.CreateSession("y", 3600, nil)}
	fill := func(q durable.QueueID) (n int) {
		for s.Append(msg("a", "x"), claimFor(q, 1), durable.Origin{}, nil) == nil {
			n++
		}
		return n
	}
	for i, want := range []int{30, 20} {
		if got := fill(sessions[i]); got != want {
			t.Errorf("session %d takes %d, want %d", i, got, want)
		}
	}
	closeStore(t, s)
	s = open(t, o)
	if got := fill(sessions[1]); got != 0 {
		t.Errorf("a session takes %d more after a restart", got)
	}
	if got := fill(q); got != 50 {
		t.Errorf("the uplink takes %d, want 50", got)
	}
	after(t, func(done func(error)) { s.End(sessions[0], done) })
	if got := fill(sessions[1]); got != 10 {
		t.Errorf("a session takes %d beside another that has ended, want 10", got)
	}
	closeStore(t, s)
}

func TestMaxAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, _ := onDisk(t)
		o.MaxAge = time.Hour
		s := open(t, o)
		q := uplink(t, s)
		for i := range 240 {
			put(t, s, msg("a", fmt.Sprint(i)), claimFor(q, 1), durable.Origin{})
			wait(time.Minute)
			if i == 100 {
				closeStore(t, s)
				s = open(t, o)
			}
		}
		defer closeStore(t, s)
		got := payloads(t, s, q, 1)
		if len(got) < 58 || len(got) > 62 || got[len(got)-1] != "239" {
			t.Errorf("%d messages of an hour, last %s, want 60", len(got), got[len(got)-1])
		}
		if d := droppedOf(t, s, q)[reasonAge]; int(d)+len(got) != 240 {
			t.Errorf("%d dropped and %d kept of 240", d, len(got))
		}
	})
}

// Three weeks without a link in a queue for one day: all of it is there, coarser
// with age.
func TestThin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, _ := onDisk(t)
		o.CommitWindow = time.Minute
		s := open(t, o)
		q := uplink(t, s)
		const limit = 4000
		setPolicy(t, s, q, durable.QueuePolicy{Policy: durable.PolicyThin, MaxMessages: limit})
		event, err := packet.PublishProperties{User: []packet.UserProperty{{Key: durable.EventProperty, Value: "door"}}}.AppendTo(nil)
		if err != nil {
			t.Fatal(err)
		}
		const weeks = 3 * 7 * 24 * 60
		start, most, appended, events := time.Now(), int64(0), 0, 0
		for i := range weeks {
			for _, topic := range []string{"fast", "slow"} {
				if topic == "slow" && i%60 != 0 {
					continue
				}
				m := &message.Message{Topic: topic, QoS: 1, Payload: fmt.Append(nil, i), Received: time.Now()}
				if i%5000 == 77 {
					m.Properties = event
					events++
				}
				appended++
				put(t, s, m, claimFor(q, 1), durable.Origin{})
			}
			wait(time.Minute)
			n, _ := s.Backlog(q)
			most = max(most, n)
		}
		if most > limit+limit/8 {
			t.Errorf("%d messages at the most, the bound is %d", most, limit)
		}
		closeStore(t, s)
		s = open(t, o)
		defer closeStore(t, s)
		if err := s.Attach(q, &taker{}); err != nil {
			t.Fatal(err)
		}
		ages := map[string][]time.Duration{} // oldest first
		kept, keptEvents := 0, 0
		end := start.Add(weeks * time.Minute)
		for _, d := range readAll(t, s, q, 1) {
			var i int
			_, _ = fmt.Sscan(string(d.Message.Payload), &i)
			ages[d.Message.Topic] = append(ages[d.Message.Topic], end.Sub(start.Add(time.Duration(i)*time.Minute)))
			kept++
			if d.Message.Properties != nil {
				keptEvents++
			}
		}
		if dropped := int(droppedOf(t, s, q)[reasonThin]); dropped+kept != appended {
			t.Errorf("%d thinned and %d kept of %d", dropped, kept, appended)
		}
		if kept < limit/2 {
			t.Errorf("%d kept of %d: too much was thinned", kept, limit)
		}
		if keptEvents != events {
			t.Errorf("%d events kept of %d", keptEvents, events)
		}
		for topic, list := range ages {
			if list[0] != weeks*time.Minute {
				t.Errorf("%s begins %v ago, want three weeks", topic, list[0])
			}
			for i := 1; i < len(list); i++ {
				// No gap is longer than a slot and the next: a fifth of its age.
				if gap := list[i-1] - list[i]; gap > list[i-1]/5+2*time.Hour {
					t.Errorf("%s: nothing from %v to %v ago", topic, list[i-1], list[i])
				}
			}
			t.Logf("%s: %d kept", topic, len(list))
		}
		if recent := ages["fast"][len(ages["fast"])-60]; recent > 61*time.Minute {
			t.Errorf("the last 60 samples go back %v, want an hour", recent)
		}
	})
}
