package modbus

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Kinds of peers: the scheme of PeerOptions.Device.
const (
	PeerTCP    = "tcp"     // Modbus/TCP
	PeerUDP    = "udp"     // the same frames, one in a datagram
	PeerTLS    = "tls"     // Modbus/TCP Security
	PeerRTUTCP = "rtu+tcp" // RTU frames over TCP: a serial server that knows nothing of Modbus
)

// PeerOptions say how a device or gateway on the network is reached: one
// connection, shared by the units behind it. The zero value of a field but
// Device stands for its default, except where 0 has a meaning of its own.
type PeerOptions struct {
	// Device is the address: "tcp://HOST:PORT", "udp://…", "tls://…" or
	// "rtu+tcp://…". Without a port it is 502, for tls 802 (MODBUS/TCP
	// Security); rtu+tcp has none of its own.
	Device string `toml:"device"`
	// DialTimeout is how long a connection, with its TLS handshake, may take
	// to be made, and a request to be sent, 100ms to 1m.
	DialTimeout time.Duration `toml:"dial_timeout"`
	// TCPKeepAlive is the silence after which the kernel asks whether the
	// peer is still there, 1s to 2h.
	TCPKeepAlive time.Duration `toml:"tcp_keep_alive"`
	// IdleClose is how long a connection is kept open with nothing to ask: 0
	// for ever, else 1s to 24h. The next request opens another.
	IdleClose time.Duration `toml:"idle_close"`
	// Pipeline is how many requests may be under way at once, 1 to 16. More
	// than 1 is for peers that promise it (MODBUS Messaging on TCP/IP V1.0b
	// §4.3.1 "NumberMaxOfServerTransaction"): others drop what they cannot hold.
	Pipeline int `toml:"pipeline"`

	// CAFile holds the certificates (PEM) the peer's is checked against;
	// empty means the system's.
	CAFile string `toml:"ca_file"`
	// CertFile and KeyFile are our certificate (PEM), with the role for which
	// the peer lets us in, if it wants one (MODBUS/TCP Security V2.1 §8).
	CertFile string `toml:"cert_file"`
	KeyFile  string `toml:"key_file"`
	// ServerName is the name expected in the peer's certificate; empty means
	// the host of Device.
	ServerName string `toml:"server_name"`
	// Insecure skips the check of the peer's certificate.
	Insecure bool `toml:"insecure"`
}

// DefaultPeerOptions hold for a peer of which nothing is known.
func DefaultPeerOptions() PeerOptions {
	return PeerOptions{DialTimeout: 5 * time.Second, TCPKeepAlive: 15 * time.Second, Pipeline: 1}
}

// PeerKind returns the kind of peer that device names, "" when it is not the
// address of a peer but a serial port.
func PeerKind(device string) string {
	scheme, _, ok := strings.Cut(device, "://")
	if !ok {
		return ""
	}
	return scheme
}

// peerKeys are the keys that mean something to a kind of peer, besides device.
var peerKeys = map[string][]string{
	PeerTCP:    {"dial_timeout", "tcp_keep_alive", "idle_close", "pipeline"},
	PeerUDP:    {"pipeline"},
	PeerTLS:    {"dial_timeout", "tcp_keep_alive", "idle_close", "pipeline", "ca_file", "cert_file", "key_file", "server_name", "insecure"},
	PeerRTUTCP: {"dial_timeout", "tcp_keep_alive", "silence", "change_pause", "warm_up"},
}

// PeerKeys returns the keys of [PeerOptions] and [Options] that mean something
// to a kind of peer; nil for a kind there is not.
func PeerKeys(kind string) []string { return peerKeys[kind] }

