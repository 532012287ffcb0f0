package client

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/broker/packet"
)

// oneAfterTheOther is a Dial function whose connections are played by scripts,
// each given the CONNECT it got.
func oneAfterTheOther(t *testing.T, scripts ...func(nc net.Conn, hello *packet.Connect)) func(context.Context, string, string) (net.Conn, error) {
	t.Helper()
	var wg sync.WaitGroup
	t.Cleanup(func() {
		wg.Wait()
		if len(scripts) > 0 {
			t.Errorf("%d connections were not made", len(scripts))
		}
	})
	return func(context.Context, string, string) (net.Conn, error) {
		if len(scripts) == 0 {
			return nil, errors.New("one connection too many")
		}
		script := scripts[0]
		scripts = scripts[1:]
		near, far := net.Pipe()
		wg.Go(func() {
			defer far.Close()
			p, err := packet.NewReader(far, 1000).Next()
			if err != nil {
				t.Errorf("server reads CONNECT: %v", err)
				return
			}
			hello, ok := p.(*packet.Connect)
			if !ok {
				t.Errorf("server got %s, want CONNECT", p.Type())
				return
			}
			script(far, hello)
		})
		return near, nil
	}
}

// answer returns a script that expects a version, writes and stays for the end.
func answer(t *testing.T, v packet.Version, b ...byte) func(net.Conn, *packet.Connect) {
	t.Helper()
	return func(nc net.Conn, hello *packet.Connect) {
		if hello.Version != v {
			t.Errorf("CONNECT version = %v, want %v", hello.Version, v)
		}
		if len(b) == 0 {
			return
		}
		_, _ = nc.Write(b)
		_, _ = nc.Read(make([]byte, 100))
	}
}

func TestDialFallsBack(t *testing.T) {
	refusesOld := []byte{0x20, 2, 0, 1}
	refuses5 := []byte{0x20, 3, 0, 0x84, 0}
	yes5, yes311 := []byte{0x20, 3, 0, 0, 0}, []byte{0x20, 2, 0, 0}
	type script = func(net.Conn, *packet.Connect)
	tests := map[string]struct {
		asked   packet.Version
		scripts []script
		version packet.Version
		say     string // of the error
	}{
		"5.0 taken":                     {scripts: []script{answer(t, packet.V5, yes5...)}, version: packet.V5},
		"return code 1, then 3.1.1":     {scripts: []script{answer(t, packet.V5, refusesOld...), answer(t, packet.V311, yes311...)}, version: packet.V311},
		"reason 0x84, then 3.1.1":       {scripts: []script{answer(t, packet.V5, refuses5...), answer(t, packet.V311, yes311...)}, version: packet.V311},
		"closed, then 3.1.1":            {scripts: []script{answer(t, packet.V5), answer(t, packet.V311, yes311...)}, version: packet.V311},
		"3.1.1 refused too":             {scripts: []script{answer(t, packet.V5, refusesOld...), answer(t, packet.V311, 0x20, 2, 0, 5)}, say: "not authorized"},
		"closed twice":                  {scripts: []script{answer(t, packet.V5), answer(t, packet.V311)}, say: "closed the connection at CONNECT"},
		"refused for another reason":    {scripts: []script{answer(t, packet.V5, 0x20, 3, 0, 0x87, 0)}, say: "not authorized"},
		"5.0 alone, return code 1":      {asked: packet.V5, scripts: []script{answer(t, packet.V5, refusesOld...)}, say: "unsupported protocol version"},
		"5.0 alone, closed":             {asked: packet.V5, scripts: []script{answer(t, packet.V5)}, say: "closed the connection at CONNECT"},
		"3.1.1 alone":                   {asked: packet.V311, scripts: []script{answer(t, packet.V311, yes311...)}, version: packet.V311},
		"answers 3.1.1 to 5.0 is wrong": {scripts: []script{answer(t, packet.V5, yes311...)}, say: "CONNACK"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c, err := Dial(t.Context(), Options{
				URL: "mqtt://gateway", ClientID: "c", Version: tt.asked, Dial: oneAfterTheOther(t, tt.scripts...),
			})
			if tt.say != "" {
				if err == nil || !strings.Contains(err.Error(), tt.say) {
					t.Errorf("Dial error = %v, want one with %q", err, tt.say)
				}
				return
			}
			if err != nil {
				t.Fatalf("Dial: %v", err)
			}
			defer c.Abort()
			if c.Version() != tt.version {
				t.Errorf("Version() = %v, want %v", c.Version(), tt.version)
			}
		})
	}
}

