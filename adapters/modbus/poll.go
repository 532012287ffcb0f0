package modbus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"holdfast/adapters/reading"
)

// probe asks a down unit for as little as possible.
func (b *Bus) probe(ctx context.Context, t transport, u *unit, idle bool) error {
	return b.begin(ctx, t, u, u.probe(), u.timeout, func(x *exchange) error {
		if !fatal(x.err) {
			b.probed(x, idle)
		}
		return nil
	})
}

// probed draws the consequences of a probe.
func (b *Bus) probed(x *exchange, idle bool) {
	u := x.unit
	alive := Alive(x.err)
	now := time.Now()
	b.update(func() {
		u.n.probes++
		if !alive && !idle {
			b.probes.add(x.cost, now)
		}
		if alive {
			b.revive(u, x.at)
			u.hold(now)
		} else {
			u.fails++
			u.lastErr = x.err.Error()
			u.backoff = min(2*u.backoff, probeMax)
			u.probeAt = now.Add(jitter(u.backoff))
		}
	})
	if alive {
		if held, ok := u.lines.due(now); ok {
			b.log.Info("unit answered again", "unit_id", u.id, "device", u.devices[0].name, "not_logged_before", held)
		}
		return
	}
	for _, d := range u.devices {
		d.tracker.Bad(now, x.err)
	}
	if k := u.blocks[0]; k.asks() && k.req.Addr == x.req.Addr {
		b.told(k, nil, x.err) // it may answer elsewhere
	}
}

// revive puts a down unit back into the schedule, everything due at once.
func (b *Bus) revive(u *unit, at time.Time) {
	u.state, u.since, u.lastGood = UnitUp, at, at
	u.fails, u.lastErr, u.backoff = 0, "", 0
	for _, k := range u.blocks {
		if k.refused == 0 {
			k.due = at
		}
		k.attempts, k.misses = 0, 0
		k.pace.answered = time.Time{} // how long it was away is no interval
	}
}

// serve reads a block and what rides with it.
func (b *Bus) serve(ctx context.Context, t transport, k *block) error {
	var parts []*block
	var r Request
	begun := time.Now()
	b.update(func() {
		parts, r = b.ride(k, begun)
		for _, p := range parts {
			p.flying = true
		}
	})
	try := 0
	var cost time.Duration
	var done func(x *exchange) error
	done = func(x *exchange) error {
		cost += x.cost
		// A garbled answer was the answer: nothing else is to come, so
		// asking again at once is safe.
		if errors.Is(x.err, ErrGarbled) && !errors.Is(x.err, errHurt) && try < k.dev.retries {
			try++
			b.update(func() { x.unit.n.retries++ })
			return b.begin(ctx, t, x.unit, r, k.dev.timeout, done)
		}
		b.update(func() {
			for _, p := range parts {
				p.flying = false
			}
			if x.err == nil {
				b.read(parts, begun, cost, time.Now())
			}
			x.unit.yields = max(0, x.unit.yields-1)
		})
		b.served(parts, x)
		return nil
	}
	if err := b.begin(ctx, t, k.dev.unit, r, k.dev.timeout, done); err != nil {
		return fmt.Errorf("device %s: %w", k.dev.name, err)
	}
	return nil
}

// served draws the consequences of a read.
func (b *Bus) served(parts []*block, x *exchange) {
	u, k := x.unit, parts[0]
	if k.stale() {
		return
	}
	refusal, refused := errors.AsType[*ExceptionError](x.err)
	switch {
	case x.err == nil:
		b.answered(parts, x)
	case refused && !refusal.gateway():
		b.update(func() {
			u.fails = 0
			u.lastErr = x.err.Error()
			u.lastGood = x.at
			b.setState(u, UnitUp, x.at)
		})
		if len(parts) > 1 && refusal.blames() {
			b.update(func() { keepApart(parts, time.Now()) })
			return // each will be asked by itself now
		}
		b.refusal(k, refusal, x.at)
	case !fatal(x.err):
		b.update(func() { keepApart(parts, time.Now()) })
		b.failed(k, x)
	}
}

// Alive says that an outcome came from the unit itself, if only as a refusal: it is
// there. What a gateway says of a unit behind it is none of the unit's doing.
func Alive(err error) bool {
	refusal, refused := errors.AsType[*ExceptionError](err)
	return err == nil || refused && !refusal.gateway()
}

// gateway says that the refusal is not the unit's but that of a gateway in
// front of it.
func (e *ExceptionError) gateway() bool {
	return e.Code == GatewayPathUnavail || e.Code == GatewayTargetNoAnswer
}

func (b *Bus) setState(u *unit, s UnitState, at time.Time) {
	if u.state != s {
		u.state, u.since = s, at
	}
}

