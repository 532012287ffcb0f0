package modbus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// Requests from outside: writing points, the gateway for other masters, the
// command line.
//
//	Do, any goroutine          the bus goroutine
//	-----------------          -----------------
//	[waiting] --- the oldest whose unit is ready ---> begin ... end
//	    |        ahead of polls, within the allowance       |
//	    | ctx ended: taken out, never sent                  |
//	    v                                                   v
//	  ctx.Err()      <----------- outcome --------------  asked
//
// What is on the wire is waited for to its end: whoever writes has to know.

// Why a request from outside was not sent. None of these has reached the wire.
var (
	// ErrBusy: too many requests wait already.
	ErrBusy = errors.New("too many requests wait for the bus")
	// ErrDown: the unit does not answer, and its next probe is to come.
	ErrDown = errors.New("the unit is down")
	// ErrNotOpen: the line is not there.
	ErrNotOpen = errors.New("the line is not open")
)

// ErrLost says that the line failed, or the bus was stopped, while the request was on it.
var ErrLost = errors.New("the line was lost before the answer came")

const (
	// maxAsks is how many requests wait at most. At a few a second this is
	// some seconds: who has to wait longer should know now.
	maxAsks = 32
	// askShare is the part of the bus, one in askShare, that requests from
	// outside take while polls are due.
	askShare = 3
	// askBurst is how much of the bus they take at once before that holds: a
	// write and its read-back wait for nothing, on a slow line too.
	askBurst = 500 * time.Millisecond
)

// ask is a request from outside on its way.
type ask struct {
	req     Request
	timeout time.Duration // 0: the unit's
	late    bool          // counted as deferred; the bus goroutine's
	answer  chan outcome  // capacity 1, for the one outcome
}

type outcome struct {
	data []byte
	err  error
}

// asks are those that wait.
type asks struct {
	wake chan struct{} // capacity 1: there is something to look at

	mu      sync.Mutex
	open    bool   // guarded by mu; the bus takes requests
	waiting []*ask // guarded by mu; oldest first, at most maxAsks
	// stale are points to be polled soon, for they were written; guarded by mu.
	stale []written

	n askCounters // guarded by mu
}

type askCounters struct {
	taken, answered, exceptions, failed, busy, down, notOpen, givenUp, deferred uint64
}

// Do makes a request of the unit that r names, configured or not, once, and
// returns the data of its answer. It goes ahead of polls, but while these are due
// such requests have a third of the bus between them. Requests to one unit are
// made in the order of their calls. A unit's quarantine after an answer that did
// not come holds for them as well, and they begin one.
//
// ctx bounds the time until the request is on the wire: once it is, Do waits for
// the outcome, which is a timeout away at most. An error of ctx, [ErrBusy],
// [ErrDown] and [ErrNotOpen] say that nothing was sent. [*ExceptionError] is the
// unit's refusal; [ErrNoAnswer], [ErrGarbled], [ErrMismatch], [ErrLost] and
// others leave open whether it did what was asked.
//
// A request to unit 0 is a broadcast on a serial line: it has no answer, and no
// error once it was sent.
func (b *Bus) Do(ctx context.Context, r Request) ([]byte, error) {
	return b.DoWithin(ctx, r, 0)
}

// DoWithin is Do with a timeout of its own for the answer to begin, 0 for the
// unit's. A shorter one than the unit's does not make its quarantine shorter.
func (b *Bus) DoWithin(ctx context.Context, r Request, timeout time.Duration) ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	r.Data = slices.Clone(r.Data) // it is looked at when the answer has come
	a := &ask{req: r, timeout: timeout, answer: make(chan outcome, 1)}
	if err := b.queue(a); err != nil {
		return nil, fmt.Errorf("%v: %w", r, err)
	}
	select {
	case o := <-a.answer:
		return o.data, o.err
	case <-ctx.Done():
	}
	if b.withdraw(a) {
		return nil, fmt.Errorf("%v: not sent: %w", r, ctx.Err())
	}
	o := <-a.answer
	return o.data, o.err
}

