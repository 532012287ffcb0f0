package uplink

import (
	"context"
	"fmt"
	"slices"
	"time"

	"holdfast/broker/durable"
	"holdfast/broker/message"
	"holdfast/storeforward"
)

// lane is one queue of the uplink on one connection, to the store its
// durable.Recipient. What it has read and what it may send are its own; packet ids
// and the window are the session's, and who sends next is for the scheduler.
// Guarded by Uplink.mu.
type lane struct {
	l     *link
	index int // in Uplink.lanes
	queue durable.QueueID

	ready   [3][]*flight // by QoS: those to be sent for the first time
	streams [3]stream    // by QoS
	turn    byte         // the QoS whose turn it is

	// acked are messages that the cloud has and the store does not yet know of;
	// of the connection's reader, see tellAcked.
	acked []durable.Seq

	appended uint64 // to the queue, when that was last looked at
	comes    flow   // what is appended to it
}

// stream is what has been read from the store of one QoS and is not yet in
// flight.
type stream struct {
	buf []durable.Delivery
	// behind says that the store may have something to Read.
	behind bool
	// last is the newest that was handed over on this connection.
	last durable.Seq
	// checked is the first of buf when it is known that it can be sent.
	checked durable.Seq
}

// drop takes the first delivery out of the buffer.
func (st *stream) drop() {
	st.buf[0] = durable.Delivery{}
	if st.buf = st.buf[1:]; len(st.buf) == 0 {
		st.buf = nil
	}
}

func (u *Uplink) newLanes(l *link) []*lane {
	lanes := make([]*lane, len(u.lanes.Queues))
	for i, q := range u.lanes.Queues {
		lanes[i] = &lane{l: l, index: i, queue: q.Queue, turn: 1}
	}
	return lanes
}

// attach makes the lanes the recipients of their queues.
func (l *link) attach() error {
	for _, ln := range l.lanes {
		if err := l.u.store.Attach(ln.queue, ln); err != nil {
			l.detach()
			return fmt.Errorf("%w: attach queue: %w", errStore, err)
		}
	}
	return nil
}

// detach ends that: what was offered and is not acknowledged gets committed.
func (l *link) detach() {
	for _, ln := range l.lanes {
		l.u.store.Detach(ln.queue, ln)
	}
}

// queueOf is the queue that has the message of a flight.
func (u *Uplink) queueOf(f *flight) durable.QueueID { return u.lanes.Queues[f.lane].Queue }

// takesLocked says whether the store may hand over new messages of the stream.
func (ln *lane) takesLocked(st *stream) bool {
	l := ln.l
	return l.begun && !l.closed && !l.leaving && l.err == nil && len(st.buf) == 0 && !ln.restrictedLocked()
}

// Offer takes a delivery of a live stream if it fits the window.
func (ln *lane) Offer(d durable.Delivery) bool {
	u := ln.l.u
	u.mu.Lock()
	defer u.mu.Unlock()
	st := &ln.streams[d.QoS]
	if d.Seq <= st.last {
		return true // it has been handed over on this connection
	}
	u.wakeLocked()
	// A place in the window is not for what must wait for another lane.
	if !ln.takesLocked(st) || ln.blockedLocked(d.Seq, d.Message) >= 0 || !ln.takeLocked(&d) {
		st.behind = true
		return false
	}
	st.last = d.Seq
	return true
}

// takeLocked puts a delivery in flight if there is room.
func (ln *lane) takeLocked(d *durable.Delivery) bool {
	l, s := ln.l, ln.l.sess
	if d.QoS == 1 && ln.thinsLocked(d) {
		l.droppedLocked(ln.queue, d.Seq, d.QoS, d.Message, dropThinned)
		return true
	}
	if ln.batchedLocked(d) {
		return l.joinLocked(ln, d, time.Now())
	}
	f := ln.flight(d)
	switch {
	case d.PacketID != 0 && s.reserved[d.PacketID]:
		delete(s.reserved, d.PacketID) // its room was kept
	case d.PacketID != 0:
		return false // comes again through Read
	case !l.roomBeyondLocked(d.Message.Size(), liveBurst):
		return false
	default:
		if f.id, _ = s.ids.Take(); f.id == 0 {
			return false
		}
	}
	s.add(f)
	ln.ready[f.qos] = append(ln.ready[f.qos], f)
	return true
}

func (ln *lane) flight(d *durable.Delivery) *flight {
	return &flight{seq: d.Seq, lane: ln.index, msg: d.Message, qos: d.QoS, retain: d.Retain, id: d.PacketID, state: flightReady}
}

