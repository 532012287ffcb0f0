package dial

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// ErrProxyLogin means that the proxy wants other credentials.
var ErrProxyLogin = errors.New("the proxy refuses proxy_username and proxy_password")

// maxProxyHead bounds the header of a proxy's answer, in bytes.
const maxProxyHead = 16 << 10

// past is a deadline that unblocks what waits.
var past = time.Unix(1, 0)

// throughProxy asks the proxy at the other end of nc for a way to the target.
// It reads no byte beyond the answer.
func (o *Options) throughProxy(ctx context.Context, nc net.Conn, scheme string, to Target) error {
	stop := context.AfterFunc(ctx, func() { _ = nc.SetDeadline(past) })
	var err error
	if scheme == "socks5" {
		err = o.socks5(nc, to)
	} else {
		err = o.httpConnect(nc, to)
	}
	if !stop() {
		return fmt.Errorf("wait for the proxy: %w", context.Cause(ctx))
	}
	return err
}

// httpConnect is RFC 9110 §9.3.6.
func (o *Options) httpConnect(nc net.Conn, to Target) error {
	var req bytes.Buffer
	fmt.Fprintf(&req, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n", to.Address(), to.Address())
	if o.ProxyUsername != "" {
		login := base64.StdEncoding.EncodeToString([]byte(o.ProxyUsername + ":" + o.ProxyPassword))
		fmt.Fprintf(&req, "Proxy-Authorization: Basic %s\r\n", login)
	}
	req.WriteString("\r\n")
	if _, err := nc.Write(req.Bytes()); err != nil {
		return err
	}
	// Byte by byte: what follows the header is the cloud's.
	var head []byte
	one := make([]byte, 1)
	for !bytes.HasSuffix(head, []byte("\r\n\r\n")) {
		if len(head) >= maxProxyHead {
			return errors.New("the proxy's answer is too long")
		}
		if _, err := io.ReadFull(nc, one); err != nil {
			return fmt.Errorf("read the proxy's answer: %w", err)
		}
		head = append(head, one[0])
	}
	line, _, _ := strings.Cut(string(head), "\r\n")
	version, status, _ := strings.Cut(line, " ")
	code, _ := strconv.Atoi(status[:min(3, len(status))])
	switch {
	case !strings.HasPrefix(version, "HTTP/1."):
		return fmt.Errorf("%q is not an answer of an HTTP proxy", clip(line))
	case code == 407: // Proxy Authentication Required
		return fmt.Errorf("%w: %s", ErrProxyLogin, clip(status))
	case code < 200 || code > 299:
		return fmt.Errorf("the proxy answers %q", clip(status))
	}
	return nil
}

// clip keeps what a stranger says short.
func clip(s string) string { return s[:min(len(s), 80)] }

// socksReplies are those of RFC 1928 §6.
var socksReplies = []string{
	"", "general failure", "not allowed by its rules", "network unreachable", "host unreachable",
	"connection refused", "time to live expired", "command not supported", "address type not supported",
}

// socks5 is RFC 1928, with the passwords of RFC 1929. The name goes to the
// proxy, which may know more than our name server.
func (o *Options) socks5(nc net.Conn, to Target) error {
	const version, noLogin, password, refused = 5, 0, 2, 0xFF
	hello := []byte{version, 1, noLogin}
	if o.ProxyUsername != "" {
		hello = []byte{version, 2, noLogin, password}
	}
	if _, err := nc.Write(hello); err != nil {
		return err
	}
	chosen, err := read(nc, 2)
	switch {
	case err != nil:
		return err
	case chosen[0] != version:
		return errors.New("what answers is no SOCKS5 proxy")
	case chosen[1] == refused:
		return fmt.Errorf("%w: it takes no log-in of ours", ErrProxyLogin)
	case chosen[1] == password && o.ProxyUsername != "":
		login := append([]byte{1, byte(len(o.ProxyUsername))}, o.ProxyUsername...)
		login = append(append(login, byte(len(o.ProxyPassword))), o.ProxyPassword...)
		if _, err := nc.Write(login); err != nil {
			return err
		}
		if b, err := read(nc, 2); err != nil {
			return err
		} else if b[1] != 0 {
			return ErrProxyLogin
		}
	case chosen[1] != noLogin:
		return fmt.Errorf("the proxy chose log-in method %d, which was not offered", chosen[1])
	}
	port, err := strconv.ParseUint(to.Port, 10, 16)
	if err != nil {
		return err
	}
	req := []byte{version, 1, 0}
	switch ip, err := netip.ParseAddr(to.Host); {
	case err != nil:
		if len(to.Host) > 255 {
			return errors.New("the name is too long for SOCKS5")
		}
		req = append(append(req, 3, byte(len(to.Host))), to.Host...)
	case ip.Is4():
		req = append(append(req, 1), ip.AsSlice()...)
	default:
		req = append(append(req, 4), ip.AsSlice()...)
	}
	if _, err := nc.Write(append(req, byte(port>>8), byte(port))); err != nil {
		return err
	}
	reply, err := read(nc, 4)
	if err != nil {
		return err
	}
	if code := int(reply[1]); code != 0 {
		why := fmt.Sprintf("code %d", code)
		if code < len(socksReplies) {
			why = socksReplies[code]
		}
		return fmt.Errorf("the proxy cannot connect: %s", why)
	}
	// The address it connects from, which nobody asked for.
	rest := map[byte]int{1: 4, 4: 16}[reply[3]]
	if reply[3] == 3 {
		n, err := read(nc, 1)
		if err != nil {
			return err
		}
		rest = int(n[0])
	}
	_, err = read(nc, rest+2)
	return err
}

func read(nc net.Conn, n int) ([]byte, error) {
	b := make([]byte, n)
	if _, err := io.ReadFull(nc, b); err != nil {
		return nil, fmt.Errorf("read the proxy's answer: %w", err)
	}
	return b, nil
}
