package brokertest

import (
	"context"
	"log/slog"
	"net"
	"os"
	"strconv"
	"testing"
	"time"

	"holdfast/broker"
)

// patience is how long a test waits for what must come. It is only ever waited
// for in full by a test that fails.
const patience = 10 * time.Second

// Broker is a running broker and its store.
type Broker struct {
	*broker.Broker

	Store *MemoryStore
	// Addr is host:port of its loopback listener; empty from [New].
	Addr string
}

// LoopsVariable is the environment variable that takes the place of
// Options.Loops, so that tests can be run on both drivers.
const LoopsVariable = "HOLDFAST_TEST_LOOPS"

// New starts a broker without a listener, for clients that come through
// [Broker.Pipe]; usable inside a synctest bubble. store may be nil for a new
// one. Everything ends with the test.
func New(tb testing.TB, store *MemoryStore, change ...func(*broker.Options)) *Broker {
	tb.Helper()
	if store == nil {
		store = NewMemoryStore()
		tb.Cleanup(store.Close)
	}
	opts := broker.DefaultOptions()
	opts.SysInterval = 0
	if v := os.Getenv(LoopsVariable); v != "" {
		loops, err := strconv.Atoi(v)
		if err != nil {
			tb.Fatal(err)
		}
		opts.Loops = loops
	}
	for _, f := range change {
		f(&opts)
	}
	handler := slog.DiscardHandler
	if testing.Verbose() {
		handler = slog.NewTextHandler(tb.Output(), nil)
	}
	b, err := broker.New(opts, store, slog.New(handler))
	if err != nil {
		tb.Fatal(err)
	}
	if err := b.Start(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	started := &Broker{Broker: b, Store: store}
	tb.Cleanup(func() { started.Stop(tb) })
	return started
}

// MaxPacketSize is a change for New: the broker takes no larger packets.
func MaxPacketSize(n int) func(*broker.Options) {
	return func(o *broker.Options) { o.MaxPacketSize = n }
}

// Start starts a broker that listens on a free loopback port. store may be nil
// for a new one. Everything ends with the test.
func Start(tb testing.TB, store *MemoryStore, change ...func(*broker.Options)) *Broker {
	tb.Helper()
	b := New(tb, store, change...)
	var lc net.ListenConfig
	l, err := lc.Listen(tb.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	b.Addr = l.Addr().String()
	b.ServeOn(tb, l)
	return b
}

// ServeOn serves one more listener until the test ends.
func (b *Broker) ServeOn(tb testing.TB, l net.Listener) {
	tb.Helper()
	served := make(chan error, 1)
	go func() { served <- b.Serve(context.Background(), l, broker.Listener{Name: "test"}) }()
	tb.Cleanup(func() {
		b.Stop(tb)
		if err := <-served; err != nil {
			tb.Errorf("serve: %v", err)
		}
	})
}

// Stop shuts the broker down; again is no error.
func (b *Broker) Stop(tb testing.TB) {
	tb.Helper()
	b.Store.Unhold()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := b.Shutdown(ctx); err != nil {
		tb.Errorf("shut down broker: %v", err)
	}
}

// Pipe returns the client's end of a connection to the broker.
func (b *Broker) Pipe() net.Conn {
	client, server := net.Pipe()
	b.ServeConn(server, broker.Listener{Name: "pipe"})
	return client
}

// Dial returns a TCP connection to the broker.
func (b *Broker) Dial(tb testing.TB) net.Conn {
	tb.Helper()
	var d net.Dialer
	nc, err := d.DialContext(tb.Context(), "tcp", b.Addr)
	if err != nil {
		tb.Fatal(err)
	}
	return nc
}
