package storeforward

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker/durable"
)

// Commits keep their distance, whoever waits.
func TestMinCommitInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, _ := onDisk(t)
		o.MinCommitInterval = 10 * time.Second
		s := open(t, o)
		q := uplink(t, s)
		before, start := s.Status().Commits, time.Now()
		for range 60 {
			put(t, s, msg("a", "1"), claimFor(q, 1), durable.Origin{})
			wait(time.Second)
		}
		if n := s.Status().Commits - before; n < 5 || n > 6 {
			t.Errorf("%d commits in %v, want one each %v", n, time.Since(start), o.MinCommitInterval)
		}
		done := put(t, s, msg("a", "2"), claimFor(q, 1), durable.Origin{})
		closeStore(t, s) // does not wait for the next one
		if !done.called() {
			t.Error("closed without the last commit")
		}
	})
}

// With sync "normal" the log is not flushed by commits, and is by checkpoints.
func TestSyncNormal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, disk := onDisk(t)
		o.Sync = SyncNormal
		s := open(t, o)
		q := uplink(t, s)
		_, _, before := disk.Counts()
		for range 20 {
			if err := put(t, s, msg("a", "1"), claimFor(q, 1), durable.Origin{}).wait(t); err != nil {
				t.Fatal(err)
			}
		}
		if _, _, syncs := disk.Counts(); syncs != before {
			t.Errorf("%d syncs for 20 commits, want none", syncs-before)
		}
		closeStore(t, s)
		if _, _, syncs := disk.Counts(); syncs == before {
			t.Error("closed without a sync")
		}
	})
}

// On a full disk what is acknowledged leaves, with the reserve; new messages are
// refused unless they leave at once; and all goes on when there is room.
func TestReserve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, disk := onDisk(t)
		o.ReserveBytes, o.WALBytes = 1<<20, 64<<10
		s := open(t, o)
		defer closeStore(t, s)
		q := uplink(t, s)
		const n = 500
		var last *outcome
		for range n {
			last = put(t, s, msg("a", strings.Repeat("x", 1000)), claimFor(q, 1), durable.Origin{})
		}
		if err := last.wait(t); err != nil {
			t.Fatal(err)
		}
		disk.SetCapacity(disk.Used() + 1000)
		taken := 0
		for range 5000 { // the log and free pages take some
			if s.Status().State == "full" {
				break
			}
			switch err := s.Append(msg("a", strings.Repeat("x", 1000)), claimFor(q, 1), durable.Origin{}, nil); {
			case errors.Is(err, durable.ErrFull):
			case err != nil:
				t.Fatal(err)
			default:
				taken++
			}
			synctest.Wait()
		}
		st := s.Status()
		if st.State != "full" || st.UnsafeMessages != 0 {
			t.Fatalf("state %s after %d more messages, %d unsafe: %s", st.State, taken, st.UnsafeMessages, st.LastError)
		}
		asked := newOutcome()
		s.CreateSession("alice", 60, asked.done)
		if err := asked.wait(t); !errors.Is(err, durable.ErrFull) {
			t.Errorf("a session on a full disk: %v, want %v", err, durable.ErrFull)
		}
		r := &taker{window: 1000}
		if err := s.Attach(q, r); err != nil {
			t.Fatal(err)
		}
		for _, d := range readAll(t, s, q, 1) {
			s.Acked(q, d.Seq)
		}
		wait(2 * time.Second)
		if rows := rowsOf(t, s); rows != 0 {
			t.Errorf("%d rows left of what was acknowledged on a full disk", rows)
		}
		live := put(t, s, msg("a", "live"), claimFor(q, 1), durable.Origin{}) // it would leave at once
		s.Acked(q, r.got[0].Seq)
		if err := live.wait(t); err != nil {
			t.Errorf("live message on a full disk: %v", err)
		}
		wait(10 * time.Second)
		if st := s.Status(); st.State != "ok" {
			disk.SetCapacity(0)
			wait(10 * time.Second)
		}
		if st := s.Status(); st.State != "ok" {
			t.Errorf("state %s though there is room again: %s", st.State, st.LastError)
		}
		if err := put(t, s, msg("a", "1"), claimFor(q, 1), durable.Origin{}).wait(t); err == nil {
			s.Acked(q, r.got[1].Seq)
		}
	})
}
