package uplink

import "time"

const (
	// flowSpan is how long messages are counted for one measurement.
	flowSpan = 2 * time.Second
	// drainAge is how old the oldest message must be for a backlog to be worth an
	// estimate: younger ones are on their way already.
	drainAge = 5 * time.Second
)

// flow is how many messages pass in a second; those of a batch count each.
// Guarded by Uplink.mu.
type flow struct {
	rate  float64 // 0 before the first measurement
	count uint64
	since time.Time
}

// add counts messages; measured says that counting begins anew.
func (f *flow) add(n uint64, now time.Time) (measured bool) {
	if f.since.IsZero() {
		f.since = now // the first says when it begins, and nothing of how fast it is
		return true
	}
	f.count += n
	span := now.Sub(f.since)
	if span < flowSpan {
		return false
	}
	rate := float64(f.count) / span.Seconds()
	if f.rate > 0 {
		rate = (f.rate + rate) / 2
	}
	*f = flow{rate: rate, since: now}
	return true
}

// perSecond is the rate now: what has stopped does not go on for ever.
func (f *flow) perSecond(now time.Time) float64 {
	if span := now.Sub(f.since); span > 2*flowSpan {
		return min(f.rate, float64(f.count)/span.Seconds())
	}
	return f.rate
}

// countAppended looks how much came to the lanes; without the lock.
func (l *link) countAppended() {
	for _, ln := range l.lanes {
		n, now := l.u.store.Appended(ln.queue), time.Now()
		l.u.mu.Lock()
		ln.comes.add(n-ln.appended, now)
		ln.appended = n
		l.u.mu.Unlock()
	}
}

// estimateDrain fills in how long each lane takes to become empty at AckedRate,
// the lanes before it first, while as much as now goes on coming: comes, messages
// a second by lane.
func (st *Status) estimateDrain(comes []float64) {
	old := drainAge.Seconds()
	left, spare := 0.0, st.AckedRate
	grows := false
	for i := range st.Lanes {
		l := &st.Lanes[i]
		left += float64(l.Backlog)
		spare -= comes[i]
		if l.BacklogAge >= old && spare > 0 {
			l.DrainSeconds = left / spare
		}
		grows = grows || l.BacklogAge >= old && l.DrainSeconds == 0
		st.DrainSeconds = max(st.DrainSeconds, l.DrainSeconds)
	}
	if grows {
		st.DrainSeconds = 0
	}
}
