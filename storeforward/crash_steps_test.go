package storeforward

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"holdfast/broker/durable"
	"holdfast/broker/message"
)

// live wraps a callback so that it runs on the goroutine of the world, and only
// while the power is on.
func (w *world) live(fn func(error)) func(error) {
	epoch := w.epoch
	return func(err error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.calls = append(w.calls, func() {
			if w.epoch == epoch {
				fn(err)
			}
		})
	}
}

// pump runs the callbacks that have come.
func (w *world) pump() {
	w.mu.Lock()
	calls := w.calls
	w.calls = nil
	w.mu.Unlock()
	for _, fn := range calls {
		fn()
	}
}

// step does one random thing.
func (w *world) step() {
	w.pump()
	switch w.c.pick(28, "step") {
	case 0, 1, 2, 3, 4:
		w.publish()
	case 5, 6:
		w.publishExactlyOnce()
	case 7, 8, 9, 10, 11, 12:
		w.move()
	case 13, 14:
		w.reconnect()
	case 15:
		w.subscribe()
	case 16:
		w.retain()
	case 17:
		w.will()
	case 18:
		time.Sleep(time.Duration(w.c.pick(30, "ms")) * time.Millisecond) //nolint:forbidigo // the bubble's time
	case 19:
		w.fault()
	case 20:
		w.comeAndGo()
	case 21:
		w.publishToGuest()
	case 22:
		w.reconnectInTrouble()
	case 23, 24, 25:
		w.publishState()
	case 26:
		w.moveLanes()
	case 27:
		w.damage()
	}
	if w.c.pick(3, "settle") > 0 {
		w.settleAll()
	}
}

// populate makes the queues of all, before the disk begins to fail.
func (w *world) populate() error {
	for _, p := range w.peers {
		if p.lane {
			continue
		}
		if !p.uplink {
			p.q = w.create(p.name)
			continue
		}
		q, _, err := w.s.OpenUplink(p.name)
		if err != nil {
			return err
		}
		p.q = q
	}
	for _, p := range w.pubs {
		p.q = w.create(p.name)
	}
	if err := w.setLanes(); err != nil {
		return err
	}
	return w.setPolicies()
}

// damage has the database found damaged, once in a life: it is set aside and
// salvaged, with all that is in it, while everything goes on.
func (w *world) damage() {
	if w.damaged || w.c.pick(4, "damage") > 0 {
		return
	}
	w.damaged = true
	w.s.suspect(errForeign)
}

func (w *world) create(name string) durable.QueueID {
	result := make(chan error, 1)
	q := w.s.CreateSession(name, 3600, func(err error) { result <- err })
	if err := <-result; err != nil {
		w.failf("create %s: %v", name, err)
	}
	return q
}

// come and go of a session that others publish to meanwhile. It is there or not
// as last promised; while it is promised to be there, messages reach it.
func (w *world) comeAndGo() {
	g := &w.guest
	if g.busy {
		return
	}
	g.busy = true
	if !g.there {
		q := w.s.CreateSession("guest", 60, w.live(func(err error) {
			if g.busy = false; err == nil {
				g.there, g.maybe = true, false
			}
		}))
		if q != 0 {
			g.q, g.maybe = q, true
		}
		return
	}
	g.maybe = true
	w.s.End(g.q, w.live(func(err error) {
		if g.busy = false; err == nil {
			g.there, g.maybe = false, false
			g.owed = nil
		}
	}))
}

// publishToGuest owes it a message, until its end is durable.
func (w *world) publishToGuest() {
	g := &w.guest
	if g.q == 0 || w.opts.MaxAge > 0 { // it never reads
		return
	}
	p := w.pubs[0]
	p.n++
	payload := fmt.Sprintf("guest/1 %d", p.n)
	q := g.q
	_ = w.s.Append(&message.Message{Topic: "g", Payload: []byte(payload), QoS: 1}, []durable.Claim{{Queue: q, QoS: 1}}, durable.Origin{}, w.live(func(err error) {
		if err == nil && g.q == q && (g.there || g.maybe) {
			g.owed = append(g.owed, payload)
		}
	}))
}

func (w *world) claims(qos byte) (claims []durable.Claim, to []*peer) {
	for i, p := range w.peers {
		if p.lane {
			continue // the cloud's claim is theirs
		}
		if w.c.pick(3, "claim") == 0 && i > 0 {
			continue
		}
		claims = append(claims, durable.Claim{Queue: p.q, QoS: qos})
		to = append(to, p)
	}
	return claims, to
}

func (w *world) next(p *publisher, qos byte, to []*peer) *sent {
	p.n++
	m := &sent{payload: fmt.Sprintf("%s/%d %d", p.name, qos, p.n), qos: qos, to: w.takes(p, to)}
	p.sent = append(p.sent, m)
	return m
}

func (w *world) publish() {
	p := w.pubs[w.c.pick(len(w.pubs), "publisher")]
	qos := byte(1 + w.c.pick(2, "qos")) // of the delivery
	claims, to := w.claims(qos)
	if len(claims) == 0 {
		return
	}
	m := w.next(p, qos, to)
	w.append(m, claims, durable.Origin{}, func(err error) {
		if err == nil {
			m.acked = true
		}
	})
}

func (w *world) append(m *sent, claims []durable.Claim, from durable.Origin, done func(error)) {
	msg := &message.Message{Topic: "t/" + strings.Fields(m.payload)[0], Payload: []byte(m.payload + strings.Repeat(".", w.c.pick(900, "size"))), QoS: m.qos}
	if err := w.s.Append(msg, claims, from, w.live(done)); err != nil {
		done(err)
	}
}