// answered publishes the points of what was read.
func (b *Bus) answered(parts []*block, x *exchange) {
	u, d := x.unit, parts[0].dev
	healed := parts[0].refused > 0
	b.update(func() {
		u.fails, u.lastErr, u.lastGood = 0, "", x.at
		b.setState(u, UnitUp, x.at)
		for _, k := range parts {
			k.attempts, k.fails, k.misses, k.refused = 0, 0, 0, 0
		}
	})
	d.tracker.Good(x.at)
	if parts[0].asks() {
		b.told(parts[0], x.data, nil)
		return
	}
	stamp := b.stamp(x.at)
	most := len(d.computed)
	for _, k := range parts {
		most += len(k.points)
	}
	rs := make([]reading.Reading, 0, most)
	for _, k := range parts {
		for _, p := range k.points {
			r := reading.Reading{Device: d.name, Point: p.name, Unit: p.unit, Time: stamp}
			switch r.Value, r.Reason = p.decode(x.req, x.data); {
			case r.Reason == "":
			case r.Value == nil:
				r.Quality = reading.Bad
			default:
				r.Quality = reading.Uncertain
			}
			p.bad = false
			p.keep(r)
			if p.report.Take(&r, x.at) {
				rs = append(rs, r)
			}
		}
	}
	b.put(d, d.compute(rs, x.at, stamp))
	if healed {
		b.log.Info("refused register read again", "device", d.name, "unit_id", u.id, "request", x.req.String())
		b.replan(d, time.Now())
	}
}

// put hands on those readings of one answer that the rules of their points want
// published.
func (b *Bus) put(d *device, rs []reading.Reading) {
	if len(rs) > 0 {
		b.sink.Put(b.opts.Prefix, d.qos, rs...)
	}
}

// stamp is the moment at, a little while ago.
func (b *Bus) stamp(at time.Time) reading.Stamp {
	s := b.clock.Now()
	ago := s.Wall.Sub(at)
	s.Wall = s.Wall.Add(-ago)
	s.Boottime -= ago
	return s
}

// lose publishes once that points have no value.
func (b *Bus) lose(d *device, points []*point, at time.Time, reason string) {
	stamp := b.stamp(at)
	var rs []reading.Reading
	for _, p := range points {
		if p.bad || p.ask {
			continue
		}
		p.bad = true
		r := reading.Reading{Device: d.name, Point: p.name, Unit: p.unit, Quality: reading.Bad, Reason: reason, Time: stamp}
		p.keep(r)
		if p.report.Take(&r, at) {
			rs = append(rs, r)
		}
	}
	b.put(d, d.compute(rs, at, stamp))
}

// failed handles a block that brought no answer.
func (b *Bus) failed(k *block, x *exchange) {
	now := time.Now()
	u, err := k.dev.unit, x.err
	down, missed, split := false, false, false
	b.update(func() {
		u.lastErr = err.Error()
		u.waste.add(x.cost, now)
		// Requests that were under way together fail together: once.
		if !x.start.Before(u.failedAt) {
			u.fails++
			u.failedAt = now
		}
		k.attempts++
		if k.fails++; k.fails == 1 {
			k.failedAt = now
		}
		if u.state == UnitDown {
			return // another one was the last
		}
		if u.state == UnitUnknown || u.fails >= downAfter {
			down = true
			u.state, u.since = UnitDown, now
			u.backoff = probeMin
			u.probeAt = now.Add(jitter(u.backoff))
			return
		}
		b.setState(u, UnitSuspect, now)
		if k.attempts <= k.dev.retries {
			u.n.retries++
			k.due = now // behind the unit's other blocks: it may be this one alone
			return
		}
		missed = true
		k.attempts = 0
		k.misses++
		b.again(k, now)
		// A block that never gets an answer while its unit gives others
		// is asked less and less, and in halves: some devices keep silent
		// where they should refuse.
		k.due = k.due.Add(min(k.every<<min(k.misses-1, 6), probeMax) - min(k.every, probeMax))
		split = k.fails >= downAfter && len(k.points) > 1 && u.lastGood.After(k.failedAt)
	})
	switch {
	case down:
		if held, ok := u.lines.due(now); ok {
			b.log.Warn("unit went down", "unit_id", u.id, "device", k.dev.name, "err", err, "not_logged_before", held)
		}
		for _, d := range u.devices {
			d.tracker.Bad(now, err)
			b.lose(d, d.points, now, reasonOf(err))
		}
		if k.asks() {
			b.told(k, nil, err)
		}
		return
	case split:
		b.split(k, now, err)
	}
	k.dev.tracker.Bad(now, err)
	if missed {
		b.lose(k.dev, k.points, now, reasonOf(err))
	}
	switch {
	case !k.asks():
		b.update(func() { u.hold(now) })
	case missed:
		b.told(k, nil, err)
	}
}

// reasonOf is the short form of an error, for readings.
func reasonOf(err error) string {
	if refusal, ok := errors.AsType[*ExceptionError](err); ok {
		return fmt.Sprintf("exception %d (%v)", byte(refusal.Code), refusal.Code)
	}
	for _, e := range []error{ErrNoAnswer, ErrGarbled, ErrMismatch} {
		if errors.Is(err, e) {
			return e.Error()
		}
	}
	return "no usable answer"
}

// How long a refused register is left alone: a device that is still starting
// refuses for a moment, one that lacks the register for ever.
const (
	refusedMin = time.Minute
	refusedMax = time.Hour
)
