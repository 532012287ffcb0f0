package health

import (
	"slices"
	"time"
)

// A rhythm is what is known of how often a device speaks by itself: the intervals
// between its last successes. Whoever sets Options.Expect needs none.
//
// It is believed when at least beats of the intervals are as long as the longest of
// them, or half as long: so are those of a device that sends every minute, also when
// it sends several lines then. A button that somebody presses now and then has none,
// unless by chance. Four longest intervals are a silence, and not less than 10 s. A
// device that was taken for stale and then came back has shown that its silences can
// be longer: each time the allowance doubles, up to 64.
type rhythm struct {
	intervals [outcomes]time.Duration // the last ones, in any order
	next      int
	full      bool
	patience  time.Duration // a factor; 0 means the first
}

const (
	beats         = 3
	firstPatience = 4
	mostPatience  = 64
	leastSilence  = 10 * time.Second
	mostSilence   = 720 * time.Hour
)

// beat notes an interval.
func (r *rhythm) beat(d time.Duration) {
	r.intervals[r.next] = d
	if r.next = (r.next + 1) % len(r.intervals); r.next == 0 {
		r.full = true
	}
}

// wrong notes that a silence was none.
func (r *rhythm) wrong() {
	r.patience = min(2*max(r.patience, firstPatience), mostPatience)
}

// silence is how long one of this device must be to say something; 0 when that is
// not known.
func (r *rhythm) silence() time.Duration {
	if !r.full {
		return 0
	}
	longest, n := slices.Max(r.intervals[:]), 0
	for _, d := range r.intervals {
		if d >= longest/2 {
			n++
		}
	}
	if longest <= 0 || n < beats {
		return 0
	}
	if longest >= mostSilence/mostPatience {
		return mostSilence
	}
	return max(longest*max(r.patience, firstPatience), leastSilence) //nolint:durationcheck // patience is a factor
}
