package uplink

import (
	"slices"
	"time"

	"holdfast/broker/packet"
)

// filtersAtOnce is the most topic filters in one SUBSCRIBE or UNSUBSCRIBE: AWS
// IoT ends the connection at nine.
const filtersAtOnce = 8

// subscribeLocked asks for the routes in, and gives back what an earlier
// configuration asked for. A session that has them keeps them.
func (l *link) subscribeLocked(now time.Time) {
	for stale := range slices.Chunk(l.stale, filtersAtOnce) {
		id, _ := l.sess.ids.Take()
		l.subs[id] = subCall{filters: stale, sentAt: now, gone: true}
		l.unsent = append(l.unsent, &packet.Unsubscribe{PacketID: id, Filters: stale})
	}
	if l.sess.subscribed {
		return
	}
	for ws := range slices.Chunk(l.u.in, filtersAtOnce) {
		id, _ := l.sess.ids.Take()
		p := &packet.Subscribe{PacketID: id}
		call := subCall{sentAt: now}
		for _, w := range ws {
			p.Filters = append(p.Filters, packet.Filter{
				Filter: w.filter, QoS: w.qos,
				NoLocal:           true, // what we send must not come back
				RetainAsPublished: true,
				RetainHandling:    1, // retained messages only when it is new, not at every reconnect
			})
			call.filters = append(call.filters, w.filter)
		}
		l.subs[p.PacketID] = call
		l.unsent = append(l.unsent, p)
	}
}

// subackLocked takes the answer to a SUBSCRIBE. What is refused is asked for
// again by the next connection; the link is good for the rest.
func (l *link) subackLocked(p *packet.Suback) error {
	u := l.u
	call, ok := l.subs[p.PacketID]
	if !ok || call.gone {
		u.status.UnknownAcks++
		return nil
	}
	if len(p.Reasons) != len(call.filters) {
		// MQTT 5.0 §3.9.3 [MQTT-3.9.3-1].
		return &packet.Error{Reason: packet.ReasonProtocolError, Type: packet.TypeSuback, Field: "reason codes", Detail: "not one for each filter"}
	}
	delete(l.subs, p.PacketID)
	l.sess.ids.Free(p.PacketID)
	l.progress = time.Now()
	for i, reason := range p.Reasons {
		if reason.Failed() {
			u.status.SubscribeRefused++
			l.unheard = true
			l.warn("", "route in refused by the cloud", "topic", call.filters[i], "reason", reason)
		}
	}
	l.sess.subscribed = !l.unheard
	for _, other := range l.subs {
		l.sess.subscribed = l.sess.subscribed && other.gone
	}
	l.u.wakeLocked()
	return nil
}

// unsubackLocked takes the answer to an UNSUBSCRIBE; the filter is forgotten.
func (l *link) unsubackLocked(p *packet.Unsuback) {
	call, ok := l.subs[p.PacketID]
	if !ok || !call.gone {
		l.u.status.UnknownAcks++
		return
	}
	delete(l.subs, p.PacketID)
	l.sess.ids.Free(p.PacketID)
	l.progress = time.Now()
	l.memory.Filters = slices.DeleteFunc(l.memory.Filters, func(f string) bool { return slices.Contains(call.filters, f) })
	u, m := l.u, l.memory.encode()
	l.later(func() { u.store.SetSessionState(u.queue, m, u.kept) })
}
