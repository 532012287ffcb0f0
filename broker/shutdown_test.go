package broker_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker"
	"holdfast/broker/brokertest"
	"holdfast/broker/packet"
)

func TestShutdown(t *testing.T) {
	b := brokertest.Start(t, nil)
	watch := brokertest.Connect(t, b.Dial(t), brokertest.V5("watch"))
	watch.Subscribe(1, "will")
	p := brokertest.Keep(brokertest.V5("five"), 60)
	p.Will = &packet.Will{Topic: "will", QoS: 1}
	five := brokertest.Connect(t, b.Dial(t), p)
	five.Subscribe(1, "a")
	old := brokertest.Connect(t, b.Dial(t), brokertest.V4("old"))
	silent := brokertest.Raw(t, b.Dial(t), packet.V5) // sends no CONNECT
	b.Stop(t)
	for _, c := range []*brokertest.Client{five, watch} {
		if reason, told := c.Ended(); !told || reason != packet.ReasonServerShuttingDown {
			t.Errorf("told %v %v", reason, told)
		}
		if got := c.Rest(); len(got) > 0 {
			t.Errorf("a will was published: %v", got)
		}
	}
	old.Ended()
	silent.Ended()
	if kept, err := b.Store.Sessions(t.Context()); err != nil || len(kept) != 1 || kept[0].Offline.IsZero() {
		t.Errorf("kept %+v, %v", kept, err)
	}
	if _, kept := b.Store.WillOf("five"); !kept {
		t.Error("the will is gone")
	}
	if nc, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", b.Addr); err == nil {
		nc.Close()
		t.Error("it still listens")
	}
	b.ServeConn(nopConn{}, broker.Listener{}) // too late: closed, not served
}

// nopConn is a connection from nowhere that may only be closed.
type nopConn struct{ net.Conn }

func (nopConn) Close() error { return nil }

func (nopConn) RemoteAddr() net.Addr { return nil }

// TestShutdownCutsWhoDoesNotRead: the deadline holds whatever clients do.
func TestShutdownCutsWhoDoesNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t, nil)
		nc := connectAndStopReading(t, b, brokertest.V5("deaf"), 0)
		defer nc.Close()
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if err := b.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Shutdown: %v", err)
		}
		if d := time.Since(start); d > 150*time.Millisecond {
			t.Errorf("took %v", d)
		}
	})
}

func TestServeEndsWithItsContext(t *testing.T) {
	b := brokertest.New(t, nil)
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error)
	go func() { served <- b.Serve(ctx, l, broker.Listener{}) }()
	c := brokertest.Connect(t, (&brokertest.Broker{Broker: b.Broker, Addr: l.Addr().String()}).Dial(t), brokertest.V5("c"))
	cancel()
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
	c.Silent() // connections live on
	b.Stop(t)
	if err := b.Serve(t.Context(), l, broker.Listener{}); !errors.Is(err, broker.ErrClosed) {
		t.Errorf("Serve after Shutdown: %v", err)
	}
	if err := b.Serve(t.Context(), l, broker.Listener{Anonymous: "?"}); err == nil {
		t.Error("Serve took a policy that is none")
	}
}

// TestOrder: order of each publisher's messages of one topic and QoS is kept to
// every kind of subscriber.
func TestOrder(t *testing.T) {
	b := brokertest.Start(t, nil, func(o *broker.Options) { o.MaxQueued = 100_000 })
	const publishers, each = 4, 300
	subs := map[string]*packet.Connect{
		"clean": brokertest.V5("clean"), "3.1.1": brokertest.V4("old"), "persistent": brokertest.Keep(brokertest.V5("kept"), 60),
	}
	clients := make(map[string]*brokertest.Client)
	for name, p := range subs {
		if p.Version == packet.V5 {
			p.Properties.ReceiveMaximum = 20
		}
		clients[name] = brokertest.Connect(t, b.Dial(t), p)
		clients[name].Subscribe(2, "o/#")
	}
	var wg sync.WaitGroup
	for i := range publishers {
		c := brokertest.Connect(t, b.Dial(t), brokertest.V5(fmt.Sprint("p", i)))
		wg.Go(func() {
			for n := range each {
				for qos := byte(1); qos <= 2; qos++ {
					c.Publish(qos, false, fmt.Sprintf("o/%d", i), fmt.Sprint(n))
				}
			}
		})
	}
	for name, c := range clients {
		next := make(map[string]int)
		for range 2 * publishers * each {
			m := c.Message()
			key := fmt.Sprintf("%s QoS %d", m.Topic, m.QoS)
			if got := string(m.Payload); got != fmt.Sprint(next[key]) {
				t.Fatalf("%s: %s came %s, want %d", name, key, got, next[key])
			}
			next[key]++
		}
	}
	wg.Wait()
}

// TestLogEscapes: what a client calls itself cannot forge a line of the log.
func TestLogEscapes(t *testing.T) {
	store := brokertest.NewMemoryStore()
	defer store.Close()
	var log bytes.Buffer
	opts := broker.DefaultOptions()
	b, err := broker.New(opts, store, slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	started := &brokertest.Broker{Broker: b, Store: store}
	evil := "x\nlevel=ERROR msg=\"forged\"\x1b[2J"
	p := as(brokertest.V5(evil), evil)
	c := brokertest.Connect(t, started.Pipe(), p)
	c.Publish(1, false, "$SYS/"+evil, "x")
	c.Disconnect(packet.ReasonDisconnectWithWill)
	started.Stop(t)
	if slices.ContainsFunc(strings.Split(log.String(), "\n"), func(line string) bool {
		return strings.HasPrefix(line, "level=") || strings.Contains(line, "\x1b")
	}) {
		t.Errorf("the log was forged:\n%s", log.String())
	}
}
