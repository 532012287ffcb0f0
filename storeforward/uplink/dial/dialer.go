package dial

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"
)

// Path is one way to the cloud.
type Path struct {
	Target
	// Interface is the one to use; empty is any.
	Interface string
	// Rank is its place in the order of preference, 0 the best.
	Rank int
}

func (p Path) String() string {
	if p.Interface == "" {
		return p.Target.String()
	}
	return p.Target.String() + " via " + p.Interface
}

// Dialer opens connections. It may be used by several goroutines.
type Dialer struct {
	opts  Options
	proxy *url.URL // nil is none
	paths []Path
	// Spent, unless nil, is told what went over the wire in vain: for an
	// attempt that failed after TCP. Set before the first Dial.
	Spent func(in, out uint64)
	// lookup and connect are made for an interface; tests replace them.
	lookup  func(iface string) lookup
	connect func(iface string) connect

	mu    sync.Mutex
	known map[string][]netip.Addr // guarded by mu; by host and interface: addresses that have worked
}

// maxKnown bounds the hosts remembered: those of the configuration, and some
// that a cloud has referred to.
const maxKnown = 2 * maxURLs * maxInterfaces

// New makes a Dialer of options that are valid.
func New(o Options) *Dialer {
	d := &Dialer{opts: o, known: map[string][]netip.Addr{}}
	d.lookup, d.connect = d.opts.lookupThrough, d.opts.connectThrough
	if o.Proxy != "" {
		d.proxy, _ = url.Parse(o.Proxy)
	}
	interfaces := o.Interfaces
	if len(interfaces) == 0 {
		interfaces = []string{""}
	}
	// All ways to one address before the next address: the session is there.
	for _, u := range o.Addresses() {
		t, err := ParseTarget(u)
		if err != nil {
			continue // not valid
		}
		for _, name := range interfaces {
			d.paths = append(d.paths, Path{Target: t, Interface: name, Rank: len(d.paths)})
		}
	}
	return d
}

// Paths are the ways there are, the best first.
func (d *Dialer) Paths() []Path { return d.paths }

// Conn is a stream to the broker. It counts what goes over the wire, the bytes
// of proxy, TLS and WebSocket included, those of TCP and IP not.
type Conn struct {
	net.Conn
	wire *wire
	// Cloud is the certificate that the broker showed; nil without TLS.
	Cloud *Certificate
	// Own is the one we have ready for it; nil when there is none.
	Own *Certificate
}

// Wire returns the bytes so far.
func (c *Conn) Wire() (in, out uint64) { return c.wire.in.Load(), c.wire.out.Load() }

// CloseWrite says that nothing more comes.
func (c *Conn) CloseWrite() error {
	half, ok := c.Conn.(interface{ CloseWrite() error })
	if w, plain := c.Conn.(*wire); plain {
		half, ok = w.Conn.(interface{ CloseWrite() error })
	}
	if !ok {
		return errors.ErrUnsupported
	}
	return half.CloseWrite()
}

// wire counts.
type wire struct {
	net.Conn
	in, out atomic.Uint64
}

func (w *wire) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	w.in.Add(uint64(n))
	return n, err
}

func (w *wire) Write(b []byte) (int, error) {
	n, err := w.Conn.Write(b)
	w.out.Add(uint64(n))
	return n, err
}

// Dial opens the path; ctx bounds it.
func (d *Dialer) Dial(ctx context.Context, p Path) (*Conn, error) {
	var conf *tls.Config
	c := &Conn{}
	if p.TLS {
		var err error
		if conf, err = d.opts.tlsConfig(p.Host); err != nil {
			return nil, err // before anything costs traffic
		}
		if len(conf.Certificates) > 0 {
			c.Own = certificateOf(conf.Certificates[0].Leaf)
		}
	}
	raw, err := d.open(ctx, p)
	if err != nil {
		return nil, err
	}
	c.wire = &wire{Conn: raw}
	if c.Conn, err = d.layers(ctx, p, c, conf); err != nil {
		_ = raw.Close()
		if d.Spent != nil {
			d.Spent(c.Wire())
		}
		return nil, err
	}
	return c, nil
}

// layers puts proxy, TLS and WebSocket on the connection.
func (d *Dialer) layers(ctx context.Context, p Path, c *Conn, conf *tls.Config) (net.Conn, error) {
	var nc net.Conn = c.wire
	if d.proxy != nil {
		if err := d.opts.throughProxy(ctx, nc, d.proxy.Scheme, p.Target); err != nil {
			return nil, fmt.Errorf("proxy %s: %w", d.proxy.Host, err)
		}
	}
	if conf != nil {
		secure := tls.Client(nc, conf)
		if err := secure.HandshakeContext(ctx); err != nil {
			return nil, fmt.Errorf("TLS: %w", err)
		}
		if shown := secure.ConnectionState().PeerCertificates; len(shown) > 0 {
			c.Cloud = certificateOf(shown[0])
		}
		nc = secure
	}
	if p.webSocket() {
		ws, err := upgrade(ctx, nc, p.Target)
		if err != nil {
			return nil, fmt.Errorf("WebSocket: %w", err)
		}
		nc = ws
	}
	return nc, nil
}

// open connects to the broker, or to the proxy.
func (d *Dialer) open(ctx context.Context, p Path) (net.Conn, error) {
	host, port := p.Host, p.Port
	if d.proxy != nil {
		host, port = d.proxy.Hostname(), d.proxy.Port()
	}
	if d.opts.Dial != nil {
		return d.opts.Dial(ctx, "tcp", net.JoinHostPort(host, port))
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, err
	}
	r := race{host: host, port: uint16(number), lookup: d.lookup(p.Interface), connect: d.connect(p.Interface), known: d.remembered(host, p.Interface)}
	nc, addr, err := r.run(ctx)
	if err != nil {
		return nil, err
	}
	d.remember(host, p.Interface, addr)
	return nc, nil
}

func (d *Dialer) remembered(host, iface string) []netip.Addr {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.known[host+"%"+iface]
}

// remember keeps the addresses that worked last, the newest first.
func (d *Dialer) remember(host, iface string, addr netip.Addr) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.known) >= maxKnown {
		clear(d.known)
	}
	key := host + "%" + iface
	kept := []netip.Addr{addr}
	for _, a := range d.known[key] {
		if a != addr && len(kept) < maxAddresses/2 {
			kept = append(kept, a)
		}
	}
	d.known[key] = kept
}
