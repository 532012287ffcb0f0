package listen

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"holdfast/broker/brokertest"
)

// childKey makes the test binary a child that socket activation is tried on.
const childKey = "HOLDFAST_LISTEN_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childKey) != "" {
		os.Exit(activatedChild())
	}
	goleak.VerifyTestMain(m)
}

// patience is how long a test waits for what must come.
const patience = 10 * time.Second

// authority is a certificate authority that lives as long as a test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string // its certificate, PEM
	pool *x509.CertPool
}

var serials atomic.Int64

func newAuthority(tb testing.TB, name string) *authority {
	tb.Helper()
	a := &authority{pool: x509.NewCertPool(), file: filepath.Join(tb.TempDir(), "ca.crt")}
	tmpl := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign,
	}
	var der []byte
	der, a.key = sign(tb, tmpl, nil)
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	a.cert = cert
	a.pool.AddCert(cert)
	writePEM(tb, a.file, "CERTIFICATE", der)
	return a
}

// sign makes a certificate of tmpl, valid for an hour unless it says otherwise.
func sign(tb testing.TB, tmpl *x509.Certificate, by *authority) ([]byte, *ecdsa.PrivateKey) {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	tmpl.SerialNumber = big.NewInt(serials.Add(1))
	if tmpl.NotAfter.IsZero() {
		tmpl.NotBefore, tmpl.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	}
	parent, signer := tmpl, key
	if by != nil {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, signer)
	if err != nil {
		tb.Fatal(err)
	}
	return der, key
}

func writePEM(tb testing.TB, name, kind string, der []byte) {
	tb.Helper()
	if err := os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		tb.Fatal(err)
	}
}

// files are a certificate and its key on disk.
type files struct{ cert, key string }

// issue writes a certificate signed by a to files in a folder of their own.
func (a *authority) issue(tb testing.TB, tmpl *x509.Certificate) files {
	tb.Helper()
	dir := tb.TempDir()
	f := files{filepath.Join(dir, "x.crt"), filepath.Join(dir, "x.key")}
	a.reissue(tb, f, tmpl)
	return f
}

func (a *authority) reissue(tb testing.TB, f files, tmpl *x509.Certificate) {
	tb.Helper()
	der, key := sign(tb, tmpl, a)
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		tb.Fatal(err)
	}
	writePEM(tb, f.cert, "CERTIFICATE", der)
	writePEM(tb, f.key, "EC PRIVATE KEY", keyDER)
}

func (f files) load(tb testing.TB) tls.Certificate {
	tb.Helper()
	c, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

func serverTemplate(name string) *x509.Certificate {
	return &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, DNSNames: []string{"localhost"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
}

func clientTemplate(name string) *x509.Certificate {
	return &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, DNSNames: []string{name + ".plant.example"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
}

// secured are options with a fresh certificate for localhost.
func (a *authority) secured(tb testing.TB, change ...func(*Options)) Options {
	tb.Helper()
	f := a.issue(tb, serverTemplate("gateway"))
	o := DefaultOptions()
	o.CertFile, o.KeyFile = f.cert, f.key
	for _, c := range change {
		c(&o)
	}
	return o
}

func logger(tb testing.TB) *slog.Logger {
	tb.Helper()
	return slog.New(slog.NewTextHandler(tb.Output(), nil))
}

// openEndpoint opens an address until the test ends.
func openEndpoint(tb testing.TB, address string, o Options) *Endpoint {
	tb.Helper()
	e, err := Open(tb.Context(), address, o, nil, logger(tb))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := e.Close(); err != nil {
			tb.Error(err)
		}
	})
	return e
}

// serve puts a broker behind the endpoint.
func serve(tb testing.TB, e *Endpoint) *brokertest.Broker {
	tb.Helper()
	b := brokertest.New(tb, nil)
	for _, l := range e.Listeners() {
		b.ServeOn(tb, l)
	}
	return b
}

func (e *Endpoint) addr() net.Addr { return e.listeners[0].Addr() }

// dial opens a connection to the socket below whatever the endpoint speaks.
func dial(tb testing.TB, e *Endpoint) net.Conn {
	tb.Helper()
	var d net.Dialer
	nc, err := d.DialContext(tb.Context(), e.addr().Network(), e.addr().String())
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { nc.Close() })
	if err := nc.SetDeadline(time.Now().Add(patience)); err != nil {
		tb.Fatal(err)
	}
	return nc
}

// accept takes one connection of the endpoint, without a broker, and closes it
// with the test.
func accept(tb testing.TB, e *Endpoint) net.Conn {
	tb.Helper()
	nc, err := e.listeners[0].Accept()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { nc.Close() })
	return nc
}

// handshake is a TLS client's part.
func handshake(tb testing.TB, e *Endpoint, config *tls.Config) (*tls.Conn, error) {
	tb.Helper()
	config = config.Clone()
	config.ServerName = "localhost"
	t := tls.Client(dial(tb, e), config)
	ctx, cancel := context.WithTimeout(tb.Context(), patience)
	defer cancel()
	return t, t.HandshakeContext(ctx)
}
