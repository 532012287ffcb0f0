package storeforward

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker/durable"
)

// seeded is a store on a disk with n messages for the cloud, closed.
func seeded(t *testing.T, o Options, n int) durable.QueueID {
	t.Helper()
	s := open(t, o)
	q := uplink(t, s)
	for range n {
		if err := put(t, s, msg("a", strings.Repeat("x", 1000)), claimFor(q, 1), durable.Origin{}).wait(t); err != nil {
			t.Fatal(err)
		}
	}
	closeStore(t, s)
	return q
}

// A disk that somebody else has filled does not keep the store from opening: the
// reserve is for that.
func TestOpensOnAFullDiskWithTheReserve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, disk := onDisk(t)
		o.ReserveBytes = 1 << 20
		q := seeded(t, o, 50)
		disk.SetCapacity(disk.Used() + 1000)
		s := open(t, o)
		defer closeStore(t, s)
		if st := s.Status(); st.State != "full" || st.Messages != 50 {
			t.Errorf("state %s with %d messages, want full with 50", st.State, st.Messages)
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
			t.Errorf("%d rows left of what was acknowledged", rows)
		}
	})
}

// Without a reserve what is there is served, what leaves at once is taken, and the
// start is noted when there is room.
func TestOpensOnAFullDiskWithoutAReserve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, disk := onDisk(t)
		o.ReserveBytes = 0
		q := seeded(t, o, 5)
		disk.SetCapacity(disk.Used() + 100)
		s := open(t, o)
		defer closeStore(t, s)
		wait(time.Minute)
		if st := s.Status(); st.State != "failing" || st.Messages != 5 || st.LastError == "" {
			t.Errorf("state %s (%s) with %d messages, want failing with 5", st.State, st.LastError, st.Messages)
		}
		r := &taker{window: 1000}
		if err := s.Attach(q, r); err != nil {
			t.Fatal(err)
		}
		if ds := readAll(t, s, q, 1); len(ds) != 5 {
			t.Errorf("read %d messages, want 5", len(ds))
		}
		live := put(t, s, msg("a", "live"), claimFor(q, 1), durable.Origin{})
		s.Acked(q, r.take()[0].Seq)
		if err := live.wait(t); err != nil {
			t.Errorf("what leaves at once: %v", err)
		}
		asked := newOutcome()
		s.CreateSession("alice", 60, asked.done)
		if err := asked.wait(t); !errors.Is(err, durable.ErrFull) {
			t.Errorf("a session: %v, want %v", err, durable.ErrFull)
		}
		disk.SetCapacity(0)
		wait(2 * time.Minute)
		if st := s.Status(); st.State != "ok" {
			t.Errorf("state %s though there is room: %s", st.State, st.LastError)
		}
		var runs int64
		if err := s.read(t.Context(), func(d *db) (err error) {
			runs, err = d.queryInt("SELECT max(number) FROM run")
			return err
		}); err != nil || runs != 2 {
			t.Errorf("run %d is noted (%v), want 2", runs, err)
		}
	})
}

// Opening an unchanged database writes what notes the start and no more.
func TestOpenWritesLittle(t *testing.T) {
	o, disk := onDisk(t)
	seeded(t, o, 50)
	before, bytes, _ := disk.Counts()
	s := open(t, o)
	after, total, _ := disk.Counts()
	t.Logf("%d writes, %d bytes", after-before, total-bytes)
	if total-bytes > 40<<10 {
		t.Errorf("%d bytes written", total-bytes)
	}
	var mode int64
	if err := s.read(t.Context(), func(d *db) (err error) {
		mode, err = d.queryInt("PRAGMA auto_vacuum")
		return err
	}); err != nil || mode != 2 {
		t.Errorf("auto_vacuum %d, %v", mode, err)
	}
	closeStore(t, s)
}

// Less room than twice the reserve ends "full".
func TestFullEndsWithTheReserveBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, disk := onDisk(t)
		o.ReserveBytes = 8 << 20
		seeded(t, o, 5)
		disk.SetCapacity(disk.Used() + 1000)
		s := open(t, o)
		defer closeStore(t, s)
		if st := s.Status(); st.State != "full" {
			t.Fatalf("state %s", st.State)
		}
		wait(30 * time.Second)
		if st := s.Status(); st.State != "full" {
			t.Fatalf("state %s without room for the reserve and a margin", st.State)
		}
		disk.SetCapacity(disk.Used() + o.ReserveBytes + 2*reserveMargin)
		wait(10 * time.Second)
		if st := s.Status(); st.State != "ok" {
			t.Errorf("state %s with room for the reserve", st.State)
		}
	})
}