// 3.1.1 cannot say "a new session, and keep it": two connections do.
func TestDialOldServerForANewSessionThatStays(t *testing.T) {
	will := &packet.Will{Topic: "gone"}
	dial := oneAfterTheOther(t,
		func(nc net.Conn, hello *packet.Connect) {
			if !hello.CleanStart || hello.Will != nil {
				t.Errorf("first CONNECT has clean session %v, will %v, want true, nil", hello.CleanStart, hello.Will)
			}
			_, _ = nc.Write([]byte{0x20, 2, 0, 0})
			b := make([]byte, 10)
			if n, err := nc.Read(b); err != nil || b[0] != 0xe0 {
				t.Errorf("after the first CONNECT came % x, %v, want DISCONNECT", b[:n], err)
			}
		},
		func(nc net.Conn, hello *packet.Connect) {
			if hello.CleanStart || hello.Will == nil {
				t.Errorf("second CONNECT has clean session %v, will %v, want false and a will", hello.CleanStart, hello.Will)
			}
			_, _ = nc.Write([]byte{0x20, 2, 0, 0})
		})
	c, err := Dial(t.Context(), Options{
		URL: "mqtt://gateway", ClientID: "c", Version: packet.V311, CleanStart: true, SessionExpiry: 1, Will: will, Dial: dial,
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Limits().SessionExpiry; got != 0xFFFFFFFF {
		t.Errorf("Limits().SessionExpiry = %d, want for ever", got)
	}
	c.Abort()
}

// A link that breaks just now says nothing about versions.
func TestDialDoesNotFallBackForAReset(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	accepted := make(chan int, 1)
	go func() {
		n := 0
		defer func() { accepted <- n }()
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			n++
			_, _ = nc.Read(make([]byte, 1)) // the rest of CONNECT unread: a reset
			nc.Close()
		}
	}()
	_, err = Dial(t.Context(), Options{URL: "mqtt://" + l.Addr().String(), ClientID: "c"})
	l.Close()
	if n := <-accepted; err == nil || n != 1 {
		t.Errorf("Dial = %v after %d connections, want an error after 1", err, n)
	}
}

func TestURL(t *testing.T) {
	tests := map[string]struct {
		url     string
		want    server
		say     string
		user    string
		secret  string
		already string // Username set before
	}{
		"mqtt":              {url: "mqtt://h", want: server{address: "h:1883", host: "h"}},
		"tcp with port":     {url: "tcp://127.0.0.1:1884", want: server{address: "127.0.0.1:1884", host: "127.0.0.1"}},
		"mqtts":             {url: "mqtts://h", want: server{address: "h:8883", host: "h", tls: true}},
		"ssl, IPv6":         {url: "ssl://[::1]:99", want: server{address: "[::1]:99", host: "::1", tls: true}},
		"user and password": {url: "mqtt://u:p@h", want: server{address: "h:1883", host: "h"}, user: "u", secret: "p"},
		"options first":     {url: "mqtt://u:p@h", already: "me", want: server{address: "h:1883", host: "h"}, user: "me"},
		"no scheme":         {url: "h:1883", say: "scheme"},
		"http":              {url: "http://h", say: "scheme"},
		"no host":           {url: "mqtt://", say: "no host"},
		"empty":             {say: "scheme"},
		"broken":            {url: "mqtt://user:hunter2@h:bad port", say: "server URL"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			o := Options{URL: tt.url, Username: tt.already}
			got, err := readURL(&o)
			if tt.say != "" {
				if err == nil || !strings.Contains(err.Error(), tt.say) || strings.Contains(err.Error(), "hunter2") {
					t.Errorf("readURL(%q) = %v, want an error with %q and no password", tt.url, err, tt.say)
				}
				return
			}
			if err != nil || got != tt.want || o.Username != tt.user || o.Password != tt.secret {
				t.Errorf("readURL(%q) = %+v, %v; user %q, password %q", tt.url, got, err, o.Username, o.Password)
			}
		})
	}
}

