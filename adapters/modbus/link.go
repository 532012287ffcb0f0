package modbus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// Wire is an open serial line; *port.Port is one. It is used by the bus
// goroutine alone, but for SetReadDeadline, which also ends a waiting Read when
// the bus is stopped.
type Wire interface {
	io.ReadWriteCloser
	// SetReadDeadline makes Read return os.ErrDeadlineExceeded at t.
	SetReadDeadline(t time.Time) error
	// Drain returns when all that was written has left.
	Drain() error
	// Discard throws away what has been received and says how much.
	Discard() (int, error)
	// Done is closed when the line is gone or closed.
	Done() <-chan struct{}
}

// Why an exchange brought no data. A refusal is an [*ExceptionError].
var (
	// ErrNoAnswer: nothing usable came within the timeout. An answer may
	// still come, so the unit must be left alone for a while.
	ErrNoAnswer = errors.New("no answer")
	// ErrGarbled: the answer came, with a wrong checksum.
	ErrGarbled = errors.New("garbled answer")
)

// errHurt is an ErrGarbled of which it is not certain that it was the answer and
// not noise: the answer may still come, and the request must not be repeated at
// once.
var errHurt = fmt.Errorf("%w, with a damaged header", ErrGarbled)

// settle is how long the line must be silent for what came to be all of it. It
// is no t1.5 or t3.5: USB adapters hand over bytes in batches 16 ms apart.
const settle = 50 * time.Millisecond

// received is how many of the longest frames are kept of one exchange; a line
// that brings more is not answering but babbling.
const received = 4

// framing is how PDUs stand on a serial line.
type framing struct {
	longest int // frame, in characters
	append  func(b []byte, unit byte, pdu []byte) []byte
	scan    func(buf []byte, r Request, adu []byte, echo echoMode, final bool) scan
	// chars is how many characters a frame takes with a PDU of so many bytes.
	chars func(pdu int) int
}

var framings = map[string]framing{
	FramingRTU:   {longest: maxADU, append: AppendRTU, scan: scanAnswer, chars: func(pdu int) int { return pdu + 3 }},
	FramingASCII: {longest: maxASCII, append: AppendASCII, scan: scanASCII, chars: func(pdu int) int { return 2*(pdu+2) + 3 }},
}

// link is the transport over a wire on which answers do not say what they answer:
// RTU or ASCII frames, one request at a time.
type link struct {
	w       Wire
	f       framing
	char    time.Duration
	silence time.Duration // before each request
	after   time.Duration // silence after a broadcast
	echo    echoMode
	last    time.Time // when the line last carried a byte, as far as we know
	asked   *exchange // under way; nil: nothing is

	adu []byte
	buf []byte

	n linkCounters // since the link was made; the bus collects them
}

// linkCounters are what the line brought besides answers.
type linkCounters struct {
	stray   uint64 // bytes that belonged to no answer
	foreign uint64 // frames of units that were not asked
	echoes  uint64 // requests that came back
	// Of connections to a peer.
	late     uint64 // answers after their timeout
	connects uint64 // connections made
	broken   uint64 // connections that ended while something was asked, or without an answer
}

func newLink(w Wire, o Options, now time.Time) *link {
	f := framings[o.framing()]
	return &link{
		w: w, f: f, char: o.CharTime, silence: o.silence(), after: o.Turnaround, last: now,
		buf: make([]byte, received*f.longest),
	}
}

// silence is how long the line is quiet before a request.
func (o Options) silence() time.Duration {
	switch {
	case o.Silence > 0:
		return o.Silence
	case o.CharTime > 0 && o.CharTime < fastChar:
		return minSilence
	default:
		return max(7*o.CharTime/2, minSilence)
	}
}

// From 19200 baud up the silence is fixed (MODBUS Serial Line V1.02 §2.5.1.1).
const (
	minSilence = 1750 * time.Microsecond
	fastChar   = 11 * time.Second / 19200
)

// room is 1: an answer would not say to which of two requests it belongs.
func (l *link) room() int { return 1 }

// send waits until the line has been silent, and sends the request.
func (l *link) send(ctx context.Context, x *exchange) error {
	pdu, err := x.req.AppendPDU(make([]byte, 0, maxPDU))
	if err != nil {
		return err
	}
	if x.req.Unit == 0 && (!x.req.Function.Writes() || x.req.Function == ReadWriteRegisters) {
		return fmt.Errorf("%w: a broadcast has no answer that could hold what %v reads", ErrMalformed, x.req.Function)
	}
	l.adu = l.f.append(l.adu[:0], x.req.Unit, pdu)
	if err := l.quiet(ctx, l.silence+x.pause); err != nil {
		return err
	}
	if err := l.write(x); err != nil {
		return err
	}
	l.asked = x
	return nil
}

// receive waits for the answer to the one request under way, or its timeout.
func (l *link) receive(ctx context.Context, _ time.Time) (*exchange, error) {
	x := l.asked
	if x.req.Unit == 0 {
		// Nobody answers. The units need the time to do as they were told
		// (MODBUS Serial Line V1.02 §2.4.1).
		if err := l.quiet(ctx, l.after); err != nil {
			return nil, err
		}
		l.asked, x.at = nil, x.sent
		return x, nil
	}
	answer, at, err := l.collect(ctx, x.req, x.sent.Add(x.timeout+l.answerTime(x)))
	if fatal(err) {
		return nil, err
	}
	l.asked = nil
	x.at, x.err = at, err
	if err == nil {
		x.data, x.err = x.req.ParseAnswer(answer)
	}
	return x, nil
}

