package storeforward

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"testing/synctest"
	"time"

	"holdfast/broker/durable"
	"holdfast/broker/message"
	"holdfast/storeforward/storetest"
)

// The crash model: publishers, recipients' peers and their memories live outside
// of the gateway and survive its power cuts; everything else is lost with it.
// What the publishers were told must then be true of the peers.

// chooser makes the choices of a run: rapid, or a plain generator.
type chooser interface{ pick(n int, what string) int }

type randChooser struct{ r *rand.Rand }

func (c randChooser) pick(n int, _ string) int { return c.r.IntN(n) }

// world is everything outside of the store, and the store.
type world struct {
	c     chooser
	disk  *storetest.Disk
	opts  Options
	s     *Store
	epoch int // power cuts and restarts so far: callbacks of older ones are void
	r     *rand.Rand

	pubs     []*publisher
	peers    []*peer
	subs     map[string]bool // filter -> must be there; absent: unknown
	subsAny  map[string]bool // filters that may be either way
	retained map[string]*retainedModel
	wills    *willModel
	guest    guest
	lanes    laneModel

	damaged bool // a database was found damaged

	cuts     int
	drops    uint64 // by policies
	replaced uint64 // by newer states

	mu    sync.Mutex
	calls []func() // callbacks that have come; guarded by mu
	errs  []error  // guarded by mu
}

func (w *world) failf(format string, args ...any) {
	w.errs = append(w.errs, fmt.Errorf(format, args...))
}

// sent is one message as its publisher knows it.
type sent struct {
	payload string
	qos     byte
	to      []*peer
	acked   bool
}

// publisher has a persistent session of its own for QoS 2.
type publisher struct {
	name string
	q    durable.QueueID
	n    int
	sent []*sent
	// one QoS 2 exchange at a time and id.
	out map[uint16]*exchange
}

type exchange struct {
	m        *sent
	received bool // PUBREC has come
	waiting  bool // in this epoch
}

// peer is the far end of a durable recipient.
type peer struct {
	name   string
	uplink bool
	lane   bool // one of the cloud's
	q      durable.QueueID
	got    map[string]int // payload -> times
	order  map[string]int // stream and publisher -> last first-time number
	final  map[string]int // the same -> the last that came
	held   map[uint16]bool
	conn   *conn
	// refused deliveries whose end is durable.
	refused []durable.Seq
	// rejected payloads were last answered with a failure.
	rejected map[string]bool
	policy   durable.QueuePolicy
	// omitted counts what was left out of the queue in earlier epochs, and
	// before is that count when this one began.
	omitted, before uint64
	// unanswered payloads of QoS 1 were sent and must come again.
	unanswered map[string]bool
	// answered payloads of QoS 1 must not come again while the power is on.
	answered map[string]bool
}

// retainedModel is what the topic's retained message may be.
type retainedModel struct {
	acked   int // number of the last value that is safe
	last    int // number of the last value published
	cleared map[int]bool
}

type willModel struct {
	acked, last int // number of the last change that is safe, of the last one made; even numbers clear
}

// guest is a session that is created and ended.
type guest struct {
	q            durable.QueueID
	there, maybe bool // promised; either way
	busy         bool
	owed         []string // acknowledged messages to it
}

func newWorld(c chooser, seed uint64, opts func(*Options)) *world {
	w := &world{
		c: c, r: rand.New(rand.NewPCG(seed, 1)), disk: storetest.NewDisk(), opts: DefaultOptions(),
		subs: map[string]bool{}, subsAny: map[string]bool{}, retained: map[string]*retainedModel{}, wills: &willModel{},
	}
	w.opts.CommitWindow = []time.Duration{0, 10 * time.Millisecond, time.Second}[c.pick(3, "window")]
	w.opts.MaxUnsavedAcks = []int{1, 5, 1000}[c.pick(3, "unsaved")]
	w.opts.WALBytes = 64 << 10
	w.opts.RetryMin = 20 * time.Millisecond
	w.opts.ReserveBytes = []int64{0, 100_000}[c.pick(2, "reserve")]
	w.opts.MaxAge = []time.Duration{0, 0, 0, 200 * time.Millisecond}[c.pick(4, "max age")]
	w.opts.MinCommitInterval = []time.Duration{0, 0, 20 * time.Millisecond}[c.pick(3, "interval")]
	if opts != nil {
		opts(&w.opts)
	}
	for i := range 2 {
		w.pubs = append(w.pubs, &publisher{name: fmt.Sprintf("pub%d", i), out: map[uint16]*exchange{}})
	}
	for i, name := range []string{"cloud", "alice", "bob"} {
		p := newPeer(name)
		p.uplink = i == 0
		w.peers = append(w.peers, p)
	}
	for _, p := range w.peers {
		if n := c.pick(2*len(durable.Policies), "policy"); n < len(durable.Policies) {
			p.policy = durable.QueuePolicy{Policy: durable.Policies[n], MaxMessages: int64(5 + c.pick(10, "bound"))}
		}
	}
	w.addLanes()
	return w
}

func newPeer(name string) *peer {
	return &peer{
		name: name, got: map[string]int{}, order: map[string]int{}, final: map[string]int{}, held: map[uint16]bool{},
		rejected: map[string]bool{}, answered: map[string]bool{}, unanswered: map[string]bool{},
	}
}

// settleAll lets the store do what it can.
func (w *world) settleAll() {
	synctest.Wait()
	w.pump()
}

