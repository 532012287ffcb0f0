package storeforward

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"holdfast/broker/durable"
)

// fill appends n messages and waits until they are durable.
func fill(t testing.TB, s *Store, n int, claims []durable.Claim) {
	t.Helper()
	var last *outcome
	for i := range n {
		m := msg(fmt.Sprintf("t/%d", i%2), fmt.Sprint(i))
		m.QoS = claims[0].QoS
		last = put(t, s, m, claims, durable.Origin{})
	}
	if err := last.wait(t); err != nil {
		t.Fatal(err)
	}
}

// drainQueue attaches a recipient and acknowledges everything, in order.
func drainQueue(t testing.TB, s *Store, q durable.QueueID) (payloads []string) {
	t.Helper()
	r := &taker{window: 1}
	if err := s.Attach(q, r); err != nil {
		t.Fatal(err)
	}
	defer s.Detach(q, r)
	for {
		ds, live, err := s.Read(t.Context(), q, 1, 10, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range ds {
			payloads = append(payloads, string(d.Message.Payload))
			s.Acked(q, d.Seq)
		}
		if live {
			return payloads
		}
	}
}

func numbers(from, to, step int) (list []string) {
	for i := from; i < to; i += step {
		list = append(list, fmt.Sprint(i))
	}
	return list
}

func TestDropLeavesOthersAndWhatHasBeenSent(t *testing.T) {
	o := onFile(t)
	s := open(t, o)
	a := s.CreateSession("a", durable.SessionExpiryNever, nil)
	b := s.CreateSession("b", durable.SessionExpiryNever, nil)
	fill(t, s, 20, []durable.Claim{{Queue: a, QoS: 1}, {Queue: b, QoS: 1}})
	r := &taker{window: 1}
	if err := s.Attach(a, r); err != nil {
		t.Fatal(err)
	}
	sent, _, err := s.Read(t.Context(), a, 1, 3, 1<<20)
	if err != nil || len(sent) != 3 {
		t.Fatalf("read %d, %v", len(sent), err)
	}
	n, err := s.Drop(t.Context(), a, Selection{Filter: "t/1"}, nil)
	if err != nil || n != 9 { // 1 has been sent
		t.Errorf("Drop = %d, %v; want 9", n, err)
	}
	if r.woken[1] == 0 {
		t.Error("the reader was not told to read on")
	}
	if m, _ := s.Backlog(a); m != 11 {
		t.Errorf("backlog %d, want 11", m)
	}
	s.Detach(a, r)
	// Durable: a restart knows it too.
	closeStore(t, s)
	s = open(t, o)
	if m, _ := s.Backlog(a); m != 11 {
		t.Errorf("backlog after a restart %d, want 11", m)
	}
	want := append([]string{"0", "1", "2"}, numbers(4, 20, 2)...)
	if got := drainQueue(t, s, a); !slices.Equal(got, want) {
		t.Errorf("a got %v, want %v", got, want)
	}
	if got, want := drainQueue(t, s, b), numbers(0, 20, 1); !slices.Equal(got, want) {
		t.Errorf("b got %v, want %v", got, want)
	}
	if m, _ := s.Backlog(a); m != 0 {
		t.Errorf("backlog %d, want 0", m)
	}
	closeStore(t, s)
	if got, want := rowsIn(t, o.Path), int64(0); got != want {
		t.Errorf("%d rows left", got)
	}
}

func rowsIn(t testing.TB, path string) (n int64) {
	t.Helper()
	if err := readOnly(path, func(d *db) (err error) {
		n, err = d.queryInt("SELECT count(*) FROM message")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

// More than one transaction, in both streams; then the space comes back.
func TestDropOfManyGivesTheSpaceBack(t *testing.T) {
	o := onFile(t)
	s := open(t, o)
	q := uplink(t, s)
	fill(t, s, dropChunk+500, claimFor(q, 1))
	fill(t, s, 300, claimFor(q, 2))
	var last int64
	n, err := s.Drop(t.Context(), q, Selection{}, func(n int64) { last = n })
	if want := int64(dropChunk + 800); n != want || last != want || err != nil {
		t.Errorf("Drop = %d, progress %d, %v; want %d", n, last, err, want)
	}
	st := s.Status()
	if st.Messages != 0 || st.Bytes != 0 || st.Queues[0].Dropped["operator"] != uint64(n) {
		t.Errorf("status %+v", st.Queues[0])
	}
	fill(t, s, 1, claimFor(q, 1))
	closeStore(t, s)
	s = open(t, o)
	defer closeStore(t, s)
	if m, _ := s.Backlog(q); m != 1 {
		t.Errorf("backlog %d, want 1", m)
	}
}

func TestDropBeforeAndUpto(t *testing.T) {
	s := open(t, onFile(t))
	defer closeStore(t, s)
	q := uplink(t, s)
	past := time.Now().Add(-time.Hour)
	for i := range 10 {
		m := msg("a", fmt.Sprint(i))
		m.Received = past.Add(time.Duration(i) * time.Minute)
		put(t, s, m, claimFor(q, 1), durable.Origin{})
	}
	if n, err := s.Drop(t.Context(), q, Selection{Before: past.Add(150 * time.Second)}, nil); n != 3 || err != nil {
		t.Errorf("Drop before = %d, %v; want 3", n, err)
	}
	var seqs []durable.Seq
	err := ShowQueue(t.Context(), s.path, []durable.QueueID{q}, 0, 100, func(m QueuedMessage) error {
		seqs = append(seqs, m.Seq)
		return nil
	})
	if err != nil || len(seqs) != 7 {
		t.Fatalf("show: %v, %v", seqs, err)
	}
	if n, err := s.Drop(t.Context(), q, Selection{Upto: seqs[3]}, nil); n != 4 || err != nil {
		t.Errorf("Drop up to = %d, %v; want 4", n, err)
	}
	if got, want := drainQueue(t, s, q), numbers(7, 10, 1); !slices.Equal(got, want) {
		t.Errorf("left %v, want %v", got, want)
	}
}

func TestImportKeepsOrderAndTimes(t *testing.T) {
	s := open(t, onFile(t))
	defer closeStore(t, s)
	q := uplink(t, s)
	im, err := s.Import(q)
	if err != nil {
		t.Fatal(err)
	}
	at := time.Now().Add(-time.Hour)
	for i := range 2500 {
		m := msg("a", fmt.Sprint(i))
		m.Received = at
		if err := im.Add(t.Context(), m, 1, false); err != nil {
			t.Fatal(err)
		}
	}
	if err := im.Flush(t.Context()); err != nil || im.Done != 2500 {
		t.Fatalf("flushed %d, %v", im.Done, err)
	}
	if age := s.Status().Queues[0].OldestSeconds; age < 3500 || age > 3700 {
		t.Errorf("oldest is %v s old, want an hour", age)
	}
	if got, want := drainQueue(t, s, q), numbers(0, 2500, 1); !slices.Equal(got, want) {
		t.Errorf("got %d messages, in another order or not all", len(got))
	}
	for name, add := range map[string]func() error{
		"QoS 0":      func() error { return im.Add(t.Context(), msg("a", ""), 0, false) },
		"a wildcard": func() error { return im.Add(t.Context(), msg("a/#", ""), 1, false) },
	} {
		if add() == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

func TestReplayOfDeliveredAndRefused(t *testing.T) {
	o := onFile(t)
	s := open(t, o)
	a := uplink(t, s)
	b := s.CreateSession("b", durable.SessionExpiryNever, nil)
	began := time.Now()
	fill(t, s, 5, []durable.Claim{{Queue: a, QoS: 1}, {Queue: b, QoS: 1}})
	if got := drainQueue(t, s, a); len(got) != 5 {
		t.Fatalf("drained %v", got)
	}
	fill(t, s, 1, claimFor(a, 1)) // payload 0 again, refused
	r := &taker{window: 1}
	if err := s.Attach(a, r); err != nil {
		t.Fatal(err)
	}
	ds, _, err := s.Read(t.Context(), a, 1, 1, 1<<20)
	if err != nil || len(ds) != 1 {
		t.Fatalf("read %v, %v", ds, err)
	}
	refused := newOutcome()
	s.Refused(a, ds[0].Seq, 0x87, refused.done)
	if err := refused.wait(t); err != nil {
		t.Fatal(err)
	}
	s.Detach(a, r)
	if n, err := s.Replay(t.Context(), a, time.Now().Add(time.Hour), nil); n != 0 || err != nil {
		t.Errorf("replay of the future = %d, %v", n, err)
	}
	if n, err := s.Replay(t.Context(), a, began, nil); n != 6 || err != nil {
		t.Errorf("replay = %d, %v; want 6", n, err)
	}
	if got, want := drainQueue(t, s, a), append(numbers(0, 5, 1), "0"); !slices.Equal(got, want) {
		t.Errorf("a got %v, want %v", got, want)
	}
	if n := s.Status().Queues[0].DeadLetters; n != 0 {
		t.Errorf("%d dead letters left", n)
	}
	if got := drainQueue(t, s, b); len(got) != 5 {
		t.Errorf("b got %v", got)
	}
	closeStore(t, s)
}

func TestBackupWhileWriting(t *testing.T) {
	o := onFile(t)
	s := open(t, o)
	q := uplink(t, s)
	fill(t, s, 20_000, claimFor(q, 1))
	stop, wrote := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(wrote)
		for {
			select {
			case <-stop:
				return
			default:
				oc := newOutcome()
				if s.Append(msg("b", "later"), claimFor(q, 1), durable.Origin{}, oc.done) == nil {
					<-oc.ch
				}
			}
		}
	}()
	dst := filepath.Join(t.TempDir(), "copy.db")
	if err := os.WriteFile(dst, []byte("an older backup"), 0o600); err != nil {
		t.Fatal(err)
	}
	var done, total int
	err := Backup(t.Context(), o.Path, dst, func(d, n int) { done, total = d, n })
	close(stop)
	<-wrote
	if err != nil || done == 0 || done != total {
		t.Fatalf("Backup: %v, %d of %d pages", err, done, total)
	}
	id := s.ID()
	closeStore(t, s)
	left, err := filepath.Glob(dst + "?*")
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	o.Path = dst
	c := open(t, o)
	defer closeStore(t, c)
	if c.ID() == id {
		t.Error("the copy has the identity of the original")
	}
	if m, _ := c.Backlog(q); m < 20_000 {
		t.Errorf("the copy holds %d messages", m)
	}
	if st := c.Status(); st.SetAside != "" {
		t.Errorf("set aside: %s", st.SetAside)
	}
}

// A backup that was killed leaves a part behind, which the next one replaces.
func TestBackupAfterAKilledOne(t *testing.T) {
	o := onFile(t)
	s := open(t, o)
	fill(t, s, 10, claimFor(uplink(t, s), 1))
	defer closeStore(t, s)
	dst := filepath.Join(t.TempDir(), "copy.db")
	for _, suffix := range []string{".part", ".part-journal"} {
		if err := os.WriteFile(dst+suffix, []byte("half a backup"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := Backup(t.Context(), o.Path, dst, nil); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(dst + "?*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestBackupThatFailsLeavesTheOldOne(t *testing.T) {
	o := onFile(t)
	s := open(t, o)
	fill(t, s, 2000, claimFor(uplink(t, s), 1))
	closeStore(t, s)
	dst := filepath.Join(t.TempDir(), "copy.db")
	if err := os.WriteFile(dst, []byte("an older backup"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Backup(ctx, o.Path, dst, nil); err == nil {
		t.Error("a cancelled backup succeeded")
	}
	if b, err := os.ReadFile(dst); err != nil || string(b) != "an older backup" {
		t.Errorf("the old backup is %q, %v", b, err)
	}
	if left, _ := filepath.Glob(dst + "?*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
