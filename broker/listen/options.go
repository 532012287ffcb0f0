package listen

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"
	"time"
)

// ClientCert says whether clients of a TLS listener show a certificate.
type ClientCert string

// What can be asked of clients. A certificate that is shown is always verified
// against the client CAs, and a client whose certificate is bad does not get in.
const (
	ClientCertNone     ClientCert = "none" // also when empty: none is asked for
	ClientCertOptional ClientCert = "optional"
	ClientCertRequired ClientCert = "required"
)

// Options are what an address does not say.
type Options struct {
	// CertFile holds the certificate shown to clients and its intermediates,
	// in PEM; tls:// and wss:// need it. The file is read again when it changes.
	CertFile string `toml:"cert_file"`
	// KeyFile holds the private key of that certificate, in PEM.
	KeyFile string `toml:"key_file"`
	// ClientCAFile holds the certificates that those of clients are verified
	// against, in PEM.
	ClientCAFile string `toml:"client_ca_file"`
	// ClientCert is "none", "optional" or "required".
	ClientCert ClientCert `toml:"client_cert"`
	// TLSMinVersion is "1.2" (also when empty) or "1.3".
	TLSMinVersion string `toml:"tls_min_version"`
	// WebSocketPaths are the paths of the HTTP request that ws:// and wss://
	// serve; none given are /mqtt and /.
	WebSocketPaths []string `toml:"websocket_paths"`
	// WebSocketOrigins are the web pages, beside those that come from the
	// same host and port, whose scripts may connect: "https://host:port", or a
	// host with or without port; * stands for any text within a host, "*" for
	// all pages. Only browsers tell an origin, other clients are not asked.
	// Without TLS the same host counts only if it is called by an address, by
	// localhost, by a name without dots or by this machine's own name:
	// anybody can make a name of theirs mean this machine's address.
	WebSocketOrigins []string `toml:"websocket_origins"`
	// SocketMode are the permissions of a Unix socket, octal; whoever may
	// write may connect. Empty leaves them to the umask.
	SocketMode string `toml:"socket_mode"`
	// SocketOwner is "user", "user:group" or ":group"; empty is us.
	SocketOwner string `toml:"socket_owner"`

	// HandshakeTimeout bounds TLS handshake and WebSocket upgrade, from the
	// accept; the broker's connect timeout. 0 means 10 s.
	HandshakeTimeout time.Duration `toml:"-"`
}

// DefaultOptions returns what suits tcp:// and unix://; the others need files.
func DefaultOptions() Options {
	return Options{
		ClientCert:     ClientCertNone,
		TLSMinVersion:  "1.2", // 1.3 shuts out devices with mbed TLS 2 and older
		WebSocketPaths: []string{"/mqtt", "/"},
		SocketMode:     "0660",
	}
}

// Validate names every key that does not go with the address.
func (o Options) Validate(a Address) error {
	var errs []error
	add := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("listener."+key+": "+format, args...))
	}
	o.validateTLS(a, add)
	if o.TLSMinVersion != "" && tlsVersions[o.TLSMinVersion] == 0 {
		add("tls_min_version", `%q is not "1.2" or "1.3"`, o.TLSMinVersion)
	}
	for _, p := range o.WebSocketPaths {
		if !strings.HasPrefix(p, "/") {
			add("websocket_paths", "%q does not start with /", p)
		}
	}
	for _, p := range o.WebSocketOrigins {
		if _, err := path.Match(p, ""); err != nil || p == "" {
			add("websocket_origins", "%q is not a host, scheme://host or *", p)
		}
	}
	if !a.WebSocket && len(o.WebSocketOrigins) > 0 {
		add("websocket_origins", "is for ws:// and wss:// only")
	}
	if _, err := o.mode(); err != nil {
		add("socket_mode", "%v", err)
	}
	if a.Network != "unix" && o.SocketOwner != "" {
		add("socket_owner", "is for unix:// only")
	}
	return errors.Join(errs...)
}

func (o Options) validateTLS(a Address, add func(key, format string, args ...any)) {
	files := []struct{ key, value string }{{"cert_file", o.CertFile}, {"key_file", o.KeyFile}}
	for _, f := range files {
		switch {
		case a.TLS && f.value == "":
			add(f.key, "is missing; TLS needs a certificate and its key")
		case !a.TLS && f.value != "":
			add(f.key, "is for tls:// and wss:// only")
		}
	}
	switch o.ClientCert {
	case "", ClientCertNone:
		if o.ClientCAFile != "" {
			add("client_ca_file", `is of no use with client_cert = "none"; say "optional" or "required"`)
		}
	case ClientCertOptional, ClientCertRequired:
		if !a.TLS {
			add("client_cert", "is for tls:// and wss:// only")
		} else if o.ClientCAFile == "" {
			add("client_ca_file", "is missing; client certificates are verified against it")
		}
	default:
		add("client_cert", "%q is not none, optional or required", string(o.ClientCert))
	}
}

var tlsVersions = map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13}

func (o Options) minVersion() uint16 {
	if v := tlsVersions[o.TLSMinVersion]; v != 0 {
		return v
	}
	return tls.VersionTLS12
}

func (o Options) clientAuth() tls.ClientAuthType {
	switch o.ClientCert {
	case ClientCertRequired:
		return tls.RequireAndVerifyClientCert
	case ClientCertOptional:
		return tls.VerifyClientCertIfGiven
	case ClientCertNone:
	}
	return tls.NoClientCert
}

// mode returns the permissions of a Unix socket; 0 leaves them as they are.
func (o Options) mode() (fs.FileMode, error) {
	if o.SocketMode == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(o.SocketMode, 8, 32)
	if err != nil || n == 0 || n > 0o777 {
		return 0, fmt.Errorf(`%q is not an octal mode such as "0660"`, o.SocketMode)
	}
	return fs.FileMode(n), nil
}

func (o Options) paths() []string {
	if len(o.WebSocketPaths) == 0 {
		return DefaultOptions().WebSocketPaths
	}
	return o.WebSocketPaths
}

func (o Options) handshakeTimeout() time.Duration {
	if o.HandshakeTimeout <= 0 {
		return 10 * time.Second
	}
	return o.HandshakeTimeout
}
