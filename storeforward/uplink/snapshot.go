package uplink

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"holdfast/broker/message"
)

// snapshotMost is how many states a snapshot has at most, and snapshotBytes of
// how many bytes: they are in memory until they are sent.
const (
	snapshotMost  = 5000
	snapshotBytes = 1 << 20
)

// errEnough ends a reading.
var errEnough = errors.New("enough")

// snapshot gathers the retained messages of the routes with a snapshot. They are
// sent before what waits, when something does or the cloud has no session: it
// knows how things are before it learns how they came to be so.
func (l *link) snapshot(ctx context.Context) error {
	u := l.u
	if !slices.ContainsFunc(u.out, func(w way) bool { return w.snapshot }) {
		return nil
	}
	if n, _ := u.store.Backlog(u.queue); n == 0 && l.conn.SessionPresent() {
		return nil
	}
	var states []*message.Message
	bytes := 0
	err := u.store.Retained(ctx, func(m *message.Message) error {
		u.mu.Lock()
		way, remote := u.carries(m.Topic)
		own := u.loops(m)
		u.mu.Unlock()
		if way == nil || !way.snapshot || own {
			return nil
		}
		if bytes += m.Size(); len(states) >= snapshotMost || bytes > snapshotBytes {
			return errEnough
		}
		c := *m
		c.Topic, c.Retain = remote, !way.strip
		states = append(states, &c)
		return nil
	})
	switch {
	case errors.Is(err, errEnough):
		u.log.Warn("snapshot cut short", "messages", len(states), "bytes", bytes)
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return fmt.Errorf("%w: snapshot: %w", errStore, err)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	l.states = states
	return nil
}

// statesLocked sends what is due of the snapshot.
func (l *link) statesLocked(now time.Time) {
	for !l.full && l.err == nil && l.used < l.quota && len(l.states) > 0 && l.roomLocked(l.states[0].Size()) {
		m := l.states[0]
		l.states = l.states[1:]
		if f := l.ownLocked(m); f != nil {
			l.own = l.own[:len(l.own)-1]
			l.u.status.Snapshot++
			l.publishLocked(f, now)
		}
	}
}
