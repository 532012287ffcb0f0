package storeforward

import (
	"slices"
	"strings"
	"time"

	"holdfast/broker/durable"
)

// queue is what one durable recipient is owed. Guarded by the append lock.
type queue struct {
	id     durable.QueueID
	uplink bool
	name   string // client id or uplink name
	// base is the first queue of the uplink whose lane this is; nil for that
	// one itself, which has the lanes.
	base  *queue
	lane  durable.Lane
	used  bool // routes lead here, or may
	lanes laneSet
	// latest is of a lane that keeps only the newest message of each topic.
	latest latestSet

	state  string // the uplink's own mark
	expiry uint32 // of a session
	user   string // of a session
	// usersPending are changes of user that are not durable yet.
	usersPending int

	r       durable.Recipient // nil while offline
	streams [2]stream         // QoS 1, QoS 2
	inbound map[uint16]struct{}

	limits limits
	relief relief
	aging  bool     // a drop by age is under way
	parked []parked // withheld, oldest first

	messages, bytes int64 // not finished
	unsafe          int   // claims in the tail that are not safe
	ops             int   // changes of QoS 2 state that are not durable yet
	lazy            *op   // the last change that nobody waits for

	// oldest is when the oldest row behind the cursors oldestAfter arrived,
	// as Status found it: while the cursors stay it is not looked for again.
	oldest      time.Time
	oldestAfter [2]durable.Seq

	deadLetters        int
	appended           uint64
	committed          uint64
	safeByAck          uint64
	refused            uint64
	possibleDuplicates uint64
	dropped            map[string]uint64
	// droppedNew is what of dropped is not durable yet.
	droppedNew map[string]uint64
}

// drop counts a message that is not delivered.
func (q *queue) drop(reason string) {
	q.dropped[reason]++
	if q.droppedNew == nil {
		q.droppedNew = make(map[string]uint64)
	}
	q.droppedNew[reason]++
}

func (s *Store) newQueue(id durable.QueueID, uplink bool, name string) *queue {
	q := &queue{id: id, uplink: uplink, name: name, limits: s.opts.limits(uplink, ""), inbound: make(map[uint16]struct{}), dropped: make(map[string]uint64)}
	if !uplink {
		q.limits.policy = s.opts.SessionPolicy
	}
	for i := range q.streams {
		q.streams[i] = stream{q: q, qos: byte(i + 1), finished: make(map[durable.Seq]struct{})}
	}
	q.streams[1].deliveries = make(map[durable.Seq]*delivery2)
	return q
}

// newUplink is newQueue for the first queue of an uplink.
func (s *Store) newUplink(id durable.QueueID, name string) *queue {
	q := s.newQueue(id, true, name)
	q.lane, q.used = durable.Lane{Number: durable.DefaultLane}, true
	q.lanes.queues = []*queue{q}
	s.queues[q.id], s.byUplink[name] = q, q
	return q
}

func (q *queue) stream(qos byte) *stream {
	if qos == 2 {
		return &q.streams[1]
	}
	return &q.streams[0]
}

// kind and label are what people call the queue.
func (q *queue) kind() string {
	if q.uplink {
		return "uplink"
	}
	kind, _ := sessionLabel(q.name)
	return kind
}

func (q *queue) label() string {
	if q.uplink {
		return q.name
	}
	_, name := sessionLabel(q.name)
	return name
}

// sessionLabel tells sessions and shared groups apart, which are kept under the
// name of a client id.
func sessionLabel(clientID string) (kind, name string) {
	if group, ok := strings.CutPrefix(clientID, durable.GroupPrefix); ok {
		return "group", group
	}
	return "session", clientID
}

