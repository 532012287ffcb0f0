package modbus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// socketWire is a TCP connection as a serial line.
type socketWire struct {
	dial    func() (net.Conn, error)
	timeout time.Duration // of a Write
	used    bool          // the connection has carried bytes from the peer

	mu   sync.Mutex // for SetReadDeadline from outside, while dialing anew
	conn net.Conn   // guarded by mu; the bus goroutine, which alone sets it, reads without
}

func openSocketWire(ctx context.Context, p *Peer) (*socketWire, error) {
	s := &socketWire{dial: func() (net.Conn, error) { return p.dial(ctx) }, timeout: p.opts.DialTimeout}
	var err error
	s.conn, err = s.dial()
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Read is that of the connection.
func (s *socketWire) Read(b []byte) (int, error) {
	n, err := s.conn.Read(b)
	s.used = s.used || n > 0
	return n, err
}

// Write gives up after a while: nothing that is asked fills the socket of a peer
// that reads.
func (s *socketWire) Write(b []byte) (int, error) {
	if err := s.conn.SetWriteDeadline(time.Now().Add(s.timeout)); err != nil {
		return 0, err
	}
	return s.conn.Write(b)
}

// SetReadDeadline is that of the connection there is now.
func (s *socketWire) SetReadDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conn.SetReadDeadline(t)
}

// Drain does nothing: the peer does not say when its line is free.
func (s *socketWire) Drain() error { return nil }

// Discard reads what is there without waiting. A peer that has closed a
// connection it had answered on, between two requests, is called again at once:
// many serial servers close what was idle for a while.
func (s *socketWire) Discard() (total int, err error) {
	for {
		n, err := s.tryRead()
		total += n
		switch {
		case err == nil && n == 0:
			return total, nil
		case err == nil:
		case !s.used || !hungUp(err):
			return total, err
		default:
			fresh, derr := s.dial()
			if derr != nil {
				return total, errors.Join(fmt.Errorf("the peer closed the connection: %w", err), derr)
			}
			old := s.conn
			s.mu.Lock()
			s.conn, s.used = fresh, false
			s.mu.Unlock()
			return total, ignoreClosed(old.Close())
		}
	}
}

// tryRead throws away what is there, at most a buffer full; 0 and nil when there
// is nothing.
func (s *socketWire) tryRead() (n int, err error) {
	c, ok := s.conn.(syscall.Conn)
	if !ok {
		return 0, fmt.Errorf("a %T cannot be read without waiting", s.conn)
	}
	rc, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	// One that has passed would keep the socket from being looked at.
	if err := s.conn.SetReadDeadline(time.Time{}); err != nil {
		return 0, err
	}
	var b [512]byte
	rerr := rc.Read(func(fd uintptr) bool {
		n, err = syscall.Read(int(fd), b[:])
		return true
	})
	switch {
	case errors.Is(rerr, os.ErrDeadlineExceeded):
		return 0, nil // the bus is stopped
	case rerr != nil:
		return 0, rerr
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.EINTR):
		return 0, nil
	case err != nil:
		return 0, os.NewSyscallError("read", err)
	case n == 0:
		return 0, io.EOF
	}
	s.used = true
	return n, nil
}

// Done is never closed: a connection that is gone shows at the next request.
func (s *socketWire) Done() <-chan struct{} { return nil }

// Close ends the connection.
func (s *socketWire) Close() error { return ignoreClosed(s.conn.Close()) }

// hungUp says that the other side has closed the connection.
func hungUp(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
