package modbus

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/adapters/health"
	"holdfast/adapters/modbus/modbustest"
)

// roleOID marks the role of a client in its certificate (MODBUS/TCP Security
// V2.1 §8.2).
var roleOID = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 50316, 802, 1}

// certificates is an authority with what it has signed, as files.
type certificates struct {
	tb     testing.TB
	dir    string
	key    *ecdsa.PrivateKey
	ca     *x509.Certificate
	caFile string
	pool   *x509.CertPool
}

func newCertificates(tb testing.TB) *certificates {
	tb.Helper()
	c := &certificates{tb: tb, dir: tb.TempDir()}
	c.caFile, _ = c.issue("ca", time.Now().Add(-time.Hour), "")
	pair := c.read(c.caFile)
	var err error
	if c.ca, err = x509.ParseCertificate(pair); err != nil {
		tb.Fatal(err)
	}
	c.pool = x509.NewCertPool()
	c.pool.AddCert(c.ca)
	return c
}

func (c *certificates) read(file string) []byte {
	text, err := os.ReadFile(file)
	if err != nil {
		c.tb.Fatal(err)
	}
	block, _ := pem.Decode(text)
	return block.Bytes
}

// issue writes a certificate for 127.0.0.1, with a role if that is not empty.
func (c *certificates) issue(name string, from time.Time, role string) (certFile, keyFile string) {
	c.tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		c.tb.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: from, NotAfter: from.Add(24 * time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if role != "" {
		value, err := asn1.MarshalWithParams(role, "utf8")
		if err != nil {
			c.tb.Fatal(err)
		}
		template.ExtraExtensions = []pkix.Extension{{Id: roleOID, Value: value}}
	}
	parent, signer := c.ca, c.key
	if parent == nil {
		template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign
		parent, signer, c.key = template, key, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		c.tb.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		c.tb.Fatal(err)
	}
	certFile, keyFile = filepath.Join(c.dir, name+".pem"), filepath.Join(c.dir, name+".key")
	for file, block := range map[string]*pem.Block{
		certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: keyDER},
	} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			c.tb.Fatal(err)
		}
	}
	return certFile, keyFile
}

// runPeer polls d at the peer until the test ends.
func runPeer(tb testing.TB, po PeerOptions, d Device) (*Bus, *collector) {
	tb.Helper()
	p, err := NewPeer(po)
	if err != nil {
		tb.Fatal(err)
	}
	o := DefaultOptions()
	o.WarmUp, o.Devices = 0, []Device{d}
	sink := newCollector()
	log := slog.New(slog.DiscardHandler)
	b, err := New("plc", o, p, sink, health.NewMonitor(func(health.Change) {}), log)
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil { // what the supervisor does, without its pauses
			_ = b.Run(ctx)
			select {
			case <-ctx.Done():
			case <-time.After(10 * time.Millisecond):
			}
		}
	}()
	tb.Cleanup(func() { cancel(); <-done })
	return b, sink
}

// serveNet runs a slave on loopback and returns its address.
func serveNet(tb testing.TB, s *modbustest.Slave, scheme string, conf *tls.Config) (address string) {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	var lc net.ListenConfig
	if scheme == PeerUDP {
		pc, err := lc.ListenPacket(ctx, "udp", "127.0.0.1:0")
		if err != nil {
			tb.Fatal(err)
		}
		address = pc.LocalAddr().String()
		go func() { done <- s.ServeUDP(ctx, pc) }()
	} else {
		ln, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			tb.Fatal(err)
		}
		address = ln.Addr().String()
		if conf != nil {
			ln = tls.NewListener(ln, conf)
		}
		go func() { done <- s.ServeTCP(ctx, ln) }()
	}
	tb.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			tb.Errorf("slave: %v", err)
		}
	})
	return scheme + "://" + address
}

// Every kind of peer on real sockets, with answers that are split and lost and
// connections that are reset in the middle.
func TestPeersOnLoopback(t *testing.T) {
	certs := newCertificates(t)
	serverCert, serverKey := certs.issue("server", time.Now().Add(-time.Hour), "")
	clientCert, clientKey := certs.issue("client", time.Now().Add(-time.Hour), "Operator")
	pair, err := tls.LoadX509KeyPair(serverCert, serverKey)
	if err != nil {
		t.Fatal(err)
	}
	role := make(chan string, 100)
	conf := &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: certs.pool,
		VerifyConnection: func(cs tls.ConnectionState) error {
			for _, e := range cs.PeerCertificates[0].Extensions {
				if e.Id.Equal(roleOID) {
					role <- string(e.Value[2:])
				}
			}
			return nil
		},
	}
	for _, scheme := range []string{PeerTCP, PeerUDP, PeerTLS, PeerRTUTCP} {
		t.Run(scheme, func(t *testing.T) {
			framing, tlsConf := modbustest.TCP, (*tls.Config)(nil)
			if scheme == PeerRTUTCP {
				framing = modbustest.RTU
			}
			if scheme == PeerTLS {
				tlsConf = conf
			}
			s := modbustest.New(modbustest.Options{Framing: framing})
			u := s.Unit(7)
			u.SetHolding(3, 0xfff6, 1)
			u.SetCoil(0, true)
			n := 0
			u.FaultFunc(func(modbustest.Request) (f modbustest.Fault) {
				n++
				switch {
				case n%8 == 5:
					f.SplitAfter, f.SplitPause = 4, 10*time.Millisecond
				case n == 7 && scheme != PeerRTUTCP:
					f.Silent = true
				case n%20 == 13 && scheme != PeerUDP:
					f.Hangup, f.SplitAfter = true, 3
				case n%20 == 19:
					f.Twice = true
				}
				if scheme == PeerUDP {
					f.SplitAfter = 0 // datagrams are not split
				}
				return f
			})
			d := DefaultDevice()
			d.Name, d.Unit, d.Every, d.Timeout = "plc", 7, 10*time.Millisecond, 200*time.Millisecond
			d.Points = []Point{{Name: "t", Register: "holding:3", Type: "int16", Scale: 0.1}, {Name: "on", Register: "coil:0"}}
			po := DefaultPeerOptions()
			po.Device = serveNet(t, s, scheme, tlsConf)
			if scheme == PeerTLS {
				po.CAFile, po.CertFile, po.KeyFile = certs.caFile, clientCert, clientKey
			}
			b, sink := runPeer(t, po, d)
			sink.wait(t, 40, func(m string) bool { return strings.HasPrefix(m, `sensors/plc/t {"value":-1,"quality":"good"`) })
			sink.wait(t, 20, func(m string) bool { return strings.HasPrefix(m, `sensors/plc/on {"value":true,"quality":"good"`) })
			st := b.Status()
			if scheme != PeerUDP && scheme != PeerRTUTCP && st.BrokenConnections == 0 {
				t.Errorf("no connection was broken: %+v", st)
			}
			if scheme == PeerTLS {
				if got := <-role; got != "Operator" {
					t.Errorf("role = %q, want Operator", got)
				}
			}
		})
	}
}

