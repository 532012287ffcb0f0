package broker_test

import (
	"context"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker"
	"holdfast/broker/brokertest"
	"holdfast/broker/packet"
)

// rules are sentences about what a broker does, each played against one. The
// tables in testdata/statements say which statements of the specifications a
// sentence proves. They are played over pipes, in fake time, and again over TCP on
// readiness loops; with loops turned off that is a goroutine for each connection.
type rules map[string]rule

// rule is one sentence, in the versions it is about.
type rule struct {
	versions []packet.Version // nil: all
	options  func(*broker.Options)
	play     func(s *scene)
	// beyond says that no numbered statement asks for it.
	beyond bool
	// pipesOnly says that it needs fake time, or a broker that is held up: it is
	// not played on a readiness loop.
	pipesOnly bool
}

var (
	since311 = []packet.Version{packet.V311, packet.V5}
	only31   = []packet.Version{packet.V31}
	only5    = []packet.Version{packet.V5}
)

func (rs rules) test(t *testing.T) {
	t.Helper()
	for sentence, r := range rs {
		versions := r.versions
		if versions == nil {
			versions = []packet.Version{packet.V31, packet.V311, packet.V5}
		}
		t.Run(sentence, func(t *testing.T) {
			for _, v := range versions {
				t.Run(v.String(), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						s := &scene{T: t, v: v, gate: new(gate)}
						s.b = brokertest.New(t, nil, r.change(s.gate))
						r.play(s)
					})
				})
				if r.pipesOnly {
					continue
				}
				t.Run(v.String()+" on a loop", func(t *testing.T) {
					s := &scene{T: t, v: v, gate: new(gate), loop: true}
					s.b = brokertest.Start(t, nil, r.change(s.gate))
					r.play(s)
				})
			}
		})
	}
}

func (r rule) change(g *gate) func(*broker.Options) {
	return func(o *broker.Options) {
		o.Auth = g
		if r.options != nil {
			r.options(o)
		}
	}
}

// scene is a broker and the version its clients speak.
type scene struct {
	*testing.T

	b    *brokertest.Broker
	v    packet.Version
	gate *gate
	// loop says that it is played over TCP on readiness loops, in real time.
	loop    bool
	clients []*brokertest.Client // those that were let in
}

// dial is a connection to the broker.
func (s *scene) dial() net.Conn {
	if s.loop {
		return s.b.Dial(s.T)
	}
	return s.b.Pipe()
}

// settle returns when nothing is left to do. On a loop that is when each client
// has had an answer, none of them, nor the store, was up to anything else, and
// nobody catches up with the store in a goroutine of its own.
func (s *scene) settle() {
	s.Helper()
	if !s.loop {
		synctest.Wait()
		return
	}
	late := time.Now().Add(10 * time.Second)
	for quiet := 0; quiet < 2; {
		if time.Now().After(late) {
			s.Fatalf("it does not come to rest: %+v", s.b.Status())
		}
		s.b.Store.Settle()
		pumping := s.b.Pumping()
		open, received := 0, 0
		for _, c := range s.clients {
			before := c.Received()
			if c.Ping() {
				open++
			}
			received += c.Received() - before
		}
		if st := s.b.Status(); received == 0 && !pumping && !s.b.Pumping() && st.Clients == open && st.Handshakes == 0 {
			quiet++
		} else {
			quiet = 0
		}
	}
}

// gate is an Auth that lets everybody do everything, until told otherwise.
type gate struct {
	mu     sync.Mutex
	refuse packet.ReasonCode // answer to CONNECT
	deny   string            // topic nobody has a right to
	hold   chan struct{}     // publishing to "hold" waits for it to close
}

func (g *gate) set(change func(*gate)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	change(g)
}

// refuseWith answers CONNECT packets with that reason from now on.
func (s *scene) refuseWith(r packet.ReasonCode) { s.gate.set(func(g *gate) { g.refuse = r }) }

// closeTopic takes the rights to the topic "denied" from everybody.
func (s *scene) closeTopic() { s.gate.set(func(g *gate) { g.deny = "denied" }) }

// holdTopic has whoever publishes to "hold" wait until release is called.
func (s *scene) holdTopic() (release func()) {
	ch := make(chan struct{})
	s.gate.set(func(g *gate) { g.hold = ch })
	return func() { close(ch) }
}

