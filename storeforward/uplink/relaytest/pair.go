package relaytest

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// pair is one connection and its continuation.
type pair struct {
	r         *Relay
	near, far net.Conn // far is guarded by r.mu until it is there
	over      chan struct{}
	gone      bool    // guarded by r.mu; over is closed
	mute      [2]bool // guarded by r.mu
}

func (p *pair) muted(d Direction) bool {
	p.r.mu.Lock()
	defer p.r.mu.Unlock()
	return p.mute[d]
}

// resetLocked ends both halves the hard way.
func (p *pair) resetLocked() {
	if p.gone {
		return
	}
	p.gone = true
	close(p.over)
	abort(p.near)
	abort(p.far)
}

func (p *pair) reset() {
	p.r.mu.Lock()
	defer p.r.mu.Unlock()
	p.resetLocked()
}

// abort resets one connection.
func abort(c net.Conn) {
	if tc, ok := c.(*net.TCPConn); ok {
		_ = tc.SetLinger(0)
	}
	if c != nil {
		_ = c.Close()
	}
}

// chunk is what came in at once; the last has an end in place of data.
type chunk struct {
	data []byte
	due  time.Time
	last bool // an orderly end
	cut  bool
}

// carry passes bytes on one way until an end, a cut, or a black hole.
func (p *pair) carry(d Direction, from, to net.Conn) {
	q := queue{changed: make(chan struct{}, 1), room: make(chan struct{}, 1)}
	var wg sync.WaitGroup
	wg.Go(func() { p.deliver(d, from, to, &q) })
	defer wg.Wait()
	b := make([]byte, 64<<10)
	for {
		n, err := from.Read(b)
		if p.muted(d) {
			<-p.over
			return
		}
		for rest := b[:n]; len(rest) > 0; {
			e := p.r.enter(d, len(rest))
			q.put(chunk{data: append([]byte(nil), rest[:e.n]...), due: e.due, cut: e.cut})
			if rest = rest[e.n:]; e.cut || !p.until(e.room) || !q.wait(p.over) {
				<-p.over
				return
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			q.put(chunk{due: p.r.enter(d, 0).due, last: true})
			return
		case err != nil:
			p.reset()
			return
		}
	}
}

// deliver is the end of the line.
func (p *pair) deliver(d Direction, from, to net.Conn, q *queue) {
	for {
		c, ok := q.take(p.over)
		if !ok {
			return
		}
		for t := c.due; ; {
			if !p.until(t) {
				return
			}
			held := p.r.held(d, t)
			if held.Equal(t) {
				break
			}
			t = held
		}
		if p.muted(d) {
			<-p.over
			return
		}
		if c.last {
			if tc, ok := to.(*net.TCPConn); ok {
				_ = tc.CloseWrite() // the other way may still have something to say
			}
			return
		}
		if _, err := to.Write(c.data); err != nil {
			if p.muted(d) {
				<-p.over
			}
			p.reset()
			return
		}
		if c.cut {
			_ = to.Close() // with an end, so that the bytes before it count
			abort(from)
			p.reset()
			return
		}
	}
}

// until waits; false when the connection is over before.
func (p *pair) until(t time.Time) bool {
	span := time.Until(t)
	if span <= 0 {
		return true
	}
	timer := time.NewTimer(span)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-p.over:
		return false
	}
}

// queue is what is under way on one direction of one connection, bounded by
// most bytes: the reader waits.
type queue struct {
	changed chan struct{} // of 1: there is something to take
	room    chan struct{} // of 1: something was taken

	mu     sync.Mutex
	chunks []chunk // guarded by mu
	bytes  int     // guarded by mu
}

func (q *queue) put(c chunk) {
	q.mu.Lock()
	q.chunks = append(q.chunks, c)
	q.bytes += len(c.data)
	q.mu.Unlock()
	signal(q.changed)
}

// wait returns when there is room; false when the connection is over.
func (q *queue) wait(over <-chan struct{}) bool {
	for {
		q.mu.Lock()
		full := q.bytes >= most
		q.mu.Unlock()
		if !full {
			return true
		}
		select {
		case <-q.room:
		case <-over:
			return false
		}
	}
}

func (q *queue) take(over <-chan struct{}) (chunk, bool) {
	for {
		q.mu.Lock()
		if len(q.chunks) > 0 {
			c := q.chunks[0]
			q.chunks[0] = chunk{}
			q.chunks = q.chunks[1:]
			q.bytes -= len(c.data)
			q.mu.Unlock()
			signal(q.room)
			return c, true
		}
		q.mu.Unlock()
		select {
		case <-q.changed:
		case <-over:
			return chunk{}, false
		}
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // it will look anyway
	}
}
