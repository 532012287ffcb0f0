package main

import (
	"fmt"
	"testing"

	"holdfast/broker/brokertest"
	"holdfast/broker/packet"
)

// A shared group on the store of the field: members come and go, the gateway is
// started again in between, and every message comes.
func TestSharedGroupOutlastsRestarts(t *testing.T) {
	dir := t.TempDir()
	seen := make(map[string]bool)
	published := 0
	for round := range 4 {
		b, stop := startReal(t, dir)
		p := brokertest.Connect(t, b.Pipe(), brokertest.V5("p"))
		join := func(id string) *brokertest.Client {
			c := brokertest.Raw(t, b.Pipe(), packet.V5)
			c.SetManual(true)
			c.Try(brokertest.Keep(brokertest.V5(id), 600))
			if c.Connack.SessionPresent != (round > 0) {
				t.Fatalf("round %d: session present is %v", round, c.Connack.SessionPresent)
			}
			if !c.Connack.SessionPresent {
				c.Subscribe(1, "$share/g/a")
			}
			return c
		}
		publish := func() { // all at once: a member that is silent costs a commit window
			for range 50 {
				p.Send(&packet.Publish{QoS: 1, PacketID: p.ID(), Topic: []byte("a"), Payload: fmt.Append(nil, published)})
				published++
			}
			for range 50 {
				if ack, _ := p.Take(packet.TypePuback).(*packet.Puback); ack.Reason.Failed() {
					t.Fatalf("PUBACK %v", ack.Reason)
				}
			}
		}
		one, two := join("one"), join("two")
		publish()
		one.Kill() // with all it has
		publish()
		two.Kill()
		publish() // for nobody who is there
		if round%2 == 1 {
			two = join("two")
			for range 200 {
				m := two.Message()
				seen[string(m.Payload)] = true
				two.Send(&packet.Puback{PacketID: m.PacketID})
			}
			two.Silent()
		}
		stop()
	}
	b, stop := startReal(t, dir)
	defer stop()
	last := brokertest.Connect(t, b.Pipe(), brokertest.Keep(brokertest.V5("one"), 600))
	for len(seen) < published {
		seen[string(last.Message().Payload)] = true
	}
	last.Silent()
	if n, _ := b.store.Held(); n > 1 { // the last acknowledgement may be on its way
		t.Errorf("%d deliveries are held", n)
	}
}
