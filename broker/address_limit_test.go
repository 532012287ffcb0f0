package broker_test

import (
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"

	"holdfast/broker"
	"holdfast/broker/brokertest"
	"holdfast/broker/packet"
)

// from is a connection that comes from elsewhere.
type from struct {
	net.Conn
	remote net.TCPAddr
}

func (f *from) RemoteAddr() net.Addr { return &f.remote }

func TestConnectionsPerAddress(t *testing.T) { synctest.Test(t, testConnectionsPerAddress) }

func testConnectionsPerAddress(t *testing.T) {
	b := brokertest.New(t, nil, func(o *broker.Options) { o.MaxConnectionsPerAddress = 2 })
	dial := func(ip string) net.Conn {
		client, server := net.Pipe()
		b.ServeConn(&from{server, net.TCPAddr{IP: net.ParseIP(ip), Port: 1}}, broker.Listener{Anonymous: broker.AnonymousAlways})
		return client
	}
	refused := func(nc net.Conn) {
		t.Helper()
		if n, err := nc.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("one connection too many: read %d bytes, %v, want the end", n, err)
		}
	}
	first := brokertest.Connect(t, dial("192.0.2.1"), brokertest.V5("a"))
	brokertest.Connect(t, dial("::ffff:192.0.2.1"), brokertest.V5("b"))
	refused(dial("192.0.2.1"))
	// Others are not touched, and this machine is not counted.
	brokertest.Connect(t, dial("192.0.2.2"), brokertest.V5("c"))
	for _, id := range []string{"d", "e", "f"} {
		brokertest.Connect(t, dial("127.0.0.1"), brokertest.V5(id))
	}
	// One IPv6 host has a whole /64.
	brokertest.Connect(t, dial("2001:db8::1"), brokertest.V5("g"))
	brokertest.Connect(t, dial("2001:db8::2"), brokertest.V5("h"))
	refused(dial("2001:db8::3"))
	brokertest.Connect(t, dial("2001:db8:0:1::1"), brokertest.V5("i"))
	if got := b.Status(); got.Connections != 9 || got.ConnectsRefused != 2 {
		t.Errorf("%d connections, %d refused, want 9 and 2", got.Connections, got.ConnectsRefused)
	}
	// Who goes makes room.
	first.Disconnect(packet.ReasonSuccess)
	synctest.Wait()
	brokertest.Connect(t, dial("192.0.2.1"), brokertest.V5("j"))
}
