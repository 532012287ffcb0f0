package port

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// Status is a snapshot of a line: its counters go on over all its openings.
type Status struct {
	Name   string `json:"name"`
	Device string `json:"device"`
	// Path is the device file the selector led to last.
	Path   string `json:"path,omitempty"`
	Driver string `json:"driver"`
	// State is "open", "closed", "absent" (waiting for the device), or
	// "failed" (the last attempt to open it failed).
	State     string    `json:"state"`
	Since     time.Time `json:"since,omitzero"`
	LastError string    `json:"last_error,omitempty"`
	Warnings  []string  `json:"warnings,omitempty"`

	BytesIn  uint64 `json:"bytes_in"`
	BytesOut uint64 `json:"bytes_out"`
	// Discarded are bytes that were received and thrown away unread.
	Discarded uint64 `json:"bytes_discarded"`
	// Opens are over as many Closes, Unplugged, StuckWrites and Errors, plus
	// one while the port is open.
	Opens        uint64 `json:"opens"`
	OpenFailures uint64 `json:"open_failures"`
	Closes       uint64 `json:"closes"`
	Unplugged    uint64 `json:"unplugged"`
	// ReadTimeouts counts reads that ended at their deadline, which for some
	// users is the normal case; StuckWrites writes that closed the port.
	ReadTimeouts uint64 `json:"read_timeouts"`
	StuckWrites  uint64 `json:"stuck_writes"`
	// Errors counts ports closed for anything else the system reported.
	Errors uint64 `json:"errors"`
}

type counters struct {
	bytesIn, bytesOut, discarded                 atomic.Uint64
	opens, openFailures, closes                  atomic.Uint64
	unplugged, readTimeouts, stuckWrites, errors atomic.Uint64
}

// Line is a configured serial port. It is safe for use by many goroutines.
type Line struct {
	name  string
	opts  Options
	log   *slog.Logger
	count counters
	modem func(fd int) modem
	rs485 func(fd int) ioctlRS485

	mu      sync.Mutex
	path    string    // guarded by mu
	state   string    // guarded by mu
	since   time.Time // guarded by mu
	lastErr string    // guarded by mu
	tries   int       // guarded by mu; openings that came to nothing, in a row
	lastTry time.Time // guarded by mu
	said    logLimit  // guarded by mu
}

// NewLine returns the line of that name; opts must be valid, or it says which
// key is not. What [Options.Warnings] has to say goes to the log. Nothing is
// opened.
func NewLine(name string, opts Options, log *slog.Logger) (*Line, error) {
	if err := opts.Validate(); err != nil {
		return nil, fmt.Errorf("port %s: %w", name, err)
	}
	l := &Line{
		name: name, opts: opts, state: "closed",
		modem: func(fd int) modem { return fdModem(fd) }, rs485: rs485Of,
		log: log.With("component", "port", "port", name),
	}
	for _, w := range opts.Warnings() {
		l.log.Warn("port is likely to make trouble", "device", opts.Device, "reason", w)
	}
	return l, nil
}

// Open opens a port that has no name, once: for commands and tests.
func Open(ctx context.Context, opts Options, log *slog.Logger) (*Port, error) {
	l, err := NewLine(opts.Device, opts, log)
	if err != nil {
		return nil, err
	}
	return l.Open(ctx)
}

// Name returns the name of the line.
func (l *Line) Name() string { return l.name }

// Options returns how the line is configured.
func (l *Line) Options() Options { return l.opts }

// Open opens the port and claims it for this process alone. The errors are
// ErrUnplugged, ErrBusy, or what the driver says.
func (l *Line) Open(ctx context.Context) (*Port, error) {
	p, err := l.open(ctx)
	if err != nil {
		l.count.openFailures.Add(1)
		state := "failed"
		if errors.Is(err, ErrUnplugged) {
			state = "absent"
		}
		l.setState(state, err)
		if state == "absent" && ctx.Err() == nil { // others are their user's to tell
			l.say(slog.LevelWarn, "port is not there", "device", l.opts.Device, "err", err)
		}
		return nil, fmt.Errorf("open port %s: %w", l.name, err)
	}
	l.count.opens.Add(1)
	l.say(slog.LevelInfo, "port opened", "device", p.path, "driver", l.opts.Driver, "baud", l.opts.Baud)
	return p, nil
}

func (l *Line) open(ctx context.Context) (*Port, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	path, err := l.opts.resolve()
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	l.path = path
	l.mu.Unlock()
	l.tried()
	return open(l, path)
}

// logLimit keeps a loose contact from filling the log.
type logLimit struct {
	since time.Time
	n     int
	muted int
}

// A loose contact gets that many lines a minute; the counters have them all.
const (
	logLines  = 12
	logPeriod = time.Minute
)

// say logs what became of the port, within the limit.
func (l *Line) say(level slog.Level, msg string, args ...any) {
	l.mu.Lock()
	now := time.Now()
	if now.Sub(l.said.since) >= logPeriod {
		if l.said.muted > 0 {
			args = append(args, "left_out", l.said.muted)
		}
		l.said = logLimit{since: now}
	}
	l.said.n++
	mute := l.said.n > logLines
	if mute {
		l.said.muted++
	}
	l.mu.Unlock()
	if !mute {
		l.log.Log(context.Background(), level, msg, args...) //nolint:sloglint // the callers have the literals
	}
}

// setState notes a state and why; an error of nil keeps the last one in sight.
func (l *Line) setState(state string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state != state || l.since.IsZero() {
		l.state, l.since = state, time.Now()
	}
	if err != nil {
		l.lastErr = err.Error()
	}
}

// Status returns a snapshot.
func (l *Line) Status() Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	return Status{
		Name: l.name, Device: l.opts.Device, Path: l.path, Driver: l.opts.Driver,
		State: l.state, Since: l.since, LastError: l.lastErr, Warnings: l.opts.Warnings(),
		BytesIn: l.count.bytesIn.Load(), BytesOut: l.count.bytesOut.Load(), Discarded: l.count.discarded.Load(),
		Opens: l.count.opens.Load(), OpenFailures: l.count.openFailures.Load(),
		Closes:    l.count.closes.Load(),
		Unplugged: l.count.unplugged.Load(), ReadTimeouts: l.count.readTimeouts.Load(),
		StuckWrites: l.count.stuckWrites.Load(), Errors: l.count.errors.Load(),
	}
}
