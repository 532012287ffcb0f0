package broker_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker"
	"holdfast/broker/brokertest"
	"holdfast/broker/packet"
)

func TestKeepAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t, nil)
		p := brokertest.V5("c")
		p.KeepAlive = 10
		c := brokertest.Connect(t, b.Pipe(), p)
		for range 5 {
			pass(14 * time.Second)
			c.Silent()
		}
		// Bytes that make no packet are no sign of life.
		start := time.Now()
		pass(10 * time.Second)
		c.SendBytes([]byte{0x30, 0x10})
		if got, _ := c.Ended(); got != packet.ReasonKeepAliveTimeout {
			t.Errorf("DISCONNECT %v", got)
		}
		if d := time.Since(start); d != 15*time.Second {
			t.Errorf("after %v, want 15s", d)
		}
		off := brokertest.V4("off")
		d := brokertest.Connect(t, b.Pipe(), off)
		pass(100 * time.Hour)
		d.Silent()
	})
}

func TestServerKeepAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t, nil, func(o *broker.Options) { o.MaxKeepAlive = time.Minute })
		c := brokertest.Connect(t, b.Pipe(), brokertest.V5("c"))
		start := time.Now()
		pass(85 * time.Second)
		c.Ended()
		if d := time.Since(start); d != 90*time.Second {
			t.Errorf("after %v", d)
		}
	})
}

func TestTakeover(t *testing.T) {
	for _, version := range []packet.Version{packet.V311, packet.V5} {
		t.Run(version.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := brokertest.New(t, nil)
				p := func() *packet.Connect {
					return brokertest.Keep(&packet.Connect{Version: version, ClientID: "same"}, 60)
				}
				first := brokertest.Connect(t, b.Pipe(), p())
				first.Subscribe(1, "a")
				second := brokertest.Connect(t, b.Pipe(), p())
				if !second.Connack.SessionPresent {
					t.Error("the session was not taken over")
				}
				reason, told := first.Ended()
				if told != (version == packet.V5) || told && reason != packet.ReasonSessionTakenOver {
					t.Errorf("the first was told %v %v", reason, told)
				}
				brokertest.Connect(t, b.Pipe(), brokertest.V4("c")).Publish(1, false, "a", "x")
				second.Message()
				if st := b.Status(); st.Sessions != 2 || st.Takeovers != 1 {
					t.Errorf("status %+v", st)
				}
			})
		})
	}
}

// TestTakeoverStorm: of many connections under one client id one is left, and
// each of the others is gone for good.
func TestTakeoverStorm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t, nil)
		const n = 20
		clients := make([]*brokertest.Client, n)
		for i := range clients {
			clients[i] = brokertest.Raw(t, b.Pipe(), packet.V5)
			go clients[i].Send(brokertest.Keep(brokertest.V5("same"), uint32(i%2*60)))
		}
		synctest.Wait()
		pass(5 * time.Second)
		if st := b.Status(); st.Clients != 1 || st.Connections != 1 || st.Sessions != 1 {
			t.Errorf("status %+v", st)
		}
	})
}

func TestSessionExpiry(t *testing.T) {
	tests := map[string]struct {
		connect    *packet.Connect
		disconnect *packet.Disconnect // nil: the connection dies
		away       time.Duration
		present    bool
	}{
		"returns in time":              {brokertest.Keep(brokertest.V5("c"), 60), nil, 59 * time.Second, true},
		"returns too late":             {brokertest.Keep(brokertest.V5("c"), 60), nil, 61 * time.Second, false},
		"expiry never":                 {brokertest.Keep(brokertest.V5("c"), 0xFFFFFFFF), nil, 100 * time.Hour, true},
		"3.1.1 clean session 0":        {brokertest.Keep(brokertest.V4("c"), 0), nil, 100 * time.Hour, true},
		"3.1.1 clean session 1":        {brokertest.V4("c"), nil, 0, false},
		"expiry 0":                     {brokertest.Keep(brokertest.V5("c"), 0), nil, 0, false},
		"shortened with DISCONNECT":    {brokertest.Keep(brokertest.V5("c"), 60), &packet.Disconnect{Properties: packet.Properties{SessionExpiry: new(uint32(10))}}, 11 * time.Second, false},
		"lengthened with DISCONNECT":   {brokertest.Keep(brokertest.V5("c"), 60), &packet.Disconnect{Properties: packet.Properties{SessionExpiry: new(uint32(100))}}, 90 * time.Second, true},
		"ended with DISCONNECT":        {brokertest.Keep(brokertest.V5("c"), 60), &packet.Disconnect{Properties: packet.Properties{SessionExpiry: new(uint32(0))}}, 0, false},
		"DISCONNECT leaves the expiry": {brokertest.Keep(brokertest.V5("c"), 60), &packet.Disconnect{}, 59 * time.Second, true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := brokertest.New(t, nil)
				c := brokertest.Connect(t, b.Pipe(), tt.connect)
				c.Subscribe(1, "a", "$share/g/b")
				if tt.disconnect != nil {
					c.Send(tt.disconnect)
					c.Ended()
				}
				c.Kill()
				synctest.Wait()
				pass(tt.away)
				synctest.Wait()
				if !tt.present {
					if st := b.Status(); st.Sessions != 0 || st.Subscriptions != 0 {
						t.Errorf("state left behind: %+v", st)
					}
					if kept, err := b.Store.Sessions(t.Context()); len(kept) > 0 || err != nil {
						t.Errorf("kept %+v, %v", kept, err)
					}
				}
				again := *tt.connect
				again.CleanStart = false
				if got := brokertest.Connect(t, b.Pipe(), &again).Connack.SessionPresent; got != tt.present {
					t.Errorf("session present %v, want %v", got, tt.present)
				}
			})
		})
	}
}

func TestDisconnectCannotBringAnExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t, nil)
		p := brokertest.V5("c")
		p.Will = &packet.Will{Topic: "will"}
		w := brokertest.Connect(t, b.Pipe(), brokertest.V5("watch"))
		w.Subscribe(0, "will")
		c := brokertest.Connect(t, b.Pipe(), p)
		c.Send(&packet.Disconnect{Properties: packet.Properties{SessionExpiry: new(uint32(10))}})
		if got, _ := c.Ended(); got != packet.ReasonProtocolError {
			t.Errorf("DISCONNECT %v", got)
		}
		w.Message()
	})
}

// TestResume: what was sent and not acknowledged comes again in order, QoS 1
// with its packet id and DUP, then the rest.
func TestResume(t *testing.T) {
	for _, version := range []packet.Version{packet.V311, packet.V5} {
		for qos := byte(1); qos <= 2; qos++ {
			t.Run(fmt.Sprintf("%v QoS %d", version, qos), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					b := brokertest.New(t, nil, func(o *broker.Options) { o.MaxInflight = 4 })
					connect := brokertest.Keep(&packet.Connect{Version: version, ClientID: "sub"}, 600)
					if version == packet.V5 {
						connect.Properties.ReceiveMaximum = 4
					}
					sub := brokertest.Connect(t, b.Pipe(), connect)
					sub.SetManual(true)
					sub.Subscribe(2, "a")
					synctest.Wait()
					c := brokertest.Connect(t, b.Pipe(), brokertest.V4("c"))
					for i := range 10 {
						c.Publish(qos, false, "a", fmt.Sprint(i))
					}
					ids := make(map[string]uint16)
					for range 4 {
						m := sub.Message()
						if m.Dup {
							t.Error("first sent with DUP")
						}
						ids[string(m.Payload)] = m.PacketID
					}
					synctest.Wait()
					if got := sub.Silent(); len(got) > 0 {
						t.Fatalf("more than the receive maximum: %v", got)
					}
					sub.Kill()
					synctest.Wait()
					sub = brokertest.Connect(t, b.Pipe(), connect)
					if !sub.Connack.SessionPresent {
						t.Fatal("no session")
					}
					for i := range 10 {
						m := sub.Message()
						if string(m.Payload) != fmt.Sprint(i) || m.Dup != (i < 4) || m.QoS != qos {
							t.Fatalf("message %d is %q DUP %v QoS %d", i, m.Payload, m.Dup, m.QoS)
						}
						if id, known := ids[string(m.Payload)]; known && id != m.PacketID {
							t.Errorf("%q came again as packet %d, first as %d", m.Payload, m.PacketID, id)
						}
					}
					synctest.Wait()
					if n := b.Store.Backlog("sub"); n != 0 {
						t.Errorf("%d deliveries are left in the store", n)
					}
					if got := sub.Silent(); len(got) > 0 {
						t.Errorf("more came: %v", got)
					}
				})
			})
		}
	}
}

