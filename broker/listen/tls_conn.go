package listen

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"time"
)

// tlsConn is a connection whose TLS handshake happens in its first Read.
type tlsConn struct {
	*tls.Conn

	e       *Endpoint
	opening opening
	shaken  bool // belongs to the goroutine that reads
}

func (e *Endpoint) secure(nc net.Conn) *tlsConn {
	c := &tlsConn{Conn: tls.Server(nc, e.certs.server), e: e}
	c.opening.begin(c.Conn, e.opts.handshakeTimeout())
	return c
}

// Read reads what the client sends; the first call does the handshake.
func (c *tlsConn) Read(p []byte) (int, error) {
	if !c.shaken {
		// The deadlines bound it: the owner of the connection moves them.
		if err := c.HandshakeContext(context.Background()); err != nil {
			c.e.count.handshakeFailures.Add(1)
			if !errors.Is(err, io.EOF) { // somebody looked whether the port is open
				c.e.complain("TLS handshake", c.RemoteAddr(), err)
			}
			return 0, err
		}
		c.shaken = true
		c.e.count.handshakes.Add(1)
		c.opening.done()
	}
	return c.Conn.Read(p)
}

// SetDeadline sets both deadlines.
func (c *tlsConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline bounds reading, the handshake included.
func (c *tlsConn) SetReadDeadline(t time.Time) error { return c.opening.setRead(t) }

// SetWriteDeadline bounds writing, the handshake included. As with every TLS
// connection, a write that it cuts short is the last one.
func (c *tlsConn) SetWriteDeadline(t time.Time) error { return c.opening.setWrite(t) }