// queue takes a request in.
func (b *Bus) queue(a *ask) error {
	down := b.isDown(a.req.Unit)
	q := &b.asks
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case !q.open:
		q.n.notOpen++
		return ErrNotOpen
	case down:
		q.n.down++
		return ErrDown
	case len(q.waiting) >= maxAsks:
		q.n.busy++
		return ErrBusy
	}
	q.n.taken++
	q.waiting = append(q.waiting, a)
	q.poke()
	return nil
}

func (q *asks) poke() {
	select {
	case q.wake <- struct{}{}:
	default: // it will be looked at anyway
	}
}

// isDown says whether a unit is out of the schedule. One that nobody polls is
// not probed by the bus: it is given another chance when its time has come.
func (b *Bus) isDown(id byte) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, u := range b.units {
		if u.id == id {
			return u.state == UnitDown
		}
	}
	u := b.guests[id]
	return u != nil && u.state == UnitDown && time.Now().Before(u.probeAt)
}

// withdraw takes a request that nobody waits for any more out of the queue; false
// if it is not there.
func (b *Bus) withdraw(a *ask) bool {
	q := &b.asks
	q.mu.Lock()
	defer q.mu.Unlock()
	i := slices.Index(q.waiting, a)
	if i < 0 {
		return false
	}
	q.waiting = slices.Delete(q.waiting, i, i+1)
	q.n.givenUp++
	return true
}

// admit says whether requests are taken; what waits when they are not any more
// ends with err.
func (b *Bus) admit(open bool, err error) {
	q := &b.asks
	q.mu.Lock()
	defer q.mu.Unlock()
	q.open = open
	if open {
		return
	}
	for _, a := range q.waiting {
		q.n.notOpen++
		a.answer <- outcome{err: fmt.Errorf("%v: %w: %s", a.req, ErrNotOpen, err.Error())}
	}
	q.waiting = nil
}

// refresh has a point polled soon, for others to see that it was written.
func (b *Bus) refresh(p written) {
	q := &b.asks
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.stale) < maxAsks {
		q.stale = append(q.stale, p)
	}
	q.poke()
}

// written names a point of a device.
type written struct{ device, point string }

// hurryLocked makes due what refresh named.
func (b *Bus) hurryLocked(now time.Time) {
	q := &b.asks
	if len(q.stale) == 0 {
		return
	}
	b.update(func() {
		for _, u := range b.units {
			for _, k := range u.blocks {
				if k.refused == 0 && k.due.After(now) && slices.ContainsFunc(k.points, func(p *point) bool { return slices.Contains(q.stale, written{k.dev.name, p.name}) }) {
					k.due = now
				}
			}
		}
	})
	q.stale = q.stale[:0]
	q.poke() // what is due now was not when it was looked
}

// unitOf finds the unit with that address, or makes one of an address that is
// not configured.
func (b *Bus) unitOf(id byte) *unit {
	for _, u := range b.units {
		if u.id == id {
			return u
		}
	}
	u := b.guests[id]
	if u == nil {
		u = &unit{id: id, since: time.Now(), timeout: DefaultTimeout}
		b.update(func() {
			if b.guests == nil {
				b.guests = make(map[byte]*unit)
			}
			b.guests[id] = u
		})
	}
	return u
}

// nextAsk takes the request from outside that is to be made now out of the
// queue, if there is one; polls says that one is due. Without one it returns when
// to ask again, wake at the latest.
func (b *Bus) nextAsk(now time.Time, polls bool, wake time.Time) (*ask, *unit, time.Time) {
	q := &b.asks
	q.mu.Lock()
	defer q.mu.Unlock()
	b.hurryLocked(now)
	earliest := func(t time.Time) {
		if t.Before(wake) {
			wake = t
		}
	}
	var free time.Time
	if polls {
		free = b.asked.free(askBurst*askShare/share, now)
	}
	var before [256]bool // units that an older request waits for
	for i := 0; i < len(q.waiting); i++ {
		a := q.waiting[i]
		id := a.req.Unit
		if before[id] {
			continue
		}
		before[id] = true
		u := b.unitOf(id)
		switch {
		case u.state == UnitDown && (len(u.devices) > 0 || u.probeAt.After(now)):
			q.waiting = slices.Delete(q.waiting, i, i+1)
			i--
			before[id] = false
			q.n.down++
			a.answer <- outcome{err: fmt.Errorf("%v: %w", a.req, ErrDown)}
		case u.full() || u.flying > 0 && a.req.Function.Writes():
			// When its answer has come the bus looks again.
		case u.notBefore.After(now):
			earliest(u.notBefore)
		case u.yields > 0 && u.due(now):
			// The one before cost it a timeout and a quarantine: polls first.
		case free.After(now):
			earliest(free)
			if !a.late {
				a.late = true
				q.n.deferred++
			}
		default:
			q.waiting = slices.Delete(q.waiting, i, i+1)
			return a, u, now
		}
	}
	return nil, nil, wake
}

