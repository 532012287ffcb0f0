package broker_test

import (
	"bytes"
	"fmt"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker"
	"holdfast/broker/brokertest"
	"holdfast/broker/packet"
)

// TestHostilePackets: what a connected client may not send ends its connection
// as the specification says, and a well-behaved client is served throughout.
func TestHostilePackets(t *testing.T) {
	text := func(s string) string { return string([]byte{byte(len(s) >> 8), byte(len(s))}) + s }
	tests := map[string]struct {
		in   string
		want packet.ReasonCode
	}{
		"a second CONNECT":                     {"\x10\x0e\x00\x04MQTT\x05\x02\x00\x00\x00\x00\x01a", packet.ReasonProtocolError},
		"CONNACK":                              {"\x20\x03\x00\x00\x00", packet.ReasonProtocolError},
		"SUBACK":                               {"\x90\x04\x00\x01\x00\x00", packet.ReasonProtocolError},
		"UNSUBACK":                             {"\xb0\x04\x00\x01\x00\x00", packet.ReasonProtocolError},
		"PINGRESP":                             {"\xd0\x00", packet.ReasonProtocolError},
		"AUTH":                                 {"\xf0\x00", packet.ReasonProtocolError},
		"reserved type 0":                      {"\x00\x00", packet.ReasonMalformedPacket},
		"QoS 3":                                {"\x36\x06\x00\x01a\x00\x01\x00", packet.ReasonMalformedPacket},
		"DUP with QoS 0":                       {"\x38\x04\x00\x01a\x00", packet.ReasonMalformedPacket},
		"packet id 0":                          {"\x32\x06\x00\x01a\x00\x00\x00", packet.ReasonProtocolError},
		"empty topic without an alias":         {"\x30\x03\x00\x00\x00", packet.ReasonProtocolError},
		"topic with '#'":                       {"\x30\x06" + text("a/#") + "\x00", packet.ReasonTopicNameInvalid},
		"topic with '+'":                       {"\x30\x06" + text("a/+") + "\x00", packet.ReasonTopicNameInvalid},
		"topic with U+0000":                    {"\x30\x06" + text("a\x00b") + "\x00", packet.ReasonMalformedPacket},
		"topic that is no UTF-8":               {"\x30\x06" + text("a\xff\xfe") + "\x00", packet.ReasonMalformedPacket},
		"topic with a surrogate":               {"\x30\x06" + text("\xed\xa0\x80") + "\x00", packet.ReasonMalformedPacket},
		"topic longer than the packet":         {"\x30\x04\x00\x09a\x00", packet.ReasonMalformedPacket},
		"subscription identifier in a PUBLISH": {"\x30\x06" + text("a") + "\x02\x0b\x01", packet.ReasonProtocolError},
		"topic alias 0":                        {"\x30\x07" + text("a") + "\x03\x23\x00\x00", packet.ReasonTopicAliasInvalid},
		"topic alias over the maximum":         {"\x30\x07" + text("a") + "\x03\x23\xff\xff", packet.ReasonTopicAliasInvalid},
		"topic alias never set":                {"\x30\x06\x00\x00\x03\x23\x00\x01", packet.ReasonProtocolError},
		"a property twice":                     {"\x30\x08" + text("a") + "\x04\x01\x00\x01\x00", packet.ReasonProtocolError},
		"a property of another packet":         {"\x30\x09" + text("a") + "\x05\x11\x00\x00\x00\x01", packet.ReasonMalformedPacket},
		"property length beyond the packet":    {"\x30\x05" + text("a") + "\x7f\x01", packet.ReasonMalformedPacket},
		"SUBSCRIBE without filters":            {"\x82\x03\x00\x01\x00", packet.ReasonProtocolError},
		"SUBSCRIBE with wrong flags":           {"\x80\x07\x00\x01\x00" + text("a") + "\x00", packet.ReasonMalformedPacket},
		"SUBSCRIBE with reserved option bits":  {"\x82\x07\x00\x01\x00" + text("a") + "\xc0", packet.ReasonMalformedPacket},
		"SUBSCRIBE with QoS 3":                 {"\x82\x07\x00\x01\x00" + text("a") + "\x03", packet.ReasonProtocolError},
		"SUBSCRIBE with retain handling 3":     {"\x82\x07\x00\x01\x00" + text("a") + "\x30", packet.ReasonProtocolError},
		"SUBSCRIBE with identifier 0":          {"\x82\x09\x00\x01\x02\x0b\x00" + text("a") + "\x00", packet.ReasonProtocolError},
		"UNSUBSCRIBE without filters":          {"\xa2\x03\x00\x01\x00", packet.ReasonProtocolError},
		"PUBREL with wrong flags":              {"\x60\x02\x00\x01", packet.ReasonMalformedPacket},
		"DISCONNECT with a server's reason":    {"\xe0\x01\x8e", packet.ReasonProtocolError},
		"a length of five bytes":               {"\x30\xff\xff\xff\xff\x01", packet.ReasonMalformedPacket},
		"a packet over the maximum size":       {"\x30\xff\xff\xff\x7f", packet.ReasonPacketTooLarge},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			provoke(t, packet.V5, tt.in, func(reason packet.ReasonCode, told bool) {
				if !told || reason != tt.want {
					t.Errorf("DISCONNECT %v (sent: %v), want %v", reason, told, tt.want)
				}
			})
		})
	}
}

