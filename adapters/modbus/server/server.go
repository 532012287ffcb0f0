package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"sync"
	"time"

	"holdfast/adapters/modbus"
)

// Options are what both kinds of servers have.
type Options struct {
	// Allow are the addresses and networks that may connect: "10.0.0.7",
	// "10.0.0.0/24". Empty means all.
	Allow []string `toml:"allow"`
	// MaxConnections is how many masters are served at once, 1 to 256. One more
	// takes the place of the one that has been silent for longest, if that is
	// 10 s or more; else it is turned away.
	MaxConnections int `toml:"max_connections"`
	// IdleTimeout is how long a connection may be without a whole request, 1s
	// to 24h.
	IdleTimeout time.Duration `toml:"idle_timeout"`
}

func defaultOptions() Options {
	return Options{MaxConnections: 16, IdleTimeout: 5 * time.Minute}
}

func (o Options) validate() error {
	for i, a := range o.Allow {
		if _, err := parseNetwork(a); err != nil {
			return fmt.Errorf("allow[%d]: %q is neither an address nor a network such as 10.0.0.0/24", i, a)
		}
	}
	switch {
	case o.MaxConnections < 1 || o.MaxConnections > 256:
		return fmt.Errorf("max_connections: %d is outside 1..256", o.MaxConnections)
	case o.IdleTimeout < time.Second || o.IdleTimeout > 24*time.Hour:
		return fmt.Errorf("idle_timeout: %v is outside 1s..24h", o.IdleTimeout)
	}
	return nil
}

func parseNetwork(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	return p.Masked(), err
}

// Handler answers requests; Registers and Gateway are the two there are.
type Handler interface {
	// Handle appends the answer to a request, which is of at least one byte and
	// valid until it returns; nothing means that there is none. It is called from
	// many goroutines.
	Handle(ctx context.Context, unit byte, pdu, answer []byte) []byte
}

const (
	// displaceable is for how long a connection was silent that may be closed
	// for another: a master that was switched off leaves one behind.
	displaceable = 10 * time.Second
	// readAnswer is how long a master may take to read an answer.
	readAnswer = 10 * time.Second
	// acceptPause is between two tries to accept while there are no descriptors.
	acceptPause = time.Second
	// complain is how often a line of one kind is logged; all are counted.
	complain = time.Minute
)

// Server serves the connections of masters. It is an adapters.Adapter.
type Server struct {
	name    string
	opts    Options
	allow   []netip.Prefix
	open    func(context.Context) ([]net.Listener, error)
	handler Handler
	log     *slog.Logger

	mu    sync.Mutex
	conns map[*conn]struct{}   // guarded by mu; at most MaxConnections
	n     Status               // guarded by mu; the counters
	told  map[string]time.Time // guarded by mu; by reason
}

// conn is one connection.
type conn struct {
	net.Conn

	busy bool      // guarded by Server.mu; a request is being answered
	last time.Time // guarded by Server.mu; of the last whole request, or the accept
}

// New returns a server that opens its listeners by open, each time that it is run.
// Opts must be valid.
func New(name string, opts Options, open func(context.Context) ([]net.Listener, error), h Handler, log *slog.Logger) (*Server, error) {
	if err := opts.validate(); err != nil {
		return nil, err
	}
	s := &Server{
		name: name, opts: opts, open: open, handler: h, log: log.With("component", "modbus", "server", name),
		conns: map[*conn]struct{}{}, told: map[string]time.Time{}, n: Status{Exceptions: map[string]uint64{}},
	}
	for _, a := range opts.Allow {
		p, err := parseNetwork(a)
		if err != nil {
			return nil, err
		}
		s.allow = append(s.allow, p)
	}
	return s, nil
}

// Name is the name it was given.
func (s *Server) Name() string { return s.name }

// Run opens the listeners and serves until ctx ends or one of them fails.
func (s *Server) Run(ctx context.Context) error {
	listeners, err := s.open(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		for _, l := range listeners {
			_ = l.Close() // twice is no harm
		}
	})
	defer stop()
	var serving sync.WaitGroup
	errs := make([]error, len(listeners))
	for i, l := range listeners {
		s.log.Info("serving Modbus", "address", l.Addr().String())
		serving.Go(func() {
			defer cancel()
			errs[i] = s.accept(ctx, l)
		})
	}
	serving.Wait()
	return errors.Join(errs...)
}

// accept takes connections until ctx ends, and then waits for their end.
func (s *Server) accept(ctx context.Context, l net.Listener) error {
	var serving sync.WaitGroup
	defer serving.Wait()
	life, cancel := context.WithCancel(ctx)
	defer cancel()
	for {
		nc, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = nc.Close()
			}
			return ctx.Err()
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil: // no descriptors, or a connection that is gone already
			s.complain(&s.n.AcceptErrors, "it was not accepted", "err", err)
			wait(ctx, acceptPause)
			continue
		}
		c := s.admit(nc)
		if c == nil {
			_ = nc.Close() // nothing was said on it
			continue
		}
		serving.Go(func() {
			end := context.AfterFunc(life, func() { _ = c.Close() })
			defer end()
			s.serve(life, c)
			_ = c.Close() // whatever ended it is known
			s.mu.Lock()
			delete(s.conns, c)
			s.mu.Unlock()
		})
	}
}

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// admit says whether a connection is served; nil if not.
func (s *Server) admit(nc net.Conn) *conn {
	remote := nc.RemoteAddr().String()
	if !s.allowed(nc.RemoteAddr()) {
		s.complain(&s.n.Refused, "it is not among those allowed", "remote", remote)
		return nil
	}
	now := time.Now()
	c := &conn{Conn: nc, last: now}
	var oldest *conn
	s.mu.Lock()
	if len(s.conns) >= s.opts.MaxConnections {
		for o := range s.conns {
			if !o.busy && now.Sub(o.last) >= displaceable && (oldest == nil || o.last.Before(oldest.last)) {
				oldest = o
			}
		}
		if oldest == nil {
			s.mu.Unlock()
			s.complain(&s.n.Full, "too many are connected", "remote", remote)
			return nil
		}
		s.n.Displaced++
		delete(s.conns, oldest)
	}
	s.conns[c] = struct{}{}
	s.n.Accepted++
	s.mu.Unlock()
	if oldest != nil {
		_ = oldest.Close() // its goroutine sees that
	}
	s.log.Debug("master connected", "remote", remote)
	return c
}