// due says whether one of the unit's blocks waits to be read.
func (u *unit) due(now time.Time) bool {
	return slices.ContainsFunc(u.blocks, func(k *block) bool { return !k.flying && !k.due.After(now) })
}

// ask makes a request from outside; polls says that it goes ahead of one.
func (b *Bus) ask(ctx context.Context, t transport, a *ask, u *unit, polls bool) error {
	timeout := a.timeout
	if timeout == 0 {
		timeout = u.timeout
	}
	return b.begin(ctx, t, u, a.req, timeout, func(x *exchange) error {
		b.askDone(a, x, polls)
		return nil
	})
}

// askDone draws the consequences of a request from outside. An answer shows that
// the unit is alive; that none came takes no unit out of the schedule, for some
// keep silent where they should refuse.
func (b *Bus) askDone(a *ask, x *exchange, polls bool) {
	u, now := x.unit, time.Now()
	if !polls {
		j, _ := b.next(now)
		polls = j.block != nil
	}
	_, refused := errors.AsType[*ExceptionError](x.err)
	alive := Alive(x.err)
	b.update(func() {
		if polls {
			b.asked.add(x.cost*askShare/share, now)
		}
		switch {
		case fatal(x.err):
		case alive:
			u.fails, u.backoff, u.lastGood, u.yields = 0, 0, x.at, 0
			b.setState(u, UnitUp, x.at)
		case len(u.devices) > 0:
			u.yields = len(u.blocks)
		default:
			u.fails++
			if u.fails >= downAfter {
				b.setState(u, UnitDown, now)
				u.backoff = min(max(2*u.backoff, probeMin), probeMax)
				u.probeAt = now.Add(u.backoff)
			}
		}
	})
	q := &b.asks
	q.mu.Lock()
	switch {
	case x.err == nil:
		q.n.answered++
	case refused:
		q.n.exceptions++
	default:
		q.n.failed++
	}
	q.mu.Unlock()
	o := outcome{data: slices.Clone(x.data)}
	switch {
	case fatal(x.err):
		o.err = fmt.Errorf("%v: %w: %s", a.req, ErrLost, x.err.Error()) // not wrapped: it may be the bus's context, not the caller's
	case x.err != nil:
		o.err = fmt.Errorf("%v: %w", a.req, x.err)
	}
	a.answer <- o
}

// RequestStatus counts the requests from outside ([Bus.Do]). Once none waits,
// Taken = Answered + Exceptions + Failed + what of Down, NotOpen and GivenUp was
// taken before.
type RequestStatus struct {
	Waiting int    `json:"waiting"`
	Taken   uint64 `json:"taken"`
	// Answered, Exceptions and Failed were sent: with data, with the unit's
	// refusal, and without an answer of any use.
	Answered   uint64 `json:"answered"`
	Exceptions uint64 `json:"exceptions"`
	Failed     uint64 `json:"failed"`
	// The others were not: too many waited, the unit was down, the line was not
	// open, or whoever asked did not wait for it.
	Busy    uint64 `json:"busy"`
	Down    uint64 `json:"down"`
	NotOpen uint64 `json:"not_open"`
	GivenUp uint64 `json:"given_up"`
	// Deferred had to wait for polls, since such requests had their share.
	Deferred uint64 `json:"deferred"`
}

func (q *asks) status() RequestStatus {
	q.mu.Lock()
	defer q.mu.Unlock()
	return RequestStatus{
		Waiting: len(q.waiting), Taken: q.n.taken, Answered: q.n.answered, Exceptions: q.n.exceptions, Failed: q.n.failed,
		Busy: q.n.busy, Down: q.n.down, NotOpen: q.n.notOpen, GivenUp: q.n.givenUp, Deferred: q.n.deferred,
	}
}
