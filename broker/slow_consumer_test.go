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
