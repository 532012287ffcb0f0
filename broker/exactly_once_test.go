package broker_test

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"

	"holdfast/broker/brokertest"
	"holdfast/broker/packet"
)

// publish2 is a QoS 2 PUBLISH with packet id 1.
func publish2(dup bool, payload string) *packet.Publish {
	return &packet.Publish{QoS: 2, PacketID: 1, Dup: dup, Topic: []byte("a"), Payload: []byte(payload)}
}

// TestInboundExactlyOnce plays what a publisher may do with one packet id.
func TestInboundExactlyOnce(t *testing.T) {
	for name, connect := range map[string]*packet.Connect{
		"clean": brokertest.V5("c"), "persistent": brokertest.Keep(brokertest.V5("c"), 600),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := brokertest.New(t, nil)
				sub := brokertest.Connect(t, b.Pipe(), brokertest.V5("sub"))
				sub.Subscribe(2, "a")
				keeper := brokertest.Connect(t, b.Pipe(), brokertest.Keep(brokertest.V5("keeper"), 600))
				keeper.Subscribe(2, "a")
				synctest.Wait()
				c := brokertest.Connect(t, b.Pipe(), connect)
				take := func(want packet.Packet) {
					t.Helper()
					got := c.Next()
					if fmt.Sprint(got) != fmt.Sprint(want) || got.Type() != want.Type() {
						t.Errorf("got %v %v, want %v %v", got.Type(), got, want.Type(), want)
					}
				}
				b.Store.Hold()
				c.Send(publish2(false, "once"))
				c.Send(publish2(true, "once"), publish2(true, "once")) // join the wait
				if got := c.Silent(); len(got) > 0 {
					t.Fatalf("PUBREC before the commit: %v", got)
				}
				if got := sub.Silent(); len(got) > 0 {
					t.Fatalf("onward before the commit: %v", got)
				}
				b.Store.Unhold()
				for range 3 {
					take(&packet.Pubrec{PacketID: 1})
				}
				c.Send(publish2(true, "once")) // the PUBREC got lost
				take(&packet.Pubrec{PacketID: 1})
				if connect.Properties.SessionExpiry != nil {
					b.Store.Hold()
					c.Send(&packet.Pubrel{PacketID: 1})
					if got := c.Silent(); len(got) > 0 {
						t.Fatalf("PUBCOMP before it is durable: %v", got)
					}
					c.Send(publish2(false, "too early"))
					take(&packet.Pubrec{PacketID: 1, Reason: packet.ReasonPacketIDInUse})
					b.Store.Unhold()
				} else {
					c.Send(&packet.Pubrel{PacketID: 1})
				}
				take(&packet.Pubcomp{PacketID: 1})
				c.Send(&packet.Pubrel{PacketID: 1}) // the PUBCOMP got lost
				take(&packet.Pubcomp{PacketID: 1, Reason: packet.ReasonPacketIDNotFound})
				c.Send(publish2(false, "twice")) // the id is free again
				take(&packet.Pubrec{PacketID: 1})
				for _, x := range []*brokertest.Client{sub, keeper} {
					if got := x.Messages(2); got[0] != "once" || got[1] != "twice" {
						t.Errorf("subscriber got %q", got)
					}
					synctest.Wait()
					if got := x.Silent(); len(got) > 0 {
						t.Errorf("more came: %v", got)
					}
				}
			})
		})
	}
}

func TestPubrelBeforePubrec(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t, nil)
		c := brokertest.Connect(t, b.Pipe(), brokertest.Keep(brokertest.V5("c"), 60))
		b.Store.Hold()
		c.Send(publish2(false, "x"), &packet.Pubrel{PacketID: 1})
		if got, _ := c.Ended(); got != packet.ReasonProtocolError {
			t.Errorf("DISCONNECT %v", got)
		}
	})
}

