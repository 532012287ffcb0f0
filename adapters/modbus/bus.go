package modbus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"holdfast/adapters"
	"holdfast/adapters/health"
	"holdfast/adapters/port"
	"holdfast/adapters/reading"
	"holdfast/broker/message"
)

// The way of a poll, all in the goroutine of Run:
//
//	        +-------------------------- due again ---------------------------+
//	        v                                                                |
//	     [blocks] --earliest deadline of a unit that is ready--> exchange ---+--> readings --> Sink
//	        |                                                       |
//	        | none due                                  no answer: the unit's quarantine,
//	        v                                           then suspect, then down
//	  sleep until the next                                          |
//	                                       [down units] <-----------+
//	                                             |
//	                                   a probe at 1 to 60 s back-off, within a tenth
//	                                   of the bus or while nobody else is due
//
// TCP, and requests from outside (writing, scanning), join at `exchange` and at
// `next`.

// Line opens the serial line again and again. [PortLine] makes one of a
// *port.Line.
type Line interface {
	// Open opens the line for one run of the bus.
	Open(ctx context.Context) (Wire, error)
	// Wait returns when there may be something to open again.
	Wait(ctx context.Context) error
}

type portLine struct{ *port.Line }

// Open opens the port.
func (l portLine) Open(ctx context.Context) (Wire, error) {
	p, err := l.Line.Open(ctx)
	if err != nil {
		return nil, err // not p: a nil *port.Port is no nil Wire
	}
	return p, nil
}

// PortLine is the line of a configured port.
func PortLine(l *port.Line) Line { return portLine{l} }

// Sink takes readings to be published; *adapters.Outbox is one. Put must not
// block: it is called by the bus goroutine.
type Sink interface {
	Put(device string, m *message.Message)
}

// device is a configured device with its place on the bus.
type device struct {
	*compiled
	unit    *unit
	tracker *health.Tracker
}

// Bus polls the devices behind one serial line. It is an adapters.Adapter.
type Bus struct {
	name  string
	opts  Options
	line  Line
	sink  Sink
	log   *slog.Logger
	clock *reading.Clock

	// The bus goroutine alone changes what follows, under mu; it reads
	// without. Status reads under mu.
	mu      sync.Mutex
	units   []*unit
	devices []*device
	open    bool
	since   time.Time
	lastErr string
	busy    time.Duration // the line was in use for us, since it was opened
	opened  time.Time
	echo    bool
	n       linkCounters
	probes  bucket        // time spent on probes while others wanted the bus
	last    *unit         // asked last
	cost    time.Duration // of the last exchange
}

// New returns the bus called name, which polls opts.Devices over line and hands
// their readings to sink. Its devices are added to monitor.
func New(name string, opts Options, line Line, sink Sink, monitor *health.Monitor, log *slog.Logger) (*Bus, error) {
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	b := &Bus{
		name: name, opts: opts, line: line, sink: sink, clock: reading.NewClock(),
		log: log.With("component", "modbus", "adapter", name),
	}
	byID := map[byte]*unit{}
	for i := range opts.Devices {
		c, err := compile(&opts.Devices[i])
		if err != nil {
			return nil, err
		}
		h := health.DefaultOptions()
		// Three missed cycles with their timeouts are a silence.
		h.Expect = min(3*c.every+downAfter*(1+quarantine)*c.timeout, maxExpect)
		tracker, err := monitor.Add(c.name, h)
		if err != nil {
			for _, d := range b.devices {
				monitor.Remove(d.name)
			}
			return nil, err
		}
		u := byID[c.unit]
		if u == nil {
			u = &unit{id: c.unit, since: time.Now()}
			byID[c.unit] = u
			b.units = append(b.units, u)
		}
		d := &device{compiled: c, unit: u, tracker: tracker}
		u.devices = append(u.devices, d)
		u.timeout = max(u.timeout, c.timeout)
		u.pause = max(u.pause, c.pause)
		u.blocks = append(u.blocks, plan(d, nil)...)
		b.devices = append(b.devices, d)
	}
	return b, nil
}

// maxExpect is the longest health.Options.Expect.
const maxExpect = 720 * time.Hour

// Name is the name of the bus, which is that of its port.
func (b *Bus) Name() string { return b.name }

