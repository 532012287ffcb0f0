package dial

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/broker/listen"
)

// echo is a server that sends back what comes; tls may be nil.
func echo(tb testing.TB, conf *tls.Config) (address string) {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	serve(tb, l, func(nc net.Conn) {
		if conf != nil {
			nc = tls.Server(nc, conf)
		}
		_, _ = io.Copy(nc, nc)
	})
	return l.Addr().String()
}

// serve calls handle for every connection until the test ends.
func serve(tb testing.TB, l net.Listener, handle func(net.Conn)) {
	tb.Helper()
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer nc.Close()
				stop := context.AfterFunc(tb.Context(), func() { nc.Close() })
				defer stop()
				handle(nc)
			})
		}
	})
	tb.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
}

// certificate writes a self-signed certificate for name and its key.
func certificate(tb testing.TB, name string, from, to time.Time) (certFile, keyFile string, pair tls.Certificate) {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: from, NotAfter: to, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		tb.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		tb.Fatal(err)
	}
	dir := tb.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, block := range map[string]*pem.Block{
		certFile: {Type: "CERTIFICATE", Bytes: der},
		keyFile:  {Type: "PRIVATE KEY", Bytes: private},
	} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			tb.Fatal(err)
		}
	}
	if pair, err = tls.LoadX509KeyPair(certFile, keyFile); err != nil {
		tb.Fatal(err)
	}
	return certFile, keyFile, pair
}

// dialTo opens the first path.
func dialTo(tb testing.TB, change func(o *Options)) (*Conn, error) {
	tb.Helper()
	o := DefaultOptions()
	change(&o)
	if err := o.Validate(); err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(tb.Context(), 10*time.Second)
	defer cancel()
	d := New(o)
	c, err := d.Dial(ctx, d.Paths()[0])
	if err == nil {
		tb.Cleanup(func() { c.Close() })
	}
	return c, err
}

// says checks that what is sent comes back.
func says(tb testing.TB, c *Conn, size int) {
	tb.Helper()
	sent := bytes.Repeat([]byte("holdfast"), size/8)
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := c.Write(sent); err != nil {
			tb.Errorf("write: %v", err)
		}
	})
	defer wg.Wait()
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, sent) {
		tb.Fatalf("what comes back differs: %v", err)
	}
}

func TestPlain(t *testing.T) {
	address := echo(t, nil)
	c, err := dialTo(t, func(o *Options) { o.URL = "mqtt://" + address })
	if err != nil {
		t.Fatal(err)
	}
	says(t, c, 800)
	if in, out := c.Wire(); in != 800 || out != 800 {
		t.Errorf("wire %d in, %d out, want 800 each", in, out)
	}
	if err := c.CloseWrite(); err != nil {
		t.Errorf("CloseWrite: %v", err)
	}
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("after the half close: %d, %v", n, err)
	}
}