// alone is as long as a timeout and the quarantine after it, also when it was
// clear earlier that this is not the answer.
func (l *link) alone(x *exchange, timeout time.Duration) time.Time {
	return x.sent.Add((1+quarantine)*timeout + l.answerTime(x))
}

// answerTime is how long the answer takes on the wire.
func (l *link) answerTime(x *exchange) time.Duration {
	return time.Duration(l.f.chars(x.req.answerLen())) * l.char
}

func (l *link) counters() linkCounters {
	n := l.n
	l.n = linkCounters{}
	return n
}

func (l *link) echoes() bool { return l.echo == echoBack }

func (l *link) gone() <-chan struct{} { return l.w.Done() }

func (l *link) lost() error {
	_, err := l.w.Discard() // says why
	return err
}

// interrupt relies on read: the deadline is set after ctx has ended.
func (l *link) interrupt() { _ = l.w.SetReadDeadline(time.Unix(1, 0)) }

func (l *link) close() error { return l.w.Close() }

// quiet waits until the line has been silent for d, and throws away what it
// carried meanwhile: leftovers of an earlier answer that must not be taken for
// the next one.
func (l *link) quiet(ctx context.Context, d time.Duration) error {
	babble := time.Now().Add(max(time.Second, 2*d))
	for {
		n, err := l.w.Discard()
		if err != nil {
			return fmt.Errorf("discard: %w", err)
		}
		now := time.Now()
		if n > 0 {
			l.n.stray += uint64(n)
			l.last = now
		}
		wait := l.last.Add(d).Sub(now)
		// A line that never falls silent is spoken on all the same: the
		// unit may hear us, and if not it is that unit's timeout.
		if wait <= 0 || now.After(babble) {
			return ctx.Err()
		}
		n, err = l.read(ctx, l.buf, now.Add(wait))
		if n > 0 {
			l.n.stray += uint64(n)
			l.last = time.Now()
		}
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
	}
}

// write writes the request and returns when its last bit is gone: after the
// driver says so, and not before the time the characters take, since a USB
// adapter still has some when the kernel has none.
func (l *link) write(x *exchange) error {
	start := time.Now()
	x.sent = start // an answer may come even if what follows fails
	if _, err := l.w.Write(l.adu); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	if err := l.w.Drain(); err != nil {
		return fmt.Errorf("drain: %w", err)
	}
	x.sent = later(time.Now(), start.Add(time.Duration(len(l.adu))*l.char))
	l.last = x.sent
	return nil
}

// collect reads bytes until they hold the answer to r or the deadline has
// passed.
func (l *link) collect(ctx context.Context, r Request, deadline time.Time) (pdu []byte, at time.Time, err error) {
	n := 0
	for {
		// Only what has been silent for a while is judged as a whole.
		until := deadline
		if settled := l.last.Add(settle); n > 0 && settled.Before(until) && settled.After(time.Now()) {
			until = settled
		}
		m, err := l.read(ctx, l.buf[n:], until)
		now := time.Now()
		if m > 0 {
			n += m
			l.last = now
		}
		silent := false
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded):
			silent = m == 0
		default:
			return nil, time.Time{}, err
		}
		s := l.f.scan(l.buf[:n], r, l.adu, l.echo, silent)
		over := !now.Before(deadline) && silent || n == len(l.buf)
		if s.pdu == nil && !s.mismatch && !(silent && (s.garbled || s.hurt)) && !over {
			continue
		}
		return l.judge(s, n)
	}
}

// judge turns what came into the answer or the error it means.
func (l *link) judge(s scan, n int) (pdu []byte, at time.Time, err error) {
	l.n.foreign += uint64(s.foreign)
	l.n.stray += uint64(s.skipped)
	if s.echo {
		l.n.echoes++
	}
	switch {
	case s.mismatch:
		// A frame of this unit that we did not ask for now is the answer
		// to something earlier: nothing it says next can be trusted.
		return nil, l.last, ErrMismatch
	case s.pdu != nil:
		l.n.stray += uint64(n - s.end)
		if s.echo {
			l.echo = echoBack
		} else if s.plain {
			l.echo = echoNone
		}
		return s.pdu, l.last, nil
	case s.garbled:
		return nil, l.last, ErrGarbled
	case s.hurt:
		return nil, l.last, errHurt
	case n > 0:
		return nil, l.last, fmt.Errorf("%w, only %d bytes that make none", ErrNoAnswer, n)
	default:
		return nil, l.last, ErrNoAnswer
	}
}

// read reads until the time given, or until ctx ends: whoever watches ctx sets
// a deadline in the past after it has, so a deadline set before the check below
// cannot hide that.
func (l *link) read(ctx context.Context, b []byte, until time.Time) (int, error) {
	if err := l.w.SetReadDeadline(until); err != nil {
		return 0, fmt.Errorf("set read deadline: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	n, err := l.w.Read(b)
	if cerr := ctx.Err(); cerr != nil && n == 0 {
		return 0, cerr
	}
	if n > 0 && errors.Is(err, os.ErrDeadlineExceeded) {
		err = nil
	}
	if err != nil {
		err = fmt.Errorf("read: %w", err)
	}
	return n, err
}
