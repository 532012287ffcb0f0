package uplink

import (
	"slices"
	"time"

	"holdfast/broker/packet"
)

// laneKey names a lane: order is kept per topic and QoS (MQTT 5.0 §4.6).
type laneKey struct {
	topic string
	qos   byte
}

// lane is where f waits when it is refused. Messages that may go in a batch keep
// their order with those that do.
func (f *flight) lane() laneKey {
	if f.with != nil && f.qos == 1 {
		return laneKey{f.with.topic, f.qos}
	}
	return laneKey{f.msg.Topic, f.qos}
}

// lane holds the messages of one topic and QoS of which the cloud refused one
// for now. Others go on meanwhile; these wait for the next try of the first,
// so that they keep their order among themselves. They keep their places in
// the window, which bounds them: a cloud that refuses long enough fills it, and
// the rest then waits in the store.
type lane struct {
	flights []*flight
	backoff backoff
	retryAt time.Time
	// probing says that the first is with the cloud again.
	probing bool
}

// insert puts f in by its sequence number: refusals come in order, but behind
// them there may already be messages that were never sent.
func (ln *lane) insert(f *flight) {
	i, _ := slices.BinarySearchFunc(ln.flights, f, func(a, b *flight) int { return compare(a.seq, b.seq) })
	ln.flights = slices.Insert(ln.flights, i, f)
}

// holdLocked keeps a message that was refused for now.
func (l *link) holdLocked(f *flight, reason packet.ReasonCode) {
	u, key := l.u, f.lane()
	f.state = flightHeld
	l.sess.held += f.size
	ln := l.sess.lanes[key]
	if ln == nil {
		ln = &lane{backoff: newBackoff(u.opts.ReconnectMin, u.opts.ReconnectMax)}
		l.sess.lanes[key] = ln
	}
	ln.insert(f)
	if f.probe || ln.retryAt.IsZero() {
		f.probe, ln.probing = false, false
		pause := ln.backoff.next()
		ln.retryAt = time.Now().Add(pause)
		l.warn("held", "message refused for now", "topic", f.msg.Topic, "qos", f.qos, "packet_id", f.id, "seq", uint64(f.seq), "reason", reason, "delay", pause)
	}
}

// probeLocked sends the first message of each lane whose pause is over.
func (l *link) probeLocked(now time.Time) {
	for _, ln := range l.sess.lanes {
		if l.full || l.used >= l.quota || l.err != nil {
			return
		}
		if ln.probing || now.Before(ln.retryAt) {
			continue
		}
		f := ln.flights[0]
		ln.flights = ln.flights[1:]
		f.probe, ln.probing = true, true
		l.sess.held -= f.size
		l.publishLocked(f, now)
	}
}

// acceptedLocked opens the lane of a message that has left it for good: what
// waited behind it goes before everything newer of its QoS.
func (l *link) acceptedLocked(f *flight) {
	if !f.probe {
		return
	}
	f.probe = false
	key := f.lane()
	ln := l.sess.lanes[key]
	if ln == nil {
		return
	}
	delete(l.sess.lanes, key)
	for _, h := range ln.flights {
		h.state = flightReady
		l.sess.held -= h.size
	}
	l.ready[f.qos] = append(ln.flights, l.ready[f.qos]...)
}