// stream is the deliveries of one queue with one QoS, in order.
//
//	            cursor            pos
//	  finished    |   handed out   |  committed rows, then the tail
//	--------------+----------------+------------------------------->  seq
//	              |<--- out ------>|
//
// Guarded by the append lock.
type stream struct {
	q   *queue
	qos byte
	// cursor: everything up to here is finished. dirty: the one on disk is
	// behind in a way that matters (a stored message was finished since).
	cursor durable.Seq
	dirty  bool
	// pos: everything up to here has been handed to the attached recipient.
	pos   durable.Seq
	ahead ahead
	// out are the deliveries handed out after the cursor, in order.
	out []handed
	// finished are deliveries finished out of order and not in out.
	finished map[durable.Seq]struct{}
	// live: the next message is offered. Otherwise catching up; waiting says
	// that the recipient read and found nothing and is owed a Wake.
	live, waiting bool
	// round grows with every Attach and Detach, so that a Read that was
	// looking at rows meanwhile notices.
	round uint64
	// hold is, of the QoS 2 stream, the number of changes by an earlier
	// recipient that must be durable before it is read again.
	hold int
	// sentTo is the furthest delivery that was ever handed out in this run or
	// has a packet id: what is not finished up to there may have been sent.
	sentTo durable.Seq
	// dropping is the number of drops on their way to the disk; nothing is
	// read meanwhile.
	dropping int
	// inCommit says that the commit under way has messages for the stream.
	inCommit bool
	// refusedAt is the commit after which an offer was not taken.
	refusedAt durable.Seq
	// deliveries are the states of QoS 2 deliveries that have a packet id.
	deliveries map[durable.Seq]*delivery2
}

// handed is a delivery in the recipient's hands.
type handed struct {
	seq      durable.Seq
	received int64
	size     uint32
	finished bool
}

// States of a QoS 2 delivery, as on disk.
const (
	stateSent     = 1
	stateReleased = 2
	stateDone     = 3
)

// delivery2 is a QoS 2 delivery with a durable packet id.
type delivery2 struct {
	packetID uint16
	state    byte
	// fresh: it has certainly not been sent under this id.
	fresh bool
	size  uint32
}

func (st *stream) handOut(seq durable.Seq, received, size int64) {
	st.out = append(st.out, handed{seq: seq, received: received, size: uint32(size)})
	st.pos = seq
	st.sentTo = max(st.sentTo, seq)
}

// find returns the place of a delivery in out, -1 when it is not there.
func (st *stream) find(seq durable.Seq) int {
	if len(st.out) > 0 && st.out[0].seq == seq { // acknowledgements come in order
		return 0
	}
	i, ok := slices.BinarySearchFunc(st.out, seq, func(h handed, seq durable.Seq) int {
		switch {
		case h.seq < seq:
			return -1
		case h.seq > seq:
			return 1
		default:
			return 0
		}
	})
	if !ok {
		return -1
	}
	return i
}

// finish marks a delivery as finished and moves the cursor. It returns false
// when it is not one that is unfinished and in the recipient's hands.
func (st *stream) finish(seq durable.Seq) bool {
	i := st.find(seq)
	if i < 0 || st.out[i].finished {
		return false
	}
	st.out[i].finished = true
	st.q.messages--
	st.q.bytes -= int64(st.out[i].size)
	st.advance()
	return true
}

// finishUnread is finish for a delivery that nobody need have in hands.
func (st *stream) finishUnread(seq durable.Seq, size uint32) bool {
	if st.find(seq) >= 0 {
		return st.finish(seq)
	}
	if _, ok := st.finished[seq]; ok || seq <= st.cursor {
		return false
	}
	st.finished[seq] = struct{}{}
	st.q.messages--
	st.q.bytes -= int64(size)
	return true
}

// advance moves the cursor over finished deliveries.
func (st *stream) advance() {
	n := 0
	for n < len(st.out) && st.out[n].finished {
		st.cursor = st.out[n].seq
		delete(st.deliveries, st.cursor)
		n++
	}
	if n == len(st.out) {
		st.out = st.out[:0]
		return
	}
	st.out = st.out[n:]
}

// reset starts from the oldest delivery that is not finished.
func (st *stream) reset() {
	for _, h := range st.out {
		if h.finished {
			st.finished[h.seq] = struct{}{}
		}
	}
	for seq, d := range st.deliveries {
		if d.state == stateSent && st.find(seq) >= 0 {
			d.fresh = false // it was handed out, so it may have been sent
		}
	}
	st.out = nil
	st.pos = st.cursor
	st.live, st.waiting = false, false
	st.round++
	if st.qos == 2 {
		st.hold = st.q.ops
	}
}
