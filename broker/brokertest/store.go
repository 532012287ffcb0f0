// Package brokertest has what tests of other packages need of a broker: a
// broker on a loopback port ([Start]), a client that records what it is sent
// ([Client]), and a store in RAM ([MemoryStore]). It is for tests only.
package brokertest

import (
	"context"
	"slices"
	"sync"
	"time"

	"holdfast/broker/durable"
	"holdfast/broker/message"
)

// MemoryStore implements broker.Store in RAM. It keeps the rules of the durable
// store: live and catching-up streams, a committer goroutine that calls done,
// QoS 2 packet ids reserved with the commit. A restart is played by starting
// another broker on the same store after [MemoryStore.Restart].
type MemoryStore struct {
	mu      sync.Mutex // the append lock
	wake    sync.Cond  // for the committer
	seq     durable.Seq
	nextQ   durable.QueueID
	queues  map[durable.QueueID]*queue
	kept    map[string]*message.Message // retained
	wills   map[string]durable.Will
	work    []work
	held    bool
	closed  bool
	full    error // what Append returns, nil for none
	failing error // what commits end with, nil for success
	reading error // what Read returns, nil for success
	done    chan struct{}
}

// queue is a session's queue, or an uplink's.
type queue struct {
	session  *durable.Session // nil for an uplink
	r        durable.Recipient
	streams  [2]stream
	bySeq    map[durable.Seq]*record
	received map[uint16]bool
	dropped  map[string]int
}

// stream is the deliveries of one QoS, in order.
type stream struct {
	records []*record
	pos     int // the next to read
	live    bool
}

// record is one claim.
type record struct {
	entry    *entry
	claim    durable.Claim
	packetID uint16
	state    recordState
}

type recordState byte

const (
	stateNew recordState = iota
	stateSent
	stateReleased
	stateFinished
)

// entry is one appended message.
type entry struct {
	seq       durable.Seq
	m         *message.Message
	records   []*record
	from      durable.Origin
	done      func(error)
	unsafe    int // claims not yet acknowledged
	safe      bool
	committed bool
}

// work is what the committer has to do.
type work struct {
	entry *entry
	apply func() // under the lock, when committed; nil for none
	undo  func() // under the lock, when it fails; nil for none
	done  func(error)
}

// NewMemoryStore returns an empty store. Close it.
func NewMemoryStore() *MemoryStore {
	s := &MemoryStore{
		queues: make(map[durable.QueueID]*queue),
		kept:   make(map[string]*message.Message),
		wills:  make(map[string]durable.Will),
		done:   make(chan struct{}),
	}
	s.wake.L = &s.mu
	go s.commitLoop()
	return s
}

// Close commits what waits and ends the committer.
func (s *MemoryStore) Close() {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	s.closed, s.held = true, false
	s.wake.Signal()
	s.mu.Unlock()
	<-s.done
}

// Restart forgets who is attached, as a new process would.
func (s *MemoryStore) Restart() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, q := range s.queues {
		q.detach()
		if q.session != nil && q.session.Offline.IsZero() {
			q.session.Offline = time.Now()
		}
	}
}

// Hold stops commits until Release; appends are still offered and taken.
func (s *MemoryStore) Hold() {
	s.mu.Lock()
	s.held = true
	s.mu.Unlock()
}

// Unhold lets commits go on.
func (s *MemoryStore) Unhold() {
	s.mu.Lock()
	s.held = false
	s.wake.Signal()
	s.mu.Unlock()
}

// Settle waits until all is committed that may be.
func (s *MemoryStore) Settle() {
	done := make(chan struct{})
	s.mu.Lock()
	if s.held || s.closed {
		s.mu.Unlock()
		return
	}
	s.work = append(s.work, work{done: func(error) { close(done) }})
	s.wake.Signal()
	s.mu.Unlock()
	<-done
}

// SetFull makes Append return err (durable.ErrFull), or work again with nil.
func (s *MemoryStore) SetFull(err error) {
	s.mu.Lock()
	s.full = err
	s.mu.Unlock()
}

// SetFailing makes every commit fail with err, or succeed again with nil.
func (s *MemoryStore) SetFailing(err error) {
	s.mu.Lock()
	s.failing = err
	s.mu.Unlock()
}

// SetReadFailing makes every Read fail with err, or succeed again with nil.
func (s *MemoryStore) SetReadFailing(err error) {
	s.mu.Lock()
	s.reading = err
	s.mu.Unlock()
}

// Backlog returns how many deliveries of a client are not finished.
func (s *MemoryStore) Backlog(clientID string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, q := range s.queues {
		if q.session != nil && q.session.ClientID == clientID {
			return len(q.bySeq)
		}
	}
	return 0
}

// DroppedFor returns how many deliveries of a client were dropped, by reason.
func (s *MemoryStore) DroppedFor(clientID, reason string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, q := range s.queues {
		if q.session != nil && q.session.ClientID == clientID {
			return q.dropped[reason]
		}
	}
	return 0
}

// NewQueue makes the queue of an uplink.
func (s *MemoryStore) NewQueue() durable.QueueID {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.newQueueLocked(nil)
}

func (s *MemoryStore) newQueueLocked(session *durable.Session) durable.QueueID {
	s.nextQ++
	s.queues[s.nextQ] = &queue{
		session: session, bySeq: make(map[durable.Seq]*record),
		received: make(map[uint16]bool), dropped: make(map[string]int),
	}
	return s.nextQ
}

