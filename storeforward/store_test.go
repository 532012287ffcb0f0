package storeforward

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker/durable"
	"holdfast/broker/message"
	"holdfast/storeforward/storetest"
)

// onFile are options for a store on the real file system.
func onFile(t testing.TB) Options {
	t.Helper()
	o := DefaultOptions()
	o.Path = filepath.Join(t.TempDir(), "holdfast.db")
	return o
}

// onDisk are options for a store on a disk that can fail.
func onDisk(t testing.TB) (Options, *storetest.Disk) {
	t.Helper()
	d := storetest.NewDisk()
	t.Cleanup(d.Unplug)
	o := DefaultOptions()
	o.Disk, o.Path = d, d.Path("holdfast.db")
	return o, d
}

func open(t testing.TB, o Options) *Store {
	t.Helper()
	s, err := Open(context.Background(), o, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return s
}

func closeStore(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
}

func uplink(t testing.TB, s *Store) durable.QueueID {
	t.Helper()
	q, _, err := s.OpenUplink("cloud")
	if err != nil {
		t.Fatalf("open uplink: %v", err)
	}
	return q
}

// outcome is what a done function was told.
type outcome struct {
	mu    sync.Mutex
	calls int
	err   error
	at    time.Time
	ch    chan struct{}
}

func newOutcome() *outcome { return &outcome{ch: make(chan struct{})} }

func (o *outcome) done(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.calls++
	o.err, o.at = err, time.Now()
	if o.calls == 1 {
		close(o.ch)
	}
}

func (o *outcome) wait(t testing.TB) error {
	t.Helper()
	<-o.ch
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.calls != 1 {
		t.Errorf("done was called %d times", o.calls)
	}
	return o.err
}

func (o *outcome) called() bool {
	select {
	case <-o.ch:
		return true
	default:
		return false
	}
}

func msg(topic, payload string) *message.Message {
	return &message.Message{Topic: topic, Payload: []byte(payload), QoS: 1}
}

func claimFor(q durable.QueueID, qos byte) []durable.Claim {
	return []durable.Claim{{Queue: q, QoS: qos}}
}

// put appends and returns the outcome.
func put(t testing.TB, s *Store, m *message.Message, claims []durable.Claim, from durable.Origin) *outcome {
	t.Helper()
	o := newOutcome()
	if err := s.Append(m, claims, from, o.done); err != nil {
		t.Fatalf("append %q: %v", m.Payload, err)
	}
	return o
}

// taker is a recipient that keeps what it is offered.
type taker struct {
	mu     sync.Mutex
	window int
	got    []durable.Delivery
	lastID uint16
	woken  [3]int
	given  []uint16 // ids given back
}

func (r *taker) Offer(d durable.Delivery) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.got) >= r.window {
		return false
	}
	r.got = append(r.got, d)
	return true
}

func (r *taker) Reserve() (uint16, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.got) >= r.window {
		return 0, false
	}
	r.lastID++
	return r.lastID, true
}

func (r *taker) Unreserve(id uint16) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.given = append(r.given, id)
}

func (r *taker) Wake(qos byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.woken[qos]++
}

func (r *taker) payloads() (list []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, d := range r.got {
		list = append(list, string(d.Message.Payload))
	}
	return list
}

func (r *taker) take() []durable.Delivery {
	r.mu.Lock()
	defer r.mu.Unlock()
	got := r.got
	r.got = nil
	return got
}

// attachLive attaches a recipient whose two streams have caught up.
func attachLive(t testing.TB, s *Store, q durable.QueueID, window int) *taker {
	t.Helper()
	r := &taker{window: window}
	if err := s.Attach(q, r); err != nil {
		t.Fatalf("attach: %v", err)
	}
	for qos := byte(1); qos <= 2; qos++ {
		if ds, live, err := s.Read(context.Background(), q, qos, 10, 1<<20); err != nil || len(ds) > 0 || !live {
			t.Fatalf("read QoS %d of an empty queue: %v, live %v, %v", qos, ds, live, err)
		}
	}
	return r
}

func rowsOf(t testing.TB, s *Store) (n int64) {
	t.Helper()
	err := s.read(context.Background(), func(d *db) (err error) {
		n, err = d.queryInt("SELECT count(*) FROM message")
		return err
	})
	if err != nil {
		t.Fatalf("count rows: %v", err)
	}
	return n
}

// P5: what a healthy link acknowledges within the window costs no flash.
func TestHealthyLinkWritesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, disk := onDisk(t)
		s := open(t, o)
		defer closeStore(t, s)
		q := uplink(t, s)
		r := attachLive(t, s, q, 10)
		time.Sleep(time.Minute) //nolint:forbidigo // the bubble's time
		synctest.Wait()
		before, _, syncs := disk.Counts()
		for i := range 1000 {
			o := put(t, s, msg("a", fmt.Sprint(i)), claimFor(q, 1), durable.Origin{})
			time.Sleep(400 * time.Millisecond) //nolint:forbidigo // the bubble's time
			if o.called() {
				t.Fatal("safe before anybody has it")
			}
			for _, d := range r.take() {
				s.Acked(q, d.Seq)
			}
			if err := o.wait(t); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Minute) //nolint:forbidigo // the bubble's time
		synctest.Wait()
		after, _, syncsAfter := disk.Counts()
		if after != before || syncsAfter != syncs {
			t.Errorf("%d writes and %d syncs, want none", after-before, syncsAfter-syncs)
		}
		st := s.Status()
		if n := rowsOf(t, s); n != 0 || st.Written != 0 || st.SafeByAck != 1000 {
			t.Errorf("%d rows, written %d, safe by ack %d; want 0, 0, 1000", n, st.Written, st.SafeByAck)
		}
	})
}

