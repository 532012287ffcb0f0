package uplink

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"holdfast/broker/packet"
	"holdfast/storeforward/pack"
)

// honest is a small broker that keeps the protocol to the letter, as a cloud:
// what gets to its application, and what it sends down, can be compared with
// what should have. Its connections are cut at random packets.
type honest struct {
	t testing.TB

	mu      sync.Mutex
	rnd     *rand.Rand
	version packet.Version // the newest it speaks
	cuts    int            // connections still to be cut
	lose    float64        // chance that a reconnect finds no session
	session *honestSession
	early   []*honestOut // commands from before the SUBSCRIBE
	next    uint16
	got     []string // topic/qos/payload in order of arrival
	lost    int      // sessions lost
	breach  []string // what the uplink did wrong
	conn    net.Conn
	write   func(packet.Packet)
}

// honestSession is the server's side of a session (MQTT 5.0 §4.1).
type honestSession struct {
	subscribed bool
	taken      map[uint16]bool // QoS 2 ids between PUBREC and PUBREL
	down       []*honestOut    // on the way to the gateway, in order
}

type honestOut struct {
	p        *packet.Publish
	sent     bool
	released bool
}

func newHonest(tb testing.TB, seed uint64) *honest {
	tb.Helper()
	return &honest{t: tb, rnd: rand.New(rand.NewPCG(seed, 1)), version: packet.V5}
}

func (h *honest) wrong(format string, args ...any) {
	h.breach = append(h.breach, fmt.Sprintf(format, args...))
}

// command queues a message for the gateway.
func (h *honest) command(topic, payload string, qos byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.next++
	o := &honestOut{p: &packet.Publish{QoS: qos, PacketID: h.next, Topic: []byte(topic), Payload: []byte(payload)}}
	if h.session == nil || !h.session.subscribed {
		h.early = append(h.early, o)
		return
	}
	h.session.down = append(h.session.down, o)
	h.pushLocked()
}

func newHonestSession() *honestSession { return &honestSession{taken: make(map[uint16]bool)} }

// pushLocked sends what is queued, at most five at once.
func (h *honest) pushLocked() {
	if h.write == nil {
		return
	}
	for i, o := range h.session.down {
		if i == 5 {
			return
		}
		if !o.sent {
			o.sent = true
			h.write(o.p)
		}
	}
}

func (h *honest) findOut(id uint16) int {
	return slices.IndexFunc(h.session.down, func(o *honestOut) bool { return o.p.PacketID == id })
}

// serve plays the server on one connection.
func (h *honest) serve(nc net.Conn) {
	defer nc.Close()
	q, err := readPacket(nc, packet.V5)
	if err != nil {
		return
	}
	hello, ok := q.(*packet.Connect)
	if !ok {
		return
	}
	v := hello.Version
	// The writer is apart: the gateway may be writing too.
	out := make(chan packet.Packet, 10_000)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(out)
	wg.Go(func() {
		for q := range out {
			b, err := q.AppendTo(nil, v)
			if err != nil {
				h.t.Errorf("encode %s: %v", q.Type(), err)
			}
			if _, err := nc.Write(b); err != nil {
				nc.Close()
			}
		}
	})
	h.mu.Lock()
	if v > h.version {
		h.mu.Unlock()
		out <- &packet.Connack{Reason: packet.ReasonUnsupportedProtocolVersion}
		return
	}
	present := h.session != nil
	if present && !hello.CleanStart && h.rnd.Float64() < h.lose {
		present = false
		h.lost++
	}
	if !present || hello.CleanStart {
		present, h.session = false, newHonestSession()
		if brief := v == packet.V311 && hello.CleanStart; brief {
			defer func() { // Clean Session 1 ends with its connection
				h.mu.Lock()
				h.session = nil
				h.mu.Unlock()
			}()
		}
	}
	quota := 1 + h.rnd.IntN(20)
	ack := &packet.Connack{SessionPresent: present}
	if v == packet.V5 {
		ack.Properties.ReceiveMaximum = uint16(quota)
		ack.Properties.TopicAliasMaximum = uint16(h.rnd.IntN(3))
	}
	out <- ack
	cut := -1
	if h.cuts > 0 {
		h.cuts--
		cut = h.rnd.IntN(60)
	}
	h.conn, h.write = nc, func(q packet.Packet) { out <- q }
	for _, o := range h.session.down {
		if o.sent && o.released {
			out <- &packet.Pubrel{PacketID: o.p.PacketID}
		} else if o.sent {
			again := *o.p
			again.Dup = true
			out <- &again
		}
	}
	h.pushLocked()
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		if h.conn == nc {
			h.conn, h.write = nil, nil
		}
		h.mu.Unlock()
	}()
	c := &honestConn{h: h, v: v, quota: quota, aliases: make(map[uint16]string), open: make(map[uint16]bool)}
	for n := 0; ; n++ {
		q, err := readPacket(nc, v)
		if err != nil {
			if bad, ok := errors.AsType[*packet.Error](err); ok {
				h.t.Errorf("from the gateway: %v", bad)
			}
			return
		}
		if n == cut {
			switch h.dice() {
			case 0:
				return // this packet is lost
			case 1:
				nc.Close() // it arrives, its answer is lost
				c.take(q)
				return
			}
		}
		if !c.take(q) || n == cut {
			return
		}
	}
}

