package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker/packet"
)

func TestHandshakeSaysWhatWasAskedFor(t *testing.T) {
	will := &packet.Will{Topic: "gone", Payload: []byte("x"), QoS: 1, Retain: true, Properties: packet.Properties{WillDelay: 30}}
	o := Options{
		ClientID: "pump", Username: "u", Password: "p", KeepAlive: 30 * time.Second, SessionExpiry: 3600,
		Will: will, ReceiveMaximum: 7, TopicAliasMaximum: 3, MaximumPacketSize: 999,
		User: []packet.UserProperty{{Key: "k", Value: "v"}},
	}
	for _, v := range []packet.Version{packet.V5, packet.V311} {
		t.Run(v.String(), func(t *testing.T) {
			o := o
			o.Version = v
			s, nc := pipe(t, v)
			s.serve()
			got := make(chan *packet.Connect, 1)
			go func() {
				got <- expect[*packet.Connect](s)
				s.send(&packet.Connack{SessionPresent: true})
			}()
			c, err := NewConn(t.Context(), nc, o)
			if err != nil {
				t.Fatalf("NewConn: %v", err)
			}
			defer c.Abort()
			hello := <-got
			if hello.Version != v || hello.ClientID != "pump" || hello.CleanStart || hello.KeepAlive != 30 ||
				hello.Username != "u" || string(hello.Password) != "p" || hello.Will == nil || hello.Will.Topic != "gone" {
				t.Errorf("CONNECT = %+v", hello)
			}
			p := hello.Properties
			if v == packet.V5 && (p.SessionExpiry == nil || *p.SessionExpiry != 3600 || p.ReceiveMaximum != 7 ||
				p.TopicAliasMaximum != 3 || p.MaximumPacketSize != 999 || len(p.User) != 1 || hello.Will.Properties.WillDelay != 30) {
				t.Errorf("CONNECT properties = %+v, will %+v", p, hello.Will)
			}
			if !c.SessionPresent() || c.Version() != v {
				t.Errorf("SessionPresent, Version = %v, %v, want true, %v", c.SessionPresent(), c.Version(), v)
			}
			if in, out := c.BytesIn(), c.BytesOut(); in < 4 || out < 20 {
				t.Errorf("BytesIn, BytesOut = %d, %d after the handshake", in, out)
			}
		})
	}
}

func TestLimitsAreTheServersWord(t *testing.T) {
	no := byte(0)
	c, _ := dialPipe(t, Options{KeepAlive: time.Minute, SessionExpiry: 100}, &packet.Connack{Properties: packet.Properties{
		AssignedClientID: "given", ServerKeepAlive: new(uint16(9)), SessionExpiry: new(uint32(50)), ReceiveMaximum: 20,
		MaximumQoS: new(byte(1)), MaximumPacketSize: 5000, TopicAliasMaximum: 4,
		RetainAvailable: &no, WildcardAvailable: &no, SubIDAvailable: &no, SharedAvailable: &no,
	}})
	defer c.Abort()
	want := Limits{
		ClientID: "given", KeepAlive: 9 * time.Second, SessionExpiry: 50, ReceiveMaximum: 20,
		MaximumQoS: 1, MaximumPacketSize: 5000, TopicAliasMaximum: 4,
	}
	if got := c.Limits(); got != want {
		t.Errorf("Limits() = %+v, want %+v", got, want)
	}
	old, _ := dialPipe(t, Options{ClientID: "c", Version: packet.V311, KeepAlive: time.Minute}, &packet.Connack{})
	defer old.Abort()
	want = Limits{
		ClientID: "c", KeepAlive: time.Minute, SessionExpiry: 0xFFFFFFFF, ReceiveMaximum: 20, MaximumQoS: 2,
		MaximumPacketSize: packet.MaxSize + 5, Retain: true, Wildcards: true,
	}
	if got := old.Limits(); got != want {
		t.Errorf("Limits() of 3.1.1 = %+v, want %+v", got, want)
	}
	plain, _ := dialPipe(t, Options{ClientID: "c", KeepAlive: time.Minute, SessionExpiry: 100}, &packet.Connack{})
	defer plain.Abort()
	want = Limits{
		ClientID: "c", KeepAlive: time.Minute, SessionExpiry: 100, ReceiveMaximum: 65535, MaximumQoS: 2,
		MaximumPacketSize: packet.MaxSize + 5, Retain: true, Wildcards: true, SubscriptionIDs: true, Shared: true,
	}
	if got := plain.Limits(); got != want {
		t.Errorf("Limits() without any in CONNACK = %+v, want %+v", got, want)
	}
}

