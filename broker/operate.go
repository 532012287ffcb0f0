package broker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"holdfast/broker/durable"
	"holdfast/broker/packet"
)

// ErrNoSession means that no client of that id has a session.
var ErrNoSession = errors.New("no such session")

// SessionInfo is one session, for an operator.
type SessionInfo struct {
	ClientID string `json:"client_id"`
	// User is the user it belongs to, empty for none.
	User string `json:"user,omitempty"`
	// Remote is where its client is connected from, and Since since when; of
	// nothing while it is away.
	Remote string    `json:"remote,omitempty"`
	Since  time.Time `json:"since,omitzero"`
	// Expiry is for how many seconds the session outlives its connection: 0 not
	// at all, 4294967295 without end.
	Expiry uint32 `json:"expiry_seconds"`
	// Expires is when it ends unless its client returns; zero while that is
	// connected, and for a session without end.
	Expires       time.Time `json:"expires,omitzero"`
	Subscriptions int       `json:"subscriptions"`
}

// Sessions are those of all clients, in no order.
func (b *Broker) Sessions() []SessionInfo {
	b.mu.Lock()
	sessions := make([]*session, 0, len(b.sessions))
	list := make([]SessionInfo, 0, len(b.sessions))
	for id, s := range b.sessions {
		x := SessionInfo{ClientID: id, User: s.holder.Name}
		switch {
		case s.owner != nil:
			x.Remote, x.Since = s.owner.remote(), s.owner.since
		case s.expire != nil:
			x.Expires = s.expire.at
		}
		sessions, list = append(sessions, s), append(list, x)
	}
	b.mu.Unlock()
	for i, s := range sessions {
		s.mu.Lock()
		list[i].Expiry, list[i].Subscriptions = s.expiry, len(s.subs)
		s.mu.Unlock()
	}
	return list
}

// EndSession ends the session of a client, and returns when that is durable. A
// client that is connected is disconnected with 0x98, administrative action. Its
// will, or one that waits for it, is published as at the end of any session
// (MQTT 5.0 §3.1.3.2.2). Nothing keeps the client from beginning a new one. The
// error is [ErrNoSession], [ErrClosed], that of the store, or, if ctx ends before
// the disk has it, that of ctx.
func (b *Broker) EndSession(ctx context.Context, clientID string) error {
	ended := make(chan error, 1)
	var ending *session
	for {
		b.mu.Lock()
		if b.closing || b.state != stateStarted {
			b.mu.Unlock()
			return ErrClosed
		}
		s := b.sessions[clientID]
		var step <-chan struct{} = b.busy[clientID]
		switch {
		case ending != nil && s != ending:
			b.mu.Unlock()
			return b.awaitEnd(ctx, clientID, ended)
		case step != nil: // it may be ending by itself
			b.mu.Unlock()
		case s == nil:
			b.mu.Unlock()
			return fmt.Errorf("session %q: %w", clientID, ErrNoSession)
		default:
			owner := s.owner
			if owner != nil {
				step = owner.goneLocked()
			}
			b.mu.Unlock()
			s.mu.Lock()
			s.expiry = 0
			if ending == nil {
				s.ended = both(s.ended, func(err error) { ended <- err })
			}
			s.mu.Unlock()
			ending = s
			if owner != nil {
				owner.end(packet.ReasonAdministrativeAction, "the session was ended by an operator", false)
				break
			}
			// The clock ends sessions whose clients are away, nobody else: see
			// workOnLocked.
			done := make(chan struct{})
			b.clock.after(0, func() {
				defer close(done)
				b.endAway(s)
			})
			step = done
		}
		select {
		case <-step:
		case <-ctx.Done():
			return fmt.Errorf("end session %q: %w", clientID, ctx.Err())
		}
	}
}

// awaitEnd waits until the end of a session is durable.
func (b *Broker) awaitEnd(ctx context.Context, clientID string, ended <-chan error) error {
	select {
	case err := <-ended:
		if err != nil && !errors.Is(err, durable.ErrNoQueue) {
			return fmt.Errorf("end session %q: %w", clientID, err)
		}
		b.count.sessionsEnded.Add(1)
		b.log.Info("session ended by an operator", "client_id", clientID)
		return nil
	case <-ctx.Done():
		return fmt.Errorf("session %q has ended, but the disk does not have it yet: %w", clientID, ctx.Err())
	}
}
