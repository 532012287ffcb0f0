package uplink

import "time"

const (
	// leastWindow is what may always be on its way, in bytes: a second of the
	// slowest links there are, and enough for a message of every kind.
	leastWindow = 4 << 10
	// firstWindow is what goes out before anything is known of the link: what is
	// urgent waits behind it on a slow one, and a fast one has it doubled with
	// every round trip. TCP began with hardly less (RFC 3390).
	firstWindow = 5 << 10
	// rateRounds is how many round trips the best rate seen counts.
	rateRounds = 10
	// tripAge is how long the shortest round trip counts before a shorter
	// queue is tried for one round: a path may have become longer.
	tripAge = 10 * time.Second
	// burst is how much of the rate may be acknowledged at once: a cloud that
	// makes messages safe together answers them together, and the link must
	// not run dry meanwhile.
	burst = 250 * time.Millisecond
	// spare is how much more than the link is known to hold may be on its
	// way: it shows when the link has come to carry more, and is all that a
	// new message waits for in the network. One and a quarter, as in BBR.
	spare = 1.25
	// overtaking is what may go out of higher lanes while the window is full, in
	// bytes: one packet of TCP.
	overtaking = 1400
)

// window finds how much may be on its way so that the link is never idle and
// hardly anything waits in it: the best delivery rate of late times the shortest
// round trip, as BBR does for TCP (draft-ietf-ccwg-bbr §4), here from a PUBLISH to
// its acknowledgement, in bytes of topic, payload and properties. What waits in
// the network cannot be overtaken; what waits in the store can.
type window struct {
	most  int // bytes, by configuration
	bytes int // may be on their way now

	moving      int       // bytes sent and not acknowledged
	overtook    int       // of these, beyond the window since it last had room
	delivered   uint64    // bytes acknowledged
	deliveredAt time.Time // when the last of them was
	firstSentAt time.Time // when the first was sent of those a sample is made of
	idleUntil   uint64    // samples up to here are of a link not kept busy

	startup bool // doubling with every round trip
	flat    int  // rounds of the startup without growth
	plateau float64

	roundEnd uint64 // delivered when the round is over
	round    int
	rates    [rateRounds]float64 // best of each round, bytes a second
	extras   [rateRounds]int     // most that came at once in each round

	roundTrip time.Duration // shortest of this round
	trip      time.Duration // shortest of late, 0 before the first
	tripAt    time.Time     // when it was measured
	probeTrip time.Duration // shortest of the probe under way
	probeEnd  int           // the round in which the probe ends, 0: there is none

	epochAt    time.Time // of the acknowledgements that came faster than the rate
	epochBytes int
}

// sample is what a message remembers of the window when it was sent.
type sample struct {
	delivered   uint64
	deliveredAt time.Time
	firstSentAt time.Time
	size        int
	idle        bool
}

// newWindow begins with half of what the link before has carried, if anything
// is known of it.
func newWindow(most, before int) window {
	return window{most: most, bytes: min(most, max(firstWindow, before/2)), startup: true}
}

// sent takes note of a message that goes out.
func (w *window) sent(size int, now time.Time) sample {
	if w.moving == 0 {
		w.firstSentAt, w.deliveredAt = now, now
	}
	w.moving += size
	return sample{w.delivered, w.deliveredAt, w.firstSentAt, size, w.delivered < w.idleUntil}
}

// idle says that there is room and nothing to fill it with: what is measured
// now says nothing about the link.
func (w *window) idle() {
	w.idleUntil = w.delivered + uint64(max(w.moving, 1))
}

// lost takes back a message that will not be answered.
func (w *window) lost(s *sample) {
	w.moving -= s.size
	s.size = 0
}

