package broker_test

import (
	"net"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker"
	"holdfast/broker/brokertest"
	"holdfast/broker/packet"
)

// FuzzConnection sends arbitrary bytes in arbitrary pieces, after a CONNECT or
// without one, over two connections of one client id. The broker does not
// panic, a well-behaved client is served, and once every session has expired
// nothing is left: no session, no subscription, no will, no goroutine (which the
// bubble of synctest sees to).
//
// The first byte says how: its lowest two bits the version (0: no CONNECT),
// then whether the session is kept, whether the client comes a second time,
// and the size of the pieces (0: all at once).
func FuzzConnection(f *testing.F) {
	for _, c := range readHostile(f) {
		var b []byte
		how := byte(0)
		for _, s := range c.steps {
			switch s.verb {
			case "connect":
				how |= byte(c.version) - 2
				if s.rest == "keep" {
					how |= 4
				}
			case "dial":
				how |= 8
			case ">":
				b = append(b, s.bytes...)
			}
		}
		if len(b) <= 4096 {
			f.Add(append([]byte{how}, b...))
			f.Add(append([]byte{how | 3<<4}, b...))
		}
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) == 0 {
			return
		}
		synctest.Test(t, func(t *testing.T) { fuzzConnection(t, in[0], in[1:]) })
	})
}

// fuzzExpiry is the longest life of a session while fuzzing.
const fuzzExpiry = 100 * time.Second

func fuzzConnection(t *testing.T, how byte, in []byte) {
	t.Helper()
	b := brokertest.New(t, nil, func(o *broker.Options) {
		o.MaxSessionExpiry = fuzzExpiry
		o.ReceiveMaximum, o.MaxUnacknowledgedBytes, o.MaxInflight, o.MaxQueued, o.MaxOutput = 4, 1024, 3, 5, 4096
		o.MaxSubscriptions, o.MaxRetained, o.MaxUnreleased, o.MaxUserProperties = 5, 5, 6, 3
	})
	good := brokertest.Connect(t, b.Pipe(), brokertest.V5("good"))
	good.Subscribe(2, "good")
	fuzzSend(b.Pipe(), how, in)
	if how&8 != 0 {
		fuzzSend(b.Pipe(), how, in)
	}
	// It may have published to the same topic, and retained there.
	if r := good.Publish(2, false, "good", "the good client's"); r != 0 {
		t.Fatalf("the good client got %v", r)
	}
	for string(good.Message().Payload) != "the good client's" {
	}
	// Whatever keep alive was asked for, the connections are closed.
	pass(fuzzExpiry + 2*time.Second)
	synctest.Wait()
	st := b.Status()
	if st.Connections != 1 || st.Handshakes != 0 || st.Sessions != 1 || st.Subscriptions != 1 || st.PendingWills != 0 {
		t.Errorf("left: %d connections, %d handshakes, %d sessions, %d subscriptions, %d wills, want 1, 0, 1, 1, 0",
			st.Connections, st.Handshakes, st.Sessions, st.Subscriptions, st.PendingWills)
	}
}

// fuzzSend is one connection from its first byte to its end.
func fuzzSend(nc net.Conn, how byte, in []byte) {
	c := newRandomClient(nc, packet.V5)
	defer c.close()
	if v := how & 3; v > 0 {
		p := &packet.Connect{Version: packet.Version(v + 2), ClientID: "fuzz", CleanStart: true}
		if how&4 != 0 {
			p = brokertest.Keep(p, 50)
		}
		p.Will = &packet.Will{Topic: "will", Payload: []byte("x"), QoS: 1}
		c.version = p.Version
		c.send(p)
	}
	size := int(how >> 4)
	if size == 0 {
		size = len(in)
	}
	for len(in) > 0 {
		n := min(size, len(in))
		c.sendBytes(in[:n])
		in = in[n:]
	}
	synctest.Wait()
}