// Run opens the line and polls until ctx ends or the line fails. It may be
// called again: what is known of the units stays.
func (b *Bus) Run(ctx context.Context) (err error) {
	w, err := b.line.Open(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		b.gone(err)
		// Nothing can be done before the device is there; the error is
		// the one of opening.
		if werr := b.line.Wait(ctx); werr != nil && ctx.Err() != nil {
			return ctx.Err()
		}
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	// link.read relies on this: the deadline is set after ctx has ended.
	stop := context.AfterFunc(ctx, func() { _ = w.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()

	now := time.Now()
	b.update(func() { b.open, b.since, b.opened, b.busy, b.lastErr = true, now, now, 0, "" })
	b.log.Info("bus opened", "devices", len(b.devices))
	err = b.poll(ctx, w)
	if ctx.Err() != nil {
		b.update(func() { b.open, b.since = false, time.Now() })
		return ctx.Err()
	}
	b.gone(err)
	return err
}

func (b *Bus) update(fn func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	fn()
}

// gone says of all devices that the line is not there.
func (b *Bus) gone(err error) {
	now := time.Now()
	b.update(func() {
		if b.open || b.since.IsZero() {
			b.since = now
		}
		b.open, b.lastErr = false, err.Error()
	})
	for _, d := range b.devices {
		d.tracker.Gone(now, err)
		b.lose(d, d.points, now, "port unavailable")
	}
}

// poll is one opening of the line; it ends with an error.
func (b *Bus) poll(ctx context.Context, w Wire) error {
	l := newLink(w, b.opts, time.Now())
	wake := time.NewTimer(b.opts.WarmUp)
	defer wake.Stop()
	started := false
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.Done():
			_, err := w.Discard() // says why
			return errors.Join(errLineGone, err)
		case <-wake.C:
		}
		if !started {
			started = true
			b.start(time.Now())
		}
		next, err := b.work(ctx, l)
		if err != nil {
			return err
		}
		wake.Reset(time.Until(next))
	}
}

var errLineGone = errors.New("the line is gone")

// start makes due now what should have been read while the line was closed.
func (b *Bus) start(now time.Time) {
	b.update(func() {
		for _, u := range b.units {
			for _, k := range u.blocks {
				if k.due.Before(now) {
					k.due = now
				}
			}
		}
	})
}

// work does what is to be done and returns when there is more.
func (b *Bus) work(ctx context.Context, l *link) (next time.Time, err error) {
	for {
		j, next := b.next(time.Now())
		switch {
		case j.probe != nil:
			err = b.probe(ctx, l, j.probe, j.idle)
		case j.block != nil:
			err = b.serve(ctx, l, j.block)
		default:
			return next, nil
		}
		if err != nil {
			return time.Time{}, err
		}
	}
}

// probe asks a down unit for as little as possible.
func (b *Bus) probe(ctx context.Context, l *link, u *unit, idle bool) error {
	_, at, err := b.exchange(ctx, l, u, u.probe(), u.timeout)
	if fatal(err) {
		return err
	}
	now := time.Now()
	refusal, refused := errors.AsType[*ExceptionError](err)
	alive := err == nil || refused && !refusal.gateway()
	b.update(func() {
		u.n.probes++
		if !alive && !idle {
			b.probes.add(b.cost, now)
		}
		if alive {
			b.revive(u, at)
		} else {
			u.fails++
			u.lastErr = err.Error()
			u.backoff = min(2*u.backoff, probeMax)
			u.probeAt = now.Add(jitter(u.backoff))
		}
	})
	if alive {
		b.log.Info("unit answered again", "unit_id", u.id, "device", u.devices[0].name)
		return nil
	}
	for _, d := range u.devices {
		d.tracker.Bad(now, err)
	}
	return nil
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
	}
}

// exchange is one request and what became of it, counted and timed, with the
// quarantine that follows.
func (b *Bus) exchange(ctx context.Context, l *link, u *unit, r Request, timeout time.Duration) (data []byte, at time.Time, err error) {
	var pause time.Duration
	if b.last != u {
		pause = b.opts.ChangePause
	}
	start := time.Now()
	data, at, err = l.exchange(ctx, r, timeout, pause)
	end := time.Now()
	b.update(func() {
		b.last = u
		b.cost = end.Sub(start)
		b.busy += b.cost
		if l.echo == echoBack && !b.echo {
			b.log.Info("line echoes what is sent", "unit_id", u.id)
		}
		b.echo = l.echo == echoBack
		b.n.stray += l.n.stray
		b.n.foreign += l.n.foreign
		b.n.echoes += l.n.echoes
		l.n = linkCounters{}
		u.n.requests++
		u.notBefore = end.Add(u.pause)
		// As long as a timeout and the quarantine after it, also when it
		// was clear earlier that this is not the answer.
		alone := later(u.notBefore, later(start, l.sent).Add((1+quarantine)*u.timeout+time.Duration(r.answerLen()+3)*l.char))
		switch {
		case err == nil:
			u.n.answers++
		case errors.Is(err, ErrNoAnswer):
			u.n.timeouts++
			u.notBefore = alone
		case errors.Is(err, ErrGarbled):
			u.n.garbled++
			if errors.Is(err, errHurt) {
				u.notBefore = alone
			}
		case errors.Is(err, ErrMismatch), errors.Is(err, ErrMalformed):
			u.n.mismatched++
			u.notBefore = alone
		case !fatal(err):
			u.n.exceptions++
		default:
			// An answer may still be under way when the line comes back.
			u.notBefore = alone
		}
	})
	return data, at, err
}