func (w *world) open() error {
	w.opts.Disk = w.disk
	w.opts.Path = w.disk.Path("holdfast.db")
	s, err := Open(context.Background(), w.opts, slog.New(slog.DiscardHandler))
	if err != nil {
		return fmt.Errorf("open after %d cuts: %w", w.cuts, err)
	}
	w.s = s
	if w.epoch > 0 {
		if err := w.setLanes(); err != nil {
			return err
		}
		if err := w.setPolicies(); err != nil {
			return err
		}
	}
	if st := s.Status(); st.SetAside != "" && !w.damaged {
		return fmt.Errorf("a power cut broke the database: %s", st.Salvaged)
	}
	if w.epoch == 0 {
		return nil
	}
	return w.check()
}

// setPolicies bounds the queues of the peers.
func (w *world) setPolicies() error {
	for _, p := range w.peers {
		if p.lane {
			p.before = w.dropped(p)[reasonNewest]
			continue
		}
		if err := w.s.SetPolicy(p.q, p.policy); err != nil {
			return fmt.Errorf("queue of %s: %w", p.name, err)
		}
		p.before = w.dropped(p)[reasonNewest]
	}
	return nil
}

func (w *world) dropped(p *peer) map[string]uint64 {
	for _, q := range w.s.Status().Queues {
		if q.ID == p.q {
			return q.Dropped
		}
	}
	return nil
}

// check compares what is durable with what was promised, and takes up where the
// peers are.
func (w *world) check() error {
	ctx := context.Background()
	sessions, err := w.s.Sessions(ctx)
	if err != nil {
		return err
	}
	found := map[string]durable.Session{}
	for _, x := range sessions {
		found[x.ClientID] = x
	}
	for _, p := range w.pubs {
		x, ok := found[p.name]
		if !ok || x.Queue != p.q {
			return fmt.Errorf("session of %s is lost", p.name)
		}
		w.resume(p, x)
	}
	for _, p := range w.peers {
		if p.uplink {
			continue
		}
		x, ok := found[p.name]
		if !ok || x.Queue != p.q {
			return fmt.Errorf("session of %s is lost", p.name)
		}
		if p.name == "alice" {
			if err := w.checkSubs(x); err != nil {
				return err
			}
		}
	}
	if err := w.checkGuest(found); err != nil {
		return err
	}
	if err := w.checkRetained(ctx); err != nil {
		return err
	}
	return w.checkWill(ctx)
}

// checkGuest looks whether the guest is there, with all its messages.
func (w *world) checkGuest(found map[string]durable.Session) error {
	g := &w.guest
	g.busy = false
	x, ok := found["guest"]
	switch {
	case g.maybe:
	case g.there != ok:
		return fmt.Errorf("guest session: there %v, promised %v", ok, g.there)
	}
	g.there, g.maybe = ok, false
	if !ok {
		g.owed, g.q = nil, 0
		return nil
	}
	if g.q != 0 && x.Queue != g.q {
		return fmt.Errorf("guest session has queue %d, promised %d", x.Queue, g.q)
	}
	g.q = x.Queue
	have := map[string]bool{}
	rows, _, err := w.s.readRows(context.Background(), g.q, 1, 0, 1<<62, 1<<20, 1<<30)
	if err != nil {
		return err
	}
	for _, r := range rows {
		have[string(r.m.Payload)] = true
	}
	for _, payload := range g.owed {
		if !have[payload] {
			return fmt.Errorf("lost: %s was acknowledged, and the session it was for has not ended", payload)
		}
	}
	return nil
}

// resume is what a publisher does when it has its connection again.
func (w *world) resume(p *publisher, x durable.Session) {
	for id, e := range p.out {
		e.waiting = false
		switch {
		case e.received: // PUBREL again
			w.release(p, id, e)
		case slices.Contains(x.Received, id): // a resend of what is there: PUBREC
			e.m.acked, e.received = true, true
			w.release(p, id, e)
		default:
			w.publish2(p, id, e)
		}
	}
}

func (w *world) checkSubs(x durable.Session) error {
	have := map[string]bool{}
	for _, s := range x.Subscriptions {
		have[s.Filter] = true
	}
	for f, want := range w.subs {
		if !w.subsAny[f] && have[f] != want {
			return fmt.Errorf("subscription %s: there %v, promised %v", f, have[f], want)
		}
		w.subs[f] = have[f]
		delete(w.subsAny, f)
	}
	return nil
}

func (w *world) checkRetained(ctx context.Context) error {
	have := map[string]int{}
	err := w.s.Retained(ctx, func(m *message.Message) error {
		n := 0
		_, err := fmt.Sscanf(string(m.Payload), "r-%d", &n)
		have[m.Topic] = n
		return err
	})
	if err != nil {
		return err
	}
	for topic, r := range w.retained {
		n, ok := have[topic]
		if !ok { // cleared: allowed if some clearing is not older than the promise
			for k := range r.cleared {
				if k >= r.acked {
					n, ok = k, true
				}
			}
			ok = ok || r.acked == 0
		}
		if !ok || n < r.acked {
			return fmt.Errorf("retained %s is value %d (%v), promised %d", topic, n, ok, r.acked)
		}
	}
	return nil
}

func (w *world) checkWill(ctx context.Context) error {
	wills, err := w.s.Wills(ctx)
	if err != nil {
		return err
	}
	switch {
	case len(wills) == 0 && w.wills.acked%2 == 1 && w.wills.last == w.wills.acked:
		return errors.New("a will is lost")
	case len(wills) == 1 && w.wills.acked%2 == 0 && w.wills.last == w.wills.acked:
		return errors.New("a will is back that was cleared")
	}
	return nil
}
