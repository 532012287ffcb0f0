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
func (l *link) write(ctx context.Context) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		l.pack()
		l.u.mu.Lock()
		now := time.Now()
		l.fillLocked(now)
		next := l.checkLocked(now)
		qos := l.hungryLocked()
		err := l.err
		gather := l.gatherLocked()
		l.unlock()
		if err != nil {
			return err
		}
		l.conn.Flush()
		if ctx.Err() != nil {
			return nil
		}
		if qos != 0 {
			if err := l.read(ctx, qos); err != nil {
				return err
			}
			continue
		}
		timer.Reset(time.Until(next))
		select {
		case <-l.u.wake:
		case <-timer.C:
		case <-ctx.Done():
			return nil
		}
		if gather > 0 {
			timer.Reset(gather)
			select {
			case <-timer.C:
			case <-ctx.Done():
				return nil
			}
		}
	}
}

// gatherLocked is how long what comes next may wait for more, so that many
// messages cost one write and one waking: too little of a round trip for
// anybody to notice.
func (l *link) gatherLocked() time.Duration {
	return min(l.window.trip/64, time.Millisecond)
}

// read gets the next deliveries of a stream that is behind.
func (l *link) read(ctx context.Context, qos byte) error {
	u := l.u
	ds, _, err := u.store.Read(ctx, u.queue, qos, u.opts.Batch, u.opts.WindowBytes)
	if ctx.Err() != nil {
		return nil // the stop is on its way; the writer sees it
	}
	if err != nil {
		return fmt.Errorf("%w: read QoS %d: %w", errStore, qos, err)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	st := &l.streams[qos]
	for i := range ds {
		if ds[i].Seq > st.last {
			st.last = ds[i].Seq
			st.buf = append(st.buf, ds[i])
		}
	}
	if len(ds) > 0 {
		st.behind = true
	}
	return nil
}

// hungryLocked returns the QoS to Read, 0 for none. The mark goes before the
// Read: a Wake or a refused Offer during it must not be lost.
func (l *link) hungryLocked() byte {
	for qos := byte(1); qos <= 2; qos++ {
		if st := &l.streams[qos]; st.behind && len(st.buf) == 0 && !l.leaving && l.roomLocked(0) {
			st.behind = false
			return qos
		}
	}
	return 0
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
		if at, waiting := b.dueAt(now); waiting && l.roomLocked(0) {
			next = earlier(next, at)
		}
	}
	for _, ln := range l.sess.lanes {
		if !ln.probing {
			next = earlier(next, ln.retryAt)
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
// subscriptions, what is to be sent again, QoS 0, and new messages, the
// streams in turn. It stops when the connection is full.
func (l *link) fillLocked(now time.Time) {
	if l.err != nil {
		return
	}
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
		return
	}
	for !l.full && l.err == nil && l.used < l.quota && len(l.resend) > 0 {
		f := l.resend[0]
		l.resend = l.resend[1:]
		l.publishLocked(f, now)
	}
	for !l.full && l.err == nil && len(l.qos0) > 0 {
		l.publish0Locked(now)
	}
	if len(l.resend) > 0 {
		return // nothing new before what is old
	}
	l.probeLocked(now)
	for !l.full && l.err == nil {
		l.admitLocked(now)
		f := l.pickLocked()
		if f == nil {
			if l.used < l.quota && l.roomLocked(0) {
				l.window.idle()
			}
			return
		}
		l.publishLocked(f, now)
	}
}

// admitLocked moves deliveries that were read into flight while there is room,
// the streams in turn, and finishes those that can never be sent.
func (l *link) admitLocked(now time.Time) {
	var ids []durable.Sent
	var fs []*flight
	for idle := 0; idle < 2; {
		st := &l.streams[l.turn]
		l.turn ^= 3 // 1, 2, 1 ...
		if len(st.buf) == 0 {
			idle++
			continue
		}
		d := &st.buf[0]
		switch {
		case l.sess.bySeq[d.Seq] != nil: // in flight since an earlier connection
		case d.PacketID != 0:
			if err := l.admitOldLocked(d); err != nil {
				l.failLocked(err)
				return
			}
		case l.hopelessLocked(d, now):
		default:
			mine, room := l.joinLocked(d, now)
			if !mine {
				room = l.roomLocked(d.Message.Size())
			}
			if !room {
				idle = 2
				l.turn ^= 3
				continue
			}
			if mine {
				break
			}
			f := &flight{seq: d.Seq, msg: d.Message, qos: d.QoS, retain: d.Retain, state: flightReady}
			f.id, _ = l.sess.ids.Take() // room has said that there is one
			if f.qos == 2 {
				f.state = flightSaving
				ids = append(ids, durable.Sent{Seq: f.seq, PacketID: f.id})
				fs = append(fs, f)
			}
			l.sess.add(f)
			l.ready[f.qos] = append(l.ready[f.qos], f)
		}
		st.buf[0] = durable.Delivery{}
		if st.buf = st.buf[1:]; len(st.buf) == 0 {
			st.buf = nil
		}
		idle = 0
	}
	if len(ids) > 0 {
		l.saveLocked(ids, fs)
	}
}

// admitOldLocked takes a delivery with a durable id that came outside load: its
// Offer was refused after the commit.
func (l *link) admitOldLocked(d *durable.Delivery) error {
	if err := l.adoptLocked(d); err != nil {
		return err
	}
	f := l.sess.flights[d.PacketID]
	if f.state == flightReceived {
		l.releases = append(l.releases, f)
	} else {
		l.ready[2] = append(l.ready[2], f)
	}
	return nil
}

// saveLocked makes the packet ids of new QoS 2 messages durable; they go out
// when that is done.
func (l *link) saveLocked(ids []durable.Sent, fs []*flight) {
	u, s := l.u, l.sess
	l.later(func() {
		u.store.Sent(u.queue, ids, func(err error) {
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
func (l *link) hopelessLocked(d *durable.Delivery, now time.Time) bool {
	reason := l.hopeless(d.Message, d.QoS, now)
	if reason == "" {
		return false
	}
	l.droppedLocked(d.Seq, d.QoS, d.Message, reason)
	return true
}

func (l *link) hopeless(m *message.Message, qos byte, now time.Time) string {
	if l.u.loops(m) {
		return dropLoop
	}
	way, remote := l.u.carries(m.Topic)
	if way == nil {
		return dropNoRoute
	}
	if len(remote) > 65535 {
		return dropInvalid
	}
	if _, alive := m.Remaining(now); !alive {
		return dropExpired
	}
	p := packet.Publish{QoS: qos, PacketID: 1, HasExpiry: m.HasExpiry, Topic: l.topic(remote), Properties: m.Properties, Payload: m.Payload}
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
func (l *link) droppedLocked(seq durable.Seq, qos byte, m *message.Message, reason string) {
	u := l.u
	u.dropLocked(reason)
	l.warn(reason, "message dropped", "topic", m.Topic, "qos", qos, "bytes", m.Size(), "seq", uint64(seq), "reason", reason, "dropped", u.status.Dropped[reason])
	l.later(func() {
		u.store.Dropped(u.queue, seq, reason, u.kept)
	})
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

// pickLocked returns the next new message to send; nil if there is none, or
// none may go. Those of a topic of which one was refused wait in its lane.
func (l *link) pickLocked() *flight {
	if l.used >= l.quota {
		return nil
	}
	for range 2 {
		qos := l.pick
		l.pick ^= 3
		for len(l.ready[qos]) > 0 && l.ready[qos][0].state != flightSaving {
			f := l.ready[qos][0]
			l.ready[qos] = l.ready[qos][1:]
			if f.state != flightReady {
				continue // removed meanwhile
			}
			if len(l.sess.lanes) > 0 {
				if ln := l.sess.lanes[f.lane()]; ln != nil {
					f.state = flightHeld
					l.sess.held += f.size
					ln.insert(f)
					continue
				}
			}
			return f
		}
	}
	return nil
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
