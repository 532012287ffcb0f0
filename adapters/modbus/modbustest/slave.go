package modbustest

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Framing is how requests and answers are wrapped.
type Framing int

// The framings a Slave speaks.
const (
	RTU   Framing = iota // MODBUS Serial Line V1.02 §2.5.1
	TCP                  // MODBUS Messaging on TCP/IP V1.0b §3.1.3; over TLS and UDP too
	ASCII                // MODBUS Serial Line V1.02 §2.5.2
)

// Options says how a Slave behaves as a whole. The zero value is an RTU slave
// without echo.
type Options struct {
	Framing Framing
	// Gap is the silence after which an unfinished RTU request is given up
	// and what follows begins anew. 0 means 20 ms: a pty paces no bytes, so
	// the t3.5 of a real wire would split frames on a busy machine.
	Gap time.Duration
	// Queue is how many requests one unit holds while it is still busy with
	// an earlier one; those beyond are lost. 0 means 16.
	Queue int
}

// Stats counts what a Slave saw and did since it was made.
type Stats struct {
	Requests   uint64 // whole requests to one of our units
	Foreign    uint64 // whole requests to somebody else
	Broadcasts uint64
	Answers    uint64 // answers written, exceptions and faulty ones included
	Exceptions uint64
	Faults     uint64 // answers a Fault was applied to
	Silent     uint64 // requests left without an answer by a Fault
	Lost       uint64 // requests that found the unit's queue full
	Discarded  uint64 // bytes that were part of no request
}

type counters struct {
	requests, foreign, broadcasts, answers, exceptions, faults, silent, lost, discarded atomic.Uint64
}

// Slave answers for a set of units. Its methods are safe for concurrent use,
// also while it serves.
type Slave struct {
	opts Options
	echo atomic.Bool
	mute atomic.Bool

	mu    sync.Mutex
	units map[byte]*Unit // guarded by mu

	n counters
}

// New returns a slave without units; [Slave.Unit] adds them.
func New(opts Options) *Slave {
	if opts.Gap <= 0 {
		opts.Gap = 20 * time.Millisecond
	}
	if opts.Queue <= 0 {
		opts.Queue = 16
	}
	return &Slave{opts: opts, units: map[byte]*Unit{}}
}

// Unit returns the unit with this id, 1 to 247 (0 and 255 too on TCP), adding
// it if need be.
func (s *Slave) Unit(id byte) *Unit {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.units[id]
	if u == nil {
		u = newUnit(id)
		s.units[id] = u
	}
	return u
}

// Remove takes a unit off the bus: from now on nobody answers for id.
func (s *Slave) Remove(id byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.units, id)
}

// SetEcho makes the line give back every byte the moment it arrives, as some
// RS-485 adapters do.
func (s *Slave) SetEcho(on bool) { s.echo.Store(on) }

// SetMute makes all units fall silent (or speak again), as when the cable is
// cut behind the adapter. What they would have answered is counted in Silent.
func (s *Slave) SetMute(on bool) { s.mute.Store(on) }

// Stats returns the counters.
func (s *Slave) Stats() Stats {
	return Stats{
		Requests: s.n.requests.Load(), Foreign: s.n.foreign.Load(), Broadcasts: s.n.broadcasts.Load(),
		Answers: s.n.answers.Load(), Exceptions: s.n.exceptions.Load(), Faults: s.n.faults.Load(),
		Silent: s.n.silent.Load(), Lost: s.n.lost.Load(), Discarded: s.n.discarded.Load(),
	}
}

func (s *Slave) find(id byte) *Unit {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.units[id]
}

func (s *Slave) all() []*Unit {
	s.mu.Lock()
	defer s.mu.Unlock()
	us := make([]*Unit, 0, len(s.units))
	for _, u := range s.units {
		us = append(us, u)
	}
	return us
}

