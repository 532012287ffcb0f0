package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"sync"
	"time"

	"holdfast/adapters/modbus"
	"holdfast/adapters/port"
)

const (
	// settled is for how long a line is silent when what came is all of it: USB
	// adapters hand over bytes in batches 16 ms apart.
	settled = 30 * time.Millisecond
	// minSilence is the least of 3.5 characters (MODBUS Serial Line V1.02 §2.5.1.1).
	minSilence = 1750 * time.Microsecond
	// stale is the age of a request that its master has given up: an answer would
	// be taken for that to another.
	stale = time.Second
)

// Line answers the requests for its units on a serial line that it shares with other
// slaves, in RTU frames. It is an adapters.Adapter.
//
// What ends with silence is answered; a request that others speak after, or that is
// older than a second, is not: its master has given up. Broadcasts that write are
// done. An echo of what was answered is known by its bytes and its time: a master
// that repeats a single write within 30 ms of its answer is not answered either,
// and is when it tries again.
type Line struct {
	name    string
	line    modbus.Line
	char    time.Duration
	units   [256]bool
	first   byte // the unit that does as broadcasts say
	handler Handler
	log     *slog.Logger

	mu    sync.Mutex
	n     Status     // guarded by mu
	heard LineStatus // guarded by mu
}

// LineStatus says what was heard on a line.
type LineStatus struct {
	Open bool `json:"open"`
	// Answers are those given, exceptions included, Broadcasts those done.
	Answers    uint64 `json:"answers"`
	Broadcasts uint64 `json:"broadcasts"`
	// Late are requests that nobody waited for any more.
	Late uint64 `json:"late"`
	// Foreign are frames to and from others, Garbled pieces that belong to no
	// frame, Echoes answers that came back.
	Foreign uint64 `json:"foreign"`
	Garbled uint64 `json:"garbled"`
	Echoes  uint64 `json:"echoes"`
}

// NewLine returns a server that has the line to itself, of which a character takes
// char. Units are at least one of 1 to 247.
func NewLine(name string, line modbus.Line, char time.Duration, units []int, h Handler, log *slog.Logger) (*Line, error) {
	l := &Line{
		name: name, line: line, char: char, handler: h, log: log.With("component", "modbus", "server", name),
		n: Status{Exceptions: map[string]uint64{}},
	}
	if err := ValidLineUnits(units); err != nil {
		return nil, err
	}
	for _, u := range units {
		l.units[u] = true
	}
	l.first = byte(units[0])
	return l, nil
}

// ValidLineUnits reports units that no slave on a line can be, naming the key.
func ValidLineUnits(units []int) error {
	if len(units) == 0 {
		return errors.New("units: is missing; others share the line, so say which units are answered, 1 to 247")
	}
	for i, u := range units {
		if u < 1 || u > 247 {
			return fmt.Errorf("units[%d]: %d is outside 1..247", i, u)
		}
	}
	return nil
}

// Name is the name it was given.
func (l *Line) Name() string { return l.name }

// Run opens the line and serves until ctx ends or the line fails. One that is
// unplugged is waited for and opened again.
func (l *Line) Run(ctx context.Context) error {
	for {
		err := l.runOnce(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !errors.Is(err, port.ErrUnplugged) {
			return err
		}
		if werr := l.line.Wait(ctx); werr != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return errors.Join(err, werr)
		}
	}
}

