package uplink

import (
	"slices"
	"time"

	"holdfast/broker/durable"
)

// pickLocked returns the next new message to send; nil if there is none, or none
// may go. idle says that nothing but the want of messages is the reason.
//
// Messages take their place in the window when it is their turn, so that what
// waits can be overtaken; those of live streams have theirs already.
func (l *link) pickLocked(now time.Time) (f *flight, idle bool) {
	if l.used >= l.quota {
		return nil, false
	}
	for l.err == nil {
		i := l.chooseLocked()
		if i < 0 {
			return nil, l.roomLocked(0) && (l.held > 0 || !l.waitsLocked())
		}
		ln := l.lanes[i]
		qos, fresh := ln.headLocked()
		if fresh == nil {
			if !l.window.lets(ln.ready[qos][0].size, l.overtakesLocked(ln)) {
				return nil, false
			}
			return ln.nextLocked(qos), false
		}
		switch {
		case slices.ContainsFunc(l.lanes[:i], func(o *lane) bool { return o.unreadLocked() }):
			return nil, false // read first what goes before it
		case !l.roomLocked(fresh.Message.Size()):
			// It waits for room. Who has a place goes on: that makes some.
			return l.placedLocked(), false
		case qos == 1:
			f := ln.flight(fresh)
			f.id, _ = l.sess.ids.Take() // room has said that there is one
			f.waited = l.hasWaited(f.msg)
			l.sess.add(f)
			ln.streams[1].drop()
			ln.turn = 2
			if !l.joinHoldLocked(f) {
				return f, false
			}
		default:
			ln.admit2Locked(now)
		}
		ln.tidyLocked(now)
	}
	return nil, false
}

// nextLocked takes the first message of that QoS that has its place in the window.
func (ln *lane) nextLocked(qos byte) *flight {
	f := ln.ready[qos][0]
	ln.ready[qos] = ln.ready[qos][1:]
	ln.turn = qos ^ 3
	return f
}

// overtakesLocked says that a lower lane has something to send.
func (l *link) overtakesLocked(ln *lane) bool {
	return slices.ContainsFunc(l.lanes[ln.index+1:], func(o *lane) bool { return o.busyLocked() || o.unreadLocked() })
}

// placedLocked takes a message that has its place in the window, nil for none.
func (l *link) placedLocked() *flight {
	for _, ln := range l.lanes {
		if qos := ln.readyQoSLocked(); qos != 0 && l.window.fits(ln.ready[qos][0].size) {
			return ln.nextLocked(qos)
		}
	}
	return nil
}

// chooseLocked asks the scheduler for a lane that may send; -1 if there is none. A
// lane that another one waits for goes in its place.
func (l *link) chooseLocked() int {
	for _, ln := range l.lanes {
		if len(l.u.changes) == 0 {
			break
		}
		on := ln.waitsForLocked()
		if on < 0 {
			continue
		}
		if _, may := l.lanes[on].sizeLocked(); may {
			return on
		}
	}
	return l.sched.next(func(lane int) (bytes int, may bool) { return l.lanes[lane].sizeLocked() })
}

// waitsLocked says that a lane has messages that may not go yet.
func (l *link) waitsLocked() bool {
	return slices.ContainsFunc(l.lanes, func(ln *lane) bool { return ln.busyLocked() || ln.unreadLocked() })
}

// unreadLocked says that what the lane has next may not be known.
func (ln *lane) unreadLocked() bool {
	for qos := 1; qos <= 2; qos++ {
		if st := &ln.streams[qos]; st.behind && len(st.buf) == 0 {
			return true
		}
	}
	return false
}

// tidyLocked takes away what is not to be sent now, so that what is at the head is.
func (ln *lane) tidyLocked(now time.Time) {
	l := ln.l
	for qos := byte(1); qos <= 2; qos++ {
		for len(ln.ready[qos]) > 0 {
			f := ln.ready[qos][0]
			if f.state == flightSaving || f.state == flightReady && !l.joinHoldLocked(f) {
				break
			}
			ln.ready[qos] = ln.ready[qos][1:] // removed meanwhile, or held
		}
		for st := &ln.streams[qos]; len(st.buf) > 0; st.drop() {
			d := &st.buf[0]
			if st.checked == d.Seq {
				if !ln.batchedLocked(d) || ln.blockedLocked(d.Seq, d.Message) >= 0 || !l.joinLocked(ln, d, now) {
					break
				}
				continue
			}
			if l.sess.bySeq[d.Seq] != nil { // in flight since an earlier connection
				continue
			}
			if d.PacketID != 0 {
				if err := ln.admitOldLocked(d); err != nil {
					l.failLocked(err)
					return
				}
				continue
			}
			if ln.hopelessLocked(d, now) {
				continue
			}
			st.checked = d.Seq
			if ln.blockedLocked(d.Seq, d.Message) >= 0 || !l.joinLocked(ln, d, now) {
				break
			}
		}
	}
}