// Serve answers requests that arrive on rw until ctx ends, which is a nil
// error, or reading or writing fails (io.EOF when the other side has closed; but
// the master of a pty waits for somebody to open the other side again).
// A Read that waits is ended by a read deadline in the past if rw has
// deadlines (a pty master and a net.Conn do), else by closing rw. The same
// slave may serve several lines at once, and again after a return: that is a
// device that restarted.
func (s *Slave) Serve(ctx context.Context, rw io.ReadWriter) error {
	if f, ok := rw.(*os.File); ok {
		Nonblocking(f)
	}
	if d, ok := rw.(interface{ SetReadDeadline(t time.Time) error }); ok {
		_ = d.SetReadDeadline(time.Time{}) // left in the past by an earlier Serve
	}
	ctx, cancel := context.WithCancel(ctx)
	l := &line{s: s, rw: rw, queues: map[byte]chan request{}}
	chunks := make(chan []byte) // no capacity: the reader waits for the parser
	var readErr error           // written before chunks is closed
	l.wg.Go(func() {
		defer close(chunks)
		readErr = readAll(ctx, rw, chunks)
	})
	l.wg.Go(func() {
		<-ctx.Done()
		unblock(rw)
	})

	var err error
	switch s.opts.Framing {
	case TCP:
		err = l.parseTCP(ctx, chunks)
	case ASCII:
		err = l.parseASCII(ctx, chunks)
	default:
		err = l.parseRTU(ctx, chunks)
	}
	ended := ctx.Err() != nil
	cancel()
	for range chunks {
		continue // the reader may be handing over its last chunk
	}
	l.wg.Wait()
	switch {
	case ended: // the deadline of unblock has ended the reader
		err = nil
	case errors.Is(err, errReader):
		err = readErr
	}
	return err
}

// Nonblocking makes deadlines work on f, the master of a pty: creack/pty leaves
// its files in blocking mode, in which they do not end a Read that waits.
// Slave.Serve does it by itself.
func Nonblocking(f *os.File) {
	if rc, err := f.SyscallConn(); err == nil {
		_ = rc.Control(func(fd uintptr) { _ = syscall.SetNonblock(int(fd), true) })
	}
}

// ServeUDP answers the requests that arrive on pc, one in each datagram, until
// ctx ends. The framing must be TCP. It closes pc.
func (s *Slave) ServeUDP(ctx context.Context, pc net.PacketConn) error {
	ctx, cancel := context.WithCancel(ctx)
	lines := map[string]*line{} // by sender
	var wg sync.WaitGroup
	wg.Go(func() {
		<-ctx.Done()
		_ = pc.Close()
	})
	defer func() {
		cancel()
		wg.Wait()
		for _, l := range lines {
			l.wg.Wait()
		}
	}()
	var buf [1500]byte
	for {
		n, from, err := pc.ReadFrom(buf[:])
		if err != nil {
			if ctx.Err() != nil {
				err = nil // it was us who closed it
			}
			return err
		}
		if lines[from.String()] == nil {
			lines[from.String()] = &line{s: s, rw: datagrams{pc, from}, queues: map[byte]chan request{}}
		}
		// Half a request is none: datagrams do not continue each other.
		rest, err := lines[from.String()].takeTCP(ctx, buf[:n])
		if err != nil {
			rest = buf[:n]
		}
		s.n.discarded.Add(uint64(len(rest)))
	}
}

// datagrams writes to one peer.
type datagrams struct {
	pc net.PacketConn
	to net.Addr
}

func (d datagrams) Read([]byte) (int, error) { return 0, io.EOF }

func (d datagrams) Write(b []byte) (int, error) { return d.pc.WriteTo(b, d.to) }

// ServeTCP accepts connections (TLS if ln is a listener of tls) and serves each
// until ctx ends; the framing is the slave's, so an RTU slave speaks RTU over
// TCP. It closes ln.
func (s *Slave) ServeTCP(ctx context.Context, ln net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() {
		<-ctx.Done()
		_ = ln.Close()
	})
	defer wg.Wait()
	for {
		conn, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil {
				err = nil // it was us who closed it
			}
			cancel()
			return err
		}
		wg.Go(func() {
			defer func() { _ = conn.Close() }()
			_ = s.Serve(ctx, conn) // a peer that left is no error of ours
		})
	}
}

// errReader says that the reading goroutine ended first; Serve returns its error.
var errReader = errors.New("reader ended")

func readAll(ctx context.Context, r io.Reader, out chan<- []byte) error {
	buf := make([]byte, 1024)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			select {
			case out <- append([]byte(nil), buf[:n]...):
			case <-ctx.Done():
				return nil
			}
		}
		if hungUp(r, err) && wait(ctx, idle) {
			continue
		}
		if err != nil {
			return err
		}
	}
}

// idle is how often a line that nobody has open is looked at again.
const idle = 20 * time.Millisecond

// hungUp says that rw is the master of a pty whose other side nobody has open. A
// device at the end of a wire does not notice that either.
func hungUp(rw any, err error) bool {
	_, file := rw.(*os.File)
	return file && errors.Is(err, syscall.EIO)
}

func unblock(rw io.ReadWriter) {
	if d, ok := rw.(interface{ SetReadDeadline(t time.Time) error }); ok && d.SetReadDeadline(time.Unix(1, 0)) == nil {
		return
	}
	if c, ok := rw.(io.Closer); ok {
		_ = c.Close()
	}
}
