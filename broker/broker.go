package broker

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"holdfast/broker/durable"
	"holdfast/broker/message"
	"holdfast/broker/packet"
	"holdfast/broker/topic"
)

// Broker is an MQTT server. Use [New].
type Broker struct {
	opts  Options
	store Store
	log   *slog.Logger
	clock *clock
	count counters
	begun time.Time

	trie     topic.Trie[*subscription]
	plans    plans
	groups   groups
	retained retained
	// reauthorized grows when rights may have changed: plans are void.
	reauthorized atomic.Uint64
	connNumber   atomic.Uint64
	sys          sysTree
	rates        rates

	// spawn starts a goroutine that ends with Shutdown. It is called by
	// goroutines that Shutdown waits for.
	spawn func(func(context.Context))
	wg    sync.WaitGroup

	mu         sync.Mutex
	state      state                     // guarded by mu
	closing    bool                      // guarded by mu; set once by Shutdown
	cancel     context.CancelFunc        // guarded by mu; ends the goroutines of spawn
	sessions   map[string]*session       // guarded by mu; by client id
	conns      map[*conn]struct{}        // guarded by mu
	places     map[netip.Prefix]*place   // guarded by mu; where they come from, see placeOf
	handshakes handshakes                // guarded by mu
	admitted   int                       // guarded by mu; connections that are not in handshakes any more
	listeners  map[net.Listener]struct{} // guarded by mu
	wills      map[string]*pendingWill   // guarded by mu; by client id
	busy       map[string]chan struct{}  // guarded by mu; see workOnLocked
	recipients map[string]*recipient     // guarded by mu; by name
	loops      []*loop                   // guarded by mu; started with the first connection for them
}

// state is how far a broker's life has come.
type state byte

const (
	stateNew state = iota
	stateStarted
	stateClosed
)

// Route is one topic filter a [Recipient] wants, and the QoS it wants at most.
type Route struct {
	Filter string
	QoS    byte
}

// Recipient is a durable recipient inside the process: an uplink. Its QoS 1
// and 2 messages go through the store to whatever it attached to Queue there.
type Recipient struct {
	Name   string
	Queue  durable.QueueID
	Routes []Route
	// Offer0 takes QoS 0 messages; it must return at once. Nil drops them.
	Offer0 func(m *message.Message)
}

// New checks the options and returns a broker that is not yet started.
func New(opts Options, store Store, log *slog.Logger) (*Broker, error) {
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	return &Broker{
		opts: opts, store: store, log: guardLog(log.With("component", "broker")), clock: newClock(),
		rates:      rates{seed: maphash.MakeSeed(), m: make(map[rateKey]*bucket)},
		sessions:   make(map[string]*session),
		conns:      make(map[*conn]struct{}),
		places:     make(map[netip.Prefix]*place),
		listeners:  make(map[net.Listener]struct{}),
		wills:      make(map[string]*pendingWill),
		busy:       make(map[string]chan struct{}),
		recipients: make(map[string]*recipient),
	}, nil
}

// Start loads sessions, retained messages and wills from the store, and starts
// the session clock. ctx bounds the loading only.
func (b *Broker) Start(ctx context.Context) error {
	b.mu.Lock()
	if b.state != stateNew {
		b.mu.Unlock()
		return errors.New("start broker: it was started before")
	}
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	b.spawn = func(f func(context.Context)) { b.wg.Go(func() { f(life) }) }
	b.cancel = cancel
	b.mu.Unlock()
	if err := b.load(ctx); err != nil {
		cancel()
		return fmt.Errorf("start broker: %w", err)
	}
	b.begun = time.Now()
	b.spawn(b.clock.loop)
	b.clock.after(sweepInterval, b.sweepRetained)
	if b.opts.SysInterval > 0 {
		b.clock.after(0, b.publishSys)
	}
	b.mu.Lock()
	b.state = stateStarted
	b.mu.Unlock()
	return nil
}