// TestInboundAcrossConnections: the packet id of a persistent publisher
// outlives its connection, before the commit and after, and a restart.
func TestInboundAcrossConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := brokertest.NewMemoryStore()
		defer store.Close()
		b := brokertest.New(t, store)
		sub := brokertest.Connect(t, b.Pipe(), brokertest.Keep(brokertest.V5("sub"), 600))
		sub.Subscribe(2, "a")
		synctest.Wait()
		connect := brokertest.Keep(brokertest.V5("c"), 600)
		c := brokertest.Connect(t, b.Pipe(), connect)
		store.Hold()
		c.Send(publish2(false, "once"))
		synctest.Wait()
		c.Kill()
		synctest.Wait()
		c = brokertest.Raw(t, b.Pipe(), packet.V5)
		c.Send(connect)
		synctest.Wait() // its CONNACK waits
		store.Unhold()
		c.Take(packet.TypeConnack)
		c.Send(publish2(true, "once"))
		c.Take(packet.TypePubrec)
		c.Kill()
		synctest.Wait() // the subscriber's PUBREC has come
		b.Stop(t)
		store.Restart()

		b = brokertest.New(t, store)
		c = brokertest.Connect(t, b.Pipe(), connect)
		c.Send(publish2(true, "once"))
		c.Take(packet.TypePubrec)
		c.Send(&packet.Pubrel{PacketID: 1})
		c.Take(packet.TypePubcomp)
		if got := sub.Rest(); len(got) != 1 {
			t.Errorf("%d deliveries, want 1", len(got))
		}
		sub = brokertest.Connect(t, b.Pipe(), brokertest.Keep(brokertest.V5("sub"), 600))
		synctest.Wait()
		if got := sub.Silent(); len(got) > 0 {
			t.Errorf("delivered again: %v", got)
		}
	})
}

// TestWithdrawnClaim: a commit that fails leaves no trace of the packet id.
func TestWithdrawnClaim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t, nil)
		connect := brokertest.Keep(brokertest.V5("c"), 600)
		c := brokertest.Connect(t, b.Pipe(), connect)
		sub := brokertest.Connect(t, b.Pipe(), brokertest.V5("sub"))
		sub.Subscribe(2, "a")
		b.Store.Hold()
		b.Store.SetFailing(errors.New("disk on fire"))
		c.Send(publish2(false, "x"), publish2(true, "x"))
		c.Silent()
		b.Store.Unhold()
		for range 2 {
			if got, _ := c.Take(packet.TypePubrec).(*packet.Pubrec); !got.Reason.Failed() {
				t.Errorf("PUBREC %v", got.Reason)
			}
		}
		b.Store.SetFailing(nil)
		c.Send(publish2(false, "y"))
		if got, _ := c.Take(packet.TypePubrec).(*packet.Pubrec); got.Reason != 0 {
			t.Errorf("PUBREC %v", got.Reason)
		}
		if got := sub.Messages(1); got[0] != "y" {
			t.Errorf("got %q", got)
		}
	})
}

