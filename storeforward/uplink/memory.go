package uplink

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// memory is what the store keeps for the uplink besides its queue: which
// session of the cloud the packet ids in the store belong to, and how the last
// run ended.
type memory struct {
	// Mark is address|client id|epoch of the session; empty when there is
	// none to resume.
	Mark string `json:"mark"`
	// Filters are the topic filters subscribed in it.
	Filters []string `json:"filters,omitempty"`
	// Stop is why the last run ended; empty while one is running, and so
	// after a power cut too.
	Stop string `json:"stop,omitempty"`
	// Ran says that there was a run before.
	Ran bool `json:"ran"`
}

func (m memory) encode() string {
	b, err := json.Marshal(m)
	if err != nil {
		return "" // strings and a bool have no way to fail; no memory is a clean start
	}
	return string(b)
}

// recall reads the memory; what cannot be read is no memory.
func (u *Uplink) recall() memory {
	var m memory
	if state := u.store.SessionState(u.queue); state != "" {
		if err := json.Unmarshal([]byte(state), &m); err != nil {
			u.log.Warn("memory of the cloud session not readable", "err", err)
			return memory{Ran: true}
		}
	}
	return m
}

// keep makes the memory durable, unless it is what the store has.
func (u *Uplink) keep(ctx context.Context, m memory) error {
	state := m.encode()
	if state == u.store.SessionState(u.queue) {
		return nil
	}
	return wait(ctx, func(done func(error)) { u.store.SetSessionState(u.queue, state, done) })
}

// wait makes a call of the store and waits for its done.
func wait(ctx context.Context, call func(done func(error))) error {
	result := make(chan error, 1) // done comes once
	call(func(err error) { result <- err })
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// openSession brings our side of the session in line with the cloud's, before
// anything else is sent: the session goes on, or the store forgets the packet
// ids of the old one in one transaction.
func (u *Uplink) openSession(ctx context.Context, l *link) error {
	ctx, cancel := context.WithTimeoutCause(ctx, settlePatience, errSlow)
	defer cancel()
	m := u.recall()
	present := l.conn.SessionPresent()
	if present && !u.remembers(m) {
		// In 3.1.1 a clean start takes two connections (see package client),
		// and the server may not have kept to its part.
		return errors.New("the cloud has kept a session though a clean start was asked for")
	}
	if !present {
		if err := wait(ctx, func(done func(error)) { u.store.ResetUplink(u.queue, done) }); err != nil {
			return fmt.Errorf("%w: reset the session: %w", errStore, err)
		}
		if u.remembers(m) {
			u.log.Warn("cloud session lost", "client_id", u.opts.clientID())
		}
		u.mu.Lock()
		if u.remembers(m) {
			u.status.SessionsLost++
		}
		for _, f := range u.sess.flights {
			if f.qos == 1 && f.seq != 0 && f.sent {
				u.status.Duplicates += f.count()
			}
		}
		u.sess = newSession(nil)
		u.mu.Unlock()
		m.Filters = nil
	}
	stale := slices.DeleteFunc(slices.Clone(m.Filters), func(filter string) bool {
		return slices.ContainsFunc(u.in, func(w way) bool { return w.filter == filter })
	})
	now := memory{Mark: u.mark(), Ran: true}
	for _, w := range u.in {
		now.Filters = append(now.Filters, w.filter)
	}
	now.Filters = append(now.Filters, stale...) // until the cloud has let them go
	if err := u.keep(ctx, now); err != nil {
		return fmt.Errorf("%w: keep the session's mark: %w", errStore, err)
	}
	u.mu.Lock()
	l.sess = u.sess
	l.disbandLocked()
	l.stale, l.memory = stale, now
	u.status.SessionPresent = present
	u.mu.Unlock()
	return nil
}
