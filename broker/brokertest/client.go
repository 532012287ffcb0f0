package brokertest

import (
	"bytes"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"holdfast/broker/packet"
)

// Client records what a broker sends it, and sends whatever a test tells it
// to, right or wrong. It acknowledges by itself until [Client.SetManual].
type Client struct {
	// Connack is the broker's answer, once Connect has returned.
	Connack *packet.Connack

	tb      testing.TB
	nc      net.Conn
	version packet.Version
	// write holds one value while somebody writes: a bubble's time goes on while
	// others wait for that, as it would not with a mutex.
	write chan struct{}

	mu     sync.Mutex
	news   sync.Cond
	manual bool            // guarded by mu
	inbox  []packet.Packet // guarded by mu
	err    error           // guarded by mu; why reading ended
	lastID uint16          // guarded by mu
	done   chan struct{}
}

// Raw returns a client on a connection that has sent nothing yet. It closes
// with the test.
func Raw(tb testing.TB, nc net.Conn, v packet.Version) *Client {
	tb.Helper()
	c := &Client{tb: tb, nc: nc, version: v, write: make(chan struct{}, 1), done: make(chan struct{})}
	c.news.L = &c.mu
	go c.readLoop()
	tb.Cleanup(c.Kill)
	return c
}

// Connect sends a CONNECT and waits for the CONNACK, which must be a success.
func Connect(tb testing.TB, nc net.Conn, p *packet.Connect) *Client {
	tb.Helper()
	c := Raw(tb, nc, p.Version)
	if got := c.Try(p); got.Reason != packet.ReasonSuccess {
		tb.Fatalf("CONNACK to %q: %v", p.ClientID, got.Reason)
	}
	return c
}

// Try sends a CONNECT and returns the CONNACK.
func (c *Client) Try(p *packet.Connect) *packet.Connack {
	c.tb.Helper()
	c.Send(p)
	c.Connack, _ = c.Take(packet.TypeConnack).(*packet.Connack)
	return c.Connack
}

// V5 and V4 return the CONNECT packets most tests want: a clean session.
func V5(clientID string) *packet.Connect {
	return &packet.Connect{Version: packet.V5, ClientID: clientID, CleanStart: true}
}

// V4 is V5 for MQTT 3.1.1.
func V4(clientID string) *packet.Connect {
	return &packet.Connect{Version: packet.V311, ClientID: clientID, CleanStart: true}
}

// Keep makes a CONNECT ask for a session that outlives the connection by that
// many seconds, and take up one that is there. For 3.x it lives for ever.
func Keep(p *packet.Connect, seconds uint32) *packet.Connect {
	p.CleanStart = false
	if p.Version == packet.V5 {
		p.Properties.SessionExpiry = &seconds
	}
	return p
}

// SetManual leaves acknowledging to the test, or takes it back. PUBREL packets
// are recorded then, too.
func (c *Client) SetManual(manual bool) {
	c.mu.Lock()
	c.manual = manual
	c.mu.Unlock()
}

func (c *Client) readLoop() {
	defer close(c.done)
	r := packet.NewReader(c.nc, 4096)
	r.SetVersion(c.version)
	for {
		p, err := r.Next()
		c.mu.Lock()
		if err != nil {
			c.err = err
			c.news.Broadcast()
			c.mu.Unlock()
			return
		}
		answer, hide := c.answerLocked(p)
		if !hide {
			c.inbox = append(c.inbox, clone(p))
			c.news.Broadcast()
		}
		c.mu.Unlock()
		if answer != nil {
			_ = c.send(answer) // a broken connection shows in reading
		}
	}
}

func (c *Client) answerLocked(p packet.Packet) (answer packet.Packet, hide bool) {
	if c.manual {
		return nil, false
	}
	switch p := p.(type) {
	case *packet.Publish:
		switch p.QoS {
		case 1:
			return &packet.Puback{PacketID: p.PacketID}, false
		case 2:
			return &packet.Pubrec{PacketID: p.PacketID}, false
		}
	case *packet.Pubrel:
		return &packet.Pubcomp{PacketID: p.PacketID}, true
	}
	return nil, false
}

