package main

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker"
	"holdfast/broker/brokertest"
	"holdfast/broker/durable"
	"holdfast/broker/packet"
	"holdfast/storeforward"
)

// bounded is a store whose sessions hold 20 messages.
func bounded(p durable.Policy) func(*storeforward.Options) {
	return func(o *storeforward.Options) {
		o.MaxSessionMessages, o.SessionPolicy, o.CommitWindow = 20, p, 0
	}
}

func few(o *broker.Options) { o.MaxInflight = 8 }

// pass lets time pass in a bubble.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// A client that acknowledges nothing, though messages for it are refused, is
// disconnected; what it has stays, and those who publish elsewhere notice nothing.
func TestStuckSubscriber(t *testing.T) {
	for qos := byte(1); qos <= 2; qos++ {
		t.Run(fmt.Sprint("QoS ", qos), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b, stop := startRealStore(t, t.TempDir(), bounded(durable.PolicyRefuse), few)
				defer stop()
				p := brokertest.Connect(t, b.Pipe(), brokertest.V5("p"))
				other := brokertest.Connect(t, b.Pipe(), brokertest.Keep(brokertest.V5("other"), 600))
				other.Subscribe(2, "b")
				connect := brokertest.Keep(brokertest.V5("slow"), 600)
				slow := brokertest.Connect(t, b.Pipe(), connect)
				slow.Subscribe(2, "a")
				slow.SetManual(true)
				for i := range 25 {
					want := packet.ReasonSuccess
					if i >= 20 {
						want = packet.ReasonQuotaExceeded
					}
					if got := p.Publish(qos, false, "a", fmt.Sprint(i)); got != want {
						t.Errorf("message %d: %v, want %v", i, got, want)
					}
					p.Publish(qos, false, "b", "x")
					other.Message()
				}
				pass(9 * time.Second)
				p.Publish(qos, false, "a", "refused")
				if st := b.Status(); st.Clients != 3 || st.Stuck != 1 {
					t.Errorf("%d clients after 9 s, %d stuck; want 3, 1", st.Clients, st.Stuck)
				}
				pass(2 * time.Second)
				p.Publish(qos, false, "a", "refused")
				if got, told := slow.Ended(); !told || got != packet.ReasonQuotaExceeded {
					t.Errorf("DISCONNECT %v (sent: %v), want quota exceeded", got, told)
				}
				if st := b.Status(); st.TooSlow != 1 || st.Stuck != 0 {
					t.Errorf("%d too slow, %d stuck; want 1, 0", st.TooSlow, st.Stuck)
				}
				slow = brokertest.Connect(t, b.Pipe(), connect)
				for i, got := range slow.Messages(20) {
					if got != fmt.Sprint(i) {
						t.Errorf("message %d is %q", i, got)
					}
				}
			})
		})
	}
}

// A client that comes back to a full queue and catches up keeps its connection,
// however slowly it acknowledges.
func TestSlowSubscriberCatchesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, stop := startRealStore(t, t.TempDir(), bounded(durable.PolicyRefuse), few)
		defer stop()
		p := brokertest.Connect(t, b.Pipe(), brokertest.V5("p"))
		connect := brokertest.Keep(brokertest.V5("slow"), 600)
		slow := brokertest.Connect(t, b.Pipe(), connect)
		slow.Subscribe(1, "a")
		slow.Disconnect(0)
		slow.Ended()
		for i := range 20 {
			p.Publish(1, false, "a", fmt.Sprint(i))
		}
		slow = brokertest.Connect(t, b.Pipe(), connect)
		slow.SetManual(true)
		for i := range 20 {
			pass(8 * time.Second)
			p.Publish(1, false, "a", "refused, or not") // at each end of 8 s
			m := slow.Message()
			if string(m.Payload) != fmt.Sprint(i) {
				t.Fatalf("message %d is %q", i, m.Payload)
			}
			slow.Send(&packet.Puback{PacketID: m.PacketID})
		}
		if n := b.Status().TooSlow; n != 0 {
			t.Errorf("%d too slow, want none", n)
		}
	})
}

