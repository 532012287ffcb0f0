package broker

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/broker/packet"
)

// A readiness loop serves the plain TCP and Unix connections that it owns, once
// their handshake is over. A goroutine that blocks in a read for each of them
// costs a wake-up for every packet, and a stack for every idle client.
//
//	serve goroutine     loop                                    goroutine
//	---------------     ----                                    ---------
//	handshake, then --> add: epoll
//	                    ready: read, handle its packets,        finish: what is
//	                           the answers are corked           left to write,
//	                    posted: flush, resume, end              linger, leave
//	                    flush the cork: a write per recipient      ^
//	                    tick: keep alive                           |
//	                    error, end ----------------------------> drop
//
// Nothing in a turn waits: reads and writes do not block, a CONNECT has its
// goroutine, and so has the end. A connection whose acknowledgement line is full
// is parked: nobody polls it until the store has caught up.
type loop struct {
	b     *Broker
	ep    int
	wakes int // eventfd

	// Owned by the loop's goroutine:
	cork   cork
	reader *packet.Reader // for whoever's turn it is
	socks  []*sock        // by descriptor
	wheel  wheel
	time   time.Time // when the turn began
	now    int64     // the same in ticks
	spare  []*sock

	load   atomic.Int32 // connections
	asleep atomic.Bool  // it waits, or is about to; a post has to wake it

	mu     sync.Mutex
	posted []*sock // guarded by mu
	closed bool    // guarded by mu
}

// sock is one connection on a loop.
type sock struct {
	c    *conn
	loop *loop
	fd   int

	post byte // what the loop is to do, see the post constants; guarded by loop.mu

	// parked says that the loop does not read before the acknowledgement line
	// has moved, or the client is within its rate again.
	parked atomic.Bool
	slowed bool // it will be resumed when it is within its rate; the loop's own
	timed  bool // it will be looked at again if its line stands still; the loop's own

	// Owned by the loop's goroutine:
	added   bool
	events  uint32         // what epoll looks for
	aside   bool           // epoll does not look at all
	partial *[]byte        // what came of a packet that is not complete, nil for nothing
	private *packet.Reader // for one large packet
	reads   int            // how often it may read in this turn
	last    int64          // tick of the last packet
	keep    int64          // ticks of silence allowed, 0 for any
	timer   timer
}

// What is posted to a loop.
const (
	postAdd      byte = 1 << iota // the connection is the loop's from now on
	postFlush                     // something was queued
	postWrite                     // a write was short: wait for room
	postRoom                      // there is room again after it was refused
	postResume                    // the acknowledgement line has moved
	postPatience                  // it may not have, for some time
	postEnd                       // the connection has a cause to end
)

const (
	// loopBuffer is how much one connection may send in one turn, in bytes.
	loopBuffer = 64 << 10
	// largePacket is from when on a packet is collected in a buffer of its own,
	// in place of being copied to and fro.
	largePacket = loopBuffer / 2
	// loopEvents is how many connections are looked after between two flushes.
	loopEvents = 128
	// flushAt is how much waits for one connection before it is written without
	// waiting for the end of the turn; its buffer fits the pool then.
	flushAt = 16 << 10
	// eager is from how many packets of one connection on it gets its answers
	// without waiting for the end of the turn: a client in a hurry goes on while
	// the loop is busy with others.
	eager = 16
	// tick is how exactly keep alives are kept.
	tick = 500 * time.Millisecond
)

// errAgain means that there is nothing more to read for now.
var errAgain = errors.New("nothing more to read")

// partials lends buffers for incomplete packets.
var partials = sync.Pool{New: func() any { return new(make([]byte, 0, 512)) }}

func newLoop(b *Broker) (*loop, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	wakes, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, errors.Join(os.NewSyscallError("eventfd", err), unix.Close(ep))
	}
	l := &loop{b: b, ep: ep, wakes: wakes, reader: packet.NewReader(nil, loopBuffer), wheel: wheel{start: time.Now()}}
	l.cork.plans = new([planSlots]*plan)
	if err := unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, wakes, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(wakes)}); err != nil {
		return nil, errors.Join(os.NewSyscallError("epoll_ctl", err), unix.Close(ep), unix.Close(wakes))
	}
	return l, nil
}