func TestSocketOptions(t *testing.T) {
	address := echo(t, nil)
	c, err := dialTo(t, func(o *Options) {
		o.URL, o.TCPUserTimeout, o.TCPKeepAlive, o.TCPNotSentLowat = "mqtt://"+address, 7*time.Second, 9*time.Second, 4096
		o.Interfaces = []string{"lo"}
	})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := c.wire.Conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = raw.Control(func(fd uintptr) {
		for name, want := range map[[2]int]int{
			{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT}:  7000,
			{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE}:      9,
			{unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT}: 4096,
			{unix.SOL_SOCKET, unix.SO_KEEPALIVE}:       1,
		} {
			if got, err := unix.GetsockoptInt(int(fd), name[0], name[1]); err != nil || got != want {
				t.Errorf("option %v is %d, %v, want %d", name, got, err, want)
			}
		}
		if got, err := unix.GetsockoptString(int(fd), unix.SOL_SOCKET, unix.SO_BINDTODEVICE); err != nil || got != "lo" {
			t.Errorf("bound to %q, %v, want lo", got, err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestInterfaceThatIsNotThere(t *testing.T) {
	address := echo(t, nil)
	_, err := dialTo(t, func(o *Options) { o.URL, o.Interfaces = "mqtt://"+address, []string{"nothere0"} })
	if err == nil || !strings.Contains(err.Error(), "use interface nothere0: no such device") {
		t.Errorf("err = %v", err)
	}
}

func TestSourceAddress(t *testing.T) {
	from := make(chan string, 1)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serve(t, l, func(nc net.Conn) { from <- nc.RemoteAddr().(*net.TCPAddr).IP.String() })
	if _, err := dialTo(t, func(o *Options) { o.URL, o.SourceAddress = "mqtt://"+l.Addr().String(), "127.0.0.77" }); err != nil {
		t.Fatal(err)
	}
	if got := <-from; got != "127.0.0.77" {
		t.Errorf("connected from %s, want 127.0.0.77", got)
	}
	_, err = dialTo(t, func(o *Options) { o.URL, o.SourceAddress = "mqtt://[::1]:1", "127.0.0.77" })
	if err == nil || !strings.Contains(err.Error(), "cannot be reached from 127.0.0.77") {
		t.Errorf("err = %v", err)
	}
}

func TestTLS(t *testing.T) {
	now := time.Now()
	certFile, keyFile, pair := certificate(t, "cloud.test", now.Add(-time.Hour), now.Add(time.Hour))
	address := echo(t, &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"x-amzn-mqtt-ca"}})
	c, err := dialTo(t, func(o *Options) {
		o.URL, o.CAFile, o.ServerName, o.ALPN = "mqtts://"+address, certFile, "cloud.test", []string{"mqtt", "x-amzn-mqtt-ca"}
		o.CertFile, o.KeyFile = certFile, keyFile
	})
	if err != nil {
		t.Fatal(err)
	}
	if p := c.Conn.(*tls.Conn).ConnectionState().NegotiatedProtocol; p != "x-amzn-mqtt-ca" {
		t.Errorf("protocol %q, want x-amzn-mqtt-ca", p)
	}
	for _, shown := range []*Certificate{c.Own, c.Cloud} {
		if shown == nil || shown.Subject != "cloud.test" || !shown.NotAfter.Equal(pair.Leaf.NotAfter) {
			t.Errorf("certificate %+v", shown)
		}
	}
	says(t, c, 800)
	if in, out := c.Wire(); in < 1200 || out < 1000 {
		t.Errorf("wire %d in, %d out: TLS is not counted", in, out)
	}
	// Nothing of ours is what the server speaks.
	if _, err := dialTo(t, func(o *Options) {
		o.URL, o.CAFile, o.ALPN = "mqtts://"+address, certFile, []string{"mqtt"}
	}); err == nil || !strings.Contains(err.Error(), "no application protocol") {
		t.Errorf("err = %v, want no application protocol", err)
	}
}

// webSocketEcho is the broker's own listener.
func webSocketEcho(tb testing.TB, address string, opts listen.Options) string {
	tb.Helper()
	opts.HandshakeTimeout = 5 * time.Second
	e, err := listen.Open(tb.Context(), address, opts, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		tb.Fatal(err)
	}
	l := e.Listeners()[0]
	serve(tb, l, func(nc net.Conn) { _, _ = io.Copy(nc, nc) })
	return l.Addr().String()
}

func TestWebSocket(t *testing.T) {
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"} {
		t.Setenv(name, "http://127.0.0.1:1") // nobody asks it
	}
	now := time.Now()
	certFile, keyFile, _ := certificate(t, "cloud.test", now.Add(-time.Hour), now.Add(time.Hour))
	secure := listen.DefaultOptions()
	secure.CertFile, secure.KeyFile = certFile, keyFile
	for scheme, address := range map[string]string{
		"ws":  webSocketEcho(t, "ws://127.0.0.1:0", listen.DefaultOptions()),
		"wss": webSocketEcho(t, "wss://127.0.0.1:0", secure),
	} {
		t.Run(scheme, func(t *testing.T) {
			c, err := dialTo(t, func(o *Options) {
				o.URL = scheme + "://" + address
				if scheme == "wss" {
					o.CAFile = certFile
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			says(t, c, 80_000)
			if in, out := c.Wire(); in <= 80_000 || out <= 80_000 {
				t.Errorf("wire %d in, %d out: the frames are not counted", in, out)
			}
			if (c.Cloud != nil) != (scheme == "wss") {
				t.Errorf("certificate %+v", c.Cloud)
			}
			// A deadline ends a read, not the connection.
			_ = c.SetReadDeadline(time.Unix(1, 0))
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("read beyond the deadline: %v", err)
			}
			_ = c.SetReadDeadline(time.Time{})
		})
	}
	t.Run("another path", func(t *testing.T) {
		address := webSocketEcho(t, "ws://127.0.0.1:0", listen.DefaultOptions())
		if _, err := dialTo(t, func(o *Options) { o.URL = "ws://" + address + "/other" }); err == nil || !strings.Contains(err.Error(), "404") {
			t.Errorf("err = %v, want 404", err)
		}
	})
}

func TestWebSocketServersThatAreNone(t *testing.T) {
	tests := map[string]struct{ answer, want string }{
		"sent elsewhere": {"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", "302"},
		"a page":         {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", "200"},
		"not HTTP":       {"\x20\x02\x00\x00\r\n\r\n", "malformed"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			serve(t, l, func(nc net.Conn) {
				if _, err := http.ReadRequest(bufio.NewReader(nc)); err == nil {
					_, _ = io.WriteString(nc, tt.answer)
				}
			})
			if _, err := dialTo(t, func(o *Options) { o.URL = "ws://" + l.Addr().String() }); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("err = %v, want %q", err, tt.want)
			}
		})
	}
}

// proxyTo is an HTTP and SOCKS5 proxy that sends everybody to address, and
// remembers whom they asked for.
type proxyTo struct {
	address, user, password string

	mu    sync.Mutex
	asked []string // guarded by mu
}

func (p *proxyTo) ask(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked = append(p.asked, name)
}

func (p *proxyTo) http(nc net.Conn) {
	r := bufio.NewReader(nc)
	req, err := http.ReadRequest(r)
	if err != nil {
		return
	}
	p.ask(req.Method + " " + req.Host)
	want := "Basic " + base64.StdEncoding.EncodeToString([]byte(p.user+":"+p.password))
	if p.user != "" && req.Header.Get("Proxy-Authorization") != want {
		_, _ = io.WriteString(nc, "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\n")
		return
	}
	p.pipe(nc, r, "HTTP/1.1 200 Connection established\r\nVia: test\r\n\r\n", "HTTP/1.1 502 Bad Gateway\r\n\r\n")
}

func (p *proxyTo) socks5(nc net.Conn) {
	r := bufio.NewReader(nc)
	head := make([]byte, 2)
	if _, err := io.ReadFull(r, head); err != nil {
		return
	}
	methods := make([]byte, head[1])
	if _, err := io.ReadFull(r, methods); err != nil {
		return
	}
	switch {
	case p.user == "":
		_, _ = nc.Write([]byte{5, 0})
	case bytes.IndexByte(methods, 2) < 0:
		_, _ = nc.Write([]byte{5, 0xFF})
		return
	default:
		_, _ = nc.Write([]byte{5, 2})
		var fields [2]string
		_, _ = r.ReadByte()
		for i := range fields {
			n, _ := r.ReadByte()
			b := make([]byte, n)
			_, _ = io.ReadFull(r, b)
			fields[i] = string(b)
		}
		if fields != [2]string{p.user, p.password} {
			_, _ = nc.Write([]byte{1, 1})
			return
		}
		_, _ = nc.Write([]byte{1, 0})
	}
	req := make([]byte, 4)
	if _, err := io.ReadFull(r, req); err != nil {
		return
	}
	var host string
	switch req[3] {
	case 1, 4:
		b := make([]byte, map[byte]int{1: 4, 4: 16}[req[3]])
		_, _ = io.ReadFull(r, b)
		ip, _ := netip.AddrFromSlice(b)
		host = ip.String()
	case 3:
		n, _ := r.ReadByte()
		b := make([]byte, n)
		_, _ = io.ReadFull(r, b)
		host = string(b)
	}
	port := make([]byte, 2)
	_, _ = io.ReadFull(r, port)
	p.ask(fmt.Sprintf("%s:%d", host, int(port[0])<<8|int(port[1])))
	p.pipe(nc, r, "\x05\x00\x00\x03\x04name\x00\x01", "\x05\x05\x00\x01\x00\x00\x00\x00\x00\x00")
}

// pipe joins the client with the address, whose first bytes may come together
// with the answer.
func (p *proxyTo) pipe(nc net.Conn, r io.Reader, yes, no string) {
	up, err := net.Dial("tcp", p.address)
	if err != nil {
		_, _ = io.WriteString(nc, no)
		return
	}
	defer up.Close()
	_, _ = io.WriteString(nc, yes+"!")
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = io.Copy(up, r)
		up.(*net.TCPConn).CloseWrite()
	})
	_, _ = io.Copy(nc, up)
	nc.Close()
	wg.Wait()
}

func TestProxies(t *testing.T) {
	address := echo(t, nil)
	for _, scheme := range []string{"http", "socks5"} {
		tests := map[string]struct {
			user, password string // of the proxy
			as, with       string // ours
			dead           bool   // what is behind it
			host           string
			want           string // the error; empty: it works
		}{
			"open":              {},
			"name":              {host: "a-name.only.the.proxy.knows"},
			"IPv6":              {host: "[2001:db8::1]"},
			"password":          {user: "u", password: "p", as: "u", with: "p"},
			"wrong password":    {user: "u", password: "p", as: "u", with: "x", want: ErrProxyLogin.Error()},
			"no password":       {user: "u", password: "p", want: ErrProxyLogin.Error()},
			"ours is not asked": {as: "u", with: "p"},
			"dead behind it":    {dead: true, want: "roxy"},
		}
		for name, tt := range tests {
			t.Run(scheme+" "+name, func(t *testing.T) {
				p := &proxyTo{address: address, user: tt.user, password: tt.password}
				if tt.dead {
					p.address = "127.0.0.1:1"
				}
				l, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				serve(t, l, map[string]func(net.Conn){"http": p.http, "socks5": p.socks5}[scheme])
				host := tt.host
				if host == "" {
					host = "192.0.2.7"
				}
				c, err := dialTo(t, func(o *Options) {
					o.URL, o.Proxy, o.ProxyUsername, o.ProxyPassword = "mqtt://"+host+":1883", scheme+"://"+l.Addr().String(), tt.as, tt.with
				})
				if tt.want != "" {
					if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "proxy "+l.Addr().String()) {
						t.Errorf("err = %v, want %q", err, tt.want)
					}
					if errors.Is(err, ErrProxyLogin) == tt.dead {
						t.Errorf("err = %v is ErrProxyLogin: %v", err, !tt.dead)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				first := make([]byte, 1)
				if _, err := io.ReadFull(c, first); err != nil || first[0] != '!' {
					t.Fatalf("first byte behind the proxy is %q, %v", first, err)
				}
				says(t, c, 800)
				if want := net.JoinHostPort(strings.Trim(host, "[]"), "1883"); len(p.asked) != 1 || !strings.HasSuffix(p.asked[0], strings.Trim(want, " ")) && !strings.HasSuffix(p.asked[0], strings.ReplaceAll(strings.ReplaceAll(want, "[", ""), "]", "")) {
					t.Errorf("the proxy was asked for %q, want %s", p.asked, want)
				}
			})
		}
	}
}

// A proxy that says nothing holds an attempt up for as long as that may take.
func TestSilentProxy(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serve(t, l, func(nc net.Conn) { _, _ = io.Copy(io.Discard, nc) })
	for _, scheme := range []string{"http", "socks5"} {
		o := DefaultOptions()
		o.URL, o.Proxy = "mqtt://192.0.2.1", scheme+"://"+l.Addr().String()
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		d := New(o)
		_, err := d.Dial(ctx, d.Paths()[0])
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: err = %v, want the deadline", scheme, err)
		}
	}
}

// What a proxy answers is a stranger's: it may end the attempt, nothing else.
func FuzzProxyAnswer(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.0 407 x\r\nA: b\r\n\r\n", "HTTP/1.1 \r\n\r\n", "\r\n\r\n",
		"\x05\x00\x05\x00\x00\x01\x01\x02\x03\x04\x00\x01", "\x05\x02\x01\x00\x05\x00\x00\x03\x01a\x00\x01", "\x05\xff", "\x05\x00\x05\x09\x00\x07",
	} {
		f.Add([]byte(s), true)
		f.Add([]byte(s), false)
	}
	f.Fuzz(func(_ *testing.T, answer []byte, socks bool) {
		ours, theirs := net.Pipe()
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = io.Copy(io.Discard, theirs) })
		wg.Go(func() {
			_, _ = theirs.Write(answer)
			theirs.Close()
		})
		scheme := "http"
		if socks {
			scheme = "socks5"
		}
		o := Options{ProxyUsername: "u", ProxyPassword: "p"}
		_ = o.throughProxy(context.Background(), ours, scheme, Target{Host: "h", Port: "1883"})
		ours.Close()
		wg.Wait()
	})
}

// Name servers that fail do not stop a gateway whose cloud is where it was.
func TestAddressesThatWorkedAreRemembered(t *testing.T) {
	o := DefaultOptions()
	o.URL = "mqtt://cloud.test"
	d := New(o)
	n := &network{
		answers: map[string]answerAfter{"ip6": {err: gone}, "ip4": {addrs: []string{"192.0.2.1"}}},
		hosts:   map[string]hostAfter{"192.0.2.1": {}},
	}
	d.lookup = func(string) lookup { return n.lookup }
	d.connect = func(string) connect { return n.connect }
	if _, err := d.Dial(t.Context(), d.Paths()[0]); err != nil {
		t.Fatal(err)
	}
	n.answers = map[string]answerAfter{"ip6": {err: errors.New("server misbehaving")}, "ip4": {err: errors.New("server misbehaving")}}
	if _, err := d.Dial(t.Context(), d.Paths()[0]); err != nil {
		t.Errorf("with name servers that fail: %v", err)
	}
}
