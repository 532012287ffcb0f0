package uplink

import (
	"context"
	"errors"
	"time"
)

// Run keeps the uplink connected until ctx ends; the cause of ctx goes out as
// the reason of the stop. It returns nil after that. It is called once.
func (u *Uplink) Run(ctx context.Context) error {
	pause := newBackoff(u.opts.ReconnectMin, u.opts.ReconnectMax)
	proto := newProtocol(&u.opts)
	u.why = startReason(u.recall())
	for ctx.Err() == nil {
		u.setState(StateConnecting, u.lost)
		conn, err := u.connect(ctx, &proto)
		if err == nil {
			began := time.Now()
			err = u.serve(ctx, conn)
			if time.Since(began) >= u.opts.ReconnectReset {
				pause.reset()
			}
			if errors.Is(err, errStore) {
				u.mu.Lock()
				u.status.StoreErrors++
				u.mu.Unlock()
			}
			if errors.Is(err, errTwice) {
				// The memory of the session contradicts itself: begin anew.
				u.store.SetSessionState(u.queue, memory{Ran: true}.encode(), u.kept)
			}
			u.why = "reconnected"
		} else if ctx.Err() == nil {
			u.mu.Lock()
			u.status.ConnectFailures++
			u.mu.Unlock()
		}
		if ctx.Err() != nil {
			break
		}
		u.pause(ctx, err, &pause)
	}
	u.leave(ctx)
	return nil //nolint:nilerr // why a connection ended is in status and log; a stop is no error
}

// pause waits before the next attempt and says why.
func (u *Uplink) pause(ctx context.Context, err error, b *backoff) {
	reason := explain(err, time.Now())
	state := StateBackingOff
	var d time.Duration
	switch {
	case needsPerson(err):
		state, d = StateAuthRefused, b.long()
	case needsPatience(err):
		d = b.long()
	default:
		d = b.next()
	}
	u.mu.Lock()
	u.status.Attempt++
	attempt := u.status.Attempt
	u.status.NextAttempt = time.Now().Add(d)
	said := u.drops.allow("attempt", time.Now())
	u.mu.Unlock()
	u.setState(state, reason)
	if reason != u.lost || said {
		u.log.Warn("uplink down", "reason", reason, "attempt", attempt, "delay", d)
	}
	u.lost = reason
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// upLocked says that the link carries messages from now on.
func (u *Uplink) upLocked(l *link) {
	reason := u.why
	if u.lost != "" && reason == "reconnected" {
		reason = "reconnected after: " + u.lost
	}
	l.announceLocked("online", reason)
	u.status.Connects++
	u.status.Attempt = 0
	u.status.NextAttempt = time.Time{}
	u.status.Protocol = l.v.String()
	u.status.Remote = l.conn.RemoteAddr().String()
	u.status.State, u.status.Reason, u.status.Since = StateUp, "", time.Now()
	st := u.status
	l.later(func() {
		u.log.Info("uplink connected", "remote", st.Remote, "protocol", st.Protocol, "session_present", st.SessionPresent, "window", l.quota, "reason", reason)
	})
	u.lost = ""
}

// leave keeps why the run has ended for the next start to tell.
func (u *Uplink) leave(ctx context.Context) {
	why := stopReason(ctx)
	m := u.recall()
	m.Stop, m.Ran = why, true
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), max(u.opts.StopTimeout, time.Second))
	defer cancel()
	if err := u.keep(ctx, m); err != nil {
		u.log.Warn("reason of the stop not kept", "err", err)
	}
	u.setState(StateStopped, why)
	u.log.Info("uplink stopped", "reason", why)
}

// drained is told by the connection that it takes PUBLISHes again.
func (u *Uplink) drained() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.link != nil {
		u.link.full = false
	}
	u.wakeLocked()
}

// limiter lets a log line through once in a while for each of a handful of
// reasons: a flood of one kind is counted in the status, not in the log.
type limiter map[string]time.Time

const logEvery = time.Minute

func (l limiter) allow(reason string, now time.Time) bool {
	if last, ok := l[reason]; ok && now.Sub(last) < logEvery {
		return false
	}
	l[reason] = now
	return true
}