// A reserve that is larger than what the disk can ever give does not stay "full" for
// ever: a part of it does, said in the status, and the whole comes back with the room.
func TestReserveLargerThanTheRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, disk := onDisk(t)
		o.ReserveBytes = 64 << 20
		q := seeded(t, o, 5)
		disk.SetCapacity(disk.Used() - o.ReserveBytes + 6<<20)
		if err := disk.Remove(o.Path + ".reserve"); err != nil {
			t.Fatal(err)
		}
		s := open(t, o)
		defer closeStore(t, s)
		if st := s.Status(); st.State != "full" || st.ReserveBytes != 0 {
			t.Fatalf("state %s with a reserve of %d", st.State, st.ReserveBytes)
		}
		wait(10 * time.Minute)
		if st := s.Status(); st.State != "ok" || st.ReserveBytes != 4<<20 || st.ReserveWanted != 64<<20 {
			t.Fatalf("state %s with a reserve of %d", st.State, st.ReserveBytes)
		}
		if err := put(t, s, msg("a", "x"), claimFor(q, 1), durable.Origin{}).wait(t); err != nil {
			t.Error(err)
		}
		disk.SetCapacity(0)
		wait(2 * time.Minute)
		if st := s.Status(); st.State != "ok" || st.ReserveBytes != 64<<20 {
			t.Errorf("state %s with a reserve of %d", st.State, st.ReserveBytes)
		}
	})
}

// brokenReserve is a disk that has failed while it was full: nothing can be
// allocated, for another reason than lack of room.
type brokenReserve struct {
	Disk
	broken atomic.Bool
}

func (d *brokenReserve) Allocate(name string, n int64) error {
	if d.broken.Load() {
		return fmt.Errorf("allocate: %w", syscall.EIO)
	}
	return d.Disk.Allocate(name, n)
}

// A disk that breaks while it is full is failing, not full.
func TestFullDiskThatBreaks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, disk := onDisk(t)
		b := &brokenReserve{Disk: disk}
		o.Disk, o.ReserveBytes = b, 1<<20
		seeded(t, o, 5)
		disk.SetCapacity(disk.Used() + 1000)
		s := open(t, o)
		defer closeStore(t, s)
		if st := s.Status(); st.State != "full" {
			t.Fatalf("state %s", st.State)
		}
		b.broken.Store(true)
		disk.FailWrites(0, -1)
		wait(time.Minute)
		if st := s.Status(); st.State != "failing" || !strings.Contains(st.LastError, "I/O error") {
			t.Errorf("state %s: %s", st.State, st.LastError)
		}
		b.broken.Store(false)
		disk.Heal()
		wait(2 * time.Minute)
		if st := s.Status(); st.State != "ok" {
			t.Errorf("state %s after the disk has healed: %s", st.State, st.LastError)
		}
	})
}

// The path of a link is the file behind it: sizes, the lock, the reserve and what is
// set aside belong there.
func TestLinkedDatabase(t *testing.T) {
	for name, dangling := range map[string]bool{"existing": false, "new": true} {
		t.Run(name, func(t *testing.T) {
			o := onFile(t)
			target := filepath.Join(t.TempDir(), "real.db")
			if !dangling {
				r := o
				r.Path = target
				seeded(t, r, 1)
			}
			if err := os.Symlink(target, o.Path); err != nil {
				t.Fatal(err)
			}
			o.ReserveBytes = 1 << 20
			s := open(t, o)
			if st := s.Status(); st.Path != target || st.FileBytes < 4096 {
				t.Errorf("status says %s with %d bytes", st.Path, st.FileBytes)
			}
			for _, suffix := range []string{".lock", ".reserve"} {
				if _, err := os.Stat(target + suffix); err != nil {
					t.Error(err)
				}
			}
			closeStore(t, s)
			if err := os.WriteFile(target, []byte(strings.Repeat("garbage ", 1000)), 0o600); err != nil {
				t.Fatal(err)
			}
			s = open(t, o)
			defer closeStore(t, s)
			if st := s.Status(); !strings.HasPrefix(st.SetAside, target) {
				t.Errorf("set aside as %s", st.SetAside)
			}
			if to, err := os.Readlink(o.Path); err != nil || to != target {
				t.Errorf("the link leads to %q, %v", to, err)
			}
		})
	}
}