// acked takes an acknowledgement in. trip is 0 when it may be one of an earlier
// send.
func (w *window) acked(s *sample, sentAt, now time.Time, trip time.Duration) {
	size := s.size
	busy := 2*w.moving >= w.bytes
	w.lost(s)
	w.delivered += uint64(size)
	w.deliveredAt = now
	if trip <= 0 || size == 0 {
		return
	}
	ended := s.delivered >= w.roundEnd
	w.roundTrip = min(w.roundTrip, trip)
	if ended {
		w.roundEnd = w.delivered
		w.round++
		if w.trip > 0 && w.roundTrip > 2*w.trip {
			// All through the round something waited in the network: what the
			// link carried before is no measure any more.
			last := w.rates[(w.round+rateRounds-1)%rateRounds]
			w.rates, w.extras = [rateRounds]float64{}, [rateRounds]int{}
			w.rates[(w.round+rateRounds-1)%rateRounds] = last
		}
		w.roundTrip = trip
		w.rates[w.round%rateRounds], w.extras[w.round%rateRounds] = 0, 0
	}
	w.measureTrip(trip, now, s.idle)
	interval := max(now.Sub(s.deliveredAt), sentAt.Sub(s.firstSentAt))
	w.firstSentAt = sentAt
	if interval >= w.trip && interval > 0 {
		rate := float64(w.delivered-s.delivered) / interval.Seconds()
		if !s.idle || rate > w.rate() {
			best := &w.rates[w.round%rateRounds]
			*best = max(*best, rate)
		} else if ended {
			// Nothing learnt: what is known stays so.
			w.rates[w.round%rateRounds] = w.rates[(w.round+rateRounds-1)%rateRounds]
		}
	}
	w.aggregate(size, now)
	w.adapt(size, ended, busy, s.idle, trip)
}

func (w *window) measureTrip(trip time.Duration, now time.Time, idle bool) {
	switch {
	case w.trip == 0 || trip <= w.trip:
		w.trip, w.tripAt = trip, now
	case w.probeEnd == 0 && now.Sub(w.tripAt) > tripAge:
		if idle { // nothing waits in the network anyway
			w.trip, w.tripAt = trip, now
			return
		}
		w.probeEnd, w.probeTrip = w.round+3, trip
	}
	if w.probeEnd != 0 {
		w.probeTrip = min(w.probeTrip, trip)
		if w.round >= w.probeEnd {
			shorter := w.probeTrip < w.trip-w.trip/8
			w.trip, w.tripAt, w.probeEnd = w.probeTrip, now, 0
			if shorter { // a queue it was, and some of it may be left
				w.probeEnd, w.probeTrip = w.round+3, trip
			}
		}
	}
}

// aggregate finds how much is acknowledged at once, beyond what the rate says.
func (w *window) aggregate(size int, now time.Time) {
	rate := w.rate()
	expected := rate * now.Sub(w.epochAt).Seconds()
	if w.epochAt.IsZero() || float64(w.epochBytes) <= expected {
		w.epochAt, w.epochBytes, expected = now, 0, 0
	}
	w.epochBytes += size
	extra := min(w.epochBytes-int(expected), int(rate*burst.Seconds()), w.bytes)
	most := &w.extras[w.round%rateRounds]
	*most = max(*most, extra)
}

// rate is the best of the last rounds, bytes a second.
func (w *window) rate() (best float64) {
	for _, r := range w.rates {
		best = max(best, r)
	}
	return best
}

// holds is what the link holds when nothing waits in it, in bytes.
func (w *window) holds() int { return int(w.rate() * w.trip.Seconds()) }

// adapt sets the window anew.
func (w *window) adapt(size int, ended, busy, idle bool, trip time.Duration) {
	if w.startup {
		if ended && !idle {
			if rate := w.rate(); rate >= 1.25*w.plateau {
				w.plateau, w.flat = rate, 0
			} else {
				w.flat++
			}
		}
		if late := trip > w.trip+w.trip/4+10*time.Millisecond; w.flat >= 3 || late && w.rate() > 0 {
			w.startup = false
		}
	}
	extra := 0
	for _, e := range w.extras {
		extra = max(extra, e)
	}
	goal := int(spare*float64(w.holds())) + extra
	switch {
	case w.startup && busy:
		w.bytes += size
	case w.startup:
	case w.bytes > goal && !idle:
		w.bytes = max(goal, w.bytes-size) // nothing new until the rest has come through
	case w.bytes < goal && busy:
		w.bytes = min(w.bytes+size, goal)
	}
	w.bytes = min(max(w.bytes, leastWindow), w.most)
}

// fits says whether so much more may go out now; something always may.
func (w *window) fits(size int) bool { return w.moving == 0 || w.moving+size <= w.limit() }

// lets is fits for what is urgent: a little of that need not wait for room, since
// a window that was too large is one until all of it is acknowledged.
func (w *window) lets(size int, urgent bool) bool {
	if w.fits(size) {
		w.overtook = 0
		return true
	}
	if !urgent || w.overtook+size > overtaking {
		return false
	}
	w.overtook += size
	return true
}

// limit is what may be on its way now.
func (w *window) limit() int {
	if w.probeEnd != 0 {
		return max(w.bytes/2, leastWindow)
	}
	return w.bytes
}
