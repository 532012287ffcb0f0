package uplink

import (
	"errors"
	"fmt"
	"time"

	"holdfast/broker/durable"
	"holdfast/broker/message"
	"holdfast/broker/packet"
)

// receive handles one packet of the cloud; the connection's reader calls it.
func (l *link) receive(p packet.Packet) error {
	if p.Type() != packet.TypePuback {
		l.tellAcked() // order; and what follows may wait for somebody
	}
	switch p := p.(type) {
	case *packet.Publish:
		return l.received(p)
	case *packet.Pubrel:
		l.released(p)
		return nil
	}
	l.u.mu.Lock()
	defer l.unlock()
	switch p := p.(type) {
	case *packet.Puback:
		if l.pubackLocked(p); l.content {
			l.window.idle() // as the writer would
			return nil
		}
	case *packet.Pubrec:
		l.pubrecLocked(p)
	case *packet.Pubcomp:
		l.pubcompLocked(p)
	case *packet.Suback:
		return l.subackLocked(p)
	case *packet.Unsuback:
		l.unsubackLocked(p)
	default: // the connection lets nothing else through
		return fmt.Errorf("%s from the cloud", p.Type())
	}
	l.u.wakeLocked()
	return nil
}

// tellAcked tells the store what the cloud has acknowledged. The reader calls it
// when it has handled all that came at once: that makes the messages of many
// publishers safe, and one waking does for all their acknowledgements.
func (l *link) tellAcked() {
	for _, ln := range l.lanes {
		if len(ln.acked) == 0 {
			continue
		}
		l.u.store.AckedAll(ln.queue, ln.acked)
		if ln.acked = ln.acked[:0]; cap(ln.acked) > keepAcked {
			ln.acked = nil
		}
	}
}

// keepAcked is for how many sequence numbers there is room while nothing comes:
// a read has some 1500 PUBACKs at most.
const keepAcked = 2048

// answeredLocked returns the flight that waits for this kind of answer under
// this id, and takes it off the list; nil when there is none, which is counted:
// an answer given twice, or to nothing.
func (l *link) answeredLocked(kind int, id uint16, want flightState) *flight {
	f := l.sess.flights[id]
	if f == nil || f.state != want || !f.awaited || l.awaits(f) != kind {
		l.u.status.UnknownAcks++
		return nil
	}
	l.awaiting[kind].answer(f)
	l.progress = time.Now()
	return f
}

// giveRoomLocked gives the place f takes of the Receive Maximum back.
func (l *link) giveRoomLocked(f *flight) {
	if f.counted {
		f.counted = false
		l.used--
	}
}

// awaits is what a message that was sent waits for.
func (l *link) awaits(f *flight) int {
	switch {
	case f.state == flightReleased:
		return awaitPubcomp
	case min(f.qos, l.limits.MaximumQoS) == 2:
		return awaitPubrec
	default:
		return awaitPuback
	}
}

// countAckedLocked counts messages that the cloud has.
func (l *link) countAckedLocked(n uint64) {
	l.u.status.Acked += n
	if l.acked.add(n, l.progress) {
		l.later(l.countAppended)
	}
}

func (l *link) measureLocked(f *flight) {
	trip := l.progress.Sub(f.sentAt)
	if f.repeated {
		l.window.acked(&f.sample, f.sentAt, l.progress, 0)
		return
	}
	l.window.acked(&f.sample, f.sentAt, l.progress, trip)
	l.u.tripLocked(trip)
}