// clone copies what a Reader uses again.
func clone(p packet.Packet) packet.Packet {
	switch p := p.(type) {
	case *packet.Publish:
		return &packet.Publish{
			Dup: p.Dup, QoS: p.QoS, Retain: p.Retain, PacketID: p.PacketID,
			Topic: bytes.Clone(p.Topic), TopicAlias: p.TopicAlias,
			HasExpiry: p.HasExpiry, MessageExpiry: p.MessageExpiry,
			SubscriptionIDs: slices.Clone(p.SubscriptionIDs),
			Properties:      bytes.Clone(p.Properties), Payload: bytes.Clone(p.Payload),
		}
	case *packet.Puback:
		q := *p
		return &q
	case *packet.Pubrec:
		q := *p
		return &q
	case *packet.Pubrel:
		q := *p
		return &q
	case *packet.Pubcomp:
		q := *p
		return &q
	}
	return p
}

func (c *Client) send(p packet.Packet) error {
	b, err := p.AppendTo(nil, c.version)
	if err != nil {
		return err
	}
	return c.sendBytes(b)
}

func (c *Client) sendBytes(b []byte) error {
	c.write <- struct{}{}
	defer func() { <-c.write }()
	_, err := c.nc.Write(b)
	return err
}

// Send sends a packet.
func (c *Client) Send(ps ...packet.Packet) {
	c.tb.Helper()
	var b []byte
	for _, p := range ps {
		var err error
		if b, err = p.AppendTo(b, c.version); err != nil {
			c.tb.Fatalf("encode %v: %v", p.Type(), err)
		}
	}
	if err := c.sendBytes(b); err != nil {
		c.tb.Fatalf("send %v: %v", ps[0].Type(), err)
	}
}

// SendBytes sends whatever is wanted; that the broker has hung up is no error.
func (c *Client) SendBytes(b []byte) { _ = c.sendBytes(b) }

// wait waits until found says so; it fails the test after patience, or when
// the connection ends first.
func (c *Client) wait(what string, found func() bool) {
	c.tb.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.waitLocked(what, found) {
		c.tb.Fatalf("waiting for %s: got %v, connection error: %v", what, describe(c.inbox), c.err)
	}
}

// waitLocked is wait that returns false when the connection ends first.
func (c *Client) waitLocked(what string, found func() bool) bool {
	c.tb.Helper()
	late := false
	timer := time.AfterFunc(patience, func() {
		c.mu.Lock()
		late = true
		c.news.Broadcast()
		c.mu.Unlock()
	})
	defer timer.Stop()
	for !found() {
		switch {
		case c.err != nil:
			return false
		case late:
			c.tb.Fatalf("waiting for %s: got %v", what, describe(c.inbox))
		}
		c.news.Wait()
	}
	return true
}

func describe(ps []packet.Packet) []string {
	var all []string
	for _, p := range ps {
		s := p.Type().String()
		if x, ok := p.(*packet.Disconnect); ok {
			s += fmt.Sprintf(" %v %q", x.Reason, x.Properties.ReasonString)
		}
		all = append(all, s)
	}
	return all
}

// Received returns how many packets have come that no test has taken yet.
func (c *Client) Received() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.inbox)
}

// Take waits for the next packet of that type and returns it; others stay.
func (c *Client) Take(t packet.Type) packet.Packet {
	c.tb.Helper()
	var taken packet.Packet
	c.wait(t.String(), func() bool {
		for i, p := range c.inbox {
			if p.Type() == t {
				taken = p
				c.inbox = slices.Delete(c.inbox, i, i+1)
				return true
			}
		}
		return false
	})
	return taken
}

// Next waits for the next packet of any type.
func (c *Client) Next() packet.Packet {
	c.tb.Helper()
	var taken packet.Packet
	c.wait("a packet", func() bool {
		if len(c.inbox) == 0 {
			return false
		}
		taken = c.inbox[0]
		c.inbox = c.inbox[1:]
		return true
	})
	return taken
}

// Message waits for the next PUBLISH.
func (c *Client) Message() *packet.Publish {
	c.tb.Helper()
	p, _ := c.Take(packet.TypePublish).(*packet.Publish)
	return p
}

// Messages waits for n messages and returns their payloads.
func (c *Client) Messages(n int) []string {
	c.tb.Helper()
	var all []string
	for range n {
		all = append(all, string(c.Message().Payload))
	}
	return all
}

// Silent makes a round trip and returns what has come beside its PINGRESP.
// Whatever the broker had to say before has been said then, unless it waits
// for the store.
func (c *Client) Silent() []packet.Packet {
	c.tb.Helper()
	c.Send(&packet.Pingreq{})
	c.Take(packet.TypePingresp)
	c.mu.Lock()
	defer c.mu.Unlock()
	rest := c.inbox
	c.inbox = nil
	return rest
}

