package dial

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"time"
)

// Values of Options.Failover.
const (
	FailoverPrimary    = "primary"     // the first address that answers, and back
	FailoverRoundRobin = "round_robin" // the next one after each failure
)

// Options say where the cloud is and how to get there. They are part of an
// uplink's.
type Options struct {
	// URL of the cloud's broker: mqtt://host[:1883] or tcp://host[:1883] in
	// the clear, mqtts://host[:8883] with TLS, ws://host[:80][/path] and
	// wss://host[:443][/path] as WebSocket, whose path is /mqtt unless given.
	// The name is looked up anew for every attempt.
	URL string `toml:"url"`
	// URLs are several of them in place of URL, most wanted first. Unless
	// they are known to share sessions, each change between them begins a new
	// one.
	URLs []string `toml:"urls"`
	// Failover is "primary" (each attempt begins with the first address, and
	// a connection to another goes back when a better one has been well for
	// ReturnAfter) or "round_robin" (each attempt begins with the next one).
	Failover string `toml:"failover"`
	// ReturnAfter is how long a better address or interface must have
	// answered before the connection moves back to it; 0 stays until the
	// connection breaks.
	ReturnAfter time.Duration `toml:"return_after"`

	// CAFile holds the certificates (PEM) the cloud's is checked against;
	// empty means those of the system. All files are read anew for every
	// connection, so that renewed ones are picked up.
	CAFile string `toml:"ca_file"`
	// CertFile and KeyFile are the gateway's own certificate (PEM).
	CertFile string `toml:"cert_file"`
	KeyFile  string `toml:"key_file"`
	// ServerName is the name the cloud's certificate must carry; empty means
	// the host of the URL.
	ServerName string `toml:"server_name"`
	// Insecure takes any certificate. Whoever is on the way can then read and
	// change everything: for trials only.
	Insecure bool `toml:"insecure"`
	// ALPN are the protocols offered inside TLS (RFC 7301), such as "mqtt" or,
	// for AWS IoT on port 443, "x-amzn-mqtt-ca".
	ALPN []string `toml:"alpn"`
	// PSK is refused: Go's TLS has no pre-shared keys. It is a key so that
	// who looks for it is told.
	PSK string `toml:"psk" secret:"true"`

	// Proxy is http://host:port (CONNECT) or socks5://host:port; it looks the
	// cloud's name up. Empty means none, whatever the environment says.
	Proxy string `toml:"proxy"`
	// ProxyUsername and ProxyPassword are for the proxy.
	ProxyUsername string `toml:"proxy_username"`
	ProxyPassword string `toml:"proxy_password" secret:"true"`

	// Interfaces are the network interfaces to use, most wanted first; empty
	// leaves it to the routing table. Linux 5.7 or CAP_NET_RAW.
	Interfaces []string `toml:"interfaces"`
	// SourceAddress is the address of ours to connect from; empty leaves it
	// to the kernel.
	SourceAddress string `toml:"source_address"`

	// TCPUserTimeout is how long what was sent may stay without the peer's
	// kernel confirming it before the connection is given up
	// (TCP_USER_TIMEOUT); 0 is the kernel's, many minutes.
	TCPUserTimeout time.Duration `toml:"tcp_user_timeout"`
	// TCPKeepAlive is the silence before the kernel probes, whole seconds; 0
	// leaves that to MQTT's keep alive, which costs no second traffic.
	TCPKeepAlive time.Duration `toml:"tcp_keep_alive"`
	// TCPNotSentLowat is how many bytes may wait in the kernel that it has
	// not sent yet (TCP_NOTSENT_LOWAT): what is urgent waits behind no more.
	// 0 is the kernel's.
	TCPNotSentLowat int `toml:"tcp_notsent_lowat"`

	// Dial replaces lookup, race and socket options; nil means those here.
	Dial func(ctx context.Context, network, address string) (net.Conn, error) `toml:"-" json:"-"`
}

// DefaultOptions returns the settings of who says only where the cloud is.
func DefaultOptions() Options {
	return Options{
		Failover:        FailoverPrimary,
		ReturnAfter:     5 * time.Minute,
		TCPUserTimeout:  time.Minute, // longer than the handover of a cellular modem, shorter than a shift
		TCPNotSentLowat: 16 << 10,    // two or three round trips of a slow cellular link
	}
}

const (
	maxURLs       = 16
	maxInterfaces = 8
)

// Addresses are the URLs in order of preference.
func (o *Options) Addresses() []string {
	if len(o.URLs) > 0 {
		return o.URLs
	}
	return []string{o.URL}
}

// Validate says what is wrong with o, naming the key under "uplink.".
func (o *Options) Validate() error {
	var errs []error
	fail := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("uplink.%s: "+format, append([]any{key}, args...)...))
	}
	secure := o.validateURLs(fail)
	if (o.CertFile == "") != (o.KeyFile == "") {
		fail("cert_file", "and key_file go together")
	}
	if !secure && (o.URL != "" || len(o.URLs) > 0) {
		for _, k := range []struct {
			key string
			set bool
		}{
			{"ca_file", o.CAFile != ""},
			{"cert_file", o.CertFile != ""},
			{"server_name", o.ServerName != ""},
			{"insecure", o.Insecure},
			{"alpn", len(o.ALPN) > 0},
		} {
			if k.set {
				fail(k.key, "means nothing without mqtts:// or wss:// in url")
			}
		}
	}
	for i, p := range o.ALPN {
		if p == "" || len(p) > 255 {
			fail(fmt.Sprintf("alpn[%d]", i), "is not 1 to 255 bytes long (RFC 7301 §3.1)")
		}
	}
	if o.PSK != "" {
		fail("psk", "pre-shared keys are not offered: Go's TLS does not have them; use certificates (cert_file, key_file)")
	}
	o.validateProxy(fail)
	o.validateSocket(fail)
	return errors.Join(errs...)
}

