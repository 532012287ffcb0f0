package storeforward

import (
	"context"
	"database/sql/driver"
	"slices"
	"time"

	"holdfast/broker/durable"
	"holdfast/broker/message"
)

// Sessions returns what is kept of all persistent sessions, by client id.
func (s *Store) Sessions(ctx context.Context) ([]durable.Session, error) {
	var sessions []durable.Session
	byQueue := make(map[durable.QueueID]int)
	err := s.read(ctx, func(d *db) error {
		err := d.query(ctx, func(row []driver.Value) error {
			x := durable.Session{ClientID: text(row[1]), Queue: durable.QueueID(integer(row[0])), Expiry: uint32(integer(row[2]))}
			if at, ok := row[3].(int64); ok {
				x.Offline = s.clock.instant(at)
			} else if s.crippled { // see insertRun, which has to wait
				x.Offline = s.clock.instant(s.clock.ended)
			}
			x.User = text(row[4])
			byQueue[x.Queue] = len(sessions)
			sessions = append(sessions, x)
			return nil
		}, "SELECT queue, client_id, expiry, offline, user FROM session ORDER BY client_id")
		if err != nil {
			return err
		}
		return d.query(ctx, func(row []driver.Value) error {
			i, ok := byQueue[durable.QueueID(integer(row[0]))]
			if !ok {
				return nil
			}
			if err := soundSubscription(text(row[1]), integer(row[2]), integer(row[6])); err != nil {
				s.unsoundKept("subscription", text(row[1]), err)
				return nil
			}
			sessions[i].Subscriptions = append(sessions[i].Subscriptions, durable.Subscription{
				Filter: text(row[1]), QoS: byte(integer(row[2])), NoLocal: integer(row[3]) != 0,
				RetainAsPublished: integer(row[4]) != 0, RetainHandling: byte(integer(row[5])), ID: uint32(integer(row[6])),
			})
			return nil
		}, "SELECT queue, filter, qos, no_local, retain_as_published, retain_handling, subscription_id FROM subscription ORDER BY queue, filter")
	})
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range sessions {
		if q := s.queues[sessions[i].Queue]; q != nil {
			sessions[i].Received = q.receivedIDs()
		}
	}
	return sessions, nil
}

