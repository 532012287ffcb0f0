package uplink

import (
	"context"
	"errors"
	"fmt"
	"time"

	"holdfast/broker/client"
	"holdfast/broker/durable"
	"holdfast/broker/message"
	"holdfast/broker/packet"
)

// write is the writer: it moves what is due into the connection, reads on from
// the store when there is room, and watches the clock. It returns why the link
// is over, or nil when ctx has ended.
//
// After each write it rests for a moment, so that many messages cost one write and
// one waking. Who comes after a pause waits for nothing.
func (l *link) write(ctx context.Context) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		l.settleChanges()
		l.pack()
		l.u.mu.Lock()
		now := time.Now()
		l.content = l.fillLocked(now)
		next := l.checkLocked(now)
		hungry, qos := l.hungryLocked()
		err := l.err
		rest := l.restLocked()
		l.unlock()
		if err != nil {
			return err
		}
		wrote := l.conn.Flush()
		if ctx.Err() != nil {
			return nil
		}
		if hungry != nil {
			if err := hungry.read(ctx, qos); err != nil {
				return err
			}
			continue
		}
		if wrote && rest > 0 {
			timer.Reset(rest)
			select {
			case <-timer.C:
			case <-ctx.Done():
				return nil
			}
		}
		timer.Reset(time.Until(next))
		select {
		case <-l.u.wake:
		case <-timer.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// restLocked is how long the writer rests after a write: too little of a round trip
// for anybody to notice.
func (l *link) restLocked() time.Duration {
	return min(l.window.trip/32, 4*time.Millisecond)
}

// checkLocked looks at the clock: is the cloud stuck, is it time for another
// try? It returns when to look again.
func (l *link) checkLocked(now time.Time) time.Time {
	next := now.Add(time.Hour)
	by := func(t time.Time, why error) {
		if !now.Before(t) {
			if errors.Is(why, errStuck) {
				l.u.status.StuckConnections++
			}
			l.failLocked(why)
			return
		}
		next = earlier(next, t)
	}
	if limit := l.u.opts.AckTimeout; limit > 0 && l.err == nil {
		for i := range l.awaiting {
			f := l.awaiting[i].oldest()
			if f == nil {
				continue
			}
			since := f.sentAt
			// A slow link may take long for much, as long as it gets
			// somewhere; but what was passed over will not come.
			if !f.passed && l.progress.After(since) {
				since = l.progress
			}
			by(since.Add(limit), errStuck)
		}
		for _, call := range l.subs {
			by(call.sentAt.Add(limit), errStuck)
		}
	}
	if !l.askAgain.IsZero() {
		by(l.askAgain, errAskAgain)
	}
	for _, b := range l.batches {
		if at, waiting := b.dueAt(now); waiting && l.roomLocked(0) && !b.lane.restrictedLocked() {
			if wait := l.held; wait > 0 && l.hasWaited(b.waiting[0].Message) {
				at = now.Add(wait)
			}
			next = earlier(next, at)
		}
	}
	next = earlier(next, l.accountLocked(now))
	if l.held > 0 {
		next = earlier(next, now.Add(l.held))
	}
	for _, hd := range l.sess.holds {
		if !hd.probing {
			next = earlier(next, hd.retryAt)
		}
	}
	return next
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// oldestLocked returns since when the cloud has owed us an acknowledgement.
func (l *link) oldestLocked() (oldest time.Time, ok bool) {
	for i := range l.awaiting {
		if f := l.awaiting[i].oldest(); f != nil && (!ok || f.sentAt.Before(oldest)) {
			oldest, ok = f.sentAt, true
		}
	}
	return oldest, ok
}

// fillLocked queues everything that may go out now: acknowledgements first,
// since others wait for them, our own status, PUBRELs, which make room,
// subscriptions, what is to be sent again, QoS 0, and new messages as the
// scheduler of the lanes says. It stops when the connection is full. It returns
// true if nothing more is to be done before somebody wakes the writer, whatever
// is acknowledged meanwhile.
func (l *link) fillLocked(now time.Time) (content bool) {
	if l.err != nil {
		return false
	}
	l.now, l.held = now, l.pace.waits(now)
	l.acknowledgeLocked(now)
	for !l.full && l.err == nil && len(l.own) > 0 && l.used < l.quota {
		f := l.own[0]
		l.own = l.own[1:]
		l.publishLocked(f, now)
	}
	for len(l.releases) > 0 && !l.leaving {
		f := l.releases[0]
		l.releases = l.releases[1:]
		l.queueLocked(&packet.Pubrel{PacketID: f.id})
		f.state, f.sentAt, f.passed = flightReleased, now, false
		l.awaiting[awaitPubcomp].push(f)
	}
	for len(l.unsent) > 0 && !l.leaving {
		l.queueLocked(l.unsent[0])
		l.unsent = l.unsent[1:]
	}
	if l.leaving {
		return false
	}
	l.stray = false
	for !l.full && !l.stray && l.err == nil && l.used < l.quota && len(l.resend) > 0 && l.window.fits(l.resend[0].size) {
		f := l.resend[0]
		l.resend = l.resend[1:]
		l.publishLocked(f, now)
	}
	for !l.full && l.err == nil && len(l.qos0) > 0 {
		l.publish0Locked(now)
	}
	for _, ln := range l.lanes {
		ln.tidyLocked(now)
	}
	if len(l.resend) > 0 {
		return false // nothing new before what is old
	}
	l.probeLocked(now)
	if l.statesLocked(now); len(l.states) > 0 {
		return false
	}
	for !l.full && !l.stray && l.err == nil {
		f, idle := l.pickLocked(now)
		if f == nil {
			if idle {
				l.window.idle()
			}
			return idle && l.held == 0 && len(l.own) == 0 && len(l.qos0) == 0 && len(l.batches) == 0 &&
				len(l.sess.holds) == 0 && len(l.u.changes) == 0
		}
		if f.seq != 0 { // it may have been the head
			l.lanes[f.lane].tidyLocked(now)
		}
		l.publishLocked(f, now)
		if f.state == flightSent {
			l.sched.sent(f.lane, max(f.size, 1))
		}
	}
	return false
}

// admitOldLocked takes a delivery with a durable id that came outside load: its
// Offer was refused after the commit.
func (ln *lane) admitOldLocked(d *durable.Delivery) error {
	l := ln.l
	f, err := l.adoptLocked(ln, d)
	if err != nil {
		return err
	}
	l.orderAdoptedLocked()
	if f.state == flightReceived {
		l.releases = append(l.releases, f)
	} else {
		ln.ready[2] = append(ln.ready[2], f)
	}
	return nil
}

// saveLocked makes the packet ids of new QoS 2 messages of a lane durable; they go
// out when that is done.
func (ln *lane) saveLocked(ids []durable.Sent, fs []*flight) {
	l, u, s := ln.l, ln.l.u, ln.l.sess
	l.later(func() {
		u.store.Sent(ln.queue, ids, func(err error) {
			u.mu.Lock()
			defer u.mu.Unlock()
			if u.sess != s {
				return
			}
			for _, f := range fs {
				if f.state = flightReady; err != nil {
					s.remove(f) // it is read again by the next connection
				}
			}
			if err != nil {
				u.storeFailedLocked(err)
			}
			u.wakeLocked()
		})
	})
}

// hopelessLocked says that a delivery that was never sent cannot be, and
// finishes it.
func (ln *lane) hopelessLocked(d *durable.Delivery, now time.Time) bool {
	reason := ln.l.hopeless(d.Message, d.QoS, now)
	if reason == "" && ln.thinsLocked(d) {
		reason = dropThinned
	}
	if reason == "" {
		return false
	}
	ln.l.droppedLocked(ln.queue, d.Seq, d.QoS, d.Message, reason)
	return true
}

func (l *link) hopeless(m *message.Message, qos byte, now time.Time) string {
	if l.u.loops(m) {
		return dropLoop
	}
	way, remote := l.u.carries(m.Topic)
	if way == nil {
		if l.u.onTrial && qos > 0 {
			return "" // it waits, see publishLocked
		}
		return dropNoRoute
	}
	if len(remote) > 65535 {
		return dropInvalid
	}
	_, limited, alive := way.remaining(m, now)
	if !alive {
		return dropExpired
	}
	p := packet.Publish{QoS: qos, PacketID: 1, HasExpiry: limited, Topic: l.topic(remote), Properties: m.Properties, Payload: m.Payload}
	if l.tooLarge(&p) {
		return dropTooLarge
	}
	return ""
}

func (l *link) tooLarge(p *packet.Publish) bool {
	return uint64(p.Size(l.v)) > uint64(l.limits.MaximumPacketSize)
}

// topic returns the bytes of a topic name in a buffer used again and again.
func (l *link) topic(name string) []byte {
	l.name = append(l.name[:0], name...)
	return l.name
}

// droppedLocked counts a message that will not be sent and has the store
// finish it.
func (l *link) droppedLocked(queue durable.QueueID, seq durable.Seq, qos byte, m *message.Message, reason string) {
	u := l.u
	u.dropLocked(reason)
	l.warn(reason, "message dropped", "topic", m.Topic, "qos", qos, "bytes", m.Size(), "seq", uint64(seq), "reason", reason, "dropped", u.status.Dropped[reason])
	l.later(func() { u.setAside(queue, seq, reason, u.kept) })
}

// setAside has the store finish a message that will not be sent. One that is too
// large for the cloud may be worth something to a person: it is a dead letter.
func (u *Uplink) setAside(queue durable.QueueID, seq durable.Seq, reason string, done func(error)) {
	if reason == dropTooLarge {
		u.store.Refused(queue, seq, byte(packet.ReasonPacketTooLarge), done)
		return
	}
	u.store.Dropped(queue, seq, reason, done)
}

// kept is the done of calls that nothing waits for.
func (u *Uplink) kept(err error) {
	if err == nil {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.storeFailedLocked(err)
}

// queueLocked queues a packet other than PUBLISH, which is never refused for
// want of room.
func (l *link) queueLocked(p packet.Packet) {
	if err := l.conn.Queue(p); err != nil {
		l.queueFailedLocked(err)
	}
}

// queueFailedLocked gives the link up for want of a way to say something. When
// the connection is over the reader knows why, and says so.
func (l *link) queueFailedLocked(err error) {
	if !errors.Is(err, client.ErrClosed) {
		l.failLocked(fmt.Errorf("send: %w", err))
	}
	l.full = true
}
