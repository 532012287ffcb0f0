package storeforward

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker/durable"
	"holdfast/broker/message"
	"holdfast/storeforward/storetest"
)

func wait(d time.Duration) {
	time.Sleep(d) //nolint:forbidigo // the bubble's time
	synctest.Wait()
}

// A disk that fails does not stop what the link acknowledges; the rest waits,
// within a bound, and is safe when the disk works again.
func TestDiskFailure(t *testing.T) {
	faults := map[string]func(*storetest.Disk){
		"full":        func(d *storetest.Disk) { d.SetCapacity(d.Used()) },
		"write fails": func(d *storetest.Disk) { d.FailWrites(0, -1) },
		"sync fails":  func(d *storetest.Disk) { d.FailSyncs(0, -1, false) },
		"sync fails though all is written": func(d *storetest.Disk) {
			d.FailSyncs(0, -1, true)
		},
	}
	for name, fail := range faults {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o, disk := onDisk(t)
				o.MaxUnsafeBytes, o.MaxMemoryBytes = 4096, 64<<10
				o.ReserveBytes = 0
				s := open(t, o)
				defer closeStore(t, s)
				q := uplink(t, s)
				alice := s.CreateSession("alice", 60, nil)
				r := attachLive(t, s, q, 1000)
				wait(time.Minute)
				fail(disk)
				offline := put(t, s, msg("a", "for alice"), claimFor(alice, 1), durable.Origin{})
				wait(time.Second)
				if st := s.Status(); st.State != "failing" || st.CommitErrors == 0 || st.LastError == "" {
					t.Fatalf("state %s, %d errors, last %q", st.State, st.CommitErrors, st.LastError)
				}
				for i := range 100 { // the link works as ever
					safe := put(t, s, msg("b", fmt.Sprint(i)), claimFor(q, 1), durable.Origin{})
					s.Acked(q, r.take()[0].Seq)
					if err := safe.wait(t); err != nil {
						t.Fatal(err)
					}
				}
				if err := s.Append(msg("b", "x"), claimFor(q, 2), durable.Origin{Queue: alice, PacketID: 1}, nil); !errors.Is(err, durable.ErrFull) {
					t.Errorf("inbound QoS 2 while the disk fails: %v, want ErrFull", err)
				}
				refused := newOutcome()
				s.Subscribe(alice, []durable.Subscription{{Filter: "x"}}, refused.done)
				if err := refused.wait(t); !errors.Is(err, durable.ErrFull) {
					t.Errorf("subscribe while the disk fails: %v, want ErrFull", err)
				}
				var err error
				n := 0
				for ; err == nil && n < 10_000; n++ {
					err = s.Append(msg("c", strings.Repeat("x", 1000)), claimFor(alice, 1), durable.Origin{}, nil)
				}
				if !errors.Is(err, durable.ErrFull) || n < 20 || n > 70 {
					t.Errorf("%d messages of 1000 bytes taken into 64 KiB, then %v", n, err)
				}
				if offline.called() {
					t.Error("safe on a disk that fails")
				}
				disk.Heal()
				if err := offline.wait(t); err != nil {
					t.Errorf("after healing: %v", err)
				}
				wait(time.Second)
				if st := s.Status(); st.State != "ok" || st.UnsafeMessages != 0 {
					t.Errorf("state %s with %d unsafe, want ok with 0", st.State, st.UnsafeMessages)
				}
				if got, want := rowsOf(t, s), int64(n); got != want {
					t.Errorf("%d rows, want %d", got, want)
				}
			})
		})
	}
}

