package storeforward

import (
	"context"
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
	switch w.c.pick(22, "step") {
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
	}
	if w.c.pick(3, "settle") > 0 {
		w.settleAll()
	}
}

// populate makes the queues of all, before the disk begins to fail.
func (w *world) populate() error {
	for _, p := range w.peers {
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
	return nil
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
	if g.q == 0 {
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
	m := &sent{payload: fmt.Sprintf("%s/%d %d", p.name, qos, p.n), qos: qos, to: to}
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
		claims = append(claims, durable.Claim{Queue: to.q, QoS: 2})
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

// cut cuts the power in the middle of what the store is doing.
func (w *world) cut() error {
	w.disk.CutAfter(w.c.pick(30, "calls"))
	for range w.c.pick(6, "steps before the cut") {
		w.step()
	}
	old := w.s
	next := w.disk.Cut(w.r)
	w.pump()
	w.epoch++
	w.cuts++
	w.disconnectAll()
	_ = old.Close() // its disk is gone
	w.disk.Unplug()
	w.disk = next
	w.unknown()
	return w.open()
}

// restart closes the store properly and opens it again.
func (w *world) restart() error {
	w.disk.Heal()
	if err := w.s.Close(); err != nil {
		return fmt.Errorf("close: %w", err)
	}
	w.pump()
	w.epoch++
	w.disconnectAll()
	w.unknown()
	return w.open()
}

func (w *world) disconnectAll() {
	for _, p := range w.peers {
		p.conn = nil
		clear(p.answered)
	}
}

// unknown: what was under way may have been done or not.
func (w *world) unknown() {
	if w.wills.last != w.wills.acked {
		w.wills.last = w.wills.acked + 2 // either way from now on
		w.wills.acked += 2
		w.wills.last++
	}
}

// drain connects everybody and lets everything arrive.
func (w *world) drain() error {
	w.disk.Heal()
	for _, p := range w.peers {
		p.conn = w.connect(p, 50)
		if err := w.s.Attach(p.q, p.conn); err != nil {
			return err
		}
	}
	for range 400 {
		w.pump()
		left := int64(0)
		for _, p := range w.peers {
			for p.conn.read(1) || p.conn.read(2) {
				continue
			}
			for range 60 {
				p.conn.send1()
				p.conn.send2()
			}
			n, _ := w.s.Backlog(p.q)
			left += n
		}
		for _, p := range w.pubs {
			for id, e := range p.out {
				if e.received && !e.waiting {
					w.release(p, id, e)
				} else if !e.received && !e.waiting {
					w.publish2(p, id, e)
				}
				left++
			}
		}
		w.settleAll()
		time.Sleep(w.opts.CommitWindow + time.Millisecond) //nolint:forbidigo // the bubble's time
		w.settleAll()
		if left == 0 {
			return nil
		}
	}
	return fmt.Errorf("the backlog does not drain: %+v", w.s.Status())
}

// verdict says what was promised and not kept.
func (w *world) verdict() error {
	for _, p := range w.pubs {
		for _, m := range p.sent {
			for _, to := range m.to {
				n := to.got[m.payload]
				if m.acked && n == 0 {
					w.failf("lost: %s to %s was acknowledged and never came", m.payload, to.name)
				}
				if m.qos == 2 && n > 1 {
					w.failf("%s came to %s %d times with QoS 2", m.payload, to.name, n)
				}
			}
		}
	}
	w.checkDeadLetters()
	return errors.Join(w.errs...)
}

// checkDeadLetters: what the cloud has refused is kept.
func (w *world) checkDeadLetters() {
	kept, payloads := map[durable.Seq]bool{}, map[string]bool{}
	cloud := w.peers[0]
	err := w.s.DeadLetters(context.Background(), cloud.q, func(d DeadLetter) error {
		kept[d.Seq] = true
		payloads[strings.TrimRight(string(d.Message.Payload), ".")] = true
		if d.Code != 0x99 || d.Message.Topic == "" {
			return fmt.Errorf("dead letter %+v", d)
		}
		return nil
	})
	if err != nil {
		w.failf("dead letters: %v", err)
	}
	for _, seq := range cloud.refused {
		if !kept[seq] {
			w.failf("lost: dead letter %d", seq)
		}
	}
	for _, p := range w.pubs {
		for _, m := range p.sent {
			if m.acked && cloud.rejected[m.payload] && !payloads[m.payload] {
				w.failf("lost: %s was acknowledged and only refused", m.payload)
			}
		}
	}
}

// run is one life: steps, cuts, restarts, and at the end everything must have
// arrived.
func (w *world) run() (err error) {
	if err := w.open(); err != nil {
		return err
	}
	if err := w.populate(); err != nil {
		return err
	}
	defer func() {
		if w.s != nil {
			_ = w.s.Close()
			w.disk.Unplug()
		}
	}()
	for range 3 + w.c.pick(3, "cuts") {
		for range w.c.pick(40, "steps") {
			w.step()
		}
		var err error
		if w.c.pick(6, "restart") == 0 {
			err = w.restart()
		} else {
			err = w.cut()
		}
		if err != nil {
			return errors.Join(append(w.errs, err)...)
		}
	}
	if err := w.drain(); err != nil {
		return errors.Join(append(w.errs, err)...)
	}
	return w.verdict()
}