// Reserve gives a packet id for a QoS 2 message about to be committed.
func (ln *lane) Reserve() (packetID uint16, ok bool) {
	l := ln.l
	l.u.mu.Lock()
	defer l.u.mu.Unlock()
	st := &ln.streams[2]
	if !ln.takesLocked(st) || len(l.u.changes) > 0 || !l.roomBeyondLocked(0, liveBurst) {
		st.behind = true
		l.u.wakeLocked()
		return 0, false
	}
	// The window has at most 65535 places, and an id for each.
	id, ok := l.sess.ids.Take()
	if ok {
		l.sess.reserved[id] = true
	}
	return id, ok
}

// Unreserve takes an id back. It may come after the link has ended; then it
// concerns the session it was given for.
func (ln *lane) Unreserve(packetID uint16) {
	l := ln.l
	l.u.mu.Lock()
	defer l.u.mu.Unlock()
	if l.sess.reserved[packetID] {
		delete(l.sess.reserved, packetID)
		l.sess.ids.Free(packetID)
	}
}

// Wake says that a stream has something to Read.
func (ln *lane) Wake(qos byte) {
	u := ln.l.u
	u.mu.Lock()
	defer u.mu.Unlock()
	ln.streams[qos].behind = true
	u.wakeLocked()
}

// read gets the next deliveries of a stream that is behind.
func (ln *lane) read(ctx context.Context, qos byte) error {
	u := ln.l.u
	ds, _, err := u.store.Read(ctx, ln.queue, qos, u.opts.Batch, u.opts.WindowBytes)
	if ctx.Err() != nil {
		return nil // the stop is on its way; the writer sees it
	}
	if err != nil {
		return fmt.Errorf("%w: read QoS %d: %w", errStore, qos, err)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	st := &ln.streams[qos]
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

// busyLocked says that the lane has something to send, as far as it is known.
func (ln *lane) busyLocked() bool {
	for qos := 1; qos <= 2; qos++ {
		if len(ln.ready[qos]) > 0 || len(ln.streams[qos].buf) > 0 {
			return true
		}
	}
	return false
}

// hungryLocked returns the next stream to Read, the highest lane first; nil for
// none. Without room in the window nothing need be read, unless other lanes wait
// too: who goes first when there is room can only be said of what is known. The
// mark goes before the Read: a Wake or a refused Offer during it must not be lost.
func (l *link) hungryLocked() (*lane, byte) {
	if l.leaving {
		return nil, 0
	}
	room := l.roomLocked(0)
	for _, ln := range l.lanes {
		for qos := byte(1); qos <= 2; qos++ {
			st := &ln.streams[qos]
			if !st.behind || len(st.buf) > 0 {
				continue
			}
			if room || slices.ContainsFunc(l.lanes, func(o *lane) bool { return o != ln && o.busyLocked() }) {
				st.behind = false
				return ln, qos
			}
		}
	}
	return nil, 0
}

// A change of lanes keeps the order of the topics that it moves: while messages
// from before it are not finished in the lane of then, what the topic has in its
// lane of now stays where it is. Lanes it blocks lend the one they wait for their
// turn.

// change is one that is under way.
type change struct {
	durable.LaneChange
	passed []bool // by lane: nothing from before is left there
}

func (u *Uplink) newChanges(lanes storeforward.Lanes) []change {
	var changes []change
	for _, c := range lanes.Changes {
		changes = append(changes, change{LaneChange: c, passed: make([]bool, len(lanes.Queues))})
	}
	return changes
}

// laneIndex finds a lane.
func (u *Uplink) laneIndex(lane durable.Lane) int {
	return slices.IndexFunc(u.lanes.Queues, func(q durable.LaneQueue) bool { return q.Lane == lane })
}

// blockedLocked returns the lane that must first send what it has from before a
// change, -1 for none.
func (ln *lane) blockedLocked(seq durable.Seq, m *message.Message) int {
	u := ln.l.u
	for i := range u.changes {
		c := &u.changes[i]
		if seq <= c.Upto || m == nil {
			continue
		}
		if was := u.laneIndex(storeforward.LaneOf(c.Routes, m.Topic)); was >= 0 && was != ln.index && !c.passed[was] {
			return was
		}
	}
	return -1
}

// settleChanges looks how far changes of lanes are. It is called without the lock:
// the store is asked.
func (l *link) settleChanges() {
	u := l.u
	u.mu.Lock()
	changes := slices.Clone(u.changes)
	u.mu.Unlock()
	for i := range changes {
		c, left := &changes[i], false
		for j, q := range u.lanes.Queues {
			passed := c.passed[j] || u.store.Passed(q.Queue, c.Upto)
			left = left || !passed
			if passed != c.passed[j] {
				u.mu.Lock()
				c.passed[j] = passed // of the array that u.changes has as well
				u.mu.Unlock()
			}
		}
		if left {
			return // those after it have as much left
		}
		u.store.EndLaneChange(u.queue, c.Upto)
		u.mu.Lock()
		u.changes = u.changes[1:]
		u.wakeLocked()
		u.mu.Unlock()
	}
}