// TestOutboundExactlyOnce plays what a subscriber may do with one delivery, to
// a session that ends with its connection.
func TestOutboundExactlyOnce(t *testing.T) {
	for name, connect := range map[string]*packet.Connect{
		"clean": brokertest.V5("sub"), "persistent": brokertest.Keep(brokertest.V5("sub"), 600),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := brokertest.New(t, nil)
				sub := brokertest.Connect(t, b.Pipe(), connect)
				sub.SetManual(true)
				sub.Subscribe(2, "a")
				synctest.Wait()
				c := brokertest.Connect(t, b.Pipe(), brokertest.V5("c"))
				c.Publish(2, false, "a", "x")
				id := sub.Message().PacketID
				sub.Send(&packet.Pubrec{PacketID: id})
				sub.Take(packet.TypePubrel)
				sub.Send(&packet.Pubrec{PacketID: id}) // the PUBREL got lost
				sub.Take(packet.TypePubrel)
				sub.Send(&packet.Pubcomp{PacketID: id})
				synctest.Wait()
				sub.Send(&packet.Pubrec{PacketID: id}) // forgotten by now
				if got, _ := sub.Take(packet.TypePubrel).(*packet.Pubrel); got.Reason != packet.ReasonPacketIDNotFound {
					t.Errorf("PUBREL %v", got.Reason)
				}
				sub.Send(&packet.Pubcomp{PacketID: id, Reason: packet.ReasonPacketIDNotFound})
				sub.Silent()
				// Refused: it ends there.
				c.Publish(2, false, "a", "y")
				sub.Send(&packet.Pubrec{PacketID: sub.Message().PacketID, Reason: packet.ReasonQuotaExceeded})
				c.Publish(1, false, "a", "z")
				sub.Send(&packet.Puback{PacketID: sub.Message().PacketID, Reason: packet.ReasonNotAuthorized})
				sub.Silent()
				synctest.Wait()
				if st := b.Status(); st.RefusedByClient != 2 || st.UnknownAcks != 2 {
					t.Errorf("status %+v", st)
				}
				if n := b.Store.Backlog("sub"); n != 0 {
					t.Errorf("%d left in the store", n)
				}
			})
		})
	}
}

func TestPubrelResentAfterReconnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t, nil)
		connect := brokertest.Keep(brokertest.V5("sub"), 600)
		connect.Properties.ReceiveMaximum = 1
		sub := brokertest.Connect(t, b.Pipe(), connect)
		sub.SetManual(true)
		sub.Subscribe(2, "a")
		synctest.Wait()
		c := brokertest.Connect(t, b.Pipe(), brokertest.V5("c"))
		c.Publish(2, false, "a", "first")
		c.Publish(2, false, "a", "second")
		id := sub.Message().PacketID
		sub.Send(&packet.Pubrec{PacketID: id})
		sub.Take(packet.TypePubrel)
		sub.Kill()
		synctest.Wait()
		sub = brokertest.Raw(t, b.Pipe(), packet.V5)
		sub.SetManual(true)
		sub.Try(connect)
		if got, _ := sub.Take(packet.TypePubrel).(*packet.Pubrel); got.PacketID != id {
			t.Errorf("PUBREL %d, want %d", got.PacketID, id)
		}
		m := sub.Message() // the PUBREL takes no place of the window
		if string(m.Payload) != "second" || m.PacketID == id {
			t.Errorf("got %q as packet %d", m.Payload, m.PacketID)
		}
		sub.Send(&packet.Pubcomp{PacketID: id})
		sub.Silent()
	})
}

// TestAcknowledgementsOfTheWrongKind end the connection.
func TestAcknowledgementsOfTheWrongKind(t *testing.T) {
	tests := map[string]struct {
		qos byte
		ack func(id uint16) packet.Packet
	}{
		"PUBACK for QoS 2":       {2, func(id uint16) packet.Packet { return &packet.Puback{PacketID: id} }},
		"PUBREC for QoS 1":       {1, func(id uint16) packet.Packet { return &packet.Pubrec{PacketID: id} }},
		"PUBCOMP for QoS 1":      {1, func(id uint16) packet.Packet { return &packet.Pubcomp{PacketID: id} }},
		"PUBCOMP without PUBREC": {2, func(id uint16) packet.Packet { return &packet.Pubcomp{PacketID: id} }},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := brokertest.New(t, nil)
				sub := brokertest.Connect(t, b.Pipe(), brokertest.V5("sub"))
				sub.SetManual(true)
				sub.Subscribe(2, "a")
				brokertest.Connect(t, b.Pipe(), brokertest.V5("c")).Publish(tt.qos, false, "a", "x")
				sub.Send(tt.ack(sub.Message().PacketID))
				if got, _ := sub.Ended(); got != packet.ReasonProtocolError {
					t.Errorf("DISCONNECT %v", got)
				}
			})
		})
	}
}
