package uplink

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"holdfast/broker/client"
	"holdfast/broker/packet"
	"holdfast/storeforward/uplink/dial"
)

// Run keeps the uplink connected until ctx ends; the cause of ctx goes out as
// the reason of the stop. It returns nil after that. It is called once.
func (u *Uplink) Run(ctx context.Context) error {
	again := newRecovery(&u.opts)
	moved := u.opts.ReturnAfter // how long a better way must be well
	var wg sync.WaitGroup
	defer wg.Wait()
	watching, stop := context.WithCancel(ctx)
	defer stop()
	if slices.ContainsFunc(u.dialer.Paths(), func(p dial.Path) bool { return p.TLS }) {
		wg.Go(func() { u.watchCertificates(watching) })
	}
	u.why = startReason(u.recall())
	for ctx.Err() == nil {
		u.setState(StateConnecting, u.lost)
		conn, err := u.connect(ctx)
		held := time.Duration(-1)
		if err == nil {
			began := time.Now()
			again.unnamed = conn.Version() != packet.V5
			err = u.serveAndScout(ctx, conn, moved)
			held = time.Since(began)
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
			if home := u.at == u.home(); home || held >= u.opts.ReconnectReset {
				u.referred = u.referral(u.at, err)
			}
		}
		if ctx.Err() != nil {
			break
		}
		if errors.Is(err, errReturn) {
			u.lost = u.explain(err, time.Now())
			// When it turns out not to let us in after all, the next move is
			// thought over for longer.
			moved = min(2*moved, max(maxReturnAfter, u.opts.ReturnAfter))
			continue
		}
		if u.at.Rank == 0 && held >= u.opts.ReconnectReset {
			moved = u.opts.ReturnAfter
		}
		if u.referred != nil && held >= u.opts.ReconnectReset {
			u.lost = u.explain(err, time.Now())
			continue
		}
		u.pause(ctx, err, again.after(err, held, time.Now()), again.twin(u.opts.clientID(), time.Now()))
	}
	stop()
	u.leave(ctx)
	return nil
}

// maxReturnAfter is how long a better way must be well at most, after moves to
// it that did not lead to a session.
const maxReturnAfter = time.Hour

// serveAndScout uses the connection, and gives it up when a better way is well
// again.
func (u *Uplink) serveAndScout(ctx context.Context, conn *client.Conn, patience time.Duration) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	scouting, stop := context.WithCancel(ctx)
	defer stop()
	at := u.at
	wg.Go(func() {
		if !u.scout(scouting, at, patience) {
			return
		}
		u.mu.Lock()
		defer u.mu.Unlock()
		if u.link != nil {
			u.status.Returns++
			u.link.failLocked(errReturn)
		}
	})
	return u.serve(ctx, conn)
}

// pause waits before the next attempt and says why.
func (u *Uplink) pause(ctx context.Context, err error, d time.Duration, twin string) {
	reason, state := u.explain(err, time.Now()), u.stateAfter(err, time.Now())
	if twin != "" {
		reason = twin
	}
	u.mu.Lock()
	u.status.Attempt++
	attempt := u.status.Attempt
	u.status.NextAttempt = time.Now().Add(d)
	u.status.Twin = twin
	if classify(err) == classTwin {
		u.status.Takeovers++
	}
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
	l.announceLocked(stateOnline, reason)
	u.status.Connects++
	u.status.Attempt = 0
	u.status.NextAttempt = time.Time{}
	u.status.Protocol = l.v.String()
	u.status.Remote = l.conn.RemoteAddr().String()
	if u.status.Connects > 1 && u.at != u.before {
		u.status.Failovers++
	}
	u.before = u.at
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
	u.mu.Lock()
	var numbers map[string]int64
	if u.budget.limited() {
		numbers = u.budget.numbers(time.Now())
	}
	u.mu.Unlock()
	u.keepBudget(numbers)
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