// TestRestart: another process on the same store goes on where the first
// ended.
func TestRestart(t *testing.T) {
	for qos := byte(1); qos <= 2; qos++ {
		t.Run(fmt.Sprint("QoS ", qos), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := brokertest.NewMemoryStore()
				defer store.Close()
				b := brokertest.New(t, store)
				connect := brokertest.Keep(brokertest.V5("sub"), 600)
				connect.Properties.ReceiveMaximum = 3
				sub := brokertest.Connect(t, b.Pipe(), connect)
				sub.SetManual(true)
				sub.Subscribe(2, "a/#")
				synctest.Wait()
				c := brokertest.Connect(t, b.Pipe(), brokertest.V5("c"))
				c.Publish(1, true, "kept", "retained")
				for i := range 10 {
					c.Publish(qos, false, "a", fmt.Sprint(i))
				}
				first := sub.Message()
				b.Stop(t)
				store.Restart()

				b = brokertest.New(t, store)
				c = brokertest.Connect(t, b.Pipe(), brokertest.V5("c"))
				c.Publish(qos, false, "a", "10")
				c.Subscribe(0, "kept")
				c.Message()
				connect.Properties.ReceiveMaximum = 2
				sub = brokertest.Connect(t, b.Pipe(), connect)
				if !sub.Connack.SessionPresent {
					t.Fatal("no session")
				}
				for i := range 11 {
					m := sub.Message()
					if string(m.Payload) != fmt.Sprint(i) {
						t.Fatalf("message %d is %q", i, m.Payload)
					}
					if qos == 2 && i == 0 && (!m.Dup || m.PacketID != first.PacketID) {
						t.Errorf("QoS 2 came again as packet %d DUP %v, first as %d", m.PacketID, m.Dup, first.PacketID)
					}
				}
				synctest.Wait()
				if n := store.Backlog("sub"); n != 0 {
					t.Errorf("%d deliveries are left in the store", n)
				}
			})
		})
	}
}

// TestRestartKeepsPacketIDsApart: QoS 1 is given no packet id that a QoS 2
// delivery of before the restart still has, though that has not been read yet.
func TestRestartKeepsPacketIDsApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := brokertest.NewMemoryStore()
		defer store.Close()
		b := brokertest.New(t, store)
		connect := brokertest.Keep(brokertest.V5("sub"), 600)
		sub := brokertest.Connect(t, b.Pipe(), connect)
		sub.SetManual(true)
		sub.Subscribe(2, "#")
		synctest.Wait()
		c := brokertest.Connect(t, b.Pipe(), brokertest.V5("c"))
		for range 100 {
			c.Publish(2, false, "two", "x")
		}
		for range 100 {
			sub.Message()
		}
		b.Stop(t)
		store.Restart()
		b = brokertest.New(t, store)
		c = brokertest.Connect(t, b.Pipe(), brokertest.V5("c"))
		for range 50 {
			c.Publish(1, false, "one", "x")
		}
		connect.Properties.ReceiveMaximum = 10
		sub = brokertest.Raw(t, b.Pipe(), packet.V5)
		sub.SetManual(true)
		sub.Try(connect)
		used := make(map[uint16]string)
		for range 10 {
			m := sub.Message()
			used[m.PacketID] = string(m.Topic)
			if m.PacketID > 100 != (string(m.Topic) == "one") {
				t.Errorf("%s came as packet %d", m.Topic, m.PacketID)
			}
		}
		if len(used) != 10 {
			t.Errorf("packet ids %v are not all different", used)
		}
	})
}

// TestCatchingUpAndLive: a subscriber that comes and goes under load misses
// nothing and gets nothing twice out of order.
func TestCatchingUpAndLive(t *testing.T) {
	for qos := byte(1); qos <= 2; qos++ {
		t.Run(fmt.Sprint("QoS ", qos), func(t *testing.T) {
			b := brokertest.Start(t, nil, func(o *broker.Options) { o.MaxInflight = 8 })
			connect := brokertest.Keep(brokertest.V5("sub"), 600)
			sub := brokertest.Connect(t, b.Dial(t), connect)
			sub.Subscribe(2, "a")
			const n = 2000
			published := make(chan struct{})
			c := brokertest.Connect(t, b.Dial(t), brokertest.V5("c"))
			go func() {
				defer close(published)
				for i := range n {
					if t.Failed() {
						return
					}
					c.Publish(qos, false, "a", fmt.Sprint(i))
				}
			}()
			next := 0
			for round := 0; next < n; round++ {
				take := func(p *packet.Publish) {
					t.Helper()
					var i int
					if _, err := fmt.Sscan(string(p.Payload), &i); err != nil {
						t.Fatal(err)
					}
					if i > next || qos == 2 && i < next {
						t.Fatalf("got %d, want %d", i, next)
					}
					if i == next {
						next++
					}
				}
				for i := 0; i < 100 && next < n; i++ {
					take(sub.Message())
				}
				if qos == 1 && round%3 == 0 {
					sub.Kill()
					for _, p := range sub.Rest() { // acknowledged already
						take(p)
					}
					sub = brokertest.Connect(t, b.Dial(t), connect)
				}
			}
			<-published
		})
	}
}
