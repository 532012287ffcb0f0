package adapters_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"holdfast/adapters"
	"holdfast/broker/message"
)

var (
	errFull = errors.New("store is full")
	errBad  = errors.New("topic is invalid")
)

// picky is a publisher that refuses and acknowledges as it is told.
type picky struct {
	mu     sync.Mutex
	refuse error          // what Publish says; nil: it takes
	hold   bool           // done is not called until release
	taken  []string       // topics, in order
	done   []func(error)  // held back
	pass   func() error   // decides instead of refuse, if set
	when   map[string]int // how often each topic was offered
}

func (p *picky) Publish(m *message.Message, done func(error)) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.when == nil {
		p.when = make(map[string]int)
	}
	p.when[m.Topic]++
	err := p.refuse
	if p.pass != nil {
		err = p.pass()
	}
	if err != nil {
		return err
	}
	p.taken = append(p.taken, m.Topic)
	if p.hold {
		p.done = append(p.done, done)
		return nil
	}
	done(nil)
	return nil
}

func (p *picky) set(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
}

// release ends what is held with err, all of it.
func (p *picky) release(err error) {
	p.mu.Lock()
	held := p.done
	p.done = nil
	p.mu.Unlock()
	for _, d := range held {
		d(err)
	}
}

func (p *picky) got() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.taken)
}

func retryFull(err error) bool { return errors.Is(err, errFull) }

func newOutbox(tb testing.TB, p adapters.Publisher, change func(*adapters.OutboxOptions)) *adapters.Outbox {
	tb.Helper()
	o := adapters.DefaultOutboxOptions()
	o.Retry = retryFull
	if change != nil {
		change(&o)
	}
	box, err := adapters.NewOutbox("rs485", p, o, slog.New(slog.DiscardHandler))
	if err != nil {
		tb.Fatal(err)
	}
	return box
}

func msg(topic string, size int) *message.Message {
	return &message.Message{Topic: topic, Payload: make([]byte, size)}
}

func closeBox(tb testing.TB, b *adapters.Outbox) {
	tb.Helper()
	if err := b.Close(context.Background()); err != nil {
		tb.Error(err)
	}
}

func TestOutboxHandsOverInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &picky{}
		b := newOutbox(t, p, nil)
		var want []string
		for i := range 500 {
			topic := fmt.Sprintf("t%d", i)
			b.Put([]string{"a", "b"}[i%2], msg(topic, 1))
			want = append(want, topic)
		}
		closeBox(t, b)
		if got := p.got(); !slices.Equal(got, want) {
			t.Errorf("got %v", got)
		}
		st := b.Status()
		for _, d := range []string{"a", "b"} {
			c := st.Devices[d]
			if want := (adapters.OutboxCounters{Put: 250, Published: 250, Acknowledged: 250}); c != want {
				t.Errorf("device %s: %+v, want %+v", d, c, want)
			}
		}
		b.Put("a", msg("late", 1))
		if c := b.Status().Devices["a"]; c.Dropped != 1 {
			t.Errorf("after Close %+v, want one dropped", c)
		}
		if err := b.Close(t.Context()); err != nil {
			t.Errorf("second Close: %v", err)
		}
	})
}

func TestRefusalKeepsOrderAndBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &picky{refuse: errFull}
		b := newOutbox(t, p, nil)
		for i := range 5 {
			b.Put("a", msg(fmt.Sprintf("t%d", i), 1))
		}
		<-time.After(time.Minute)
		synctest.Wait()
		p.set(func() {
			// 100 ms doubling to 5 s: about 5 tries, then one each 5 s.
			if n := p.when["t0"]; n < 10 || n > 22 {
				t.Errorf("refused message was offered %d times in a minute", n)
			}
			if p.when["t1"] != 0 {
				t.Error("a message overtook a refused one")
			}
			p.refuse = nil
		})
		if st := b.Status(); st.Queued != 5 || st.Refusals == 0 || st.LastError != errFull.Error() {
			t.Errorf("Status %+v", st)
		}
		b.Put("a", msg("t5", 1))
		closeBox(t, b)
		if got, want := p.got(), []string{"t0", "t1", "t2", "t3", "t4", "t5"}; !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	})
}

func TestRefusedForGoodIsCountedAndPassed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &picky{refuse: errBad}
		b := newOutbox(t, p, nil)
		b.Put("a", msg("bad", 1))
		synctest.Wait()
		p.set(func() { p.refuse = nil })
		b.Put("a", msg("good", 1))
		closeBox(t, b)
		if got := p.got(); !slices.Equal(got, []string{"good"}) {
			t.Errorf("got %v", got)
		}
		if c := b.Status().Devices["a"]; c.Failed != 1 || c.Acknowledged != 1 {
			t.Errorf("counters %+v", c)
		}
	})
}

