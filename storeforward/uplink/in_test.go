package uplink

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker/durable"
	"holdfast/broker/packet"
)

func TestMessagesOfTheCloudComeIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) { o.Routes[1].QoS = new(1) })
		p := r.cloud.welcome(t, packet.Connack{})
		p.subscribed()
		p.send(&packet.Publish{QoS: 1, PacketID: 9, Topic: []byte("site/cmd/valve"), Payload: []byte("open"), Retain: true, HasExpiry: true, MessageExpiry: 60, Properties: []byte{1, 1}})
		if ack := expect[*packet.Puback](p); ack.PacketID != 9 || ack.Reason != 0 {
			t.Errorf("answer is %s", show(ack))
		}
		p.send(&packet.Publish{Topic: []byte("site/cmd/zero"), Payload: []byte("0")})
		p.send(&packet.Publish{QoS: 2, PacketID: 10, Topic: []byte("site/cmd/two")})
		if rec := expect[*packet.Pubrec](p); rec.PacketID != 10 || rec.Reason != 0 {
			t.Errorf("answer is %s", show(rec))
		}
		p.send(&packet.Pubrel{PacketID: 10})
		if comp := expect[*packet.Pubcomp](p); comp.PacketID != 10 || comp.Reason != 0 {
			t.Errorf("answer is %s", show(comp))
		}
		p.send(&packet.Pubrel{PacketID: 10})
		if comp := expect[*packet.Pubcomp](p); comp.Reason != packet.ReasonPacketIDNotFound {
			t.Errorf("answer to a second PUBREL is %s", show(comp))
		}
		got := r.local.messages()
		if len(got) != 3 {
			t.Fatalf("%d messages, want 3", len(got))
		}
		m := got[0]
		if m.Topic != "cmd/valve" || string(m.Payload) != "open" || !m.Retain || m.QoS != 1 || !m.HasExpiry || m.Expiry != 60 || string(m.Properties) != "\x01\x01" || m.From != r.up.Name() {
			t.Errorf("message is %+v", m)
		}
		if got[1].QoS != 0 || got[2].QoS != 1 {
			t.Errorf("qos %d and %d, want 0 and 1, the cap of the route", got[1].QoS, got[2].QoS)
		}
		if st := r.up.Status(); st.MessagesIn != 3 {
			t.Errorf("messages in %d, want 3", st.MessagesIn)
		}
	})
}

// Acknowledgements go out when the messages are safe, in the order of arrival.
func TestCloudIsAcknowledgedWhenSafeAndInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		p := r.cloud.welcome(t, packet.Connack{})
		p.subscribed()
		r.local.set(nil, true)
		for id := uint16(1); id <= 3; id++ {
			p.send(&packet.Publish{QoS: 1, PacketID: id, Topic: []byte("site/cmd/x")})
		}
		p.quiet()
		r.local.release(1, nil)
		p.quiet() // the first is not safe
		r.local.release(0, nil)
		for id := uint16(1); id <= 2; id++ {
			if ack := expect[*packet.Puback](p); ack.PacketID != id {
				t.Errorf("PUBACK for %d, want %d", ack.PacketID, id)
			}
		}
		p.quiet()
		r.local.release(2, nil)
		expect[*packet.Puback](p)
	})
}

// A QoS 2 message that comes again joins the wait of its first coming, also
// over a reconnect; after a restart the store remembers it.
func TestQoS2OfTheCloudComesInOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		p := r.cloud.welcome(t, packet.Connack{})
		p.subscribed()
		r.local.set(nil, true)
		m := &packet.Publish{QoS: 2, PacketID: 5, Topic: []byte("site/cmd/x"), Payload: []byte("1")}
		p.send(m)
		p.quiet()
		p.cut()
		m.Dup = true
		p = r.cloud.welcome(t, packet.Connack{SessionPresent: true})
		p.send(m)
		p.quiet() // still not safe
		r.local.release(0, nil)
		expect[*packet.Pubrec](p)
		p.send(m)
		expect[*packet.Pubrec](p)
		p.send(&packet.Pubrel{PacketID: 5})
		expect[*packet.Pubcomp](p)
		if n := len(r.local.messages()); n != 1 {
			t.Fatalf("came in %d times, want once", n)
		}

		r.local.set(nil, false)
		m.Dup, m.Payload = false, []byte("2") // the id is free: a new message
		p.send(m)
		expect[*packet.Pubrec](p)
		p.cut()
		r.restart(nil)
		p = r.cloud.welcome(t, packet.Connack{SessionPresent: true})
		p.subscribed()
		m.Dup = true
		p.send(m)
		expect[*packet.Pubrec](p)
		if n := len(r.local.messages()); n != 0 {
			t.Errorf("came in again after the restart")
		}
		p.send(&packet.Pubrel{PacketID: 5})
		expect[*packet.Pubcomp](p)
		if st := r.up.Status(); st.InDuplicates != 1 {
			t.Errorf("duplicates recognised %d, want 1", st.InDuplicates)
		}
	})
}

