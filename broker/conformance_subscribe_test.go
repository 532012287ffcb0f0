package broker_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"holdfast/broker"
	"holdfast/broker/packet"
)

func TestSubscribeRules(t *testing.T) { subscribeRules.test(t) }

// subscribeRules are about SUBSCRIBE, UNSUBSCRIBE and shared subscriptions
// (MQTT 5.0 §3.8 to §3.11, §4.8).
var subscribeRules = rules{
	"several filters in one packet are as many packets, with one answer": {play: func(s *scene) {
		p := s.connect(s.clean("p"))
		p.Publish(0, true, "a", "A")
		p.Publish(0, true, "b", "B")
		s.closeTopic()
		c := s.connect(s.clean("c"))
		c.Send(&packet.Subscribe{PacketID: 1, Filters: []packet.Filter{
			{Filter: "a", QoS: 2}, {Filter: "x/#/y", QoS: 1}, {Filter: "b"}, {Filter: "denied", QoS: 1}, {Filter: "a", QoS: 1}, {Filter: "", QoS: 0},
		}})
		want := []packet.ReasonCode{2, packet.ReasonTopicFilterInvalid, 0, packet.ReasonNotAuthorized, 1, packet.ReasonTopicFilterInvalid}
		if s.v < packet.V5 {
			want = []packet.ReasonCode{2, 0x80, 0, 0x80, 1, 0x80}
		}
		if got := c.Take(packet.TypeSuback).(*packet.Suback).Reasons; !slices.Equal(got, want) {
			s.Errorf("SUBACK %v, want %v", got, want)
		}
		got := c.Messages(3)
		slices.Sort(got)
		equal(s, "retained messages", strings.Join(got, ""), "AAB")
		p.Publish(2, false, "a", "x")
		equal(s, "QoS of the later one of two equal filters", c.Message().QoS, 1)
		c.Send(&packet.Unsubscribe{PacketID: 2, Filters: []string{"a", "c", "b"}})
		unsuback := c.Take(packet.TypeUnsuback).(*packet.Unsuback)
		if s.v == packet.V5 && !slices.Equal(unsuback.Reasons, []packet.ReasonCode{0, packet.ReasonNoSubscriptionExisted, 0}) {
			s.Errorf("UNSUBACK %v", unsuback.Reasons)
		}
		p.Publish(1, false, "a", "x")
		p.Publish(1, false, "b", "x")
		s.nothing(c)
	}},
	"a packet that says what it may not ends the connection": {play: func(s *scene) {
		v5 := map[bool]string{true: "\x00"}[s.v == packet.V5]
		subscribe := func(id, rest string) string { return string(frame(0x82, id+v5+rest)) }
		malformed, protocol := packet.ReasonMalformedPacket, packet.ReasonProtocolError
		type bad struct {
			bytes string
			want  packet.ReasonCode
		}
		all := map[string]bad{
			"SUBSCRIBE without filters":               {subscribe("\x00\x01", ""), protocol},
			"SUBSCRIBE without options":               {subscribe("\x00\x01", text("a")), malformed},
			"SUBSCRIBE with packet identifier 0":      {subscribe("\x00\x00", text("a")+"\x00"), protocol},
			"UNSUBSCRIBE without filters":             {string(frame(0xa2, "\x00\x01"+v5)), protocol},
			"UNSUBSCRIBE with packet identifier 0":    {string(frame(0xa2, "\x00\x00"+v5+text("a"))), protocol},
			"UNSUBSCRIBE whose filter is longer":      {string(frame(0xa2, "\x00\x01"+v5+"\x00\x09a")), malformed},
			"SUBSCRIBE with QoS 3":                    {subscribe("\x00\x01", text("a")+"\x03"), malformed},
			"SUBSCRIBE with the highest reserved bit": {subscribe("\x00\x01", text("a")+"\x80"), malformed},
			"SUBSCRIBE with the next reserved bit":    {subscribe("\x00\x01", text("a")+"\x40"), malformed},
		}
		switch s.v {
		case packet.V31:
			delete(all, "SUBSCRIBE with the highest reserved bit") // "not used"
			delete(all, "SUBSCRIBE with the next reserved bit")
		case packet.V311:
			all["SUBSCRIBE with a bit that 5.0 gave a meaning"] = bad{subscribe("\x00\x01", text("a")+"\x04"), malformed}
		case packet.V5:
			all["SUBSCRIBE with QoS 3"] = bad{subscribe("\x00\x01", text("a")+"\x03"), protocol}
			all["retain handling 3"] = bad{subscribe("\x00\x01", text("a")+"\x30"), protocol}
			all["No Local on a shared subscription"] = bad{subscribe("\x00\x01", text("$share/g/a")+"\x04"), protocol}
			all["subscription identifier 0"] = bad{string(frame(0x82, "\x00\x01\x02\x0b\x00"+text("a")+"\x00")), protocol}
		}
		for what, x := range all {
			s.ends(what, x.bytes, x.want)
		}
	}},
	"the highest QoS of overlapping subscriptions counts": {play: func(s *scene) {
		p := s.connect(s.clean("p"))
		filters := []string{"a/#", "a/b", "#"}
		for highest := range filters {
			sub := s.connect(s.clean("sub"))
			for i, f := range filters {
				sub.Subscribe(byte((i+5-highest)%3), f)
			}
			for qos := byte(0); qos <= 2; qos++ {
				p.Publish(qos, false, "a/b", "x")
				equal(s, "QoS", sub.Message().QoS, qos)
				s.nothing(sub)
			}
			sub.Disconnect(0)
		}
	}},
	"a subscription made again sends the retained messages again": {play: func(s *scene) {
		s.connect(s.clean("p")).Publish(1, true, "a", "x")
		c := s.connect(s.clean("c"))
		for range 3 {
			c.Subscribe(1, "a")
			s.payloads(c, "x")
		}
		equal(s, "subscriptions", s.b.Status().Subscriptions, 1)
	}},
	"no message is lost or doubled while a subscription is replaced": {play: func(s *scene) {
		for _, connect := range []*packet.Connect{s.clean("c"), s.kept("c")} {
			c := s.connect(connect)
			c.Subscribe(1, "a")
			p := s.connect(s.clean("p"))
			const n = 200
			done := make(chan struct{})
			go func() {
				defer close(done)
				for i := range n {
					p.Publish(1, false, "a", fmt.Sprint(i))
				}
			}()
			for i := range 50 {
				c.Subscribe(byte(1+i%2), "a")
			}
			<-done
			for i, got := range c.Messages(n) {
				equal(s, "message", got, fmt.Sprint(i))
			}
			s.nothing(c)
			c.Disconnect(0)
		}
	}},
	"UNSUBSCRIBE compares filters character by character": {play: func(s *scene) {
		c := s.connect(s.clean("c"))
		c.Subscribe(1, "a/+")
		p := s.connect(s.clean("p"))
		for _, filter := range []string{"a/b", "a/#", "A/+", "a/+/", "#", "$share/g/a/+"} {
			c.Send(&packet.Unsubscribe{PacketID: 1, Filters: []string{filter}})
			c.Take(packet.TypeUnsuback)
			p.Publish(1, false, "a/b", filter)
			s.payloads(c, filter)
		}
		c.Send(&packet.Unsubscribe{PacketID: 1, Filters: []string{"a/+"}})
		c.Take(packet.TypeUnsuback)
		p.Publish(1, false, "a/b", "x")
		s.nothing(c)
	}},
	"what was sent is finished after UNSUBSCRIBE": {play: func(s *scene) {
		c := s.manual(s.kept("c"))
		c.Subscribe(2, "a")
		s.settle()
		p := s.connect(s.clean("p"))
		p.Publish(2, false, "a", "2")
		p.Publish(1, false, "a", "1")
		one, two := c.Message(), c.Message()
		if one.QoS == 2 {
			one, two = two, one
		}
		c.Send(&packet.Unsubscribe{PacketID: 1, Filters: []string{"a"}})
		c.Take(packet.TypeUnsuback)
		c.Send(&packet.Puback{PacketID: one.PacketID}, &packet.Pubrec{PacketID: two.PacketID})
		equal(s, "PUBREL", c.Take(packet.TypePubrel).(*packet.Pubrel).PacketID, two.PacketID)
		c.Send(&packet.Pubcomp{PacketID: two.PacketID})
		s.nothing(c)
		equal(s, "left in the store", s.b.Store.Backlog("c"), 0)
		equal(s, "acknowledgements of nothing", s.b.Status().UnknownAcks, 0)
	}},
	"wrong flags in the fixed header end the connection": {versions: since311, play: func(s *scene) {
		for what, b := range map[string][]byte{
			"PUBACK":      frame(0x41, "\x00\x01"),
			"PUBREC":      frame(0x58, "\x00\x01"),
			"PUBREL":      frame(0x60, "\x00\x01"),
			"PUBCOMP":     frame(0x72, "\x00\x01"),
			"SUBSCRIBE":   frame(0x80, "\x00\x01"+map[bool]string{true: "\x00"}[s.v == packet.V5]+text("a")+"\x00"),
			"UNSUBSCRIBE": frame(0xa0, "\x00\x01"+map[bool]string{true: "\x00"}[s.v == packet.V5]+text("a")),
			"PINGREQ":     frame(0xc1, ""),
			"DISCONNECT":  frame(0xe8, ""),
		} {
			c := s.connect(s.clean(what))
			c.SendBytes(b)
			s.ended(c, packet.ReasonMalformedPacket)
		}
	}},
	"a filter that is no UTF-8 ends the connection": {play: func(s *scene) {
		v5 := map[bool]string{true: "\x00"}[s.v == packet.V5]
		for _, filter := range []string{"a\xff", "a\x00", "\xed\xa0\x80"} {
			for first, after := range map[byte]string{0x82: "\x00", 0xa2: ""} {
				c := s.connect(s.clean("c"))
				c.SendBytes(frame(first, "\x00\x01"+v5+text(filter)+after))
				s.ended(c, packet.ReasonMalformedPacket)
			}
		}
	}},
	"no message comes back to a No Local subscription of its publisher": {versions: only5, play: func(s *scene) {
		c := s.connect(s.kept("c"))
		local := packet.Filter{Filter: "a", QoS: 1, NoLocal: true}
		c.SubscribeWith(0, local)
		c.Publish(1, true, "a", "mine")
		s.nothing(c)
		c.SubscribeWith(0, local) // not as a retained message either
		s.nothing(c)
		s.leave(c)
		c = s.connect(s.kept("c"))
		c.Publish(1, false, "a", "mine") // it is about the client identifier
		s.nothing(c)
		other := s.connect(s.clean("other"))
		other.SubscribeWith(0, local)
		s.payloads(other, "mine")
		other.Publish(1, false, "a", "theirs")
		s.payloads(c, "theirs")
	}},
	"members of a shared subscription get the QoS of their own": {play: func(s *scene) {
		p := s.connect(s.clean("p"))
		for granted := byte(0); granted <= 2; granted++ {
			m := s.connect(s.clean(fmt.Sprint("m", granted)))
			m.Subscribe(granted, "$share/g/a")
			defer func() { equal(s, "QoS", m.Message().QoS, granted) }()
		}
		for range 3 {
			p.Publish(2, false, "a", "x")
		}
	}},
	"a QoS 2 delivery stays with the member it was sent to": {play: func(s *scene) {
		p := s.connect(s.clean("p"))
		for _, returns := range []bool{true, false} {
			m := s.manual(s.kept("m"))
			m.Subscribe(2, "$share/g/a")
			s.settle()
			p.Publish(2, false, "a", "x")
			id := m.Message().PacketID
			other := s.connect(s.clean("other"))
			other.Subscribe(2, "$share/g/a")
			s.leave(m)
			s.nothing(other)
			if returns {
				m = s.connect(s.kept("m"))
				got := m.Message()
				if got.PacketID != id || string(got.Payload) != "x" {
					s.Errorf("packet %d is %q, want %d", got.PacketID, got.Payload, id)
				}
			}
			s.connect(s.clean("m")).Disconnect(0) // the session ends
			s.nothing(other)
			other.Disconnect(0)
		}
	}},
	"what a member has not acknowledged when it ends goes to another": {
		beyond: true, // §4.8.2 leaves it to the server
		play: func(s *scene) {
			p := s.connect(s.clean("p"))
			for _, online := range []bool{true, false} {
				connect := s.clean("m")
				connect.Properties.ReceiveMaximum = 4
				m := s.manual(connect)
				m.Subscribe(2, "$share/g/a")
				p.Publish(1, false, "a", "acknowledged")
				m.Send(&packet.Puback{PacketID: m.Message().PacketID})
				p.Publish(2, false, "a", "begun")
				for _, payload := range []string{"1", "2", "3", "4", "5"} { // the last two wait, in 5.0
					p.Publish(1, false, "a", payload)
				}
				s.settle()
				other := s.connect(s.kept("other"))
				other.Subscribe(1, "$share/g/a")
				if !online {
					s.leave(other)
				}
				s.leave(m)
				if !online {
					other = s.connect(s.kept("other"))
				}
				for _, want := range []string{"1", "2", "3", "4", "5"} {
					got := other.Message()
					equal(s, "message", string(got.Payload), want)
					equal(s, "DUP", got.Dup, false)
				}
				s.nothing(other)
				s.connect(s.clean("other")).Disconnect(0)
			}
		},
	},
	"a member that takes no more leaves what waited to the others": {
		beyond: true, options: func(o *broker.Options) { o.MaxQueued, o.MaxInflight = 3, 2 },
		play: func(s *scene) {
			m := s.manual(s.clean("m"))
			m.Subscribe(1, "$share/g/a")
			p := s.connect(s.clean("p"))
			for i := range 5 {
				p.Publish(1, false, "a", fmt.Sprint(i))
			}
			other := s.manual(s.clean("other"))
			other.Subscribe(1, "$share/g/a")
			p.Publish(1, false, "a", "5")
			p.Publish(1, false, "a", "6")
			its := []uint16{other.Message().PacketID, other.Message().PacketID}
			p.Publish(1, false, "a", "7") // neither has room, and it is m's turn
			s.ended(m, packet.ReasonQuotaExceeded)
			s.settle()
			other.SetManual(false)
			other.Send(&packet.Puback{PacketID: its[0]}, &packet.Puback{PacketID: its[1]})
			got := other.Messages(6)
			slices.Sort(got)
			equal(s, "messages", strings.Join(got, ""), "012347")
			s.nothing(other)
		},
	},
	"a refusal ends a shared delivery": {versions: only5, play: func(s *scene) {
		p := s.connect(s.clean("p"))
		for _, connect := range []*packet.Connect{s.clean("m"), s.kept("m")} {
			m := s.manual(connect)
			m.Subscribe(2, "$share/g/a")
			s.settle()
			for qos := byte(1); qos <= 2; qos++ {
				p.Publish(qos, false, "a", "x")
			}
			other := s.connect(s.clean("other"))
			other.Subscribe(2, "$share/g/a")
			for range 2 {
				if x := m.Message(); x.QoS == 1 {
					m.Send(&packet.Puback{PacketID: x.PacketID, Reason: packet.ReasonUnspecified})
				} else {
					m.Send(&packet.Pubrec{PacketID: x.PacketID, Reason: packet.ReasonUnspecified})
				}
			}
			s.nothing(m)
			s.nothing(other)
			s.leave(m)
			s.nothing(other)
			s.connect(s.clean("m")).Disconnect(0)
			other.Disconnect(0)
		}
	}},
}
