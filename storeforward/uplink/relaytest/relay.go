package relaytest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"time"
)

// Direction is one way through the relay.
type Direction int

const (
	// Up is from whoever connected to the target.
	Up Direction = iota
	// Down is from the target back.
	Down
)

// Path is what one direction does to bytes. The zero value passes them on at
// once.
type Path struct {
	// Delay is from the last bit's way into the line to its way out.
	Delay time.Duration
	// Rate is what the line carries, bytes per second, shared by all
	// connections; 0 is no limit.
	Rate int
	// Queue is how many bytes may wait for their turn on a line with a Rate
	// before the relay stops reading; 0 is what the line carries in twice its
	// Delay, at least 4096.
	Queue int
	// Loss is the chance that a segment of 1448 bytes is lost, 0 to 1. TCP
	// sends it again, and everything behind it waits: twice the Delay and a
	// bit, at least 200 ms.
	Loss float64
}

// Options are the line as it is at first.
type Options struct {
	Up, Down Path
	// Buffer is the size of the kernel's receive buffer on the side of whoever
	// connects, bytes; 0 leaves it to the kernel. On a slow line it is where
	// data would wait that a real link leaves with its sender.
	Buffer int
}

const (
	segment = 1448 // of Ethernet with time stamps
	// most is how many bytes of a direction of one connection may be under
	// way: 20 MB/s at 400 ms.
	most = 8 << 20
)

// Relay passes TCP connections on to a target. Use [New].
type Relay struct {
	target string
	buffer int
	ctx    func() context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu       sync.Mutex
	address  string             // guarded by mu
	listener net.Listener       // guarded by mu; nil while refusing
	mute     [2]bool            // guarded by mu; what comes that way vanishes
	pairs    map[*pair]struct{} // guarded by mu
	lines    [2]line            // guarded by mu
	passed   int                // guarded by mu
}

// line is one direction of the relay, shared by its connections.
type line struct {
	path  Path
	free  time.Time // when the last byte so far has left the queue
	held  time.Time // nothing comes out before
	bytes int64
	cut   int // bytes until a connection is cut; below 0: none
}

// New listens on a loopback port of its own.
func New(ctx context.Context, target string, o Options) (*Relay, error) {
	return NewAt(ctx, "127.0.0.1:0", target, o)
}

// NewAt listens on address.
func NewAt(ctx context.Context, address, target string, o Options) (*Relay, error) {
	ctx, cancel := context.WithCancel(ctx)
	r := &Relay{
		target: target, buffer: o.Buffer, address: address,
		ctx: func() context.Context { return ctx }, cancel: cancel,
		pairs: map[*pair]struct{}{},
		lines: [2]line{{path: o.Up, cut: -1}, {path: o.Down, cut: -1}},
	}
	if err := r.listen(); err != nil {
		cancel()
		return nil, err
	}
	return r, nil
}

func (r *Relay) listen() error {
	if err := r.ctx().Err(); err != nil {
		return fmt.Errorf("relay: %w", err)
	}
	var lc net.ListenConfig
	if r.buffer > 0 {
		// Before the handshake: the window that was offered cannot shrink.
		lc.Control = func(_, _ string, c syscall.RawConn) error {
			var set error
			err := c.Control(func(fd uintptr) {
				set = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, r.buffer)
			})
			return errors.Join(err, set)
		}
	}
	l, err := lc.Listen(r.ctx(), "tcp", r.Address())
	if err != nil {
		return fmt.Errorf("relay: %w", err)
	}
	r.mu.Lock()
	r.listener, r.address = l, l.Addr().String()
	r.mu.Unlock()
	r.wg.Go(func() { r.accept(l) })
	return nil
}

// Address is where the relay listens, host:port. It stays the same.
func (r *Relay) Address() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.address
}

// Bytes are those that came from whoever connected, and from the target.
func (r *Relay) Bytes() (up, down int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lines[Up].bytes, r.lines[Down].bytes
}

// Passed is how many connections reached the target so far.
func (r *Relay) Passed() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.passed
}

// SetPath changes one direction from now on.
func (r *Relay) SetPath(d Direction, p Path) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines[d].path = p
}

// Stall lets nothing out for that long, both ways; then all of it goes on.
func (r *Relay) Stall(span time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	until := time.Now().Add(span)
	for d := range r.lines {
		r.lines[d].held = later(r.lines[d].held, until)
	}
}

// CutAfter ends the connection over which n further bytes have gone that way:
// the receiver gets them and an end, the sender a reset.
func (r *Relay) CutAfter(d Direction, n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines[d].cut = n
}

// Swallow makes everything vanish that comes from that side; the other way
// goes on. Whoever connects is answered by nobody.
func (r *Relay) Swallow(d Direction) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mute[d] = true
	for p := range r.pairs {
		p.mute[d] = true
	}
}

// Freeze makes everything sent from now on vanish without a word, as on a
// cellular link that is gone; who connects is answered by nobody.
func (r *Relay) Freeze() {
	r.Swallow(Up)
	r.Swallow(Down)
}

// Reset resets the connections there are. New ones get through.
func (r *Relay) Reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dropLocked()
}

