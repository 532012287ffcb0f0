package storeforward

import (
	"errors"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker/durable"
	"holdfast/storeforward/storetest"
)

// A disk that takes nothing when the store opens does not keep it from opening: what
// leaves at once is safe, the rest waits, and all is well when the disk is.
func TestOpensWithoutADisk(t *testing.T) {
	tests := map[string]struct {
		version int // of the database that is there; 0 is none
		fail    func(*storetest.Disk)
	}{
		"full, no database yet":    {0, func(d *storetest.Disk) { d.SetCapacity(1000) }},
		"broken, no database yet":  {0, func(d *storetest.Disk) { d.FailWrites(0, -1) }},
		"no flush, no database":    {0, func(d *storetest.Disk) { d.FailSyncs(0, -1, false) }},
		"full, a migration is due": {1, func(d *storetest.Disk) { d.SetCapacity(d.Used()) }},
		"broken, a migration":      {2, func(d *storetest.Disk) { d.FailWrites(0, -1) }},
		"no flush, a migration":    {1, func(d *storetest.Disk) { d.FailSyncs(0, -1, false) }},
	}
	for name, x := range tests {
		t.Run(name, func(t *testing.T) {
			var image []byte
			if x.version > 0 {
				image = unpacked(t, fixture(x.version))
			}
			synctest.Test(t, func(t *testing.T) {
				o, disk := onDisk(t)
				o.ReserveBytes = 0
				if image != nil {
					disk.Corrupt(o.Path, 0, image)
				}
				x.fail(disk)
				s := open(t, o)
				held, _ := s.Held()
				worksWithoutADisk(t, s)
				closeStore(t, s)
				s = open(t, o) // still without one
				safe := worksWithoutADisk(t, s)
				disk.Heal()
				for _, done := range safe {
					if err := done.wait(t); err != nil {
						t.Error(err)
					}
				}
				wait(time.Minute)
				if st := s.Status(); st.State != "ok" {
					t.Errorf("state %s: %s", st.State, st.LastError)
				}
				if n, _ := s.Held(); n != held+int64(len(safe)) {
					t.Errorf("%d deliveries held, want %d more than %d", n, len(safe), held)
				}
				alice := newOutcome()
				s.CreateSession("bob", 60, alice.done)
				if err := alice.wait(t); err != nil {
					t.Errorf("a session when the disk works: %v", err)
				}
				closeStore(t, s)
				s = open(t, o)
				defer closeStore(t, s)
				if n, _ := s.Held(); n != held+int64(len(safe)) {
					t.Errorf("%d deliveries held after a restart, want %d more than %d", n, len(safe), held)
				}
				if x.version > 0 {
					checkKept(t, s, 1, 2, 1)
				}
			})
		})
	}
}

// worksWithoutADisk uses a store that cannot write; what it returns must become
// safe when it can.
func worksWithoutADisk(t *testing.T, s *Store) (safe []*outcome) {
	t.Helper()
	wait(time.Minute)
	if st := s.Status(); st.State != "failing" || st.LastError == "" {
		t.Fatalf("state %s: %s", st.State, st.LastError)
	}
	q, _, err := s.OpenUplink("another")
	if err != nil {
		t.Fatalf("a new uplink: %v", err)
	}
	r := attachLive(t, s, q, 10)
	live := put(t, s, msg("a", "live"), claimFor(q, 1), durable.Origin{})
	s.Acked(q, r.take()[0].Seq)
	if err := live.wait(t); err != nil {
		t.Errorf("what leaves at once: %v", err)
	}
	alice := newOutcome()
	s.CreateSession("bob", 60, alice.done)
	if err := alice.wait(t); !errors.Is(err, durable.ErrFull) {
		t.Errorf("a session: %v, want %v", err, durable.ErrFull)
	}
	s.Detach(q, r)
	safe = append(safe, put(t, s, msg("a", "later"), claimFor(q, 1), durable.Origin{}), put(t, s, msg("a", "later 2"), claimFor(q, 2), durable.Origin{}))
	wait(time.Minute)
	for _, done := range safe {
		if done.called() {
			t.Error("acknowledged without a disk")
		}
	}
	return safe
}

// The spare is not written back over a file that has come meanwhile: a start is
// needed to use that.
func TestSpareGivesWayToNobody(t *testing.T) {
	other := onFile(t)
	seeded(t, other, 3)
	image, err := os.ReadFile(other.Path)
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		o, disk := onDisk(t)
		o.ReserveBytes = 0
		disk.FailWrites(0, -1)
		s := open(t, o)
		disk.Heal()
		disk.Corrupt(o.Path, 0, image)
		wait(time.Minute)
		if st := s.Status(); st.State != "failing" || st.LastError == "" {
			t.Errorf("state %s: %s", st.State, st.LastError)
		}
		closeStore(t, s)
		s = open(t, o)
		defer closeStore(t, s)
		if n, _ := s.Held(); n != 3 {
			t.Errorf("%d messages, want 3", n)
		}
	})
}
