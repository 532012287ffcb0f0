package uplink

import (
	"fmt"
	"math/rand/v2"
	"time"
)

// backoff draws the pauses between attempts with decorrelated jitter: each is
// between least and three times the one before, and never above most, so that
// gateways which lost the cloud in the same second do not come back in the
// same second.
type backoff struct {
	least, most time.Duration
	last        time.Duration
	// draw returns a number in [0, n); a test may replace it.
	draw func(n int64) int64
}

func newBackoff(least, most time.Duration) backoff {
	return backoff{least: least, most: most, draw: rand.Int64N}
}

func (b *backoff) next() time.Duration {
	high := min(max(b.last, b.least)*3, b.most)
	b.last = b.least
	if high > b.least {
		b.last += time.Duration(b.draw(int64(high-b.least) + 1))
	}
	return b.last
}

// long draws from the upper half at once: for refusals that a quick second
// attempt cannot change (wrong password, session taken over).
func (b *backoff) long() time.Duration {
	b.last = max(b.least, b.most/2+time.Duration(b.draw(int64(b.most/2)+1)))
	return b.last
}

func (b *backoff) reset() { b.last = 0 }

const (
	// twinMemory is how long a take-over counts: longer than twinPauseMax, so
	// that twins that take turns are still seen as such.
	twinMemory = time.Hour
	// twinPauseMax bounds the pause between twins: each holds the session for
	// minutes, in which a technician sees which one it is.
	twinPauseMax = 15 * time.Minute
	// bounceTime and bounces are the take-overs of a cloud that does not name
	// them (3.1.1): it lets us in, and soon ends it without a word, again and
	// again. The pauses grow by themselves then, and no further: a bad link
	// looks the same.
	bounceTime = 5 * time.Minute
	bounces    = 4
)

// recovery decides how long to wait after a connection has failed or ended. It
// belongs to Run's goroutine.
type recovery struct {
	opts  *Options
	pause backoff
	// takeovers are when another connection took our session over, within
	// twinMemory.
	takeovers []time.Time
	// unnamed says that the cloud has no words for a take-over (3.1.1).
	unnamed bool
	bounced int // connections in a row that such a cloud ended soon
}

func newRecovery(o *Options) recovery {
	return recovery{opts: o, pause: newBackoff(o.ReconnectMin, o.ReconnectMax)}
}

// after returns how long to wait. held is how long the link was up, negative
// when there was none.
func (r *recovery) after(err error, held time.Duration, now time.Time) time.Duration {
	kind := classify(err)
	was := held >= 0
	if was && held >= r.opts.ReconnectReset {
		r.pause.reset()
	}
	switch {
	case was && r.unnamed && kind == classEnded && held < bounceTime:
		r.bounced++
	case was && (held >= bounceTime || kind != classEnded):
		r.bounced = 0
	}
	switch kind {
	case classTwin:
		r.takeovers = append(r.recent(now), now)
		d := r.pause.long()
		for range len(r.takeovers) - 1 {
			d = min(2*d, max(twinPauseMax, r.pause.most))
		}
		return d
	case classPerson, classPatience:
		return r.pause.long()
	case classEnded:
		if spread := r.opts.ReconnectSpread; was && held >= r.opts.ReconnectReset && spread > r.pause.least {
			r.pause.last = r.pause.least + time.Duration(r.pause.draw(int64(spread-r.pause.least)+1))
			return r.pause.last
		}
	case classSoon:
	}
	return r.pause.next()
}

// recent returns the take-overs that still count, the newest hundred at most.
func (r *recovery) recent(now time.Time) []time.Time {
	for len(r.takeovers) > 0 && (now.Sub(r.takeovers[0]) > twinMemory || len(r.takeovers) > 100) {
		r.takeovers = r.takeovers[1:]
	}
	return r.takeovers
}

// twin says in words that another gateway seems to have our client id; empty
// when nothing points to it. One take-over may be anybody's mistake.
func (r *recovery) twin(clientID string, now time.Time) string {
	if n := len(r.recent(now)); n >= 2 {
		return fmt.Sprintf("another gateway connects with our client id %q: it took the session over %d times since %s; a cloned card? each needs its own client_id",
			clientID, n, r.takeovers[0].UTC().Format(time.DateTime))
	}
	if r.bounced >= bounces {
		return fmt.Sprintf("the cloud has let us in and ended the connection without a word %d times in a row: either another gateway connects with our client id %q, or the cloud does not permit what we send",
			r.bounced, clientID)
	}
	return ""
}
