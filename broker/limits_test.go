package broker_test

import (
	"context"
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

// away is a connection from that address.
func away(b *brokertest.Broker, ip string) net.Conn {
	client, server := net.Pipe()
	b.ServeConn(&from{server, net.TCPAddr{IP: net.ParseIP(ip), Port: 1}}, broker.Listener{Anonymous: broker.AnonymousAlways})
	return client
}

// over reads until the connection ends.
func over(nc net.Conn) bool {
	_ = nc.SetReadDeadline(time.Now().Add(time.Second))
	n, err := nc.Read(make([]byte, 1))
	return n == 0 && err != nil && !strings.Contains(err.Error(), "timeout")
}

// TestHalfOpenFlood: whoever opens connections and says nothing loses the
// oldest of his own, and takes no place of anybody who is let in.
func TestHalfOpenFlood(t *testing.T) { synctest.Test(t, testHalfOpenFlood) }

func testHalfOpenFlood(t *testing.T) {
	b := brokertest.New(t, nil, func(o *broker.Options) {
		o.MaxHandshakes, o.MaxConnections, o.MaxConnectRatePerAddress = 10, 2, 0
	})
	slow := away(b, "192.0.2.1") // has just begun
	var flood []net.Conn
	for range 200 {
		nc := away(b, "192.0.2.66")
		defer nc.Close()
		flood = append(flood, nc)
		synctest.Wait() // those given up are gone
	}
	synctest.Wait()
	if st := b.Status(); st.Handshakes != 10 || st.Connections != 10 || st.HandshakesGivenUp != 191 {
		t.Errorf("%d connections, %d in their handshake, %d given up, want 10, 10 and 191", st.Connections, st.Handshakes, st.HandshakesGivenUp)
	}
	if !over(flood[0]) || over(flood[199]) {
		t.Error("the oldest connection should be over, the newest not")
	}
	first := brokertest.Connect(t, slow, brokertest.V5("slow"))
	brokertest.Connect(t, away(b, "192.0.2.2"), brokertest.V5("second"))
	third := brokertest.Raw(t, away(b, "192.0.2.3"), packet.V5)
	if got := third.Try(brokertest.V5("third")); got.Reason != packet.ReasonServerBusy {
		t.Errorf("a third client is answered with %v", got.Reason)
	}
	first.Disconnect(0)
	synctest.Wait()
	brokertest.Connect(t, away(b, "192.0.2.3"), brokertest.V5("third"))
	// Time ends the rest.
	pass(11 * time.Second)
	synctest.Wait()
	if st := b.Status(); st.Handshakes != 0 || st.Connections != 2 {
		t.Errorf("%d connections and %d in their handshake are left, want 2 and 0", st.Connections, st.Handshakes)
	}
}

// slowAuth never comes to an end by itself.
type slowAuth struct{ gate }

func (*slowAuth) Authenticate(ctx context.Context, _ broker.ConnInfo) (broker.Identity, packet.ReasonCode) {
	<-ctx.Done()
	return broker.Identity{}, packet.ReasonServerBusy
}

// TestShutdownDuringAuthentication does not wait for log-ins that are being
// slowed down.
func TestShutdownDuringAuthentication(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t, nil, func(o *broker.Options) { o.Auth = &slowAuth{} })
		c := brokertest.Raw(t, b.Pipe(), packet.V5)
		c.Send(brokertest.V5("c"))
		synctest.Wait()
		start := time.Now()
		b.Stop(t)
		if d := time.Since(start); d > 2*time.Second {
			t.Errorf("it took %v", d)
		}
	})
}

