package broker_test

import (
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"pgregory.net/rapid"

	"holdfast/broker"
	"holdfast/broker/brokertest"
	"holdfast/broker/packet"
)

// TestRandomPackets: whatever several clients send in whatever order, the
// broker does not panic, stops, and a well-behaved client is served. (goleak in
// TestMain sees to it that no goroutine is left.)
func TestRandomPackets(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		b := brokertest.New(t, nil, func(o *broker.Options) {
			o.ReceiveMaximum, o.MaxUnacknowledgedBytes, o.MaxInflight, o.MaxQueued = 4, 1024, 3, 5
			o.MaxSubscriptions, o.MaxRetained, o.MaxOutput = 5, 5, 4096
		})
		clients := make([]*randomClient, 3)
		for range rapid.IntRange(1, 60).Draw(rt, "steps") {
			i := rapid.IntRange(0, len(clients)-1).Draw(rt, "client")
			c := clients[i]
			if c == nil || rapid.IntRange(0, 19).Draw(rt, "again") == 0 {
				c.close()
				c = newRandomClient(b.Pipe(), packet.Version(rapid.IntRange(3, 5).Draw(rt, "version")))
				clients[i] = c
				c.send(randomConnect(rt, c.version))
				continue
			}
			if rapid.IntRange(0, 29).Draw(rt, "noise") == 0 {
				c.sendBytes(rapid.SliceOfN(rapid.Byte(), 1, 20).Draw(rt, "bytes"))
				continue
			}
			c.send(randomPacket(rt))
		}
		good := brokertest.Connect(t, b.Pipe(), brokertest.V5("good"))
		good.Subscribe(2, "good")
		good.Publish(2, false, "good", "x")
		good.Message()
		good.Disconnect(0)
		for _, c := range clients {
			c.close()
		}
		b.Stop(t)
		b.Store.Close()
		if st := b.Status(); st.Connections != 0 {
			rt.Fatalf("connections are left: %+v", st)
		}
	})
}

// randomClient reads and forgets.
type randomClient struct {
	nc      net.Conn
	version packet.Version
	done    chan struct{}
}

func newRandomClient(nc net.Conn, v packet.Version) *randomClient {
	c := &randomClient{nc: nc, version: v, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		_, _ = io.Copy(io.Discard, nc) // ends with the connection
	}()
	return c
}

func (c *randomClient) close() {
	if c == nil {
		return
	}
	c.nc.Close()
	<-c.done
}

func (c *randomClient) send(p packet.Packet) {
	if b, err := p.AppendTo(nil, c.version); err == nil {
		c.sendBytes(b)
	}
}

func (c *randomClient) sendBytes(b []byte) {
	_ = c.nc.SetWriteDeadline(time.Now().Add(10 * time.Second))
	_, _ = c.nc.Write(b) // the broker may have hung up
}

var randomTopics = []string{"a", "a/b", "$SYS/x", "c/+", "", "a/b/c/d", "$share/g/a", "#", "+/b", "$share/g/#"}

func randomConnect(t *rapid.T, v packet.Version) *packet.Connect {
	p := &packet.Connect{
		Version: v, ClientID: rapid.SampledFrom([]string{"1", "2", "3", ""}).Draw(t, "id"),
		CleanStart: rapid.Bool().Draw(t, "clean"),
	}
	if v == packet.V5 {
		p.Properties.SessionExpiry = new(rapid.SampledFrom([]uint32{0, 1, 100}).Draw(t, "expiry"))
		p.Properties.ReceiveMaximum = rapid.Uint16Range(0, 3).Draw(t, "receive maximum")
		p.Properties.MaximumPacketSize = rapid.SampledFrom([]uint32{0, 30}).Draw(t, "maximum packet size")
	}
	if rapid.Bool().Draw(t, "will") {
		p.Will = &packet.Will{Topic: rapid.SampledFrom(randomTopics).Draw(t, "will topic"), QoS: rapid.ByteRange(0, 2).Draw(t, "will QoS"), Retain: rapid.Bool().Draw(t, "will retain")}
	}
	return p
}

func randomPacket(t *rapid.T) packet.Packet {
	id := rapid.Uint16Range(0, 5).Draw(t, "packet id")
	reason := packet.ReasonCode(rapid.SampledFrom([]byte{0, 0, 0, 0x10, 0x80, 0x92, 0x97}).Draw(t, "reason"))
	topic := rapid.SampledFrom(randomTopics).Draw(t, "topic")
	switch rapid.IntRange(0, 13).Draw(t, "type") {
	case 0:
		return &packet.Puback{PacketID: id, Reason: reason}
	case 1:
		return &packet.Pubrec{PacketID: id, Reason: reason}
	case 2:
		return &packet.Pubrel{PacketID: id}
	case 3:
		return &packet.Pubcomp{PacketID: id}
	case 4, 5:
		f := packet.Filter{Filter: topic, QoS: rapid.ByteRange(0, 2).Draw(t, "QoS"), RetainHandling: rapid.ByteRange(0, 2).Draw(t, "handling")}
		f.NoLocal, f.RetainAsPublished = rapid.Bool().Draw(t, "no local"), rapid.Bool().Draw(t, "as published")
		p := &packet.Subscribe{PacketID: id, Filters: []packet.Filter{f}}
		p.Properties.SubscriptionID = rapid.Uint32Range(0, 2).Draw(t, "subscription id")
		return p
	case 6:
		return &packet.Unsubscribe{PacketID: id, Filters: []string{topic}}
	case 7:
		return &packet.Pingreq{}
	case 8:
		if rapid.IntRange(0, 3).Draw(t, "really") > 0 {
			return &packet.Pingreq{}
		}
		return &packet.Disconnect{Reason: packet.ReasonCode(rapid.SampledFrom([]byte{0, 4, 0x80}).Draw(t, "goodbye"))}
	default:
		p := &packet.Publish{
			QoS: rapid.ByteRange(0, 2).Draw(t, "QoS"), Retain: rapid.Bool().Draw(t, "retain"), PacketID: id,
			Topic: []byte(topic), TopicAlias: rapid.Uint16Range(0, 2).Draw(t, "alias"),
			Payload: fmt.Append(nil, rapid.IntRange(0, 99).Draw(t, "payload")),
		}
		p.Dup = rapid.Bool().Draw(t, "dup")
		p.HasExpiry = rapid.Bool().Draw(t, "expires")
		return p
	}
}