func (g *gate) Authenticate(context.Context, broker.ConnInfo) (broker.Identity, packet.ReasonCode) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return broker.Identity{}, g.refuse
}

func (*gate) Exists(broker.Identity) bool { return true }

func (*gate) Elsewhere(broker.Identity) (string, bool) { return "", false }

func (g *gate) Authorize(_ broker.Identity, action broker.Action, topic string) bool {
	g.mu.Lock()
	deny, hold := g.deny, g.hold
	g.mu.Unlock()
	if topic == "hold" && action == broker.ActionPublish && hold != nil {
		<-hold
	}
	return deny == "" || topic != deny
}

// clean asks for a session that ends with the connection.
func (s *scene) clean(id string) *packet.Connect {
	return &packet.Connect{Version: s.v, ClientID: id, CleanStart: true}
}

// kept asks for a session that outlives the connection, and for the one there
// is.
func (s *scene) kept(id string) *packet.Connect { return brokertest.Keep(s.clean(id), 600) }

func (s *scene) connect(p *packet.Connect) *brokertest.Client {
	s.Helper()
	c := brokertest.Connect(s.T, s.dial(), p)
	s.clients = append(s.clients, c)
	s.settle()
	return c
}

// manual is connect, for a client that acknowledges only what the test does.
func (s *scene) manual(p *packet.Connect) *brokertest.Client {
	s.Helper()
	c := brokertest.Raw(s.T, s.dial(), p.Version)
	c.SetManual(true)
	if got := c.Try(p); got.Reason != 0 {
		s.Fatalf("CONNACK to %s: %v", p.ClientID, got.Reason)
	}
	s.clients = append(s.clients, c)
	s.settle()
	return c
}

// raw is a connection on which nothing has been sent.
func (s *scene) raw() *brokertest.Client {
	s.Helper()
	return brokertest.Raw(s.T, s.dial(), s.v)
}

// leave cuts the connection, and waits until the broker has noticed.
func (s *scene) leave(c *brokertest.Client) {
	s.Helper()
	c.Kill()
	s.settle()
}

// nothing says that the client has got nothing the test has not taken.
func (s *scene) nothing(c *brokertest.Client) {
	s.Helper()
	s.settle()
	if got := c.Silent(); len(got) > 0 {
		s.Errorf("got %v %v, want nothing", got[0].Type(), got[0])
	}
}

// payloads says that these messages came, in this order, and no others.
func (s *scene) payloads(c *brokertest.Client, want ...string) {
	s.Helper()
	if got := c.Messages(len(want)); strings.Join(got, "|") != strings.Join(want, "|") {
		s.Errorf("got %q, want %q", got, want)
	}
	s.nothing(c)
}

// ended says that the broker closed the connection, in 5.0 with that reason.
func (s *scene) ended(c *brokertest.Client, want packet.ReasonCode) {
	s.Helper()
	got, told := c.Ended()
	if told != (s.v == packet.V5) || told && got != want {
		s.Errorf("DISCONNECT %v (sent: %v), want %v", got, told, want)
	}
}

// ends says that a client that sends b loses its connection for that reason,
// and that its will is published.
func (s *scene) ends(what, b string, want packet.ReasonCode) {
	s.Helper()
	watch := s.connect(s.clean("watch"))
	watch.Subscribe(0, "will")
	p := s.clean("bad")
	p.Will = &packet.Will{Topic: "will", Payload: []byte("dead")}
	c := s.connect(p)
	c.SendBytes([]byte(b))
	got, told := c.Ended()
	if told != (s.v == packet.V5) || told && got != want {
		s.Errorf("%s: DISCONNECT %v (sent: %v), want %v", what, got, told, want)
	}
	s.payloads(watch, "dead")
	watch.Disconnect(0)
}

func equal[T comparable](s *scene, what string, got, want T) {
	s.Helper()
	if got != want {
		s.Errorf("%s is %v, want %v", what, got, want)
	}
}

// text is a UTF-8 string in wire form.
func text(s string) string { return string([]byte{byte(len(s) >> 8), byte(len(s))}) + s }

// frame is a small packet in wire form.
func frame(first byte, body string) []byte {
	return append([]byte{first, byte(len(body))}, body...)
}
