package modbus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
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
//	     [blocks] --earliest deadline of a unit that is ready--> begin/end --+--> readings --> Sink
//	        |                                                       |
//	        | none due                                  no answer: the unit's quarantine,
//	        v                                           then suspect, then down
//	  sleep until the next                                          |
//	                                       [down units] <-----------+
//	                                             |
//	                                   a probe at 1 to 60 s back-off, within a tenth
//	                                   of the bus or while nobody else is due
//
// What carries the requests is a transport: a serial line has room for one at a
// time, a Modbus/TCP peer perhaps for several. Between begin and the done of an
// exchange other requests may begin and end.

// Line opens the serial line again and again. [PortLine] makes one of a
// *port.Line; a [*Peer] is one too.
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

// Sink takes readings to be published; *adapters.Readings is one. Put must not
// block: it is called by the bus goroutine.
type Sink interface {
	Put(prefix string, qos byte, rs ...reading.Reading)
	// PutMessage takes the answer to a command, from any goroutine.
	PutMessage(device string, m *message.Message)
}

// device is a configured device with its place on the bus.
type device struct {
	*compiled
	unit    *unit
	tracker *health.Tracker
	finding *finding // nil unless the device says itself what it has
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
	echoes  lines // about that
	n       linkCounters
	probes  bucket         // time spent on probes while others wanted the bus
	last    *unit          // asked last
	flying  []*exchange    // begun and not over, at most room of the transport
	counted time.Time      // until when busy has been counted
	asked   bucket         // time spent on requests from outside while polls were due
	guests  map[byte]*unit // asked from outside and not configured; by address
	spent   usage          // by all exchanges
	polled  usage          // by those that read blocks

	asks     asks
	receiver *adapters.Receiver // of commands
}

// New returns the bus called name, which polls opts.Devices over line and hands
// their readings to sink. Its devices are added to monitor.
func New(name string, opts Options, line Line, sink Sink, monitor *health.Monitor, log *slog.Logger) (*Bus, error) {
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	b := &Bus{
		name: name, opts: opts, line: line, sink: sink, clock: reading.NewClock(),
		log:  log.With("component", "modbus", "adapter", name),
		asks: asks{wake: make(chan struct{}, 1)},
	}
	b.receiver = adapters.NewReceiver(sink.PutMessage, b.log)
	for i := range opts.Devices {
		c, err := compile(&opts.Devices[i])
		if err != nil {
			return nil, err
		}
		h := health.DefaultOptions()
		// Three missed cycles with their timeouts are a silence.
		h.Expect = min(3*c.fastest()+downAfter*(1+quarantine)*c.timeout, maxExpect)
		tracker, err := monitor.Add(c.name, h)
		if err != nil {
			for _, d := range b.devices {
				monitor.Remove(d.name)
			}
			return nil, err
		}
		b.add(c, time.Now()).tracker = tracker
	}
	return b, nil
}

// add gives a device its place in the schedule.
func (b *Bus) add(c *compiled, now time.Time) *device {
	var u *unit
	if i := slices.IndexFunc(b.units, func(u *unit) bool { return u.id == c.unit }); i >= 0 {
		u = b.units[i]
	} else {
		u = &unit{id: c.unit, since: now}
		b.units = append(b.units, u)
	}
	d := &device{compiled: c, unit: u, finding: c.finding}
	u.devices = append(u.devices, d)
	u.timeout = max(u.timeout, c.timeout)
	u.pause = max(u.pause, c.pause)
	u.blocks = append(u.blocks, plan(d, nil)...)
	b.devices = append(b.devices, d)
	return d
}

// maxExpect is the longest health.Options.Expect.
const maxExpect = 720 * time.Hour

// Name is the name of the bus, which is that of its port.
func (b *Bus) Name() string { return b.name }