func (q *queue) receivedIDs() []uint16 {
	ids := make([]uint16, 0, len(q.inbound))
	for id := range q.inbound {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// Wills returns the wills kept from before the start.
func (s *Store) Wills(ctx context.Context) ([]durable.Will, error) {
	var wills []durable.Will
	err := s.read(ctx, func(d *db) error {
		return d.query(ctx, func(row []driver.Value) error {
			s.inHand("wills", "will", text(row[0]))
			m := &message.Message{
				Topic: text(row[2]), Payload: blob(row[3]), Properties: blob(row[4]),
				QoS: byte(integer(row[5])), Retain: integer(row[6]) != 0, From: text(row[0]),
			}
			setExpiry(m, row[7])
			if err := sound(m); err != nil {
				s.unsoundKept("will", m.From, err)
				return nil
			}
			wills = append(wills, durable.Will{ClientID: text(row[0]), User: text(row[8]), Delay: uint32(integer(row[1])), Message: m})
			return nil
		}, "SELECT client_id, delay, topic, payload, properties, qos, retain, expiry, user FROM will ORDER BY client_id")
	})
	return wills, err
}

// CreateSession makes a session that outlives its connection; it is durable when
// done(nil) is called, and gone again when done is called with an error. A
// session of that client id that still exists is ended first.
func (s *Store) CreateSession(clientID string, expiry uint32, done func(error)) durable.QueueID {
	s.mu.Lock()
	if err := s.refuseLocked(); err != nil {
		s.mu.Unlock()
		call(done, err)
		return 0
	}
	if old := s.bySession[clientID]; old != nil {
		s.endLocked(old, nil)
	}
	q := s.newQueue(s.nextQueue, false, clientID)
	s.nextQueue++
	q.expiry = expiry
	s.queues[q.id] = q
	s.bySession[clientID] = q
	// Messages so far are not for it: its cursors need not look at their rows.
	for i := range q.streams {
		q.streams[i].cursor = s.seq
	}
	cursor := int64(s.seq)
	s.opLocked(func(d *db) error {
		err := d.exec("INSERT OR REPLACE INTO session (queue, client_id, expiry, offline) VALUES (?, ?, ?, NULL)", int64(q.id), clientID, int64(expiry))
		if err != nil {
			return err
		}
		return insertQueue(d, q.id, cursor)
	}, nil, done)
	s.mu.Unlock()
	return q.id
}

// insertQueue makes the streams of a new queue and keeps its id from being given
// again.
func insertQueue(d *db, q durable.QueueID, cursor int64) error {
	for qos := int64(1); qos <= 2; qos++ {
		if err := d.exec("INSERT OR REPLACE INTO stream (queue, qos, cursor) VALUES (?, ?, ?)", int64(q), qos, cursor); err != nil {
			return err
		}
	}
	return d.exec("UPDATE meta SET value = max(value, ?) WHERE key = 'next_queue'", int64(q)+1)
}

// UpdateSession notes that a session's connection began or ended, and its
// expiry interval. Only a changed interval is a change of the session that an
// answer must wait for: otherwise done is called at once and the moment becomes
// durable with the next commit, within the commit window.
func (s *Store) UpdateSession(id durable.QueueID, expiry uint32, connected bool, done func(error)) {
	q := s.lockQueue(id, done)
	if q == nil {
		return
	}
	same := q.expiry == expiry
	if err := s.refuseLocked(); err != nil && !same {
		s.mu.Unlock()
		call(done, err)
		return
	}
	q.expiry = expiry
	var offline driver.Value
	if !connected {
		offline = s.clock.now(time.Now())
	}
	run := func(d *db) error {
		return d.exec("UPDATE session SET expiry = ?, offline = ? WHERE queue = ?", int64(expiry), offline, int64(id))
	}
	if same {
		s.lazyOpLocked(q, run)
		s.mu.Unlock()
		call(done, nil)
		return
	}
	s.opLocked(run, nil, done)
	s.mu.Unlock()
}

// SetUser notes who a session's client has authenticated as. done is called when
// that is durable, at once when it was.
func (s *Store) SetUser(id durable.QueueID, user string, done func(error)) {
	s.mu.Lock()
	q := s.queues[id]
	err := s.refuseLocked()
	switch {
	case q == nil:
		err = s.noQueueLocked()
	case q.user == user && q.usersPending == 0:
		err = nil
	case err == nil:
		q.user = user
		q.usersPending++
		s.opLocked(func(d *db) error {
			return d.exec("UPDATE session SET user = ? WHERE queue = ?", user, int64(id))
		}, func() { q.usersPending-- }, done)
		s.mu.Unlock()
		return
	}
	s.mu.Unlock()
	call(done, err)
}

// lazyOpLocked queues a change that nobody waits for; a later one of the same
// queue replaces it.
func (s *Store) lazyOpLocked(q *queue, run func(d *db) error) {
	if q.lazy != nil && !q.lazy.taken {
		q.lazy.run = run
		return
	}
	q.lazy = &op{after: s.seq, run: run}
	s.ops = append(s.ops, q.lazy)
	if s.lazySince.IsZero() {
		s.lazySince = time.Now()
		s.wakeCommitter()
	}
}

// End says that a session is over, or an uplink was removed: its queues,
// subscriptions, ids and claims go. Messages that waited only for it are safe
// when its end is.
func (s *Store) End(id durable.QueueID, done func(error)) {
	q := s.lockQueue(id, done)
	if q == nil {
		return
	}
	s.endLocked(q, done)
	s.mu.Unlock()
}

func (s *Store) endLocked(q *queue, done func(error)) {
	if q.uplink {
		delete(s.byUplink, q.name)
	} else {
		delete(s.bySession, q.name)
	}
	queues := slices.Clone(q.all())
	for _, lq := range queues {
		delete(s.queues, lq.id)
		lq.r = nil
		for i := range lq.streams {
			s.forgetAheadLocked(&lq.streams[i])
		}
		for _, p := range lq.parked {
			s.unparked = append(s.unparked, p.done)
		}
		lq.parked = nil
		s.countLocked(lq, -lq.messages, -lq.bytes)
	}
	s.pendingEnds++
	s.opLocked(func(d *db) error {
		for _, lq := range queues {
			if err := deleteQueue(d, lq.id); err != nil {
				return err
			}
		}
		return nil
	}, func() {
		s.pendingEnds--
		s.spent.add(0)
		s.spent.now = true
		s.hurryLocked()
	}, done)
}

func deleteQueue(d *db, id durable.QueueID) error {
	for _, query := range [...]string{
		"DELETE FROM session WHERE queue = ?", "DELETE FROM uplink WHERE queue = ?", "DELETE FROM subscription WHERE queue = ?",
		"DELETE FROM stream WHERE queue = ?", "DELETE FROM delivery2 WHERE queue = ?", "DELETE FROM inbound WHERE queue = ?",
		"DELETE FROM dead_letter WHERE queue = ?", "DELETE FROM dropped WHERE queue = ?",
		"DELETE FROM lane WHERE queue = ?", "DELETE FROM lane_routes WHERE uplink = ?",
	} {
		if err := d.exec(query, int64(id)); err != nil {
			return err
		}
	}
	return nil
}

// Subscribe adds subscriptions to a session, or replaces those with the same
// filter.
func (s *Store) Subscribe(id durable.QueueID, subs []durable.Subscription, done func(error)) {
	subs = slices.Clone(subs)
	s.changeSession(id, func(d *db) error {
		for _, x := range subs {
			err := d.exec(`INSERT OR REPLACE INTO subscription
				(queue, filter, qos, no_local, retain_as_published, retain_handling, subscription_id) VALUES (?, ?, ?, ?, ?, ?, ?)`,
				int64(id), x.Filter, int64(x.QoS), flag(x.NoLocal), flag(x.RetainAsPublished), int64(x.RetainHandling), int64(x.ID))
			if err != nil {
				return err
			}
		}
		return nil
	}, done)
}

// Unsubscribe removes subscriptions of a session.
func (s *Store) Unsubscribe(id durable.QueueID, filters []string, done func(error)) {
	filters = slices.Clone(filters)
	s.changeSession(id, func(d *db) error {
		for _, f := range filters {
			if err := d.exec("DELETE FROM subscription WHERE queue = ? AND filter = ?", int64(id), f); err != nil {
				return err
			}
		}
		return nil
	}, done)
}

// changeSession queues a change that is refused while the disk fails: a client
// can be told so, and must not wait for hours.
func (s *Store) changeSession(id durable.QueueID, run func(d *db) error, done func(error)) {
	s.mu.Lock()
	err := s.refuseLocked()
	if err == nil && s.queues[id] == nil {
		err = durable.ErrNoQueue
	}
	if err == nil {
		s.opLocked(run, nil, done)
	}
	s.mu.Unlock()
	if err != nil {
		call(done, err)
	}
}

// SetWill keeps the will of a connected client, in place of the one before.
func (s *Store) SetWill(w durable.Will, done func(error)) {
	m := w.Message
	s.mu.Lock()
	err := s.refuseLocked()
	if err == nil {
		s.opLocked(func(d *db) error {
			payload := m.Payload
			if payload == nil {
				payload = []byte{}
			}
			return d.exec("INSERT OR REPLACE INTO will (client_id, delay, topic, payload, properties, qos, retain, expiry, user) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
				w.ClientID, int64(w.Delay), m.Topic, payload, m.Properties, int64(m.QoS), flag(m.Retain), expiryValue(m), w.User)
		}, nil, done)
	}
	s.mu.Unlock()
	if err != nil {
		call(done, err)
	}
}

// ClearWill removes the will of a client.
func (s *Store) ClearWill(clientID string, done func(error)) {
	s.mu.Lock()
	finished := s.finished
	if !finished {
		s.opLocked(func(d *db) error { return d.exec("DELETE FROM will WHERE client_id = ?", clientID) }, nil, done)
	}
	s.mu.Unlock()
	if finished {
		call(done, durable.ErrClosed)
	}
}