// TestHostilePackets3 is the same for 3.1.1, where the connection ends without
// a word (MQTT 3.1.1 §4.8 [MQTT-4.8.0-1]).
func TestHostilePackets3(t *testing.T) {
	for name, in := range map[string]string{
		"a second CONNECT":          "\x10\x0d\x00\x04MQTT\x04\x02\x00\x00\x00\x01a",
		"PINGRESP":                  "\xd0\x00",
		"AUTH":                      "\xf0\x00",
		"reserved type 0":           "\x00\x00",
		"QoS 3":                     "\x36\x05\x00\x01a\x00\x01",
		"packet id 0":               "\x32\x05\x00\x01a\x00\x00",
		"empty topic":               "\x30\x02\x00\x00",
		"topic with '#'":            "\x30\x05\x00\x03a/#",
		"SUBSCRIBE without filters": "\x82\x02\x00\x01",
		"SUBSCRIBE with QoS 3":      "\x82\x06\x00\x01\x00\x01a\x03",
		"a packet over the maximum": "\x30\xff\xff\xff\x7f",
	} {
		t.Run(name, func(t *testing.T) {
			provoke(t, packet.V311, in, func(reason packet.ReasonCode, told bool) {
				if told {
					t.Errorf("DISCONNECT %v", reason)
				}
			})
		})
	}
}

// provoke has a connected client send in, hands over how that ended, and checks
// that its will came, that nothing is left of it, and that another client did
// not notice.
func provoke(t *testing.T, version packet.Version, in string, ended func(packet.ReasonCode, bool)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t, nil)
		good := brokertest.Connect(t, b.Pipe(), brokertest.V5("good"))
		good.Subscribe(2, "good")
		bad := brokertest.Connect(t, b.Pipe(), &packet.Connect{
			Version: version, ClientID: "bad", CleanStart: true, Will: &packet.Will{Topic: "good", Payload: []byte("will")},
		})
		bad.SendBytes([]byte(in))
		ended(bad.Ended())
		if r := good.Publish(2, false, "good", "mine"); r != 0 {
			t.Errorf("the good client got %v", r)
		}
		if got := good.Messages(2); got[0] != "will" || got[1] != "mine" {
			t.Errorf("the good client got %q", got)
		}
		synctest.Wait()
		if st := b.Status(); st.Connections != 1 || st.Sessions != 1 || st.ProtocolErrors != 1 {
			t.Errorf("status %+v", st)
		}
	})
}

// TestSlowConsumer: a client that does not read loses QoS 0, then its
// connection when its queue is full; nobody else notices.
func TestSlowConsumer(t *testing.T) {
	small := func(o *broker.Options) { o.MaxOutput, o.MaxQueued, o.MaxInflight = 8192, 50, 10 }
	payload := strings.Repeat("x", 1000)
	t.Run("QoS 0 is dropped", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := brokertest.New(t, nil, small)
			slow := connectAndStopReading(t, b, brokertest.V5("slow"), 0)
			fast := brokertest.Connect(t, b.Pipe(), brokertest.V5("fast"))
			fast.Subscribe(0, "a")
			c := brokertest.Connect(t, b.Pipe(), brokertest.V5("c"))
			for range 100 {
				c.Publish(0, false, "a", payload)
				fast.Message()
			}
			if st := b.Status(); st.DroppedSlow < 80 || st.DroppedSlow > 95 || st.Clients != 3 {
				t.Errorf("status %+v", st)
			}
			slow.Close()
		})
	})
	for qos := byte(1); qos <= 2; qos++ {
		t.Run(fmt.Sprintf("QoS %d ends the session", qos), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := brokertest.New(t, nil, small)
				slow := connectAndStopReading(t, b, brokertest.V5("slow"), qos)
				defer slow.Close()
				fast := brokertest.Connect(t, b.Pipe(), brokertest.V5("fast"))
				fast.Subscribe(qos, "a")
				c := brokertest.Connect(t, b.Pipe(), brokertest.V5("c"))
				for range 100 {
					if r := c.Publish(qos, false, "a", payload); r != 0 {
						t.Fatalf("publisher got %v", r)
					}
					fast.Message()
				}
				pass(2 * time.Second)
				if st := b.Status(); st.DroppedQueueFull != 51 || st.Clients != 2 {
					t.Errorf("status %+v", st)
				}
			})
		})
		t.Run(fmt.Sprintf("QoS %d waits in the store of a persistent session", qos), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := brokertest.New(t, nil, small)
				connect := brokertest.Keep(brokertest.V5("slow"), 600)
				slow := connectAndStopReading(t, b, connect, qos)
				c := brokertest.Connect(t, b.Pipe(), brokertest.V5("c"))
				for i := range 100 {
					if r := c.Publish(qos, false, "a", fmt.Sprint(i)); r != 0 {
						t.Fatalf("publisher got %v", r)
					}
				}
				slow.Close()
				synctest.Wait()
				again := brokertest.Connect(t, b.Pipe(), connect)
				for i, got := range again.Messages(100) {
					if got != fmt.Sprint(i) {
						t.Fatalf("message %d is %q", i, got)
					}
				}
			})
		})
	}
	t.Run("a client that reads no acknowledgements", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := brokertest.New(t, nil, small)
			nc := connectAndStopReading(t, b, brokertest.V4("deaf"), 0)
			frame, err := (&packet.Publish{QoS: 1, PacketID: 1, Topic: []byte("b")}).AppendTo(nil, packet.V311)
			if err != nil {
				t.Fatal(err)
			}
			frames := bytes.Repeat(frame, 100)
			for range 1000 {
				if _, err = nc.Write(frames); err != nil {
					break
				}
			}
			if err == nil {
				t.Error("400 kB of acknowledgements are waiting and the broker reads on")
			}
			pass(2 * time.Second)
			if st := b.Status(); st.Clients != 0 {
				t.Errorf("status %+v", st)
			}
		})
	})
}

