package storeforward

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"holdfast/broker/durable"
)

// conn is a peer's connection: the recipient. The store calls it from its own
// goroutines; the rest happens on that of the world.
type conn struct {
	w    *world
	p    *peer
	last map[string]int // by lane, in this connection

	mu     sync.Mutex // guards everything below
	window int
	ids    map[uint16]bool
	q1, q2 []*item
	catch  [3]bool // by QoS: must read
	offers int     // of QoS 2
}

type item struct {
	d     durable.Delivery
	ready bool // QoS 2: its id is durable
	state int  // 0 to send, 1 PUBREC is on its way in, 2 PUBREL goes out, 3 PUBCOMP is on its way in
}

func (w *world) connect(p *peer, window int) *conn {
	c := &conn{w: w, p: p, window: window, ids: map[uint16]bool{}, last: map[string]int{}}
	c.catch[1], c.catch[2] = true, true
	return c
}

func (c *conn) Offer(d durable.Delivery) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if d.QoS == 2 {
		if d.PacketID == 0 {
			c.w.failf("%s: offered QoS 2 without id", c.p.name)
		}
		// Not taken now and then, though there was room for the id.
		if c.offers++; c.offers%4 == 3 {
			c.catch[2] = true
			return false
		}
		c.q2 = append(c.q2, &item{d: d, ready: true})
		return true
	}
	if len(c.q1) >= c.window {
		c.catch[1] = true
		return false
	}
	c.q1 = append(c.q1, &item{d: d, ready: true})
	return true
}

func (c *conn) Reserve() (uint16, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.ids) >= c.window {
		c.catch[2] = true
		return 0, false
	}
	return c.idLocked(), true
}

func (c *conn) idLocked() uint16 {
	for id := uint16(1); ; id++ {
		if !c.ids[id] {
			c.ids[id] = true
			return id
		}
	}
}

func (c *conn) Unreserve(id uint16) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.ids, id)
}

func (c *conn) Wake(qos byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.catch[qos] = true
}

// read reads when the connection must and has room.
func (c *conn) read(qos byte) (more bool) {
	c.mu.Lock()
	must := c.catch[qos] && (qos == 1 && len(c.q1) < c.window || qos == 2 && len(c.q2) < c.window)
	if must {
		c.catch[qos] = false // what the store says from now on counts
	}
	c.mu.Unlock()
	if !must {
		return false
	}
	ds, _, err := c.w.s.Read(context.Background(), c.p.q, qos, 1+c.w.c.pick(4, "max"), 1<<20)
	var ids []durable.Sent
	var items []*item
	c.mu.Lock()
	// A read that failed, or gave something, is followed by another.
	c.catch[qos] = c.catch[qos] || err != nil || len(ds) > 0
	for _, d := range ds {
		if d.PacketID != 0 {
			c.ids[d.PacketID] = true
		}
	}
	for _, d := range ds {
		it := &item{d: d, ready: qos == 1 || d.PacketID != 0}
		if d.Released {
			it.state = 2
		}
		if qos == 1 {
			c.q1 = append(c.q1, it)
			continue
		}
		c.q2 = append(c.q2, it)
		if d.PacketID == 0 {
			it.d.PacketID = c.idLocked()
			ids = append(ids, durable.Sent{Seq: d.Seq, PacketID: it.d.PacketID})
			items = append(items, it)
		}
	}
	c.mu.Unlock()
	if len(ids) > 0 {
		c.w.s.Sent(c.p.q, ids, c.w.live(func(err error) {
			for _, it := range items {
				it.ready = it.ready || err == nil
			}
		}))
	}
	return len(ds) > 0
}

func (c *conn) items(qos byte) []*item {
	c.mu.Lock()
	defer c.mu.Unlock()
	if qos == 1 {
		return append([]*item(nil), c.q1...)
	}
	return append([]*item(nil), c.q2...)
}

func (c *conn) remove(it *item) {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := &c.q1
	if it.d.QoS == 2 {
		list = &c.q2
		delete(c.ids, it.d.PacketID)
	}
	for i, x := range *list {
		if x == it {
			*list = append((*list)[:i:i], (*list)[i+1:]...)
			return
		}
	}
}

// arrive is a message reaching the peer for the first time or again.
func (p *peer) arrive(c *conn, d durable.Delivery) {
	payload := strings.TrimRight(string(d.Message.Payload), ".")
	lane, n := laneOf(payload)
	p.got[payload]++
	if p.answered[payload] {
		c.w.failf("%s: %s came again after it was acknowledged", p.name, payload)
	}
	if strings.Contains(lane, "/x") {
		return // exchanges of several ids are not in order
	}
	if n <= c.last[lane] {
		c.w.failf("%s: %s came after %d in one connection", p.name, payload, c.last[lane])
	}
	c.last[lane] = n
	p.final[lane] = n
	if p == c.w.lanes.latest {
		return // one that was replaced may come back with the power, before the newer ones
	}
	if p.got[payload] == 1 {
		if n < p.order[lane] {
			c.w.failf("%s: %s came for the first time after %d", p.name, payload, p.order[lane])
		}
		p.order[lane] = n
	}
}

func laneOf(payload string) (lane string, n int) {
	lane, number, _ := strings.Cut(payload, " ")
	_, _ = fmt.Sscan(number, &n)
	return lane, n
}

// send1 sends the oldest QoS 1 delivery that was not sent, or answers for one,
// out of order now and then.
func (c *conn) send1() {
	for _, it := range c.items(1) {
		if it.state == 0 {
			it.state = 1
			c.p.arrive(c, it.d)
			c.p.unanswered[strings.TrimRight(string(it.d.Message.Payload), ".")] = true
			return
		}
		if c.w.c.pick(4, "late") == 0 {
			continue
		}
		c.remove(it)
		payload := strings.TrimRight(string(it.d.Message.Payload), ".")
		delete(c.p.rejected, payload)
		delete(c.p.unanswered, payload)
		c.p.answered[payload] = true
		switch c.w.c.pick(10, "answer") {
		case 0:
			c.p.rejected[payload] = true
			c.w.s.Refused(c.p.q, it.d.Seq, 0x99, c.w.live(func(err error) {
				if err == nil {
					c.p.refused = append(c.p.refused, it.d.Seq)
				}
			}))
		case 1:
			c.w.s.Dropped(c.p.q, it.d.Seq, "expired", nil)
		default:
			c.w.s.Acked(c.p.q, it.d.Seq)
		}
		return
	}
}

// send2 moves the oldest QoS 2 delivery that can move.
func (c *conn) send2() {
	for _, it := range c.items(2) {
		if !it.ready {
			return
		}
		switch it.state {
		case 0:
			c.publish2(it)
			return
		case 2: // PUBREL; PUBCOMP comes back
			if c.w.c.pick(4, "late") == 0 {
				continue
			}
			delete(c.p.held, it.d.PacketID)
			it.state = 3
			c.w.s.Completed(c.p.q, it.d.Seq, c.w.live(func(err error) {
				if err == nil {
					c.remove(it)
				}
			}))
			return
		}
	}
}

// publish2 sends a PUBLISH, which the peer takes once for each packet id it holds.
func (c *conn) publish2(it *item) {
	if !c.p.held[it.d.PacketID] {
		c.p.held[it.d.PacketID] = true
		c.p.arrive(c, it.d)
	} else if !it.d.Resend {
		c.w.failf("%s: id %d sent as new while the peer holds it", c.p.name, it.d.PacketID)
	}
	it.state = 1
	c.w.s.Received(c.p.q, it.d.Seq, c.w.live(func(err error) {
		if err == nil {
			it.state = 2
		}
	}))
}
