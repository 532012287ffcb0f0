package uplink

import (
	"cmp"
	"slices"
	"time"

	"holdfast/broker/packet"
)

// holdKey names a hold: order is kept per topic and QoS (MQTT 5.0 §4.6).
type holdKey struct {
	topic string
	qos   byte
}

// holdKey says where f waits when it is refused. Messages that may go in a batch
// keep their order with those that do.
func (f *flight) holdKey() holdKey {
	if f.with != nil && f.qos == 1 {
		return holdKey{f.with.topic, f.qos}
	}
	return holdKey{f.msg.Topic, f.qos}
}

// hold has the messages of one topic and QoS of which the cloud refused one
// for now. Others go on meanwhile; these wait for the next try of the first,
// so that they keep their order among themselves. They keep their places in
// the window, which bounds them: a cloud that refuses long enough fills it, and
// the rest then waits in the store.
type hold struct {
	flights []*flight
	backoff backoff
	retryAt time.Time
	// probing says that the first is with the cloud again.
	probing bool
}

// insert puts f in by its sequence number: refusals come in order, but behind
// them there may already be messages that were never sent.
func (h *hold) insert(f *flight) {
	i, _ := slices.BinarySearchFunc(h.flights, f, func(a, b *flight) int { return cmp.Compare(a.seq, b.seq) })
	h.flights = slices.Insert(h.flights, i, f)
}

// holdLocked keeps a message that was refused for now.
func (l *link) holdLocked(f *flight, reason packet.ReasonCode) {
	u, key := l.u, f.holdKey()
	f.state = flightHeld
	l.sess.held += f.size
	hd := l.sess.holds[key]
	if hd == nil {
		hd = &hold{backoff: newBackoff(u.opts.ReconnectMin, u.opts.ReconnectMax)}
		l.sess.holds[key] = hd
	}
	hd.insert(f)
	if f.probe || hd.retryAt.IsZero() {
		f.probe, hd.probing = false, false
		pause := hd.backoff.next()
		hd.retryAt = time.Now().Add(pause)
		l.warn("held", "message refused for now", "topic", f.msg.Topic, "qos", f.qos, "packet_id", f.id, "seq", uint64(f.seq), "reason", reason, "delay", pause)
	}
}

// joinHoldLocked puts f behind those of its topic of which one was refused for
// now, if there are any.
func (l *link) joinHoldLocked(f *flight) bool {
	if len(l.sess.holds) == 0 {
		return false
	}
	hd := l.sess.holds[f.holdKey()]
	if hd == nil {
		return false
	}
	f.state = flightHeld
	l.sess.held += f.size
	hd.insert(f)
	return true
}

// probeLocked sends the first message of each hold whose pause is over.
func (l *link) probeLocked(now time.Time) {
	for _, hd := range l.sess.holds {
		if l.full || l.used >= l.quota || l.err != nil {
			return
		}
		if hd.probing || now.Before(hd.retryAt) {
			continue
		}
		f := hd.flights[0]
		hd.flights = hd.flights[1:]
		f.probe, hd.probing = true, true
		l.sess.held -= f.size
		l.publishLocked(f, now)
	}
}

// acceptedLocked opens the hold of a message that has left it for good: what
// waited behind it goes before everything newer of its lane and QoS.
func (l *link) acceptedLocked(f *flight) {
	if !f.probe {
		return
	}
	f.probe = false
	key := f.holdKey()
	hd := l.sess.holds[key]
	if hd == nil {
		return
	}
	delete(l.sess.holds, key)
	for _, h := range hd.flights {
		h.state = flightReady
		l.sess.held -= h.size
	}
	ready := &l.lanes[f.lane].ready[f.qos]
	*ready = append(hd.flights, *ready...)
}
