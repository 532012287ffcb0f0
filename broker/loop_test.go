package broker_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"holdfast/broker"
	"holdfast/broker/brokertest"
	"holdfast/broker/message"
	"holdfast/broker/packet"
)

// TestOnGoroutines runs this package's tests once more, with the connections
// that have a readiness loop otherwise on goroutines: two drivers, one suite.
func TestOnGoroutines(t *testing.T) {
	if os.Getenv(brokertest.LoopsVariable) != "" {
		return // this is that run
	}
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.timeout=5m", "-test.short")
	cmd.Env = append(os.Environ(), brokertest.LoopsVariable+"=-1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// several has more loops than this machine may have processors.
func several(o *broker.Options) {
	if o.Loops == 0 {
		o.Loops = 3
	}
}

func TestPacketsInPieces(t *testing.T) {
	b := brokertest.Start(t, nil, several)
	sub := brokertest.Connect(t, b.Dial(t), brokertest.V5("sub"))
	sub.Subscribe(1, "a")
	nc := b.Dial(t)
	pub := brokertest.Connect(t, nc, brokertest.V5("pub"))
	for id, size := range []int{1: 10, 2: 300, 3: 5000, 4: 40_000, 5: 900_000} {
		if size == 0 {
			continue
		}
		payload := bytes.Repeat([]byte{byte(id)}, size)
		frame, err := (&packet.Publish{Topic: []byte("a"), QoS: 1, PacketID: uint16(id), Payload: payload}).AppendTo(nil, packet.V5)
		if err != nil {
			t.Fatal(err)
		}
		// The last piece has a PINGREQ behind the packet.
		frame = append(frame, 0xc0, 0)
		for _, piece := range [][]byte{frame[:1], frame[1:3], frame[3 : len(frame)/2], frame[len(frame)/2 : len(frame)-3], frame[len(frame)-3:]} {
			if _, err := nc.Write(piece); err != nil {
				t.Fatal(err)
			}
		}
		if got := pub.Next(); got.Type() != packet.TypePuback {
			t.Fatalf("%d bytes: got %v", size, got)
		}
		pub.Take(packet.TypePingresp)
		if got := sub.Message(); !bytes.Equal(got.Payload, payload) {
			t.Fatalf("%d bytes: %d came", size, len(got.Payload))
		}
	}
}

func TestManyPacketsAtOnce(t *testing.T) {
	b := brokertest.Start(t, nil, several)
	sub := brokertest.Connect(t, b.Dial(t), brokertest.V4("sub"))
	sub.Subscribe(1, "a")
	pub := brokertest.Connect(t, b.Dial(t), brokertest.V4("pub"))
	const count = 3000
	var burst []byte
	for i := range uint32(count) {
		p := &packet.Publish{Topic: []byte("a"), QoS: 1, PacketID: uint16(i + 1), Payload: binary.BigEndian.AppendUint32(make([]byte, 60), i)}
		burst, _ = p.AppendTo(burst, packet.V311)
	}
	pub.SendBytes(burst)
	for i := range uint32(count) {
		if got := binary.BigEndian.Uint32(sub.Message().Payload[60:]); got != i {
			t.Fatalf("message %d is %d", i, got)
		}
	}
	for i := range count {
		if got, ok := pub.Take(packet.TypePuback).(*packet.Puback); !ok || int(got.PacketID) != i+1 {
			t.Fatalf("acknowledgement %d is of %v", i+1, got)
		}
	}
}

// TestClientThatReadsLate has more waiting for it than its socket takes.
func TestClientThatReadsLate(t *testing.T) {
	b := brokertest.Start(t, nil, several, func(o *broker.Options) { o.MaxQueuedBytes = 64 << 20 })
	nc := b.Dial(t)
	r := packet.NewReader(nc, 4096)
	r.SetVersion(packet.V5)
	say := func(p packet.Packet) {
		frame, err := p.AppendTo(nil, packet.V5)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := nc.Write(frame); err != nil {
			t.Fatal(err)
		}
	}
	next := func(want packet.Type) packet.Packet {
		t.Helper()
		p, err := r.Next()
		if err != nil || p.Type() != want {
			t.Fatalf("got %v, %v, want %v", p, err, want)
		}
		return p
	}
	say(brokertest.V5("late"))
	next(packet.TypeConnack)
	say(&packet.Subscribe{PacketID: 1, Filters: []packet.Filter{{Filter: "a", QoS: 1}}})
	next(packet.TypeSuback)
	pub := brokertest.Connect(t, b.Dial(t), brokertest.V5("pub"))
	const count = 200
	for i := range count {
		pub.Publish(1, false, "a", fmt.Sprintf("%-100000d", i))
	}
	for i := range count {
		p, _ := next(packet.TypePublish).(*packet.Publish)
		if got := string(bytes.TrimRight(p.Payload, " ")); got != fmt.Sprint(i) {
			t.Fatalf("message %d is %s", i, got)
		}
		say(&packet.Puback{PacketID: p.PacketID})
	}
	// What is queued behind it comes before the goodbye, also if it is read late.
	for range 3 {
		pub.Publish(1, false, "a", fmt.Sprintf("%-1000000s", "last"))
	}
	done := make(chan struct{})
	go func() {
		b.Stop(t)
		close(done)
	}()
	for range 3 {
		next(packet.TypePublish)
	}
	next(packet.TypeDisconnect)
	if _, err := r.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("after the DISCONNECT: %v", err)
	}
	nc.Close()
	<-done
}

// TestLineFullOfUncommitted is a 3.1.1 client, which knows no receive maximum:
// reading pauses until the store has caught up, and what it sent before it
// disconnected is not lost.
func TestLineFullOfUncommitted(t *testing.T) {
	b := brokertest.Start(t, nil, several, func(o *broker.Options) { o.MaxUnacknowledgedBytes = 1024 })
	keeper := brokertest.Connect(t, b.Dial(t), brokertest.Keep(brokertest.V5("keeper"), 60))
	keeper.Subscribe(1, "a")
	keeper.Disconnect(0)
	keeper.Ended()
	const count = 500
	var all []byte
	for i := range count {
		all, _ = (&packet.Publish{Topic: []byte("a"), QoS: 1, PacketID: uint16(i + 1), Payload: []byte("x")}).AppendTo(all, packet.V311)
	}
	all, _ = (&packet.Disconnect{}).AppendTo(all, packet.V311)
	connect := brokertest.V4("c")
	connect.Will = &packet.Will{Topic: "will"}
	c := brokertest.Connect(t, b.Dial(t), connect)
	resets := brokertest.Connect(t, b.Dial(t), brokertest.V4("resets"))
	b.Store.Hold()
	c.SendBytes(all)
	// One that is gone for good before it is read any further.
	resets.SendBytes(all)
	resets.Kill()
	b.Store.Unhold()
	c.Ended()
	back := brokertest.Connect(t, b.Dial(t), brokertest.Keep(brokertest.V5("keeper"), 60))
	back.Messages(count)
	if n := b.Status().Wills; n != 0 {
		t.Errorf("%d wills were published of clients that said goodbye", n)
	}
}

func TestKeepAliveOnSockets(t *testing.T) {
	b := brokertest.Start(t, nil, several)
	watcher := brokertest.Connect(t, b.Dial(t), brokertest.V5("watcher"))
	watcher.Subscribe(0, "will")
	connect := brokertest.V5("quiet")
	connect.KeepAlive = 1
	connect.Will = &packet.Will{Topic: "will", Payload: []byte("gone")}
	began := time.Now()
	c := brokertest.Connect(t, b.Dial(t), connect)
	c.Send(&packet.Pingreq{})
	c.Take(packet.TypePingresp)
	if got, told := c.Ended(); !told || got != packet.ReasonKeepAliveTimeout {
		t.Errorf("DISCONNECT %v, %t", got, told)
	}
	if d := time.Since(began); d < 1500*time.Millisecond || d > 4*time.Second {
		t.Errorf("ended after %v", d)
	}
	watcher.Message()
}

func TestUnixSocket(t *testing.T) {
	b := brokertest.New(t, nil, several)
	path := filepath.Join(t.TempDir(), "s")
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	b.ServeOn(t, l)
	dial := func() net.Conn {
		var d net.Dialer
		nc, err := d.DialContext(t.Context(), "unix", path)
		if err != nil {
			t.Fatal(err)
		}
		return nc
	}
	c := brokertest.Connect(t, dial(), brokertest.V5("c"))
	c.Subscribe(2, "a")
	c.Publish(2, false, "a", "x")
	c.Message()
	again := brokertest.Connect(t, dial(), brokertest.V5("c"))
	if got, told := c.Ended(); !told || got != packet.ReasonSessionTakenOver {
		t.Errorf("DISCONNECT %v, %t", got, told)
	}
	again.SendBytes([]byte{0xc1, 0}) // reserved bits
	if got, told := again.Ended(); !told || got != packet.ReasonMalformedPacket {
		t.Errorf("DISCONNECT %v, %t", got, told)
	}
}

// TestWatchedMessageIsACopy has an onlooker keep what the publisher's buffer is
// used for again right away.
func TestWatchedMessageIsACopy(t *testing.T) {
	b := brokertest.Start(t, nil, several)
	var seen []*message.Message
	all := make(chan struct{})
	const count = 200
	stop := b.Watch([]string{"a"}, func(m *message.Message) {
		if seen = append(seen, m); len(seen) == count {
			close(all)
		}
	})
	defer stop()
	pub := brokertest.Connect(t, b.Dial(t), brokertest.V5("pub"))
	for i := range count {
		pub.Publish(0, false, "a", fmt.Sprintf("%050d", i))
	}
	<-all
	for i, m := range seen {
		if got, want := string(m.Payload), fmt.Sprintf("%050d", i); got != want {
			t.Fatalf("message %d is %s", i, got)
		}
	}
}
