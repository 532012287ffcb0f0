package uplink

import (
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
