package uplink

import (
	"cmp"
	"iter"
	"slices"
	"time"

	"holdfast/broker/client"
	"holdfast/broker/durable"
	"holdfast/broker/message"
)

// A session is our side of the MQTT session: what must survive a connection
// as long as the cloud keeps its side (MQTT 5.0 §4.1). When the cloud has lost
// its side a new one takes its place and late callbacks of the old one find
// nothing. What must survive the process as well (QoS 2) is in the store.
//
// All of it is guarded by Uplink.mu.
type session struct {
	ids     client.PacketIDs // for PUBLISH, SUBSCRIBE and UNSUBSCRIBE
	flights map[uint16]*flight
	bySeq   map[durable.Seq]*flight
	// order numbers flights in the order of their first send.
	order uint64
	// bytes are those of the flights; held those of them in holds.
	bytes, held int
	// reserved are ids given out by Reserve whose Offer has not come.
	reserved map[uint16]bool
	// holds have what the cloud refused for now, by topic and QoS.
	holds map[holdKey]*hold
	// received are the cloud's QoS 2 packet ids whose PUBREL is not done.
	received map[uint16]*receipt
	// subscribed says that the cloud has granted or refused all routes in.
	subscribed bool
}

func newSession(received []uint16) *session {
	s := &session{
		flights:  make(map[uint16]*flight),
		bySeq:    make(map[durable.Seq]*flight),
		holds:    make(map[holdKey]*hold),
		received: make(map[uint16]*receipt),
		reserved: make(map[uint16]bool),
	}
	for _, id := range received {
		s.received[id] = &receipt{id: id, qos: 2, state: receiptTaken}
	}
	return s
}

// flightState is where a flight stands.
type flightState byte

const (
	flightSaving    flightState = iota // QoS 2: its packet id is being made durable
	flightReady                        // its PUBLISH is to be sent
	flightSent                         // PUBLISH sent, waiting for PUBACK or PUBREC
	flightHeld                         // refused for now, or behind one that was
	flightReceiving                    // PUBREC came and is being made durable
	flightReceived                     // its PUBREL is to be sent
	flightReleased                     // PUBREL sent, waiting for PUBCOMP
	flightEnding                       // over on the wire, the store is finishing it
)

// flight is one message with a packet id: from its place in the window to its
// end. Its QoS never changes, nor its id while the cloud may know it
// (MQTT 5.0 §2.2.1, §4.4).
type flight struct {
	seq durable.Seq // 0 for the uplink's own status messages
	// members are the messages of a batch, all QoS 1, seq the first of them;
	// nil for one message. with is how their route puts them together; a
	// message that went alone has it too.
	members []durable.Seq
	with    *batching
	lane    int              // index in Uplink.lanes; of messages of the store
	msg     *message.Message // nil when released before this process began
	remote  string           // topic at the cloud; for own messages
	size    int
	qos     byte
	retain  bool
	id      uint16
	state   flightState
	// sent says that the cloud may have seen this PUBLISH under this id and
	// has not refused it: DUP is set (MQTT 5.0 §3.3.1.1).
	sent bool
	// order is that of the first send, 0 before it.
	order uint64
	// counted says that it takes a place of the Receive Maximum.
	counted bool
	// probe says that it was sent to see whether the cloud still refuses.
	probe bool
	// repeated says that the latest send was not the first: its answer may
	// be to an earlier one and tells nothing of the round trip.
	repeated bool
	sentAt   time.Time
	// passed says that the cloud acknowledged a later one of its kind.
	passed bool
	// awaited says that an answer is awaited on this connection.
	awaited bool
	sample  sample
	// waited says that it is backlog: it keeps the pace of that.
	waited bool
}

// seqs are the messages of the store in f: one, those of a batch, or none.
func (f *flight) seqs() iter.Seq[durable.Seq] {
	return func(yield func(durable.Seq) bool) {
		if f.members == nil && f.seq != 0 {
			yield(f.seq)
		}
		for _, seq := range f.members {
			if !yield(seq) {
				return
			}
		}
	}
}

func (f *flight) count() uint64 { return uint64(max(len(f.members), 1)) }

// roomLocked says whether one more message of that size fits the window. One
// always fits an empty window. What the cloud refused for now does not take the
// place of what it takes, but there is an end to that too.
func (l *link) roomLocked(size int) bool { return l.roomBeyondLocked(size, 0) }

// liveBurst is how much that has just been published may wait for the window in
// memory, in bytes: a burst costs no flash while the link is well.
const liveBurst = 64 << 10

// roomBeyondLocked is roomLocked with more room than the window has now.
func (l *link) roomBeyondLocked(size, beyond int) bool {
	s, opts := l.sess, &l.u.opts
	n := len(s.flights) + len(s.reserved)
	switch {
	case n == 0:
		return true
	case n >= opts.Window || s.ids.InUse() >= 65535 || s.bytes+size > opts.WindowBytes:
		return false
	}
	moving := s.bytes - s.held
	return moving == 0 || moving+size <= l.window.limit()+beyond
}

// unanswered are the messages that wait for one kind of answer, in the order in
// which they were sent. Answers come in that order too (MQTT 5.0 §4.6), or nearly.
type unanswered struct {
	fs    []*flight
	holes int // of fs: those that are answered
}

func (q *unanswered) push(f *flight) {
	f.awaited = true
	q.fs = append(q.fs, f)
}

// oldest is nil when nothing is awaited.
func (q *unanswered) oldest() *flight {
	if len(q.fs) == 0 {
		return nil
	}
	return q.fs[0]
}

// answer takes f out. What was passed over will not be answered on this
// connection.
func (q *unanswered) answer(f *flight) {
	f.awaited = false
	q.holes++
	if f != q.fs[0] {
		q.fs[0].passed = true
		if q.holes > 64 && 2*q.holes > len(q.fs) {
			q.fs, q.holes = slices.DeleteFunc(q.fs, func(f *flight) bool { return !f.awaited }), 0
		}
		return
	}
	for len(q.fs) > 0 && !q.fs[0].awaited {
		q.fs[0], q.fs = nil, q.fs[1:]
		q.holes--
	}
}

// add puts f in flight under f.id, which must be taken.
func (s *session) add(f *flight) {
	s.flights[f.id] = f
	for seq := range f.seqs() {
		s.bySeq[seq] = f
	}
	if f.msg != nil {
		f.size = f.msg.Size()
	}
	s.bytes += f.size
}

// remove ends f; its packet id is free.
func (s *session) remove(f *flight) {
	if s.flights[f.id] != f {
		return
	}
	delete(s.flights, f.id)
	for seq := range f.seqs() {
		delete(s.bySeq, seq)
	}
	s.bytes -= f.size
	s.ids.Free(f.id)
}

// busy says that the store is still at work on a change of QoS 2.
func (s *session) busy() bool {
	for _, f := range s.flights {
		if f.state == flightSaving || f.state == flightReceiving || f.state == flightEnding {
			return true
		}
	}
	for _, r := range s.received {
		if r.state == receiptReleasing {
			return true
		}
	}
	return false
}

// inOrder returns the flights sent before in the order of their first send,
// then the others as the store numbers them.
func (s *session) inOrder() []*flight {
	fs := make([]*flight, 0, len(s.flights))
	for _, f := range s.flights {
		fs = append(fs, f)
	}
	slices.SortFunc(fs, func(a, b *flight) int {
		switch {
		case a.order != 0 && b.order != 0:
			return cmp.Compare(a.order, b.order)
		case a.order != 0:
			return -1
		case b.order != 0:
			return 1
		default:
			return cmp.Compare(a.seq, b.seq)
		}
	})
	return fs
}
