package broker

import (
	"time"

	"holdfast/broker/durable"
	"holdfast/broker/message"
	"holdfast/broker/packet"
)

// willRetry is how long a will waits that the store had no room for.
const willRetry = 5 * time.Second

// will is what is published when a client dies (MQTT 5.0 §3.1.2.5).
type will struct {
	m     *message.Message
	delay uint32 // seconds
	// stored says that the store has it: it is retained or QoS 1 or 2.
	stored   bool
	identity Identity // whose will it is
}

// pendingWill waits for its delay, or after a restart for its client.
type pendingWill struct {
	will    *will
	event   *event
	restart bool
}

// newWill makes a will of the one in a CONNECT.
func newWill(w *packet.Will, clientID string) (*will, error) {
	m := &message.Message{Topic: w.Topic, Payload: w.Payload, QoS: w.QoS, Retain: w.Retain, From: clientID}
	properties, err := w.PublishProperties().AppendTo(nil)
	if err != nil {
		return nil, err
	}
	if len(properties) > 0 {
		m.Properties = properties
	}
	if x := w.Properties.MessageExpiry; x != nil {
		m.HasExpiry, m.Expiry = true, *x
	}
	return &will{m: m, delay: w.Properties.WillDelay, stored: w.Retain || w.QoS > 0}, nil
}

// fireWill publishes a will. Its expiry counts from now (MQTT 5.0 §3.1.3.2.4).
// One that the store does not take stays due.
func (b *Broker) fireWill(clientID string, w *will) {
	if a := b.opts.Auth; a != nil && !a.Authorize(w.identity, ActionPublish, w.m.Topic) {
		// Its right was taken away since the CONNECT.
		b.count.denied.Add(1)
		b.log.Warn("will denied", "client_id", clientID, "topic", w.m.Topic)
		b.forgetWill(clientID, w)
		return
	}
	m := *w.m
	m.Received = time.Now()
	var from durable.Origin
	if w.stored {
		from.Will = clientID
	}
	retry := func(err error) {
		b.count.storeErrors.Add(1)
		b.log.Warn("will not stored", "client_id", clientID, "topic", m.Topic, "err", err, "delay", willRetry)
		b.clock.after(willRetry, func() { b.fireAgain(clientID, w) })
	}
	err := b.route(&job{m: &m, from: from, done: func(err error) {
		if err != nil {
			retry(err)
			return
		}
		b.count.wills.Add(1)
	}})
	if err != nil {
		retry(err)
	}
}

// fireAgain fires a will that was due before. If its client is back, the
// stored will is that of the new connection and stays.
func (b *Broker) fireAgain(clientID string, w *will) {
	b.mu.Lock()
	if b.closing {
		b.mu.Unlock()
		return
	}
	again := *w
	if s := b.sessions[clientID]; s != nil && s.owner != nil {
		again.stored = false
	}
	done := b.workOnLocked(clientID)
	b.mu.Unlock()
	b.fireWill(clientID, &again)
	done()
}

// forgetWill drops a will after a DISCONNECT without error.
func (b *Broker) forgetWill(clientID string, w *will) {
	if w.stored {
		b.store.ClearWill(clientID, nil)
	}
}

// delayWillLocked publishes a will after d unless the client returns before;
// Broker.mu is held.
func (b *Broker) delayWillLocked(clientID string, w *will, d time.Duration, restart bool) {
	p := &pendingWill{will: w, restart: restart}
	p.event = b.clock.after(d, func() {
		b.mu.Lock()
		if b.wills[clientID] != p || b.closing {
			b.mu.Unlock()
			return
		}
		delete(b.wills, clientID)
		done := b.workOnLocked(clientID)
		b.mu.Unlock()
		b.fireWill(clientID, w)
		done()
	})
	b.wills[clientID] = p
}

// takeWillLocked takes the will that waits for a client; Broker.mu is held.
func (b *Broker) takeWillLocked(clientID string) *pendingWill {
	p := b.wills[clientID]
	if p == nil {
		return nil
	}
	delete(b.wills, clientID)
	b.clock.cancel(p.event)
	return p
}

// workOnLocked keeps a client id from connecting until the returned function is
// called: what is being done for its former connection (a will, the end of its
// session) comes before what the next one does. Broker.mu is held.
func (b *Broker) workOnLocked(clientID string) (done func()) {
	// The clock's goroutine is the only one that works on client ids that are
	// not connected, so there is never another.
	ch := make(chan struct{})
	b.busy[clientID] = ch
	return func() {
		b.mu.Lock()
		delete(b.busy, clientID)
		b.mu.Unlock()
		close(ch)
	}
}