func TestFullOutboxDropsTheOldestOfWhoeverHasMost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &picky{refuse: errFull}
		b := newOutbox(t, p, func(o *adapters.OutboxOptions) { o.MaxMessages = 10 })
		b.Put("calm", msg("calm0", 1))
		b.Put("calm", msg("calm1", 1))
		for i := range 100 {
			b.Put("chatty", msg(fmt.Sprintf("chatty%d", i), 1))
		}
		synctest.Wait()
		st := b.Status()
		if st.Queued != 10 || !st.Dropping || st.Devices["calm"].Dropped != 0 || st.Devices["chatty"].Dropped != 92 {
			t.Errorf("Status %+v", st)
		}
		p.set(func() { p.refuse = nil })
		closeBox(t, b)
		got := p.got()
		if b.Status().Dropping {
			t.Error("dropping with an empty queue")
		}
		if !slices.Equal(got[:3], []string{"calm0", "calm1", "chatty92"}) || got[len(got)-1] != "chatty99" {
			t.Errorf("got %v", got)
		}
	})
}

func TestOutboxIsBoundedInBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &picky{refuse: errFull}
		b := newOutbox(t, p, func(o *adapters.OutboxOptions) { o.MaxBytes = 1024 })
		for i := range 20 {
			b.Put("a", msg(fmt.Sprintf("%03d", i), 97))
		}
		b.Put("a", msg("big", 1022)) // alone more than there is room for
		synctest.Wait()
		if st := b.Status(); st.QueuedBytes != 1000 || st.Queued != 10 || st.Devices["a"].Dropped != 11 {
			t.Errorf("Status %+v", st)
		}
		p.set(func() { p.refuse = nil })
		closeBox(t, b)
		if got := p.got(); got[0] != "010" || len(got) != 10 {
			t.Errorf("got %v", got)
		}
	})
}

func TestWindowBoundsWhatIsInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &picky{hold: true}
		b := newOutbox(t, p, func(o *adapters.OutboxOptions) { o.Window = 3 })
		for i := range 10 {
			b.Put("a", msg(fmt.Sprintf("t%d", i), 1))
		}
		synctest.Wait()
		if st := b.Status(); st.InFlight != 3 || st.Queued != 7 || len(p.got()) != 3 {
			t.Errorf("Status %+v, taken %v", st, p.got())
		}
		p.release(nil)
		synctest.Wait()
		if st := b.Status(); st.InFlight != 3 || st.Queued != 4 || st.Devices["a"].Acknowledged != 3 {
			t.Errorf("Status %+v", st)
		}
		p.set(func() { p.hold = false })
		p.release(nil)
		closeBox(t, b)
	})
}

func TestWhatComesBackGoesAgainInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &picky{hold: true}
		b := newOutbox(t, p, nil)
		for i := range 4 {
			b.Put("a", msg(fmt.Sprintf("t%d", i), 1))
		}
		synctest.Wait()
		p.mu.Lock()
		held := p.done
		p.done, p.taken = nil, nil
		p.mu.Unlock()
		held[1](errFull) // a commit failed; the answers come in any order
		held[0](errFull)
		b.Put("a", msg("t4", 1))
		synctest.Wait()
		if got := p.got(); len(got) != 0 {
			t.Errorf("%v went out while others were still in flight", got)
		}
		p.set(func() { p.hold = false })
		held[2](nil)
		held[3](errFull)
		closeBox(t, b)
		if got, want := p.got(), []string{"t0", "t1", "t3", "t4"}; !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
		st := b.Status()
		if c := st.Devices["a"]; c.Acknowledged != 5 || c.Published != 8 || st.Returned != 3 {
			t.Errorf("Status %+v", st)
		}
	})
}

// A publisher that takes everything and gives it back at once must not keep
// the outbox spinning.
func TestGivingBackBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		p := publishFunc(func(_ *message.Message, done func(error)) error { n++; done(errFull); return nil })
		b := newOutbox(t, p, nil)
		b.Put("a", msg("t", 1))
		<-time.After(time.Minute)
		synctest.Wait()
		if n > 25 {
			t.Errorf("offered %d times in a minute", n)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := b.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Close = %v, want DeadlineExceeded", err)
		}
		if c := b.Status().Devices["a"]; c.Dropped != 1 || c.Queued != 0 {
			t.Errorf("counters %+v", c)
		}
	})
}

type publishFunc func(*message.Message, func(error)) error

func (f publishFunc) Publish(m *message.Message, done func(error)) error { return f(m, done) }

func TestCloseWaitsForItsContextOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &picky{hold: true}
		b := newOutbox(t, p, func(o *adapters.OutboxOptions) { o.Window = 2 })
		for range 5 {
			b.Put("a", msg("t", 1))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		start := time.Now()
		err := b.Close(ctx)
		if time.Since(start) != 3*time.Second || err == nil || !strings.Contains(err.Error(), "3 queued and 2 in flight") {
			t.Errorf("Close = %v after %v", err, time.Since(start))
		}
		p.release(nil) // late, and still counted
		if c := b.Status().Devices["a"]; c.Acknowledged != 2 || c.Dropped != 3 || c.InFlight != 0 {
			t.Errorf("counters %+v", c)
		}
	})
}

func TestPutNeverBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stuck := make(chan struct{})
		p := publishFunc(func(_ *message.Message, done func(error)) error { <-stuck; done(nil); return nil })
		b := newOutbox(t, p, func(o *adapters.OutboxOptions) { o.MaxMessages = 5 })
		for range 1000 {
			b.Put("a", msg("t", 1)) // a blocked Put would be a deadlock here
		}
		close(stuck)
		closeBox(t, b)
	})
}

// Whatever the publisher refuses or gives back: every message is counted,
// nothing is safe twice, and refusals change no device's order.
func TestOutboxAccountsForEveryMessage(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := outboxScript{
			publisher: rapid.SliceOfN(rapid.SampledFrom([]string{"take", "take", "take", "refuse", "bad", "back"}), 0, 60).Draw(rt, "publisher"),
			limit:     rapid.IntRange(1, 20).Draw(rt, "max_messages"),
			window:    rapid.IntRange(1, 5).Draw(rt, "window"),
			puts:      rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c"}), 0, 60).Draw(rt, "puts"),
		}
		var err error
		synctest.Test(t, func(*testing.T) { err = s.play() })
		if err != nil {
			rt.Fatal(err)
		}
	})
}

type outboxScript struct {
	publisher     []string
	limit, window int
	puts          []string
}

// play puts the messages; its publisher does what the script says, and takes
// everything after its end.
func (s *outboxScript) play() error {
	var safe []string
	p := publishFunc(func(m *message.Message, done func(error)) error {
		next := "take"
		if len(s.publisher) > 0 {
			next, s.publisher = s.publisher[0], s.publisher[1:]
		}
		switch next {
		case "refuse":
			return errFull
		case "bad":
			return errBad
		case "back":
			done(errFull)
		default:
			safe = append(safe, m.Topic)
			done(nil)
		}
		return nil
	})
	o := adapters.DefaultOutboxOptions()
	o.MaxMessages, o.Window, o.Retry = s.limit, s.window, retryFull
	b, err := adapters.NewOutbox("x", p, o, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	for i, d := range s.puts {
		b.Put(d, msg(fmt.Sprintf("%s%04d", d, i), 1))
		if i%7 == 0 {
			<-time.After(time.Second)
		}
	}
	if err := b.Close(context.Background()); err != nil {
		return err
	}
	var acked uint64
	for d, c := range b.Status().Devices {
		acked += c.Acknowledged
		if c.Put != c.Acknowledged+c.Dropped+c.Failed || c.Queued != 0 || c.InFlight != 0 {
			return fmt.Errorf("device %s: %+v does not add up", d, c)
		}
	}
	if acked != uint64(len(safe)) {
		return fmt.Errorf("%d acknowledged, %d are safe", acked, len(safe))
	}
	// What came back after a later one was safe goes out late; with a window
	// of one nothing can be later.
	if s.window == 1 {
		for _, d := range []string{"a", "b", "c"} {
			if of := slices.DeleteFunc(slices.Clone(safe), func(t string) bool { return t[:1] != d }); !slices.IsSorted(of) {
				return fmt.Errorf("device %s in the order %v", d, of)
			}
		}
	}
	slices.Sort(safe)
	if len(slices.Compact(safe)) != int(acked) {
		return errors.New("a message is safe twice")
	}
	return nil
}

func TestOutboxOptionsNameTheKey(t *testing.T) {
	tests := map[string]struct {
		change func(*adapters.OutboxOptions)
		want   string
	}{
		"defaults":  {func(*adapters.OutboxOptions) {}, ""},
		"messages":  {func(o *adapters.OutboxOptions) { o.MaxMessages = 0 }, "max_messages: 0"},
		"bytes":     {func(o *adapters.OutboxOptions) { o.MaxBytes = 1 }, "max_bytes: 1"},
		"window":    {func(o *adapters.OutboxOptions) { o.Window = 0 }, "window: 0"},
		"retry_min": {func(o *adapters.OutboxOptions) { o.RetryMin = 0 }, "retry_min: 0s"},
		"retry_max": {func(o *adapters.OutboxOptions) { o.RetryMax = 1 }, "retry_max: 1ns"},
	}
	for name, tt := range tests {
		o := adapters.DefaultOutboxOptions()
		tt.change(&o)
		err := o.Validate()
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.HasPrefix(err.Error(), tt.want)) {
			t.Errorf("%s: Validate = %v, want %q", name, err, tt.want)
		}
		if tt.want == "" {
			continue
		}
		if _, err := adapters.NewOutbox("x", &picky{}, o, slog.New(slog.DiscardHandler)); err == nil {
			t.Errorf("%s: NewOutbox took it", name)
		}
	}
}