// run is the loop's goroutine.
func (l *loop) run(ctx context.Context) {
	stop := context.AfterFunc(ctx, l.wake)
	defer stop()
	defer l.close()
	var events [loopEvents]unix.EpollEvent
	for {
		if l.cork.waits {
			// The committer goes on in this thread, which is awake, and the loop
			// in another. Else it would be the other way round.
			l.cork.waits = false
			runtime.Gosched()
		}
		l.asleep.Store(true)
		if ctx.Err() != nil {
			return
		}
		n, err := unix.EpollWait(l.ep, events[:], l.patience())
		l.asleep.Store(false)
		if err != nil && !errors.Is(err, unix.EINTR) {
			// Only for a descriptor that is none: our own mistake.
			panic("broker: epoll_wait: " + err.Error())
		}
		l.time = time.Now()
		l.now = l.wheel.tickAt(l.time)
		for i := range max(n, 0) {
			l.ready(int(events[i].Fd), events[i].Events)
		}
		l.takePosted()
		l.cork.flush(&l.b.count)
		l.checkSilence()
	}
}

// close gives the loop's own descriptors back. Its connections are gone.
func (l *loop) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	_ = unix.Close(l.ep)
	_ = unix.Close(l.wakes)
}

// patience is how long to wait for something, in milliseconds.
func (l *loop) patience() int {
	l.mu.Lock()
	waiting := len(l.posted) > 0
	l.mu.Unlock()
	if waiting {
		return 0
	}
	at, ok := l.wheel.next()
	if !ok {
		return -1
	}
	return int(max(0, time.Until(at)/time.Millisecond) + 1)
}

// send posts to the loop, from any goroutine and under any lock.
func (l *loop) send(s *sock, what byte) {
	l.mu.Lock()
	if s.post == 0 {
		l.posted = append(l.posted, s)
	}
	s.post |= what
	l.mu.Unlock()
	if l.asleep.Load() {
		l.wake()
	}
}

func (l *loop) wake() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || !l.asleep.Swap(false) {
		return
	}
	one := [8]byte{0: 1}
	_, _ = unix.Write(l.wakes, one[:]) // full means that it is awake
}

// takePosted does what others asked for.
func (l *loop) takePosted() {
	l.mu.Lock()
	posted := l.posted
	if len(posted) > 0 {
		l.posted, l.spare = l.spare[:0], nil
	}
	l.mu.Unlock()
	if len(posted) == 0 {
		return
	}
	for _, s := range posted {
		l.mu.Lock()
		what := s.post
		s.post = 0
		l.mu.Unlock()
		if what&postAdd != 0 && !l.add(s) || !s.added {
			continue
		}
		if s.c.cause.Load() != nil {
			l.drop(s, errEnded)
			continue
		}
		if what&postWrite != 0 {
			l.watch(s, s.events|unix.EPOLLOUT)
		}
		if what&(postFlush|postAdd) != 0 {
			s.c.out.flush()
		}
		if what&postRoom != 0 {
			s.c.session.proceed(s.c, &l.cork)
		}
		if what&postPatience != 0 {
			s.timed = false
		}
		if what&(postResume|postAdd) != 0 || what&postPatience != 0 && s.parked.Load() {
			l.resume(s)
		}
	}
	clear(posted)
	l.spare = posted
}

// add takes a connection in.
func (l *loop) add(s *sock) bool {
	for len(l.socks) <= s.fd {
		l.socks = append(l.socks, nil)
	}
	s.events = unix.EPOLLIN
	if err := unix.EpollCtl(l.ep, unix.EPOLL_CTL_ADD, s.fd, &unix.EpollEvent{Events: s.events, Fd: int32(s.fd)}); err != nil {
		l.ended(s, os.NewSyscallError("epoll_ctl", err))
		return false
	}
	s.added = true
	l.socks[s.fd] = s
	l.seen(s)
	return true
}

func (l *loop) watch(s *sock, events uint32) {
	if s.events == events {
		return
	}
	s.events = events
	op := unix.EPOLL_CTL_MOD
	if s.aside {
		op, s.aside = unix.EPOLL_CTL_ADD, false
	}
	if err := unix.EpollCtl(l.ep, op, s.fd, &unix.EpollEvent{Events: events, Fd: int32(s.fd)}); err != nil {
		l.drop(s, os.NewSyscallError("epoll_ctl", err))
	}
}