// HalfOpen resets the connections there are on one side only: with Up the
// target still believes in them, with Down whoever connected does. New ones get
// through.
func (r *Relay) HalfOpen(d Direction) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for p := range r.pairs {
		p.mute = [2]bool{true, true}
		if d == Up {
			abort(p.near)
		} else {
			abort(p.far)
		}
	}
}

// Refuse resets the connections there are and refuses new ones, as a router
// does whose far side is gone.
func (r *Relay) Refuse() {
	r.mu.Lock()
	l := r.listener
	r.listener = nil
	r.dropLocked()
	r.mu.Unlock()
	if l != nil {
		_ = l.Close() // it accepts nothing more either way
	}
}

// Restore lets new connections through, and bytes at the path's pace. Those
// connections of which something vanished are reset: what stood between the two
// has forgotten them.
func (r *Relay) Restore() error {
	r.mu.Lock()
	refusing := r.listener == nil
	r.mute = [2]bool{}
	for d := range r.lines {
		r.lines[d].held, r.lines[d].cut = time.Time{}, -1
	}
	for p := range r.pairs {
		if p.mute[Up] || p.mute[Down] {
			p.resetLocked()
		}
	}
	r.mu.Unlock()
	if !refusing {
		return nil
	}
	return r.listen()
}

func (r *Relay) dropLocked() {
	for p := range r.pairs {
		p.resetLocked()
	}
}

// Close ends everything and waits for it.
func (r *Relay) Close() {
	r.cancel()
	r.Refuse()
	r.wg.Wait()
}

func (r *Relay) accept(l net.Listener) {
	for {
		near, err := l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			select { // out of descriptors, perhaps
			case <-time.After(50 * time.Millisecond):
				continue
			case <-r.ctx().Done():
				return
			}
		}
		r.wg.Go(func() { r.pass(near) })
	}
}

// pass serves one connection to its end.
func (r *Relay) pass(near net.Conn) {
	p := &pair{r: r, near: near, over: make(chan struct{})}
	if !r.enlist(p) {
		abort(near)
		return
	}
	defer r.strike(p)
	if p.muted(Up) || p.muted(Down) { // it came into a black hole
		<-p.over
		return
	}
	d := net.Dialer{Timeout: 5 * time.Second}
	far, err := d.DialContext(r.ctx(), "tcp", r.target)
	if err != nil {
		p.reset()
		return
	}
	if !r.joined(p, far) {
		far.Close()
		return
	}
	var wg sync.WaitGroup
	wg.Go(func() { p.carry(Up, near, far) })
	p.carry(Down, far, near)
	wg.Wait()
}

// enlist makes p known; false when it comes too late.
func (r *Relay) enlist(p *pair) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.listener == nil {
		return false
	}
	p.mute = r.mute
	r.pairs[p] = struct{}{}
	return true
}

// joined gives p its other half; false when p is over meanwhile.
func (r *Relay) joined(p *pair, far net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p.gone {
		return false
	}
	p.far = far
	r.passed++
	return true
}

// strike forgets p, which has ended or does so now in an orderly way.
func (r *Relay) strike(p *pair) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.pairs, p)
	if !p.gone {
		p.gone = true
		close(p.over)
		_ = p.near.Close()
		_ = p.far.Close()
	}
}

// entry is how bytes that came in go on.
type entry struct {
	n    int       // how many of them do
	due  time.Time // when they come out
	room time.Time // when more may come in
	cut  bool      // the connection ends behind them
}

// enter puts up to n bytes into the line.
func (r *Relay) enter(d Direction, n int) entry {
	r.mu.Lock()
	defer r.mu.Unlock()
	l, now := &r.lines[d], time.Now()
	if l.path.Rate > 0 {
		n = min(n, segment) // a line that takes its time hands on what has come
	}
	e := entry{n: n}
	if l.cut >= 0 {
		if e.n = min(n, l.cut); e.n < n {
			e.cut = true
		}
		if l.cut -= e.n; e.cut {
			l.cut = -1
		}
	}
	l.bytes += int64(e.n)
	p := l.path
	e.due, e.room = now, now
	if p.Rate > 0 {
		queue := p.Queue
		if queue == 0 {
			queue = max(int(2*p.Delay.Seconds()*float64(p.Rate)), 4096)
		}
		l.free = later(l.free, now).Add(onLine(e.n, p.Rate))
		e.due, e.room = l.free, l.free.Add(-onLine(queue, p.Rate))
	}
	e.due = e.due.Add(p.Delay)
	for at := 0; p.Loss > 0 && at < e.n; at += segment {
		if rand.Float64() < p.Loss { //nolint:gosec // a die
			e.due = e.due.Add(max(2*p.Delay+50*time.Millisecond, 200*time.Millisecond))
			break
		}
	}
	return e
}

// onLine is how long n bytes take.
func onLine(n, rate int) time.Duration {
	return time.Duration(float64(n) / float64(rate) * float64(time.Second))
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// held is when bytes due at t may come out.
func (r *Relay) held(d Direction, t time.Time) time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return later(r.lines[d].held, t)
}
