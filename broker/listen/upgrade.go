package listen

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/coder/websocket"
)

// maxHeader bounds the HTTP request in bytes: a browser with a few cookies and
// a token needs 2 to 4 kB.
const maxHeader = 8 << 10

// The buffers of a WebSocket connection, in bytes: what is read at once, for
// the headers of small frames, and what is written at once.
const (
	readBuffer  = 1 << 10
	writeBuffer = 2 << 10
)

// The subprotocols, the better one first (MQTT 5.0 §6 [MQTT-6.0.0-3]; MQTT 3.1
// has no chapter on WebSocket, its clients made the name up).
var subprotocols = []string{"mqtt", "mqttv3.1"}

// upgrade reads the HTTP request and answers it (RFC 6455 §4.2).
func (c *webSocketConn) upgrade() (err error) {
	defer func() {
		if err != nil {
			c.e.count.upgradesRefused.Add(1)
			if !errors.Is(err, io.EOF) {
				c.e.complain("WebSocket upgrade", c.raw.RemoteAddr(), err)
			}
		}
	}()
	limited := &io.LimitedReader{R: c.raw, N: maxHeader}
	in := bufio.NewReaderSize(limited, readBuffer)
	w := &answer{header: http.Header{}, nc: below{c.raw, c}, rw: bufio.NewReadWriter(in, bufio.NewWriterSize(c.raw, writeBuffer))}
	r, err := http.ReadRequest(in)
	switch {
	case err == nil:
	case limited.N <= 0:
		return w.refuse(http.StatusRequestHeaderFieldsTooLarge, fmt.Sprintf("the request has more than %d bytes", maxHeader))
	case isTransport(err):
		return fmt.Errorf("read request: %w", err)
	default:
		return w.refuse(http.StatusBadRequest, "this is no HTTP request")
	}
	secure := false
	if t, ok := c.raw.(interface{ ConnectionState() tls.ConnectionState }); ok {
		secure = t.ConnectionState().HandshakeComplete
	}
	if status, reason := c.e.checkRequest(r, secure); reason != "" {
		return w.refuse(status, reason)
	}
	ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{
		Subprotocols:       subprotocols,
		InsecureSkipVerify: true, // the origin: checkRequest has looked at it, and is stricter
		CompressionMode:    websocket.CompressionDisabled,
	})
	if err != nil {
		return errors.Join(err, w.rw.Flush())
	}
	// Frames are streamed: how large a packet may be is the broker's to say,
	// and a frame can have any length.
	ws.SetReadLimit(-1)
	c.proxied.Store(isProxied(r.Header))
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return errors.Join(net.ErrClosed, ws.CloseNow())
	}
	c.ws = ws
	c.e.count.upgrades.Add(1)
	c.opening.done()
	return nil
}

// checkRequest looks at what the WebSocket library does not, and returns how to
// refuse it. It leaves the one subprotocol to choose in the request.
func (e *Endpoint) checkRequest(r *http.Request, secure bool) (status int, reason string) {
	switch {
	case r.Host == "":
		return http.StatusBadRequest, "the Host header is missing" // RFC 6455 §4.2.1
	case r.ContentLength != 0 || len(r.TransferEncoding) > 0:
		// A body would be read as frames.
		return http.StatusBadRequest, "the request has a body"
	case !slices.Contains(e.opts.paths(), r.URL.Path):
		return http.StatusNotFound, fmt.Sprintf("nothing is served at %q", r.URL.Path)
	case len(r.Header["Origin"]) > 1 || !e.allowsOrigin(r.Header.Get("Origin"), r.Host, secure):
		return http.StatusForbidden, fmt.Sprintf("origin %q is not in websocket_origins", r.Header.Get("Origin"))
	case r.Header.Get("Upgrade") == "":
		return 0, "" // the library says what is missing (426)
	}
	offered := strings.Split(strings.Join(r.Header.Values("Sec-WebSocket-Protocol"), ","), ",")
	for _, name := range subprotocols {
		// Letters count: the name that is returned must be "mqtt", as it
		// stands (MQTT 5.0 §6 [MQTT-6.0.0-4]).
		if slices.ContainsFunc(offered, func(o string) bool { return strings.TrimSpace(o) == name }) {
			r.Header.Set("Sec-WebSocket-Protocol", name)
			return 0, ""
		}
	}
	return http.StatusBadRequest, `the WebSocket subprotocol "mqtt" is not offered`
}

// allowsOrigin says whether scripts of a page from origin may connect; without
// an origin there is no page (RFC 6455 §10.2).
func (e *Endpoint) allowsOrigin(origin, host string, secure bool) bool {
	if origin == "" {
		return true
	}
	u, err := url.Parse(origin)
	if err != nil {
		return false
	}
	from := strings.ToLower(u.Host)
	if from != "" && strings.EqualFold(from, host) && (secure || e.isOwnName(u.Hostname())) {
		return true
	}
	for _, pattern := range e.opts.WebSocketOrigins {
		pattern = strings.ToLower(pattern)
		target := from
		if strings.Contains(pattern, "://") {
			target = strings.ToLower(u.Scheme) + "://" + from
		}
		if ok, err := path.Match(pattern, target); pattern == "*" || err == nil && ok && from != "" {
			return true
		}
	}
	return false
}

// isOwnName says whether a name cannot belong to somebody who points it at us:
// a page from evil.example may be told that evil.example is 127.0.0.1, and would
// then be of the same host as we are (DNS rebinding). With TLS the certificate
// stands against it.
func (e *Endpoint) isOwnName(name string) bool {
	if _, err := netip.ParseAddr(name); err == nil {
		return true
	}
	return !strings.Contains(name, ".") || strings.EqualFold(name, e.hostName)
}

// isProxied says whether somebody else's connection is in this one.
func isProxied(h http.Header) bool {
	for _, key := range []string{"Forwarded", "X-Forwarded-For", "X-Real-Ip", "Via"} {
		if len(h[key]) > 0 {
			return true
		}
	}
	return false
}

// isTransport tells a connection that failed from bytes that make no sense.
func isTransport(err error) bool {
	_, operation := errors.AsType[*net.OpError](err)
	return operation || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, net.ErrClosed) || errors.Is(err, context.DeadlineExceeded)
}

// answer is the http.ResponseWriter of one request, without a server around it:
// the connection has its goroutine already.
type answer struct {
	header http.Header
	nc     net.Conn
	rw     *bufio.ReadWriter
	wrote  bool
}

// Header is what the answer will say.
func (a *answer) Header() http.Header { return a.header }

// WriteHeader begins the answer.
func (a *answer) WriteHeader(status int) {
	if a.wrote {
		return
	}
	a.wrote = true
	if status != http.StatusSwitchingProtocols {
		a.header.Set("Connection", "close")
	}
	// Errors stay in the writer and come out of Flush.
	fmt.Fprintf(a.rw, "HTTP/1.1 %03d %s\r\n", status, http.StatusText(status))
	_ = a.header.Write(a.rw)
	fmt.Fprint(a.rw, "\r\n")
}

// Write adds to the text of a refusal.
func (a *answer) Write(b []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	return a.rw.Write(b)
}

// Hijack gives the connection to the library, after the 101 has gone out.
func (a *answer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	if err := a.rw.Flush(); err != nil {
		return nil, nil, err
	}
	return a.nc, a.rw, nil
}

// refuse answers with a status and returns it as an error.
func (a *answer) refuse(status int, reason string) error {
	http.Error(a, reason, status)
	return errors.Join(fmt.Errorf("%d: %s", status, reason), a.rw.Flush())
}
