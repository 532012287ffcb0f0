package storeforward

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker/durable"
)

var latestLanes = []durable.LaneRoute{{Filter: "state/#", Lane: durable.Lane{Number: 7, Latest: true}}}

// states is an uplink with a lane that keeps the latest.
func states(t *testing.T, s *Store) (q, lane durable.QueueID) {
	t.Helper()
	q = uplink(t, s)
	_, ids := setLanes(t, s, q, latestLanes)
	return q, ids["7-latest"]
}

func replacedCount(s *Store, lane durable.QueueID) uint64 {
	for _, q := range s.Status().Queues {
		if q.ID == lane {
			return q.Dropped[reasonReplaced]
		}
	}
	return 0
}

func TestLatestKeepsOneOfEachTopic(t *testing.T) {
	o := onFile(t)
	s := open(t, o)
	q, lane := states(t, s)
	alice := s.CreateSession("alice", 3600, nil)
	const changes, topics = 50, 4
	for i := range changes {
		claims := append(claimFor(q, byte(1+i%2)), durable.Claim{Queue: alice, QoS: 1})
		if err := put(t, s, msg(fmt.Sprint("state/", i%topics), fmt.Sprint(i)), claims, durable.Origin{}).wait(t); err != nil {
			t.Fatal(err)
		}
	}
	check := func() {
		t.Helper()
		if n, bytes := s.Backlog(lane); n != topics || bytes != topics*int64(len("state/0")+2) {
			t.Errorf("%d messages, %d bytes wait, want one of each topic", n, bytes)
		}
		if n := replacedCount(s, lane); n != changes-topics {
			t.Errorf("%d replaced, want %d", n, changes-topics)
		}
		if n, _ := s.Backlog(alice); n != changes {
			t.Errorf("alice has %d, want all %d", n, changes)
		}
		if got, want := waiting(t, s, lane), "46 47 48 49"; got != want {
			t.Errorf("in the lane %q, want %q: the order of the last changes", got, want)
		}
	}
	if err := s.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	check()
	closeStore(t, s)
	s = open(t, o)
	defer closeStore(t, s)
	check()
	after(t, func(done func(error)) { s.End(alice, done) })
	if err := s.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := one(t, s, "SELECT count(*) FROM message m JOIN claim c ON c.claimset = m.claimset AND c.queue = "+fmt.Sprint(int64(lane))); n != topics {
		t.Errorf("%d rows with a claim of the lane, want %d", n, topics)
	}
}

// What has been sent is never replaced; one newer message waits behind it.
func TestLatestKeepsWhatWasSent(t *testing.T) {
	o := onFile(t)
	s := open(t, o)
	q, lane := states(t, s)
	r := &taker{window: 1}
	if err := s.Attach(lane, r); err != nil {
		t.Fatal(err)
	}
	readAll(t, s, lane, 1)
	for i := range 4 {
		if err := put(t, s, msg("state/a", fmt.Sprint(i)), claimFor(q, 1), durable.Origin{}).wait(t); err != nil {
			t.Fatal(err)
		}
	}
	if n, _ := s.Backlog(lane); n != 2 {
		t.Errorf("%d messages, want the one that was sent and the newest", n)
	}
	if got := waiting(t, s, lane); got != "0 3" {
		t.Errorf("comes again %q, want 0 and 3", got)
	}
	closeStore(t, s) // nobody knows what was sent but by what is there
	s = open(t, o)
	defer closeStore(t, s)
	if err := put(t, s, msg("state/a", "4"), claimFor(q, 1), durable.Origin{}).wait(t); err != nil {
		t.Fatal(err)
	}
	if got := waiting(t, s, lane); got != "0 4" {
		t.Errorf("after a restart %q, want 0 and 4", got)
	}
	for seq := range durable.Seq(1 << 22) {
		s.Acked(lane, seq)
		if n, _ := s.Backlog(lane); n == 0 {
			break
		}
	}
	if n, bytes := s.Backlog(lane); n != 0 || bytes != 0 {
		t.Errorf("%d messages, %d bytes are left", n, bytes)
	}
}

// While the disk takes nothing the newest of each topic waits in memory, and
// publishers are told when it is safe.
func TestLatestInMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, disk := onDisk(t)
		o.ReserveBytes = 0
		s := open(t, o)
		defer closeStore(t, s)
		q, lane := states(t, s)
		disk.FailSyncs(0, 1<<30, false)
		var outcomes []*outcome
		for i := range 40 {
			outcomes = append(outcomes, put(t, s, msg(fmt.Sprint("state/", i%2), fmt.Sprint(i)), claimFor(q, 1), durable.Origin{}))
			if i%10 == 0 {
				time.Sleep(time.Second) //nolint:forbidigo // the bubble's time: commits fail meanwhile
			}
		}
		for i, x := range outcomes {
			if x.called() {
				t.Errorf("message %d was acknowledged before anything of its topic was safe", i)
			}
		}
		if n, _ := s.Backlog(lane); n != 2 {
			t.Errorf("%d wait, want 2", n)
		}
		if got := waiting(t, s, lane); got != "38 39" {
			t.Errorf("a recipient gets %q, want 38 and 39", got)
		}
		disk.Heal()
		for i, x := range outcomes {
			if err := x.wait(t); err != nil {
				t.Errorf("message %d: %v", i, err)
			}
		}
		if err := s.Settle(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := rowsOf(t, s); n != 2 {
			t.Errorf("%d rows, want 2", n)
		}
	})
}