func TestConnectRates(t *testing.T) {
	try := func(t *testing.T, nc net.Conn, id string) (packet.ReasonCode, bool) {
		t.Helper()
		defer nc.Close()
		p, err := brokertest.V5(id).AppendTo(nil, packet.V5)
		if err != nil {
			t.Fatal(err)
		}
		_ = nc.SetDeadline(time.Now().Add(time.Second))
		if _, err := nc.Write(p); err != nil {
			return 0, false
		}
		answer, err := packet.NewReader(nc, 0).Next()
		if err != nil {
			return 0, false
		}
		return answer.(*packet.Connack).Reason, true
	}
	t.Run("of an address", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := brokertest.New(t, nil, func(o *broker.Options) { o.MaxConnectRatePerAddress = 1 })
			var in, told, unheard int
			for i := range 40 {
				switch reason, heard := try(t, away(b, "192.0.2.1"), fmt.Sprint(i)); {
				case !heard:
					unheard++
				case reason == packet.ReasonConnectionRateExceeded:
					told++
				case reason == 0:
					in++
				}
			}
			if in != 10 || told != 10 || unheard != 20 {
				t.Errorf("%d let in, %d told, %d unheard, want 10, 10, 20", in, told, unheard)
			}
			if reason, _ := try(t, away(b, "192.0.2.2"), "other"); reason != 0 {
				t.Errorf("another address got %v", reason)
			}
			pass(time.Second)
			if reason, _ := try(t, away(b, "192.0.2.1"), "later"); reason != 0 {
				t.Errorf("a second later: %v", reason)
			}
			if st := b.Status(); st.ConnectsTooFast != 30 {
				t.Errorf("%d too fast, want 30", st.ConnectsTooFast)
			}
		})
	})
	t.Run("of a client", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := brokertest.New(t, nil, func(o *broker.Options) { o.MaxConnectRatePerClient = 1 })
			in := 0
			for range 40 {
				if reason, _ := try(t, b.Pipe(), "twin"); reason == 0 {
					in++
				} else if reason != packet.ReasonConnectionRateExceeded {
					t.Fatal(reason)
				}
			}
			if reason, _ := try(t, b.Pipe(), "other"); in != 10 || reason != 0 {
				t.Errorf("%d let in, want 10; another client got %v", in, reason)
			}
		})
	})
}

func TestPublishRate(t *testing.T) {
	t.Run("slow", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := brokertest.New(t, nil, func(o *broker.Options) { o.MaxPublishRate = 100 })
			sub := brokertest.Connect(t, b.Pipe(), brokertest.V5("sub"))
			sub.Subscribe(1, "a")
			p := brokertest.V4("c")
			p.KeepAlive = 1
			c := brokertest.Connect(t, b.Pipe(), p)
			start := time.Now()
			for i := range 500 {
				c.Publish(byte(i%2), false, "a", fmt.Sprint(i))
			}
			for i := range 500 {
				if got := string(sub.Message().Payload); got != fmt.Sprint(i) {
					t.Fatalf("message %d is %s", i, got)
				}
			}
			if d := time.Since(start).Round(time.Second / 10); d < 3900*time.Millisecond || d > 4100*time.Millisecond {
				t.Errorf("500 messages took %v, want 4 s", d)
			}
			if st := b.Status(); st.PublishesTooFast == 0 {
				t.Error("nothing was counted")
			}
		})
	})
	t.Run("slow, on a loop", func(t *testing.T) {
		b := brokertest.Start(t, nil, func(o *broker.Options) { o.MaxPublishRate = 200 })
		sub := brokertest.Connect(t, b.Dial(t), brokertest.V5("sub"))
		sub.Subscribe(1, "a")
		c := brokertest.Connect(t, b.Dial(t), brokertest.V5("c"))
		start := time.Now()
		for i := range 250 {
			c.Publish(byte(i%2), false, "a", fmt.Sprint(i))
		}
		for i := range 250 {
			if got := string(sub.Message().Payload); got != fmt.Sprint(i) {
				t.Fatalf("message %d is %s", i, got)
			}
		}
		if d := time.Since(start); d < 240*time.Millisecond {
			t.Errorf("250 messages took %v, want at least 240 ms", d)
		}
	})
	for name, connect := range map[string]*packet.Connect{"5.0": brokertest.V5("c"), "3.1.1": brokertest.V4("c")} {
		t.Run("disconnect, "+name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := brokertest.New(t, nil, func(o *broker.Options) {
					o.MaxPublishRate, o.PublishRatePolicy = 10, broker.RateDisconnect
				})
				c := brokertest.Connect(t, b.Pipe(), connect)
				for range 10 {
					c.Publish(1, false, "a", "")
				}
				pass(100 * time.Millisecond)
				c.Publish(1, false, "a", "")
				c.Send(&packet.Subscribe{PacketID: 1, Filters: []packet.Filter{{Filter: "a"}}})
				reason, told := c.Ended()
				if told != (name == "5.0") || told && reason != packet.ReasonMessageRateTooHigh {
					t.Errorf("ended with %v (sent: %v)", reason, told)
				}
			})
		})
	}
}

