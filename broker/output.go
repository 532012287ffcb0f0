package broker

import (
	"net"
	"sync"
	"time"

	"holdfast/broker/message"
	"holdfast/broker/packet"
)

// controlRoom is how many bytes of acknowledgements may wait beyond
// Options.MaxOutput. A client that lets 64 kB of them wait is not reading.
const controlRoom = 64 << 10

// maxPooled is the largest buffer that goes back to the pool; larger ones came
// from single large messages and would pin RAM.
const maxPooled = 64 << 10

// buffers lends output buffers: an idle connection has none.
var buffers = sync.Pool{New: func() any { return new(make([]byte, 0, 4096)) }}

// output is what waits for one connection's socket. Whoever queues waits for no
// socket, so that one that does not drain delays nobody else: it starts the
// flusher, or leaves that to its cork. The socket of a connection on a loop does
// not block: there the cork itself writes, and what does not go at once waits
// for the loop.
type output struct {
	c *conn

	mu       sync.Mutex
	buf      *[]byte    // guarded by mu; whole packets waiting, nil for none
	writing  int        // guarded by mu; bytes in the hands of the flusher
	flushing bool       // guarded by mu; the flusher runs
	corked   bool       // guarded by mu; a cork will flush
	held     bool       // guarded by mu; release will flush
	refused  bool       // guarded by mu; somebody waits for drained
	sealed   bool       // guarded by mu; what is queued is the last
	closed   bool       // guarded by mu; nothing is taken or written any more
	idle     *sync.Cond // guarded by mu; of those who wait for it to end, see awaitFlusherLocked

	// Of a connection on a loop, guarded by mu; off by who is flushing:
	sock    *sock   // nil without
	rest    *[]byte // of a short write, from off
	off     int
	blocked bool // the loop waits for room in the socket
}

func (o *output) limit() int { return o.c.b.opts.MaxOutput }

// awaitFlusherLocked waits until nobody writes; the lock is let go meanwhile.
func (o *output) awaitFlusherLocked() {
	for o.flushing {
		if o.idle == nil {
			o.idle = sync.NewCond(&o.mu)
		}
		o.idle.Wait()
	}
}

func (o *output) flushedLocked() {
	o.flushing = false
	if o.idle != nil {
		o.idle.Broadcast()
	}
}

func (o *output) sizeLocked() int {
	n := o.writing
	if o.buf != nil {
		n += len(*o.buf)
	}
	if o.rest != nil {
		n += len(*o.rest) - o.off
	}
	return n
}

// room says whether a publication may be queued. A single one may be larger
// than the limit, but it waits until what is before it has gone down.
// When it says no, drained is called later.
func (o *output) room() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.roomLocked()
}

func (o *output) roomLocked() bool {
	if o.closed || o.sealed {
		return false
	}
	if o.sizeLocked() < o.limit() {
		return true
	}
	o.refused = true
	return false
}

// packet queues a control packet. It returns false when the connection takes
// nothing any more, or when its client does not even read acknowledgements. With
// a cork the flush is left to that. What cannot be encoded is a mistake of ours:
// it is left out, and the test that made it fails on its absence.
func (o *output) packet(k *cork, p packet.Packet, v packet.Version) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.takesLocked(true) != queued {
		return false
	}
	b := o.bufferLocked()
	*b, _ = p.AppendTo(*b, v)
	o.queuedLocked(k)
	return true
}

// brief is packet for an acknowledgement without anything to add, which is the
// same in all versions.
func (o *output) brief(k *cork, first byte, id uint16) bool {
	o.mu.Lock()
	if o.takesLocked(true) != queued {
		o.mu.Unlock()
		return false
	}
	b := o.bufferLocked()
	*b = append(*b, first, 2, byte(id>>8), byte(id))
	o.queuedLocked(k)
	o.mu.Unlock()
	return true
}

// takesLocked says whether something may be queued; control is for what has its
// place already, or may take some of controlRoom.
func (o *output) takesLocked(control bool) outcome {
	switch {
	case control && (o.closed || o.sealed || o.sizeLocked() > o.limit()+controlRoom):
		return closed
	case !control && !o.roomLocked():
		return noRoom
	}
	return queued
}

// bufferLocked is where to append, before queuedLocked.
func (o *output) bufferLocked() *[]byte {
	if o.buf == nil {
		o.buf, _ = buffers.Get().(*[]byte)
	}
	return o.buf
}

// queuedLocked sees to it that what was appended gets written.
func (o *output) queuedLocked(k *cork) {
	if k == nil {
		o.flushLocked()
	} else if !o.corked {
		o.corked = true
		k.outputs = append(k.outputs, o)
	}
	if o.sock != nil && len(*o.buf) >= flushAt {
		o.writeLocked()
	}
}

// seal queues p, unless it is nil, behind everything else and takes nothing
// after it (MQTT 5.0 §3.14.4 [MQTT-3.14.4-1]).
func (o *output) seal(p packet.Packet, v packet.Version) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed || o.sealed {
		return
	}
	o.sealed = true
	if p != nil {
		b := o.bufferLocked()
		*b, _ = p.AppendTo(*b, v)
	}
	o.flushLocked()
}

func (o *output) flushLocked() {
	if o.flushing || o.held || o.buf == nil || o.closed {
		return
	}
	if o.sock != nil {
		o.sock.loop.send(o.sock, postFlush)
		return
	}
	o.flushing = true
	o.c.b.wg.Go(o.flusher)
}