func TestOptionsValidate(t *testing.T) {
	tests := map[string]struct {
		opts Options
		say  string
	}{
		"zero":                    {},
		"longest keep alive":      {opts: Options{KeepAlive: 65535 * time.Second}},
		"keep alive too long":     {opts: Options{KeepAlive: 65536 * time.Second}, say: "KeepAlive"},
		"keep alive in fractions": {opts: Options{KeepAlive: 1500 * time.Millisecond}, say: "KeepAlive"},
		"keep alive below zero":   {opts: Options{KeepAlive: -time.Second}, say: "KeepAlive"},
		"version 3.1":             {opts: Options{Version: packet.V31}, say: "Version"},
		"timeout below zero":      {opts: Options{WriteTimeout: -1}, say: "WriteTimeout"},
		"output below zero":       {opts: Options{OutputLimit: -1}, say: "OutputLimit"},
		"will with a wildcard":    {opts: Options{Will: &packet.Will{Topic: "a/#"}}, say: "Will"},
		"will with QoS 3":         {opts: Options{Will: &packet.Will{Topic: "a", QoS: 3}}, say: "Will"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			err := tt.opts.Validate()
			if tt.say == "" && err != nil || tt.say != "" && (err == nil || !strings.Contains(err.Error(), tt.say)) {
				t.Errorf("Validate() = %v, want %q", err, tt.say)
			}
		})
	}
}

// serverCertificate makes one for "localhost" and the pool that trusts it.
func serverCertificate(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

func TestDialTLS(t *testing.T) {
	cert, pool := serverCertificate(t)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ended := make(chan packet.Packet, 1)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for range 2 { // the second does not trust us
			nc, err := l.Accept()
			if err != nil {
				t.Errorf("accept: %v", err)
				return
			}
			r := packet.NewReader(nc, 1000)
			if _, err := r.Next(); err == nil {
				r.SetVersion(packet.V5)
				_, _ = nc.Write([]byte{0x20, 3, 0, 0, 0})
				p, err := r.Next()
				if err != nil {
					t.Errorf("server reads: %v", err)
				}
				ended <- p
			}
			nc.Close()
		}
	})
	_, port, _ := net.SplitHostPort(l.Addr().String())
	o := Options{URL: "mqtts://localhost:" + port, TLS: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, Dial: loopback(l.Addr().String())}
	c, err := Dial(t.Context(), o)
	if err != nil {
		t.Fatalf("Dial: %v", err)
	}
	result := running(c, nil)
	if err := c.Close(t.Context(), packet.ReasonSuccess); err != nil {
		t.Errorf("Close = %v", err)
	}
	if p := want(t, ended, "the end"); p == nil || p.Type() != packet.TypeDisconnect {
		t.Errorf("server got %v, want DISCONNECT", p)
	}
	<-result
	if in := c.BytesIn(); in < 500 {
		t.Errorf("BytesIn() = %d, want the handshake of TLS counted", in)
	}
	o.TLS = nil
	if _, err := Dial(t.Context(), o); err == nil || !strings.Contains(err.Error(), "TLS") {
		t.Errorf("Dial to a server nobody vouches for = %v, want a TLS error", err)
	}
}

// loopback dials address whatever name is asked for.
func loopback(address string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, address)
	}
}

func TestDialNobodyThere(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	_, err = Dial(t.Context(), Options{URL: "mqtt://" + l.Addr().String()})
	if err == nil || !strings.Contains(err.Error(), "connect to "+l.Addr().String()) {
		t.Errorf("Dial = %v, want an error with the address", err)
	}
}