// pubackLocked ends a QoS 1 message (MQTT 5.0 §4.3.2), or a QoS 2 one that had
// to go as QoS 1. A 3.1.1 cloud cannot say that it has no QoS 2, and some answer
// such a message with PUBACK and keep it as QoS 1 (RabbitMQ before 3.12): to
// wait for a PUBREC would be to wait for ever (! MQTT 3.1.1 §4.3.3).
func (l *link) pubackLocked(p *packet.Puback) {
	u, s := l.u, l.sess
	kind := awaitPuback
	if f := s.flights[p.PacketID]; l.v != packet.V5 && f != nil && f.state == flightSent {
		kind = l.awaits(f)
	}
	f := l.answeredLocked(kind, p.PacketID, flightSent)
	if f == nil {
		return
	}
	if kind == awaitPubrec {
		u.status.Downgraded++
		l.warn("downgraded", "cloud takes QoS 2 as QoS 1", "topic", f.msg.Topic, "packet_id", f.id, "downgraded", u.status.Downgraded)
	}
	l.giveRoomLocked(f)
	l.measureLocked(f)
	switch {
	case f.seq == 0:
		if f == l.last {
			l.said = true
			u.wakeLocked()
		}
		if p.Reason.Failed() {
			l.warn("", "status message refused", "topic", f.remote, "reason", p.Reason)
		}
		s.remove(f)
	case p.Reason.Failed():
		l.refusedLocked(f, p.Reason)
	case f.qos == 2:
		l.countAckedLocked(1)
		l.acceptedLocked(f)
		f.state = flightEnding
		l.later(func() {
			u.store.Received(u.queueOf(f), f.seq, u.kept)
			u.store.Completed(u.queueOf(f), f.seq, u.ended(s, f, flightSent))
		})
	default:
		l.countAckedLocked(f.count())
		l.acceptedLocked(f)
		s.remove(f)
		ln := l.lanes[f.lane]
		for seq := range f.seqs() {
			ln.acked = append(ln.acked, seq)
		}
	}
}

// pubrecLocked makes the cloud's taking over of a QoS 2 message durable; the
// PUBREL follows when it is (MQTT 5.0 §4.3.3).
func (l *link) pubrecLocked(p *packet.Pubrec) {
	u, s := l.u, l.sess
	f := s.flights[p.PacketID]
	if f == nil && !p.Reason.Failed() {
		// The cloud holds an id of which we know nothing: let it go
		// (MQTT 5.0 §3.6.2.1).
		u.status.UnknownAcks++
		l.queueLocked(&packet.Pubrel{PacketID: p.PacketID, Reason: packet.ReasonPacketIDNotFound})
		return
	}
	if f = l.answeredLocked(awaitPubrec, p.PacketID, flightSent); f == nil {
		return
	}
	l.measureLocked(f)
	if p.Reason.Failed() {
		l.giveRoomLocked(f)
		l.refusedLocked(f, p.Reason)
		return
	}
	l.acceptedLocked(f)
	f.state = flightReceiving
	l.later(func() {
		u.store.Received(u.queueOf(f), f.seq, func(err error) {
			u.mu.Lock()
			defer u.mu.Unlock()
			if u.sess != s {
				return
			}
			if err != nil {
				f.state = flightSent // sent again by the next connection
				u.storeFailedLocked(err)
				return
			}
			f.state = flightReceived
			s.bytes -= f.size
			f.msg, f.size = nil, 0
			if u.link != nil {
				u.link.releases = append(u.link.releases, f)
			}
			u.wakeLocked()
		})
	})
}

// pubcompLocked ends a QoS 2 message; 0x92 is success too: the cloud is done
// with the id.
func (l *link) pubcompLocked(p *packet.Pubcomp) {
	u, s := l.u, l.sess
	f := l.answeredLocked(awaitPubcomp, p.PacketID, flightReleased)
	if f == nil {
		return
	}
	l.giveRoomLocked(f)
	l.countAckedLocked(1)
	f.state = flightEnding
	l.later(func() { u.store.Completed(u.queueOf(f), f.seq, u.ended(s, f, flightReleased)) })
}