// Ping waits until the broker has answered all that was sent to it before; false if
// the connection has ended.
func (c *Client) Ping() bool {
	c.tb.Helper()
	answers := func() (n int) {
		for _, p := range c.inbox {
			if p.Type() == packet.TypePingresp {
				n++
			}
		}
		return n
	}
	c.mu.Lock()
	before := answers()
	c.mu.Unlock()
	if c.send(&packet.Pingreq{}) != nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.waitLocked("a PINGRESP", func() bool { return answers() > before }) {
		return false
	}
	for i := len(c.inbox) - 1; ; i-- {
		if c.inbox[i].Type() == packet.TypePingresp {
			c.inbox = slices.Delete(c.inbox, i, i+1)
			return true
		}
	}
}

// Rest returns the messages that have come and that no test has taken yet.
func (c *Client) Rest() []*packet.Publish {
	c.mu.Lock()
	defer c.mu.Unlock()
	var rest []*packet.Publish
	for _, p := range c.inbox {
		if p, ok := p.(*packet.Publish); ok {
			rest = append(rest, p)
		}
	}
	c.inbox = nil
	return rest
}

// All returns the packets of any type that have come and that no test has taken
// yet.
func (c *Client) All() []packet.Packet {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := c.inbox
	c.inbox = nil
	return all
}

// ID returns a packet id this client has not used.
func (c *Client) ID() uint16 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lastID++
	return c.lastID
}

// Subscribe subscribes and returns the reason codes.
func (c *Client) Subscribe(qos byte, filters ...string) []packet.ReasonCode {
	c.tb.Helper()
	var fs []packet.Filter
	for _, f := range filters {
		fs = append(fs, packet.Filter{Filter: f, QoS: qos})
	}
	return c.SubscribeWith(0, fs...)
}

// SubscribeWith subscribes with options, and a subscription identifier unless
// that is 0.
func (c *Client) SubscribeWith(id uint32, filters ...packet.Filter) []packet.ReasonCode {
	c.tb.Helper()
	p := &packet.Subscribe{PacketID: c.ID(), Filters: filters}
	p.Properties.SubscriptionID = id
	c.Send(p)
	ack, _ := c.Take(packet.TypeSuback).(*packet.Suback)
	return ack.Reasons
}

// Publish publishes, waits until that is acknowledged, and returns the reason
// code: of the PUBACK, or of the PUBREC if that is a failure, else of the
// PUBCOMP. At QoS 0 it returns at once.
func (c *Client) Publish(qos byte, retain bool, topic, payload string) packet.ReasonCode {
	c.tb.Helper()
	return c.PublishWith(&packet.Publish{QoS: qos, Retain: retain, Topic: []byte(topic), Payload: []byte(payload)})
}

// PublishWith is Publish for any packet; it gives it a packet id.
func (c *Client) PublishWith(p *packet.Publish) packet.ReasonCode {
	c.tb.Helper()
	if p.QoS > 0 {
		p.PacketID = c.ID()
	}
	c.Send(p)
	switch p.QoS {
	case 1:
		ack, _ := c.Take(packet.TypePuback).(*packet.Puback)
		return ack.Reason
	case 2:
		rec, _ := c.Take(packet.TypePubrec).(*packet.Pubrec)
		if rec.Reason.Failed() {
			return rec.Reason
		}
		c.Send(&packet.Pubrel{PacketID: p.PacketID})
		comp, _ := c.Take(packet.TypePubcomp).(*packet.Pubcomp)
		return comp.Reason
	}
	return packet.ReasonSuccess
}

// Ended waits until the broker has closed the connection and returns the
// reason of its DISCONNECT; false if it sent none.
func (c *Client) Ended() (packet.ReasonCode, bool) {
	c.tb.Helper()
	return c.EndedWithin(patience)
}

// EndedWithin is Ended for what takes longer.
func (c *Client) EndedWithin(d time.Duration) (packet.ReasonCode, bool) {
	c.tb.Helper()
	select {
	case <-c.done:
	case <-time.After(d):
		c.tb.Fatal("the broker did not close the connection")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.inbox {
		if d, ok := p.(*packet.Disconnect); ok {
			return d.Reason, true
		}
	}
	return 0, false
}

// Disconnect says goodbye and waits until the broker has closed.
func (c *Client) Disconnect(reason packet.ReasonCode) {
	c.tb.Helper()
	c.Send(&packet.Disconnect{Reason: reason})
	c.Ended()
}

// Kill cuts the connection without a word, and waits for the reading goroutine.
func (c *Client) Kill() {
	c.nc.Close()
	<-c.done
}
