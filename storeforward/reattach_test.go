package storeforward

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"holdfast/broker/durable"
)

// pendingCompletion leaves one QoS 1 message, one finished QoS 2 delivery whose
// end is not durable since the disk fails, and another QoS 2 message.
func pendingCompletion(t *testing.T, s *Store, q durable.QueueID, fail func()) *outcome {
	t.Helper()
	for i, qos := range []byte{1, 2, 2} {
		if err := put(t, s, msg("a", fmt.Sprint(i)), claimFor(q, qos), durable.Origin{}).wait(t); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Attach(q, &taker{}); err != nil {
		t.Fatal(err)
	}
	ds := readAll(t, s, q, 2)
	after(t, func(done func(error)) { s.Sent(q, []durable.Sent{{Seq: ds[0].Seq, PacketID: 7}}, done) })
	after(t, func(done func(error)) { s.Received(q, ds[0].Seq, done) })
	fail()
	completed := newOutcome()
	s.Completed(q, ds[0].Seq, completed.done)
	synctest.Wait()
	return completed
}

// A change by the recipient before, not durable yet, holds back QoS 2 until it
// is, and QoS 1 not at all; what it finished does not come again.
func TestReattachWhileTheDiskFails(t *testing.T) {
	for name, leave := range map[string]func(*Store, durable.QueueID, *taker){
		"attached over":  func(*Store, durable.QueueID, *taker) {},
		"detached first": func(s *Store, q durable.QueueID, r *taker) { s.Detach(q, r) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o, disk := onDisk(t)
				s := open(t, o)
				q := uplink(t, s)
				completed := pendingCompletion(t, s, q, func() { disk.FailWrites(0, 1<<30) })
				s.mu.Lock()
				first, _ := s.queues[q].r.(*taker)
				s.mu.Unlock()
				leave(s, q, first)
				if err := s.Attach(q, &taker{}); err != nil {
					t.Fatal(err)
				}
				if ds, live, err := s.Read(context.Background(), q, 2, 10, 1000); len(ds) > 0 || live || err != nil {
					t.Errorf("Read of QoS 2 before the change is durable = %v, %v, %v, want nothing", describe(ds), live, err)
				}
				disk.Heal()
				if err := completed.wait(t); err != nil {
					t.Fatal(err)
				}
				if got := describe(readAll(t, s, q, 1)); !cmp.Equal(got, []string{"new 0 as 0"}) {
					t.Errorf("QoS 1 after the disk has healed: %v, want message 0", got)
				}
				if got := describe(readAll(t, s, q, 2)); !cmp.Equal(got, []string{"new 2 as 0"}) {
					t.Errorf("QoS 2 after the disk has healed: %v, want message 2 only", got)
				}
				if n, _ := s.Backlog(q); n != 2 || s.Status().Messages != 2 {
					t.Errorf("backlog %d, in all %d, want 2", n, s.Status().Messages)
				}
				closeStore(t, s)
			})
		})
	}
}

// A change that becomes durable together with the end of its queue counts its
// message once.
func TestEndWithChangesPending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, disk := onDisk(t)
		s := open(t, o)
		q := uplink(t, s)
		completed := pendingCompletion(t, s, q, func() { disk.FailWrites(0, 1<<30) })
		s.End(q, nil)
		disk.Heal()
		if err := completed.wait(t); err != nil {
			t.Fatal(err)
		}
		if st := s.Status(); st.Messages != 0 || st.Bytes != 0 {
			t.Errorf("%d messages and %d bytes left, want none", st.Messages, st.Bytes)
		}
		closeStore(t, s)
	})
}
