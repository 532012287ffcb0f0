package storeforward

import (
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker/durable"
)

// The oldest row is looked for once, however often the status is asked for,
// and again when it has gone.
func TestOldestIsLookedForOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, _ := onDisk(t)
		s := open(t, o)
		defer closeStore(t, s)
		q := uplink(t, s)
		for _, payload := range []string{"0", "1"} {
			if err := put(t, s, msg("a", payload), claimFor(q, 1), durable.Origin{}).wait(t); err != nil {
				t.Fatal(err)
			}
			wait(time.Minute)
		}
		oldest := func() time.Duration {
			return time.Duration(s.Status().Queues[0].OldestSeconds * float64(time.Second))
		}
		near := func(got, want time.Duration) {
			t.Helper()
			if got < want-time.Second || got > want+time.Second {
				t.Errorf("oldest is %v old, want %v", got, want)
			}
		}
		near(oldest(), 2*time.Minute)
		wait(time.Minute)
		near(oldest(), 3*time.Minute)
		// What it remembers is what it says: it did not look again.
		s.mu.Lock()
		s.queues[q].oldest = s.queues[q].oldest.Add(-time.Hour)
		s.mu.Unlock()
		near(oldest(), time.Hour+3*time.Minute)
		r := &taker{window: 10}
		if err := s.Attach(q, r); err != nil {
			t.Fatal(err)
		}
		ds, _, err := s.Read(t.Context(), q, 1, 1, 1<<20)
		if err != nil || len(ds) != 1 {
			t.Fatalf("Read = %v, %v", ds, err)
		}
		s.Acked(q, ds[0].Seq)
		near(oldest(), 2*time.Minute)
		s.Detach(q, r)
		near(oldest(), 2*time.Minute)
	})
}
