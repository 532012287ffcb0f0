package client

import (
	"fmt"
	"sync"
	"time"

	"holdfast/broker/packet"
)

const (
	// writeChunk is what the peer must take within WriteTimeout, in bytes: a
	// slow link that still moves is left alone.
	writeChunk = 16 << 10
	// keepBuffer is the largest buffer kept while nothing is to be sent.
	keepBuffer = 64 << 10
	// reserve is what packets other than PUBLISH may take beyond OutputLimit,
	// in bytes: an acknowledgement of 4 bytes for each of 65,535 messages a
	// server may have on the way, and as much again.
	reserve = 512 << 10
)

// output is what waits to be written. Encoding goes into one buffer while the
// writer writes the other.
type output struct {
	wake    chan struct{} // of 1: a flush is wanted; another one would say nothing new
	drained chan struct{} // closed when everything is written after finish

	mu        sync.Mutex
	buf       []byte    // guarded by mu; encoded, not yet taken by the writer
	spare     []byte    // guarded by mu; for the next buf
	pending   int       // guarded by mu; bytes in buf and in the writer's hands
	queued    uint64    // guarded by mu; bytes ever
	written   uint64    // guarded by mu; bytes ever
	lastWrite time.Time // guarded by mu
	finishing bool      // guarded by mu; nothing more may be queued
	closed    bool      // guarded by mu
	starved   bool      // guarded by mu; a PUBLISH was refused since the last Drained
	err       error     // guarded by mu; why a write failed
	ping      ping      // guarded by mu
}

// ping is a PINGREQ that has no answer yet.
type ping struct {
	end     uint64    // written when output.written gets there; 0: there is none
	asked   time.Time // when it was queued
	written time.Time // zero before
}

func newOutput() *output {
	return &output{wake: make(chan struct{}, 1), drained: make(chan struct{}), lastWrite: time.Now()}
}

// Queue encodes p behind what waits to be sent. It takes no time and no part of
// p is kept. Nothing need go out before [Conn.Flush]. The errors, each of them
// with nothing queued: [ErrTooLarge] when the server does not take a packet of
// that size, [ErrOutputFull] when OutputLimit is reached (for acknowledgements
// and the like only far beyond it), [ErrClosed], or what cannot be encoded.
func (c *Conn) Queue(p packet.Packet) error {
	o, limit := c.out, c.opts.OutputLimit
	_, publish := p.(*packet.Publish)
	if !publish {
		limit += reserve
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed || o.finishing || o.err != nil {
		return ErrClosed
	}
	if o.pending >= limit {
		o.starved = o.starved || publish
		return ErrOutputFull
	}
	b, err := p.AppendTo(o.buf, c.opts.Version)
	if err != nil {
		return fmt.Errorf("write %s: %w", p.Type(), err)
	}
	size := len(b) - len(o.buf)
	if size > int(c.limits.MaximumPacketSize) {
		return ErrTooLarge
	}
	if o.pending > 0 && o.pending+size > limit {
		o.starved = o.starved || publish
		return ErrOutputFull
	}
	o.buf = b
	o.pending += size
	o.queued += uint64(size)
	return nil
}

// Flush has everything queued so far written, and says whether there was
// something. It does not wait for that; a write that fails ends [Conn.Run].
func (c *Conn) Flush() bool {
	c.out.mu.Lock()
	waiting := len(c.out.buf) > 0
	c.out.mu.Unlock()
	if waiting {
		c.out.signal()
	}
	return waiting
}

func (o *output) signal() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// finish takes no more, and returns a channel that is closed when all is
// written.
func (o *output) finish() <-chan struct{} {
	o.mu.Lock()
	o.finishing = true
	o.mu.Unlock()
	o.signal()
	return o.drained
}

func (o *output) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	o.buf, o.spare, o.pending = nil, nil, 0
}

// allWritten says that nothing was left when the connection ended.
func (o *output) allWritten() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.written == o.queued
}

func (o *output) failure() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err
}

// write is the writer goroutine.
func (c *Conn) write() {
	defer close(c.wrote)
	for {
		select {
		case <-c.out.wake:
		case <-c.ended:
			return
		}
		if err := c.writeQueued(); err != nil {
			// The server may have said why before it closed: the read loop
			// gets some time to find it.
			_ = c.nc.SetReadDeadline(time.Now().Add(lastWords))
			return
		}
	}
}

// writeQueued writes until nothing is left. It is called by one goroutine at a
// time.
func (c *Conn) writeQueued() error {
	o := c.out
	for {
		b, done := o.take()
		if done {
			// Tells the server that nothing more comes; it may still be sending.
			if half, ok := c.halfCloser(); ok {
				_ = half.CloseWrite()
			}
			close(o.drained)
			return nil
		}
		if len(b) == 0 {
			return nil
		}
		for rest := b; len(rest) > 0; {
			_ = c.nc.SetWriteDeadline(time.Now().Add(c.opts.WriteTimeout))
			n, err := c.nc.Write(rest[:min(len(rest), writeChunk)])
			rest = rest[n:]
			drained := o.wrote(n, err, c.opts.OutputLimit)
			if err != nil {
				return o.failure()
			}
			if drained && c.opts.Drained != nil {
				c.opts.Drained()
			}
		}
		o.giveBack(b)
	}
}

// take returns what is to be written now; done says that all has been and that
// it was the last.
func (o *output) take() (b []byte, done bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	b = o.buf
	o.buf, o.spare = o.spare[:0], nil
	if len(b) == 0 && o.finishing && !o.closed {
		o.closed = true
		return nil, true
	}
	return b, false
}

func (o *output) giveBack(b []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if cap(b) <= keepBuffer && !o.closed {
		o.spare = b[:0]
	}
}

// wrote takes note of n bytes; drained says that there is room again for who
// was refused.
func (o *output) wrote(n int, err error, limit int) (drained bool) {
	now := time.Now()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.written += uint64(n)
	o.pending = max(o.pending-n, 0)
	if n > 0 {
		o.lastWrite = now
	}
	if o.ping.end != 0 && o.ping.written.IsZero() && o.written >= o.ping.end {
		o.ping.written = now
	}
	if err != nil && o.err == nil {
		o.err = fmt.Errorf("write to the server: %w", err)
	}
	if o.starved && o.pending <= limit/2 {
		o.starved = false
		return true
	}
	return false
}

// halfCloser finds CloseWrite under the meter, which hides it.
func (c *Conn) halfCloser() (half interface{ CloseWrite() error }, ok bool) {
	if half, ok = c.nc.(interface{ CloseWrite() error }); !ok {
		half, ok = c.meter.Conn.(interface{ CloseWrite() error })
	}
	return half, ok
}
