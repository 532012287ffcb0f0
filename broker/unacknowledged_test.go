package broker_test

import (
	"net"
	"sync"
	"testing"
	"testing/synctest"

	"holdfast/broker"
	"holdfast/broker/brokertest"
	"holdfast/broker/packet"
)

// TestTwoWaitForEachOther has two clients whose messages become safe by each
// other's acknowledgements only, which stand behind more messages than may wait.
func TestTwoWaitForEachOther(t *testing.T) {
	few := func(o *broker.Options) { o.MaxUnacknowledgedBytes = 1024 }
	play := func(t *testing.T, b *brokertest.Broker, dial func() net.Conn, v packet.Version) {
		t.Helper()
		const room = 4
		names := [2]string{"x", "y"}
		var clients [2]*brokertest.Client
		for i, name := range names {
			clients[i] = brokertest.Connect(t, dial(), brokertest.Keep(&packet.Connect{Version: v, ClientID: name}, 60))
			clients[i].SetManual(true)
			clients[i].Subscribe(1, name)
		}
		b.Store.Hold()
		var sending sync.WaitGroup
		defer sending.Wait()
		for i, c := range clients {
			var all []byte
			for id := range uint16(room + 1) {
				all, _ = (&packet.Publish{Topic: []byte(names[1-i]), QoS: 1, PacketID: id + 1, Payload: []byte("x")}).AppendTo(all, v)
			}
			for id := range uint16(room) { // of what will come
				all, _ = (&packet.Puback{PacketID: id + 1}).AppendTo(all, v)
			}
			sending.Go(func() { c.SendBytes(all) }) // until it is read
		}
		for i, c := range clients {
			if v < packet.V5 {
				c.Ended() // nothing else says no
				continue
			}
			for id := range uint16(room) {
				if ack, _ := c.Take(packet.TypePuback).(*packet.Puback); ack.PacketID != id+1 || ack.Reason.Failed() {
					t.Errorf("%s: PUBACK %d %v, want %d", names[i], ack.PacketID, ack.Reason, id+1)
				}
			}
		}
	}
	for _, v := range []packet.Version{packet.V311, packet.V5} {
		t.Run(v.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := brokertest.New(t, nil, few)
				play(t, b, b.Pipe, v)
			})
		})
		t.Run(v.String()+" on a loop", func(t *testing.T) {
			if testing.Short() {
				t.Skip("takes the time it takes")
			}
			t.Parallel()
			b := brokertest.Start(t, nil, few, several)
			play(t, b, func() net.Conn { return b.Dial(t) }, v)
		})
	}
}
