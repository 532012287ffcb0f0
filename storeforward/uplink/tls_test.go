package uplink

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/broker/packet"
)

// authority is a certificate authority for one test.
type authority struct {
	tb   testing.TB
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(tb testing.TB) *authority {
	tb.Helper()
	a := &authority{tb: tb, dir: tb.TempDir(), pool: x509.NewCertPool()}
	var der []byte
	a.cert = &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	a.key, der = a.sign(a.cert, nil, nil)
	a.write("ca.pem", "CERTIFICATE", der)
	a.cert, _ = x509.ParseCertificate(der)
	a.pool.AddCert(a.cert)
	return a
}

func (a *authority) sign(cert, by *x509.Certificate, with *ecdsa.PrivateKey) (*ecdsa.PrivateKey, []byte) {
	a.tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.tb.Fatal(err)
	}
	if by == nil {
		by, with = cert, key
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, by, &key.PublicKey, with)
	if err != nil {
		a.tb.Fatal(err)
	}
	return key, der
}

func (a *authority) write(name, kind string, der []byte) string {
	a.tb.Helper()
	path := filepath.Join(a.dir, name)
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		a.tb.Fatal(err)
	}
	return path
}

// issue makes a certificate for name; the files are its certificate and key.
func (a *authority) issue(name string) (pair tls.Certificate, certFile, keyFile string) {
	a.tb.Helper()
	key, der := a.sign(&x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert, a.key)
	b, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.tb.Fatal(err)
	}
	certFile = a.write(name+".pem", "CERTIFICATE", der)
	keyFile = a.write(name+".key", "PRIVATE KEY", b)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, certFile, keyFile
}

func TestTLS(t *testing.T) {
	tests := map[string]struct {
		change func(o *Options, a *authority)
		want   string // in the reason; empty: it connects
	}{
		"the authority's certificate": {func(o *Options, a *authority) { o.CAFile = filepath.Join(a.dir, "ca.pem") }, ""},
		"unknown authority":           {func(*Options, *authority) {}, "unknown authority"},
		"insecure, said so":           {func(o *Options, _ *authority) { o.Insecure = true }, ""},
		"another name": {func(o *Options, a *authority) {
			o.CAFile, o.ServerName = filepath.Join(a.dir, "ca.pem"), "other.test"
		}, "other.test"},
		"no file": {func(o *Options, _ *authority) { o.CAFile = "/does/not/exist" }, "uplink.ca_file"},
		"no certificate in it": {func(o *Options, a *authority) {
			o.CAFile = a.write("empty.pem", "NOTHING", nil)
		}, "holds no certificate"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			a := newAuthority(t)
			server, _, _ := a.issue("cloud.test")
			_, certFile, keyFile := a.issue("gw")
			l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{server}, ClientCAs: a.pool, ClientAuth: tls.RequireAndVerifyClientCert})
			if err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			wg.Go(func() {
				for nc, err := l.Accept(); err == nil; nc, err = l.Accept() {
					wg.Go(func() { politeCloud(nc) })
				}
			})
			t.Cleanup(func() { l.Close(); wg.Wait() })
			r := newRigWith(t, func(o *Options) {
				o.URL, o.CertFile, o.KeyFile = "mqtts://cloud.test", certFile, keyFile
				o.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
					return (&net.Dialer{}).DialContext(ctx, network, l.Addr().String())
				}
				tt.change(o, a)
			})
			var st Status
			for range 500 {
				if st = r.up.Status(); st.State == StateUp || st.Reason != "" {
					break
				}
				pass(10 * time.Millisecond)
			}
			if tt.want == "" && st.State != StateUp {
				t.Errorf("state %s reason %q, want up", st.State, st.Reason)
			}
			if tt.want != "" && !strings.Contains(st.Reason, tt.want) {
				t.Errorf("state %s reason %q, want %q in it", st.State, st.Reason, tt.want)
			}
		})
	}
}

// politeCloud welcomes and acknowledges.
func politeCloud(nc net.Conn) {
	defer nc.Close()
	answers := map[packet.Type]func(packet.Packet) packet.Packet{
		packet.TypeConnect: func(packet.Packet) packet.Packet { return &packet.Connack{} },
		packet.TypePublish: func(q packet.Packet) packet.Packet {
			return &packet.Puback{PacketID: q.(*packet.Publish).PacketID}
		},
	}
	for q, err := readPacket(nc, packet.V5); err == nil; q, err = readPacket(nc, packet.V5) {
		if answer := answers[q.Type()]; answer != nil {
			b, _ := answer(q).AppendTo(nil, packet.V5)
			nc.Write(b)
		}
	}
}
