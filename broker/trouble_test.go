package broker_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker/brokertest"
	"holdfast/broker/packet"
)

var errDisk = errors.New("disk on fire")

// trouble is a persistent client with one QoS 2 delivery and one QoS 2
// publication (packet id 1) under way, for a disk that fails at one step.
type trouble struct {
	t       *testing.T
	b       *brokertest.Broker
	c       *brokertest.Client
	connect *packet.Connect
	id      uint16 // of the delivery
}

func newTrouble(t *testing.T) *trouble {
	t.Helper()
	x := &trouble{t: t, b: brokertest.New(t, nil), connect: brokertest.Keep(brokertest.V5("c"), 600)}
	x.reconnect()
	x.c.Subscribe(2, "a")
	synctest.Wait()
	brokertest.Connect(t, x.b.Pipe(), brokertest.V5("p")).Publish(2, false, "a", "x")
	x.id = x.c.Message().PacketID
	x.c.Send(publish2(false, "mine"))
	x.c.Take(packet.TypePubrec)
	x.c.Send(&packet.Pubrec{PacketID: x.c.Message().PacketID, Reason: packet.ReasonUnspecified}) // its own copy
	x.c.Silent()
	return x
}

func (x *trouble) reconnect() {
	x.t.Helper()
	x.c = brokertest.Raw(x.t, x.b.Pipe(), packet.V5)
	x.c.SetManual(true)
	if got := x.c.Try(x.connect); got.Reason != 0 {
		x.t.Fatalf("CONNACK %v", got.Reason)
	}
}

// failsAt sends p to a failing disk: no answer but the end of the connection.
// Then the disk heals and the client returns.
func (x *trouble) failsAt(p packet.Packet) {
	x.t.Helper()
	x.b.Store.SetFailing(errDisk)
	x.c.Send(p)
	if got, told := x.c.Ended(); !told || got != packet.ReasonImplementationSpecific {
		x.t.Errorf("DISCONNECT %v %v", got, told)
	}
	if n := x.c.Received(); n != 1 {
		x.t.Errorf("%d packets came beside the DISCONNECT", n-1)
	}
	x.b.Store.SetFailing(nil)
	x.reconnect()
}

func TestDiskTrouble(t *testing.T) {
	tests := map[string]func(x *trouble){
		"PUBREC": func(x *trouble) {
			x.failsAt(&packet.Pubrec{PacketID: x.id})
			if m := x.c.Message(); m.PacketID != x.id || !m.Dup {
				x.t.Errorf("came again as packet %d DUP %v", m.PacketID, m.Dup)
			}
		},
		"PUBCOMP": func(x *trouble) {
			x.c.Send(&packet.Pubrec{PacketID: x.id})
			x.c.Take(packet.TypePubrel)
			x.failsAt(&packet.Pubcomp{PacketID: x.id})
			if p, _ := x.c.Take(packet.TypePubrel).(*packet.Pubrel); p.PacketID != x.id {
				x.t.Errorf("PUBREL for %d", p.PacketID)
			}
		},
		"a refusal": func(x *trouble) {
			x.failsAt(&packet.Pubrec{PacketID: x.id, Reason: packet.ReasonUnspecified})
			x.c.Message()
		},
		"PUBREL": func(x *trouble) {
			x.failsAt(&packet.Pubrel{PacketID: 1})
			x.c.Send(&packet.Pubrel{PacketID: 1})
			if p, _ := x.c.Take(packet.TypePubcomp).(*packet.Pubcomp); p.Reason != 0 {
				x.t.Errorf("PUBCOMP %v", p.Reason)
			}
		},
		"SUBSCRIBE": func(x *trouble) {
			x.failsAt(&packet.Subscribe{PacketID: 9, Filters: []packet.Filter{{Filter: "b"}}})
			x.c.Subscribe(1, "b")
		},
		"UNSUBSCRIBE": func(x *trouble) {
			x.failsAt(&packet.Unsubscribe{PacketID: 9, Filters: []string{"a"}})
		},
	}
	for name, f := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := newTrouble(t)
				f(x)
				x.c.SetManual(false)
				brokertest.Connect(t, x.b.Pipe(), brokertest.V5("c")).Disconnect(0) // ends the session
				synctest.Wait()
				if st := x.b.Status(); st.StoreErrors == 0 || st.Sessions > 1 {
					t.Errorf("status %+v", st)
				}
			})
		})
	}
}

// TestReservedIDComesBack: a packet id reserved for a commit that failed is
// free again, and so is its place in the window.
func TestReservedIDComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t, nil)
		connect := brokertest.Keep(brokertest.V5("sub"), 600)
		connect.Properties.ReceiveMaximum = 2
		sub := brokertest.Connect(t, b.Pipe(), connect)
		sub.SetManual(true)
		sub.Subscribe(2, "a")
		synctest.Wait()
		c := brokertest.Connect(t, b.Pipe(), brokertest.V5("c"))
		b.Store.SetFailing(errDisk)
		for range 5 {
			if got := c.Publish(2, false, "a", "lost"); !got.Failed() {
				t.Errorf("PUBREC %v", got)
			}
		}
		b.Store.SetFailing(nil)
		c.Publish(2, false, "a", "1")
		c.Publish(2, false, "a", "2")
		if got := sub.Messages(2); got[0] != "1" || got[1] != "2" {
			t.Errorf("got %q", got)
		}
	})
}

// TestPacketIDsNotSaved: while QoS 2 packet ids cannot be made durable nothing
// is sent under them.
func TestPacketIDsNotSaved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t, nil)
		connect := brokertest.Keep(brokertest.V5("sub"), 600)
		sub := brokertest.Connect(t, b.Pipe(), connect)
		sub.Subscribe(2, "a")
		sub.Disconnect(0)
		c := brokertest.Connect(t, b.Pipe(), brokertest.V5("c"))
		for range 3 {
			c.Publish(2, false, "a", "x")
		}
		sub = brokertest.Raw(t, b.Pipe(), packet.V5)
		b.Store.Hold()
		sub.Send(connect)
		synctest.Wait()
		b.Store.SetFailing(errDisk)
		b.Store.Unhold()
		if ack, _ := sub.Take(packet.TypeConnack).(*packet.Connack); !ack.Reason.Failed() {
			t.Errorf("CONNACK %v", ack.Reason) // its session could not be marked connected
		}
		b.Store.SetFailing(nil)
		b.Store.SetReadFailing(errDisk)
		sub = brokertest.Connect(t, b.Pipe(), connect)
		synctest.Wait()
		b.Store.Hold()
		b.Store.SetReadFailing(nil)
		pass(2 * time.Second) // it reads again
		if got := sub.Silent(); len(got) > 0 {
			t.Errorf("sent under ids that are not durable: %v", got)
		}
		b.Store.SetFailing(errDisk)
		b.Store.Unhold()
		if got, _ := sub.Ended(); got != packet.ReasonImplementationSpecific {
			t.Errorf("DISCONNECT %v", got)
		}
		if n := len(sub.Rest()); n > 0 {
			t.Errorf("%d messages came", n)
		}
		b.Store.SetFailing(nil)
		brokertest.Connect(t, b.Pipe(), connect).Messages(3)
	})
}