func TestHandshakeFails(t *testing.T) {
	tests := map[string]struct {
		opts  Options
		reply []byte // raw; nil: the server closes
		check func(error) bool
		say   string
	}{
		"refused, 5.0": {
			reply: []byte{0x20, 8, 0, 0x87, 5, 0x1f, 0, 2, 'n', 'o'},
			check: func(err error) bool {
				e, ok := errors.AsType[*ConnackError](err)
				return ok && e.Reason == packet.ReasonNotAuthorized && e.ReasonString == "no"
			},
			say: `not authorized (0x87): "no"`,
		},
		"refused, 3.1.1": {
			opts: Options{Version: packet.V311, ClientID: "c"}, reply: []byte{0x20, 2, 0, 4},
			check: func(err error) bool {
				e, ok := errors.AsType[*ConnackError](err)
				return ok && e.Reason == packet.ReasonBadUserNameOrPassword
			},
		},
		"server closes": {
			check: func(err error) bool { return errors.Is(err, errNoConnack) },
		},
		"not CONNACK": {
			reply: []byte{0xd0, 0},
			check: func(err error) bool { return errors.Is(err, packet.ErrProtocol) },
		},
		"reserved flag": {
			reply: []byte{0x20, 3, 2, 0, 0},
			check: func(err error) bool { return errors.Is(err, packet.ErrMalformed) },
		},
		"length of five bytes": {
			reply: []byte{0x20, 0xff, 0xff, 0xff, 0xff, 0x7f},
			check: func(err error) bool { return errors.Is(err, packet.ErrMalformed) },
		},
		"larger than any CONNACK": {
			reply: []byte{0x20, 0xff, 0xff, 0xff, 0x7f},
			check: func(err error) bool {
				e, ok := errors.AsType[*packet.Error](err)
				return ok && e.Reason == packet.ReasonPacketTooLarge
			},
		},
		"session present after a clean start": {
			opts: Options{CleanStart: true}, reply: []byte{0x20, 3, 1, 0, 0},
			check: func(err error) bool { return errors.Is(err, packet.ErrProtocol) },
		},
		"bad options": {
			opts: Options{KeepAlive: time.Millisecond}, reply: []byte{0x20, 3, 0, 0, 0},
			check: func(err error) bool { return strings.Contains(err.Error(), "KeepAlive") },
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s, nc := pipe(t, packet.V5)
			go func() {
				b := make([]byte, 1000)
				if _, err := s.nc.Read(b); err != nil {
					return
				}
				if tt.reply == nil {
					s.nc.Close()
				}
				_, _ = s.nc.Write(tt.reply)
			}()
			c, err := NewConn(t.Context(), nc, tt.opts)
			if err == nil {
				t.Fatalf("NewConn = %v, want an error", c)
			}
			if !tt.check(err) || !strings.Contains(err.Error(), tt.say) {
				t.Errorf("NewConn error = %v", err)
			}
			if _, err := nc.Write([]byte{0}); err == nil {
				t.Error("connection is open after NewConn failed")
			}
		})
	}
}

func TestHandshakeIsBoundedInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, nc := pipe(t, packet.V5)
		s.serve() // and never answers
		start := time.Now()
		_, err := NewConn(t.Context(), nc, Options{ConnectTimeout: 7 * time.Second})
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 7*time.Second {
			t.Errorf("NewConn = %v after %v, want deadline exceeded after 7s", err, time.Since(start))
		}
		s2, nc := pipe(t, packet.V5)
		s2.serve()
		ctx, cancel := context.WithCancelCause(t.Context())
		enough := errors.New("enough")
		time.AfterFunc(time.Second, func() { cancel(enough) })
		if _, err := NewConn(ctx, nc, Options{}); !errors.Is(err, enough) {
			t.Errorf("NewConn with its context cancelled = %v, want %v", err, enough)
		}
	})
}

func TestKeepAlivePingsAfterSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := dialPipe(t, Options{KeepAlive: 20 * time.Second}, &packet.Connack{})
		result := running(c, nil)
		for range 3 {
			start := time.Now()
			expect[*packet.Pingreq](s)
			if d := time.Since(start); d < 15*time.Second || d > 20*time.Second {
				t.Errorf("PINGREQ after %v of silence, want just under 20s", d)
			}
			s.send(&packet.Pingresp{})
		}
		c.Abort()
		if err := <-result; !errors.Is(err, ErrClosed) {
			t.Errorf("Run = %v, want ErrClosed", err)
		}
	})
}

func TestServerKeepAliveOverrules(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := dialPipe(t, Options{KeepAlive: time.Hour}, &packet.Connack{Properties: packet.Properties{ServerKeepAlive: new(uint16(10))}})
		result := running(c, nil)
		start := time.Now()
		expect[*packet.Pingreq](s)
		if d := time.Since(start); d > 10*time.Second {
			t.Errorf("PINGREQ after %v, want under 10s", d)
		}
		c.Abort()
		<-result
	})
}

func TestNoKeepAliveNoPing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := dialPipe(t, Options{}, &packet.Connack{})
		result := running(c, nil)
		<-time.After(time.Hour)
		s.nothingMore()
		c.Abort()
		<-result
	})
}

func TestTrafficInBothDirectionsNeedsNoPing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := dialPipe(t, Options{KeepAlive: 10 * time.Second}, &packet.Connack{})
		result := running(c, func(p packet.Packet) error { return c.Queue(&packet.Puback{PacketID: p.(*packet.Publish).PacketID}) })
		for i := range 30 {
			<-time.After(5 * time.Second)
			s.send(&packet.Publish{Topic: []byte("a"), QoS: 1, PacketID: uint16(i + 1)})
			expect[*packet.Puback](s)
		}
		c.Abort()
		<-result
	})
}

// Who only sends must notice that nobody is there any more.
func TestSilenceInOneDirectionIsEnoughForAPing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := dialPipe(t, Options{KeepAlive: 10 * time.Second, PingTimeout: 3 * time.Second}, &packet.Connack{})
		result := running(c, nil)
		start := time.Now()
		stop := make(chan struct{})
		go func() { // a sensor
			for c.Queue(&packet.Publish{Topic: []byte("a")}) == nil {
				c.Flush()
				<-time.After(time.Second)
			}
			close(stop)
		}()
		err := <-result
		if d := time.Since(start); !errors.Is(err, ErrKeepAlive) || d > 13*time.Second {
			t.Errorf("Run = %v after %v, want ErrKeepAlive within 13s", err, d)
		}
		<-stop
		pings := 0
		for p := range s.in {
			if p.Type() == packet.TypePingreq {
				pings++
			}
		}
		if pings != 1 {
			t.Errorf("%d PINGREQ, want 1", pings)
		}
	})
}

func TestSilentServerIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := dialPipe(t, Options{KeepAlive: 20 * time.Second}, &packet.Connack{})
		start := time.Now()
		result := running(c, nil)
		expect[*packet.Pingreq](s)
		err := <-result
		if d := time.Since(start); !errors.Is(err, ErrKeepAlive) || d < 25*time.Second || d > 30*time.Second {
			t.Errorf("Run = %v after %v, want ErrKeepAlive after 19s + 10s", err, d)
		}
		s.wantClosed()
	})
}

// On a slow link the PINGRESP waits behind a backlog: whatever comes counts.
func TestAnythingThatComesAnswersAPing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := dialPipe(t, Options{KeepAlive: 10 * time.Second, PingTimeout: 5 * time.Second}, &packet.Connack{})
		result := running(c, nil)
		for range 5 {
			expect[*packet.Pingreq](s)
			<-time.After(4 * time.Second)
			s.send(&packet.Publish{Topic: []byte("a")})
		}
		s.nc.Close()
		<-result
	})
}

