//go:build integration

package storeforward

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/broker/durable"
)

// tmpfs mounts a file system of that size. Only the want of the right to do so is a
// reason to skip the test.
func tmpfs(t *testing.T, size string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size)
	switch {
	case errors.Is(err, fs.ErrPermission):
		t.Skipf("mount: %v", err)
	case err != nil:
		t.Fatalf("mount: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	return dir
}

// A real file system that is full: SQLite's shared memory, its log and the
// database all live on it. Needs root for the mount.
func TestRealDiskFull(t *testing.T) {
	dir := tmpfs(t, "2m")
	o := DefaultOptions()
	o.Path = filepath.Join(dir, "holdfast.db")
	o.MaxUnsafeBytes, o.MaxMemoryBytes = 64<<10, 256<<10
	o.ReserveBytes = 0
	o.RetryMin, o.RetryMax = 10*time.Millisecond, 50*time.Millisecond
	s := open(t, o)
	defer closeStore(t, s)
	q := uplink(t, s)
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	var waiting []*outcome
	deadline := time.After(20 * time.Second)
	for full := false; !full; {
		select {
		case <-deadline:
			t.Fatal("the disk never fills up")
		default:
		}
		done := newOutcome()
		switch err := s.Append(msg("a", strings.Repeat("x", 1000)), claimFor(q, 1), durable.Origin{}, done.done); {
		case errors.Is(err, durable.ErrFull):
			full = s.Status().State == "failing"
			<-time.After(time.Millisecond) // for the committer to try
		case err != nil:
			t.Fatal(err)
		default:
			waiting = append(waiting, done)
		}
	}
	if st := s.Status(); st.State != "failing" || st.UnsafeMessages == 0 {
		t.Errorf("state %s with %d unsafe: %s", st.State, st.UnsafeMessages, st.LastError)
	}
	r := &taker{window: 1000}
	if err := s.Attach(q, r); err != nil {
		t.Fatal(err)
	}
	if ds := readAll(t, s, q, 1); len(ds) != len(waiting) {
		t.Errorf("read %d messages of %d from a full disk", len(ds), len(waiting))
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	for _, done := range waiting {
		if err := done.wait(t); err != nil {
			t.Fatal(err)
		}
	}
	if n := rowsOf(t, s); n != int64(len(waiting)) {
		t.Errorf("%d rows, want %d", n, len(waiting))
	}
	t.Logf("%d messages, %s", len(waiting), s.Status().LastError)
}
