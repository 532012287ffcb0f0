package listen

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker/brokertest"
	"holdfast/broker/packet"
)

func TestTLSVersions(t *testing.T) {
	ca := newAuthority(t, "plant CA")
	tests := map[string]struct {
		min    string
		client uint16
		ok     bool
	}{
		"1.2":              {"1.2", tls.VersionTLS12, true},
		"1.3":              {"1.2", tls.VersionTLS13, true},
		"1.1 is too old":   {"1.2", tls.VersionTLS11, false},
		"1.3 where asked":  {"1.3", tls.VersionTLS13, true},
		"1.2 where 1.3 is": {"1.3", tls.VersionTLS12, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			e := openEndpoint(t, "tls://127.0.0.1:0", ca.secured(t, func(o *Options) { o.TLSMinVersion = tt.min }))
			b := serve(t, e)
			nc, err := handshake(t, e, &tls.Config{RootCAs: ca.pool, MinVersion: tt.client, MaxVersion: tt.client})
			if !tt.ok {
				if err == nil {
					t.Fatal("let in")
				}
				b.Stop(t)
				if st := e.Status(); st.HandshakeFailures != 1 || st.Handshakes != 0 {
					t.Errorf("status %+v", st)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			c := brokertest.Connect(t, nc, brokertest.V5("meter"))
			c.Subscribe(1, "a")
			// Larger than a TLS record.
			payload := strings.Repeat("x", 40_000)
			c.Publish(1, false, "a", payload)
			if got := c.Message(); string(got.Payload) != payload {
				t.Errorf("%d bytes came back", len(got.Payload))
			}
			c.Disconnect(0)
			if st := e.Status(); st.Handshakes != 1 || st.HandshakeFailures != 0 {
				t.Errorf("status %+v", st)
			}
		})
	}
}

func TestClientCertificates(t *testing.T) {
	ca, other := newAuthority(t, "plant CA"), newAuthority(t, "another CA")
	expired := clientTemplate("late")
	expired.NotBefore, expired.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	early := clientTemplate("early")
	early.NotBefore, early.NotAfter = time.Now().Add(time.Hour), time.Now().Add(2*time.Hour)
	good := ca.issue(t, clientTemplate("pump-7")).load(t)
	certs := map[string]*tls.Certificate{
		"good":     &good,
		"none":     nil,
		"wrong CA": new(other.issue(t, clientTemplate("pump-7")).load(t)),
		"expired":  new(ca.issue(t, expired).load(t)),
		"early":    new(ca.issue(t, early).load(t)),
		"server's": new(ca.issue(t, serverTemplate("pump-7")).load(t)),
	}
	welcome := map[ClientCert]map[string]bool{
		ClientCertNone:     {"good": true, "none": true, "wrong CA": true, "expired": true, "early": true, "server's": true}, // nobody looks
		ClientCertOptional: {"good": true, "none": true},
		ClientCertRequired: {"good": true},
	}
	for mode, who := range welcome {
		for name, cert := range certs {
			for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
				t.Run(string(mode)+"/"+name+"/"+tls.VersionName(version), func(t *testing.T) {
					e := openEndpoint(t, "tls://127.0.0.1:0", ca.secured(t, func(o *Options) {
						o.ClientCert = mode
						if mode != ClientCertNone {
							o.ClientCAFile = ca.file
						}
					}))
					config := &tls.Config{RootCAs: ca.pool, MaxVersion: version}
					if cert != nil {
						config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
					}
					var server net.Conn
					var readErr error
					var wg sync.WaitGroup
					wg.Go(func() {
						server = accept(t, e)
						_, readErr = server.Read(make([]byte, 1))
					})
					client, err := handshake(t, e, config)
					if err == nil {
						// With 1.3 the client is done before the server has looked.
						_, err = client.Write([]byte("x"))
					}
					wg.Wait()
					if !who[name] {
						if readErr == nil {
							t.Fatal("let in")
						}
						return
					}
					if err != nil || readErr != nil {
						t.Fatalf("client: %v, server: %v", err, readErr)
					}
					state := server.(*tlsConn).ConnectionState()
					var verified string
					if len(state.VerifiedChains) > 0 {
						verified = state.VerifiedChains[0][0].Subject.CommonName
					}
					want := ""
					if mode != ClientCertNone && name == "good" {
						want = "pump-7"
					}
					if verified != want {
						t.Errorf("the verified certificate is that of %q, want %q", verified, want)
					}
				})
			}
		}
	}
}

