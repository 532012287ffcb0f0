package modbustest

import (
	"io"
	"os"
	"sync"
	"time"
)

// Line is one end of a serial line in memory on which each byte takes its time,
// so that a test on a fake clock (testing/synctest) sees what a wire does: an
// answer that is still coming, bytes left over from an earlier one. Nothing
// collides on it: each direction has its own pair of wires.
//
// It has the methods of an open serial port and starts no goroutines.
type Line struct {
	in, out *wire
	once    *sync.Once
	done    chan struct{} // of both ends; closed by Close or Unplug

	mu       sync.Mutex
	deadline time.Time     // guarded by mu
	moved    chan struct{} // guarded by mu; closed when deadline changes
}

// wire carries bytes in one direction.
type wire struct {
	char time.Duration

	mu      sync.Mutex
	bytes   []arriving    // guarded by mu; sent and not yet read
	free    time.Time     // guarded by mu; when the last byte will have left
	changed chan struct{} // guarded by mu; closed when something is written
}

type arriving struct {
	at time.Time
	b  byte
}

// NewLine returns the two ends of a line on which a byte takes char (11 bits at
// 9600 baud: 1146 µs).
func NewLine(char time.Duration) (master, slave *Line) {
	a := &wire{char: char, changed: make(chan struct{})}
	b := &wire{char: char, changed: make(chan struct{})}
	done, once := make(chan struct{}), &sync.Once{}
	master = &Line{in: a, out: b, done: done, once: once, moved: make(chan struct{})}
	slave = &Line{in: b, out: a, done: done, once: once, moved: make(chan struct{})}
	return master, slave
}

func (w *wire) write(p []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if now := time.Now(); w.free.Before(now) {
		w.free = now
	}
	for _, b := range p {
		w.free = w.free.Add(w.char)
		w.bytes = append(w.bytes, arriving{at: w.free, b: b})
	}
	close(w.changed)
	w.changed = make(chan struct{})
}

// fifo is how many bytes a reader that waits is woken for, fewer when no more
// are on their way: what a UART does.
const fifo = 8

// take moves what has arrived into p; if that is nothing, n is 0 and next is
// when there will be something (zero: nothing is on its way).
func (w *wire) take(p []byte) (n int, next time.Time, changed <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	for n < len(p) && n < len(w.bytes) && !w.bytes[n].at.After(now) {
		p[n] = w.bytes[n].b
		n++
	}
	w.bytes = w.bytes[n:]
	if n == 0 && len(w.bytes) > 0 {
		next = w.bytes[min(fifo, len(w.bytes))-1].at
	}
	return n, next, w.changed
}

// Read returns what has arrived, at least one byte. It waits until the deadline
// and then returns os.ErrDeadlineExceeded, io.EOF after Close of either end.
func (l *Line) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		l.mu.Lock()
		deadline, moved := l.deadline, l.moved
		l.mu.Unlock()
		if !deadline.IsZero() && !deadline.After(time.Now()) {
			return 0, os.ErrDeadlineExceeded
		}
		select {
		case <-l.done:
			return 0, io.EOF
		default:
		}
		n, next, changed := l.in.take(p)
		if n > 0 {
			return n, nil
		}
		until := deadline
		if !next.IsZero() && (until.IsZero() || next.Before(until)) {
			until = next
		}
		if !l.wait(until, moved, changed) {
			return 0, io.EOF
		}
	}
}

// wait returns false when the line was closed.
func (l *Line) wait(until time.Time, moved, changed <-chan struct{}) bool {
	var alarm <-chan time.Time
	if !until.IsZero() {
		t := time.NewTimer(time.Until(until))
		defer t.Stop()
		alarm = t.C
	}
	select {
	case <-l.done:
		return false
	case <-alarm:
	case <-moved:
	case <-changed:
	}
	return true
}

// SetReadDeadline ends a Read that waits at t, zero for never; as os.File does.
func (l *Line) SetReadDeadline(t time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.deadline = t
	close(l.moved)
	l.moved = make(chan struct{})
	return nil
}

// Write puts p onto the line and returns at once, as a kernel with a buffer
// does.
func (l *Line) Write(p []byte) (int, error) {
	select {
	case <-l.done:
		return 0, io.ErrClosedPipe
	default:
	}
	l.out.write(p)
	return len(p), nil
}

// Drain returns when all that was written has left.
func (l *Line) Drain() error {
	l.out.mu.Lock()
	free := l.out.free
	l.out.mu.Unlock()
	if !free.After(time.Now()) {
		return nil
	}
	t := time.NewTimer(time.Until(free))
	defer t.Stop()
	select {
	case <-l.done:
		return io.ErrClosedPipe
	case <-t.C:
		return nil
	}
}

// Discard throws away what has arrived and returns how much that was.
func (l *Line) Discard() (int, error) {
	var p [64]byte
	total := 0
	for {
		select {
		case <-l.done:
			return total, io.ErrClosedPipe
		default:
		}
		n, _, _ := l.in.take(p[:])
		total += n
		if n == 0 {
			return total, nil
		}
	}
}

// Close ends the line for both ends, as when the adapter is pulled.
func (l *Line) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

// Done is closed when the line is.
func (l *Line) Done() <-chan struct{} { return l.done }
