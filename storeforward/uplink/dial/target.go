package dial

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
)

// Target is one broker.
type Target struct {
	Scheme string // mqtt, tcp, mqtts, ws, wss
	Host   string
	Port   string
	Path   string // of ws and wss
	TLS    bool
}

// ParseTarget reads a URL. Its errors do not repeat it: it may carry a password.
func ParseTarget(raw string) (Target, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return Target{}, errors.New("cannot be read as a URL")
	}
	t := Target{Scheme: u.Scheme, Host: u.Hostname(), Port: u.Port()}
	port := "1883"
	switch u.Scheme {
	case "mqtt", "tcp":
	case "mqtts":
		t.TLS, port = true, "8883"
	case "ws":
		port = "80"
	case "wss":
		t.TLS, port = true, "443"
	default:
		return Target{}, fmt.Errorf("scheme %q is not one of mqtt, tcp, mqtts, ws, wss", u.Scheme)
	}
	switch {
	case t.Host == "":
		return Target{}, errors.New("has no host")
	case u.User != nil:
		return Target{}, errors.New("carries a user; use the keys username and password")
	case u.Fragment != "":
		return Target{}, errors.New("has a fragment")
	}
	if t.webSocket() {
		if t.Path = u.RequestURI(); t.Path == "/" && !strings.HasSuffix(raw, "/") {
			t.Path = "/mqtt"
		}
	} else if u.Path != "" && u.Path != "/" || u.RawQuery != "" {
		return Target{}, errors.New("has something behind the host; expected scheme://host:port")
	}
	if t.Port == "" {
		t.Port = port
	}
	if n, err := strconv.ParseUint(t.Port, 10, 16); err != nil || n == 0 {
		return Target{}, fmt.Errorf("port %q is outside 1..65535", t.Port)
	}
	return t, nil
}

func (t Target) webSocket() bool { return t.Scheme == "ws" || t.Scheme == "wss" }

// Address is host:port.
func (t Target) Address() string { return net.JoinHostPort(t.Host, t.Port) }

func (t Target) String() string { return t.Scheme + "://" + t.Address() + t.Path }

// Refer returns the broker that a Server Reference names (MQTT 5.0 §4.11): the
// first of a list of host or host:port parted by spaces, reached in the same
// way as t, so that nobody can send us from TLS to plain text.
func (t Target) Refer(reference string) (Target, error) {
	first, _, _ := strings.Cut(strings.TrimSpace(reference), " ")
	u, err := url.Parse(t.Scheme + "://" + first)
	if err != nil || u.Hostname() == "" || u.User != nil || u.Path != "" || u.RawQuery != "" {
		return Target{}, fmt.Errorf("server reference %q is not a host with or without a port", first)
	}
	to := t
	to.Host = u.Hostname()
	if p := u.Port(); p != "" {
		to.Port = p
	}
	return to, nil
}
