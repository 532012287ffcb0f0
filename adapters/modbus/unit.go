package modbus

import (
	"math/rand/v2"
	"time"
)

// UnitState is what the bus makes of a unit. It is per bus and unit: unit 1 of
// another bus is another device.
type UnitState uint8

// The states of a unit. Any answer, a refusal too, makes it Up.
//
//	Unknown --answer--> Up --no answer--> Suspect --answer--> Up
//	Unknown --no answer--> Down           Suspect --downAfter in a row--> Down
//	Down --probe answered--> Up
const (
	UnitUnknown UnitState = iota // not asked yet
	UnitUp                       // the last request was answered
	UnitSuspect                  // the last request was not; it is asked again after its quarantine
	UnitDown                     // it is left out of the schedule and probed now and then
)

// String returns the state as it stands in status.
func (s UnitState) String() string {
	switch s {
	case UnitUp:
		return "up"
	case UnitSuspect:
		return "suspect"
	case UnitDown:
		return "down"
	default:
		return "unknown"
	}
}

// MarshalText renders the state as String does.
func (s UnitState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

const (
	// downAfter failures in a row take a unit out of the schedule. One that
	// has never answered goes at the first: a dead unit must not cost the
	// start of the others three timeouts.
	downAfter = 3

	// Probes of a down unit start probeMin apart and double up to probeMax.
	probeMin = time.Second
	probeMax = time.Minute

	// share is the part of the bus, one in share, that units which do not
	// answer may take from those that do. A tenth is what they may cost in all;
	// the rest of it is for the timeouts before a unit counts as dead.
	share = 12

	// quarantine is how many timeouts a unit is left alone after one in which
	// no answer came. What it says in that time is thrown away, so that it
	// cannot pass for the answer to a later question.
	quarantine = 2
)

// unit is one address on the bus. Its fields are the bus goroutine's; those
// that Status shows are changed under Bus.mu.
type unit struct {
	id      byte
	devices []*device
	blocks  []*block
	timeout time.Duration // the longest of its devices
	pause   time.Duration // the longest of its devices

	state    UnitState
	since    time.Time
	fails    int       // requests without an answer in a row
	failedAt time.Time // the last of them
	lastGood time.Time
	lastErr  string

	flying    int       // requests under way
	notBefore time.Time // quarantine, pause, or a busy unit: nothing is sent before
	probeAt   time.Time // when down
	backoff   time.Duration
	waste     bucket // time this unit has let pass by not answering
	yields    int    // how many polls go ahead of requests from outside, see nextAsk
	lines     lines  // about its coming and going

	n unitCounters
}

// full says that nothing more may be sent to the unit now. Several requests are
// under way only to a unit that has answered the last one and needs no rest:
// otherwise one that is dead would have all the room of the transport.
func (u *unit) full() bool {
	return u.flying > 0 && (u.state != UnitUp || u.pause > 0)
}

type unitCounters struct {
	requests, answers, exceptions, timeouts, garbled, mismatched, retries, probes, late uint64
}

// bucket is a debt of time on the bus that is paid off at one part in share.
type bucket struct {
	debt time.Duration
	at   time.Time
}

func (b *bucket) owed(now time.Time) time.Duration {
	return max(0, b.debt-now.Sub(b.at)/share)
}

func (b *bucket) add(d time.Duration, now time.Time) {
	b.debt, b.at = b.owed(now)+d, now
}

// free returns when the debt will be less than limit.
func (b *bucket) free(limit time.Duration, now time.Time) time.Time {
	over := b.owed(now) - limit
	if over < 0 {
		return now
	}
	return now.Add((over + 1) * share)
}

// lines bounds the log of what comes and goes: linesAtOnce, and then one each
// linesEvery. It is not for use by several goroutines.
type lines struct {
	from time.Time // a line is due linesEvery after it
	held uint64    // not logged since the last that was
}

const (
	linesAtOnce = 6 // three times away and back
	linesEvery  = time.Minute
)

// due says whether to log a line, and how many before it were not.
func (l *lines) due(now time.Time) (held uint64, ok bool) {
	l.from = later(l.from, now.Add(-linesAtOnce*linesEvery))
	if now.Sub(l.from) < linesEvery {
		l.held++
		return 0, false
	}
	l.from = l.from.Add(linesEvery)
	held, l.held = l.held, 0
	return held, true
}

// ready returns when the unit may be asked next: after its quarantine, and when
// it does not owe the bus more than the timeouts that would have put it down.
// Without the second, a unit that answers every other time would take a third
// of the bus.
func (u *unit) ready(now time.Time) time.Time {
	at := u.waste.free(downAfter*u.timeout, now)
	if u.notBefore.After(at) {
		return u.notBefore
	}
	return at
}

// probe is the cheapest request that makes the unit show itself: one register
// or bit that it is asked for anyway. A refusal is a sign of life too.
func (u *unit) probe() Request {
	r := u.blocks[0].req
	for _, k := range u.blocks {
		if k.refused == 0 {
			r = k.req
			break
		}
	}
	r.Count = 1
	return r
}

// jitter spreads probes that would otherwise fall together.
func jitter(d time.Duration) time.Duration {
	return d*4/5 + rand.N(d*2/5) //nolint:gosec // no secret: it spreads load
}