// validateURLs says whether any of them uses TLS.
func (o *Options) validateURLs(fail func(key, format string, args ...any)) (secure bool) {
	switch {
	case o.URL == "" && len(o.URLs) == 0:
		fail("url", "is missing; expected something like \"mqtts://broker.example.com:8883\"")
	case o.URL != "" && len(o.URLs) > 0:
		fail("urls", "goes without url: its first is the most wanted")
	case len(o.URLs) > maxURLs:
		fail("urls", "has %d addresses, more than %d", len(o.URLs), maxURLs)
	default:
		seen := map[string]bool{}
		for i, u := range o.Addresses() {
			key := "url"
			if len(o.URLs) > 0 {
				key = fmt.Sprintf("urls[%d]", i)
			}
			t, err := ParseTarget(u)
			if err != nil {
				fail(key, "%w", err)
				continue
			}
			if seen[t.Address()] {
				fail(key, "%s is in the list already", t.Address())
			}
			seen[t.Address()] = true
			secure = secure || t.TLS
		}
	}
	if o.Failover != FailoverPrimary && o.Failover != FailoverRoundRobin {
		fail("failover", "%q is not one of \"primary\", \"round_robin\"", o.Failover)
	}
	if o.ReturnAfter != 0 && (o.ReturnAfter < 10*time.Second || o.ReturnAfter > 24*time.Hour) {
		fail("return_after", "%v is outside 10s..24h0m0s", o.ReturnAfter)
	}
	return secure
}

func (o *Options) validateProxy(fail func(key, format string, args ...any)) {
	if o.Proxy == "" {
		if o.ProxyUsername != "" || o.ProxyPassword != "" {
			fail("proxy_username", "means nothing without proxy")
		}
		return
	}
	u, err := url.Parse(o.Proxy)
	switch {
	case err != nil:
		fail("proxy", "cannot be read as a URL")
	case u.Scheme == "https":
		fail("proxy", "TLS to the proxy itself is not offered; what goes through it may be mqtts:// or wss://")
	case u.Scheme != "http" && u.Scheme != "socks5":
		fail("proxy", "scheme %q is not one of http, socks5", u.Scheme)
	case u.User != nil:
		fail("proxy", "carries a user; use the keys proxy_username and proxy_password")
	case u.Hostname() == "" || u.Port() == "":
		fail("proxy", "is not http://host:port or socks5://host:port")
	case u.Path != "" && u.Path != "/", u.RawQuery != "", u.Fragment != "":
		fail("proxy", "has something behind the port")
	case u.Scheme == "socks5" && (len(o.ProxyUsername) > 255 || len(o.ProxyPassword) > 255):
		fail("proxy_username", "or proxy_password is longer than 255 bytes (RFC 1929 §2)")
	case o.ProxyPassword != "" && o.ProxyUsername == "":
		fail("proxy_password", "needs a proxy_username")
	}
}

func (o *Options) validateSocket(fail func(key, format string, args ...any)) {
	if len(o.Interfaces) > maxInterfaces {
		fail("interfaces", "has %d names, more than %d", len(o.Interfaces), maxInterfaces)
	}
	for i, name := range o.Interfaces {
		key := fmt.Sprintf("interfaces[%d]", i)
		switch {
		case name == "" || len(name) > 15: // IFNAMSIZ with its NUL
			fail(key, "%q is not the name of an interface (1 to 15 bytes)", name)
		case slices.Contains(o.Interfaces[:i], name):
			fail(key, "%s is in the list already", name)
		}
	}
	if o.SourceAddress != "" {
		if _, err := netip.ParseAddr(o.SourceAddress); err != nil {
			fail("source_address", "%q is not an IP address", o.SourceAddress)
		}
		if len(o.Interfaces) > 0 {
			fail("source_address", "goes without interfaces: each has addresses of its own")
		}
	}
	if o.TCPUserTimeout != 0 && (o.TCPUserTimeout < time.Second || o.TCPUserTimeout > time.Hour) {
		fail("tcp_user_timeout", "%v is outside 1s..1h0m0s", o.TCPUserTimeout)
	}
	if o.TCPKeepAlive != 0 && (o.TCPKeepAlive < time.Second || o.TCPKeepAlive > 9*time.Hour || o.TCPKeepAlive%time.Second != 0) {
		fail("tcp_keep_alive", "%v is not whole seconds within 1s..9h0m0s", o.TCPKeepAlive)
	}
	if o.TCPNotSentLowat != 0 && (o.TCPNotSentLowat < 1024 || o.TCPNotSentLowat > 1<<30) {
		fail("tcp_notsent_lowat", "%d is outside 1024..%d", o.TCPNotSentLowat, 1<<30)
	}
}