func TestRefusedHereIsSaidIn5(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		p := r.cloud.welcome(t, packet.Connack{})
		p.subscribed()
		r.local.set(durable.ErrFull, false)
		p.send(&packet.Publish{QoS: 1, PacketID: 1, Topic: []byte("site/cmd/x")})
		if ack := expect[*packet.Puback](p); ack.Reason != packet.ReasonQuotaExceeded {
			t.Errorf("answer is %s", show(ack))
		}
		p.send(&packet.Publish{QoS: 2, PacketID: 1, Topic: []byte("site/cmd/x")})
		if rec := expect[*packet.Pubrec](p); rec.Reason != packet.ReasonQuotaExceeded {
			t.Errorf("answer is %s", show(rec))
		}
		r.local.set(nil, true) // taken, and the commit fails
		p.send(&packet.Publish{QoS: 2, PacketID: 1, Topic: []byte("site/cmd/x")})
		p.quiet()
		r.local.release(0, errors.New("disk"))
		if rec := expect[*packet.Pubrec](p); rec.Reason != packet.ReasonQuotaExceeded {
			t.Errorf("answer is %s", show(rec))
		}
		r.local.set(nil, false) // the claim is withdrawn: it may come again
		p.send(&packet.Publish{QoS: 2, PacketID: 1, Topic: []byte("site/cmd/x")})
		if rec := expect[*packet.Pubrec](p); rec.Reason != 0 {
			t.Errorf("answer is %s", show(rec))
		}
		if n := r.up.Status().Dropped[dropInFull]; n != 3 {
			t.Errorf("refused %d, want 3", n)
		}
	})
}

// 3.1.1 cannot refuse: no answer, nothing further taken, and a new connection
// after a pause, on which the cloud sends it again.
func TestRefusedHereIn311ComesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) { o.Protocol = Protocol311 })
		c := r.cloud.accept(t)
		c.answer(packet.Connack{}) // the one that ends the old session
		c.gone()
		p := r.cloud.welcome(t, packet.Connack{})
		p.subscribed()
		r.local.set(durable.ErrFull, false)
		p.send(&packet.Publish{QoS: 1, PacketID: 1, Topic: []byte("site/cmd/x")})
		p.quiet()
		r.local.set(nil, false)
		p.send(&packet.Publish{QoS: 1, PacketID: 2, Topic: []byte("site/cmd/x")})
		r.put("s/a", "out", 1) // the way out stays open
		p.expectPublish("out", 1, false)
		expect[*packet.Disconnect](p) // our own wish: no reason for the will
		p.cut()
		if n := len(r.local.messages()); n != 0 {
			t.Errorf("%d taken behind the one refused", n)
		}
		p = r.cloud.welcome(t, packet.Connack{SessionPresent: true})
		p.expectPublish("out", 1, true)
		for id := uint16(1); id <= 2; id++ {
			p.send(&packet.Publish{Dup: true, QoS: 1, PacketID: id, Topic: []byte("site/cmd/x")})
			if ack := expect[*packet.Puback](p); ack.PacketID != id {
				t.Errorf("PUBACK for %d, want %d", ack.PacketID, id)
			}
		}
	})
}

// Subscriptions of an earlier configuration are given back, and what still
// comes of them does not come in.
func TestOldSubscriptionsAreGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		p := r.cloud.welcome(t, packet.Connack{})
		p.subscribed()
		synctest.Wait()
		r.restart(func(o *Options) { o.Routes[1].Filter = "orders/#" })
		p = r.cloud.welcome(t, packet.Connack{SessionPresent: true})
		un := expect[*packet.Unsubscribe](p)
		if len(un.Filters) != 1 || un.Filters[0] != "site/cmd/#" {
			t.Errorf("UNSUBSCRIBE of %q", un.Filters)
		}
		p.subscribed()
		p.send(&packet.Publish{QoS: 1, PacketID: 1, Topic: []byte("site/cmd/x")})
		if ack := expect[*packet.Puback](p); ack.Reason != packet.ReasonNotAuthorized {
			t.Errorf("answer is %s", show(ack))
		}
		p.send(&packet.Unsuback{PacketID: un.PacketID, Reasons: []packet.ReasonCode{0}})
		p.quiet()
		p.cut()
		p = r.cloud.welcome(t, packet.Connack{SessionPresent: true})
		p.quiet() // neither again
		if n := r.up.Status().Dropped[dropInNoRoute]; n != 1 {
			t.Errorf("dropped %d, want 1", n)
		}
	})
}

// A refused subscription leaves the link up and is tried by the next one.
func TestSubscribeRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		p := r.cloud.welcome(t, packet.Connack{})
		s := expect[*packet.Subscribe](p)
		p.send(&packet.Suback{PacketID: s.PacketID, Reasons: []packet.ReasonCode{packet.ReasonNotAuthorized}})
		p.quiet()
		if st := r.up.Status(); st.State != StateUp || st.SubscribeRefused != 1 {
			t.Errorf("status is %+v", st)
		}
		p.cut()
		p = r.cloud.welcome(t, packet.Connack{SessionPresent: true})
		p.subscribed()
	})
}

// In 3.1.1 there is no Receive Maximum; what the cloud may have on its way is
// bounded by not reading on.
func TestReadingPausesIn311(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) { o.Protocol = Protocol311; o.ReceiveMaximum = 3 })
		r.cloud.acceptWith(t, packet.Connack{}).gone()
		p := r.cloud.welcome(t, packet.Connack{})
		p.subscribed()
		r.local.set(nil, true)
		go func() {
			for id := uint16(1); id <= 6; id++ {
				p.send(&packet.Publish{QoS: 1, PacketID: id, Topic: []byte("site/cmd/x")})
			}
		}()
		p.quiet()
		if n := len(r.local.messages()); n != 3 {
			t.Errorf("%d taken, want 3", n)
		}
		for i := range 6 {
			r.local.release(i, nil)
			expect[*packet.Puback](p)
			synctest.Wait()
		}
		pass(time.Second)
	})
}
