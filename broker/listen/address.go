package listen

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
)

// Address says where to listen and what is spoken there.
type Address struct {
	// Network is "tcp", "unix" or "systemd".
	Network string
	// Place is host:port, the path of a Unix socket, or the name of sockets
	// handed over by systemd (FileDescriptorName= in the .socket unit).
	Place string
	// TLS and WebSocket say what lies between the socket and MQTT.
	TLS, WebSocket bool
}

// expected is the end of an error about an address.
const expected = "expected tcp://host:port, tls://host:port, ws://host:port, wss://host:port, unix:///path or systemd:NAME"

// maxUnixPath is the longest path of a Unix socket on Linux, in bytes.
const maxUnixPath = 107

// ParseAddress takes an address apart: tcp://host:port (or mqtt://),
// tls://host:port (or mqtts://), ws://host:port, wss://host:port, unix:///path,
// systemd:NAME, and tls+systemd:NAME, ws+systemd:NAME, wss+systemd:NAME.
func ParseAddress(s string) (Address, error) {
	scheme, place, ok := strings.Cut(s, ":")
	if !ok {
		return Address{}, fmt.Errorf("%q is not an address; %s", s, expected)
	}
	how, isSystemd := strings.CutSuffix("+"+scheme, "+systemd")
	a := Address{Network: "tcp"}
	switch strings.TrimPrefix(how, "+") {
	case "tcp", "mqtt":
	case "tls", "mqtts":
		a.TLS = true
	case "ws":
		a.WebSocket = true
	case "wss":
		a.TLS, a.WebSocket = true, true
	case "unix":
		a.Network = "unix"
	case "":
		if !isSystemd {
			return Address{}, fmt.Errorf("%q is not supported; %s", s, expected)
		}
	default:
		return Address{}, fmt.Errorf("%q is not supported; %s", s, expected)
	}
	if isSystemd {
		return a.systemd(s, scheme, place)
	}
	place, ok = strings.CutPrefix(place, "//")
	if !ok {
		return Address{}, fmt.Errorf("%q is not an address; %s", s, expected)
	}
	a.Place = place
	if a.Network == "unix" {
		switch {
		case !filepath.IsAbs(place):
			return Address{}, fmt.Errorf("%q has no absolute path; %s", s, expected)
		case len(place) > maxUnixPath:
			return Address{}, fmt.Errorf("the path has %d bytes, a Unix socket can have %d", len(place), maxUnixPath)
		}
		return a, nil
	}
	if a.WebSocket && strings.Contains(place, "/") {
		return Address{}, fmt.Errorf("%q has a path; paths are set by websocket_paths", s)
	}
	return a, checkHostPort(place)
}

// systemd completes an address whose socket exists already.
func (a Address) systemd(s, scheme, name string) (Address, error) {
	switch {
	case scheme != "systemd" && !a.TLS && !a.WebSocket:
		return Address{}, fmt.Errorf("%q: systemd: alone takes TCP and Unix sockets alike", s)
	case name == "" || strings.HasPrefix(name, "/"):
		return Address{}, fmt.Errorf("%q has no name; expected systemd:NAME with NAME as in FileDescriptorName= of the .socket unit", s)
	}
	a.Network, a.Place = "systemd", name
	return a, nil
}

func checkHostPort(address string) error {
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("%q is not host:port", address)
	}
	if n, err := strconv.ParseUint(service, 10, 16); err != nil {
		return fmt.Errorf("port %q is outside 0..65535", service)
	} else if host == "" {
		return errors.New("the host is missing; name the address to listen on, or 0.0.0.0 for all: port " + strconv.FormatUint(n, 10))
	}
	return nil
}
