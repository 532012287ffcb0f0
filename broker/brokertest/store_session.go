package brokertest

import (
	"slices"
	"time"

	"holdfast/broker/durable"
)

// change queues a change of a queue; it takes effect in call order.
func (s *MemoryStore) change(id durable.QueueID, apply func(*queue), done func(error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.failing
	if q := s.queues[id]; q != nil && err == nil {
		apply(q)
	}
	s.work = append(s.work, work{done: done})
	s.wake.Signal()
}

// CreateSession implements broker.Store.
func (s *MemoryStore) CreateSession(clientID string, expiry uint32, done func(error)) durable.QueueID {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := s.newQueueLocked(&durable.Session{ClientID: clientID, Expiry: expiry})
	s.work = append(s.work, work{done: done, undo: func() { delete(s.queues, id) }})
	s.wake.Signal()
	return id
}

// UpdateSession implements broker.Store.
func (s *MemoryStore) UpdateSession(q durable.QueueID, expiry uint32, connected bool, done func(error)) {
	s.change(q, func(q *queue) {
		q.session.Expiry, q.session.Offline = expiry, time.Time{}
		if !connected {
			q.session.Offline = time.Now()
		}
	}, done)
}

// SetUser implements broker.Store.
func (s *MemoryStore) SetUser(q durable.QueueID, user string, done func(error)) {
	s.change(q, func(q *queue) { q.session.User = user }, done)
}

// End implements broker.Store.
func (s *MemoryStore) End(id durable.QueueID, done func(error)) {
	s.change(id, func(q *queue) {
		for seq := range q.bySeq {
			s.finishLocked(q, seq)
		}
		delete(s.queues, id)
	}, done)
}

// Subscribe implements broker.Store.
func (s *MemoryStore) Subscribe(q durable.QueueID, subs []durable.Subscription, done func(error)) {
	s.change(q, func(q *queue) {
		for _, sub := range subs {
			q.unsubscribe(sub.Filter)
			q.session.Subscriptions = append(q.session.Subscriptions, sub)
		}
	}, done)
}

// Unsubscribe implements broker.Store.
func (s *MemoryStore) Unsubscribe(q durable.QueueID, filters []string, done func(error)) {
	s.change(q, func(q *queue) {
		for _, f := range filters {
			q.unsubscribe(f)
		}
	}, done)
}

func (q *queue) unsubscribe(filter string) {
	q.session.Subscriptions = slices.DeleteFunc(q.session.Subscriptions, func(sub durable.Subscription) bool {
		return sub.Filter == filter
	})
}

// SetWill implements broker.Store.
func (s *MemoryStore) SetWill(w durable.Will, done func(error)) {
	s.later(func() { s.wills[w.ClientID] = w }, done)
}

// ClearWill implements broker.Store.
func (s *MemoryStore) ClearWill(clientID string, done func(error)) {
	s.later(func() { delete(s.wills, clientID) }, done)
}

func (s *MemoryStore) later(apply func(), done func(error)) {
	s.mu.Lock()
	s.work = append(s.work, work{apply: apply, done: done})
	s.wake.Signal()
	s.mu.Unlock()
}
