package listen

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Endpoint is an open address: one socket, or several when systemd hands over
// several of one name.
type Endpoint struct {
	address   string
	opts      Options
	log       *slog.Logger
	listeners []net.Listener
	certs     *certificates // nil without TLS
	hostName  string

	count      counters
	complaints complaints
}

type counters struct {
	handshakes, handshakeFailures atomic.Uint64
	upgrades, upgradesRefused     atomic.Uint64
	textFrames, frameErrors       atomic.Uint64
}

// Status is a snapshot of an endpoint. Counters start at 0 when it is opened.
type Status struct {
	Address string `json:"address" metric:"label"`

	Handshakes        uint64 `json:"handshakes,omitempty"`         // TLS handshakes that succeeded
	HandshakeFailures uint64 `json:"handshake_failures,omitempty"` // refused certificates, timeouts, no TLS at all
	Upgrades          uint64 `json:"upgrades,omitempty"`           // to WebSocket
	UpgradesRefused   uint64 `json:"upgrades_refused,omitempty"`   // wrong path, origin or subprotocol, no HTTP, timeouts
	TextFrames        uint64 `json:"text_frames,omitempty"`        // connections that ended with one
	FrameErrors       uint64 `json:"frame_errors,omitempty"`       // connections that ended with a frame RFC 6455 forbids

	Certificate *CertificateStatus `json:"certificate,omitempty"`
}

// Open opens an address. in are the sockets from systemd, nil for none. The
// caller serves each of [Endpoint.Listeners] and closes them.
func Open(ctx context.Context, address string, o Options, in *Inherited, log *slog.Logger) (*Endpoint, error) {
	a, err := ParseAddress(address)
	if err != nil {
		return nil, fmt.Errorf("listener.address: %w", err)
	}
	if err := o.Validate(a); err != nil {
		return nil, err
	}
	e := &Endpoint{address: address, opts: o, log: log.With("component", "listener", "listener", address)}
	e.hostName, _ = os.Hostname() // without one, origins with a name do not count as ours
	if a.TLS {
		if e.certs, err = loadCertificates(o, e.log); err != nil {
			return nil, err
		}
	}
	raw, err := open(ctx, a, o, in)
	if err != nil {
		return nil, fmt.Errorf("listener.address: %w", err)
	}
	for _, l := range raw {
		e.listeners = append(e.listeners, e.wrap(a, l))
	}
	return e, nil
}

func open(ctx context.Context, a Address, o Options, in *Inherited) ([]net.Listener, error) {
	switch a.Network {
	case "systemd":
		return in.listeners(a.Place)
	case "unix":
		l, err := listenUnix(ctx, a.Place, o)
		if err != nil {
			return nil, err
		}
		return []net.Listener{l}, nil
	default:
		var lc net.ListenConfig
		l, err := lc.Listen(ctx, "tcp", a.Place)
		if err != nil {
			return nil, err
		}
		return []net.Listener{l}, nil
	}
}

// wrap puts what the address asks for on top of a socket. Plain TCP stays what
// it is.
func (e *Endpoint) wrap(a Address, l net.Listener) net.Listener {
	unix, isUnix := l.(*net.UnixListener)
	switch {
	case a.WebSocket && a.TLS:
		return &wrapped{l, func(nc net.Conn) net.Conn { return e.webSocket(e.secure(nc)) }}
	case a.WebSocket:
		return &wrapped{l, func(nc net.Conn) net.Conn { return e.webSocket(nc) }}
	case a.TLS:
		return &wrapped{l, func(nc net.Conn) net.Conn { return e.secure(nc) }}
	case isUnix:
		return &unixListener{unix}
	default:
		return l
	}
}

// wrapped is a listener whose connections have a handshake before them.
type wrapped struct {
	net.Listener
	wrap func(net.Conn) net.Conn // does not wait for the client
}

// Accept returns a connection whose handshake happens in its first Read.
func (w *wrapped) Accept() (net.Conn, error) {
	nc, err := w.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return w.wrap(nc), nil
}

// Listeners are the open sockets. Closing them ends the endpoint.
func (e *Endpoint) Listeners() []net.Listener { return e.listeners }

// Close closes all sockets; those that are closed are no error.
func (e *Endpoint) Close() error {
	var errs []error
	for _, l := range e.listeners {
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Status returns a snapshot.
func (e *Endpoint) Status() Status {
	n := &e.count
	st := Status{
		Address:    e.address,
		Handshakes: n.handshakes.Load(), HandshakeFailures: n.handshakeFailures.Load(),
		Upgrades: n.upgrades.Load(), UpgradesRefused: n.upgradesRefused.Load(),
		TextFrames: n.textFrames.Load(), FrameErrors: n.frameErrors.Load(),
	}
	if e.certs != nil {
		st.Certificate = e.certs.status()
	}
	return st
}

// complainEvery is how often an endpoint writes a line about clients that it
// could not let in: anybody can make it want to.
const complainEvery = 10 * time.Second

// complaints counts what is not logged.
type complaints struct {
	mu   sync.Mutex
	next time.Time // guarded by mu
	held uint64    // guarded by mu; lines left out since the last one
}

// due says whether a line may be written, and how many were left out before.
func (c *complaints) due(now time.Time) (held uint64, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now.Before(c.next) {
		c.held++
		return 0, false
	}
	held, c.held, c.next = c.held, 0, now.Add(complainEvery)
	return held, true
}

func (e *Endpoint) complain(step string, remote net.Addr, err error) {
	if held, ok := e.complaints.due(time.Now()); ok {
		e.log.Warn("handshake failed", "step", step, "remote", remote.String(), "err", err, "not_logged_before", held)
	}
}

// opening bounds a connection until its handshake is done. A deadline that its
// owner sets takes the place of ours.
type opening struct {
	nc   net.Conn
	mu   sync.Mutex
	r, w bool // guarded by mu; the owner has set the deadline
}

func (o *opening) begin(nc net.Conn, timeout time.Duration) {
	o.nc = nc
	_ = nc.SetDeadline(time.Now().Add(timeout)) // fails on a closed connection, which the first Read tells
}

func (o *opening) done() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.r {
		_ = o.nc.SetReadDeadline(time.Time{}) // as in begin
	}
	if !o.w {
		_ = o.nc.SetWriteDeadline(time.Time{}) // as in begin
	}
}

func (o *opening) setRead(t time.Time) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.r = true
	return o.nc.SetReadDeadline(t)
}

func (o *opening) setWrite(t time.Time) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.w = true
	return o.nc.SetWriteDeadline(t)
}
