package uplink

import (
	"context"
	"time"

	"holdfast/broker/packet"
)

// closePatience bounds the writing of DISCONNECT.
const closePatience = time.Second

// stop says goodbye: nothing new goes out but "offline" with the reason; when
// the cloud has acknowledged it, DISCONNECT without the will. When it does not
// within the time there is, the will is to say it.
func (l *link) stop(ctx context.Context) {
	u := l.u
	why := stopReason(ctx)
	u.setState(StateStopping, why)
	l.detach()
	ctx = context.WithoutCancel(ctx)
	waiting, cancel := context.WithTimeout(ctx, u.opts.StopTimeout)
	defer cancel()
	u.mu.Lock()
	l.leaving = true
	l.own = nil // a birth that has not gone out is not true any more
	l.last = l.announceLocked(stateOffline, why)
	l.said = l.last == nil
	u.mu.Unlock()
	said := l.farewell(waiting)
	reason := packet.ReasonSuccess
	if !said {
		reason = packet.ReasonDisconnectWithWill
	}
	closing, cancel := context.WithTimeout(ctx, closePatience)
	defer cancel()
	if err := l.conn.Close(closing, reason); err != nil {
		u.log.Warn("no clean end of the connection", "err", err)
	}
}

// farewell runs the writer until the last message is acknowledged.
func (l *link) farewell(ctx context.Context) bool {
	for {
		l.u.mu.Lock()
		l.fillLocked(time.Now())
		said, over := l.said, l.err != nil
		l.unlock()
		l.conn.Flush()
		if said || over {
			return said
		}
		select {
		case <-l.u.wake:
		case <-ctx.Done():
			return false
		}
	}
}

// stopReason is why Run's context ended, for people.
func stopReason(ctx context.Context) string {
	switch cause := context.Cause(ctx); cause {
	case nil, context.Canceled: //nolint:errorlint // exactly these: no reason was given
		return "stopped"
	default:
		return cause.Error()
	}
}