// runOnce is one opening of the line.
func (l *Line) runOnce(ctx context.Context) (err error) {
	w, err := l.line.Open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	// read sets its deadline before it looks at ctx.
	stop := context.AfterFunc(ctx, func() { _ = w.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	l.update(func() { l.heard.Open = true })
	defer l.update(func() { l.heard.Open = false })
	l.log.Info("serving Modbus on a line")
	s := lineSession{Line: l, w: w, framer: framer{units: l.units}, silence: max(7*l.char/2, minSilence)}
	return s.serve(ctx)
}

func (l *Line) update(fn func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fn()
}

// lineSession is one opening of a line.
type lineSession struct {
	*Line
	framer
	w       modbus.Wire
	silence time.Duration
	at      time.Time // when the last bytes came, or earlier
	pending *request  // the last thing said on the line; nil: another was
	asked   time.Time // when pending came
	echoed  time.Time // until when an echo of sent may come
	chunk   [longest]byte
	adu     []byte
	answer  []byte
}

func (s *lineSession) serve(ctx context.Context) error {
	final := false
	for {
		if err := s.take(ctx, final); err != nil {
			return err
		}
		wait := stale
		switch {
		case len(s.buf) > 0:
			wait = max(settled, s.silence)
		case s.pending != nil && !final:
			wait = s.silence
		case s.pending != nil:
			wait = 0
		}
		if wait > 0 {
			n, err := s.read(ctx, wait)
			if err != nil {
				return err
			}
			final = n == 0
		}
		if s.pending == nil || len(s.buf) > 0 || !final {
			continue
		}
		r := *s.pending
		s.pending = nil
		if err := s.reply(ctx, r); err != nil {
			return err
		}
		final = false
	}
}

// take takes what came apart. The request that nothing was said after is pending;
// what is for all is done.
func (s *lineSession) take(ctx context.Context, final bool) error {
	for {
		before := s.foreign
		r, found := s.next(final)
		s.update(func() {
			if s.pending != nil && (found || s.foreign != before) {
				s.pending = nil
				s.heard.Late++
			}
			s.heard.Foreign += s.foreign
			s.heard.Garbled += s.garbled
			s.heard.Echoes += s.echoes
		})
		s.foreign, s.garbled, s.echoes = 0, 0, 0
		if !found {
			return nil
		}
		if r.unit != 0 {
			s.pending, s.asked = &r, s.at
			continue
		}
		if f := modbus.Function(r.pdu[0]); !r.aligned || !f.Writes() || f == modbus.ReadWriteRegisters {
			continue
		}
		s.update(func() { s.heard.Broadcasts++ })
		if _, err := s.handle(ctx, request{unit: s.first, pdu: r.pdu}); err != nil {
			return err
		}
	}
}

// handle has a request done. Current says that it still is the last that was said.
func (s *lineSession) handle(ctx context.Context, r request) (current bool, err error) {
	begun := time.Now()
	s.answer = s.handler.Handle(ctx, r.unit, r.pdu, s.answer[:0])
	s.update(func() {
		s.n.Requests++
		if len(s.answer) == 2 && s.answer[0]&0x80 != 0 {
			s.n.Exceptions[modbus.Exception(s.answer[1]).String()]++
		}
	})
	took := time.Since(begun)
	switch {
	case took < s.silence:
		return true, nil
	case took > stale:
		// Nobody knows when what has come meanwhile was said.
		return false, s.forget()
	}
	n, err := s.read(ctx, s.silence)
	if n > 0 {
		s.at = begun // or later
	}
	return n == 0, err
}

// forget throws away what has come.
func (s *lineSession) forget() error {
	s.buf, s.skipped, s.sent, s.pending = nil, false, nil, nil
	_, err := s.w.Discard()
	return err
}

// reply has a request done and answers it, unless that is too late.
func (s *lineSession) reply(ctx context.Context, r request) error {
	at := s.asked
	// A line that is let go may bring a byte or two of noise.
	if s.tail > 2 || time.Since(at) > stale {
		s.update(func() { s.heard.Late++ })
		return nil
	}
	current, err := s.handle(ctx, r)
	if err != nil || len(s.answer) == 0 {
		return err
	}
	if !current || time.Since(at) > stale {
		s.update(func() { s.heard.Late++ })
		return nil
	}
	s.adu = modbus.AppendRTU(s.adu[:0], r.unit, s.answer)
	start := time.Now()
	if _, err := s.w.Write(s.adu); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	if err := s.w.Drain(); err != nil {
		return fmt.Errorf("drain: %w", err)
	}
	end := start.Add(time.Duration(len(s.adu)) * s.char)
	if now := time.Now(); now.After(end) {
		end = now
	}
	s.sent, s.echoed = s.adu, end.Add(settled)
	s.update(func() { s.heard.Answers++ })
	return nil
}

// read reads what comes within that time.
func (s *lineSession) read(ctx context.Context, wait time.Duration) (n int, err error) {
	until := time.Now().Add(wait)
	if err := s.w.SetReadDeadline(until); err != nil {
		return 0, fmt.Errorf("set read deadline: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	n, err = s.w.Read(s.chunk[:])
	now := time.Now()
	if cerr := ctx.Err(); cerr != nil {
		return 0, cerr
	}
	if now.Sub(until) > stale/2 && (n > 0 || errors.Is(err, os.ErrDeadlineExceeded)) {
		return 0, s.forget() // the process stood still: who knows when that was said
	}
	if now.After(s.echoed) {
		s.sent = nil
	}
	switch {
	case n > 0:
		s.buf, s.at = append(s.buf, s.chunk[:n]...), now
		return n, nil
	case err == nil, errors.Is(err, os.ErrDeadlineExceeded):
		return 0, nil
	default:
		return 0, fmt.Errorf("read: %w", err)
	}
}

// Status returns a snapshot, with Line set.
func (l *Line) Status() Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	st := l.n
	st.Exceptions, st.Line = maps.Clone(st.Exceptions), new(l.heard)
	return st
}
