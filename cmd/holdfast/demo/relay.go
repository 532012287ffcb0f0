package demo

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// relay passes TCP connections on to a target, and can be cut. It owns one
// goroutine that accepts and two for each connection.
type relay struct {
	address string // where it listens, host:port
	target  string
	ctx     func() context.Context // ends with Close
	cancel  context.CancelFunc
	wg      sync.WaitGroup

	mu       sync.Mutex
	listener net.Listener       // guarded by mu; nil while refusing
	frozen   bool               // guarded by mu
	pairs    map[*pair]struct{} // guarded by mu
}

// pair is one connection and its continuation.
type pair struct {
	near, far net.Conn
	frozen    chan struct{} // closed when nothing may pass any more
	closed    chan struct{}
	once      sync.Once
}

// newRelay listens on a loopback port of its own.
func newRelay(ctx context.Context, target string) (*relay, error) {
	ctx, cancel := context.WithCancel(ctx)
	r := &relay{target: target, address: "127.0.0.1:0", ctx: func() context.Context { return ctx }, cancel: cancel, pairs: map[*pair]struct{}{}}
	if err := r.listen(); err != nil {
		cancel()
		return nil, err
	}
	return r, nil
}

func (r *relay) listen() error {
	if err := r.ctx().Err(); err != nil {
		return fmt.Errorf("relay: %w", err)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(r.ctx(), "tcp", r.address)
	if err != nil {
		return fmt.Errorf("relay: %w", err)
	}
	r.mu.Lock()
	r.listener, r.address = l, l.Addr().String()
	r.mu.Unlock()
	r.wg.Go(func() { r.accept(l) })
	return nil
}

func (r *relay) accept(l net.Listener) {
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
func (r *relay) pass(near net.Conn) {
	p := &pair{near: near, frozen: make(chan struct{}), closed: make(chan struct{})}
	if !r.enlist(p) {
		p.reset()
		return
	}
	defer r.strike(p)
	select {
	case <-p.frozen: // it came while the link was frozen: into a black hole
		<-p.closed
		return
	default:
	}
	d := net.Dialer{Timeout: 5 * time.Second}
	far, err := d.DialContext(r.ctx(), "tcp", r.target)
	if err != nil || !r.joined(p, far) {
		if far != nil {
			far.Close()
		}
		p.reset()
		return
	}
	var wg sync.WaitGroup
	wg.Go(func() { p.copy(far, near) })
	p.copy(near, far)
	wg.Wait()
}

// enlist makes p known to Freeze and Refuse; false when it comes too late.
func (r *relay) enlist(p *pair) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.listener == nil {
		return false
	}
	if r.frozen {
		close(p.frozen)
	}
	r.pairs[p] = struct{}{}
	return true
}

// joined gives p its other half; false when p was reset meanwhile.
func (r *relay) joined(p *pair, far net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-p.closed:
		return false
	default:
		p.far = far
		return true
	}
}

func (r *relay) strike(p *pair) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.pairs, p)
	p.reset()
}

// copy passes bytes on until one side ends or the link is frozen.
func (p *pair) copy(to, from net.Conn) {
	defer func() {
		select {
		case <-p.frozen: // neither side learns of the other's end
			<-p.closed
		default:
			p.once.Do(func() { // an orderly end
				close(p.closed)
				to.Close()
				from.Close()
			})
		}
	}()
	b := make([]byte, 32<<10)
	for {
		n, err := from.Read(b)
		select {
		case <-p.frozen:
			return
		default:
		}
		if n > 0 {
			if _, err := to.Write(b[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// reset ends both halves the hard way. far is set under the relay's lock.
func (p *pair) reset() {
	p.once.Do(func() {
		close(p.closed)
		for _, c := range []net.Conn{p.near, p.far} {
			if tc, ok := c.(*net.TCPConn); ok {
				_ = tc.SetLinger(0)
			}
			if c != nil {
				c.Close()
			}
		}
	})
}

// Freeze makes everything sent from now on vanish without a word, as on a
// cellular link that is gone; who connects is answered by nobody.
func (r *relay) Freeze() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.frozen {
		return
	}
	r.frozen = true
	for p := range r.pairs {
		close(p.frozen)
	}
}

// Refuse resets the connections there are and refuses new ones, as a router
// does whose far side is gone.
func (r *relay) Refuse() {
	r.mu.Lock()
	l := r.listener
	r.listener = nil
	r.dropLocked()
	r.mu.Unlock()
	if l != nil {
		_ = l.Close() // it accepts nothing more either way
	}
}

// Restore lets new connections through. Those that were frozen are reset: what
// stood between the two has forgotten them.
func (r *relay) Restore() error {
	r.mu.Lock()
	refusing := r.listener == nil
	if r.frozen {
		r.frozen = false
		r.dropLocked()
	}
	r.mu.Unlock()
	if !refusing {
		return nil
	}
	return r.listen()
}

func (r *relay) dropLocked() {
	for p := range r.pairs {
		p.reset()
		delete(r.pairs, p)
	}
}

// Close ends everything and waits for it.
func (r *relay) Close() {
	r.cancel()
	r.Refuse()
	r.wg.Wait()
}