// Each PINGREQ has its own PINGRESP: that of the keep alive tells nothing of what
// was queued after it.
func TestPingIsAnsweredByItsOwnResponse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := dialPipe(t, Options{KeepAlive: 10 * time.Second, PingTimeout: 5 * time.Second}, &packet.Connack{})
		result := running(c, nil)
		expect[*packet.Pingreq](s) // of the keep alive
		answered := make(chan int, 2)
		for i := range 2 {
			if err := c.Ping(func() { answered <- i }); err != nil {
				t.Fatal(err)
			}
			c.Flush()
			expect[*packet.Pingreq](s)
		}
		for _, want := range []int{-1, 0, 1, -1} { // the last is one too many
			s.send(&packet.Pingresp{})
			synctest.Wait()
			got := -1
			select {
			case got = <-answered:
			default:
			}
			if got != want {
				t.Errorf("PINGRESP answers %d, want %d", got, want)
			}
		}
		s.nc.Close()
		<-result
		if err := c.Ping(func() { t.Error("answered after the end") }); !errors.Is(err, ErrClosed) {
			t.Errorf("Ping after the end = %v, want ErrClosed", err)
		}
	})
}

// The peer's side of the socket is full: a PINGREQ cannot go out, and the time
// for its answer has not begun.
func TestStuckWriteIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		defer far.Close()
		go func() {
			b := make([]byte, 1000)
			_, _ = far.Read(b)
			_, _ = far.Write([]byte{0x20, 3, 0, 0, 0}) // and reads nothing more
		}()
		c, err := NewConn(t.Context(), near, Options{KeepAlive: 10 * time.Second, WriteTimeout: 15 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		result := running(c, nil)
		if err := c.Queue(&packet.Publish{Topic: []byte("a")}); err != nil {
			t.Fatal(err)
		}
		c.Flush()
		err = <-result
		if d := time.Since(start); !errors.Is(err, os.ErrDeadlineExceeded) || d > 17*time.Second {
			t.Errorf("Run = %v after %v, want a write timeout after 15s", err, d)
		}
		if err := c.Queue(&packet.Pingreq{}); !errors.Is(err, ErrClosed) {
			t.Errorf("Queue after the end = %v, want ErrClosed", err)
		}
	})
}

func TestSlowWriteIsNotStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		go func() {
			b := make([]byte, 1000)
			_, _ = far.Read(b)
			_, _ = far.Write([]byte{0x20, 3, 0, 0, 0})
		}()
		c, err := NewConn(t.Context(), near, Options{KeepAlive: 10 * time.Second, WriteTimeout: 15 * time.Second, PingTimeout: 5 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		result := running(c, nil)
		const size = 300 << 10
		if err := c.Queue(&packet.Publish{Topic: []byte("a"), Payload: make([]byte, size)}); err != nil {
			t.Fatal(err)
		}
		c.Flush()
		got := 0
		for b := make([]byte, writeChunk); got < size; { // 1.6 KiB/s
			n, err := far.Read(b)
			if err != nil {
				t.Fatalf("after %d bytes and much time: %v; Run = %v", got, err, <-result)
			}
			got += n
			<-time.After(10 * time.Second)
		}
		c.Abort()
		far.Close()
		<-result
	})
}

func TestServerSaysWhyItEndsTheConnection(t *testing.T) {
	c, s := dialPipe(t, Options{}, &packet.Connack{})
	result := running(c, nil)
	s.send(&packet.Disconnect{Reason: packet.ReasonSessionTakenOver, Properties: packet.Properties{ReasonString: "you again"}})
	err := <-result
	e, ok := errors.AsType[*DisconnectError](err)
	if !ok || e.Reason != packet.ReasonSessionTakenOver || e.ReasonString != "you again" {
		t.Errorf("Run = %v, want a DisconnectError with 0x8E", err)
	}
}

// The server says why and closes while we are writing: its word is worth more
// than our broken pipe.
func TestServersReasonOutlivesAFailedWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		half := &deafConn{Conn: near}
		go func() {
			b := make([]byte, 1000)
			_, _ = far.Read(b)
			_, _ = far.Write([]byte{0x20, 3, 0, 0, 0})
		}()
		c, err := NewConn(t.Context(), half, Options{})
		if err != nil {
			t.Fatal(err)
		}
		half.deaf.Store(true)
		result := running(c, nil)
		if err := c.Queue(&packet.Pingreq{}); err != nil {
			t.Fatal(err)
		}
		c.Flush()
		synctest.Wait()
		_, _ = far.Write([]byte{0xe0, 2, 0x8b, 0})
		far.Close()
		if e, ok := errors.AsType[*DisconnectError](<-result); !ok || e.Reason != packet.ReasonServerShuttingDown {
			t.Errorf("Run = %v, want the server's reason", e)
		}
	})
}