// A peer that cannot be verified is not spoken to, and the reason is said.
func TestTLSIsVerified(t *testing.T) {
	certs, others := newCertificates(t), newCertificates(t)
	clientCert, clientKey := certs.issue("client", time.Now().Add(-time.Hour), "")
	for name, tt := range map[string]struct {
		change func(*PeerOptions)
		from   time.Time
		want   string // empty: it works
	}{
		"right":                 {func(*PeerOptions) {}, time.Now().Add(-time.Hour), ""},
		"another authority":     {func(o *PeerOptions) { o.CAFile = others.caFile }, time.Now().Add(-time.Hour), "certificate signed by unknown authority"},
		"another name":          {func(o *PeerOptions) { o.ServerName = "plc.example" }, time.Now().Add(-time.Hour), "match plc.example"},
		"not verified, as told": {func(o *PeerOptions) { o.CAFile, o.ServerName, o.Insecure = "", "plc.example", true }, time.Now().Add(-time.Hour), ""},
		"our clock is behind":   {func(*PeerOptions) {}, time.Now().Add(time.Hour), "the clock of this machine"},
		"expired":               {func(*PeerOptions) {}, time.Now().Add(-48 * time.Hour), "expired"},
		"no file":               {func(o *PeerOptions) { o.CAFile = "/nowhere" }, time.Now().Add(-time.Hour), "ca_file: open /nowhere"},
		"no certificate":        {func(o *PeerOptions) { o.CAFile = clientKey }, time.Now().Add(-time.Hour), "holds no certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			cert, key := certs.issue("server", tt.from, "")
			pair, err := tls.LoadX509KeyPair(cert, key)
			if err != nil {
				t.Fatal(err)
			}
			s := modbustest.New(modbustest.Options{Framing: modbustest.TCP})
			po := DefaultPeerOptions()
			po.Device = serveNet(t, s, PeerTLS, &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}})
			po.CAFile, po.CertFile, po.KeyFile = certs.caFile, clientCert, clientKey
			tt.change(&po)
			p, err := NewPeer(po)
			if err != nil {
				t.Fatal(err)
			}
			c, err := p.dial(t.Context())
			if err == nil {
				err = c.Close()
			}
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("dial = %v, want %q", err, tt.want)
			}
		})
	}
}

// A serial server that closed an idle connection is called again without a word;
// one that is not there any more is an error.
func TestRTUOverTCPCallsAgain(t *testing.T) {
	var lc net.ListenConfig
	ln, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	po := DefaultPeerOptions()
	po.Device = "rtu+tcp://" + ln.Addr().String()
	p, err := NewPeer(po)
	if err != nil {
		t.Fatal(err)
	}
	w, err := p.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	accept := func() net.Conn {
		c, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	far := accept()
	if _, err := far.Write([]byte("stale")); err != nil {
		t.Fatal(err)
	}
	// What has arrived is thrown away, all of it, and nothing is waited for.
	for got, deadline := 0, time.Now().Add(patience); got < 5 && time.Now().Before(deadline); {
		n, err := w.Discard()
		if err != nil {
			t.Fatal(err)
		}
		got += n
	}
	far.Close()
	var again net.Conn
	accepted := make(chan struct{})
	go func() {
		defer close(accepted)
		again, _ = ln.Accept()
	}()
	for deadline := time.Now().Add(patience); ; {
		if _, err := w.Discard(); err != nil {
			t.Fatalf("Discard = %v, want another connection", err)
		}
		select {
		case <-accepted:
		default:
			if time.Now().After(deadline) {
				t.Fatal("the peer was not called again")
			}
			continue
		}
		break
	}
	again.Close() // without a byte: it does not want us
	for deadline := time.Now().Add(patience); ; {
		if _, err := w.Discard(); err != nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a connection that ended at once is not noticed")
		}
	}
	if err := w.SetReadDeadline(time.Now().Add(-time.Second)); err != nil && !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}