// publishExactlyOnce starts a QoS 2 exchange, or answers for one.
func (w *world) publishExactlyOnce() {
	p := w.pubs[w.c.pick(len(w.pubs), "publisher")]
	id := uint16(1 + w.c.pick(4, "id"))
	if e := p.out[id]; e != nil {
		switch {
		case e.received && !e.waiting:
			w.release(p, id, e)
		case !e.received && !e.waiting:
			w.publish2(p, id, e)
		}
		return
	}
	_, to := w.claims(2)
	e := &exchange{m: w.next(p, 2, to)}
	e.m.payload = strings.Replace(e.m.payload, "/2 ", "/x ", 1) // resends may reorder these
	p.out[id] = e
	w.publish2(p, id, e)
}

func (w *world) publish2(p *publisher, id uint16, e *exchange) {
	var claims []durable.Claim
	for _, to := range e.m.to {
		q := to.q
		if to.lane {
			q = w.peers[0].q
		}
		claims = append(claims, durable.Claim{Queue: q, QoS: 2})
	}
	e.waiting = true
	w.append(e.m, claims, durable.Origin{Queue: p.q, PacketID: id}, func(err error) {
		e.waiting = false
		if err == nil {
			e.m.acked, e.received = true, true
		}
	})
}

func (w *world) release(p *publisher, id uint16, e *exchange) {
	e.waiting = true
	w.s.Release(p.q, id, w.live(func(err error) {
		e.waiting = false
		if err == nil && p.out[id] == e {
			delete(p.out, id)
		}
	}))
}

// reconnect begins or ends a connection.
func (w *world) reconnect() {
	p := w.peers[w.c.pick(len(w.peers), "peer")]
	if c := p.conn; c != nil && w.c.pick(3, "detach") > 0 {
		p.conn = nil
		w.s.Detach(p.q, c)
		return
	}
	c := w.connect(p, 1+w.c.pick(6, "window"))
	if err := w.s.Attach(p.q, c); err != nil {
		w.failf("attach %s: %v", p.name, err)
		return
	}
	p.conn = c
}

// reconnectInTrouble changes connections while what they did waits for the disk.
func (w *world) reconnectInTrouble() {
	w.disk.FailWrites(0, 1+w.c.pick(4, "times"))
	for range 1 + w.c.pick(6, "moves") {
		w.move()
	}
	for range 1 + w.c.pick(3, "reconnects") {
		w.reconnect()
	}
}

// move lets a connection read, send or acknowledge something.
func (w *world) move() {
	p := w.peers[w.c.pick(len(w.peers), "peer")]
	if p.conn == nil {
		return
	}
	c := p.conn
	for range 1 + w.c.pick(4, "moves") {
		switch w.c.pick(5, "move") {
		case 0:
			c.read(1)
		case 1:
			c.read(2)
		case 2:
			c.send1()
		default:
			c.send2()
		}
	}
}

func (w *world) subscribe() {
	p := w.peers[1]
	f := fmt.Sprintf("f/%d", w.c.pick(3, "filter"))
	if _, ok := w.subs[f]; !ok {
		w.subs[f] = false
	}
	if w.subsAny[f] {
		return // one change at a time
	}
	w.subsAny[f] = true
	want := w.c.pick(2, "subscribe") == 0
	done := w.live(func(err error) {
		if err == nil {
			w.subs[f] = want
			delete(w.subsAny, f)
		}
		if errors.Is(err, durable.ErrFull) { // refused: nothing has changed
			delete(w.subsAny, f)
		}
	})
	if want {
		w.s.Subscribe(p.q, []durable.Subscription{{Filter: f, QoS: 1}}, done)
	} else {
		w.s.Unsubscribe(p.q, []string{f}, done)
	}
}

func (w *world) retain() {
	topic := fmt.Sprintf("r/%d", w.c.pick(2, "topic"))
	r := w.retained[topic]
	if r == nil {
		r = &retainedModel{cleared: map[int]bool{}}
		w.retained[topic] = r
	}
	r.last++
	n := r.last
	m := &message.Message{Topic: topic, QoS: 1, Retain: true, Payload: fmt.Appendf(nil, "r-%d", n)}
	if w.c.pick(4, "clear") == 0 {
		m.Payload = nil
		r.cleared[n] = true
	}
	err := w.s.Append(m, nil, durable.Origin{}, w.live(func(err error) {
		if err == nil {
			r.acked = max(r.acked, n)
		}
	}))
	if err != nil {
		delete(r.cleared, n)
	}
}

func (w *world) will() {
	if w.wills.last != w.wills.acked {
		return
	}
	w.wills.last++
	n := w.wills.last
	done := w.live(func(err error) {
		if err == nil {
			w.wills.acked = n
		}
		if errors.Is(err, durable.ErrFull) {
			w.wills.last = w.wills.acked
		}
	})
	if n%2 == 1 {
		w.s.SetWill(durable.Will{ClientID: "alice", Message: &message.Message{Topic: "w", QoS: 1}}, done)
	} else {
		w.s.ClearWill("alice", done)
	}
}

// fault lets the disk fail for a while.
func (w *world) fault() {
	after := w.c.pick(8, "after")
	switch w.c.pick(6, "fault") {
	case 0:
		w.disk.FailSyncs(after, 1, false)
	case 1:
		w.disk.FailSyncs(after, 1, true)
	case 2:
		w.disk.FailWrites(after, 1+w.c.pick(4, "times"))
	case 3:
		w.disk.SetCapacity(w.disk.Used() + int64(w.c.pick(20_000, "room")))
	default:
		w.disk.Heal()
	}
}