// ready acts on what epoll says of one descriptor.
func (l *loop) ready(fd int, events uint32) {
	if fd == l.wakes {
		var count [8]byte
		_, _ = unix.Read(fd, count[:])
		return
	}
	if fd >= len(l.socks) || l.socks[fd] == nil {
		return // dropped a moment ago
	}
	s := l.socks[fd]
	if events&unix.EPOLLOUT != 0 {
		l.watch(s, s.events&^unix.EPOLLOUT)
		s.c.out.unblock()
	}
	if events&^unix.EPOLLOUT != 0 && s.added {
		if s.parked.Load() {
			// The client has hung up, and epoll would say so again and again;
			// what it sent before is still to be read.
			s.aside = true
			_ = unix.EpollCtl(l.ep, unix.EPOLL_CTL_DEL, s.fd, nil)
			return
		}
		l.turn(s)
	}
}

// resume reads on after a pause, or for the first time.
func (l *loop) resume(s *sock) {
	if s.parked.Swap(false) {
		l.seen(s) // its keep alive did not run meanwhile
		l.watch(s, s.events|unix.EPOLLIN)
	}
	if s.added {
		l.turn(s)
	}
}

// turn reads once and handles what has come.
func (l *loop) turn(s *sock) {
	c, r := s.c, s.private
	if r == nil {
		r = l.reader
		var unread []byte
		if s.partial != nil {
			unread = *s.partial
		}
		r.Reset(s, c.version, unread)
		r.SetMax(c.b.opts.MaxPacketSize)
		r.SetMaxUserProperties(c.b.opts.MaxUserProperties)
		s.giveBack()
	}
	s.reads = 1
	handled, err := l.handle(s, r)
	if handled >= eager {
		c.out.flush()
	}
	if err != nil && !errors.Is(err, errAgain) {
		l.drop(s, err)
		return
	}
	unread, need := r.Unread()
	switch {
	case s.private != nil:
		if len(unread) == 0 {
			s.releasePrivate()
		}
	case len(unread) == 0:
	case need > largePacket:
		s.private, _ = privates.Get().(*packet.Reader)
		s.private.Reset(s, c.version, unread)
		s.private.SetMax(c.b.opts.MaxPacketSize)
		s.private.SetMaxUserProperties(c.b.opts.MaxUserProperties)
	default:
		s.partial, _ = partials.Get().(*[]byte)
		*s.partial = append((*s.partial)[:0], unread...)
	}
}

// handle handles packets until there is none, or the connection is parked, and
// says how many.
func (l *loop) handle(s *sock, r *packet.Reader) (n int, err error) {
	c := s.c
	for ; ; n++ {
		if c.overdue() {
			s.parked.Store(true)
			wait, ok := c.mayRead() // it may have moved just before
			if !ok {
				l.watch(s, s.events&^unix.EPOLLIN)
				if !s.timed {
					s.timed = true
					l.b.clock.after(wait, func() { l.send(s, postPatience) })
				}
				return n, nil
			}
			s.parked.Store(false)
		}
		if d := c.debt(); d > 0 {
			s.parked.Store(true)
			l.watch(s, s.events&^unix.EPOLLIN)
			if !s.slowed {
				s.slowed = true
				l.b.clock.after(d, func() { l.send(s, postResume) })
			}
			return n, nil
		}
		s.slowed = false
		p, err := r.Next()
		if err != nil {
			return n, err
		}
		if n == 0 {
			l.seen(s)
		}
		if err := c.take(p); err != nil {
			return n, err
		}
	}
}

// Read reads once in a turn; the packet reader reads through it.
func (s *sock) Read(b []byte) (int, error) {
	if s.reads == 0 {
		return 0, errAgain
	}
	s.reads--
	for {
		n, err := unix.Read(s.fd, b)
		switch {
		case err == nil && n > 0:
			s.c.b.count.bytesIn.Add(uint64(n))
			return n, nil
		case err == nil:
			return 0, io.EOF
		case errors.Is(err, unix.EAGAIN):
			return 0, errAgain
		case !errors.Is(err, unix.EINTR):
			return 0, os.NewSyscallError("read", err)
		}
	}
}

// privates lends readers for large packets.
var privates = sync.Pool{New: func() any { return packet.NewReader(nil, readBuffer) }}

func (s *sock) releasePrivate() {
	if s.private != nil {
		s.private.Reset(nil, packet.V5, nil)
		privates.Put(s.private)
		s.private = nil
	}
}

func (s *sock) giveBack() {
	if s.partial != nil {
		if cap(*s.partial) <= largePacket {
			partials.Put(s.partial)
		}
		s.partial = nil
	}
}

