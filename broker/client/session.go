package client

import (
	"errors"
	"slices"
	"sync"
	"time"

	"holdfast/broker/message"
	"holdfast/broker/packet"
)

// The most that may wait in a session for room in the server's Receive Maximum
// before PublishAsync answers [ErrOutputFull]: as many messages as there are
// packet ids, and 16 MiB.
const (
	maxWaiting      = 65535
	maxWaitingBytes = 16 << 20
)

// errSessionInUse means that another Client still holds the session.
var errSessionInUse = errors.New("session is in use by another client")

// Session is this side's half of an MQTT session, kept in RAM: what was sent
// and is not acknowledged, and the QoS 2 packet ids received (MQTT 5.0 §4.1).
// Given to one [Client] after the other it makes QoS 1 at least once and QoS 2
// exactly once across connections, as long as the server keeps its half. The
// zero value is a new session. It is safe for use from many goroutines; one
// Client holds it at a time.
type Session struct {
	mu           sync.Mutex
	conn         *Conn                // guarded by mu; nil between connections
	quota        int                  // guarded by mu; messages the server takes now
	ids          PacketIDs            // guarded by mu
	inflight     map[uint16]*outgoing // guarded by mu; sent on this connection, or released
	waiting      []*outgoing          // guarded by mu; to be sent, in order
	waitingBytes int                  // guarded by mu
	received     map[uint16]struct{}  // guarded by mu; QoS 2 without PUBREL
	last         uint64               // guarded by mu; place of the last message accepted
	duplicates   uint64               // guarded by mu
	scratch      packet.Publish       // guarded by mu
	over         error                // guarded by mu; why it takes nothing more
}

// outgoing is a QoS 1 or 2 message until the server has it.
type outgoing struct {
	m        *message.Message
	place    uint64
	id       uint16 // 0 before it is first sent
	released bool   // PUBREC has come
	counted  bool   // takes one of the quota
	done     func(error)
}

// finished is a done to be called when the lock is no longer held.
type finished struct {
	done func(error)
	err  error
}

func call(fs []finished) {
	for _, f := range fs {
		if f.done != nil {
			f.done(f.err)
		}
	}
}

// Pending is how many messages the server has not acknowledged yet, sent or
// not.
func (s *Session) Pending() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.inflight) + len(s.waiting)
}

// PossibleDuplicates is how many messages were sent as new ones, though the
// server may have had them already, because it had lost its half of the
// session.
func (s *Session) PossibleDuplicates() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.duplicates
}

// End forgets everything; what was not acknowledged is done with err. The
// session is new afterwards. It must not be in use.
func (s *Session) End(err error) { s.end(err, nil) }

// end is End; with over not nil the session takes nothing more.
func (s *Session) end(err, over error) {
	s.mu.Lock()
	s.over = over
	fs := make([]finished, 0, len(s.inflight)+len(s.waiting))
	for _, o := range s.inOrder() {
		fs = append(fs, finished{o.done, err})
	}
	for _, o := range s.waiting {
		fs = append(fs, finished{o.done, err})
	}
	s.inflight, s.waiting, s.waitingBytes, s.received = nil, nil, 0, nil
	s.ids = PacketIDs{}
	s.mu.Unlock()
	call(fs)
}

// inOrder returns what is in flight in the order it was accepted.
func (s *Session) inOrder() []*outgoing {
	all := make([]*outgoing, 0, len(s.inflight))
	for _, o := range s.inflight {
		all = append(all, o)
	}
	slices.SortFunc(all, func(a, b *outgoing) int {
		if a.place < b.place {
			return -1
		}
		return 1
	})
	return all
}

// attach goes on with the session on a new connection: what was sent is sent
// again in its old order, before anything new, and PUBRELs are repeated (MQTT
// 5.0 §4.4 [MQTT-4.4.0-1]). When the server has no session any more, what it
// had released is finished, and what it may have had goes out as new and is
// counted (MQTT 5.0 §3.2.2.1.1 [MQTT-3.2.2-5]).
func (s *Session) attach(c *Conn) error {
	s.mu.Lock()
	if s.conn != nil {
		s.mu.Unlock()
		return errSessionInUse
	}
	s.conn, s.quota = c, int(c.limits.ReceiveMaximum)
	present := c.SessionPresent()
	if !present {
		s.received = nil
	}
	var fs []finished
	sent := s.inOrder()
	s.inflight = nil
	again := make([]*outgoing, 0, len(sent)+len(s.waiting))
	for _, o := range sent {
		switch {
		case o.released && present:
			o.counted = false // a PUBREL needs no quota, so it gives none back
			s.keepLocked(o)
			// Cannot fail: the output is empty, and these have their reserve.
			_ = c.Queue(&packet.Pubrel{PacketID: o.id})
		case o.released:
			s.ids.Free(o.id)
			fs = append(fs, finished{o.done, nil})
		default:
			again = append(again, o)
			s.waitingBytes += o.m.Size()
		}
	}
	s.waiting = append(again, s.waiting...)
	for _, o := range s.waiting {
		if !present && o.id != 0 {
			s.ids.Free(o.id)
			o.id = 0
			s.duplicates++
		}
	}
	fs = append(fs, s.pumpLocked()...)
	s.mu.Unlock()
	c.Flush()
	call(fs)
	return nil
}

func (s *Session) keepLocked(o *outgoing) {
	if s.inflight == nil {
		s.inflight = make(map[uint16]*outgoing)
	}
	s.inflight[o.id] = o
}

// detach leaves the session for another connection.
func (s *Session) detach() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conn = nil
}

