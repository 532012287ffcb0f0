package uplink

import (
	"bytes"
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
	"strings"
	"sync"
	"testing"
	"testing/synctest"
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
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().Add(24 * 365 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
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
	return a.issueFor(name, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
}

// issueFor is issue with the time it is valid.
func (a *authority) issueFor(name string, from, to time.Time) (pair tls.Certificate, certFile, keyFile string) {
	a.tb.Helper()
	key, der := a.sign(&x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: from, NotAfter: to,
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
		// A cloud that does not take our certificate may close before its alert
		// is read; one that is out of its time is named all the same.
		"ours has expired": {func(o *Options, a *authority) {
			o.CAFile = filepath.Join(a.dir, "ca.pem")
			_, o.CertFile, o.KeyFile = a.issueFor("old", time.Now().Add(-time.Hour), time.Now().Add(-time.Minute))
		}, "our certificate expired on "},
		"ours is of another authority": {func(o *Options, a *authority) {
			o.CAFile = filepath.Join(a.dir, "ca.pem")
			_, o.CertFile, o.KeyFile = newAuthority(a.tb).issue("gw")
		}, "the cloud refuses our certificate"},
		"the cloud wants ours": {func(o *Options, a *authority) {
			o.CAFile, o.CertFile, o.KeyFile = filepath.Join(a.dir, "ca.pem"), "", ""
		}, "the cloud wants a certificate of ours"},
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
			// What an attempt costs is counted, whatever became of it.
			if name == "unknown authority" && (st.BytesOut < 100 || st.BytesIn < 300) {
				t.Errorf("a handshake that failed took %d bytes out, %d in", st.BytesOut, st.BytesIn)
			}
			if tt.want != "" && !strings.Contains(st.Reason, tt.want) {
				t.Errorf("state %s reason %q, want %q in it", st.State, st.Reason, tt.want)
			}
		})
	}
}

// newTLSRig is newRig with a cloud that wants TLS with certificates on both
// sides; own is valid for that long.
func newTLSRig(t *testing.T, own time.Duration) (r *rig, a *authority, said *bytes.Buffer) {
	t.Helper()
	a = newAuthority(t)
	server, _, _ := a.issueFor("cloud.test", time.Now().Add(-time.Hour), time.Now().Add(300*24*time.Hour))
	_, certFile, keyFile := a.issueFor("gw", time.Now().Add(-time.Hour), time.Now().Add(own))
	c := newCloud()
	c.secure = &tls.Config{Certificates: []tls.Certificate{server}, ClientCAs: a.pool, ClientAuth: tls.RequireAndVerifyClientCert, Time: time.Now}
	said = &bytes.Buffer{}
	r = &rig{t: t, path: filepath.Join(t.TempDir(), "store.db"), opts: testOptions(), cloud: c, log: slog.New(slog.NewTextHandler(said, nil))}
	r.opts.URL, r.opts.CAFile, r.opts.CertFile, r.opts.KeyFile = "mqtts://cloud.test", filepath.Join(a.dir, "ca.pem"), certFile, keyFile
	r.opts.Dial, r.opts.KeepAlive = c.dial, 18*time.Hour
	r.start()
	t.Cleanup(r.end)
	return r, a, said
}

// A certificate renewed on disk is used by the next connection, without a
// reload.
func TestRenewedCertificateIsPickedUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, a, _ := newTLSRig(t, 30*24*time.Hour)
		shown := func(p *peer) time.Time {
			return p.nc.(*tls.Conn).ConnectionState().PeerCertificates[0].NotAfter
		}
		p := r.cloud.welcome(t, packet.Connack{})
		p.subscribed()
		first := shown(p)
		a.issueFor("gw", time.Now().Add(-time.Hour), time.Now().Add(60*24*time.Hour))
		p.cut()
		p = r.cloud.welcome(t, packet.Connack{SessionPresent: true})
		if second := shown(p); !second.After(first.Add(20 * 24 * time.Hour)) {
			t.Errorf("the cloud is shown the certificate until %v, and before until %v", second, first)
		}
	})
}

// The end of our certificate is warned of weeks before, in log and status, while
// the link is up; a renewal on disk ends the warning, a broken one is said.
func TestExpiryIsWarnedOfWhileUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const day = 24 * time.Hour
		r, a, said := newTLSRig(t, 25*day)
		p := r.cloud.welcome(t, packet.Connack{})
		p.subscribed()
		log := func() string {
			r.up.mu.Lock() // who logs does so without it, but after it
			defer r.up.mu.Unlock()
			return said.String()
		}
		synctest.Wait()
		st := r.up.Status()
		if st.OwnCertificate == nil || st.OwnCertificate.Subject != "gw" || st.OwnCertificate.Warning != "" || st.CloudCertificate == nil || st.CloudCertificate.Subject != "cloud.test" {
			t.Fatalf("own %+v cloud %+v", st.OwnCertificate, st.CloudCertificate)
		}
		pass(22 * day)
		synctest.Wait()
		if st := r.up.Status(); !strings.HasPrefix(st.OwnCertificate.Warning, "expires in 3 days") || st.State != StateUp || st.Connects != 1 {
			t.Errorf("warning %q, state %s, connects %d", st.OwnCertificate.Warning, st.State, st.Connects)
		}
		if n := strings.Count(log(), "whose=own subject=gw"); n < 3 || n > 4 {
			t.Errorf("%d lines in the log in three days, want one a day:\n%s", n, log())
		}
		a.issueFor("gw", time.Now().Add(-time.Hour), time.Now().Add(25*day))
		pass(certificateLook)
		synctest.Wait()
		if st := r.up.Status(); st.OwnCertificate.Warning != "" {
			t.Errorf("after the renewal: %q", st.OwnCertificate.Warning)
		}
		a.write("gw.pem", "CERTIFICATE", []byte("no certificate"))
		pass(day + certificateLook)
		synctest.Wait()
		if st := r.up.Status(); !strings.HasPrefix(st.OwnCertificate.Error, "uplink.cert_file: ") || st.OwnCertificate.Subject != "gw" || st.State != StateUp {
			t.Errorf("broken file: %+v, state %s", st.OwnCertificate, st.State)
		}
		if !strings.Contains(log(), "own certificate not usable") {
			t.Errorf("log:\n%s", log())
		}
	})
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
