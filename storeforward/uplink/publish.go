package uplink

import (
	"errors"
	"time"

	"holdfast/broker/client"
	"holdfast/broker/packet"
)

// publishLocked sends the PUBLISH of f, for the first time or again, or
// finishes f when it can no longer be sent.
func (l *link) publishLocked(f *flight, now time.Time) {
	u := l.u
	p := &l.pub
	*p = packet.Publish{
		Dup: f.sent, QoS: min(f.qos, l.limits.MaximumQoS), Retain: f.retain, PacketID: f.id,
		Properties: propertiesOut(f.msg), Payload: f.msg.Payload,
	}
	remote := f.remote
	reason := ""
	var way *way
	switch {
	case f.members != nil:
		if remote = f.with.topic; l.v != packet.V5 {
			remote += f.with.suffix
		}
	case f.seq != 0:
		way, remote = u.carries(f.msg.Topic)
		if way == nil && u.onTrial {
			l.stray = true
			l.putBackLocked(f)
			return
		}
		if way == nil {
			reason = dropNoRoute
		} else if way.strip {
			p.Retain = false
		}
		var foreign bool
		if p.Payload, foreign = way.rendered(f.msg, remote); foreign && !f.sent {
			u.status.NotRendered++
		}
		if u.loops(f.msg) {
			reason = dropLoop
		}
	}
	left, limited, alive := way.remaining(f.msg, now)
	switch {
	case !alive && !f.sent:
		reason = dropExpired
	case limited:
		p.HasExpiry, p.MessageExpiry = true, max(left, 1) // see doc.go
	}
	if !l.limits.Retain {
		p.Retain = false // it would end the connection (MQTT 5.0 §3.2.2.3.5)
	}
	p.Topic = l.topic(remote)
	switch {
	case reason != "":
	case len(remote) > 65535:
		reason = dropInvalid
	case l.tooLarge(p):
		reason = dropTooLarge
	}
	if reason != "" {
		l.giveUpLocked(f, reason)
		return
	}
	if f.seq != 0 { // our own come once in a connection
		l.aliasLocked(p, remote)
	}
	switch err := l.conn.Queue(p); {
	case errors.Is(err, client.ErrOutputFull):
		l.full = true
		l.putBackLocked(f)
		return
	case err != nil:
		l.queueFailedLocked(err)
		l.putBackLocked(f)
		return
	}
	if f.seq != 0 {
		l.aliases.Used(remote, p.TopicAlias)
	}
	switch {
	case !f.sent:
		u.status.MessagesOut += f.count()
		if f.seq != 0 {
			u.status.Lanes[f.lane].MessagesOut += f.count()
			u.status.Lanes[f.lane].BytesOut += uint64(f.size)
		}
		if p.QoS < f.qos {
			u.status.Downgraded++
		}
	default:
		u.status.Resends++
		if f.qos == 1 {
			u.status.Duplicates += f.count()
		}
	}
	f.repeated = f.sent
	if f.order == 0 {
		l.sess.order++
		f.order = l.sess.order
	}
	f.sent, f.state, f.sentAt, f.passed = true, flightSent, now, false
	f.counted = true
	l.used++
	f.sample = l.window.sent(f.size, now)
	if f.waited {
		l.pace.spend(p.Size(l.v))
		l.held = l.pace.waits(now)
	}
	to := awaitPuback
	if p.QoS == 2 {
		to = awaitPubrec
	}
	l.awaiting[to].push(f)
}

// aliasLocked puts an alias into p, in place of the topic if the cloud knows it.
func (l *link) aliasLocked(p *packet.Publish, remote string) {
	id, known := l.aliases.Choose(remote)
	p.TopicAlias = id
	switch {
	case known:
		p.Topic = nil
	case id != 0 && l.tooLarge(p): // by the bytes of the alias
		p.TopicAlias = 0
	}
}

// putBackLocked returns what could not be queued to the front of its queue.
func (l *link) putBackLocked(f *flight) {
	switch {
	case f.seq == 0:
		l.own = append([]*flight{f}, l.own...)
	case f.order != 0:
		l.resend = append([]*flight{f}, l.resend...)
	default:
		ready := &l.lanes[f.lane].ready[f.qos]
		*ready = append([]*flight{f}, *ready...)
	}
}

// giveUpLocked finishes a message in flight that cannot be sent.
func (l *link) giveUpLocked(f *flight, reason string) {
	if f.seq == 0 {
		l.warn("", "status message not sent", "topic", f.remote, "reason", reason)
		l.sess.remove(f)
		return
	}
	u, s := l.u, l.sess
	l.acceptedLocked(f) // what waits behind it may go
	if f.qos == 1 {
		for seq := range f.seqs() {
			l.droppedLocked(u.queueOf(f), seq, f.qos, f.msg, reason)
		}
		s.remove(f)
		return
	}
	f.state = flightEnding
	u.dropLocked(reason)
	l.warn(reason, "message dropped", "topic", f.msg.Topic, "qos", f.qos, "packet_id", f.id, "bytes", f.size, "seq", uint64(f.seq), "reason", reason, "dropped", u.status.Dropped[reason])
	l.later(func() { u.setAside(u.queueOf(f), f.seq, reason, u.ended(s, f, flightReady)) })
}

// ended returns the done of a call that finishes f: its packet id is free when
// it is durable. If the store fails, f goes back to where it was.
func (u *Uplink) ended(s *session, f *flight, back flightState) func(error) {
	return func(err error) {
		u.mu.Lock()
		defer u.mu.Unlock()
		if u.sess != s {
			return
		}
		if err != nil {
			f.state = back
			u.storeFailedLocked(err)
			return
		}
		s.remove(f)
		u.wakeLocked()
	}
}

// publish0Locked sends the oldest QoS 0 message, or drops it.
func (l *link) publish0Locked(now time.Time) {
	u := l.u
	m := l.qos0[0]
	if reason := l.hopeless(m, 0, now); reason != "" {
		u.dropLocked(reason)
		l.qos0 = l.qos0[1:]
		return
	}
	way, remote := u.carries(m.Topic)
	payload, foreign := way.rendered(m, remote)
	p := &l.pub
	*p = packet.Publish{
		Retain: m.Retain && !way.strip && l.limits.Retain,
		Topic:  l.topic(remote), Properties: propertiesOut(m), Payload: payload,
	}
	p.MessageExpiry, p.HasExpiry, _ = way.remaining(m, now)
	l.aliasLocked(p, remote)
	switch err := l.conn.Queue(p); {
	case errors.Is(err, client.ErrOutputFull):
		l.full = true
		return
	case err != nil:
		l.queueFailedLocked(err)
		return
	}
	l.aliases.Used(remote, p.TopicAlias)
	u.status.MessagesOut++
	if foreign {
		u.status.NotRendered++
	}
	l.qos0 = l.qos0[1:]
}
