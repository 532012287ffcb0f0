package client

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker/message"
	"holdfast/broker/packet"
)

// fakeServer is the other end of a pipe, played by the test step by step. What
// the client writes is taken off the pipe at all times, so that writes on
// either side never wait for the test.
type fakeServer struct {
	t       testing.TB
	nc      net.Conn
	version packet.Version
	in      chan packet.Packet
	readErr chan error
}

// pipe returns a server and the connection for its client. The connection
// closes with the test.
func pipe(tb testing.TB, v packet.Version) (*fakeServer, net.Conn) {
	tb.Helper()
	near, far := net.Pipe()
	s := &fakeServer{t: tb, nc: far, version: v, in: make(chan packet.Packet, 1000), readErr: make(chan error, 1)}
	tb.Cleanup(func() { near.Close(); far.Close() })
	return s, near
}

// serve begins to read.
func (s *fakeServer) serve() {
	go func() {
		r := packet.NewReader(s.nc, 4096)
		r.SetVersion(s.version)
		for {
			p, err := r.Next()
			if err != nil {
				s.readErr <- err
				close(s.in)
				return
			}
			if pub, ok := p.(*packet.Publish); ok {
				own := *pub
				own.Topic = append([]byte(nil), pub.Topic...)
				own.Payload = append([]byte(nil), pub.Payload...)
				own.Properties = append([]byte(nil), pub.Properties...)
				p = &own
			} else {
				b, err := p.AppendTo(nil, s.version)
				if err != nil {
					s.readErr <- err
					return
				}
				if p, err = packet.Decode(b, s.version, nil); err != nil {
					s.readErr <- err
					return
				}
			}
			s.in <- p
		}
	}()
}

func (s *fakeServer) send(ps ...packet.Packet) {
	s.t.Helper()
	var b []byte
	for _, p := range ps {
		var err error
		if b, err = p.AppendTo(b, s.version); err != nil {
			s.t.Fatalf("encode %s: %v", p.Type(), err)
		}
	}
	s.write(b)
}

func (s *fakeServer) write(b []byte) {
	s.t.Helper()
	if _, err := s.nc.Write(b); err != nil {
		s.t.Errorf("server writes % x: %v", b, err)
	}
}

// expect waits for the next packet, which must be of type P.
func expect[P packet.Packet](s *fakeServer) P {
	s.t.Helper()
	p, ok := <-s.in
	if !ok {
		s.t.Fatalf("connection ended, want %T", *new(P))
	}
	got, ok := p.(P)
	if !ok {
		s.t.Fatalf("server got %s, want %T", p.Type(), *new(P))
	}
	return got
}

// nothingMore fails when a packet is on its way, in a synctest bubble.
func (s *fakeServer) nothingMore() {
	s.t.Helper()
	synctest.Wait()
	select {
	case p, ok := <-s.in:
		if ok {
			s.t.Fatalf("server got %s, want nothing", p.Type())
		}
	default:
	}
}

func (s *fakeServer) wantClosed() {
	s.t.Helper()
	for p := range s.in {
		s.t.Errorf("server got %s, want the end", p.Type())
	}
	if err := <-s.readErr; !errors.Is(err, io.EOF) {
		s.t.Errorf("connection ended with %v, want EOF", err)
	}
}

// dialPipe connects to a fake server that answers ack.
func dialPipe(tb testing.TB, o Options, ack *packet.Connack) (*Conn, *fakeServer) {
	tb.Helper()
	v := o.Version
	if v == 0 {
		v = packet.V5
	}
	if v == packet.V311 && o.ClientID == "" {
		o.ClientID = "c"
	}
	s, nc := pipe(tb, v)
	s.serve()
	go func() {
		if _, ok := <-s.in; ok {
			s.send(ack)
		}
	}()
	c, err := NewConn(tb.Context(), nc, o)
	if err != nil {
		tb.Fatalf("NewConn: %v", err)
	}
	return c, s
}

// running starts c.Run with a handler, which may be nil, and returns where its
// result comes.
func running(c *Conn, handler func(packet.Packet) error) <-chan error {
	if handler == nil {
		handler = func(packet.Packet) error { return nil }
	}
	result := make(chan error, 1)
	go func() { result <- c.Run(context.Background(), handler) }()
	return result
}

// clientOn is Connect with a fake server in place of the network.
func clientOn(tb testing.TB, o Options, ack *packet.Connack, onMessage func(Message)) (*Client, *fakeServer) {
	tb.Helper()
	var s *fakeServer
	c, err := connect(tb.Context(), o, onMessage, func(o Options) (*Conn, error) {
		var conn *Conn
		conn, s = dialPipe(tb, o, ack)
		return conn, nil
	})
	if err != nil {
		tb.Fatalf("connect: %v", err)
	}
	return c, s
}

func msg(topic, payload string, qos byte) *message.Message {
	return &message.Message{Topic: topic, Payload: []byte(payload), QoS: qos, Received: time.Now()}
}

func want[T any](tb testing.TB, ch <-chan T, what string) T {
	tb.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(10 * time.Second): // of fake time in a bubble
		tb.Fatalf("%s did not come", what)
		panic("unreachable")
	}
}
