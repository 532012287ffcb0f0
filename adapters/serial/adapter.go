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
	// Polls were sent, Skipped ones left out because the line was late, and
	// NoAnswers came to some, and to commands. Late are frames of a polled
	// device that answered nothing, and answers to commands after their
	// timeout: they were thrown away.
	Polls     uint64 `json:"polls"`
	Skipped   uint64 `json:"skipped"`
	NoAnswers uint64 `json:"no_answers"`
	Late      uint64 `json:"late"`
	// Commands are those of messages.
	Commands adapters.CommandStatus `json:"commands"`
	// LastFrame is when the last good frame came, LastReject why the last bad
	// one was none.
	LastFrame  time.Time `json:"last_frame,omitzero"`
	LastReject string    `json:"last_reject,omitempty"`
}

// Adapter reads one device on one port, and tells it what it is to do. It is an
// [adapters.Commanded].
type Adapter struct {
	device  string
	opts    Options
	dec     *decoder // nil if there are polls, which have their own
	conv    conversation
	line    *port.Line
	out     *adapters.Readings
	tracker *health.Tracker
	clock   *reading.Clock
	log     *slog.Logger

	receiver *adapters.Receiver
	queue    chan *order // capacity queueLength; what does not fit is refused

	// Of Run's goroutine.
	framer    framer
	check     *check
	asked     *exchange     // waits for its answer
	offer     *offer        // of a meter that has said who it is; nil for none
	changed   bool          // the port has not the rate of its options
	notBefore time.Time     // nothing is sent before
	overdue   *command      // has had no answer, which may come until notBefore
	held      time.Time     // since when commands wait for a pause; zero: none does
	heard     time.Time     // when the last bytes came
	inARow    int           // commands since the last poll
	grumble   time.Time     // when a bad frame was last logged
	quiet     time.Duration // of Replay: silence after heard that means something; 0: none does

	mu     sync.Mutex
	status Status     // guarded by mu
	open   *port.Port // guarded by mu; nil while commands are refused
}

// New returns an adapter for the device of that name. Its readings go to out,
// its outcomes to tracker.
func New(device string, opts Options, line *port.Line, out *adapters.Readings, tracker *health.Tracker,
	clock *reading.Clock, log *slog.Logger,
) (*Adapter, error) {
	if err := reading.ValidName(device); err != nil {
		return nil, fmt.Errorf("device: name %w", err)
	}
	k, err := opts.compile(device)
	if err != nil {
		return nil, fmt.Errorf("device %s: %w", device, err)
	}
	log = log.With("component", "serial", "device", device)
	return &Adapter{
		device: device, opts: opts, dec: k.dec, conv: k.conv, line: line, out: out, tracker: tracker, clock: clock, log: log,
		receiver: adapters.NewReceiver(out.PutMessage, log), queue: make(chan *order, queueLength),
		framer: k.framer, check: k.check,
		status: Status{Device: device},
	}, nil
}

// Name returns the name of the device.
func (a *Adapter) Name() string { return a.device }

// Devices describes the device.
func (a *Adapter) Devices() []adapters.Device {
	d := adapters.Device{Name: a.device, Adapter: "serial", Port: a.line.Name()}
	for _, q := range a.conv.polls {
		if d.Interval == 0 || q.Every < d.Interval {
			d.Interval = q.Every
		}
	}
	for _, p := range a.opts.Points {
		pt := adapters.Describe(adapters.Point{Name: p.Name, Unit: p.Unit}, p.Type == "" || p.numeric())
		switch {
		case p.Type == TypeBool:
			pt.Kind = adapters.Bool
		case p.numeric():
			pt.Kind = adapters.Number
		default:
			pt.Kind = adapters.Text
		}
		if cmd := a.conv.commands[p.Name]; cmd != nil {
			pt.Write = cmd.writes(pt.Kind)
		}
		d.Points = append(d.Points, pt)
	}
	return []adapters.Device{d}
}

