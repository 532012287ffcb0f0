package modbus

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// session is the transport over Modbus/TCP frames: to a peer by TCP, TLS or UDP,
// over one connection at a time. A frame carries the id of its request, which no
// other request has while an answer to it may come, so an answer is never taken
// for that to another question, however late it is.
//
//	bus goroutine --send--> conn.c ======> peer
//	      ^                                  |
//	      +---- conn.frames <--- [reader] <==+     one goroutine per connection
//
// A connection that ends fails what is under way and is made anew by the next
// request. Only a peer that cannot be called, or that hangs up again and again
// without an answer, ends the session.
type session struct {
	p    *Peer
	conn *conn // nil: none
	next uint16
	// silent are the ids on this connection that had no answer in time.
	silent map[uint16]bool
	flying []asked
	over   []*exchange // failed with their connection, not yet returned by receive
	hung   int         // connections that ended without an answer, in a row
	why    error       // of the last of them
	adu    []byte
	answer answer // the last one
	timer  *time.Timer

	wake <-chan struct{} // receive returns: there is something else to do

	n linkCounters

	out atomic.Pointer[conn] // for interrupt
}

// asked is an exchange under way.
type asked struct {
	x        *exchange
	id       uint16
	deadline time.Time
}

// conn is one connection with its reader.
type conn struct {
	c         net.Conn
	datagrams bool          // each of which holds whole frames
	frames    chan answer   // full: the reader waits; the peer says more than it is asked
	stop      chan struct{} // closed by close
	ended     chan struct{} // closed when the reader has
	err       error         // why it ended; written before ended is closed
	// partial: what came last is the start of a frame whose rest has not come.
	partial atomic.Bool
	used    bool // an answer came on it; like asked, the bus goroutine's
	asked   int  // requests sent on it
	wg      sync.WaitGroup
}

// answer is one frame of the peer.
type answer struct {
	id   uint16
	unit byte
	n    int
	at   time.Time
	pdu  [maxPDU]byte
}

const (
	// maxSilent is how many requests of a connection may have stayed without
	// an answer before another connection is made, in which their ids are
	// free again.
	maxSilent = 1000

	// maxHung is how many connections in a row may end without an answer
	// before the peer counts as gone: one may be that of a request which the
	// peer cannot bear.
	maxHung = 3
)

