package listen

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
)

// closeGrace is how long the client may take to answer our close frame, and to
// take in what was sent before it.
const closeGrace = time.Second

// webSocketConn is a WebSocket as a stream of bytes. The library's own NetConn
// is not used: it drops the connection when a read deadline passes, and the
// DISCONNECT that the broker still wants to send with it. Here deadlines are
// those of the connection below, and the library is given contexts that never
// end.
type webSocketConn struct {
	raw     net.Conn
	e       *Endpoint
	opening opening
	proxied atomic.Bool
	ended   atomic.Bool // the connection below has no more to read

	message io.Reader // the message being read; belongs to the goroutine that reads

	writing sync.Mutex // held while a frame is written, and by Close

	mu     sync.Mutex
	ws     *websocket.Conn      // guarded by mu; nil before the upgrade
	closed bool                 // guarded by mu
	status websocket.StatusCode // guarded by mu; what Close says
	reason string               // guarded by mu
}

func (e *Endpoint) webSocket(nc net.Conn) *webSocketConn {
	c := &webSocketConn{raw: nc, e: e, status: websocket.StatusNormalClosure}
	c.opening.begin(nc, e.opts.handshakeTimeout())
	return c
}

// below is the connection as the library sees it.
type below struct {
	net.Conn
	c *webSocketConn
}

func (b below) Read(p []byte) (int, error) {
	n, err := b.Conn.Read(p)
	if errors.Is(err, io.EOF) {
		b.c.ended.Store(true)
	}
	return n, err
}

func (c *webSocketConn) socket() *websocket.Conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ws
}

// Read reads the payload of binary frames; the first call does the upgrade.
func (c *webSocketConn) Read(p []byte) (int, error) {
	ws := c.socket()
	if ws == nil {
		if err := c.upgrade(); err != nil {
			return 0, err
		}
		ws = c.socket()
	}
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if c.message == nil {
			kind, r, err := ws.Reader(context.Background())
			if err != nil {
				return 0, c.readError(err)
			}
			if kind != websocket.MessageBinary {
				// MQTT 5.0 §6 [MQTT-6.0.0-1].
				c.e.count.textFrames.Add(1)
				c.closeWith(websocket.StatusUnsupportedData, "MQTT is sent in binary frames")
				return 0, errors.New("a text frame")
			}
			c.message = r
		}
		n, err := c.message.Read(p)
		switch {
		case errors.Is(err, io.EOF): // of the message, or of the connection: then the next turn tells
			c.message = nil
			if n > 0 {
				return n, nil
			}
		case err != nil:
			return n, c.readError(err)
		case n > 0:
			return n, nil
		}
	}
}

// readError counts frames that should not be, and makes a close frame an end.
func (c *webSocketConn) readError(err error) error {
	switch {
	case websocket.CloseStatus(err) != -1:
		return io.EOF
	case c.ended.Load():
		// The library takes it for the end of the message.
		return io.ErrUnexpectedEOF
	case isTransport(err):
		return err
	}
	c.e.count.frameErrors.Add(1)
	c.closeWith(websocket.StatusProtocolError, "")
	return err
}

func (c *webSocketConn) closeWith(status websocket.StatusCode, reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status, c.reason = status, reason
}

// Write sends p as one binary frame.
func (c *webSocketConn) Write(p []byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	ws := c.socket()
	if ws == nil {
		return 0, errors.New("write before the WebSocket is open")
	}
	if err := ws.Write(context.Background(), websocket.MessageBinary, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Close sends a close frame, waits up to a second for the client's, so that it
// gets what was sent before, and closes the connection. It waits for nothing
// before the upgrade, while a write is stuck, or when called again.
func (c *webSocketConn) Close() error {
	c.mu.Lock()
	ws, again := c.ws, c.closed
	c.closed = true
	status, reason := c.status, c.reason
	c.mu.Unlock()
	if ws == nil || again {
		return c.raw.Close()
	}
	if !c.writing.TryLock() {
		return errors.Join(c.raw.Close(), ignoreClosed(ws.CloseNow()))
	}
	defer c.writing.Unlock()
	if err := c.SetDeadline(time.Now().Add(closeGrace)); err != nil {
		return errors.Join(ignoreClosed(err), ignoreClosed(ws.CloseNow()))
	}
	// Its errors say that the client did not say goodbye: the connection is
	// closed all the same.
	_ = ws.Close(status, reason)
	return nil
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// ConnectionState is that of the TLS connection below, if there is one.
func (c *webSocketConn) ConnectionState() tls.ConnectionState {
	if t, ok := c.raw.(*tlsConn); ok {
		return t.ConnectionState()
	}
	return tls.ConnectionState{}
}

// LocalAddr is the address of our end.
func (c *webSocketConn) LocalAddr() net.Addr { return c.raw.LocalAddr() }

// RemoteAddr is the address of the other end. When that is a proxy (its
// forwarding headers say so) the network of the address is "proxied": the
// client is not a process of this machine because its proxy is.
func (c *webSocketConn) RemoteAddr() net.Addr {
	if c.proxied.Load() {
		return proxiedAddr{c.raw.RemoteAddr()}
	}
	return c.raw.RemoteAddr()
}

type proxiedAddr struct{ net.Addr }

// Network is none that the broker takes for this machine's.
func (proxiedAddr) Network() string { return "proxied" }

// String is the address of the proxy.
func (p proxiedAddr) String() string { return p.Addr.String() + " (proxied)" }

// SetDeadline sets both deadlines.
func (c *webSocketConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline bounds reading, the upgrade included.
func (c *webSocketConn) SetReadDeadline(t time.Time) error { return c.opening.setRead(t) }

// SetWriteDeadline bounds writing.
func (c *webSocketConn) SetWriteDeadline(t time.Time) error { return c.opening.setWrite(t) }
