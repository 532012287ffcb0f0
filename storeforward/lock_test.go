package storeforward

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"holdfast/broker/durable"
)

// A lock file that somebody removes is there again before a second process can take
// its place.
func TestLockFileRemoved(t *testing.T) {
	o := onFile(t)
	s := open(t, o)
	defer closeStore(t, s)
	if err := os.Remove(o.Path + ".lock"); err != nil {
		t.Fatal(err)
	}
	s.lookUp()
	if _, err := Open(context.Background(), o, slog.New(slog.DiscardHandler)); !errors.Is(err, errIntruder) {
		t.Fatalf("opened twice: %v", err)
	}
	if st := s.Status(); st.State != "ok" {
		t.Errorf("state %s: %s", st.State, st.LastError)
	}
}

// A process that has come in between gets the database for itself: the first one
// writes nothing any more, so that no number is given twice.
func TestIntruderEndsCommits(t *testing.T) {
	o := onFile(t)
	o.RetryMin, o.RetryMax = time.Millisecond, time.Millisecond
	s := open(t, o)
	q := uplink(t, s)
	if err := put(t, s, msg("a", "1"), claimFor(q, 1), durable.Origin{}).wait(t); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(o.Path + ".lock"); err != nil {
		t.Fatal(err)
	}
	second := open(t, o)
	s.lookUp()
	lost := put(t, s, msg("a", "2"), claimFor(q, 1), durable.Origin{})
	eventually(t, "the store does not say so", func() bool {
		st := s.Status()
		return st.State == "failing" && strings.Contains(st.LastError, "a restart is needed")
	})
	if err := put(t, second, msg("a", "3"), claimFor(q, 1), durable.Origin{}).wait(t); err != nil {
		t.Error(err)
	}
	closeStore(t, second)
	s.lookUp() // the other one has gone; its messages are unknown here
	if lost.called() {
		t.Error("acknowledged")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := lost.wait(t); !errors.Is(err, durable.ErrClosed) {
		t.Errorf("done(%v), want ErrClosed", err)
	}
	s = open(t, o)
	defer closeStore(t, s)
	if n := rowsOf(t, s); n != 2 {
		t.Errorf("%d rows, want those of the first and of the second", n)
	}
}