// connect does a handshake and returns whom the client met.
func connect(t *testing.T, e *Endpoint, config *tls.Config) (string, *brokertest.Client, error) {
	t.Helper()
	nc, err := handshake(t, e, config)
	if err != nil {
		return "", nil, err
	}
	return nc.ConnectionState().PeerCertificates[0].Subject.CommonName, brokertest.Connect(t, nc, brokertest.V5("")), nil
}

func TestCertificatesAreReadAgain(t *testing.T) {
	ca := newAuthority(t, "plant CA")
	o := ca.secured(t)
	f := files{o.CertFile, o.KeyFile}
	e := openEndpoint(t, "tls://127.0.0.1:0", o)
	e.certs.every = 0
	b := serve(t, e)
	config := &tls.Config{RootCAs: ca.pool}
	expect := func(want string) *brokertest.Client {
		t.Helper()
		name, c, err := connect(t, e, config)
		if err != nil || name != want {
			t.Fatalf("met %q, %v, want %q", name, err, want)
		}
		return c
	}
	old := expect("gateway")
	expect("gateway")
	if st := e.Status().Certificate; st.Reloads != 0 {
		t.Errorf("read again without a change: %+v", st)
	}
	ca.reissue(t, f, serverTemplate("second"))
	expect("second")
	if st := e.Status().Certificate; st.Reloads != 1 || st.Subject != "CN=second" {
		t.Errorf("status %+v", st)
	}
	// A connection stays what it is.
	old.Subscribe(0, "a")
	old.Publish(1, false, "a", "x")
	old.Message()

	// Half a file, a key that does not belong, no file: the old one stays.
	whole, err := os.ReadFile(f.cert)
	if err != nil {
		t.Fatal(err)
	}
	stranger := ca.issue(t, serverTemplate("stranger"))
	strange, err := os.ReadFile(stranger.cert)
	if err != nil {
		t.Fatal(err)
	}
	for what, content := range map[string][]byte{"half": whole[:len(whole)/2], "empty": {}, "another's": strange} {
		before := e.Status().Certificate.Failures
		if err := os.WriteFile(f.cert, content, 0o600); err != nil {
			t.Fatal(err)
		}
		expect("second")
		if st := e.Status().Certificate; st.Failures <= before || !strings.HasPrefix(st.LastError, "listener.cert_file: ") {
			t.Errorf("%s file: status %+v", what, st)
		}
	}
	if err := os.Remove(f.cert); err != nil {
		t.Fatal(err)
	}
	expect("second")
	// As certbot and Kubernetes do it: new files, and a link that is turned.
	third := ca.issue(t, serverTemplate("third"))
	for from, to := range map[string]string{third.cert: f.cert, third.key: f.key} {
		if err := os.Remove(to); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		if err := os.Symlink(from, to); err != nil {
			t.Fatal(err)
		}
	}
	expect("third")
	if st := e.Status().Certificate; st.LastError != "" || st.Reloads != 2 {
		t.Errorf("status %+v", st)
	}
	// Not more than once in a while.
	e.certs.every = time.Hour
	ca.reissue(t, third, serverTemplate("fourth"))
	expect("third")
	b.Stop(t)
}

// A session that was agreed on under other authorities is not resumed.
func TestClientAuthoritiesAreReadAgain(t *testing.T) {
	ca, other := newAuthority(t, "plant CA"), newAuthority(t, "new CA")
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			trusted, err := os.ReadFile(ca.file)
			if err != nil {
				t.Fatal(err)
			}
			caFile := t.TempDir() + "/clients.crt"
			if err := os.WriteFile(caFile, trusted, 0o600); err != nil {
				t.Fatal(err)
			}
			e := openEndpoint(t, "tls://127.0.0.1:0", ca.secured(t, func(o *Options) {
				o.ClientCert, o.ClientCAFile = ClientCertRequired, caFile
			}))
			e.certs.every = 0
			serve(t, e)
			cert := ca.issue(t, clientTemplate("pump-7")).load(t)
			config := &tls.Config{
				RootCAs: ca.pool, MaxVersion: version, ClientSessionCache: tls.NewLRUClientSessionCache(4),
				GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil },
			}
			resumed := false
			for range 2 {
				nc, err := handshake(t, e, config)
				if err != nil {
					t.Fatal(err)
				}
				brokertest.Connect(t, nc, brokertest.V5("")).Disconnect(0)
				resumed = nc.ConnectionState().DidResume
			}
			if !resumed {
				t.Fatal("the second connection did not resume the session, so this test would prove nothing")
			}
			trusted, err = os.ReadFile(other.file)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(caFile, trusted, 0o600); err != nil {
				t.Fatal(err)
			}
			nc, err := handshake(t, e, config)
			if err == nil {
				_, err = nc.Read(make([]byte, 1)) // 1.3 tells afterwards
			}
			if err == nil || !strings.Contains(err.Error(), "remote error: tls:") {
				t.Errorf("with a certificate of the old authority: %v, want an alert", err)
			}
		})
	}
}

