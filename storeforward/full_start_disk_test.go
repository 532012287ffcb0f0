//go:build integration

package storeforward

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// A full disk without a reserve has no room for the shared memory of SQLite either:
// what is there is served all the same, and the store is well when the disk is.
// Needs root for the mount.
func TestRealDiskFullAtStart(t *testing.T) {
	dir := tmpfs(t, "2m")
	o := DefaultOptions()
	o.Path = filepath.Join(dir, "holdfast.db")
	o.ReserveBytes = 0
	o.RetryMin, o.RetryMax = 10*time.Millisecond, 50*time.Millisecond
	q := seeded(t, o, 20)
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 4<<20), 0o600); err == nil {
		t.Fatal("the disk does not fill up")
	}
	s := open(t, o)
	defer closeStore(t, s)
	if st := s.Status(); st.State != "failing" || st.Messages != 20 || st.LastError == "" {
		t.Errorf("state %s with %d messages: %s", st.State, st.Messages, st.LastError)
	}
	r := &taker{window: 1000}
	if err := s.Attach(q, r); err != nil {
		t.Fatal(err)
	}
	if ds := readAll(t, s, q, 1); len(ds) != 20 {
		t.Errorf("read %d of 20 messages", len(ds))
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the store does not become well", func() bool { return s.Status().State == "ok" })
}
