//go:build integration

package storeforward

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"holdfast/broker/durable"
)

// A file system that is mounted read-only when the store opens: what is there is
// served, what leaves at once is safe, the rest waits until it can be written. Needs
// root for the mount.
func TestReadOnlyFileSystemAtStart(t *testing.T) {
	tests := map[string]struct {
		prepare func(t *testing.T, o Options)
		held    int
	}{
		"no database yet": {func(*testing.T, Options) {}, 0},
		"no folder yet": {func(t *testing.T, o Options) {
			t.Helper()
			if err := os.Remove(filepath.Dir(o.Path)); err != nil {
				t.Fatal(err)
			}
		}, 0},
		"a database": {func(t *testing.T, o Options) {
			t.Helper()
			seeded(t, o, 20)
		}, 20},
		"a database without a lock file": {func(t *testing.T, o Options) {
			t.Helper()
			seeded(t, o, 20)
			if err := os.Remove(o.Path + ".lock"); err != nil {
				t.Fatal(err)
			}
		}, 20},
		"a database with a log": {func(t *testing.T, o Options) {
			t.Helper()
			other := onFile(t)
			s := open(t, other)
			q := uplink(t, s)
			for range 20 {
				if err := put(t, s, msg("a", "x"), claimFor(q, 1), durable.Origin{}).wait(t); err != nil {
					t.Fatal(err)
				}
			}
			for _, suffix := range []string{"", "-wal"} { // as a power cut leaves them
				b, err := os.ReadFile(other.Path + suffix)
				if err == nil {
					err = os.WriteFile(o.Path+suffix, b, 0o600)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			closeStore(t, s)
		}, 20},
		"an older database": {func(t *testing.T, o Options) {
			t.Helper()
			unpack(t, fixture(1), o.Path)
		}, -1},
	}
	for name, x := range tests {
		t.Run(name, func(t *testing.T) {
			mnt := tmpfs(t, "8m")
			o := DefaultOptions()
			o.Path = filepath.Join(mnt, "data", "holdfast.db")
			o.ReserveBytes = 64 << 10
			o.RetryMin, o.RetryMax = 10*time.Millisecond, 50*time.Millisecond
			if err := os.Mkdir(filepath.Dir(o.Path), 0o750); err != nil {
				t.Fatal(err)
			}
			x.prepare(t, o)
			if err := syscall.Mount("", mnt, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
				t.Fatalf("remount: %v", err)
			}
			s := open(t, o)
			st := s.Status()
			held := st.Messages
			if x.held >= 0 && held != int64(x.held) || st.State != "failing" || st.LastError == "" {
				t.Errorf("state %s with %d messages: %s", st.State, held, st.LastError)
			}
			q, _, err := s.OpenUplink("another")
			if err != nil {
				t.Fatal(err)
			}
			r := attachLive(t, s, q, 10)
			live := put(t, s, msg("a", "live"), claimFor(q, 1), durable.Origin{})
			s.Acked(q, r.take()[0].Seq)
			if err := live.wait(t); err != nil {
				t.Error(err)
			}
			if x.held > 0 {
				cloud := uplink(t, s)
				if err := s.Attach(cloud, &taker{window: 100}); err != nil {
					t.Fatal(err)
				}
				if ds := readAll(t, s, cloud, 1); len(ds) != x.held {
					t.Errorf("read %d messages of %d", len(ds), x.held)
				}
			}
			s.Detach(q, r)
			later := put(t, s, msg("a", "later"), claimFor(q, 1), durable.Origin{})
			if later.called() {
				t.Error("acknowledged on a read-only file system")
			}
			if err := syscall.Mount("", mnt, "", syscall.MS_REMOUNT, ""); err != nil {
				t.Fatal(err)
			}
			if err := later.wait(t); err != nil {
				t.Error(err)
			}
			eventually(t, "the store does not become well", func() bool { return s.Status().State == "ok" })
			if other, err := Open(t.Context(), o, s.log); err == nil {
				t.Error("opened twice")
				closeStore(t, other)
			}
			closeStore(t, s)
			s = open(t, o)
			defer closeStore(t, s)
			if st := s.Status(); st.Messages != held+1 || st.SetAside != "" {
				t.Errorf("%d messages after a restart, want %d; set aside %q", st.Messages, held+1, st.SetAside)
			}
		})
	}
}
