package client

import (
	"errors"
	"net"
	"testing"
	"testing/synctest"

	"holdfast/broker/packet"
	"holdfast/broker/scram"
)

// scramServer plays a server that knows the keys, and does one thing wrong.
type scramServer struct {
	keys    scram.Keys
	method  string                  // of its packets
	end     packet.Packet           // in place of the CONNACK
	connack func(p *packet.Connack) // changes it
	early   bool                    // proves itself in an AUTH of its own
}

func (x *scramServer) auth(data []byte) *packet.Auth {
	p := &packet.Auth{Reason: packet.ReasonContinueAuthentication}
	p.Properties.AuthMethod, p.Properties.AuthData = x.method, data
	return p
}

func (x *scramServer) play(t *testing.T, nc net.Conn) {
	t.Helper()
	s := &fakeServer{t: t, nc: nc, version: packet.V5, in: make(chan packet.Packet, 100), readErr: make(chan error, 1)}
	s.serve()
	send := func(p packet.Packet) {
		b, err := p.AppendTo(nil, packet.V5)
		if err != nil {
			t.Error(err)
		}
		_, _ = nc.Write(b)
	}
	defer nc.Close()
	hello, ok := (<-s.in).(*packet.Connect)
	if !ok || hello.HasPassword || hello.HasUsername {
		t.Errorf("CONNECT %v has a user name or password", hello)
		return
	}
	side, err := scram.Begin(hello.Properties.AuthData)
	if err != nil || hello.Properties.AuthMethod != scram.Name {
		t.Errorf("CONNECT with %q: %v", hello.Properties.AuthMethod, err)
		return
	}
	send(x.auth(side.Challenge(x.keys)))
	answer, ok := (<-s.in).(*packet.Auth)
	if !ok {
		return // the client has hung up
	}
	proof, err := side.Finish(answer.Properties.AuthData)
	if err != nil {
		t.Error(err)
	}
	if x.early {
		send(x.auth(proof))
		proof = nil
		<-s.in
	}
	ack := &packet.Connack{}
	ack.Properties.AuthMethod, ack.Properties.AuthData = x.method, proof
	if x.connack != nil {
		x.connack(ack)
	}
	if x.end != nil {
		send(x.end)
	} else {
		send(ack)
	}
	<-s.readErr
}

func TestSCRAMServers(t *testing.T) {
	keys, err := scram.Derive([]byte("hunter2"), []byte("salt"), scram.MinIterations)
	if err != nil {
		t.Fatal(err)
	}
	success := &packet.Auth{}
	success.Properties.AuthMethod = scram.Name
	tests := map[string]struct {
		server scramServer
		is     error             // what the error is
		reason packet.ReasonCode // or its code
	}{
		"one that does it right":               {server: scramServer{}},
		"one that proves itself early":         {server: scramServer{early: true}},
		"one that proves nothing":              {server: scramServer{connack: func(p *packet.Connack) { p.Properties.AuthData = nil }}, is: scram.ErrServer},
		"one that proves something else":       {server: scramServer{connack: func(p *packet.Connack) { p.Properties.AuthData = []byte("v=AAAA") }}, is: scram.ErrServer},
		"one that forgets the method":          {server: scramServer{connack: func(p *packet.Connack) { p.Properties.AuthMethod, p.Properties.AuthData = "", nil }}, reason: packet.ReasonBadAuthenticationMethod},
		"one of another method":                {server: scramServer{method: "PLAIN"}, reason: packet.ReasonBadAuthenticationMethod},
		"one that ends it with an AUTH":        {server: scramServer{end: success}, reason: packet.ReasonProtocolError},
		"one that sends something else":        {server: scramServer{end: &packet.Pingresp{}}, reason: packet.ReasonProtocolError},
		"one that goes on asking":              {server: scramServer{early: true, end: (&scramServer{method: scram.Name}).auth([]byte("x"))}, reason: packet.ReasonProtocolError},
		"one that asks for a single iteration": {server: scramServer{keys: scram.Keys{Salt: []byte("salt"), Iterations: 1}}, is: scram.ErrMessage},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := tt.server
				setDefault(&x.method, scram.Name)
				if x.keys.Iterations == 0 {
					x.keys = keys
				}
				near, far := net.Pipe()
				over := make(chan struct{})
				go func() { defer close(over); x.play(t, far) }()
				c, err := NewConn(t.Context(), near, Options{Username: "pump", Password: "hunter2", SCRAM: true, CleanStart: true})
				if err == nil {
					c.Abort()
				}
				near.Close()
				<-over
				wire, _ := errors.AsType[*packet.Error](err)
				switch {
				case tt.is == nil && tt.reason == 0 && err != nil, tt.is != nil && !errors.Is(err, tt.is),
					tt.reason != 0 && (wire == nil || wire.Reason != tt.reason):
					t.Errorf("NewConn: %v, want %v %v", err, tt.is, tt.reason)
				}
			})
		})
	}
}

func TestSCRAMOptions(t *testing.T) {
	for name, o := range map[string]Options{
		"3.1.1":        {SCRAM: true, Version: packet.V311, Username: "pump", Password: "x"},
		"no user name": {SCRAM: true, Password: "x"},
		"no password":  {SCRAM: true, Username: "pump"},
	} {
		near, far := net.Pipe()
		if _, err := NewConn(t.Context(), near, o); err == nil {
			t.Errorf("%s: NewConn takes it", name)
		}
		far.Close()
	}
	s, near := pipe(t, packet.V5)
	s.serve()
	go func() {
		<-s.in
		b, err := (&packet.Connack{}).AppendTo(nil, packet.V5)
		if err != nil {
			t.Error(err)
		}
		_, _ = s.nc.Write(b)
	}()
	c, err := NewConn(t.Context(), near, Options{CleanStart: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Abort()
	if err := c.Reauthenticate(t.Context()); !errors.Is(err, ErrNoSCRAM) {
		t.Errorf("Reauthenticate: %v, want ErrNoSCRAM", err)
	}
}