// refusedLocked deals with a PUBACK or PUBREC of 0x80 or above. The exchange is
// over for both sides.
func (l *link) refusedLocked(f *flight, reason packet.ReasonCode) {
	u, s := l.u, l.sess
	f.sent = false
	u.wakeLocked() // it may have to ask again
	if forNow(reason) {
		u.status.RefusedForNow++
		l.holdLocked(f, reason)
		return
	}
	u.status.Refused += f.count()
	l.warn("refused", "message refused by the cloud", "topic", f.msg.Topic, "qos", f.qos, "packet_id", f.id, "seq", uint64(f.seq), "reason", reason, "refused", u.status.Refused)
	l.acceptedLocked(f) // what waits behind it may go
	if f.qos == 1 {
		s.remove(f)
		l.later(func() {
			for seq := range f.seqs() {
				u.store.Refused(u.queueOf(f), seq, byte(reason), u.kept)
			}
		})
		return
	}
	f.state = flightEnding
	l.later(func() { u.store.Refused(u.queueOf(f), f.seq, byte(reason), u.ended(s, f, flightReady)) })
}

// receiptState is where a message of the cloud stands.
type receiptState byte

const (
	receiptPending   receiptState = iota // on its way to safety here
	receiptTaken                         // safe, or nothing to keep
	receiptRefused                       // not taken; reason says why
	receiptReleasing                     // QoS 2: its packet id is being removed
)

// receipt is one QoS 1 or 2 message of the cloud from its arrival to our
// answer; one of QoS 2 lives until its packet id is removed.
type receipt struct {
	id     uint16
	qos    byte
	state  receiptState
	reason packet.ReasonCode
}

// received takes a message of the cloud in.
func (l *link) received(p *packet.Publish) error {
	u := l.u
	way, name := u.in.inbound(string(p.Topic))
	if p.QoS == 0 {
		if way == nil {
			l.strange(p)
			return nil
		}
		if err := u.local.Publish(u.incoming(p, way, name), durable.Origin{Queue: u.queue}, nil); err != nil {
			u.notTaken(name, err)
			return nil
		}
		u.mu.Lock()
		u.status.MessagesIn++
		u.mu.Unlock()
		return nil
	}
	r, fresh := l.claim(p)
	if !fresh {
		return nil
	}
	if way == nil {
		l.strange(p)
		l.settle(r, receiptRefused, packet.ReasonNotAuthorized)
		return nil
	}
	from := durable.Origin{Queue: u.queue}
	if p.QoS == 2 {
		from.PacketID = p.PacketID
	}
	done := func(err error) {
		switch {
		case err == nil:
			l.settle(r, receiptTaken, packet.ReasonSuccess)
		case errors.Is(err, durable.ErrClosed):
			u.kept(err) // we are stopping: no answer, the cloud keeps it
		default:
			u.notTaken(name, err)
			l.settle(r, receiptRefused, packet.ReasonQuotaExceeded)
		}
	}
	if err := u.local.Publish(u.incoming(p, way, name), from, done); err != nil {
		done(err)
	}
	return nil
}

// claim gives the message its place in the line of acknowledgements; fresh is
// false when it is not to be published: a QoS 2 message that came before joins
// the wait of its first coming.
func (l *link) claim(p *packet.Publish) (r *receipt, fresh bool) {
	u, s := l.u, l.sess
	u.mu.Lock()
	defer u.mu.Unlock()
	// 3.1.1 knows no Receive Maximum, and who breaks it in 5.0 may wait too.
	for len(l.lines[1])+len(l.lines[2]) >= u.opts.ReceiveMaximum && l.err == nil {
		l.lineRoom.Wait()
	}
	if l.err != nil || l.refusing {
		return nil, false
	}
	if p.QoS == 2 {
		if r := s.received[p.PacketID]; r != nil {
			u.status.InDuplicates++
			l.lines[2] = append(l.lines[2], r)
			l.u.wakeLocked()
			return r, false
		}
	}
	r = &receipt{id: p.PacketID, qos: p.QoS}
	l.lines[r.qos] = append(l.lines[r.qos], r)
	if r.qos == 2 {
		s.received[r.id] = r
	}
	return r, true
}

// settle says how the taking of a message ended. The claim of a QoS 2 message
// that was not taken is withdrawn, so that its resend is taken for new.
func (l *link) settle(r *receipt, state receiptState, reason packet.ReasonCode) {
	u := l.u
	u.mu.Lock()
	defer u.mu.Unlock()
	r.state, r.reason = state, reason
	if state == receiptTaken {
		u.status.MessagesIn++
	} else if r.qos == 2 && l.sess.received[r.id] == r {
		delete(l.sess.received, r.id)
	}
	u.wakeLocked() // a later link may have the resend in its line
}