// connectAndStopReading subscribes to "a" and never reads again.
func connectAndStopReading(t *testing.T, b *brokertest.Broker, p *packet.Connect, qos byte) net.Conn {
	t.Helper()
	nc := b.Pipe()
	frames, err := p.AppendTo(nil, p.Version)
	if err == nil {
		frames, err = (&packet.Subscribe{PacketID: 1, Filters: []packet.Filter{{Filter: "a", QoS: qos}}}).AppendTo(frames, p.Version)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := nc.Write(frames); err != nil {
		t.Fatal(err)
	}
	r := packet.NewReader(nc, 0)
	r.SetVersion(p.Version)
	for range 2 {
		if _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Wait()
	return nc
}

// TestLargerThanTheClientTakes: such a message is left out, and counted.
func TestLargerThanTheClientTakes(t *testing.T) {
	for name, connect := range map[string]*packet.Connect{
		"clean": brokertest.V5("sub"), "persistent": brokertest.Keep(brokertest.V5("sub"), 600),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := brokertest.New(t, nil)
				connect.Properties.MaximumPacketSize = 100
				sub := brokertest.Connect(t, b.Pipe(), connect)
				sub.SubscribeWith(1, packet.Filter{Filter: "a", QoS: 2})
				synctest.Wait()
				c := brokertest.Connect(t, b.Pipe(), brokertest.V5("c"))
				for qos := byte(0); qos <= 2; qos++ {
					c.Publish(qos, false, "a", strings.Repeat("x", 100))
					c.Publish(qos, false, "a", "small")
				}
				if got := sub.Messages(3); got[0] != "small" || got[2] != "small" {
					t.Errorf("got %q", got)
				}
				synctest.Wait()
				if st := b.Status(); st.DroppedTooLarge != 3 {
					t.Errorf("status %+v", st)
				}
				if n := b.Store.Backlog("sub"); n != 0 {
					t.Errorf("%d left in the store", n)
				}
			})
		})
	}
}

// TestTooLargeNow: what a client took and takes no more is finished.
func TestTooLargeNow(t *testing.T) {
	for qos := byte(1); qos <= 2; qos++ {
		t.Run(fmt.Sprint("QoS ", qos), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := brokertest.New(t, nil)
				connect := brokertest.Keep(brokertest.V5("sub"), 600)
				sub := brokertest.Connect(t, b.Pipe(), connect)
				sub.SetManual(true)
				sub.Subscribe(2, "a")
				synctest.Wait()
				c := brokertest.Connect(t, b.Pipe(), brokertest.V5("c"))
				c.Publish(qos, false, "a", strings.Repeat("x", 100))
				c.Publish(qos, false, "a", "small")
				sub.Messages(2)
				sub.Kill()
				synctest.Wait()
				connect.Properties.MaximumPacketSize = 100
				sub = brokertest.Connect(t, b.Pipe(), connect)
				if got := sub.Messages(1); got[0] != "small" {
					t.Errorf("got %q", got)
				}
				synctest.Wait()
				if n := b.Store.Backlog("sub"); n != 0 || b.Store.DroppedFor("sub", "too large") != 1 {
					t.Errorf("%d left in the store, %d dropped", n, b.Store.DroppedFor("sub", "too large"))
				}
			})
		})
	}
}