func TestProtocolErrorsAreTold(t *testing.T) {
	pub := func(p packet.Publish) packet.Packet { return &p }
	tests := map[string]struct {
		opts   Options
		send   []packet.Packet
		reason packet.ReasonCode
	}{
		"a packet only clients send": {send: []packet.Packet{&packet.Pingreq{}}, reason: packet.ReasonProtocolError},
		"second CONNACK":             {send: []packet.Packet{&packet.Connack{}}, reason: packet.ReasonProtocolError},
		"AUTH out of the blue":       {send: []packet.Packet{&packet.Auth{Reason: packet.ReasonContinueAuthentication, Properties: packet.Properties{AuthMethod: "m"}}}, reason: packet.ReasonProtocolError},
		"wildcard in a topic":        {send: []packet.Packet{pub(packet.Publish{Topic: []byte("a/#")})}, reason: packet.ReasonTopicNameInvalid},
		"alias without any allowed":  {send: []packet.Packet{pub(packet.Publish{Topic: []byte("a"), TopicAlias: 1})}, reason: packet.ReasonTopicAliasInvalid},
		"alias too large":            {opts: Options{TopicAliasMaximum: 2}, send: []packet.Packet{pub(packet.Publish{Topic: []byte("a"), TopicAlias: 3})}, reason: packet.ReasonTopicAliasInvalid},
		"alias for nothing":          {opts: Options{TopicAliasMaximum: 2}, send: []packet.Packet{pub(packet.Publish{TopicAlias: 2})}, reason: packet.ReasonTopicAliasInvalid},
		"too large":                  {opts: Options{MaximumPacketSize: 100}, send: []packet.Packet{pub(packet.Publish{Topic: []byte("a"), Payload: make([]byte, 100)})}, reason: packet.ReasonPacketTooLarge},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c, s := dialPipe(t, tt.opts, &packet.Connack{})
			result := running(c, nil)
			go s.send(tt.send...)
			if got := expect[*packet.Disconnect](s); got.Reason != tt.reason {
				t.Errorf("DISCONNECT reason = %s, want %s", got.Reason, tt.reason)
			}
			s.nc.Close()
			if e, ok := errors.AsType[*packet.Error](<-result); !ok || e.Reason != tt.reason {
				t.Errorf("Run = %v, want a packet.Error with %s", e, tt.reason)
			}
		})
	}
}

func TestOldServersAreNotTold(t *testing.T) {
	c, s := dialPipe(t, Options{Version: packet.V311}, &packet.Connack{})
	result := running(c, nil)
	s.send(&packet.Disconnect{}) // not for a server to send in 3.1.1
	if err := <-result; !errors.Is(err, packet.ErrProtocol) {
		t.Errorf("Run = %v, want ErrProtocol", err)
	}
	s.wantClosed()
}

func TestHandlersErrorEndsTheConnection(t *testing.T) {
	c, s := dialPipe(t, Options{}, &packet.Connack{})
	boom := errors.New("boom")
	result := running(c, func(packet.Packet) error { return boom })
	s.send(&packet.Publish{Topic: []byte("a")})
	if err := <-result; !errors.Is(err, boom) {
		t.Errorf("Run = %v, want the handler's error", err)
	}
	if err := c.Run(t.Context(), nil); !errors.Is(err, ErrClosed) {
		t.Errorf("second Run = %v, want ErrClosed", err)
	}
	s.wantClosed()
}

func TestRunEndsWithItsContext(t *testing.T) {
	c, s := dialPipe(t, Options{}, &packet.Connack{})
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	go cancel(enough)
	if err := c.Run(ctx, nil); !errors.Is(err, enough) {
		t.Errorf("Run = %v, want the context's cause", err)
	}
	s.wantClosed()
}