// writes is what the command gives a point of its name, nil if that is something
// else than the point has.
func (c *command) writes(kind adapters.Kind) *adapters.Write {
	switch r := c.rule; {
	case r.typ == TypeNumber && kind == adapters.Number:
		return &adapters.Write{Min: max(r.min, -adapters.Unbounded), Max: min(r.max, adapters.Unbounded)}
	case r.typ == TypeBool && kind == adapters.Bool:
		return &adapters.Write{}
	case r.typ == TypeText && kind == adapters.Text:
		return &adapters.Write{Length: r.maxLen}
	default:
		return nil
	}
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

// listen reads, and asks, until the port ends.
func (a *Adapter) listen(p *port.Port) (err error) {
	// What waits in the kernel was sent who knows when.
	if _, err := p.Discard(); err != nil {
		return err
	}
	a.framer.lost()
	a.heard, a.notBefore, a.asked, a.overdue, a.held = time.Now(), time.Time{}, nil, nil, time.Time{}
	a.offer, a.changed = nil, false
	for _, q := range a.conv.polls {
		q.due = a.heard
	}
	a.connect(p)
	defer a.connect(nil)
	defer a.abandon()
	// Silence means that the next byte begins a frame.
	quietAt := a.heard.Add(pause(p.Options()))
	buf := make([]byte, 4096) // what a tty buffers
	for {
		now := time.Now()
		a.expire(now)
		waiting := len(a.queue)
		until, err := a.talk(p, now)
		if err != nil {
			return err
		}
		if until.IsZero() || !quietAt.IsZero() && quietAt.Before(until) {
			until = quietAt
		}
		if err := p.SetReadDeadline(until); err != nil {
			return err
		}
		if len(a.queue) > waiting {
			continue // it came before the deadline was set, and woke nobody
		}
		n, err := p.Read(buf)
		at := a.clock.Now()
		take := func(f frame) bool { return a.take(f, at) }
		switch {
		case errors.Is(err, port.ErrTimeout):
			if quietAt.IsZero() || at.Wall.Before(quietAt) {
				continue
			}
			a.framer.quiet(take)
		case err != nil:
			return err
		default:
			a.heard = at.Wall
			a.framer.push(buf[:n], take)
			a.goOn(at.Wall)
			if err := a.signOn(p); err != nil {
				return err
			}
		}
		a.copyCounts()
		quietAt = time.Time{}
		if gap := a.gap(); a.framer.pending() && gap > 0 {
			quietAt = time.Now().Add(gap)
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

// bare takes the "\r" off a line; false if nothing is left.
func (a *Adapter) bare(f frame) (frame, bool) {
	if n := len(f.body); a.opts.Framing == FramingDelimiter && a.opts.Delimiter == "\n" && f.body[n-1] == '\r' {
		return plain(f.body[:n-1]), n > 1
	}
	return f, true
}

// take takes one frame; false if its checksum is wrong. Whether that is an
// error the framer knows: it may be looking for the beginning of a frame.
func (a *Adapter) take(f frame, at reading.Stamp) bool {
	f, some := a.bare(f)
	if !some {
		a.count(func(s *Status) { s.Ignored++ })
		return true
	}
	body, err := a.check.verify(f)
	if err != nil {
		return false
	}
	switch {
	case a.identified(body):
	case a.answered(body, at):
	case a.polled():
		a.count(func(s *Status) { s.Late++ })
	default:
		a.frame(a.dec, body, at)
	}
	return true
}

// frame takes the body of one whole frame.
func (a *Adapter) frame(dec *decoder, frame []byte, at reading.Stamp) {
	if dec.ignored(frame) {
		a.count(func(s *Status) { s.Ignored++ })
		return
	}
	res, err := dec.decode(frame, at)
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
	s.Port, s.Commands = a.line.Status(), a.receiver.Status()
	return s
}

var _ adapters.Commanded = (*Adapter)(nil)