// incoming makes the cloud's message a local one. The packet's bytes are the
// connection's; this is the one copy.
func (u *Uplink) incoming(p *packet.Publish, way *way, name string) *message.Message {
	both := append(append(make([]byte, 0, len(p.Payload)+len(p.Properties)), p.Payload...), p.Properties...)
	n := len(p.Payload)
	return &message.Message{
		Topic: name, Payload: both[:n:n], Properties: both[n:],
		QoS: min(p.QoS, way.qos), Retain: p.Retain && !way.strip,
		HasExpiry: p.HasExpiry, Expiry: p.MessageExpiry,
		Received: time.Now(), From: u.from,
	}
}

// strange counts a message that no route in asks for: the cloud still has a
// subscription of another configuration, or sends what it likes.
func (l *link) strange(p *packet.Publish) {
	u := l.u
	if u.drop(dropInNoRoute) {
		u.log.Warn("message of the cloud dropped", "topic", string(p.Topic), "qos", p.QoS, "bytes", len(p.Payload), "reason", dropInNoRoute)
	}
}

// notTaken counts a message of the cloud that was refused here.
func (u *Uplink) notTaken(topic string, err error) {
	if u.drop(dropInFull) {
		u.log.Warn("message of the cloud refused", "topic", topic, "err", err)
	}
}

// acknowledgeLocked sends the acknowledgements that are due, each line in the
// order of arrival (MQTT 5.0 §4.6 [MQTT-4.6.0-2], [MQTT-4.6.0-3]).
func (l *link) acknowledgeLocked(now time.Time) {
	for qos := 1; qos <= 2; qos++ {
		line := l.lines[qos]
		for len(line) > 0 && line[0].state != receiptPending {
			r := line[0]
			line = line[1:]
			l.answerLocked(r, now)
		}
		if len(line) != len(l.lines[qos]) {
			l.lines[qos] = line
			l.lineRoom.Broadcast()
		}
	}
	for i := range l.completes {
		l.queueLocked(&l.completes[i])
	}
	l.completes = l.completes[:0]
}

func (l *link) answerLocked(r *receipt, now time.Time) {
	reason := r.reason
	if r.state == receiptRefused && l.v != packet.V5 {
		if reason == packet.ReasonQuotaExceeded {
			// Without an answer it comes again, but only on the next
			// connection; and nothing may come in before it.
			if !l.refusing {
				l.refusing = true
				l.askAgain = now.Add(l.u.again.next())
			}
			return
		}
		reason = packet.ReasonSuccess
	}
	if r.qos == 1 {
		l.queueLocked(&packet.Puback{PacketID: r.id, Reason: reason})
		return
	}
	l.queueLocked(&packet.Pubrec{PacketID: r.id, Reason: reason})
}

// released removes the packet id of a QoS 2 message of the cloud; PUBCOMP
// follows when that is durable.
func (l *link) released(p *packet.Pubrel) {
	u, s := l.u, l.sess
	id := p.PacketID
	u.mu.Lock()
	defer l.unlock()
	r := s.received[id]
	switch {
	case r == nil:
		l.completes = append(l.completes, packet.Pubcomp{PacketID: id, Reason: packet.ReasonPacketIDNotFound})
		l.u.wakeLocked()
		return
	case r.state != receiptTaken:
		return // already being removed, or released before we said PUBREC
	}
	r.state = receiptReleasing
	l.later(func() {
		u.store.Release(u.queue, id, func(err error) {
			u.mu.Lock()
			defer u.mu.Unlock()
			if u.sess != s {
				return
			}
			if err != nil {
				r.state = receiptTaken // PUBREL comes again
				u.storeFailedLocked(err)
				return
			}
			delete(s.received, id)
			if u.link != nil {
				u.link.completes = append(u.link.completes, packet.Pubcomp{PacketID: id})
			}
			u.wakeLocked()
		})
	})
}