func TestOpenNamesWhatIsWrong(t *testing.T) {
	ca := newAuthority(t, "plant CA")
	notPEM := t.TempDir() + "/x"
	if err := os.WriteFile(notPEM, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	broken := t.TempDir() + "/ca"
	whole, err := os.ReadFile(ca.file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(broken, append(bytes.Clone(whole), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		change func(*Options)
		want   string
	}{
		"no certificate": {func(o *Options) { o.CertFile = "/nowhere" }, "listener.cert_file: stat /nowhere"},
		"no key":         {func(o *Options) { o.KeyFile = "/nowhere" }, "listener.key_file: stat /nowhere"},
		"no CA":          {func(o *Options) { o.ClientCert, o.ClientCAFile = "required", "/nowhere" }, "listener.client_ca_file: stat /nowhere"},
		"no PEM":         {func(o *Options) { o.CertFile = notPEM }, "listener.cert_file: " + notPEM},
		"no PEM in CA":   {func(o *Options) { o.ClientCert, o.ClientCAFile = "required", notPEM }, "listener.client_ca_file: " + notPEM + " has no certificate"},
		"broken CA":      {func(o *Options) { o.ClientCert, o.ClientCAFile = "required", broken }, "listener.client_ca_file: " + broken + ": certificate 2"},
		"another's key":  {func(o *Options) { o.KeyFile = ca.issue(t, serverTemplate("x")).key }, "listener.cert_file: "},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := Open(t.Context(), "tls://127.0.0.1:0", ca.secured(t, tt.change), nil, logger(t))
			if err == nil || !strings.HasPrefix(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}

// Boards without a clock chip start in the past: a listener opens all the same,
// and says what it sees.
func TestCertificateOutOfItsTime(t *testing.T) {
	ca := newAuthority(t, "plant CA")
	for want, shift := range map[string]time.Duration{"has expired": -2 * time.Hour, "is not valid yet": 2 * time.Hour} {
		tmpl := serverTemplate("gateway")
		tmpl.NotBefore, tmpl.NotAfter = time.Now().Add(shift-time.Hour), time.Now().Add(shift+time.Hour)
		f := ca.issue(t, tmpl)
		o := DefaultOptions()
		o.CertFile, o.KeyFile = f.cert, f.key
		var log bytes.Buffer
		e, err := Open(t.Context(), "tls://127.0.0.1:0", o, nil, slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
		if !strings.Contains(log.String(), want) {
			t.Errorf("log %q, want something that %s", log.String(), want)
		}
	}
}

// Nobody waits for those who begin and do not go on, and a stop does not either.
func TestSlowHandshakes(t *testing.T) {
	ca := newAuthority(t, "plant CA")
	hello := clientHello(t)
	beginnings := map[string][][]byte{
		"tls://127.0.0.1:0": {nil, hello[:1], hello[:5], hello[:len(hello)-1], hello, []byte("GET / HTTP/1.1\r\n\r\n")},
		"ws://127.0.0.1:0":  {nil, []byte("G"), []byte("GET /mqtt HTTP/1.1\r\nHost: x\r\nUpgrade: webso")},
		"wss://127.0.0.1:0": {nil, hello[:5], hello},
	}
	for address, parts := range beginnings {
		t.Run(address, func(t *testing.T) {
			o := DefaultOptions()
			if strings.Contains(address, "s://") && !strings.HasPrefix(address, "ws:") {
				o = ca.secured(t)
			}
			e := openEndpoint(t, address, o)
			b := serve(t, e)
			for i := range 300 {
				nc := dial(t, e)
				if _, err := nc.Write(parts[i%len(parts)]); err != nil {
					t.Fatal(err)
				}
			}
			begun := time.Now()
			c := brokertest.Connect(t, mqttOver(t, e, address, ca), brokertest.V5("patient"))
			c.Subscribe(1, "a")
			for range 100 {
				c.Publish(1, false, "a", "x")
				c.Message()
			}
			if d := time.Since(begun); d > patience/2 {
				t.Errorf("100 messages among stalled handshakes took %s", d)
			}
			begun = time.Now()
			b.Stop(t)
			if d := time.Since(begun); d > patience/2 {
				t.Errorf("the stop took %s", d)
			}
		})
	}
}

// clientHello is what a TLS client says first.
func clientHello(t *testing.T) []byte {
	t.Helper()
	client, server := net.Pipe()
	defer server.Close()
	go func() {
		_ = tls.Client(client, &tls.Config{ServerName: "localhost"}).HandshakeContext(t.Context())
		client.Close()
	}()
	buf := make([]byte, 16<<10)
	head := 5
	if _, err := io.ReadFull(server, buf[:head]); err != nil {
		t.Fatal(err)
	}
	n := int(buf[3])<<8 | int(buf[4])
	if _, err := io.ReadFull(server, buf[head:head+n]); err != nil {
		t.Fatal(err)
	}
	return buf[:head+n]
}

// Without an owner's deadline the handshake timeout bounds the first Read.
func TestHandshakeTimeout(t *testing.T) {
	ca := newAuthority(t, "plant CA")
	for _, address := range []string{"tls://127.0.0.1:0", "ws://127.0.0.1:0", "wss://127.0.0.1:0"} {
		t.Run(address, func(t *testing.T) {
			o := ca.secured(t)
			if strings.HasPrefix(address, "ws:") {
				o = DefaultOptions()
			}
			o.HandshakeTimeout = 50 * time.Millisecond
			e := openEndpoint(t, address, o)
			dial(t, e)
			_, err := accept(t, e).Read(make([]byte, 1))
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("Read: %v, want %v", err, os.ErrDeadlineExceeded)
			}
			if st := e.Status(); st.HandshakeFailures+st.UpgradesRefused == 0 {
				t.Errorf("status %+v", st)
			}
		})
	}
}

func TestHandshakeTimeoutEndsWithTheHandshake(t *testing.T) {
	ca := newAuthority(t, "plant CA")
	e := openEndpoint(t, "tls://127.0.0.1:0", ca.secured(t))
	synctest.Test(t, func(t *testing.T) {
		client, raw := net.Pipe()
		server := e.secure(raw)
		defer raw.Close()
		defer client.Close()
		read := make(chan error)
		go func() {
			buf := make([]byte, 1)
			for range 2 {
				_, err := server.Read(buf)
				read <- err
			}
		}()
		c := tls.Client(client, &tls.Config{
			RootCAs: ca.pool, ServerName: "localhost",
			Time: func() time.Time { return ca.cert.NotBefore.Add(time.Hour) }, // the bubble's clock is years behind
		})
		for range 2 {
			if _, err := c.Write([]byte("a")); err != nil {
				t.Fatal(err)
			}
			if err := <-read; err != nil {
				t.Fatal(err)
			}
			<-time.After(time.Hour)
		}
	})
}

// The DISCONNECT of the broker reaches the client over TLS, too, though what the
// client goes on sending is never read.
func TestLastWordsOverTLS(t *testing.T) {
	ca := newAuthority(t, "plant CA")
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		e := openEndpoint(t, "tls://127.0.0.1:0", ca.secured(t))
		serve(t, e)
		nc, err := handshake(t, e, &tls.Config{RootCAs: ca.pool, MaxVersion: version})
		if err != nil {
			t.Fatal(err)
		}
		c := brokertest.Connect(t, nc, brokertest.V5("meter"))
		go c.SendBytes(encode(t, &packet.Publish{Topic: []byte("a"), Payload: make([]byte, 4<<20)}))
		if reason, ok := c.Ended(); !ok || reason != packet.ReasonPacketTooLarge {
			t.Errorf("%s: ended with %v, %t, want %v", tls.VersionName(version), reason, ok, packet.ReasonPacketTooLarge)
		}
	}
}

func TestComplaintsAreFew(t *testing.T) {
	var c complaints
	now := time.Now()
	lines, held := 0, uint64(0)
	for i := range 1000 {
		if n, ok := c.due(now.Add(time.Duration(i) * 20 * time.Millisecond)); ok { // 20 s
			lines++
			held += n
		}
	}
	if lines != 2 || held != 499 {
		t.Errorf("%d lines that tell of %d more, want 2 and 499", lines, held)
	}
}