func TestTopicAliasesOfTheServer(t *testing.T) {
	c, s := dialPipe(t, Options{TopicAliasMaximum: 2}, &packet.Connack{})
	topics := make(chan string, 10)
	result := running(c, func(p packet.Packet) error {
		topics <- string(p.(*packet.Publish).Topic)
		return nil
	})
	s.send(
		&packet.Publish{Topic: []byte("one"), TopicAlias: 1},
		&packet.Publish{Topic: []byte("two"), TopicAlias: 2},
		&packet.Publish{TopicAlias: 1},
		&packet.Publish{TopicAlias: 2},
		&packet.Publish{Topic: []byte("uno"), TopicAlias: 1},
		&packet.Publish{TopicAlias: 1},
	)
	for _, want := range []string{"one", "two", "one", "two", "uno", "uno"} {
		if got := <-topics; got != want {
			t.Errorf("topic = %q, want %q", got, want)
		}
	}
	c.Abort()
	<-result
}

func TestAnswersGoOutTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		counted := &writeCounter{Conn: near}
		s := &fakeServer{t: t, nc: far, version: packet.V5, in: make(chan packet.Packet, 100), readErr: make(chan error, 1)}
		s.serve()
		go func() {
			<-s.in
			s.send(&packet.Connack{})
		}()
		c, err := NewConn(t.Context(), counted, Options{})
		if err != nil {
			t.Fatal(err)
		}
		handled := 0
		c.Handled(func() { handled++ })
		result := running(c, func(p packet.Packet) error { return c.Queue(&packet.Puback{PacketID: p.(*packet.Publish).PacketID}) })
		before := counted.writes.Load()
		ps := make([]packet.Packet, 50)
		for i := range ps {
			ps[i] = &packet.Publish{Topic: []byte("a"), QoS: 1, PacketID: uint16(i + 1)}
		}
		s.send(ps...)
		for i := range ps {
			if got := expect[*packet.Puback](s); got.PacketID != uint16(i+1) {
				t.Errorf("PUBACK %d, want %d", got.PacketID, i+1)
			}
		}
		synctest.Wait()
		if got := counted.writes.Load() - before; got != 1 {
			t.Errorf("50 answers went out in %d writes, want 1", got)
		}
		if handled != 1 {
			t.Errorf("told %d times that all was handled, want once", handled)
		}
		c.Abort()
		far.Close()
		<-result
		if handled != 2 {
			t.Errorf("not told that nothing more will be read")
		}
	})
}

func TestOutputIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		drained := make(chan struct{}, 10)
		near, far := net.Pipe()
		go func() {
			b := make([]byte, 1000)
			_, _ = far.Read(b)
			_, _ = far.Write([]byte{0x20, 3, 0, 0, 0})
		}()
		c, err := NewConn(t.Context(), near, Options{OutputLimit: 10_000, Drained: func() { drained <- struct{}{} }})
		if err != nil {
			t.Fatal(err)
		}
		result := running(c, nil)
		big := &packet.Publish{Topic: []byte("a"), Payload: make([]byte, 20_000)}
		if err := c.Queue(big); err != nil {
			t.Errorf("Queue of a large packet into an empty output = %v", err)
		}
		c.Flush()
		synctest.Wait() // the writer has it and is stuck: it still counts
		if err := c.Queue(&packet.Publish{Topic: []byte("a")}); !errors.Is(err, ErrOutputFull) {
			t.Errorf("Queue of a PUBLISH into a full output = %v, want ErrOutputFull", err)
		}
		if err := c.Queue(&packet.Puback{PacketID: 1}); err != nil {
			t.Errorf("Queue of an answer into a full output = %v", err)
		}
		var full error
		n := 0
		for ; full == nil && n < 1_000_000; n++ {
			full = c.Queue(&packet.Puback{PacketID: 1})
		}
		if !errors.Is(full, ErrOutputFull) {
			t.Errorf("%d answers were queued and none refused", n)
		}
		select {
		case <-drained:
			t.Error("Drained was called while nothing was written")
		default:
		}
		go func() {
			b := make([]byte, 4096)
			for {
				if _, err := far.Read(b); err != nil {
					return
				}
			}
		}()
		<-drained
		if err := c.Queue(&packet.Publish{Topic: []byte("a")}); err != nil {
			t.Errorf("Queue after Drained = %v", err)
		}
		c.Abort()
		<-result
		far.Close()
		if err := c.Queue(big); !errors.Is(err, ErrClosed) {
			t.Errorf("Queue after Abort = %v, want ErrClosed", err)
		}
	})
}