// peerAddress splits the address of a peer.
func peerAddress(device string) (kind, host, addr string, err error) {
	kind, addr, _ = strings.Cut(device, "://")
	if peerKeys[kind] == nil {
		return "", "", "", fmt.Errorf("%q is no address of a peer, want tcp://, udp://, tls:// or rtu+tcp://", device)
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil && !strings.Contains(strings.Trim(addr, "[]"), "]") {
		host, port = strings.Trim(addr, "[]"), map[string]string{PeerTCP: "502", PeerUDP: "502", PeerTLS: "802"}[kind]
	}
	n, perr := strconv.ParseUint(port, 10, 16)
	switch {
	case host == "" || strings.ContainsAny(host, "/ @?#") || strings.Contains(host, ":") && net.ParseIP(strings.Split(host, "%")[0]) == nil:
		return "", "", "", fmt.Errorf("%q names no host, want %s://HOST:PORT", device, kind)
	case perr != nil || n == 0:
		return "", "", "", fmt.Errorf("%q names no port within 1..65535", device)
	}
	return kind, host, net.JoinHostPort(host, port), nil
}

// Validate reports the first value out of range, or that means nothing to this
// kind of peer, naming its key.
func (o PeerOptions) Validate() error {
	kind, _, _, err := peerAddress(o.Device)
	if err != nil {
		return fmt.Errorf("device: %w", err)
	}
	def := DefaultPeerOptions()
	for _, k := range []struct {
		key string
		set bool
	}{
		{"dial_timeout", o.DialTimeout != 0 && o.DialTimeout != def.DialTimeout},
		{"tcp_keep_alive", o.TCPKeepAlive != 0 && o.TCPKeepAlive != def.TCPKeepAlive},
		{"idle_close", o.IdleClose != 0},
		{"pipeline", o.Pipeline > 1},
		{"ca_file", o.CAFile != ""},
		{"cert_file", o.CertFile != ""},
		{"key_file", o.KeyFile != ""},
		{"server_name", o.ServerName != ""},
		{"insecure", o.Insecure},
	} {
		if k.set && !slices.Contains(peerKeys[kind], k.key) {
			return fmt.Errorf("%s: means nothing to a %s:// peer", k.key, kind)
		}
	}
	switch {
	case o.DialTimeout != 0 && (o.DialTimeout < 100*time.Millisecond || o.DialTimeout > time.Minute):
		return fmt.Errorf("dial_timeout: %v is outside 100ms..1m", o.DialTimeout)
	case o.TCPKeepAlive != 0 && (o.TCPKeepAlive < time.Second || o.TCPKeepAlive > 2*time.Hour):
		return fmt.Errorf("tcp_keep_alive: %v is outside 1s..2h", o.TCPKeepAlive)
	case o.IdleClose != 0 && (o.IdleClose < time.Second || o.IdleClose > 24*time.Hour):
		return fmt.Errorf("idle_close: %v is neither 0s nor within 1s..24h", o.IdleClose)
	case o.Pipeline < 0 || o.Pipeline > maxPipeline:
		return fmt.Errorf("pipeline: %d is outside 1..%d", o.Pipeline, maxPipeline)
	case o.CertFile == "" && o.KeyFile != "":
		return errors.New("cert_file: is missing beside key_file")
	case o.CertFile != "" && o.KeyFile == "":
		return errors.New("key_file: is missing beside cert_file")
	}
	return nil
}

// Warnings returns what is allowed and yet likely to end in trouble.
func (o PeerOptions) Warnings() []string {
	if o.Insecure {
		return []string{"insecure: whoever answers at this address is taken for the device"}
	}
	return nil
}

// maxPipeline is the most requests under way at once: what the specification
// suggests a server should hold (MODBUS Messaging on TCP/IP V1.0b §4.3.1).
const maxPipeline = 16

// Peer is the line to a device or gateway on the network.
type Peer struct {
	opts PeerOptions
	kind string
	host string
	addr string
	call func(ctx context.Context, network, addr string) (net.Conn, error)
}

// NewPeer returns the line to the peer. It connects when the bus does.
func NewPeer(o PeerOptions) (*Peer, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	def := DefaultPeerOptions()
	if o.DialTimeout == 0 {
		o.DialTimeout = def.DialTimeout
	}
	if o.TCPKeepAlive == 0 {
		o.TCPKeepAlive = def.TCPKeepAlive
	}
	o.Pipeline = max(o.Pipeline, 1)
	// What is asked is small and must not wait for more: Go sets TCP_NODELAY.
	p := &Peer{opts: o, call: (&net.Dialer{KeepAlive: o.TCPKeepAlive}).DialContext}
	var err error
	p.kind, p.host, p.addr, err = peerAddress(o.Device)
	return p, err
}

// Wait returns at once: whether a peer is there shows when it is called.
func (p *Peer) Wait(ctx context.Context) error { return ctx.Err() }

// Open connects to a peer of kind rtu+tcp, over which a bus speaks as over a
// serial line.
func (p *Peer) Open(ctx context.Context) (Wire, error) {
	if p.kind != PeerRTUTCP {
		return nil, fmt.Errorf("a %s:// peer is no serial line", p.kind)
	}
	return openSocketWire(ctx, p)
}

// openTransport connects.
func (p *Peer) openTransport(ctx context.Context, o Options, wake <-chan struct{}) (transport, error) {
	if p.kind == PeerRTUTCP {
		w, err := p.Open(ctx)
		if err != nil {
			return nil, err
		}
		return newLink(w, o, time.Now()), nil
	}
	return openSession(ctx, p, wake)
}

// dial makes a connection, ready to be used.
func (p *Peer) dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, p.opts.DialTimeout)
	defer cancel()
	network := "tcp"
	if p.kind == PeerUDP {
		network = "udp"
	}
	c, err := p.call(ctx, network, p.addr)
	if err != nil || p.kind != PeerTLS {
		return c, err
	}
	conf, err := p.tlsConfig()
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	secure := tls.Client(c, conf)
	if err := secure.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("TLS handshake with %s: %w", p.addr, plainTLS(err, time.Now())), c.Close())
	}
	return secure, nil
}

// tlsConfig reads the certificates anew each time, so that renewed ones are
// used. TLS 1.2 is the least (MODBUS/TCP Security V2.1 R-01).
func (p *Peer) tlsConfig() (*tls.Config, error) {
	conf := &tls.Config{
		MinVersion: tls.VersionTLS12, ServerName: p.host,
		InsecureSkipVerify: p.opts.Insecure, //nolint:gosec // the operator's choice, with a warning
	}
	if p.opts.ServerName != "" {
		conf.ServerName = p.opts.ServerName
	}
	if p.opts.CAFile != "" {
		pem, err := os.ReadFile(p.opts.CAFile)
		if err != nil {
			return nil, fmt.Errorf("ca_file: %w", err)
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("ca_file: %s holds no certificate in PEM", p.opts.CAFile)
		}
	}
	if p.opts.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(p.opts.CertFile, p.opts.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("cert_file, key_file: %w", err)
		}
		conf.Certificates = []tls.Certificate{pair}
	}
	return conf, nil
}

// plainTLS says plainly when it is our clock that is wrong.
func plainTLS(err error, now time.Time) error {
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired &&
		invalid.Cert != nil && now.Before(invalid.Cert.NotBefore) {
		return fmt.Errorf("the clock of this machine (%s) is before the certificate's start date (%s): %w",
			now.UTC().Format(time.DateOnly), invalid.Cert.NotBefore.UTC().Format(time.DateOnly), err)
	}
	return err
}
