package storeforward

import (
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker/durable"
	"holdfast/broker/message"
)

// remaining returns the seconds of life left of the messages waiting, by payload.
func remaining(t *testing.T, s *Store, q durable.QueueID) map[string]uint32 {
	t.Helper()
	r := &taker{}
	if err := s.Attach(q, r); err != nil {
		t.Fatal(err)
	}
	left := map[string]uint32{}
	for _, d := range readAll(t, s, q, 1) {
		n, alive := d.Message.Remaining(time.Now())
		if !alive {
			n = 0
		}
		left[string(d.Message.Payload)] = n
	}
	s.Detach(q, r)
	return left
}

// Messages go on getting older where they were when the power went, however
// young the run was.
func TestClockAfterPowerCut(t *testing.T) {
	tests := map[string]struct {
		pause, quiet time.Duration // before the second message, and after it
		atLeast      time.Duration // age of the first one then known
	}{
		"within the first minute":        {pause: 40 * time.Second, atLeast: 40 * time.Second},
		"quiet for less than a minute":   {pause: 40 * time.Second, quiet: 30 * time.Second, atLeast: 40 * time.Second},
		"quiet for hours":                {pause: 40 * time.Second, quiet: 3 * time.Hour, atLeast: 3*time.Hour - time.Minute},
		"a second message after an hour": {pause: time.Hour, quiet: 0, atLeast: time.Hour},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o, disk := onDisk(t)
				s := open(t, o)
				q := uplink(t, s)
				for i := range 2 {
					m := &message.Message{Topic: "a", QoS: 1, Payload: fmt.Append(nil, i), HasExpiry: true, Expiry: 50_000, Received: time.Now()}
					if err := put(t, s, m, claimFor(q, 1), durable.Origin{}).wait(t); err != nil {
						t.Fatal(err)
					}
					if i == 0 {
						wait(test.pause)
					}
				}
				wait(test.quiet)
				most := test.pause + test.quiet
				for range 2 { // the second time a run of no length lies between
					next := disk.Cut(rand.New(rand.NewPCG(1, 2)))
					_ = s.Close()
					disk.Unplug()
					disk = next
					o.Disk, o.Path = disk, disk.Path("holdfast.db")
					s = open(t, o)
					age := time.Duration(s.Status().Queues[0].OldestSeconds * float64(time.Second))
					if age < test.atLeast || age > most+time.Millisecond {
						t.Errorf("oldest message is %v old after the cut, want %v to %v", age, test.atLeast, most)
					}
					left := remaining(t, s, q)
					if lived := time.Duration(50_000-left["0"]) * time.Second; lived < test.atLeast-time.Second || lived > most+time.Second {
						t.Errorf("the first message has lived %v by its expiry, want %v to %v", lived, test.atLeast, most)
					}
				}
				wait(10 * time.Second)
				if age := s.Status().Queues[0].OldestSeconds; age < (test.atLeast + 10*time.Second).Seconds() {
					t.Errorf("ten seconds later it is %v s old", age)
				}
				closeStore(t, s)
			})
		})
	}
}

// Keeping nothing costs nothing.
func TestIdleStoreWritesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, _ := onDisk(t)
		s := open(t, o)
		uplink(t, s)
		before := s.Status().Commits
		wait(24 * time.Hour)
		if n := s.Status().Commits - before; n > 0 {
			t.Errorf("%d commits in a day without a message", n)
		}
		closeStore(t, s)
	})
}

// copyFile stands for an operator with a backup.
func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestIdentity(t *testing.T) {
	o := onFile(t)
	id := func() string {
		s := open(t, o)
		defer closeStore(t, s)
		return s.ID()
	}
	first := id()
	if second := id(); second != first || len(first) != 16 {
		t.Errorf("identity %q, after a restart %q", first, second)
	}
	copyFile(t, o.Path, o.Path+".backup")
	if again := id(); again != first {
		t.Errorf("identity %q, after a restart %q", first, again)
	}
	copyFile(t, o.Path+".backup", o.Path)
	restored := id()
	if restored == first {
		t.Error("a database that came back from a backup has kept its identity")
	}
	if again := id(); again != restored {
		t.Errorf("identity %q, after a restart %q", restored, again)
	}
	if err := os.Truncate(o.Path, 3000); err != nil {
		t.Fatal(err)
	}
	salvaged := id()
	if salvaged == restored || salvaged == first {
		t.Error("a salvaged database has kept its identity")
	}
	if err := os.Remove(o.Path); err != nil {
		t.Fatal(err)
	}
	if fresh := id(); fresh == salvaged {
		t.Error("a fresh database has the identity of the one before")
	}
}
