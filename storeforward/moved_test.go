package storeforward

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"holdfast/broker/durable"
)

// eventually waits for something that another goroutine does with real files.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-deadline:
			t.Fatal(what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// A database that disappears under the store takes nothing with it: what was
// acknowledged is in the file that a later start finds.
func TestDatabaseRemovedWhileOpen(t *testing.T) {
	for name, harm := range map[string]func(t *testing.T, path string){
		"database": func(t *testing.T, path string) {
			t.Helper()
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		},
		"log": func(t *testing.T, path string) {
			t.Helper()
			if err := os.Remove(path + "-wal"); err != nil {
				t.Fatal(err)
			}
		},
		"all": func(t *testing.T, path string) {
			t.Helper()
			if err := removeDatabase(path); err != nil {
				t.Fatal(err)
			}
		},
		"replaced": func(t *testing.T, path string) {
			t.Helper()
			if err := os.WriteFile(path+".new", bytes.Repeat([]byte("garbage "), 1000), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(path+".new", path); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := onFile(t)
			o.CommitWindow, o.RetryMin, o.ReserveBytes = 0, time.Millisecond, 0
			s := open(t, o)
			q := uplink(t, s)
			const n = 60
			for i := range n {
				if i == n/3 || i == 2*n/3 {
					harm(t, o.Path)
				}
				if err := put(t, s, msg("a", fmt.Sprint(i)), claimFor(q, 1), durable.Origin{}).wait(t); err != nil {
					t.Fatal(err)
				}
			}
			// A copy of what the path holds, as after a crash.
			again := onFile(t)
			for _, suffix := range []string{"", "-wal"} {
				b, err := os.ReadFile(o.Path + suffix)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(again.Path+suffix, b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			other := open(t, again)
			if got := rowsOf(t, other); got != n {
				t.Errorf("%d of %d messages acknowledged are there after a crash", got, n)
			}
			closeStore(t, other)
			r := &taker{window: 1000}
			if err := s.Attach(q, r); err != nil {
				t.Fatal(err)
			}
			if ds := readAll(t, s, q, 1); len(ds) != n {
				t.Errorf("read %d of %d messages", len(ds), n)
			}
			eventually(t, "the store does not become well", func() bool { return s.Status().State == "ok" })
			id := s.ID()
			closeStore(t, s)
			s = open(t, o)
			defer closeStore(t, s)
			if got := rowsOf(t, s); got != n || s.ID() != id {
				t.Errorf("%d of %d messages after a restart, identity %s, want %s", got, n, s.ID(), id)
			}
			aside, err := filepath.Glob(o.Path + ".aside-*[0-9]")
			if name == "replaced" && (err != nil || len(aside) != 2) {
				t.Errorf("set aside: %v, %v", aside, err)
			}
		})
	}
}

// Nothing is acknowledged from a store whose folder is gone; the folder comes back with
// all that was in it.
func TestFolderRemovedWhileOpen(t *testing.T) {
	o := onFile(t)
	o.CommitWindow, o.RetryMin, o.RetryMax, o.ReserveBytes = 0, time.Millisecond, time.Millisecond, 0
	o.Path = filepath.Join(filepath.Dir(o.Path), "data", "holdfast.db")
	if err := os.Mkdir(filepath.Dir(o.Path), 0o700); err != nil {
		t.Fatal(err)
	}
	s := open(t, o)
	q := uplink(t, s)
	if err := put(t, s, msg("a", "0"), claimFor(q, 1), durable.Origin{}).wait(t); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Dir(o.Path)); err != nil {
		t.Fatal(err)
	}
	// Something is in the way: nothing can be put there.
	if err := os.WriteFile(filepath.Dir(o.Path), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	done := put(t, s, msg("a", "1"), claimFor(q, 1), durable.Origin{})
	eventually(t, "the store does not fail", func() bool { return s.Status().State == "failing" })
	if done.called() {
		t.Error("acknowledged")
	}
	if err := os.Remove(filepath.Dir(o.Path)); err != nil {
		t.Fatal(err)
	}
	if err := done.wait(t); err != nil {
		t.Error(err)
	}
	if _, err := Open(t.Context(), o, s.log); !errors.Is(err, errIntruder) {
		t.Errorf("opened twice: %v", err)
	}
	if got := rowsOf(t, s); got != 2 {
		t.Errorf("%d rows, want 2", got)
	}
	closeStore(t, s)
}

// Also a store that has nothing to write notices.
func TestIdleStoreNoticesThatItsFileIsGone(t *testing.T) {
	o := onFile(t)
	o.RetryMin, o.ReserveBytes = time.Millisecond, 0
	s := open(t, o)
	defer closeStore(t, s)
	q := uplink(t, s)
	if err := os.Remove(o.Path); err != nil {
		t.Fatal(err)
	}
	s.lookUp()
	eventually(t, "the file does not come back", func() bool {
		list, err := ListQueues(t.Context(), o.Path)
		return err == nil && len(list) == 1 && list[0].ID == q && s.Status().State == "ok"
	})
}

// A database that is removed while an error of the disk has closed the connection
// that writes is still there for those that read.
func TestDatabaseRemovedWhileTheWriterIsClosed(t *testing.T) {
	o := onFile(t)
	o.CommitWindow, o.RetryMin, o.RetryMax, o.ReserveBytes = 0, time.Millisecond, time.Millisecond, 0
	s := open(t, o)
	q := uplink(t, s)
	if err := put(t, s, msg("a", "0"), claimFor(q, 1), durable.Origin{}).wait(t); err != nil {
		t.Fatal(err)
	}
	// What a failed commit leaves when the file cannot be opened again.
	closed := make(chan error, 1)
	s.mu.Lock()
	s.opLocked(func(*db) error { return nil }, func() { // between two commits
		closed <- errors.Join(s.w.close(), removeDatabase(o.Path))
		s.w = nil
	}, nil)
	s.mu.Unlock()
	if err := <-closed; err != nil {
		t.Fatal(err)
	}
	if err := put(t, s, msg("a", "1"), claimFor(q, 1), durable.Origin{}).wait(t); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the store does not become well", func() bool { return s.Status().State == "ok" })
	closeStore(t, s)
	s = open(t, o)
	defer closeStore(t, s)
	if got := rowsOf(t, s); got != 2 {
		t.Errorf("%d rows, want 2", got)
	}
}
