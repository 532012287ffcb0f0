//go:build !race

package broker_test

import (
	"bytes"
	"net"
	"runtime"
	"testing"

	"holdfast/broker/brokertest"
	"holdfast/broker/packet"
)

// TestPassedMessagesLeaveNothingBehind: what goes from a socket to a socket
// allocates nothing. The race detector has pools lose at random what they are
// given, so there is nothing to be counted under it.
func TestPassedMessagesLeaveNothingBehind(t *testing.T) {
	const messages = 20_000
	for qos := byte(0); qos <= 2; qos++ {
		b := brokertest.Start(t, nil)
		sub := startFlow(t, b, qos)
		sub.run(t, 2000) // buffers grow
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		sub.run(t, messages)
		runtime.ReadMemStats(&after)
		// The runtime and the collector, which empties pools, have some of their own.
		if got := after.Mallocs - before.Mallocs; got > messages/20 {
			t.Errorf("QoS %d: %d allocations for %d messages", qos, got, messages)
		}
	}
}

// flow is one publisher and one subscriber that allocate nothing.
type flow struct {
	qos           byte
	pub, sub      net.Conn
	frames        []byte
	fromPub, next *packet.Reader
}

const flowBatch = 200 // below the windows of the broker

func startFlow(t *testing.T, b *brokertest.Broker, qos byte) *flow {
	t.Helper()
	f := &flow{qos: qos, pub: b.Dial(t), sub: b.Dial(t)}
	f.fromPub, f.next = packet.NewReader(f.pub, 64<<10), packet.NewReader(f.sub, 64<<10)
	f.fromPub.SetVersion(packet.V311)
	f.next.SetVersion(packet.V311)
	ask := func(c net.Conn, r *packet.Reader, p packet.Packet) {
		frame, err := p.AppendTo(nil, packet.V311)
		if err == nil {
			_, err = c.Write(frame)
		}
		if err == nil {
			_, err = r.Next()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	ask(f.pub, f.fromPub, brokertest.V4("pub"))
	ask(f.sub, f.next, brokertest.V4("sub"))
	ask(f.sub, f.next, &packet.Subscribe{PacketID: 1, Filters: []packet.Filter{{Filter: "flow", QoS: qos}}})
	for i := range flowBatch {
		p := &packet.Publish{QoS: qos, Topic: []byte("flow"), Payload: bytes.Repeat([]byte("x"), 100)}
		if qos > 0 {
			p.PacketID = uint16(i + 1)
		}
		var err error
		if f.frames, err = p.AppendTo(f.frames, packet.V311); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// run sends n messages in batches, and lets each arrive.
func (f *flow) run(t *testing.T, n int) {
	t.Helper()
	var answers [4 * flowBatch]byte
	for ; n > 0; n -= flowBatch {
		if _, err := f.pub.Write(f.frames); err != nil {
			t.Fatal(err)
		}
		f.answer(t, f.sub, f.next, answers[:0], packet.TypePublish)
		switch f.qos {
		case 1:
			f.answer(t, f.pub, f.fromPub, answers[:0], packet.TypePuback)
		case 2:
			f.answer(t, f.pub, f.fromPub, answers[:0], packet.TypePubrec)
			f.answer(t, f.pub, f.fromPub, answers[:0], packet.TypePubcomp)
			f.answer(t, f.sub, f.next, answers[:0], packet.TypePubrel)
		}
	}
}

// answer takes a batch of packets of one type and answers them.
func (f *flow) answer(t *testing.T, c net.Conn, r *packet.Reader, out []byte, want packet.Type) {
	t.Helper()
	for range flowBatch {
		p, err := r.Next()
		if err != nil || p.Type() != want {
			t.Fatalf("got %v, %v, want %v", p, err, want)
		}
		switch p := p.(type) {
		case *packet.Publish:
			if p.QoS > 0 {
				out = append(out, 0x30+p.QoS<<4, 2, byte(p.PacketID>>8), byte(p.PacketID))
			}
		case *packet.Pubrec:
			out = append(out, 0x62, 2, byte(p.PacketID>>8), byte(p.PacketID))
		case *packet.Pubrel:
			out = append(out, 0x70, 2, byte(p.PacketID>>8), byte(p.PacketID))
		}
	}
	if _, err := c.Write(out); err != nil {
		t.Fatal(err)
	}
}