// drop ends a connection for that reason; what takes time has a goroutine.
func (l *loop) drop(s *sock, err error) {
	if !s.added {
		return
	}
	s.added = false
	l.socks[s.fd] = nil
	l.wheel.remove(&s.timer)
	_ = unix.EpollCtl(l.ep, unix.EPOLL_CTL_DEL, s.fd, nil)
	s.giveBack()
	s.releasePrivate()
	l.ended(s, err)
}

func (l *loop) ended(s *sock, err error) {
	l.b.wg.Go(func() { s.c.finish(err) })
}

// seen starts the keep alive of a connection anew.
func (l *loop) seen(s *sock) {
	if s.keep == 0 {
		return
	}
	s.last = l.now
	if s.timer.sock == nil {
		s.timer.sock = s
		l.wheel.add(&s.timer, s.last+s.keep)
	}
}

// checkSilence drops the clients that were silent for too long
// (MQTT 5.0 §3.1.2.10 [MQTT-3.1.2-22]).
func (l *loop) checkSilence() {
	if l.now == l.wheel.now {
		return
	}
	l.wheel.advance(l.now, func(t *timer) {
		s := t.sock
		switch due := s.last + s.keep; {
		case s.parked.Load():
			l.wheel.add(t, l.now+s.keep)
		case due > l.now:
			l.wheel.add(t, due)
		default:
			l.drop(s, os.ErrDeadlineExceeded)
		}
	})
}

// write writes what the socket takes, perhaps nothing.
func (s *sock) write(b []byte) (int, error) {
	for {
		n, err := unix.Write(s.fd, b)
		switch {
		case err == nil:
			return n, nil
		case errors.Is(err, unix.EAGAIN):
			return 0, nil
		case !errors.Is(err, unix.EINTR):
			return 0, os.NewSyscallError("write", err)
		}
	}
}

// loops is how many loops there are to be.
func (o Options) loops() int {
	switch {
	case o.Loops < 0:
		return 0
	case o.Loops > 0:
		return o.Loops
	}
	return max(1, min(4, runtime.GOMAXPROCS(0)/2))
}

// loop is the one that a further connection goes to; nil if there is none.
func (b *Broker) loop() *loop {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closing {
		return nil
	}
	for len(b.loops) < b.opts.loops() {
		l, err := newLoop(b)
		if err != nil {
			if len(b.loops) == 0 {
				return nil // no descriptors left; the connection stays where it is
			}
			break
		}
		b.loops = append(b.loops, l)
		b.spawn(l.run)
	}
	least := b.loops[0]
	for _, l := range b.loops[1:] {
		if l.load.Load() < least.load.Load() {
			least = l
		}
	}
	return least
}

// hook gives a connection that can go to a loop its place there. Nothing reads
// from it until join; what is queued is written by the loop.
func (c *conn) hook() {
	p, ok := c.nc.(*plainConn)
	if !ok {
		return
	}
	l := c.b.loop()
	if l == nil {
		return
	}
	s := &sock{c: c, loop: l}
	if err := c.out.hook(s, func() (err error) {
		s.fd, err = p.leave()
		return err
	}); err != nil {
		return // it stays where it is, and shows there what is wrong
	}
	l.load.Add(1)
	c.sock.Store(s)
}

// join lets the loop begin; the serve goroutine ends then.
func (c *conn) join() bool {
	s := c.sock.Load()
	if s == nil {
		return false
	}
	if unread, _ := c.reader.Unread(); len(unread) > 0 {
		s.partial = new(bytes.Clone(unread))
	}
	c.reader.Reset(nil, c.version, nil)
	c.reader = nil
	c.cork.flush(&c.b.count)
	c.cork = &s.loop.cork
	if c.silence > 0 {
		s.keep = int64((c.silence+tick-1)/tick) + 1
	}
	s.loop.send(s, postAdd)
	return true
}

// comeBack ends a connection's time on a loop, if it had any: the rest of it may
// wait for the client.
func (c *conn) comeBack() {
	s := c.sock.Load()
	p, ok := c.nc.(*plainConn)
	if s == nil || !ok {
		return
	}
	c.cork = new(cork)
	s.loop.load.Add(-1)
	c.out.flush()
	left := c.out.unhook()
	cause := c.cause.Load()
	if !left && (cause.silent || !cause.reason.Failed()) {
		c.out.finish()
		p.discard(s.fd)
		return
	}
	if err := p.back(s.fd); err != nil {
		c.b.log.Warn("connection not closed in order", "remote", c.remote(), "err", err)
	}
	c.out.resume()
}