// A full lane takes what replaces something, and nothing else.
func TestLatestReplacesWhenFull(t *testing.T) {
	s := open(t, onFile(t))
	defer closeStore(t, s)
	q, lane := states(t, s)
	if err := s.SetPolicy(q, durable.QueuePolicy{MaxMessages: 32}); err != nil {
		t.Fatal(err)
	}
	n := 0
	for s.Append(msg(fmt.Sprint("state/", n), "x"), claimFor(q, 1), durable.Origin{}, nil) == nil {
		n++
	}
	if n != 30 {
		t.Errorf("%d topics fit, want 32 without the share of the other lane", n)
	}
	for i := range n {
		if err := put(t, s, msg(fmt.Sprint("state/", i), "y"), claimFor(q, 1), durable.Origin{}).wait(t); err != nil {
			t.Fatal(err)
		}
	}
	if m, _ := s.Backlog(lane); int(m) != n {
		t.Errorf("%d messages wait, want %d", m, n)
	}
}

// A message of an inbound QoS 2 exchange whose commit fails is withdrawn: what it
// would have replaced is still there.
func TestWithdrawnReplacesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, disk := onDisk(t)
		o.ReserveBytes = 0
		s := open(t, o)
		defer closeStore(t, s)
		q, lane := states(t, s)
		alice := s.CreateSession("alice", 3600, nil)
		if err := put(t, s, msg("state/a", "old"), claimFor(q, 1), durable.Origin{}).wait(t); err != nil {
			t.Fatal(err)
		}
		disk.FailSyncs(0, 1, false)
		if err := put(t, s, msg("state/a", "new"), claimFor(q, 1), durable.Origin{Queue: alice, PacketID: 3}).wait(t); err == nil {
			t.Fatal("taken though the disk failed")
		}
		disk.Heal()
		time.Sleep(time.Minute) //nolint:forbidigo // the bubble's time
		if got := waiting(t, s, lane); got != "old" {
			t.Errorf("in the lane %q, want what was there", got)
		}
		if err := put(t, s, msg("state/a", "again"), claimFor(q, 1), durable.Origin{Queue: alice, PacketID: 3}).wait(t); err != nil {
			t.Fatal(err)
		}
		if n, _ := s.Backlog(lane); n != 2 {
			t.Errorf("%d wait, want 2: the old one is in a recipient's hands", n)
		}
		if got := waiting(t, s, lane); got != "old again" {
			t.Errorf("in the lane %q", got)
		}
	})
}

// While a power cut could bring an older state back, the newer one is not safe by
// acknowledgement alone: it would be followed by the older one.
func TestOlderStateDoesNotComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, disk := onDisk(t)
		s := open(t, o)
		q, lane := states(t, s)
		for _, m := range []string{"state/b", "state/a"} { // rows, with nobody there
			if err := put(t, s, msg(m, "1"), claimFor(q, 1), durable.Origin{}).wait(t); err != nil {
				t.Fatal(err)
			}
		}
		r := &taker{window: 10}
		if err := s.Attach(lane, r); err != nil {
			t.Fatal(err)
		}
		ds := readAll(t, s, lane, 1)
		s.Acked(lane, ds[1].Seq) // the first one stays unacknowledged, and the cursor before it
		time.Sleep(time.Minute)  //nolint:forbidigo // the bubble's time
		newer := put(t, s, msg("state/a", "2"), claimFor(q, 1), durable.Origin{})
		if len(r.got) != 1 {
			t.Fatalf("offered %v, want the newer state", r.got)
		}
		s.Acked(lane, r.got[0].Seq)
		if newer.called() {
			t.Error("safe, though the older one would come back alone")
		}
		if err := newer.wait(t); err != nil {
			t.Fatal(err)
		}
		next := disk.Cut(rand.New(rand.NewPCG(1, 1)))
		_ = s.Close() // its disk is gone
		t.Cleanup(next.Unplug)
		o.Disk, o.Path = next, next.Path("holdfast.db")
		s = open(t, o)
		defer closeStore(t, s)
		if got := waiting(t, s, lane); got != "1 1 2" {
			t.Errorf("after the cut %q, want the newer state last", got)
		}
	})
}
