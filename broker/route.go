package broker

import (
	"errors"
	"strings"
	"time"

	"holdfast/broker/durable"
	"holdfast/broker/message"
	"holdfast/broker/topic"
)

// Errors of [Broker.Publish].
var (
	// ErrTopic means that the message's topic, or its QoS, cannot be published.
	ErrTopic = errors.New("topic cannot be published to")
	// ErrClosed means that the broker is shut down or not yet started.
	ErrClosed = errors.New("broker is closed")
	// errRoute is a route that asks for what its recipient cannot take.
	errRoute = errors.New("route: QoS is above 2, or above 0 without a queue")
)

// job is one message on its way through route.
type job struct {
	m    *message.Message
	plan *plan
	from durable.Origin
	// ack is the publisher's place in its acknowledgement line; nil for
	// messages of the process itself.
	ack *ack
	// cork flushes the recipients; nil: at once.
	cork *cork
	// done is called exactly once if route returns nil: the message is safe,
	// or has failed.
	done func(error)
	// lent says that the message, and the bytes it points to, are the caller's
	// again when route returns. It is of QoS 0 and not retained, and so goes
	// straight into its recipients' buffers: whoever may keep it gets a copy.
	lent bool
	// ram says that nothing of it goes to the store ($SYS).
	ram bool

	// Set by route before it calls done or the store:
	matched bool // somebody wants it
	inline  bool // done is called by route itself
}

// route takes every message, whoever sent it. An error means that nothing was
// taken: nobody gets it, done is not called.
func (b *Broker) route(j *job) error {
	m := j.m
	if m.Retain {
		// From the plan to the index nothing comes between: a subscription is
		// either in the plan, or finds this message retained.
		b.retained.mu.Lock()
	}
	if j.plan == nil || j.plan.generation != b.generation() {
		j.plan = b.planFor(m.Topic)
	}
	p := j.plan
	if j.lent && len(p.watches)+len(p.recipients) > 0 {
		m = kept(m)
		j.m, j.lent = m, false
	}
	shared := b.sharing(p, m)
	claims := p.claims(m, shared, j.from.Queue)
	j.matched = len(p.sessions)+len(shared)+len(p.recipients) > 0 || p.inbox

	// A QoS 2 message goes onward once, after its commit: if that fails, the
	// publisher sends it again. A client's goes when its turn in the
	// acknowledgement line comes, so that none overtakes another.
	done := j.done
	durably := !j.ram && (len(claims) > 0 || m.Retain || j.from.PacketID != 0 && j.from.Queue != 0 || j.from.Will != "")
	deferred := m.QoS == 2 && (durably || j.ack != nil)
	switch {
	case deferred && j.ack != nil:
		j.ack.onward = b.onward(p, m, shared, j.from.Queue)
	case deferred:
		done = after(b.onward(p, m, shared, j.from.Queue), done)
	}
	var err error
	switch {
	case !durably:
	case m.Retain && !b.retained.fitsLocked(m, b.opts):
		b.count.retainedRefused.Add(1)
		err = durable.ErrFull
	default:
		err = b.store.Append(m, claims, j.from, done)
		if j.cork != nil {
			j.cork.waits = true
		}
	}
	if m.Retain {
		if err == nil {
			b.retained.setLocked(m)
		}
		b.retained.mu.Unlock()
	}
	if err != nil {
		return err
	}
	if !deferred {
		b.deliver(p, m, shared, j.from.Queue, j.cork)
	}
	if !durably && done != nil {
		j.inline = true
		done(nil)
	}
	return nil
}

// onward is the delivery of a message for later. It is here, and not in route,
// so that messages that need none of it leave nothing behind.
func (b *Broker) onward(p *plan, m *message.Message, shared []delivery, from durable.QueueID) func(*cork) {
	return func(k *cork) { b.deliver(p, m, shared, from, k) }
}

// after delivers onward once the message is safe, and then says so.
func after(onward func(*cork), done func(error)) func(error) {
	return func(err error) {
		if err == nil {
			onward(nil)
		}
		if done != nil {
			done(err)
		}
	}
}

// deliver hands a message to those who do not get it from the store.
func (b *Broker) deliver(p *plan, m *message.Message, shared []delivery, from durable.QueueID, k *cork) {
	for _, w := range p.watches {
		w.fn(m)
	}
	for _, r := range p.recipients {
		if min(r.qos, m.QoS) == 0 && r.r.Offer0 != nil && (from == 0 || r.r.Queue != from) {
			r.r.Offer0(m)
		}
	}
	if len(p.sessions)+len(shared) == 0 {
		return
	}
	f, alive := framesOf(m, m.Received)
	if m.HasExpiry && m.QoS == 2 {
		f, alive = framesOf(m, time.Now()) // it has waited for its commit
	}
	if !alive {
		b.count.droppedExpired.Add(1)
		return
	}
	f.single = len(p.sessions)+len(shared) == 1
	send := func(s *session, g grant, of *group) {
		qos := min(g.qos, m.QoS)
		if qos > 0 && s.queue != 0 {
			return // it comes from the store
		}
		how := form{qos: qos, retain: m.Retain && g.asWritten, subIDs: g.ids, group: of}
		if !s.deliver(&f, &how, k) && of != nil && qos > 0 {
			// Not from here: the store's lock may not be taken under that of
			// an acknowledgement line.
			b.clock.after(0, func() { b.redeliver([]owed{{m, of}}) })
		}
	}
	for i := range p.sessions {
		t := &p.sessions[i]
		if g, ok := t.grantFor(m); ok {
			send(t.s, g, nil)
		}
	}
	for _, d := range shared {
		if d.s == nil {
			continue // the group has it from the store
		}
		send(d.s, d.grant, d.group)
	}
}

// Publish takes a message from within the process: adapters, the status of the
// gateway, an uplink's inbound messages. It does not block. A nil error means
// that it was taken, and done (which may be nil) is called exactly once, from
// any goroutine: with nil when the message is safe for all its durable
// recipients, else with why it failed. done must not block and must not call
// the broker. Any error means that nothing was taken.
func (b *Broker) Publish(m *message.Message, from durable.Origin, done func(error)) error {
	if err := topic.ValidName(m.Topic); err != nil {
		return errors.Join(ErrTopic, err)
	}
	if m.QoS > 2 {
		return ErrTopic
	}
	if !b.open() {
		return ErrClosed
	}
	if m.Received.IsZero() {
		with := *m
		with.Received = time.Now()
		m = &with
	}
	b.count.published.Add(1)
	err := b.route(&job{m: m, from: from, done: done})
	if err != nil {
		b.count.refused.Add(1)
	}
	return err
}

// reserved says that clients may not publish there (MQTT 5.0 §4.7.2: the
// server's own topics).
func reserved(name string) bool {
	return name == "$SYS" || strings.HasPrefix(name, "$SYS/")
}

// tooLong says whether a topic name or filter has more levels or bytes than it
// may.
func (o Options) tooLong(name string) bool {
	return len(name) > o.MaxTopicSize || 1+strings.Count(name, "/") > o.MaxTopicLevels
}