// What an operator gave licence to drop costs publishers and others nothing.
func TestFullSessionDropsOldest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, stop := startRealStore(t, t.TempDir(), bounded(durable.PolicyDropOldest), few)
		defer stop()
		away := brokertest.Connect(t, b.Pipe(), brokertest.Keep(brokertest.V5("away"), 600))
		away.Subscribe(1, "a")
		away.Disconnect(0)
		away.Ended()
		other := brokertest.Connect(t, b.Pipe(), brokertest.Keep(brokertest.V5("other"), 600))
		other.Subscribe(1, "a")
		p := brokertest.Connect(t, b.Pipe(), brokertest.V5("p"))
		for i := range 2000 {
			if got := p.Publish(1, false, "a", fmt.Sprint(i)); got != 0 {
				t.Fatalf("message %d: %v", i, got)
			}
			if got := other.Messages(1); got[0] != fmt.Sprint(i) {
				t.Fatalf("the other got %q, want %d", got, i)
			}
		}
		pass(time.Minute)
		for _, q := range b.store.Status().Queues {
			// One that comes while older ones are being dropped stays.
			if q.Name == "away" && (q.Messages > 22 || uint64(q.Messages)+q.Dropped["oldest"] != 2000) {
				t.Errorf("%d wait and %d were dropped of 2000", q.Messages, q.Dropped["oldest"])
			}
		}
	})
}

// Under wait an acknowledgement is withheld until there is room; the publisher is
// read on meanwhile, stays however long it takes, and gets it when it comes.
func TestWaitForASlowSubscriber(t *testing.T) {
	for _, v := range []packet.Version{packet.V311, packet.V5} {
		t.Run(v.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b, stop := startRealStore(t, t.TempDir(), bounded(durable.PolicyWait), few)
				defer stop()
				slow := brokertest.Connect(t, b.Pipe(), brokertest.Keep(&packet.Connect{Version: v, ClientID: "slow"}, 600))
				slow.Subscribe(1, "a")
				slow.SetManual(true)
				p := brokertest.Connect(t, b.Pipe(), &packet.Connect{Version: v, ClientID: "p", CleanStart: true})
				p.Subscribe(0, "back")
				for i := range uint16(30) {
					p.Send(&packet.Publish{Topic: []byte("a"), QoS: 1, PacketID: i + 1, Payload: fmt.Append(nil, i)})
				}
				pass(time.Minute)
				for i := range uint16(20) {
					if ack, _ := p.Take(packet.TypePuback).(*packet.Puback); ack.PacketID != i+1 || ack.Reason.Failed() {
						t.Errorf("PUBACK %d %v, want %d", ack.PacketID, ack.Reason, i+1)
					}
				}
				p.Publish(0, false, "back", "read")
				if got := p.Messages(1); got[0] != "read" {
					t.Errorf("the publisher got %q", got)
				}
				for i := range uint16(10) {
					if got := p.Silent(); len(got) > 0 {
						t.Errorf("after %d acknowledgements: %v", i, got[0])
					}
					slow.Send(&packet.Puback{PacketID: slow.Message().PacketID})
					synctest.Wait()
					if ack, _ := p.Take(packet.TypePuback).(*packet.Puback); ack.PacketID != 21+i || ack.Reason.Failed() {
						t.Errorf("PUBACK %d %v, want %d", ack.PacketID, ack.Reason, 21+i)
					}
				}
			})
		})
	}
}

// Two that publish to each other under wait: neither acknowledges before it is
// read, and that what its queue waits for.
func TestTwoWaitForEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, stop := startRealStore(t, t.TempDir(), bounded(durable.PolicyWait), few, func(o *broker.Options) { o.MaxUnacknowledgedBytes = 8192 })
		defer stop()
		var clients [2]*brokertest.Client
		names := [2]string{"x", "y"}
		for i, name := range names {
			clients[i] = brokertest.Connect(t, b.Pipe(), brokertest.Keep(brokertest.V5(name), 600))
			clients[i].SetManual(true)
			clients[i].Subscribe(1, name)
		}
		const count = 200
		for i, c := range clients {
			var all []byte
			for id := range uint16(count) {
				all, _ = (&packet.Publish{Topic: []byte(names[1-i]), QoS: 1, PacketID: id + 1}).AppendTo(all, packet.V5)
			}
			go c.SendBytes(all)
		}
		pass(time.Second)
		for _, c := range clients {
			c.SetManual(false)
		}
		go func() { // what came before that
			for _, c := range clients {
				for id := range uint16(8) {
					c.Send(&packet.Puback{PacketID: id + 1})
				}
			}
		}()
		pass(5 * time.Minute)
		for i, c := range clients {
			for n := range uint16(count) {
				if ack, _ := c.Take(packet.TypePuback).(*packet.Puback); ack.PacketID != n+1 || ack.Reason.Failed() && ack.Reason != packet.ReasonQuotaExceeded {
					t.Fatalf("%s: PUBACK %d %v, want %d", names[i], ack.PacketID, ack.Reason, n+1)
				}
			}
		}
		if n := b.Status().Clients; n != 2 {
			t.Errorf("%d clients are left, want 2", n)
		}
	})
}