func TestCommitTimes(t *testing.T) {
	live := func(t *testing.T, s *Store, q durable.QueueID) { t.Helper(); attachLive(t, s, q, 1) }
	tests := map[string]struct {
		attach func(*testing.T, *Store, durable.QueueID)
		m      *message.Message
		qos    byte
		want   time.Duration
	}{
		"offline recipient: at once":             {attach: func(*testing.T, *Store, durable.QueueID) {}, m: msg("a", "1"), qos: 1, want: 0},
		"live and not acknowledged: the window":  {attach: live, m: msg("a", "1"), qos: 1, want: 500 * time.Millisecond},
		"QoS 2: at once":                         {attach: live, m: msg("a", "1"), qos: 2, want: 0},
		"retained: at once":                      {attach: live, m: &message.Message{Topic: "a", Payload: []byte("1"), QoS: 1, Retain: true}, qos: 1, want: 0},
		"more bytes than may be unsafe: at once": {attach: live, m: msg("a", string(make([]byte, 5<<20))), qos: 1, want: 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := open(t, onFile(t))
				defer closeStore(t, s)
				q := uplink(t, s)
				tt.attach(t, s, q)
				start := time.Now()
				o := put(t, s, tt.m, claimFor(q, tt.qos), durable.Origin{})
				if err := o.wait(t); err != nil {
					t.Fatal(err)
				}
				if got := o.at.Sub(start); got != tt.want {
					t.Errorf("safe after %v, want %v", got, tt.want)
				}
			})
		})
	}
}

func TestRefusedOfferTurnsTheStreamBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, onFile(t))
		defer closeStore(t, s)
		q := uplink(t, s)
		r := attachLive(t, s, q, 2)
		start := time.Now()
		var last *outcome
		for i := range 5 {
			last = put(t, s, msg("a", fmt.Sprint(i)), claimFor(q, 1), durable.Origin{})
		}
		if err := last.wait(t); err != nil || last.at.Sub(start) != 250*time.Millisecond {
			t.Errorf("safe after %v with %v, want half the window", last.at.Sub(start), err)
		}
		// It is behind the disk now: there is nothing to wait for.
		start = time.Now()
		last = put(t, s, msg("a", "5"), claimFor(q, 1), durable.Origin{})
		if err := last.wait(t); err != nil || !last.at.Equal(start) {
			t.Errorf("safe after %v with %v, want at once", last.at.Sub(start), err)
		}
		if got := fmt.Sprint(r.payloads()); got != "[0 1]" {
			t.Errorf("offered %s, want [0 1]", got)
		}
		ds, live, err := s.Read(context.Background(), q, 1, 2, 1<<20)
		if err != nil || live || len(ds) != 2 || string(ds[0].Message.Payload) != "2" {
			t.Fatalf("read %v, live %v, %v; want 2 and 3", ds, live, err)
		}
		var rest []string
		for !live {
			if ds, live, err = s.Read(context.Background(), q, 1, 2, 1<<20); err != nil {
				t.Fatal(err)
			}
			for _, d := range ds {
				rest = append(rest, string(d.Message.Payload))
			}
		}
		if got := fmt.Sprint(rest); got != "[4 5]" {
			t.Errorf("read %s, want [4 5]", got)
		}
	})
}

func TestAdmissionIsAllOrNothing(t *testing.T) {
	o := onFile(t)
	o.MaxQueueMessages = 2
	s := open(t, o)
	defer closeStore(t, s)
	q := uplink(t, s)
	other := s.CreateSession("alice", 60, nil)
	both := []durable.Claim{{Queue: q, QoS: 1}, {Queue: other, QoS: 1}}
	put(t, s, msg("a", "1"), claimFor(q, 1), durable.Origin{})
	put(t, s, msg("a", "2"), both, durable.Origin{})
	err := s.Append(msg("a", "3"), both, durable.Origin{}, func(error) { t.Error("done was called") })
	if !errors.Is(err, durable.ErrFull) {
		t.Errorf("append to a full queue: %v, want ErrFull", err)
	}
	if n, _ := s.Backlog(other); n != 1 {
		t.Errorf("the other queue holds %d, want 1", n)
	}
	if st := s.Status(); st.Refused != 1 || st.Queues[0].Refused != 1 {
		t.Errorf("refused %d, of the queue %d; want 1, 1", st.Refused, st.Queues[0].Refused)
	}
}