// hold leaves what is queued to release.
func (o *output) hold() {
	o.mu.Lock()
	o.held = true
	o.mu.Unlock()
}

// release flushes. A loop that sleeps is not woken for it: that takes longer than
// the write, and somebody waits for nothing but this. The loop is awake as soon as
// somebody answers, so that this is not done for many in a row.
func (o *output) release() {
	o.mu.Lock()
	o.held = false
	if o.sock != nil && o.sock.loop.asleep.Load() {
		o.writeLocked()
	} else {
		o.flushLocked()
	}
	o.mu.Unlock()
}

// flusher is a goroutine.
func (o *output) flusher() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.buf != nil && !o.closed {
		b := o.buf
		o.buf, o.writing = nil, len(*b)
		o.mu.Unlock()
		_, err := o.c.nc.Write(*b)
		o.c.wrote(len(*b), err)
		giveBack(b)
		o.mu.Lock()
		o.writing = 0
		if err != nil {
			o.closed, o.buf = true, nil
		}
		if o.refused && o.sizeLocked() < o.limit()/2 {
			o.refused = false
			o.mu.Unlock()
			o.c.drained()
			o.mu.Lock()
		}
	}
	o.flushedLocked()
}

func giveBack(b *[]byte) {
	if cap(*b) <= maxPooled {
		*b = (*b)[:0]
		buffers.Put(b)
	}
}

// writeLocked writes what there is, as far as the socket takes it. The lock is
// let go meanwhile; who queues then leaves it to us.
func (o *output) writeLocked() {
	if o.flushing || o.blocked || o.closed {
		return
	}
	o.flushing = true
	s := o.sock
	for !o.closed && !o.blocked {
		b := o.rest
		if b == nil {
			if b = o.buf; b == nil {
				break
			}
			o.buf, o.off = nil, 0
		}
		o.rest, o.writing = nil, len(*b)-o.off
		o.mu.Unlock()
		n, err := s.write((*b)[o.off:])
		o.c.wrote(n, err)
		o.mu.Lock()
		o.writing = 0
		o.off += n
		switch {
		case err != nil:
			o.closed, o.buf = true, nil
		case o.off < len(*b):
			o.rest, o.blocked = b, true
			s.loop.send(s, postWrite)
		default:
			giveBack(b)
		}
		if o.refused && o.sizeLocked() < o.limit()/2 {
			o.refused = false
			s.loop.send(s, postRoom)
		}
	}
	o.flushedLocked()
}

// flush writes what there is to the socket of a loop.
func (o *output) flush() {
	o.mu.Lock()
	o.writeLocked()
	o.mu.Unlock()
}

// unblock goes on after a short write.
func (o *output) unblock() {
	o.mu.Lock()
	o.blocked = false
	o.writeLocked()
	o.mu.Unlock()
}

// hook lets the output write to the socket of a loop from now on. It returns
// false if there is nothing more to write.
func (o *output) hook(s *sock, leave func() error) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.awaitFlusherLocked()
	if o.closed || o.sealed {
		return errEnded
	}
	if err := leave(); err != nil {
		return err
	}
	o.sock = s
	return nil
}

// unhook ends that, and says whether something is left to write.
func (o *output) unhook() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.awaitFlusherLocked()
	o.sock, o.blocked = nil, false
	if o.rest != nil {
		b := (*o.rest)[o.off:]
		if o.buf != nil {
			b = append(b, *o.buf...)
		}
		o.rest, o.off, o.buf = nil, 0, &b
	}
	return o.buf != nil && !o.closed
}

// resume lets the flusher write what is left after unhook.
func (o *output) resume() {
	o.mu.Lock()
	o.flushLocked()
	o.mu.Unlock()
}

// finish waits until what is queued has been written or the write deadline has
// passed, and takes nothing more.
func (o *output) finish() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.awaitFlusherLocked()
	o.closed = true
	o.buf, o.rest = nil, nil
}

// cork collects the outputs to flush once a batch of packets has been handled,
// and what was counted meanwhile. It belongs to one reader goroutine.
type cork struct {
	outputs []*output
	count   tally
	lent    message.Message // what is being passed on, see conn.pass
	// waits says that something was handed to the store.
	waits bool
	// plans are those of the topics of late, by planSlot; nil for none kept.
	plans *[planSlots]*plan
}

func (k *cork) flush(to *counters) {
	k.count.addTo(to) // first: who has an answer finds it counted
	for i, o := range k.outputs {
		o.mu.Lock()
		o.corked = false
		if o.sock != nil {
			o.writeLocked()
		} else {
			o.flushLocked()
		}
		o.mu.Unlock()
		k.outputs[i] = nil
	}
	k.outputs = k.outputs[:0]
}

// closeGrace is how long a closing connection may take to send its last bytes
// and to read ours; a peer on the other side of a slow modem needs a round
// trip, and nothing waits for it but its own goroutine.
const closeGrace = time.Second

// linger ends the sending side and reads on for a moment, so that the kernel
// does not answer bytes that are still arriving with a reset that would destroy
// our DISCONNECT on its way.
func linger(nc net.Conn) {
	half, ok := nc.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	if nc.SetReadDeadline(time.Now().Add(closeGrace)) != nil {
		return
	}
	var sink [512]byte
	for range 128 { // 64 kB; more is a flood, not a rest
		if _, err := nc.Read(sink[:]); err != nil {
			return
		}
	}
}