// TestSubscriptionsInAll: the bounds are for all sessions together, and what a
// session gives back others may have.
func TestSubscriptionsInAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t, nil, func(o *broker.Options) { o.MaxSubscriptionsTotal, o.MaxSubscriptionBytes = 3, 1024 })
		one := brokertest.Connect(t, b.Pipe(), brokertest.V5("one"))
		two := brokertest.Connect(t, b.Pipe(), brokertest.V5("two"))
		one.Subscribe(0, "a", "b")
		if got := two.Subscribe(0, "c", "d"); got[0] != 0 || got[1] != packet.ReasonQuotaExceeded {
			t.Errorf("answered %v", got)
		}
		if got := two.Subscribe(1, "c"); got[0] != 1 {
			t.Errorf("the same again: %v", got)
		}
		one.Disconnect(0)
		synctest.Wait()
		long := strings.Repeat("x", 600)
		if got := two.Subscribe(0, long, long+"y"); got[0] != 0 || got[1] != packet.ReasonQuotaExceeded {
			t.Errorf("answered %v", got)
		}
		if st := b.Status(); st.SubscriptionsRefused != 2 || st.Subscriptions != 2 {
			t.Errorf("%d refused, %d held, want 2 and 2", st.SubscriptionsRefused, st.Subscriptions)
		}
	})
}

func TestRetainedPerClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t, nil, func(o *broker.Options) { o.MaxRetainedPerClient = 2 })
		greedy := brokertest.Connect(t, b.Pipe(), brokertest.V5("greedy"))
		other := brokertest.Connect(t, b.Pipe(), brokertest.V5("other"))
		want := []packet.ReasonCode{0, 0, 0x97}
		for i, reason := range want {
			if got := greedy.Publish(1, true, fmt.Sprint(i), "x"); got != reason {
				t.Errorf("retained message %d: %v, want %v", i, got, reason)
			}
		}
		if got := other.Publish(1, true, "other", "x"); got != 0 {
			t.Errorf("another client's: %v", got)
		}
		if got := greedy.Publish(1, true, "0", "new"); got != 0 {
			t.Errorf("one in place of another: %v", got)
		}
		greedy.Publish(1, true, "1", "")
		if got := greedy.Publish(1, true, "2", "x"); got != 0 {
			t.Errorf("after one was cleared: %v", got)
		}
	})
}

// TestUnreleased: a client cannot fill RAM and disk with QoS 2 ids, over
// however many connections.
func TestUnreleased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t, nil, func(o *broker.Options) { o.MaxUnreleased, o.ReceiveMaximum = 3, 2 })
		send := func(c *brokertest.Client, id uint16) packet.ReasonCode {
			c.Send(&packet.Publish{QoS: 2, PacketID: id, Topic: []byte("a")})
			rec, _ := c.Take(packet.TypePubrec).(*packet.Pubrec)
			return rec.Reason
		}
		connect := brokertest.Keep(brokertest.V5("c"), 600)
		c := brokertest.Connect(t, b.Pipe(), connect)
		send(c, 1)
		send(c, 2)
		c.Kill()
		c = brokertest.Connect(t, b.Pipe(), connect)
		if got := send(c, 3); got != packet.ReasonNoMatchingSubscribers {
			t.Errorf("the third: %v", got)
		}
		if got := send(c, 4); got != packet.ReasonQuotaExceeded {
			t.Errorf("the fourth: %v", got)
		}
		if got := send(c, 1); got != packet.ReasonSuccess {
			t.Errorf("the first again: %v", got)
		}
		c.Send(&packet.Pubrel{PacketID: 1})
		c.Take(packet.TypePubcomp)
		if got := send(c, 4); got != packet.ReasonNoMatchingSubscribers {
			t.Errorf("the fourth after the first is released: %v", got)
		}
	})
}

// TestRetainedForNobodyWhoReads: a client that subscribes over and over and
// never reads does not fill the RAM with what it would be sent.
func TestRetainedForNobodyWhoReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t, nil, func(o *broker.Options) { o.MaxOutput, o.MaxQueued = 4096, 100 })
		c := brokertest.Connect(t, b.Pipe(), brokertest.V5("c"))
		for i := range 50 {
			c.Publish(1, true, fmt.Sprint("a/", i), strings.Repeat("x", 100))
		}
		deaf := connectAndStopReading(t, b, brokertest.V5("deaf"), 0)
		defer deaf.Close()
		filters := make([]packet.Filter, 1000)
		for i := range filters {
			filters[i].Filter = "#"
		}
		frame, err := (&packet.Subscribe{PacketID: 2, Filters: filters}).AppendTo(nil, packet.V5)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := deaf.Write(frame); err != nil {
			t.Fatal(err)
		}
		pass(2 * time.Second)
		if st := b.Status(); st.Clients != 1 || st.DroppedQueueFull == 0 || st.DroppedQueueFull > 300 {
			t.Errorf("%d clients, %d dropped", st.Clients, st.DroppedQueueFull)
		}
	})
}
