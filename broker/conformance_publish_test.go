package broker_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"holdfast/broker"
	"holdfast/broker/packet"
)

func TestPublishRules(t *testing.T) { publishRules.test(t) }

// publishRules are about PUBLISH and its acknowledgements (MQTT 5.0 §3.3 to
// §3.7, §4.3, §4.4).
var publishRules = rules{
	"an answer carries the packet identifier of what it answers": {play: func(s *scene) {
		c := s.connect(s.clean("c"))
		c.Send(&packet.Publish{QoS: 1, PacketID: 7, Topic: []byte("a")})
		equal(s, "PUBACK", c.Take(packet.TypePuback).(*packet.Puback).PacketID, 7)
		c.Send(&packet.Publish{QoS: 2, PacketID: 65535, Topic: []byte("a")})
		equal(s, "PUBREC", c.Take(packet.TypePubrec).(*packet.Pubrec).PacketID, 65535)
		c.Send(&packet.Pubrel{PacketID: 65535})
		equal(s, "PUBCOMP", c.Take(packet.TypePubcomp).(*packet.Pubcomp).PacketID, 65535)
		c.Send(&packet.Subscribe{PacketID: 258, Filters: []packet.Filter{{Filter: "a", QoS: 2}}})
		equal(s, "SUBACK", c.Take(packet.TypeSuback).(*packet.Suback).PacketID, 258)
		c.SetManual(true)
		s.connect(s.clean("p")).Publish(2, false, "a", "x")
		id := c.Message().PacketID
		c.Send(&packet.Pubrec{PacketID: id})
		equal(s, "PUBREL", c.Take(packet.TypePubrel).(*packet.Pubrel).PacketID, id)
		c.Send(&packet.Pubcomp{PacketID: id})
		for _, filter := range []string{"a", "never subscribed"} {
			c.Send(&packet.Unsubscribe{PacketID: 11, Filters: []string{filter}})
			equal(s, "UNSUBACK", c.Take(packet.TypeUnsuback).(*packet.Unsuback).PacketID, 11)
		}
		c.Send(&packet.Pingreq{}, &packet.Pingreq{})
		c.Take(packet.TypePingresp)
		c.Take(packet.TypePingresp)
		equal(s, "packets left", len(c.All()), 0)
	}},
	"a PUBLISH that says what it may not ends the connection": {play: func(s *scene) {
		// publish is a PUBLISH of these parts.
		publish := func(flags byte, topic, id, properties string) string {
			body := text(topic) + id
			if s.v == packet.V5 {
				body += string([]byte{byte(len(properties))}) + properties
			}
			return string(frame(0x30|flags, body+"x"))
		}
		malformed, protocol, name := packet.ReasonMalformedPacket, packet.ReasonProtocolError, packet.ReasonTopicNameInvalid
		type bad struct {
			bytes string
			want  packet.ReasonCode
		}
		all := map[string]bad{
			"QoS 3":                        {publish(0x06, "a", "\x00\x01", ""), malformed},
			"packet identifier 0 at QoS 1": {publish(0x02, "a", "\x00\x00", ""), protocol},
			"packet identifier 0 at QoS 2": {publish(0x04, "a", "\x00\x00", ""), protocol},
			"no topic":                     {publish(0, "", "", ""), protocol},
			"topic with '+'":               {publish(0, "a/+", "", ""), name},
			"topic with '#'":               {publish(0, "a/#", "", ""), name},
			"topic that is '#'":            {publish(0, "#", "", ""), name},
			"topic with U+0000":            {publish(0, "a\x00", "", ""), malformed},
			"topic with a surrogate":       {publish(0, "\xed\xa0\x80", "", ""), malformed},
			"topic that is no UTF-8":       {publish(0, "a\xff", "", ""), malformed},
			"topic longer than the packet": {"\x30\x03\x00\x09a", malformed},
		}
		if s.v != packet.V31 {
			all["DUP at QoS 0"] = bad{publish(0x08, "a", "", ""), malformed}
		}
		if s.v == packet.V5 {
			all["subscription identifier"] = bad{publish(0, "a", "", "\x0b\x01"), protocol}
			all["topic alias 0"] = bad{publish(0, "a", "", "\x23\x00\x00"), packet.ReasonTopicAliasInvalid}
			all["topic alias over the maximum"] = bad{publish(0, "a", "", "\x23\xff\xff"), packet.ReasonTopicAliasInvalid}
			all["topic alias never set"] = bad{publish(0, "", "", "\x23\x00\x01"), protocol}
			all["a property twice"] = bad{publish(0, "a", "", "\x01\x00\x01\x00"), protocol}
			all["a property of CONNECT"] = bad{publish(0, "a", "", "\x21\x00\x01"), malformed}
			all["a response topic with '#'"] = bad{publish(0, "a", "", "\x08\x00\x01#"), protocol}
		}
		for what, x := range all {
			s.ends(what, x.bytes, x.want)
		}
		equal(s, "retained messages", s.b.Status().Retained, 0)
	}},
	"what only servers send ends the connection": {play: func(s *scene) {
		for what, b := range map[string]string{
			"CONNACK": "\x20\x02\x00\x00", "SUBACK": "\x90\x03\x00\x01\x00", "UNSUBACK": "\xb0\x02\x00\x01", "PINGRESP": "\xd0\x00",
		} {
			if s.v == packet.V5 {
				b = map[string]string{
					"CONNACK": "\x20\x03\x00\x00\x00", "SUBACK": "\x90\x04\x00\x01\x00\x00", "UNSUBACK": "\xb0\x04\x00\x01\x00\x00", "PINGRESP": b,
				}[what]
			}
			s.ends(what, b, packet.ReasonProtocolError)
		}
		s.ends("type 0", "\x00\x00", packet.ReasonMalformedPacket)
		auth := packet.ReasonProtocolError
		if s.v != packet.V5 {
			auth = packet.ReasonMalformedPacket
		}
		s.ends("AUTH", "\xf0\x00", auth)
	}},
	"PUBRELs have the order of the PUBRECs": {play: func(s *scene) {
		for _, connect := range []*packet.Connect{s.clean("sub"), s.kept("sub")} {
			sub := s.manual(connect)
			sub.Subscribe(2, "a")
			s.settle()
			p := s.connect(s.clean("p"))
			var ids []uint16
			for range 5 {
				p.Publish(2, false, "a", "x")
				ids = append(ids, sub.Message().PacketID)
			}
			order := []int{3, 0, 4, 2, 1}
			for _, i := range order {
				sub.Send(&packet.Pubrec{PacketID: ids[i]})
			}
			for _, i := range order {
				equal(s, "PUBREL", sub.Take(packet.TypePubrel).(*packet.Pubrel).PacketID, ids[i])
			}
			sub.Disconnect(0)
		}
	}},
	"DUP says only that the broker itself sends again": {play: func(s *scene) {
		sub := s.manual(s.kept("sub"))
		sub.Subscribe(2, "a")
		s.settle()
		p := s.connect(s.clean("p"))
		p.Send(&packet.Publish{Topic: []byte("a"), Payload: []byte("0")})
		p.Send(&packet.Publish{Topic: []byte("a"), Payload: []byte("1"), QoS: 1, PacketID: 1, Dup: true})
		p.Take(packet.TypePuback)
		p.Send(&packet.Publish{Topic: []byte("a"), Payload: []byte("2"), QoS: 2, PacketID: 2, Dup: true})
		p.Take(packet.TypePubrec)
		s.settle()
		for _, m := range sub.Rest() {
			equal(s, "DUP of the first of "+string(m.Payload), m.Dup, false)
		}
		s.leave(sub)
		sub = s.manual(s.kept("sub"))
		for _, m := range []*packet.Publish{sub.Message(), sub.Message()} {
			equal(s, "DUP of the second of "+string(m.Payload), m.Dup, true)
		}
		equal(s, "more", len(sub.Silent()), 0)
	}},
	"nothing is sent again on the same connection": {pipesOnly: true, play: func(s *scene) {
		sub := s.manual(s.kept("sub"))
		sub.Subscribe(2, "a")
		s.settle()
		p := s.connect(s.clean("p"))
		p.Publish(1, false, "a", "1")
		p.Publish(2, false, "a", "2")
		p.Publish(2, false, "a", "3")
		for range 2 {
			sub.Message()
		}
		sub.Send(&packet.Pubrec{PacketID: sub.Message().PacketID})
		sub.Take(packet.TypePubrel)
		pass(100 * time.Hour)
		s.nothing(sub)
	}},
	"a refused delivery does not come again": {versions: only5, play: func(s *scene) {
		sub := s.manual(s.kept("sub"))
		sub.Subscribe(2, "a")
		s.settle()
		p := s.connect(s.clean("p"))
		p.Publish(1, false, "a", "1")
		sub.Send(&packet.Puback{PacketID: sub.Message().PacketID, Reason: packet.ReasonUnspecified})
		p.Publish(2, false, "a", "2")
		sub.Send(&packet.Pubrec{PacketID: sub.Message().PacketID, Reason: packet.ReasonUnspecified})
		s.nothing(sub)
		s.leave(sub)
		s.nothing(s.connect(s.kept("sub")))
	}},
	"a message that was sent does not expire": {pipesOnly: true, versions: only5, play: func(s *scene) {
		for qos := byte(1); qos <= 2; qos++ {
			sub := s.manual(s.kept("sub"))
			sub.Subscribe(2, "a")
			s.settle()
			s.connect(s.clean("p")).PublishWith(&packet.Publish{QoS: qos, Topic: []byte("a"), HasExpiry: true, MessageExpiry: 5})
			id := sub.Message().PacketID
			s.leave(sub)
			pass(time.Minute)
			sub = s.connect(s.kept("sub"))
			m := sub.Message()
			if m.PacketID != id || !m.Dup {
				s.Errorf("QoS %d came again as packet %d DUP %v, first as %d", qos, m.PacketID, m.Dup, id)
			}
			sub.Disconnect(0)
		}
	}},
	"a QoS 2 message that has expired is acknowledged to the end": {pipesOnly: true, versions: only5, play: func(s *scene) {
		c := s.connect(s.kept("c"))
		m := &packet.Publish{QoS: 2, PacketID: 1, Topic: []byte("a"), HasExpiry: true, MessageExpiry: 1}
		c.Send(m)
		equal(s, "PUBREC failed", c.Take(packet.TypePubrec).(*packet.Pubrec).Reason.Failed(), false)
		pass(time.Minute)
		m.Dup = true
		c.Send(m)
		equal(s, "PUBREC failed", c.Take(packet.TypePubrec).(*packet.Pubrec).Reason.Failed(), false)
		c.Send(&packet.Pubrel{PacketID: 1})
		equal(s, "PUBCOMP", c.Take(packet.TypePubcomp).(*packet.Pubcomp).Reason, 0)
	}},
	"after its PUBACK a packet identifier is free": {play: func(s *scene) {
		sub := s.connect(s.clean("sub"))
		sub.Subscribe(1, "a")
		c := s.connect(s.clean("c"))
		for i, dup := range []bool{false, true, false} {
			c.Send(&packet.Publish{QoS: 1, PacketID: 1, Dup: dup, Topic: []byte("a"), Payload: fmt.Append(nil, i)})
			c.Take(packet.TypePuback)
		}
		s.payloads(sub, "0", "1", "2")
	}},
	"until its PUBREL a QoS 2 message is delivered once": {play: func(s *scene) {
		sub := s.connect(s.clean("sub"))
		sub.Subscribe(2, "a")
		c := s.connect(s.clean("c"))
		for _, payload := range []string{"one", "two"} {
			for _, dup := range []bool{false, true, true} {
				c.Send(&packet.Publish{QoS: 2, PacketID: 1, Dup: dup, Topic: []byte("a"), Payload: []byte(payload)})
				equal(s, "PUBREC", c.Take(packet.TypePubrec).(*packet.Pubrec).PacketID, 1)
			}
			c.Send(&packet.Pubrel{PacketID: 1})
			equal(s, "PUBCOMP", c.Take(packet.TypePubcomp).(*packet.Pubcomp).PacketID, 1)
		}
		s.payloads(sub, "one", "two")
	}},
	"after a PUBREC with an error the packet identifier is free": {versions: only5, play: func(s *scene) {
		sub := s.connect(s.clean("sub"))
		sub.Subscribe(2, "#")
		c := s.connect(s.clean("c"))
		s.closeTopic()
		for _, topic := range []string{"denied", "a", "denied"} {
			c.Send(&packet.Publish{QoS: 2, PacketID: 1, Topic: []byte(topic), Payload: []byte(topic)})
			if c.Take(packet.TypePubrec).(*packet.Pubrec).Reason == 0 {
				c.Send(&packet.Pubrel{PacketID: 1})
				c.Take(packet.TypePubcomp)
			}
		}
		s.payloads(sub, "a")
	}},
	"an empty retained message is delivered and clears its topic": {play: func(s *scene) {
		live := s.connect(s.clean("live"))
		live.Subscribe(2, "#")
		c := s.connect(s.clean("c"))
		for qos := byte(0); qos <= 2; qos++ {
			c.Publish(qos, true, "a", "x")
			c.Publish(qos, true, "a", "")
			c.Publish(qos, true, "never", "")
			s.payloads(live, "x", "", "")
		}
		equal(s, "retained messages", s.b.Status().Retained, 0)
		late := s.connect(s.clean("late"))
		late.Subscribe(2, "#")
		s.nothing(late)
	}},
	"a message without RETAIN leaves the retained one alone": {play: func(s *scene) {
		c := s.connect(s.clean("c"))
		c.Publish(1, true, "a", "kept")
		for qos := byte(0); qos <= 2; qos++ {
			c.Publish(qos, false, "a", "passing")
			c.Publish(qos, false, "a", "")
			c.Publish(qos, false, "b", "passing")
		}
		late := s.connect(s.clean("late"))
		late.Subscribe(2, "#")
		s.payloads(late, "kept")
	}},
	"a retained message of any QoS replaces the one before": {play: func(s *scene) {
		c := s.connect(s.clean("c"))
		for before := byte(0); before <= 2; before++ {
			for after := byte(0); after <= 2; after++ {
				c.Publish(before, true, "a", "before")
				c.Publish(after, true, "a", "after")
				late := s.connect(s.clean("late"))
				late.Subscribe(2, "a")
				m := late.Message()
				if string(m.Payload) != "after" || m.QoS != after || !m.Retain {
					s.Errorf("got %q QoS %d RETAIN %v", m.Payload, m.QoS, m.Retain)
				}
				s.nothing(late)
				late.Disconnect(0)
			}
		}
	}},
	"RETAIN is set for a new subscription and for no other": {play: func(s *scene) {
		live := s.connect(s.clean("live"))
		live.Subscribe(2, "a")
		c := s.connect(s.clean("c"))
		for qos := byte(0); qos <= 2; qos++ {
			c.Publish(qos, true, "a", "x")
			equal(s, "RETAIN to an established subscription", live.Message().Retain, false)
			late := s.connect(s.clean("late"))
			late.Subscribe(2, "a")
			equal(s, "RETAIN to a new subscription", late.Message().Retain, true)
			late.Disconnect(0)
		}
	}},
	"the lower QoS counts": {play: func(s *scene) {
		c := s.connect(s.clean("c"))
		for granted := byte(0); granted <= 2; granted++ {
			for _, connect := range []*packet.Connect{s.clean("sub"), s.kept("sub")} {
				sub := s.connect(connect)
				equal(s, "granted", sub.Subscribe(granted, "a")[0], packet.ReasonCode(granted))
				for qos := byte(0); qos <= 2; qos++ {
					c.Publish(qos, false, "a", "x")
					equal(s, "QoS", sub.Message().QoS, min(qos, granted))
				}
				s.nothing(sub)
				sub.Disconnect(0)
			}
		}
	}},
	"topics are compared as they are": {play: func(s *scene) {
		sub := s.connect(s.clean("sub"))
		sub.Subscribe(0, "caf\u00e9", "A", "/b", "c/", "\ufeffd", "e e")
		c := s.connect(s.clean("c"))
		for _, topic := range []string{"cafe\u0301", "a", "b", "/b/", "c", "c//", "d", "e  e"} {
			c.Publish(0, false, topic, topic)
		}
		c.Silent()
		s.nothing(sub)
		same := []string{"caf\u00e9", "A", "/b", "c/", "\ufeffd", "e e"}
		for _, topic := range same {
			c.Publish(0, false, topic, topic)
		}
		c.Silent()
		s.payloads(sub, same...)
	}},
	"each copy carries the identifier of its own subscription": {versions: only5, play: func(s *scene) {
		sub := s.connect(s.clean("sub"))
		sub.SubscribeWith(1, packet.Filter{Filter: "$share/g/a", QoS: 1})
		sub.SubscribeWith(2, packet.Filter{Filter: "a", QoS: 1})
		s.connect(s.clean("p")).Publish(1, false, "a", "x")
		ids := slices.Concat(sub.Message().SubscriptionIDs, sub.Message().SubscriptionIDs)
		slices.Sort(ids)
		if !slices.Equal(ids, []uint32{1, 2}) {
			s.Errorf("identifiers of both copies: %v, want 1 and 2", ids)
		}
	}},
	"a full window holds back nothing but messages": {versions: only5, play: func(s *scene) {
		connect := s.kept("sub")
		connect.Properties.ReceiveMaximum = 2
		sub := s.manual(connect)
		sub.Subscribe(2, "a")
		s.settle()
		p := s.connect(s.clean("p"))
		for qos := byte(1); qos <= 2; qos++ {
			for range 3 {
				p.Publish(qos, false, "a", "x")
			}
		}
		p.Publish(0, false, "a", "free")
		s.settle()
		counted := 0
		var two uint16
		for _, m := range sub.Rest() {
			if m.QoS > 0 {
				counted++
			}
			if m.QoS == 2 {
				two = m.PacketID
			}
		}
		equal(s, "messages in the window", counted, 2)
		equal(s, "SUBACK", sub.Subscribe(1, "b")[0], 1)
		sub.Send(&packet.Publish{QoS: 1, PacketID: 9, Topic: []byte("c")})
		sub.Take(packet.TypePuback)
		sub.Send(&packet.Publish{QoS: 2, PacketID: 9, Topic: []byte("c")})
		sub.Take(packet.TypePubrec)
		sub.Send(&packet.Pubrel{PacketID: 9})
		sub.Take(packet.TypePubcomp)
		sub.Send(&packet.Unsubscribe{PacketID: 10, Filters: []string{"b"}})
		sub.Take(packet.TypeUnsuback)
		if two != 0 {
			sub.Send(&packet.Pubrec{PacketID: two})
			sub.Take(packet.TypePubrel) // and the window is as full as before
		}
		s.nothing(sub)
	}},
	"a client without the right to publish is acknowledged or told": {play: func(s *scene) {
		sub := s.connect(s.clean("sub"))
		sub.Subscribe(2, "#")
		s.closeTopic()
		c := s.connect(s.clean("c"))
		for qos := byte(0); qos <= 2; qos++ {
			want := packet.ReasonSuccess
			if s.v == packet.V5 && qos > 0 {
				want = packet.ReasonNotAuthorized
			}
			equal(s, "answer", c.Publish(qos, false, "denied", "x"), want)
		}
		c.Silent()
		s.nothing(sub)
	}},
	"a payload that is not the UTF-8 it claims to be is refused when that is checked": {
		beyond: true, versions: only5, options: func(o *broker.Options) { o.CheckPayloadFormat = true },
		play: func(s *scene) {
			sub := s.connect(s.clean("sub"))
			sub.Subscribe(2, "#")
			c := s.connect(s.clean("c"))
			claims, err := packet.PublishProperties{HasPayloadFormat: true, PayloadFormat: 1, ContentType: "text/plain"}.AppendTo(nil)
			if err != nil {
				s.Fatal(err)
			}
			for qos := byte(1); qos <= 2; qos++ {
				for payload, want := range map[string]packet.ReasonCode{
					"\xff": packet.ReasonPayloadFormatInvalid, "\xed\xa0\x80": packet.ReasonPayloadFormatInvalid, "\u00fc": 0,
				} {
					got := c.PublishWith(&packet.Publish{QoS: qos, Topic: []byte("a"), Payload: []byte(payload), Properties: claims})
					equal(s, "answer", got, want)
				}
				equal(s, "answer without a claim", c.Publish(qos, false, "a", "\xff"), 0)
				s.payloads(sub, "\u00fc", "\xff")
			}
			c.PublishWith(&packet.Publish{Topic: []byte("a"), Payload: []byte("\xff"), Properties: claims})
			c.Silent()
			s.nothing(sub)
			will := s.clean("w")
			will.Will = &packet.Will{Topic: "a", Payload: []byte("\xff"), Properties: packet.Properties{PayloadFormat: 1}}
			equal(s, "CONNACK", s.raw().Try(will).Reason, packet.ReasonPayloadFormatInvalid)
		},
	},
	"aliases are given to the topics most used, and only as many as the client allows": {versions: only5, play: func(s *scene) {
		plain := s.connect(s.clean("plain"))
		plain.Subscribe(1, "#")
		connect := s.kept("sub")
		connect.Properties.TopicAliasMaximum = 2
		sub := s.connect(connect)
		sub.Subscribe(2, "#")
		p := s.connect(s.clean("p"))
		var aliases map[uint16]string
		// send publishes and says how many of the copies had no topic name.
		send := func(times int, topic string) (short int) {
			s.Helper()
			for i := range times {
				p.Publish(byte(i%3), false, topic, "x")
				m := sub.Message()
				switch {
				case m.TopicAlias > 2:
					s.Errorf("topic alias %d", m.TopicAlias)
				case len(m.Topic) > 0 && m.TopicAlias > 0:
					aliases[m.TopicAlias] = string(m.Topic)
				case len(m.Topic) == 0:
					short++
					equal(s, "topic", aliases[m.TopicAlias], topic)
				}
				if len(m.Topic) > 0 {
					equal(s, "topic", string(m.Topic), topic)
				}
				m = plain.Message()
				if m.TopicAlias != 0 || string(m.Topic) != topic {
					s.Errorf("a client that allows none got %q with alias %d", m.Topic, m.TopicAlias)
				}
			}
			return short
		}
		for range 2 { // an alias is for one connection
			aliases = make(map[uint16]string)
			equal(s, "short copies", send(5, "some/topic/with/a/name"), 4)
			equal(s, "short copies", send(5, "another/topic/with/a/name"), 4)
			if n := send(100, "the/most/used/of/all"); n < 80 {
				s.Errorf("%d of 100 messages of the topic most used were short", n)
			}
			sub.Disconnect(0)
			sub = s.connect(connect)
			for len(plain.Rest()) > 0 {
				s.settle()
			}
		}
	}},
}
