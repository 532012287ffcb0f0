package modbus

import (
	"context"
	"errors"
	"slices"
	"time"
)

// exchange is one request to a unit and what became of it.
type exchange struct {
	unit    *unit
	req     Request
	timeout time.Duration
	pause   time.Duration // additional silence before it
	// done goes on with the outcome, once, in the bus goroutine; its errors
	// are fatal. After a fatal outcome nothing may be sent.
	done func(x *exchange) error

	start time.Time // when it was begun
	sent  time.Time // when the request had left

	// The outcome: data are valid until done returns. err is nil, ErrNoAnswer,
	// ErrGarbled, ErrMismatch, ErrMalformed, an *ExceptionError, or fatal.
	data []byte
	at   time.Time // when the answer was complete
	err  error
	cost time.Duration // the time of the bus it took
}

// begin sends a request to u; done goes on when its outcome is known. An error
// is fatal.
func (b *Bus) begin(ctx context.Context, t transport, u *unit, r Request, timeout time.Duration, done func(*exchange) error) error {
	x := &exchange{unit: u, req: r, timeout: timeout, done: done, start: time.Now()}
	x.sent = x.start
	if b.last != u {
		x.pause = b.opts.ChangePause
	}
	b.update(func() {
		b.count(x.start)
		b.last = u
		b.flying = append(b.flying, x)
		u.flying++
	})
	if err := t.send(ctx, x); err != nil {
		if fatal(err) {
			return err
		}
		x.at, x.err = time.Now(), err
		return b.end(t, x)
	}
	return nil
}

// count adds the time since it was last called to that in which the line was in
// use, if it was. It is called with mu held.
func (b *Bus) count(now time.Time) {
	if len(b.flying) > 0 {
		b.busy += now.Sub(b.counted)
	}
	b.counted = now
}

// end counts and times an exchange that is over, sees to the quarantine that
// follows, and goes on with it.
func (b *Bus) end(t transport, x *exchange) error {
	now := time.Now()
	b.update(func() {
		b.count(now)
		b.flying = slices.DeleteFunc(b.flying, func(y *exchange) bool { return x == y })
		x.cost = now.Sub(x.start) / time.Duration(t.room())
		b.spent.add(x.cost, now)
		if echo := t.echoes(); echo != b.echo {
			if echo { // of this unit alone, if the line goes to and fro
				if held, ok := b.echoes.due(now); ok {
					b.log.Info("line echoes what is sent", "unit_id", x.unit.id, "not_logged_before", held)
				}
			}
			b.echo = echo
		}
		n := t.counters()
		b.n.stray += n.stray
		b.n.foreign += n.foreign
		b.n.echoes += n.echoes
		b.n.late += n.late
		b.n.connects += n.connects
		b.n.broken += n.broken
		b.settle(x, t.alone(x, max(x.timeout, x.unit.timeout)), now)
	})
	return x.done(x)
}

// settle enters the outcome of x into its unit. It is called with mu held.
func (b *Bus) settle(x *exchange, alone, now time.Time) {
	u := x.unit
	u.flying--
	u.n.requests++
	u.notBefore = later(u.notBefore, now.Add(u.pause))
	switch {
	case x.err == nil:
		u.n.answers++
		return
	case errors.Is(x.err, ErrNoAnswer):
		u.n.timeouts++
	case errors.Is(x.err, ErrGarbled):
		u.n.garbled++
		if !errors.Is(x.err, errHurt) {
			return
		}
	case errors.Is(x.err, ErrMismatch), errors.Is(x.err, ErrMalformed):
		u.n.mismatched++
	case !fatal(x.err):
		u.n.exceptions++
		return
	default:
		// An answer may still be under way when the line comes back.
	}
	u.notBefore = later(u.notBefore, alone)
}

// abort ends what is under way when the line has failed with err, or the bus is
// stopped.
func (b *Bus) abort(t transport, err error) error {
	now := time.Now()
	var errs []error
	for len(b.flying) > 0 {
		x := b.flying[0]
		b.update(func() {
			b.count(now)
			b.flying = b.flying[1:]
			x.at, x.err = now, err
			b.settle(x, t.alone(x, max(x.timeout, x.unit.timeout)), now)
		})
		errs = append(errs, x.done(x))
	}
	return errors.Join(errs...)
}

// fatal says that the line or the context has ended, not that a unit did wrong.
func fatal(err error) bool {
	if err == nil || errors.Is(err, ErrNoAnswer) || errors.Is(err, ErrGarbled) || errors.Is(err, ErrMismatch) || errors.Is(err, ErrMalformed) {
		return false
	}
	_, refused := errors.AsType[*ExceptionError](err)
	return !refused
}