func (h *honest) dice() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.rnd.IntN(3)
}

// honestConn is what the server knows of one connection.
type honestConn struct {
	h       *honest
	v       packet.Version
	quota   int
	aliases map[uint16]string
	open    map[uint16]bool // PUBLISHes that take of the Receive Maximum
}

// take handles one packet; false ends the connection.
func (c *honestConn) take(q packet.Packet) bool {
	h := c.h
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.write == nil {
		return false
	}
	s := h.session
	switch q := q.(type) {
	case *packet.Publish:
		c.publish(q)
	case *packet.Pubrel:
		delete(s.taken, q.PacketID)
		delete(c.open, q.PacketID)
		h.write(&packet.Pubcomp{PacketID: q.PacketID})
	case *packet.Puback:
		if i := h.findOut(q.PacketID); i >= 0 {
			s.down = slices.Delete(s.down, i, i+1)
		}
		h.pushLocked()
	case *packet.Pubrec:
		if i := h.findOut(q.PacketID); i >= 0 {
			s.down[i].released = true
			h.write(&packet.Pubrel{PacketID: q.PacketID})
		}
	case *packet.Pubcomp:
		if i := h.findOut(q.PacketID); i >= 0 {
			s.down = slices.Delete(s.down, i, i+1)
		}
		h.pushLocked()
	case *packet.Subscribe:
		h.write(&packet.Suback{PacketID: q.PacketID, Reasons: make([]packet.ReasonCode, len(q.Filters))})
		s.subscribed = true
		s.down, h.early = append(s.down, h.early...), nil
		h.pushLocked()
	case *packet.Pingreq:
		h.write(&packet.Pingresp{})
	case *packet.Disconnect:
		return false
	default:
		h.wrong("got %s", show(q))
	}
	return true
}

func (c *honestConn) publish(q *packet.Publish) {
	h, s := c.h, c.h.session
	name := string(q.Topic)
	if q.TopicAlias != 0 {
		if name == "" {
			name = c.aliases[q.TopicAlias]
		}
		c.aliases[q.TopicAlias] = name
	}
	if name == "" {
		h.wrong("alias %d stands for nothing", q.TopicAlias)
	}
	if q.QoS > 0 {
		if c.open[q.PacketID] {
			h.wrong("id %d is used twice at once: %s", q.PacketID, show(q))
		}
		c.open[q.PacketID] = true
		if c.v == packet.V5 && len(c.open) > c.quota {
			h.wrong("%d messages with a receive maximum of %d", len(c.open), c.quota)
		}
	}
	if q.QoS < 2 && s.taken[q.PacketID] && q.QoS > 0 {
		h.wrong("id %d is in use by QoS 2: %s", q.PacketID, show(q))
	}
	if q.QoS == 2 && s.taken[q.PacketID] {
		if !q.Dup {
			h.wrong("id %d is not free: %s", q.PacketID, show(q))
		}
	} else if name != "holdfast/gw/status" {
		h.arrived(name, q)
	}
	switch q.QoS {
	case 1:
		delete(c.open, q.PacketID)
		h.write(&packet.Puback{PacketID: q.PacketID})
	case 2:
		s.taken[q.PacketID] = true
		h.write(&packet.Pubrec{PacketID: q.PacketID})
	}
}

// arrived takes note of a message, or of those in a batch.
func (h *honest) arrived(name string, q *packet.Publish) {
	note := func(topic string, payload []byte) {
		h.got = append(h.got, fmt.Sprintf("%s/%d/%s", topic, q.QoS, payload))
	}
	if !strings.HasPrefix(name, "holdfast/gw/batch") {
		note(name, q.Payload)
		return
	}
	err := pack.Unpack(q.Payload, 1<<20, func(r pack.Record) error {
		note(r.Topic, r.Payload)
		return nil
	})
	if err != nil {
		h.wrong("batch: %v", err)
	}
}

// inLanes sorts what came by topic and QoS.
func inLanes(got []string) map[string][]string {
	lanes := make(map[string][]string)
	for _, g := range got {
		i := strings.LastIndexByte(g, '/')
		lanes[g[:i]] = append(lanes[g[:i]], g[i+1:])
	}
	return lanes
}

// checkLane checks what came on one lane against "0", "1" ... n-1: first
// comings in order and all there, and once when that is promised.
func checkLane(t testing.TB, name string, got []string, n int, once bool) {
	t.Helper()
	next := 0
	for _, g := range got {
		var i int
		fmt.Sscan(g, &i)
		switch {
		case i == next:
			next++
		case i > next:
			t.Errorf("%s: %d comes before %d", name, i, next)
			next = i + 1
		case once:
			t.Errorf("%s: %d comes again", name, i)
		}
	}
	if next != n {
		t.Errorf("%s: %d came, want %d", name, next, n)
	}
}
