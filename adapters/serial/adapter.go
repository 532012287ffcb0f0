package serial

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
)

// Status is a snapshot of an adapter.
type Status struct {
	Device string      `json:"device"`
	Port   port.Status `json:"port"`
	// Frames were complete, with the right checksum; each of them was
	// ignored, rejected, or had readings in it.
	Frames   uint64 `json:"frames"`
	Ignored  uint64 `json:"ignored"`
	Rejected uint64 `json:"rejected"`
	// Oversized frames were longer than max_length, Partial ones ended in
	// silence or where another began, Checksum ones had a wrong checksum or an
	// impossible escape. Garbage are the bytes dropped with them and on getting
	// into step, which Resyncs counts.
	Oversized uint64 `json:"oversized"`
	Partial   uint64 `json:"partial"`
	Checksum  uint64 `json:"checksum_errors"`
	Resyncs   uint64 `json:"resyncs"`
	Garbage   uint64 `json:"garbage_bytes"`
	// Readings were published; Broken of them could not be read as their
	// type. Missing are points that were not in a frame.
	Readings uint64 `json:"readings"`
	Broken   uint64 `json:"broken"`
	Missing  uint64 `json:"missing"`
	// BadTimes are frames whose own time was unreadable or too far off; their
	// readings have the gateway's.
	BadTimes uint64 `json:"bad_times"`
	// LastFrame is when the last good frame came, LastReject why the last bad
	// one was none.
	LastFrame  time.Time `json:"last_frame,omitzero"`
	LastReject string    `json:"last_reject,omitempty"`
}

// Adapter reads one device on one port. It is an [adapters.Adapter].
type Adapter struct {
	device  string
	opts    Options
	dec     *decoder
	line    *port.Line
	out     *adapters.Readings
	tracker *health.Tracker
	clock   *reading.Clock
	log     *slog.Logger

	framer  framer // of Run's goroutine
	check   check
	grumble time.Time // of Run's goroutine; when a bad frame was last logged

	mu     sync.Mutex
	status Status // guarded by mu
}

// New returns an adapter for the device of that name. Its readings go to out,
// its outcomes to tracker.
func New(device string, opts Options, line *port.Line, out *adapters.Readings, tracker *health.Tracker,
	clock *reading.Clock, log *slog.Logger,
) (*Adapter, error) {
	if err := reading.ValidName(device); err != nil {
		return nil, fmt.Errorf("device: name %w", err)
	}
	dec, err := newDecoder(device, opts)
	if err != nil {
		return nil, fmt.Errorf("device %s: %w", device, err)
	}
	framer, err := opts.newFramer()
	if err != nil {
		return nil, fmt.Errorf("device %s: %w", device, err)
	}
	check, err := newCheck(&opts)
	if err != nil {
		return nil, fmt.Errorf("device %s: %w", device, err)
	}
	return &Adapter{
		device: device, opts: opts, dec: dec, line: line, out: out, tracker: tracker, clock: clock,
		log:    log.With("component", "serial", "device", device),
		framer: framer, check: check,
		status: Status{Device: device},
	}, nil
}

// Name returns the name of the device.
func (a *Adapter) Name() string { return a.device }

// Devices describes the device.
func (a *Adapter) Devices() []adapters.Device {
	d := adapters.Device{Name: a.device, Adapter: "serial", Port: a.line.Name()}
	for _, p := range a.opts.Points {
		d.Points = append(d.Points, adapters.Describe(adapters.Point{Name: p.Name, Unit: p.Unit}, p.Type == "" || p.Type == TypeNumber))
	}
	return []adapters.Device{d}
}

// Run opens the port and publishes what the device says until ctx is done or
// the port fails. A port that is unplugged is waited for and opened again.
func (a *Adapter) Run(ctx context.Context) error {
	for {
		err := a.runOnce(ctx)
		if ctx.Err() != nil {
			return ctx.Err() // the port was closed because of it
		}
		a.tracker.Gone(time.Now(), err)
		if !errors.Is(err, port.ErrUnplugged) {
			return err
		}
		if err := a.line.Wait(ctx); err != nil {
			return err
		}
	}
}

// runOnce is one opening of the port.
func (a *Adapter) runOnce(ctx context.Context) (err error) {
	p, err := a.line.Open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	stop := context.AfterFunc(ctx, func() { p.Close() }) //nolint:errcheck // wakes the Read; the deferred one reports
	defer stop()
	return a.listen(p)
}