func (s *Server) allowed(a net.Addr) bool {
	if len(s.allow) == 0 {
		return true
	}
	from, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return false
	}
	for _, p := range s.allow {
		if p.Contains(from.Addr().Unmap().WithZone("")) {
			return true
		}
	}
	return false
}

// serve answers the requests of one connection until it ends.
func (s *Server) serve(ctx context.Context, c *conn) {
	const frame = 260        // bytes, the longest (MODBUS Messaging on TCP/IP V1.0b §3.1.3)
	buf := [4 * frame]byte{} // several, for those who send ahead
	var out, answer []byte
	have := 0
	until := time.Now().Add(s.opts.IdleTimeout)
	for {
		rest := buf[:have]
		out = out[:0]
		for {
			txn, unit, pdu, n, err := modbus.ParseMBAP(rest)
			if err != nil {
				// Where the next frame begins is not known.
				s.complain(&s.n.Malformed, "what it sends is not Modbus/TCP", "remote", c.RemoteAddr().String(), "err", err)
				return
			}
			if n == 0 {
				break
			}
			s.begin(c)
			answer = s.handler.Handle(ctx, unit, pdu, answer[:0])
			until = s.end(c, answer).Add(s.opts.IdleTimeout)
			if len(answer) > 0 {
				out = modbus.AppendMBAP(out, txn, unit, answer)
			}
			rest = rest[n:]
			if !s.send(c, out) {
				return
			}
			out = out[:0]
		}
		have = copy(buf[:], rest)
		if c.SetReadDeadline(until) != nil {
			return
		}
		n, err := c.Read(buf[have:])
		have += n
		if err != nil && n == 0 {
			if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
				s.count(&s.n.Idle)
			}
			return
		}
	}
}

// send writes an answer; false if the connection is of no use any more.
func (s *Server) send(c *conn, b []byte) bool {
	if len(b) == 0 {
		return true
	}
	if c.SetWriteDeadline(time.Now().Add(readAnswer)) != nil {
		return false
	}
	_, err := c.Write(b)
	return err == nil
}

func (s *Server) begin(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.busy = true
}

// end counts a request, and returns the time.
func (s *Server) end(c *conn, answer []byte) time.Time {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	c.busy, c.last = false, now
	s.n.Requests++
	if len(answer) == 2 && answer[0]&0x80 != 0 {
		s.n.Exceptions[modbus.Exception(answer[1]).String()]++
	}
	return now
}

func (s *Server) count(n *uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	*n++
}

// complain counts and, at times, logs.
func (s *Server) complain(n *uint64, what string, args ...any) {
	now := time.Now()
	s.mu.Lock()
	*n++
	total, due := *n, now.Sub(s.told[what]) >= complain
	if due {
		s.told[what] = now
	}
	s.mu.Unlock()
	if due {
		s.log.With(args...).Warn("master not served", "reason", what, "count", total)
	}
}

// Status is a snapshot of a server.
type Status struct {
	Connections int `json:"connections"`
	// Accepted are those served since the start; Displaced of them were silent
	// and had to go for another, Idle were silent for too long, and Malformed
	// sent what is not Modbus.
	Accepted  uint64 `json:"accepted"`
	Displaced uint64 `json:"displaced"`
	Idle      uint64 `json:"idle"`
	Malformed uint64 `json:"malformed"`
	// Refused may not connect, Full found too many there, and AcceptErrors are
	// what the system had against others.
	Refused      uint64 `json:"refused"`
	Full         uint64 `json:"full"`
	AcceptErrors uint64 `json:"accept_errors"`
	// Requests were answered, with an exception those in Exceptions.
	Requests   uint64            `json:"requests"`
	Exceptions map[string]uint64 `json:"exceptions"`
	// Line is what was heard on a serial line, where nobody connects; nil of a
	// server on sockets.
	Line *LineStatus `json:"line,omitempty"`
}

// Status returns a snapshot.
func (s *Server) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.n
	st.Connections, st.Exceptions = len(s.conns), maps.Clone(st.Exceptions)
	return st
}

// refuse appends an exception.
func refuse(b []byte, f byte, e modbus.Exception) []byte {
	return append(b, f|0x80, byte(e))
}

// parse takes a request apart; what cannot be is answered with e.
func parse(unit byte, pdu []byte) (r modbus.Request, e modbus.Exception) {
	r, err := modbus.ParseRequest(unit, pdu)
	switch {
	case err == nil:
		return r, 0
	case !modbus.Function(pdu[0]).Known():
		return r, modbus.IllegalFunction
	default:
		return r, modbus.IllegalDataValue
	}
}