func openSession(ctx context.Context, p *Peer, wake <-chan struct{}) (transport, error) {
	s := &session{p: p, wake: wake, timer: time.NewTimer(time.Hour)}
	s.timer.Stop()
	if err := s.connect(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// connect makes a new connection. Ids start anywhere: to a datagram that comes
// from before, they mean nothing.
func (s *session) connect(ctx context.Context) error {
	c, err := s.p.dial(ctx)
	if err != nil {
		return err
	}
	s.n.connects++
	s.next = uint16(rand.Uint32()) //nolint:gosec // no secret: it keeps datagrams apart
	s.silent = map[uint16]bool{}
	s.conn = &conn{
		c: c, datagrams: s.p.kind == PeerUDP,
		frames: make(chan answer, maxPipeline), stop: make(chan struct{}), ended: make(chan struct{}),
	}
	s.conn.wg.Go(s.conn.read)
	s.out.Store(s.conn)
	return nil
}

// read reads frames until the connection ends.
func (c *conn) read() {
	defer close(c.ended)
	var buf [2 * maxMBAP]byte
	have := 0
	for {
		m, err := c.c.Read(buf[have:])
		at := time.Now()
		if err != nil && m == 0 {
			c.err = err
			return
		}
		have += m
		used := 0
		for {
			a := answer{at: at}
			id, unit, pdu, n, err := ParseMBAP(buf[used:have])
			if err != nil && !c.datagrams {
				c.err = err
				return
			}
			if n == 0 && (!c.datagrams || used == have) {
				break
			}
			if n == 0 {
				n = have - used // a datagram that is no frame: an answer to nothing
			}
			a.id, a.unit, a.n = id, unit, copy(a.pdu[:], pdu)
			used += n
			select {
			case c.frames <- a:
			case <-c.stop:
				return
			}
		}
		have = copy(buf[:], buf[used:have])
		c.partial.Store(have > 0)
	}
}

func (c *conn) close() error {
	close(c.stop)
	err := ignoreClosed(c.c.Close())
	c.wg.Wait()
	return err
}

func (s *session) room() int { return s.p.opts.Pipeline }

// send sends a request, over a new connection if there is none or the peer has
// closed it meanwhile.
func (s *session) send(ctx context.Context, x *exchange) error {
	pdu, err := x.req.AppendPDU(make([]byte, 0, maxPDU))
	if err != nil {
		return err
	}
	for try := 0; ; try++ {
		if err := s.ready(ctx); err != nil {
			return err
		}
		id := s.id()
		s.adu = AppendMBAP(s.adu[:0], id, x.req.Unit, pdu)
		err := s.write(ctx, x)
		if err == nil {
			s.flying = append(s.flying, asked{x: x, id: id, deadline: x.sent.Add(x.timeout)})
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		// The kernel did not take the whole of it, so the peer cannot have
		// carried it out.
		s.drop(fmt.Errorf("write: %w", err))
		if try > 0 {
			return s.why
		}
	}
}

// ready sees to it that there is a connection.
func (s *session) ready(ctx context.Context) error {
	if s.conn != nil {
		select {
		case <-s.conn.ended:
			s.drop(s.conn.err)
		default:
			// The rest will not come, or late: what comes next must not be
			// taken for it.
			if len(s.flying) == 0 && s.conn.partial.Load() {
				s.drop(errHalf)
				s.n.broken++
			}
		}
	}
	// Datagrams may come twice and late: no id has two meanings on a socket.
	if s.conn != nil && len(s.flying) == 0 && (len(s.silent) >= maxSilent || s.p.kind == PeerUDP && s.conn.asked >= 1<<16-1) {
		err := s.conn.close()
		s.conn = nil
		if err != nil {
			return err
		}
	}
	if s.hung >= maxHung {
		return fmt.Errorf("the peer ended %d connections without an answer: %w", s.hung, s.why)
	}
	if s.conn != nil {
		return nil
	}
	return s.connect(ctx)
}

var errHalf = errors.New("the peer sent half a frame")

// id returns an id that no request has which may still be answered.
func (s *session) id() uint16 {
	for {
		s.next++
		if !s.silent[s.next] && !slices.ContainsFunc(s.flying, func(a asked) bool { return a.id == s.next }) {
			s.conn.asked++
			return s.next
		}
	}
}

func (s *session) write(ctx context.Context, x *exchange) error {
	c := s.conn.c
	now := time.Now()
	if err := c.SetWriteDeadline(now.Add(s.p.opts.DialTimeout)); err != nil {
		return err
	}
	if s.p.opts.IdleClose > 0 {
		if err := c.SetReadDeadline(now.Add(x.timeout + s.p.opts.IdleClose)); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil { // see interrupt
		return err
	}
	x.sent = now
	_, err := c.Write(s.adu)
	return err
}

// drop gives up the connection. What was under way has no answer.
func (s *session) drop(why error) {
	// Ended by us, after idle_close, or by the peer when there was nothing to
	// do: many close what is idle.
	idle := len(s.flying) == 0 && (s.conn.used || errors.Is(why, os.ErrDeadlineExceeded))
	if !idle {
		s.why = why
		s.n.broken++
		if !s.conn.used {
			s.hung++
		}
	}
	_ = s.conn.close() // of no use any more, whatever it says
	s.conn = nil
	for _, a := range s.flying {
		a.x.at, a.x.err = time.Now(), fmt.Errorf("%w: the connection ended: %w", ErrNoAnswer, why)
		s.over = append(s.over, a.x)
	}
	s.flying = s.flying[:0]
}

// receive waits for the next answer, timeout or end of the connection.
func (s *session) receive(ctx context.Context, until time.Time) (*exchange, error) {
	for {
		if len(s.over) > 0 {
			x := s.over[0]
			s.over = s.over[1:]
			return x, nil
		}
		if s.conn == nil {
			return nil, nil
		}
		deadline := until
		for _, a := range s.flying {
			if deadline.IsZero() || a.deadline.Before(deadline) {
				deadline = a.deadline
			}
		}
		s.timer.Reset(time.Until(deadline))
		a := &s.answer // its data are the caller's until the next call
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case *a = <-s.conn.frames:
		default:
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case *a = <-s.conn.frames:
			case <-s.conn.ended:
				select {
				case *a = <-s.conn.frames: // came before the end
				default:
					s.drop(s.conn.err)
					continue
				}
			case <-s.wake:
				return nil, nil
			case <-s.timer.C:
				return s.expire(time.Now()), nil
			}
		}
		if x := s.match(a); x != nil {
			return x, nil
		}
	}
}

// expire returns a request whose time is over, nil if there is none.
func (s *session) expire(now time.Time) *exchange {
	for i, a := range s.flying {
		if !a.deadline.After(now) {
			s.flying = slices.Delete(s.flying, i, i+1)
			s.silent[a.id] = true
			a.x.at, a.x.err = now, ErrNoAnswer
			return a.x
		}
	}
	return nil
}

// match returns the exchange that a frame ends; nil when it answers nothing that
// is waited for.
func (s *session) match(a *answer) *exchange {
	i := slices.IndexFunc(s.flying, func(f asked) bool { return f.id == a.id })
	if i < 0 || a.n == 0 {
		if s.silent[a.id] && a.n > 0 {
			s.n.late++
			s.conn.used, s.hung = true, 0
		} else {
			s.n.foreign++
		}
		return nil
	}
	x := s.flying[i].x
	s.flying = slices.Delete(s.flying, i, i+1)
	s.conn.used, s.hung = true, 0
	x.at = a.at
	if a.unit != x.req.Unit {
		x.err = fmt.Errorf("%w: unit %d, want %d", ErrMismatch, a.unit, x.req.Unit)
		return x
	}
	x.data, x.err = x.req.ParseAnswer(a.pdu[:a.n])
	return x
}

// alone is never needed: answers carry ids.
func (s *session) alone(*exchange, time.Duration) time.Time { return time.Time{} }

func (s *session) counters() linkCounters {
	n := s.n
	s.n = linkCounters{}
	return n
}

func (s *session) echoes() bool { return false }

// gone is never closed: a connection that ends is made anew by the next request.
func (s *session) gone() <-chan struct{} { return nil }

func (s *session) lost() error { return nil }

// interrupt ends a write that waits; receive and dial watch the context.
func (s *session) interrupt() {
	if c := s.out.Load(); c != nil {
		_ = c.c.SetWriteDeadline(time.Unix(1, 0))
	}
}

func (s *session) close() error {
	s.timer.Stop()
	if s.conn == nil {
		return nil
	}
	return s.conn.close()
}
