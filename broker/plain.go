package broker

import (
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// plainConn is a TCP or Unix connection that can leave the Go runtime's poller
// for one of our loops and come back: while it is away nothing but the loop
// reads, and writes do not wait. It is the same socket all the time, under one
// descriptor at a time.
//
//	accept, handshake           loop                 goodbye
//	net.Conn ----- leave() ---> descriptor -- back() --> net.Conn
type plainConn struct {
	remote net.Addr

	mu sync.Mutex
	nc net.Conn // guarded by mu; nil while away
	// away says that the loop has it. Whoever takes it back owns fd, so that
	// it is closed once.
	away   bool      // guarded by mu
	closed bool      // guarded by mu
	cut    time.Time // guarded by mu; the write deadline set while it was away
}

// plain wraps a connection that can go to a loop; nil for any other. What only
// embeds a TCP connection may read something else from it than its bytes.
func plain(nc net.Conn) *plainConn {
	switch nc.(type) {
	case *net.TCPConn, *net.UnixConn:
	case interface {
		syscall.Conn
		PeerIdentity() string // a Unix socket of broker/listen
	}:
	default:
		return nil
	}
	return &plainConn{nc: nc, remote: nc.RemoteAddr()}
}

// errAway is what the methods of a net.Conn answer while a loop has it.
var errAway = errors.New("the connection is served by a loop")

// leave takes the socket out of the runtime's poller. The descriptor is
// non-blocking, and the caller's until back or discard is called.
func (p *plainConn) leave() (fd int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	nc, ok := p.nc.(syscall.Conn)
	if !ok || p.closed {
		return -1, net.ErrClosed
	}
	raw, err := nc.SyscallConn()
	if err != nil {
		return -1, err
	}
	// A descriptor of our own: the runtime keeps its own registered for edges,
	// and would wake a thread for every one of them.
	var dupErr error
	if err := raw.Control(func(old uintptr) {
		fd, dupErr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0)
	}); err != nil {
		return -1, err
	}
	if dupErr != nil {
		return -1, os.NewSyscallError("fcntl", dupErr)
	}
	_ = p.nc.Close()
	p.nc, p.away = nil, true
	return fd, nil
}

// back gives the socket to the runtime again.
func (p *plainConn) back(fd int) error {
	f := os.NewFile(uintptr(fd), "socket")
	nc, err := net.FileConn(f)
	_ = f.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.away = false
	if err != nil {
		p.closed = true
		return err
	}
	p.nc = nc
	if !p.cut.IsZero() {
		_ = nc.SetWriteDeadline(p.cut)
	}
	if p.closed {
		_ = nc.Close()
	}
	return nil
}

// discard closes a descriptor that need not come back.
func (p *plainConn) discard(fd int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.away, p.closed = false, true
	_ = unix.Close(fd)
}

func (p *plainConn) conn() (net.Conn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.nc != nil:
		return p.nc, nil
	case p.closed:
		return nil, net.ErrClosed
	}
	return nil, errAway
}

// Read is part of net.Conn.
func (p *plainConn) Read(b []byte) (int, error) {
	nc, err := p.conn()
	if err != nil {
		return 0, err
	}
	return nc.Read(b)
}

// Write is part of net.Conn.
func (p *plainConn) Write(b []byte) (int, error) {
	nc, err := p.conn()
	if err != nil {
		return 0, err
	}
	return nc.Write(b)
}

// Close closes the connection. Called while a loop has it, it takes effect when
// the loop gives it back.
func (p *plainConn) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	if p.nc == nil {
		return nil
	}
	return p.nc.Close()
}

// CloseWrite ends the sending side.
func (p *plainConn) CloseWrite() error {
	nc, err := p.conn()
	if err != nil {
		return err
	}
	half, ok := nc.(interface{ CloseWrite() error })
	if !ok {
		return errors.ErrUnsupported
	}
	return half.CloseWrite()
}

// LocalAddr is part of net.Conn; nil while a loop has it.
func (p *plainConn) LocalAddr() net.Addr {
	nc, err := p.conn()
	if err != nil {
		return nil
	}
	return nc.LocalAddr()
}

// RemoteAddr is part of net.Conn.
func (p *plainConn) RemoteAddr() net.Addr { return p.remote }

// SetDeadline is part of net.Conn.
func (p *plainConn) SetDeadline(t time.Time) error {
	return errors.Join(p.SetReadDeadline(t), p.SetWriteDeadline(t))
}

// SetReadDeadline is part of net.Conn. A loop has its own clock and no use for
// it.
func (p *plainConn) SetReadDeadline(t time.Time) error {
	nc, err := p.conn()
	if err != nil {
		return err
	}
	return nc.SetReadDeadline(t)
}

// SetWriteDeadline is part of net.Conn. Set while a loop has the connection, it
// holds from when that gives it back.
func (p *plainConn) SetWriteDeadline(t time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = t
	if p.nc == nil {
		return nil
	}
	return p.nc.SetWriteDeadline(t)
}

// PeerIdentity is who is at the other end of a Unix socket; empty for TCP, and
// once a loop has it.
func (p *plainConn) PeerIdentity() string {
	nc, err := p.conn()
	if err != nil {
		return ""
	}
	if peer, ok := nc.(interface{ PeerIdentity() string }); ok {
		return peer.PeerIdentity()
	}
	return ""
}
