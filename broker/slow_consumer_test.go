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

// TestSlowSubscribersHarmNobody: whatever becomes of those that do not read, the
// others get each message without a moment passing.
func TestSlowSubscribersHarmNobody(t *testing.T) { synctest.Test(t, testSlowSubscribersHarmNobody) }

func testSlowSubscribersHarmNobody(t *testing.T) {
	b := brokertest.New(t, nil, func(o *broker.Options) { o.MaxOutput, o.MaxQueued, o.MaxInflight = 8192, 50, 10 })
	for qos := range byte(3) {
		for _, connect := range []*packet.Connect{brokertest.V5("slow"), brokertest.Keep(brokertest.V4("slow and kept"), 0)} {
			connect.ClientID += fmt.Sprint(qos)
			slow := connectAndStopReading(t, b, connect, qos)
			defer slow.Close()
		}
	}
	var fast []*brokertest.Client
	for qos := range byte(3) {
		for _, connect := range []*packet.Connect{brokertest.V5("fast"), brokertest.V4("fast 4"), brokertest.Keep(brokertest.V5("fast and kept"), 600)} {
			connect.ClientID += fmt.Sprint(qos)
			c := brokertest.Connect(t, b.Pipe(), connect)
			c.Subscribe(qos, "a")
			fast = append(fast, c)
		}
	}
	pub := brokertest.Connect(t, b.Pipe(), brokertest.V5("pub"))
	payload := strings.Repeat("x", 1000)
	start := time.Now()
	for i := range 300 {
		if r := pub.Publish(byte(i%3), false, "a", payload); r != 0 {
			t.Fatalf("message %d was answered with %v", i, r)
		}
		synctest.Wait()
		for n, c := range fast {
			if got := c.Received(); got != i+1 {
				t.Fatalf("fast subscriber %d has %d messages of %d", n, got, i+1)
			}
		}
	}
	if d := time.Since(start); d != 0 {
		t.Errorf("it took %v of waiting", d)
	}
	pass(2 * time.Second)
	// Gone are those that were to get QoS 1 and 2 and whose sessions do not keep it.
	if st := b.Status(); st.Clients != len(fast)+1+4 || st.DroppedSlow == 0 || st.DroppedQueueFull == 0 {
		t.Errorf("%d clients, %d and %d dropped", st.Clients, st.DroppedSlow, st.DroppedQueueFull)
	}
}

// TestSlowConsumerIsTold: the last thing a client reads that let too much wait
// is why it was disconnected.
func TestSlowConsumerIsTold(t *testing.T) {
	for qos := byte(1); qos <= 2; qos++ {
		synctest.Test(t, func(t *testing.T) {
			b := brokertest.New(t, nil, func(o *broker.Options) { o.MaxOutput, o.MaxQueued, o.MaxInflight = 8192, 50, 10 })
			slow := connectAndStopReading(t, b, brokertest.V5("slow"), qos)
			defer slow.Close()
			pub := brokertest.Connect(t, b.Pipe(), brokertest.V5("pub"))
			for range 70 {
				pub.Publish(qos, false, "a", strings.Repeat("x", 1000))
			}
			r := packet.NewReader(slow, 0)
			var last packet.Packet
			for {
				p, err := r.Next()
				if err != nil {
					break
				}
				last = p
			}
			if d, ok := last.(*packet.Disconnect); !ok || d.Reason != packet.ReasonQuotaExceeded {
				t.Errorf("the last packet is %v %v, want DISCONNECT 0x97", last.Type(), last)
			}
		})
	}
}