// fatal says that the line or the context has ended, not that a unit did wrong.
func fatal(err error) bool {
	if err == nil || errors.Is(err, ErrNoAnswer) || errors.Is(err, ErrGarbled) || errors.Is(err, ErrMismatch) || errors.Is(err, ErrMalformed) {
		return false
	}
	_, refused := errors.AsType[*ExceptionError](err)
	return !refused
}

// serve reads one block and draws the consequences.
func (b *Bus) serve(ctx context.Context, l *link, k *block) error {
	u := k.dev.unit
	data, at, err := b.exchange(ctx, l, u, k.req, k.dev.timeout)
	// A garbled answer was the answer: nothing else is to come, so asking
	// again at once is safe.
	for try := 0; errors.Is(err, ErrGarbled) && !errors.Is(err, errHurt) && try < k.dev.retries; try++ {
		b.update(func() { u.n.retries++ })
		data, at, err = b.exchange(ctx, l, u, k.req, k.dev.timeout)
	}
	if fatal(err) {
		return fmt.Errorf("device %s: %w", k.dev.name, err)
	}
	refusal, refused := errors.AsType[*ExceptionError](err)
	switch {
	case err == nil:
		b.answered(k, data, at)
	case refused && !refusal.gateway():
		b.update(func() {
			u.fails = 0
			u.lastErr = err.Error()
			u.lastGood = at
			b.setState(u, UnitUp, at)
		})
		b.refusal(k, refusal, at)
	default:
		b.failed(k, err)
	}
	return nil
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

// answered publishes the block's points.
func (b *Bus) answered(k *block, data []byte, at time.Time) {
	u := k.dev.unit
	healed := k.refused > 0
	b.update(func() {
		u.fails, u.lastErr, u.lastGood = 0, "", at
		b.setState(u, UnitUp, at)
		k.attempts, k.fails, k.misses, k.refused = 0, 0, 0, 0
		b.again(k, time.Now())
	})
	k.dev.tracker.Good(at)
	stamp := b.stamp(at)
	for _, p := range k.points {
		r := reading.Reading{Device: k.dev.name, Point: p.name, Unit: p.unit, Time: stamp}
		if r.Value, r.Reason = k.decode(p, data); r.Reason != "" {
			r.Quality = reading.Bad
		}
		p.bad = false
		b.sink.Put(k.dev.name, r.Message(b.opts.Prefix, k.dev.qos))
	}
	if healed {
		b.log.Info("refused register read again", "device", k.dev.name, "unit_id", u.id, "request", k.req.String())
		b.replan(k.dev, time.Now())
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

// again sets when the block is due next: one period on. Cycles that have passed
// meanwhile are left out and counted.
func (b *Bus) again(k *block, now time.Time) {
	k.due = k.due.Add(k.dev.every)
	if behind := now.Sub(k.due); behind >= 0 {
		// From now, not back in step: on a bus with more to do than it
		// can, all come late alike, and not some on time and some never.
		k.due = now.Add(k.dev.every)
		k.dev.unit.n.late += uint64(behind/k.dev.every) + 1
	}
}

// lose publishes once that points have no value.
func (b *Bus) lose(d *device, points []*point, at time.Time, reason string) {
	stamp := b.stamp(at)
	for _, p := range points {
		if p.bad {
			continue
		}
		p.bad = true
		r := reading.Reading{Device: d.name, Point: p.name, Unit: p.unit, Quality: reading.Bad, Reason: reason, Time: stamp}
		b.sink.Put(d.name, r.Message(b.opts.Prefix, d.qos))
	}
}

// failed handles a block that brought no answer.
func (b *Bus) failed(k *block, err error) {
	now := time.Now()
	u := k.dev.unit
	down, missed, split := false, false, false
	b.update(func() {
		u.fails++
		u.lastErr = err.Error()
		u.waste.add(b.cost, now)
		k.attempts++
		if k.fails++; k.fails == 1 {
			k.failedAt = now
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
		k.due = k.due.Add(min(k.dev.every<<min(k.misses-1, 6), probeMax) - min(k.dev.every, probeMax))
		split = k.fails >= downAfter && len(k.points) > 1 && u.lastGood.After(k.failedAt)
	})
	switch {
	case down:
		b.log.Warn("unit went down", "unit_id", u.id, "device", k.dev.name, "err", err)
		for _, d := range u.devices {
			d.tracker.Bad(now, err)
			b.lose(d, d.points, now, reasonOf(err))
		}
		return
	case split:
		b.split(k, now, err)
	}
	k.dev.tracker.Bad(now, err)
	if missed {
		b.lose(k.dev, k.points, now, reasonOf(err))
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

// Devices lists what is behind the bus.
func (b *Bus) Devices() []adapters.Device {
	all := make([]adapters.Device, 0, len(b.devices))
	for _, d := range b.devices {
		a := adapters.Device{Name: d.name, Adapter: "modbus", Port: b.name, Interval: d.every}
		for _, p := range d.points {
			a.Points = append(a.Points, p.name)
		}
		all = append(all, a)
	}
	return all
}

var _ adapters.Adapter = (*Bus)(nil)
