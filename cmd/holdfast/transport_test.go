package main

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
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"holdfast/broker/client"
	"holdfast/broker/listen"
	"holdfast/broker/message"
	"holdfast/broker/packet"
	"holdfast/storeforward"
)

// certs NAME... makes a new authority, ca.crt, and certificates signed by it:
// gateway.crt for localhost, and NAME.crt for each client; the keys beside them.
func certs(ts *testscript.TestScript, neg bool, args []string) {
	if neg {
		ts.Fatalf("usage: certs NAME...")
	}
	var ca *x509.Certificate
	var caKey *ecdsa.PrivateKey
	for i, name := range append([]string{"ca", "gateway"}, args...) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		ts.Check(err)
		tmpl := &x509.Certificate{
			SerialNumber: big.NewInt(int64(i + 1)), Subject: pkix.Name{CommonName: name}, DNSNames: []string{"localhost"},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}
		if ca == nil {
			tmpl.IsCA, tmpl.BasicConstraintsValid, tmpl.KeyUsage = true, true, x509.KeyUsageCertSign
			ca, caKey = tmpl, key
		}
		der, err := x509.CreateCertificate(rand.Reader, tmpl, ca, &key.PublicKey, caKey)
		ts.Check(err)
		keyDER, err := x509.MarshalECPrivateKey(key)
		ts.Check(err)
		for file, block := range map[string]*pem.Block{
			name + ".key": {Type: "EC PRIVATE KEY", Bytes: keyDER},
			name + ".crt": {Type: "CERTIFICATE", Bytes: der},
		} {
			ts.Check(os.WriteFile(ts.MkAbs(file), pem.EncodeToMemory(block), 0o600))
		}
	}
}

// publish WHERE TOPIC [NAME] publishes with QoS 1, to the Unix socket WHERE, or
// to host:port over TLS with the certificate NAME.crt, and waits for success.
// It tries for a while: files are looked at once a second. With ! it tries once.
func publish(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 || len(args) > 3 {
		ts.Fatalf("usage: publish SOCKET|HOST:PORT TOPIC [NAME]")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		err := publishOnce(ctx, ts, args)
		if neg == (err != nil) {
			if neg {
				ts.Logf("refused: %v", err)
			}
			return
		}
		if neg {
			ts.Fatalf("published to %s", args[1])
		}
		select {
		case <-ctx.Done():
			ts.Fatalf("not published to %s: %v", args[1], err)
		case <-again.C:
		}
	}
}

func publishOnce(ctx context.Context, ts *testscript.TestScript, args []string) error {
	opts := client.Options{URL: "mqtt://" + args[0], ClientID: "script", CleanStart: true}
	if filepath.IsAbs(args[0]) {
		opts.URL = "mqtt://socket"
		opts.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", args[0])
		}
	}
	if len(args) == 3 {
		opts.URL = "mqtts://" + args[0]
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM([]byte(ts.ReadFile("ca.crt")))
		pair, err := tls.LoadX509KeyPair(ts.MkAbs(args[2]+".crt"), ts.MkAbs(args[2]+".key"))
		ts.Check(err)
		opts.TLS = &tls.Config{RootCAs: pool, ServerName: "localhost", Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	}
	c, err := client.Connect(ctx, opts, nil)
	if err != nil {
		return err
	}
	defer c.Abort()
	return c.Publish(ctx, &message.Message{Topic: args[1], Payload: []byte("x"), QoS: 1})
}

// session HOST:PORT CLIENT_ID FILTER... begins a session of an hour and goes away,
// without the DISCONNECT that would forget its will.
func session(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 {
		ts.Fatalf("usage: session HOST:PORT CLIENT_ID FILTER...")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, err := client.Connect(ctx, client.Options{
		URL: "mqtt://" + args[0], ClientID: args[1], SessionExpiry: 3600,
		Will: &packet.Will{Topic: "wills/" + args[1], QoS: 1, Payload: []byte("gone"), Properties: packet.Properties{WillDelay: 3000}},
	}, nil)
	ts.Check(err)
	defer c.Abort()
	var filters []packet.Filter
	for _, f := range args[2:] {
		filters = append(filters, packet.Filter{Filter: f, QoS: 1})
	}
	_, err = c.Subscribe(ctx, filters)
	ts.Check(err)
}

func TestCertificateProblems(t *testing.T) {
	now := time.Now()
	for want, cert := range map[string]listen.CertificateStatus{
		"":                                {NotBefore: now.Add(-time.Hour), NotAfter: now.Add(365 * 24 * time.Hour)},
		"is valid until":                  {NotBefore: now.Add(-364 * 24 * time.Hour), NotAfter: now.Add(24 * time.Hour)},
		"is not valid before":             {NotBefore: now.Add(time.Hour), NotAfter: now.Add(365 * 24 * time.Hour)},
		"are not used: listener.key_file": {NotBefore: now, NotAfter: now, LastError: "listener.key_file: gone"},
	} {
		s := gatewayStatus{Time: now, Store: storeforward.Status{State: "ok"}, Listen: []listen.Status{{Address: "tls://h:1", Certificate: &cert}, {Address: "tcp://h:2"}}}
		problems := s.problems()
		if want == "" && len(problems) > 0 || want != "" && !slices.ContainsFunc(problems, func(p string) bool { return strings.Contains(p, want) }) {
			t.Errorf("%+v: problems %q, want %q", cert, problems, want)
		}
	}
}