// WillOf returns the kept will of a client.
func (s *MemoryStore) WillOf(clientID string) (durable.Will, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w, ok := s.wills[clientID]
	return w, ok
}

// Sessions implements broker.Store.
func (s *MemoryStore) Sessions(context.Context) ([]durable.Session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []durable.Session
	for id, q := range s.queues {
		if q.session == nil {
			continue
		}
		kept := *q.session
		kept.Queue = id
		kept.Subscriptions = slices.Clone(kept.Subscriptions)
		for packetID := range q.received {
			kept.Received = append(kept.Received, packetID)
		}
		all = append(all, kept)
	}
	return all, nil
}

// Retained implements broker.Store.
func (s *MemoryStore) Retained(_ context.Context, fn func(*message.Message) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.kept {
		if _, alive := m.Remaining(time.Now()); !alive {
			continue
		}
		if err := fn(m); err != nil {
			return err
		}
	}
	return nil
}

// Wills implements broker.Store.
func (s *MemoryStore) Wills(context.Context) ([]durable.Will, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []durable.Will
	for _, w := range s.wills {
		all = append(all, w)
	}
	return all, nil
}

// Append implements broker.Store.
func (s *MemoryStore) Append(m *message.Message, claims []durable.Claim, from durable.Origin, done func(error)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return durable.ErrClosed
	}
	if s.full != nil {
		return s.full
	}
	s.seq++
	e := &entry{seq: s.seq, m: m, from: from, done: done}
	for _, c := range claims {
		q := s.queues[c.Queue]
		if q == nil {
			continue
		}
		r := &record{entry: e, claim: c}
		e.records = append(e.records, r)
		e.unsafe++
		q.bySeq[e.seq] = r
		st := &q.streams[c.QoS-1]
		st.records = append(st.records, r)
		if c.QoS != 1 || !st.live {
			continue
		}
		if q.r.Offer(r.delivery()) {
			st.pos = len(st.records)
		} else {
			st.live = false
		}
	}
	s.work = append(s.work, work{entry: e})
	s.wake.Signal()
	return nil
}

func (r *record) delivery() durable.Delivery {
	d := durable.Delivery{
		Seq: r.entry.seq, Message: r.entry.m, QoS: r.claim.QoS, Retain: r.claim.Retain,
		SubscriptionIDs: r.claim.SubscriptionIDs, PacketID: r.packetID,
		Resend: r.state == stateSent, Released: r.state == stateReleased,
	}
	if d.Released {
		d.Message = nil
	}
	return d
}

// commitLoop is the committer: one piece of work after the other.
func (s *MemoryStore) commitLoop() {
	defer close(s.done)
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		for s.held || len(s.work) == 0 {
			if s.closed && !s.held {
				return
			}
			s.wake.Wait()
		}
		batch := s.work
		s.work = nil
		err := s.failing
		for _, w := range batch {
			done := w.done
			if w.entry != nil {
				done = s.commitLocked(w.entry, err)
			} else if err == nil && w.apply != nil {
				w.apply()
			} else if err != nil && w.undo != nil {
				w.undo()
			}
			if done != nil {
				s.mu.Unlock()
				done(err)
				s.mu.Lock()
			}
		}
	}
}

// commitLocked commits one message and returns who is to be told.
func (s *MemoryStore) commitLocked(e *entry, err error) func(error) {
	if err != nil {
		if e.safe {
			return nil
		}
		e.safe = true
		for _, r := range e.records {
			q := s.queues[r.claim.Queue]
			if q == nil {
				continue
			}
			if r.claim.QoS == 2 && q.streams[1].live {
				if id, ok := q.r.Reserve(); ok {
					q.r.Unreserve(id) // the commit it was for did not happen
				}
			}
			s.finishLocked(q, e.seq)
		}
		return e.done
	}
	e.committed = true
	for _, r := range e.records {
		if q := s.queues[r.claim.Queue]; q != nil && r.claim.QoS == 2 && r.state == stateNew {
			q.offerExactlyOnce(r)
		}
	}
	if e.m.Retain {
		if len(e.m.Payload) == 0 {
			delete(s.kept, e.m.Topic)
		} else {
			s.kept[e.m.Topic] = e.m
		}
	}
	if q := s.queues[e.from.Queue]; q != nil && e.from.PacketID != 0 {
		q.received[e.from.PacketID] = true
	}
	if e.from.Will != "" {
		delete(s.wills, e.from.Will)
	}
	if e.safe {
		return nil
	}
	e.safe = true
	return e.done
}

// offerExactlyOnce gives a committed QoS 2 delivery its packet id and offers
// it, or lets the recipient catch up.
func (q *queue) offerExactlyOnce(r *record) {
	st := &q.streams[1]
	if !st.live {
		if q.r != nil {
			q.r.Wake(2)
		}
		return
	}
	id, ok := q.r.Reserve()
	if !ok {
		st.live = false
		q.r.Wake(2)
		return
	}
	r.packetID, st.pos = id, slices.Index(st.records, r)+1
	d := r.delivery()
	r.state = stateSent
	if !q.r.Offer(d) {
		st.live = false
		st.pos--
	}
}
