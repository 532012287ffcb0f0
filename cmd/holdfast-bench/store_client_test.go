package main

import (
	"bytes"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"holdfast/broker/packet"
)

// eagerBroker answers a CONNECT with the CONNACK and what the session holds in one
// write, and counts the acknowledgements.
func eagerBroker(t *testing.T, n int) (addr string, acked <-chan int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	counted := make(chan int, 1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		r := packet.NewReader(c, 0)
		if _, err := r.Next(); err != nil {
			t.Error(err)
			return
		}
		out := []byte{0x20, 2, 1, 0}
		for i := range n {
			p := &packet.Publish{Topic: []byte("q/1"), QoS: 1, PacketID: uint16(i + 1), Payload: make([]byte, storePayload)}
			out, _ = p.AppendTo(out, packet.V311)
		}
		if _, err := c.Write(out); err != nil {
			t.Error(err)
			return
		}
		acks, _ := io.ReadAll(c)
		counted <- len(acks) / 4
	}()
	t.Cleanup(func() { _ = l.Close(); <-ended })
	return l.Addr().String(), counted
}

// TestDrainBehindTheConnack: a broker may send what it holds together with the
// CONNACK, and none of it may be missed.
func TestDrainBehindTheConnack(t *testing.T) {
	addr, acked := eagerBroker(t, 50)
	if _, err := drainSession(t.Context(), addr, "q/1", 50); err != nil {
		t.Fatal(err)
	}
	if n := <-acked; n != 50 {
		t.Errorf("%d of 50 acknowledged", n)
	}
}

func TestWearReport(t *testing.T) {
	rows := wearRows("cloud:1883")
	for i := range rows {
		rows[i].perSecond, rows[i].perMessage = 10, 4000
	}
	var out bytes.Buffer
	if err := reportWear(&out, rows); err != nil {
		t.Fatal(err)
	}
	// 24e12 bytes at 4000 bytes/s: 190 years.
	if got := strings.Count(out.String(), "190"); got != len(rows)/2 || strings.Count(out.String(), "\n") != len(rows)+1 {
		t.Errorf("the report gives 190 years %d times:\n%s", got, out.String())
	}
	for _, r := range rows {
		if r.up != (r.cloud == "cloud:1883") || r.window < time.Millisecond {
			t.Errorf("%s goes to %s", &r, r.cloud)
		}
	}
}