// A commit may report an error and yet be on disk: were its inbound QoS 2 id
// withdrawn at once, a power cut would bring both back by recovery of the log. The
// publisher, told of a failure, may have given the id to another message: that
// would be taken for a resend and lost. So nothing is withdrawn before the log has
// been emptied, and what is withdrawn stays so.
func TestWithdrawnStaysWithdrawn(t *testing.T) {
	faults := map[string]func(*storetest.Disk){
		"write fails":                      func(d *storetest.Disk) { d.FailWrites(0, 1) },
		"later write fails":                func(d *storetest.Disk) { d.FailWrites(1, 1) },
		"sync fails":                       func(d *storetest.Disk) { d.FailSyncs(0, 1, false) },
		"sync fails though all is written": func(d *storetest.Disk) { d.FailSyncs(0, 1, true) },
	}
	for name, fail := range faults {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				for seed := range uint64(20) {
					o, disk := onDisk(t)
					s := open(t, o)
					q, pub := uplink(t, s), s.CreateSession("pub", 60, nil)
					wait(time.Second)
					fail(disk)
					m := &message.Message{Topic: "a", QoS: 2, Payload: []byte("once")}
					err := put(t, s, m, claimFor(q, 2), durable.Origin{Queue: pub, PacketID: 7}).wait(t)
					next := disk.Cut(rand.New(rand.NewPCG(seed, 1)))
					_ = s.Close()
					o.Disk, o.Path = next, next.Path("holdfast.db")
					s = open(t, o)
					sessions, serr := s.Sessions(context.Background())
					if serr != nil || len(sessions) != 1 {
						t.Fatalf("sessions %v, %v", sessions, serr)
					}
					n, _ := s.Backlog(q)
					if there := n == 1 && len(sessions[0].Received) == 1; there != (err == nil) {
						t.Errorf("publisher was told %v; after the cut %d messages and ids %v", err, n, sessions[0].Received)
					}
					closeStore(t, s)
				}
			})
		})
	}
}

// "A recipient that ends counts as safe": not before its end is durable. A power
// cut would bring the session back, and the acknowledged message would be gone.
func TestEndMakesSafeOnlyWhenDurable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, disk := onDisk(t)
		s := open(t, o)
		q := s.CreateSession("alice", 60, nil)
		wait(time.Second)
		disk.FailWrites(0, -1)
		before := put(t, s, msg("a", "1"), claimFor(q, 1), durable.Origin{})
		ended := newOutcome()
		s.End(q, ended.done)
		after := put(t, s, msg("a", "2"), claimFor(q, 1), durable.Origin{})
		wait(time.Minute)
		if before.called() || after.called() || ended.called() {
			t.Fatal("acknowledged though the end is not durable: after a power cut the session is back without its message")
		}
		disk.Heal()
		if err := errors.Join(before.wait(t), ended.wait(t), after.wait(t)); err != nil {
			t.Fatal(err)
		}
		if n := rowsOf(t, s); n != 0 {
			t.Errorf("%d rows for a session that has ended", n)
		}
		closeStore(t, s)
	})
}

// Ids that were reserved for a commit that failed come back, and the message goes
// out under a new one.
func TestReservedIDsComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, disk := onDisk(t)
		s := open(t, o)
		defer closeStore(t, s)
		q := uplink(t, s)
		r := attachLive(t, s, q, 10)
		wait(time.Second)
		disk.FailWrites(0, 1)
		if err := put(t, s, msg("a", "1"), claimFor(q, 2), durable.Origin{}).wait(t); err != nil {
			t.Fatal(err)
		}
		got := r.take()
		if fmt.Sprint(r.given) != "[1]" || len(got) != 1 || got[0].PacketID != 2 {
			t.Errorf("given back %v, offered %+v; want id 1 back and 2 used", r.given, got)
		}
	})
}

func TestCloseWithABrokenDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, disk := onDisk(t)
		s := open(t, o)
		q := uplink(t, s)
		disk.FailWrites(0, -1)
		lost := put(t, s, msg("a", "1"), claimFor(q, 1), durable.Origin{})
		wait(time.Second)
		_ = s.Close()
		if err := lost.wait(t); !errors.Is(err, durable.ErrClosed) {
			t.Errorf("done(%v), want ErrClosed", err)
		}
	})
}