// headLocked returns the QoS of the message that the lane sends next, 0 for none,
// the two in turn; fresh is its delivery when it is not in flight yet.
func (ln *lane) headLocked() (qos byte, fresh *durable.Delivery) {
	for _, qos := range [...]byte{ln.turn, ln.turn ^ 3} {
		switch st := &ln.streams[qos]; {
		case len(ln.ready[qos]) > 0:
			f := ln.ready[qos][0]
			if f.state != flightSaving && ln.blockedLocked(f.seq, f.msg) < 0 {
				return qos, nil
			}
		case len(st.buf) > 0:
			// What is for a batch goes with that.
			if d := &st.buf[0]; !ln.batchedLocked(d) && ln.blockedLocked(d.Seq, d.Message) < 0 {
				return qos, d
			}
		}
	}
	return 0, nil
}

// waitsForLocked returns the lane that must go before this one, -1 for none.
func (ln *lane) waitsForLocked() int {
	for qos := 1; qos <= 2; qos++ {
		on := -1
		switch st := &ln.streams[qos]; {
		case len(ln.ready[qos]) > 0:
			on = ln.blockedLocked(ln.ready[qos][0].seq, ln.ready[qos][0].msg)
		case len(st.buf) > 0:
			on = ln.blockedLocked(st.buf[0].Seq, st.buf[0].Message)
		}
		if on >= 0 {
			return on
		}
	}
	return -1
}

// readyQoSLocked returns the QoS of which a message with a place in the window may
// go, 0 for none.
func (ln *lane) readyQoSLocked() byte {
	for _, qos := range [...]byte{ln.turn, ln.turn ^ 3} {
		if len(ln.ready[qos]) == 0 {
			continue
		}
		if f := ln.ready[qos][0]; f.state != flightSaving && ln.blockedLocked(f.seq, f.msg) < 0 {
			return qos
		}
	}
	return 0
}

// sizeLocked is how many bytes the lane sends next, and whether it may now.
func (ln *lane) sizeLocked() (bytes int, may bool) {
	switch qos, fresh := ln.headLocked(); {
	case fresh != nil:
		may = !ln.restrictedLocked() && (ln.l.held == 0 || !ln.l.hasWaited(fresh.Message))
		return max(fresh.Message.Size(), 1), may
	case qos != 0:
		return max(ln.ready[qos][0].size, 1), true
	}
	for qos := 1; qos <= 2; qos++ {
		switch st := &ln.streams[qos]; {
		case len(ln.ready[qos]) > 0:
			return max(ln.ready[qos][0].size, 1), false
		case len(st.buf) > 0:
			return max(st.buf[0].Message.Size(), 1), false
		}
	}
	if ln.unreadLocked() {
		return 1, false
	}
	return 0, false
}

// admit2Locked gives packet ids to QoS 2 messages that were read, as many as there
// is room for: making them durable takes one transaction for all.
func (ln *lane) admit2Locked(now time.Time) {
	l, st := ln.l, &ln.streams[2]
	var ids []durable.Sent
	var fs []*flight
	for len(st.buf) > 0 {
		d := &st.buf[0]
		if d.PacketID != 0 || l.sess.bySeq[d.Seq] != nil || !l.roomLocked(d.Message.Size()) || ln.blockedLocked(d.Seq, d.Message) >= 0 {
			break
		}
		if !ln.hopelessLocked(d, now) {
			f := ln.flight(d)
			f.id, _ = l.sess.ids.Take() // room has said that there is one
			f.state, f.waited = flightSaving, l.hasWaited(f.msg)
			ids = append(ids, durable.Sent{Seq: f.seq, PacketID: f.id})
			fs = append(fs, f)
			l.sess.add(f)
			ln.ready[2] = append(ln.ready[2], f)
		}
		st.drop()
	}
	if len(ids) > 0 {
		ln.saveLocked(ids, fs)
	}
}