func TestRefusalMakesNothingSafe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, disk := onDisk(t)
		s := open(t, o)
		defer closeStore(t, s)
		q := uplink(t, s)
		r := attachLive(t, s, q, 5)
		disk.FailWrites(0, -1)
		appended := put(t, s, msg("a", "1"), claimFor(q, 1), durable.Origin{})
		refused := newOutcome()
		s.Refused(q, r.take()[0].Seq, 0x99, refused.done)
		time.Sleep(time.Minute) //nolint:forbidigo // the bubble's time
		if appended.called() || refused.called() {
			t.Fatal("a refused message is safe though nothing could be written")
		}
		disk.Heal()
		if err := errors.Join(appended.wait(t), refused.wait(t)); err != nil {
			t.Fatal(err)
		}
		var letters []DeadLetter
		err := s.DeadLetters(context.Background(), q, func(d DeadLetter) error { letters = append(letters, d); return nil })
		if err != nil || len(letters) != 1 || letters[0].Code != 0x99 || string(letters[0].Message.Payload) != "1" {
			t.Errorf("dead letters %+v, %v", letters, err)
		}
		if n, _ := s.Backlog(q); n != 0 || rowsOf(t, s) != 0 {
			t.Errorf("backlog %d, want 0, and no row", n)
		}
	})
}

func TestCloseCommitsWhatWaits(t *testing.T) {
	o := onFile(t)
	s := open(t, o)
	q := uplink(t, s)
	attachLive(t, s, q, 5)
	waiting := put(t, s, msg("a", "1"), claimFor(q, 1), durable.Origin{})
	closeStore(t, s)
	if err := waiting.wait(t); err != nil {
		t.Errorf("done(%v), want nil", err)
	}
	if err := s.Append(msg("a", "2"), claimFor(q, 1), durable.Origin{}, nil); !errors.Is(err, durable.ErrClosed) {
		t.Errorf("append after close: %v, want ErrClosed", err)
	}
	for name, fn := range map[string]func(func(error)){
		"End":       func(done func(error)) { s.End(q, done) },
		"Release":   func(done func(error)) { s.Release(q, 1, done) },
		"ClearWill": func(done func(error)) { s.ClearWill("alice", done) },
		"Refused":   func(done func(error)) { s.Refused(q, 1, 0x80, done) },
		"Create":    func(done func(error)) { s.CreateSession("x", 1, done) },
	} {
		o := newOutcome()
		fn(o.done)
		if err := o.wait(t); !errors.Is(err, durable.ErrClosed) {
			t.Errorf("%s after close: %v, want ErrClosed", name, err)
		}
	}
	s = open(t, o)
	defer closeStore(t, s)
	if n, _ := s.Backlog(q); n != 1 {
		t.Errorf("backlog %d after reopening, want 1", n)
	}
}

func TestNumbersAreNeverGivenTwice(t *testing.T) {
	o := onFile(t)
	var last durable.Seq
	for start := range uint64(5) {
		s := open(t, o)
		if got := s.StartNumber(); got != start+1 {
			t.Errorf("start number %d, want %d", got, start+1)
		}
		q := uplink(t, s)
		r := attachLive(t, s, q, 100)
		for range 10 {
			o := put(t, s, msg("a", "x"), claimFor(q, 1), durable.Origin{})
			d := r.take()[0]
			if d.Seq <= last {
				t.Fatalf("sequence %d after %d", d.Seq, last)
			}
			last = d.Seq
			s.Acked(q, d.Seq) // never written: only the mark protects the number
			if err := o.wait(t); err != nil {
				t.Fatal(err)
			}
		}
		closeStore(t, s)
	}
}

// P5 for a recipient whose window is full for a moment: what it reads and
// acknowledges before the commit window is over is never written.
func TestFullWindowForAMomentCostsNoFlash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, onFile(t))
		defer closeStore(t, s)
		q := uplink(t, s)
		r := attachLive(t, s, q, 2)
		for round := range 50 {
			for i := range 5 {
				put(t, s, msg("a", fmt.Sprint(round, i)), claimFor(q, 1), durable.Origin{})
			}
			wait(100 * time.Millisecond) // of the 250 there are
			for _, d := range r.take() {
				s.Acked(q, d.Seq)
			}
			for live := false; !live; {
				ds, l, err := s.Read(t.Context(), q, 1, 2, 1<<20)
				if err != nil {
					t.Fatal(err)
				}
				for _, d := range ds {
					s.Acked(q, d.Seq)
				}
				live = l
			}
		}
		if st := s.Status(); st.Written != 0 || st.SafeByAck != 250 {
			t.Errorf("written %d, safe by ack %d; want 0 and 250", st.Written, st.SafeByAck)
		}
		// One that does not come round in time has it on disk then.
		for i := range 3 {
			put(t, s, msg("b", fmt.Sprint(i)), claimFor(q, 1), durable.Origin{})
		}
		wait(300 * time.Millisecond)
		if st := s.Status(); st.Written != 3 {
			t.Errorf("written %d, want 3", st.Written)
		}
	})
}
