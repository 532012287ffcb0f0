package storeforward

import (
	"sort"
	"time"

	"holdfast/broker/durable"
)

// storeClock counts microseconds of life across restarts (see the package
// documentation). It is immutable after Open.
type storeClock struct {
	start  time.Time // of this run, with the monotonic reading
	opened int64     // wall time of start in µs
	base   int64     // the store's clock at start
	number uint64    // of this run
	runs   []run     // oldest first, this one last
	ended  int64     // the store's clock when the run before was last known to be open
	floor  time.Time // the latest wall time of a run before whose clock was synchronised
}

// run is one earlier start.
type run struct {
	first         durable.Seq // lowest sequence number it could give
	opened, clock int64
}

// now is the store's clock at t.
func (c *storeClock) now(t time.Time) int64 { return c.base + t.Sub(c.start).Microseconds() }

// wall is the time of arrival of a message as stored: wall time on the scale of
// this run, which no step of the clock disturbs.
func (c *storeClock) wall(received, now time.Time) int64 {
	if received.IsZero() || received.After(now) {
		received = now
	}
	return c.opened + received.Sub(c.start).Microseconds()
}

// instant turns the store's clock into a time from which ages can be computed.
func (c *storeClock) instant(clock int64) time.Time {
	return c.start.Add(time.Duration(clock-c.base) * time.Microsecond)
}

// received turns the stored time of arrival of a message into a time from
// which its age and expiry can be computed.
func (c *storeClock) received(seq durable.Seq, wall int64) time.Time {
	return c.instant(c.at(seq, wall))
}

// at turns the stored time of arrival of a message into the store's clock.
func (c *storeClock) at(seq durable.Seq, wall int64) int64 {
	r := c.runOf(seq)
	return r.clock + wall - r.opened
}

// runOf returns the run that gave a sequence number; nil before the first run.
func (c *storeClock) runOf(seq durable.Seq) *run {
	if len(c.runs) == 0 {
		return nil
	}
	i := sort.Search(len(c.runs), func(i int) bool { return c.runs[i].first > seq })
	return &c.runs[max(i-1, 0)]
}

// rebase turns a stored time of arrival into one on the scale of this run.
func (c *storeClock) rebase(seq durable.Seq, wall int64) int64 {
	return c.wall(c.received(seq, wall), c.start)
}