// load takes over what the store kept.
func (b *Broker) load(ctx context.Context) error {
	sessions, err := b.store.Sessions(ctx)
	if err != nil {
		return fmt.Errorf("load sessions: %w", err)
	}
	now := time.Now()
	b.keptGroups(sessions)
	for _, kept := range sessions {
		if _, shared := groupOf(kept.ClientID); !shared {
			b.loadSession(kept, now)
		}
	}
	b.endKeptGroups()
	if err := b.store.Retained(ctx, func(m *message.Message) error {
		if topic.ValidName(m.Topic) == nil {
			b.retained.set(m)
		}
		return nil
	}); err != nil {
		return fmt.Errorf("load retained messages: %w", err)
	}
	wills, err := b.store.Wills(ctx)
	if err != nil {
		return fmt.Errorf("load wills: %w", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, w := range wills {
		// Clients need a moment to come back after a power cut.
		d := max(time.Duration(w.Delay)*time.Second, b.opts.WillGrace)
		b.delayWillLocked(w.ClientID, &will{
			m: w.Message, delay: w.Delay, stored: true,
			identity: Identity{Name: w.User, ClientID: w.ClientID, Restored: true},
		}, d, true)
	}
	b.log.Info("state loaded", "sessions", len(sessions), "retained", b.retained.index.Len(), "wills", len(wills))
	return nil
}

func (b *Broker) loadSession(kept durable.Session, now time.Time) {
	s := b.newSession(kept.ClientID)
	s.queue, s.expiry = kept.Queue, kept.Expiry
	s.identity = &Identity{Name: kept.User, ClientID: kept.ClientID, Restored: true}
	s.holder = s.identity
	if s.expiry == 0 {
		b.store.End(s.queue, nil) // it was to end with its connection
		return
	}
	s.subs = make(map[string]*subscription, len(kept.Subscriptions))
	for _, sub := range kept.Subscriptions {
		added := &subscription{Subscription: sub, session: s, inner: sub.Filter}
		if group, inner, shared, err := topic.ParseShared(sub.Filter); err == nil && shared {
			added.share, added.inner = group, inner
		}
		if topic.ValidFilter(added.inner) != nil {
			continue
		}
		s.subs[sub.Filter] = added
		b.addSubscription(added)
	}
	for _, id := range kept.Received {
		s.in.put(id).state = inReceived
	}
	// A clock that was set back in between gives no session more time than it
	// asked for.
	off := max(0, now.Sub(kept.Offline))
	if kept.Offline.IsZero() {
		off = 0
	}
	b.mu.Lock()
	b.sessions[s.clientID] = s
	b.expireLaterLocked(s, s.expiry, max(0, time.Duration(s.expiry)*time.Second-off))
	b.mu.Unlock()
}

// Serve accepts connections until ctx ends, l is closed or the broker is shut
// down; it closes l. It returns nil unless accepting failed.
func (b *Broker) Serve(ctx context.Context, l net.Listener, policy Listener) error {
	if err := policy.Validate(); err != nil {
		return err
	}
	b.mu.Lock()
	if b.state != stateStarted || b.closing {
		b.mu.Unlock()
		_ = l.Close()
		return ErrClosed
	}
	b.listeners[l] = struct{}{}
	b.wg.Add(1)
	b.mu.Unlock()
	defer b.wg.Done()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	defer func() {
		_ = l.Close()
		b.mu.Lock()
		delete(b.listeners, l)
		b.mu.Unlock()
	}()
	var told time.Time
	for {
		nc, err := l.Accept()
		if err == nil {
			b.accept(nc, &policy)
			continue
		}
		if errors.Is(err, net.ErrClosed) || ctx.Err() != nil || !b.open() {
			return nil
		}
		if !temporary(err) {
			return fmt.Errorf("accept on %s: %w", l.Addr(), err)
		}
		b.count.acceptErrors.Add(1)
		now := time.Now()
		b.count.acceptFailed.Store(now.UnixNano())
		if now.Sub(told) >= acceptTell {
			b.log.Error("connection not accepted", "listener", policy.Name, "err", err, "delay", acceptRetry)
			told = now
		}
		select {
		case <-ctx.Done():
		case <-time.After(acceptRetry):
		}
	}
}

const (
	// acceptRetry is the pause when the machine has no file descriptors left.
	acceptRetry = 100 * time.Millisecond
	// acceptTell is how often that is logged; all of it is counted.
	acceptTell = time.Minute
)

func temporary(err error) bool {
	var ne interface{ Temporary() bool }
	return errors.As(err, &ne) && ne.Temporary()
}

// ServeConn serves one connection that something else accepted, a WebSocket or
// a pipe. It returns at once.
func (b *Broker) ServeConn(nc net.Conn, policy Listener) { b.accept(nc, &policy) }

// placeOf is what counts as one address: an IPv4 address, or the /64 that one
// IPv6 host can take any address of. This machine is no place: its processes,
// and the proxy that brings everybody else, are not counted.
func placeOf(remote net.Addr) netip.Prefix {
	tcp, ok := remote.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	ip := tcp.AddrPort().Addr().Unmap().WithZone("")
	if !ip.IsValid() || ip.IsLoopback() {
		return netip.Prefix{}
	}
	bits := 32
	if ip.Is6() {
		bits = 64
	}
	place, _ := ip.Prefix(bits) // fits the address
	return place
}

func (b *Broker) open() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state == stateStarted && !b.closing
}

// Shutdown stops accepting, tells the clients (0x8B), keeps their sessions and
// wills for the next start, and waits for all goroutines. When ctx ends first
// it cuts the connections, and returns ctx's error after waiting all the same.
func (b *Broker) Shutdown(ctx context.Context) error {
	b.mu.Lock()
	if b.state == stateNew {
		b.state = stateClosed
		b.mu.Unlock()
		return nil
	}
	b.closing = true
	listeners := slices.Collect(maps.Keys(b.listeners))
	conns := slices.Collect(maps.Keys(b.conns))
	gone := make([]<-chan struct{}, 0, len(conns))
	for _, c := range conns {
		gone = append(gone, c.goneLocked())
	}
	cancel := b.cancel
	b.mu.Unlock()

	var errs []error
	for _, l := range listeners {
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	reason := packet.ReasonServerShuttingDown
	if b.opts.ServerReference != "" {
		reason = packet.ReasonUseAnotherServer
	}
	for _, c := range conns {
		c.end(reason, "the gateway stops", false)
	}
	cut := context.AfterFunc(ctx, func() {
		for _, c := range conns {
			c.nc.Close()
		}
	})
	defer cut()
	for _, c := range gone {
		<-c
	}
	b.detachGroups()
	cancel()
	b.wg.Wait()
	b.mu.Lock()
	b.state = stateClosed
	b.mu.Unlock()
	return errors.Join(append(errs, ctx.Err())...)
}

// Reauthorize says that rights may have changed: what Auth answered about
// ActionReceive is asked again.
func (b *Broker) Reauthorize() { b.reauthorized.Add(1) }

// mayReceive asks whether a session may be sent messages of a topic.
func (b *Broker) mayReceive(s *session, name string) bool {
	if b.opts.Auth == nil {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mayReceiveLocked(name)
}

func (s *session) mayReceiveLocked(name string) bool {
	auth := s.b.opts.Auth
	return auth == nil || auth.Authorize(*s.identity, ActionReceive, name)
}
