package storeforward

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"holdfast/broker/durable"
)

// orphaned is a database as a crash leaves it, spoiled.
func orphaned(t *testing.T, n int, spoil func(path string) error) Options {
	t.Helper()
	o := onFile(t)
	s := open(t, o)
	q := uplink(t, s)
	for range n {
		if err := put(t, s, msg("a", strings.Repeat("x", 100)), claimFor(q, 1), durable.Origin{}).wait(t); err != nil {
			t.Fatal(err)
		}
	}
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
	closeStore(t, s)
	if err := spoil(again.Path); err != nil {
		t.Fatal(err)
	}
	return again
}

// A log is not deleted for its database being gone, and what is in it is saved.
func TestLogWithoutItsDatabase(t *testing.T) {
	for name, spoil := range map[string]func(string) error{
		"missing": os.Remove,
		"empty":   func(path string) error { return os.Truncate(path, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			o := orphaned(t, 20, spoil)
			before, err := os.ReadFile(o.Path + "-wal")
			if err != nil {
				t.Fatal(err)
			}
			s := open(t, o)
			defer closeStore(t, s)
			st := s.Status()
			if n := rowsOf(t, s); n != 20 {
				t.Errorf("%d of 20 messages saved: %s", n, st.Salvaged)
			}
			if after, err := os.ReadFile(st.SetAside + "-wal"); err != nil || !bytes.Equal(before, after) {
				t.Errorf("the log was set aside as %s: %v, or it has changed", st.SetAside, err)
			}
		})
	}
}

// A log that SQLite cannot read is kept and reported, and the database opened
// without it, as another one.
func TestUnreadableLog(t *testing.T) {
	for name, at := range map[string]int64{"magic": 0, "checksum": 25} {
		t.Run(name, func(t *testing.T) {
			o := orphaned(t, 20, func(path string) error {
				closed := open(t, withPath(path))
				closeStore(t, closed) // all of it is in the database now
				s := open(t, withPath(path))
				uplink(t, s)
				b, err := os.ReadFile(path + "-wal")
				closeStore(t, s)
				if err != nil {
					return err
				}
				b[at] ^= 0xFF
				return os.WriteFile(path+"-wal", b, 0o600)
			})
			before, err := os.ReadFile(o.Path + "-wal")
			if err != nil {
				t.Fatal(err)
			}
			s := open(t, o)
			defer closeStore(t, s)
			st := s.Status()
			if after, err := os.ReadFile(st.SetAside); err != nil || !bytes.Equal(before, after) || st.Salvaged == "" {
				t.Errorf("set aside as %q (%s): %v, or it has changed", st.SetAside, st.Salvaged, err)
			}
			if n := rowsOf(t, s); n != 20 {
				t.Errorf("%d messages in the database, want 20", n)
			}
		})
	}
}

func withPath(path string) Options {
	o := DefaultOptions()
	o.Path = path
	return o
}