// Run opens the line and polls until ctx ends or the line fails. A line that is
// unplugged is waited for and opened again. Run may be called again: what is
// known of the units stays.
func (b *Bus) Run(ctx context.Context) error {
	for {
		err := b.runOnce(ctx)
		if ctx.Err() != nil {
			b.update(func() { b.open, b.since = false, time.Now() })
			return ctx.Err()
		}
		b.gone(err)
		if !errors.Is(err, port.ErrUnplugged) {
			return err
		}
		if werr := b.line.Wait(ctx); werr != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return errors.Join(err, werr)
		}
	}
}

// runOnce is one opening of the line.
func (b *Bus) runOnce(ctx context.Context) (err error) {
	t, err := b.openLine(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.close()) }()
	stop := context.AfterFunc(ctx, t.interrupt)
	defer stop()

	now := time.Now()
	b.update(func() { b.open, b.since, b.opened, b.busy, b.lastErr = true, now, now, 0, "" })
	b.log.Info("bus opened", "devices", len(b.devices))
	b.admit(true, nil)
	err = b.poll(ctx, t)
	err = errors.Join(err, b.abort(t, err))
	b.admit(false, err)
	return err
}

// openLine opens the line for one run.
func (b *Bus) openLine(ctx context.Context) (transport, error) {
	if p, ok := b.line.(*Peer); ok {
		return p.openTransport(ctx, b.opts, b.asks.wake)
	}
	w, err := b.line.Open(ctx)
	if err != nil {
		return nil, err
	}
	return newLink(w, b.opts, time.Now()), nil
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
func (b *Bus) poll(ctx context.Context, t transport) error {
	wake := time.NewTimer(b.opts.WarmUp)
	defer wake.Stop()
	started := false
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.gone():
			return errors.Join(errLineGone, t.lost())
		case <-b.asks.wake:
			if !started {
				continue // it warms up
			}
		case <-wake.C:
		}
		if !started {
			started = true
			b.start(time.Now())
		}
		next, err := b.work(ctx, t)
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
				k.pace.answered = time.Time{}
				if k.due.Before(now) {
					k.due = now
				}
			}
			u.hold(now)
		}
	})
}

// work does what is to be done and returns when there is more. Nothing is under
// way then.
func (b *Bus) work(ctx context.Context, t transport) (next time.Time, err error) {
	for {
		next = time.Time{}
		for len(b.flying) < t.room() && next.IsZero() {
			now := time.Now()
			j, wake := b.next(now)
			a, u, wake := b.nextAsk(now, j.block != nil, wake)
			switch {
			case a != nil:
				err = b.ask(ctx, t, a, u, j.block != nil)
			case j.probe != nil:
				err = b.probe(ctx, t, j.probe, j.idle)
			case j.block != nil:
				err = b.serve(ctx, t, j.block)
			default:
				next = wake
			}
			if err != nil {
				return time.Time{}, err
			}
		}
		if len(b.flying) == 0 {
			return next, nil
		}
		x, err := t.receive(ctx, next)
		if err == nil && x != nil {
			err = b.end(t, x)
		}
		if err != nil {
			return time.Time{}, err
		}
	}
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
	refusal, refused := errors.AsType[*ExceptionError](x.err)
	alive := x.err == nil || refused && !refusal.gateway()
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

// Devices lists what is behind the bus.
func (b *Bus) Devices() []adapters.Device {
	b.mu.Lock() // what a device says of itself comes and goes
	defer b.mu.Unlock()
	all := make([]adapters.Device, 0, len(b.devices))
	for _, d := range b.devices {
		a := adapters.Device{Name: d.name, Adapter: "modbus", Port: b.name, Interval: d.every}
		for _, p := range slices.Concat(d.points, d.computed) {
			if p.ask {
				a.Pending = true
			} else {
				a.Points = append(a.Points, p.describe())
			}
		}
		all = append(all, a)
	}
	return all
}

var _ adapters.Commanded = (*Bus)(nil)
