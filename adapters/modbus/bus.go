package modbus

import (
	"context"
	"errors"
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

// Bus polls the devices behind one serial line or peer. It is an adapters.Adapter.
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