// add takes a message that is to be acknowledged.
func (s *Session) add(m *message.Message, done func(error)) {
	s.mu.Lock()
	full := len(s.waiting) >= maxWaiting || s.waitingBytes > 0 && s.waitingBytes+m.Size() > maxWaitingBytes
	if err := s.over; err != nil || full {
		s.mu.Unlock()
		if err == nil {
			err = ErrOutputFull
		}
		call([]finished{{done, err}})
		return
	}
	s.last++
	s.waiting = append(s.waiting, &outgoing{m: m, place: s.last, done: done})
	s.waitingBytes += m.Size()
	fs := s.pumpLocked()
	s.mu.Unlock()
	call(fs)
}

// pump sends what there is room for.
func (s *Session) pump() {
	s.mu.Lock()
	fs := s.pumpLocked()
	c := s.conn
	s.mu.Unlock()
	if c != nil {
		c.Flush()
	}
	call(fs)
}

func (s *Session) pumpLocked() (fs []finished) {
	n := 0
	for _, o := range s.waiting {
		sent, err := s.sendLocked(o)
		if !sent && err == nil {
			break
		}
		if err != nil {
			fs = append(fs, finished{o.done, err})
		}
		s.waitingBytes -= o.m.Size()
		n++
	}
	clear(s.waiting[:n])
	s.waiting = s.waiting[n:]
	if len(s.waiting) == 0 {
		s.waiting = nil
	}
	return fs
}

// sendLocked sends one message. Neither sent nor an error: there is no room
// now. An error ends the message.
func (s *Session) sendLocked(o *outgoing) (sent bool, err error) {
	if s.conn == nil || s.quota == 0 {
		return false, nil
	}
	again := o.id != 0
	alive := PublishOf(&s.scratch, o.m, time.Now())
	if !alive && !again { // once sent, only an acknowledgement ends it
		return false, ErrExpired
	}
	id, ok := o.id, true
	if !again {
		id, ok = s.ids.Take()
	}
	if !ok {
		return false, nil
	}
	s.scratch.PacketID, s.scratch.Dup = id, again
	err = s.conn.Queue(&s.scratch)
	s.scratch.Payload, s.scratch.Properties = nil, nil
	if err != nil {
		retry := errors.Is(err, ErrOutputFull) || errors.Is(err, ErrClosed)
		if !again || !retry {
			s.ids.Free(id)
		}
		if retry {
			return false, nil
		}
		return false, err
	}
	o.id, o.counted = id, true
	s.keepLocked(o)
	s.quota--
	return true, nil
}

// acknowledged is what PUBACK, PUBREC and PUBCOMP do.
func (s *Session) acknowledged(t packet.Type, id uint16, reason packet.ReasonCode, text string) error {
	s.mu.Lock()
	fs, err := s.acknowledgedLocked(t, id, reason, text)
	s.mu.Unlock()
	call(fs)
	return err
}

func (s *Session) acknowledgedLocked(t packet.Type, id uint16, reason packet.ReasonCode, text string) ([]finished, error) {
	o := s.inflight[id]
	switch {
	case o == nil && t == packet.TypePubrec:
		// MQTT 5.0 §3.6.2.1; 3.1.1 leaves the reason out.
		return nil, s.conn.Queue(&packet.Pubrel{PacketID: id, Reason: packet.ReasonPacketIDNotFound})
	case o == nil: // may answer something of an earlier connection
		return nil, nil
	case t == packet.TypePuback && o.m.QoS == 2 && !o.released && s.conn.Version() != packet.V5:
		// A 3.1.1 server cannot say that it has no QoS 2, and some keep such a
		// message as QoS 1 (! MQTT 3.1.1 §4.3.3, RabbitMQ before 3.12).
	case (t == packet.TypePuback) != (o.m.QoS == 1), t == packet.TypePubcomp && !o.released:
		return nil, &packet.Error{
			Reason: packet.ReasonProtocolError, Type: t,
			Field: "packet identifier", Detail: "belongs to a message in another state",
		}
	case t == packet.TypePubrec && !reason.Failed():
		o.released = true
		return nil, s.conn.Queue(&packet.Pubrel{PacketID: id})
	}
	delete(s.inflight, id)
	s.ids.Free(id)
	if o.counted {
		// MQTT 5.0 §4.9 would let every PUBCOMP add to the quota, up to its
		// first value; but then there can be more messages on the way after a
		// reconnect than the server has room for, and Mosquitto 2.0 refuses.
		s.quota++
	}
	end := finished{done: o.done}
	if reason.Failed() && t != packet.TypePubcomp { // PUBCOMP 0x92: the server has released it before
		end.err = &RefusedError{Topic: o.m.Topic, Reason: reason, ReasonString: text}
	}
	return append([]finished{end}, s.pumpLocked()...), nil
}

// firstSeen takes note of an inbound QoS 2 id and tells whether the message is
// new.
func (s *Session) firstSeen(id uint16) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, again := s.received[id]; again {
		return false
	}
	if s.received == nil {
		s.received = make(map[uint16]struct{})
	}
	s.received[id] = struct{}{}
	return true
}

// release forgets an inbound QoS 2 id and returns the reason of the PUBCOMP.
func (s *Session) release(id uint16) packet.ReasonCode {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, there := s.received[id]; !there {
		return packet.ReasonPacketIDNotFound
	}
	delete(s.received, id)
	return packet.ReasonSuccess
}

// takeID and freeID are for SUBSCRIBE and UNSUBSCRIBE, whose ids come from the
// same numbers (MQTT 5.0 §2.2.1).
func (s *Session) takeID() (id uint16, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ids.Take()
}

func (s *Session) freeID(id uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ids.Free(id)
}
