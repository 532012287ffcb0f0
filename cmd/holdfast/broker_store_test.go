package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"testing"

	"holdfast/broker"
	"holdfast/broker/brokertest"
	"holdfast/broker/packet"
	"holdfast/storeforward"
)

// realBroker is the broker on the store it has in the field; the tests of package
// broker have one in memory.
type realBroker struct {
	*broker.Broker
	store *storeforward.Store
}

func (b *realBroker) Pipe() net.Conn {
	c, s := net.Pipe()
	b.ServeConn(s, broker.Listener{})
	return c
}

func startReal(t *testing.T, dir string, change ...func(*broker.Options)) (b *realBroker, stop func()) {
	t.Helper()
	return startRealStore(t, dir, func(*storeforward.Options) {}, change...)
}

func startRealStore(t *testing.T, dir string, knobs func(*storeforward.Options), change ...func(*broker.Options)) (b *realBroker, stop func()) {
	t.Helper()
	o := storeforward.DefaultOptions()
	o.Path = dir + "/db"
	knobs(&o)
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	st, err := storeforward.Open(t.Context(), o, log)
	if err != nil {
		t.Fatal(err)
	}
	bo := broker.DefaultOptions()
	for _, f := range change {
		f(&bo)
	}
	inner, err := broker.New(bo, st, log)
	if err != nil {
		t.Fatal(err)
	}
	if err := inner.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return &realBroker{inner, st}, func() {
		if err := inner.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	}
}

// A persistent subscriber far behind its publishers, and with breaks, gets all in
// order; QoS 2 once.
func TestSubscriberCatchesUpFromTheStore(t *testing.T) {
	for qos := byte(1); qos <= 2; qos++ {
		t.Run(fmt.Sprint("QoS ", qos), func(t *testing.T) {
			b, stop := startReal(t, t.TempDir(), func(o *broker.Options) { o.MaxInflight = 8 })
			defer stop()
			connect := brokertest.Keep(brokertest.V5("sub"), 600)
			sub := brokertest.Connect(t, b.Pipe(), connect)
			sub.Subscribe(2, "a")
			const n = 1000
			done := make(chan struct{})
			c := brokertest.Connect(t, b.Pipe(), brokertest.V5("c"))
			go func() {
				defer close(done)
				for i := range n {
					if t.Failed() {
						return
					}
					c.Publish(qos, false, "a", fmt.Sprint(i))
				}
			}()
			next := 0
			for round := 0; next < n; round++ {
				take := func(p *packet.Publish) {
					var i int
					if _, err := fmt.Sscan(string(p.Payload), &i); err != nil {
						t.Fatal(err)
					}
					if i > next || qos == 2 && i < next {
						t.Fatalf("got %d, want %d dup %v id %d", i, next, p.Dup, p.PacketID)
					}
					if i == next {
						next++
					}
				}
				for i := 0; i < 100 && next < n; i++ {
					take(sub.Message())
				}
				if qos == 1 && round%3 == 0 {
					sub.Kill()
					for _, p := range sub.Rest() {
						take(p)
					}
					sub = brokertest.Connect(t, b.Pipe(), connect)
				}
			}
			<-done
		})
	}
}

// After a restart the sessions, the retained messages and both directions of
// QoS 2 go on where they were.
func TestSessionsGoOnAfterARestart(t *testing.T) {
	for qos := byte(1); qos <= 2; qos++ {
		t.Run(fmt.Sprint("QoS ", qos), func(t *testing.T) {
			dir := t.TempDir()
			b, stop := startReal(t, dir)
			connect := brokertest.Keep(brokertest.V5("sub"), 600)
			connect.Properties.ReceiveMaximum = 3
			sub := brokertest.Connect(t, b.Pipe(), connect)
			sub.SetManual(true)
			sub.Subscribe(2, "a/#")
			c := brokertest.Connect(t, b.Pipe(), brokertest.V5("c"))
			c.Publish(1, true, "kept", "retained")
			for i := range 10 {
				c.Publish(qos, false, "a", fmt.Sprint(i))
			}
			first := sub.Message()
			if qos == 2 {
				sub.Send(&packet.Pubrec{PacketID: first.PacketID})
				sub.Take(packet.TypePubrel)
			}
			c2 := brokertest.Connect(t, b.Pipe(), brokertest.Keep(brokertest.V5("p"), 600))
			c2.Send(&packet.Publish{QoS: 2, PacketID: 9, Topic: []byte("a/in"), Payload: []byte("in")})
			c2.Take(packet.TypePubrec)
			stop()
			b, stop = startReal(t, dir)
			defer stop()
			c2 = brokertest.Connect(t, b.Pipe(), brokertest.Keep(brokertest.V5("p"), 600))
			if !c2.Connack.SessionPresent {
				t.Error("p lost")
			}
			c2.Send(&packet.Publish{QoS: 2, PacketID: 9, Dup: true, Topic: []byte("a/in"), Payload: []byte("in")})
			c2.Take(packet.TypePubrec)
			c2.Send(&packet.Pubrel{PacketID: 9})
			c2.Take(packet.TypePubcomp)
			c = brokertest.Connect(t, b.Pipe(), brokertest.V5("c"))
			c.Publish(qos, false, "a", "10")
			c.Subscribe(0, "kept")
			c.Message()
			connect.Properties.ReceiveMaximum = 2
			sub = brokertest.Connect(t, b.Pipe(), connect)
			if !sub.Connack.SessionPresent {
				t.Fatal("no session")
			}
			from := 0
			if qos == 2 {
				from = 1
			}
			seenIn := 0
			for i := from; i < 11; {
				m := sub.Message()
				if string(m.Topic) == "a/in" {
					seenIn++
					continue
				}
				if string(m.Payload) != fmt.Sprint(i) {
					t.Fatalf("message %d is %q", i, m.Payload)
				}
				i++
			}
			for seenIn == 0 {
				if string(sub.Message().Topic) == "a/in" {
					seenIn++
				}
			}
			if got := sub.Silent(); len(got) != 0 {
				t.Errorf("more: %v", got)
			}
		})
	}
}
