package dial

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// netDialer opens sockets with our options through one interface, or any when
// that is empty.
func (o *Options) netDialer(iface string) *net.Dialer {
	d := &net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: o.TCPKeepAlive > 0, Idle: o.TCPKeepAlive, Interval: o.TCPKeepAlive, Count: 3}}
	if o.TCPKeepAlive == 0 {
		d.KeepAlive = -1
	}
	d.ControlContext = o.control(iface)
	return d
}

// control has a socket set before it connects.
func (o *Options) control(iface string) func(context.Context, string, string, syscall.RawConn) error {
	return func(_ context.Context, _, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) { failed = o.setSocket(int(fd), iface) })
		return errors.Join(err, failed)
	}
}

// setSocket sets what must be there before the connection is made.
func (o *Options) setSocket(fd int, iface string) error {
	if iface != "" {
		if err := unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, iface); err != nil {
			if err == unix.EPERM {
				return fmt.Errorf("use interface %s: %w (it takes Linux 5.7 or CAP_NET_RAW)", iface, err)
			}
			return fmt.Errorf("use interface %s: %w", iface, err)
		}
	}
	if o.TCPUserTimeout > 0 {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(o.TCPUserTimeout/time.Millisecond)); err != nil {
			return fmt.Errorf("TCP_USER_TIMEOUT: %w", err)
		}
	}
	if o.TCPNotSentLowat > 0 {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, o.TCPNotSentLowat); err != nil {
			return fmt.Errorf("TCP_NOTSENT_LOWAT: %w", err)
		}
	}
	return nil
}

// connectThrough returns how to open a connection through the interface.
func (o *Options) connectThrough(iface string) connect {
	d := o.netDialer(iface)
	source, _ := netip.ParseAddr(o.SourceAddress)
	if source.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(source, 0))
	}
	return func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
		if source.IsValid() && source.Unmap().Is4() != to.Addr().Is4() {
			return nil, fmt.Errorf("%s cannot be reached from %s", to, source)
		}
		return d.DialContext(ctx, "tcp", to.String())
	}
}

// lookupThrough returns how to ask the name servers, through the interface
// where they are not on this machine.
func (o *Options) lookupThrough(iface string) lookup {
	r := &net.Resolver{PreferGo: true}
	r.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		d := &net.Dialer{}
		server, err := netip.ParseAddrPort(address)
		if iface != "" && err == nil && !server.Addr().IsLoopback() {
			d.ControlContext = (&Options{}).control(iface) // no timeouts of TCP: it may be UDP
		}
		nc, err := d.DialContext(ctx, network, address)
		if err == nil {
			// The resolver would wait for a silent server after we have given
			// up. A deadline on what is closed by then does nothing.
			context.AfterFunc(ctx, func() { _ = nc.SetDeadline(past) })
		}
		return nc, err
	}
	return r.LookupNetIP
}