// listen reads until the port ends.
func (a *Adapter) listen(p *port.Port) error {
	// What waits in the kernel was sent who knows when.
	if _, err := p.Discard(); err != nil {
		return err
	}
	a.framer.lost()
	// A device in the middle of a frame goes on within a few characters; 50 ms
	// allow for a USB adapter that gathers bytes for 16. Silence for that
	// long means that the next byte begins a frame.
	if err := p.SetReadDeadline(time.Now().Add(max(50*time.Millisecond, 20*p.Options().CharTime()))); err != nil {
		return err
	}
	buf := make([]byte, 4096) // what a tty buffers
	for {
		n, err := p.Read(buf)
		switch {
		case errors.Is(err, port.ErrTimeout):
			at := a.clock.Now()
			a.framer.quiet(func(f frame) bool { return a.take(f, at) })
		case err != nil:
			return err
		default:
			at := a.clock.Now()
			a.framer.push(buf[:n], func(f frame) bool { return a.take(f, at) })
		}
		a.copyCounts()
		var until time.Time
		if gap := a.gap(); a.framer.pending() && gap > 0 {
			until = time.Now().Add(gap)
		}
		if err := p.SetReadDeadline(until); err != nil {
			return err
		}
	}
}

// gap is how long the line is silent when a frame ends; 0: that ends none.
func (a *Adapter) gap() time.Duration {
	if a.opts.Framing == FramingSilence {
		return a.opts.Silence
	}
	return a.opts.FrameTimeout
}

// copyCounts makes the framer's counters visible to Status.
func (a *Adapter) copyCounts() {
	c := a.framer.counts()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.status.Frames, a.status.Oversized, a.status.Partial, a.status.Garbage = c.frames, c.oversized, c.partial, c.garbage
	a.status.Checksum, a.status.Resyncs = c.broken, c.resyncs
}

// take takes one frame; false if its checksum is wrong. Whether that is an
// error the framer knows: it may be looking for the beginning of a frame.
func (a *Adapter) take(f frame, at reading.Stamp) bool {
	if n := len(f.body); a.opts.Framing == FramingDelimiter && a.opts.Delimiter == "\n" && f.body[n-1] == '\r' {
		f = plain(f.body[:n-1])
		if n == 1 {
			a.count(func(s *Status) { s.Ignored++ })
			return true
		}
	}
	body, err := a.check.verify(f)
	if err != nil {
		return false
	}
	a.frame(body, at)
	return true
}

// frame takes the body of one whole frame.
func (a *Adapter) frame(frame []byte, at reading.Stamp) {
	if a.dec.ignored(frame) {
		a.count(func(s *Status) { s.Ignored++ })
		return
	}
	res, err := a.dec.decode(frame, at)
	if errors.Is(err, errNothing) {
		a.count(func(s *Status) { s.Ignored++ })
		return
	}
	if err != nil {
		a.count(func(s *Status) { s.Rejected++; s.LastReject = err.Error() })
		a.complain(at.Wall, err)
		a.tracker.Bad(at.Wall, err)
		return
	}
	if len(res.readings) > 0 {
		a.out.Put(a.opts.TopicPrefix, byte(a.opts.QoS), res.readings...)
	}
	a.count(func(s *Status) {
		s.Readings += uint64(len(res.readings))
		s.Broken += uint64(res.broken)
		s.Missing += uint64(res.missing)
		s.LastFrame = at.Wall
		if res.why != nil {
			s.LastReject = res.why.Error()
		}
		if res.badTime != nil {
			s.BadTimes++
		}
	})
	if res.badTime != nil {
		a.complain(at.Wall, fmt.Errorf("time of the device: %w", res.badTime))
	}
	if res.why != nil {
		a.complain(at.Wall, res.why)
		a.tracker.Bad(at.Wall, res.why)
		return
	}
	// A device that says it has no value is well; its reading says the rest.
	a.tracker.Good(at.Wall)
}

func (a *Adapter) count(change func(*Status)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	change(&a.status)
}

// complain logs a bad frame, at most one a minute: a noisy line must not fill
// the log. The counters have them all.
func (a *Adapter) complain(at time.Time, err error) {
	if !a.grumble.IsZero() && at.Sub(a.grumble) < time.Minute {
		return
	}
	a.grumble = at
	a.log.Warn("frame rejected", "err", err)
}

// Status returns a snapshot.
func (a *Adapter) Status() Status {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.status
	s.Port = a.line.Status()
	return s
}

var _ adapters.Adapter = (*Adapter)(nil)