func TestServersMaximumPacketSize(t *testing.T) {
	c, _ := dialPipe(t, Options{}, &packet.Connack{Properties: packet.Properties{MaximumPacketSize: 50}})
	defer c.Abort()
	if err := c.Queue(&packet.Publish{Topic: []byte("a"), Payload: make([]byte, 50)}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("Queue = %v, want ErrTooLarge", err)
	}
	if err := c.Queue(&packet.Publish{Topic: []byte("a"), Payload: make([]byte, 20)}); err != nil {
		t.Errorf("Queue of a small one = %v", err)
	}
	if err := c.Queue(&packet.Publish{Topic: bytes.Repeat([]byte("a"), 70_000)}); err == nil {
		t.Error("Queue of what cannot be encoded = nil")
	}
}

func TestCloseSendsWhatIsQueuedFirst(t *testing.T) {
	for _, v := range []packet.Version{packet.V5, packet.V311} {
		t.Run(v.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, s := dialPipe(t, Options{Version: v}, &packet.Connack{})
				result := running(c, nil)
				for i := range 100 {
					if err := c.Queue(&packet.Publish{Topic: fmt.Appendf(nil, "a/%d", i)}); err != nil {
						t.Fatal(err)
					}
				}
				go func() {
					for range 100 {
						expect[*packet.Publish](s)
					}
					expect[*packet.Disconnect](s)
					s.nc.Close()
				}()
				if err := c.Close(t.Context(), packet.ReasonSuccess); err != nil {
					t.Errorf("Close = %v", err)
				}
				if err := <-result; err == nil {
					t.Error("Run = nil")
				}
				if err := c.Close(t.Context(), packet.ReasonSuccess); !errors.Is(err, ErrClosed) {
					t.Errorf("second Close = %v, want ErrClosed", err)
				}
			})
		})
	}
}

func TestCloseDoesNotWaitForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := dialPipe(t, Options{}, &packet.Connack{})
		result := running(c, func(p packet.Packet) error { return c.Queue(&packet.Puback{PacketID: p.(*packet.Publish).PacketID}) })
		synctest.Wait()
		start := time.Now()
		go func() {
			expect[*packet.Disconnect](s) // but the server does not close
			s.send(&packet.Publish{Topic: []byte("a"), QoS: 1, PacketID: 1})
		}()
		if err := c.Close(t.Context(), packet.ReasonSuccess); err != nil || time.Since(start) != lastWords {
			t.Errorf("Close = %v after %v, want nil after %v", err, time.Since(start), lastWords)
		}
		if err := <-result; !errors.Is(err, ErrClosed) {
			t.Errorf("Run = %v, want ErrClosed", err)
		}

		near, far := net.Pipe() // a peer that reads nothing
		go func() {
			b := make([]byte, 1000)
			_, _ = far.Read(b)
			_, _ = far.Write([]byte{0x20, 3, 0, 0, 0})
		}()
		stuck, err := NewConn(t.Context(), near, Options{})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		if err := stuck.Close(ctx, packet.ReasonSuccess); err == nil {
			t.Error("Close to a peer that reads nothing = nil")
		}
		far.Close()
	})
}

func TestCloseWithoutRun(t *testing.T) {
	c, s := dialPipe(t, Options{}, &packet.Connack{})
	if err := c.Close(t.Context(), packet.ReasonSuccess); err != nil {
		t.Errorf("Close = %v", err)
	}
	expect[*packet.Disconnect](s)
	s.wantClosed()
	if err := c.Run(t.Context(), nil); !errors.Is(err, ErrClosed) {
		t.Errorf("Run after Close = %v, want ErrClosed", err)
	}
}

// The will is for the server to publish: 3.1.1 can say so only by closing.
func TestCloseWithWill(t *testing.T) {
	c, s := dialPipe(t, Options{}, &packet.Connack{})
	if err := c.Close(t.Context(), packet.ReasonDisconnectWithWill); err != nil {
		t.Errorf("Close = %v", err)
	}
	if got := expect[*packet.Disconnect](s); got.Reason != packet.ReasonDisconnectWithWill {
		t.Errorf("DISCONNECT reason = %s, want 0x04", got.Reason)
	}
	old, s := dialPipe(t, Options{Version: packet.V311}, &packet.Connack{})
	if err := old.Close(t.Context(), packet.ReasonDisconnectWithWill); err != nil {
		t.Errorf("Close = %v", err)
	}
	s.wantClosed()
}
