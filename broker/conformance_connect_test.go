package broker_test

import (
	"strings"
	"testing"
	"time"

	"holdfast/broker"
	"holdfast/broker/brokertest"
	"holdfast/broker/packet"
)

func TestConnectRules(t *testing.T) { connectRules.test(t) }

// connectRules are about CONNECT, CONNACK, DISCONNECT and wills (MQTT 5.0
// §3.1, §3.2, §3.14).
var connectRules = rules{
	"what the flags of CONNECT announce is there, and nothing else": {versions: since311, play: func(s *scene) {
		for what, x := range map[string]struct {
			flags  byte
			fields []string
		}{
			"no will":                 {0x06, []string{"c"}},
			"no will message":         {0x06, []string{"c", "w"}},
			"no user name":            {0x82, []string{"c"}},
			"no password":             {0xc2, []string{"c", "u"}},
			"user name without flag":  {0x02, []string{"c", "u"}},
			"password without flag":   {0x82, []string{"c", "u", "p"}},
			"will without flag":       {0x02, []string{"c", "w", "m"}},
			"will QoS without will":   {0x0a, []string{"c"}},
			"will RETAIN and no will": {0x22, []string{"c"}},
			"will QoS 3":              {0x1e, []string{"c", "w", "m"}},
			"no client identifier":    {0x02, nil},
			"the reserved flag":       {0x03, []string{"c"}},
		} {
			c := s.raw()
			c.SendBytes(s.connectBytes(x.flags, x.fields...))
			c.Ended()
			for _, p := range c.All() {
				ack, ok := p.(*packet.Connack)
				if !ok || s.v != packet.V5 || ack.Reason != packet.ReasonMalformedPacket {
					s.Errorf("%s: answered with %v %v", what, p.Type(), p)
				}
			}
		}
		good := s.raw()
		good.SendBytes(s.connectBytes(0xee, "c", "w", "m", "u", "p"))
		equal(s, "answer to all fields in their order", good.Take(packet.TypeConnack).(*packet.Connack).Reason, 0)
	}},
	"strings of CONNECT that are no UTF-8 end the connection": {versions: since311, play: func(s *scene) {
		for _, bad := range []string{"\xff", "\x00", "\xed\xa0\x80", "\xc0\x80"} {
			for i := range 3 {
				fields := []string{"c", "w", "m", "u", "p"}
				fields[[]int{0, 1, 3}[i]] = bad
				c := s.raw()
				c.SendBytes(s.connectBytes(0xc6, fields...))
				c.Ended()
				for _, p := range c.All() {
					if ack, ok := p.(*packet.Connack); !ok || !ack.Reason.Failed() {
						s.Errorf("%q is accepted as field %d", bad, i)
					}
				}
			}
		}
	}},
	"clean start begins with an empty session": {play: func(s *scene) {
		c := s.connect(s.kept("c"))
		c.Subscribe(2, "a")
		s.leave(c)
		p := s.connect(s.clean("p"))
		p.Publish(1, false, "a", "old")
		c = s.connect(s.clean("c"))
		equal(s, "session present", c.Connack.SessionPresent, false)
		p.Publish(1, false, "a", "new")
		s.nothing(c)
		s.leave(c)
		c = s.connect(s.kept("c"))
		equal(s, "session present after a clean one", c.Connack.SessionPresent, false)
		s.nothing(c)
	}},
	"a kept session goes on, and its CONNACK comes first": {play: func(s *scene) {
		c := s.connect(s.kept("c"))
		equal(s, "session present at first", c.Connack.SessionPresent, false)
		c.Subscribe(2, "a")
		s.leave(c)
		p := s.connect(s.clean("p"))
		p.Publish(1, false, "a", "one")
		p.Publish(2, false, "a", "two")
		c = s.raw()
		c.Send(s.kept("c"))
		ack, ok := c.Next().(*packet.Connack)
		if !ok || ack.Reason != 0 || ack.SessionPresent != (s.v != packet.V31) {
			s.Errorf("the first packet is %v", ack)
		}
		s.clients = append(s.clients, c)
		got := strings.Join(c.Messages(2), " ")
		if got != "one two" && got != "two one" { // order is per QoS
			s.Errorf("got %q", got)
		}
		p.Publish(1, false, "a", "three")
		s.payloads(c, "three")
	}},
	"retained messages are no part of a session": {play: func(s *scene) {
		c := s.connect(s.clean("c"))
		c.Publish(1, true, "a", "kept")
		c.Disconnect(0)
		c = s.connect(s.clean("c"))
		c.Subscribe(1, "a")
		s.payloads(c, "kept")
	}},
	"a lost connection sends the will, DISCONNECT takes it back": {play: func(s *scene) {
		watch := s.connect(s.clean("watch"))
		watch.Subscribe(2, "will/#")
		for qos := byte(0); qos <= 2; qos++ {
			p := s.clean("c")
			p.Will = &packet.Will{Topic: "will/x", Payload: []byte("dead"), QoS: qos}
			s.leave(s.connect(p))
			m := watch.Message()
			equal(s, "QoS of the will", m.QoS, qos)
			s.connect(p).Disconnect(0)
			s.nothing(watch)
			p.Will = nil
			s.leave(s.connect(p))
			s.nothing(watch) // each is sent once
		}
	}},
	"a will is retained only if it asks for it": {play: func(s *scene) {
		for _, retain := range []bool{false, true} {
			p := s.clean("c")
			p.Will = &packet.Will{Topic: "will", Payload: []byte("dead"), Retain: retain}
			s.leave(s.connect(p))
			late := s.connect(s.clean("late"))
			late.Subscribe(0, "will")
			equal(s, "retained messages", len(late.Silent()), map[bool]int{true: 1}[retain])
			late.Disconnect(0)
		}
	}},
	"a will keeps the order of its properties": {versions: only5, play: func(s *scene) {
		watch := s.connect(s.clean("watch"))
		watch.Subscribe(0, "will")
		p := s.clean("c")
		user := []packet.UserProperty{{Key: "b", Value: "1"}, {Key: "a", Value: "2"}, {Key: "b", Value: "1"}, {Key: "", Value: ""}}
		p.Will = &packet.Will{Topic: "will", Properties: packet.Properties{User: user}}
		s.leave(s.connect(p))
		got, err := packet.ParsePublishProperties(watch.Message().Properties)
		if err != nil || len(got.User) != len(user) {
			s.Fatalf("got %v, %v", got, err)
		}
		for i := range user {
			equal(s, "user property", got.User[i], user[i])
		}
	}},
	"the client identifier names the session": {play: func(s *scene) {
		for _, id := range []string{"one", "two", "One"} {
			c := s.connect(s.kept(id))
			c.Subscribe(1, "to/"+id)
			s.leave(c)
		}
		p := s.connect(s.clean("p"))
		for _, id := range []string{"one", "two", "One"} {
			p.Publish(1, false, "to/"+id, id)
		}
		for _, id := range []string{"one", "two", "One"} {
			s.payloads(s.connect(s.kept(id)), id)
		}
	}},
	"letters and digits make a client identifier": {play: func(s *scene) {
		for _, id := range []string{
			"0", "z", "0123456789abcdefghijklm", "nopqrstuvwxyzABCDEFGHIJ", "KLMNOPQRSTUVWXYZ",
		} {
			s.connect(s.clean(id)).Disconnect(0)
		}
	}},
	"an empty client identifier gets one of its own": {versions: since311, play: func(s *scene) {
		a, b := s.connect(s.clean("")), s.connect(s.clean(""))
		equal(s, "clients", s.b.Status().Clients, 2)
		one, two := a.Connack.Properties.AssignedClientID, b.Connack.Properties.AssignedClientID
		if s.v < packet.V5 {
			return
		}
		if one == "" || one == two {
			s.Errorf("assigned %q and %q", one, two)
		}
		id := s.connect(s.kept("")).Connack.Properties.AssignedClientID
		again := s.connect(s.kept(id))
		equal(s, "session present under the assigned identifier", again.Connack.SessionPresent, true)
		equal(s, "assigned to who has one", again.Connack.Properties.AssignedClientID, "")
	}},
	"an empty client identifier is refused in 3.1": {beyond: true, versions: only31, play: func(s *scene) {
		c := s.raw()
		c.SendBytes([]byte("\x10\x0e\x00\x06MQIsdp\x03\x02\x00\x00\x00\x00"))
		equal(s, "CONNACK", c.Take(packet.TypeConnack).(*packet.Connack).Reason, packet.ReasonClientIDNotValid)
		c.Ended()
	}},
	"a refused client gets its reason, no session, and no DISCONNECT": {play: func(s *scene) {
		s.leave(s.connect(s.kept("c")))
		for _, reason := range []packet.ReasonCode{
			packet.ReasonBadUserNameOrPassword, packet.ReasonNotAuthorized, packet.ReasonServerUnavailable,
		} {
			s.refuseWith(reason)
			c := s.raw()
			got := c.Try(s.kept("c"))
			equal(s, "CONNACK", got.Reason, reason)
			equal(s, "session present", got.SessionPresent, false)
			if _, told := c.Ended(); told {
				s.Error("a DISCONNECT followed")
			}
		}
	}},
	"nothing after a refused CONNECT is looked at": {play: func(s *scene) {
		s.refuseWith(packet.ReasonNotAuthorized)
		c := s.raw()
		c.Send(s.clean("c"), &packet.Publish{Topic: []byte("a"), Retain: true, Payload: []byte("x")}, &packet.Pingreq{})
		c.Ended()
		equal(s, "messages", s.b.Status().MessagesIn, 0)
		equal(s, "retained messages", s.b.Status().Retained, 0)
		equal(s, "packets but the CONNACK", len(c.All()), 1)
	}},
	"there is one CONNECT and one CONNACK": {play: func(s *scene) {
		c := s.connect(s.clean("c"))
		c.Send(s.clean("c"))
		s.ended(c, packet.ReasonProtocolError)
		for _, p := range c.All() {
			if p.Type() == packet.TypeConnack {
				s.Error("a second CONNACK")
			}
		}
	}},
	"all that 5.0 has is available": {versions: only5, play: func(s *scene) {
		c := s.connect(s.clean("c"))
		p := c.Connack.Properties
		if p.MaximumQoS != nil || p.RetainAvailable != nil || p.WildcardAvailable != nil || p.SubIDAvailable != nil || p.SharedAvailable != nil {
			s.Errorf("CONNACK says %+v", p)
		}
		for qos := byte(0); qos <= 2; qos++ {
			equal(s, "granted", c.Subscribe(qos, "+/#")[0], packet.ReasonCode(qos))
			will := s.clean("w")
			will.Will = &packet.Will{Topic: "will", QoS: qos, Retain: true}
			s.connect(will).Disconnect(0)
		}
	}},
	"without an authentication method there is no authentication": {versions: only5, play: func(s *scene) {
		c := s.connect(s.clean("c"))
		equal(s, "method in the CONNACK", c.Connack.Properties.AuthMethod, "")
		c.Send(&packet.Auth{Reason: packet.ReasonReauthenticate, Properties: packet.Properties{AuthMethod: "SCRAM-SHA-256"}})
		s.ended(c, packet.ReasonProtocolError)
		for _, p := range c.All() {
			if p.Type() == packet.TypeAuth {
				s.Error("an AUTH came")
			}
		}
	}},
	"silence of one and a half keep alives ends the connection like a failure": {pipesOnly: true, play: func(s *scene) {
		watch := s.connect(s.clean("watch"))
		watch.Subscribe(0, "will")
		p := s.clean("c")
		p.KeepAlive = 60
		p.Will = &packet.Will{Topic: "will", Payload: []byte("dead")}
		c := s.connect(p)
		start := time.Now()
		pass(89 * time.Second)
		c.Silent()
		c.EndedWithin(200 * time.Second)
		equal(s, "time", time.Since(start), 179*time.Second)
		s.payloads(watch, "dead")
	}},
	"a session lasts as long as its connection": {pipesOnly: true, play: func(s *scene) {
		p := s.clean("c")
		if s.v == packet.V5 {
			p = brokertest.Keep(p, 1)
		}
		c := s.connect(p)
		c.Subscribe(1, "a")
		pass(1000 * time.Hour)
		s.connect(s.clean("p")).Publish(1, false, "a", "x")
		s.payloads(c, "x")
	}},
	"no packet is larger than the client takes": {versions: only5, play: func(s *scene) {
		limit := func(id string, n uint32) *packet.Connect {
			p := s.clean(id)
			p.Properties.MaximumPacketSize = n
			return p
		}
		small := s.raw()
		small.Send(limit("small", 10)) // our CONNACK says more than that
		small.Ended()
		s.noneLarger(small, 10)
		tiny := s.raw()
		tiny.Send(limit("tiny", 1))
		tiny.Ended()
		equal(s, "packets of more than one byte", len(tiny.All()), 0)
		c := s.connect(limit("c", 30))
		p := &packet.Subscribe{PacketID: 1}
		for range 40 {
			p.Filters = append(p.Filters, packet.Filter{Filter: "a"})
		}
		c.Send(p) // 40 reason codes
		s.ended(c, packet.ReasonPacketTooLarge)
		s.noneLarger(c, 30)
		d := s.connect(limit("d", 30))
		u := &packet.Unsubscribe{PacketID: 1}
		for range 40 {
			u.Filters = append(u.Filters, "a")
		}
		d.Send(u)
		s.ended(d, packet.ReasonPacketTooLarge)
		s.noneLarger(d, 30)
	}},
	"acknowledgements carry no reason strings and no user properties": {versions: only5, play: func(s *scene) {
		for _, wanted := range []byte{0, 1} {
			p := s.clean("c")
			p.Properties.RequestProblemInfo = &wanted
			c := s.manual(p)
			s.closeTopic()
			c.Send(
				&packet.Publish{QoS: 1, PacketID: 1, Topic: []byte("denied")}, &packet.Publish{QoS: 2, PacketID: 2, Topic: []byte("denied")},
				&packet.Publish{QoS: 2, PacketID: 3, Topic: []byte("a")}, &packet.Pubrel{PacketID: 4},
				&packet.Subscribe{PacketID: 5, Filters: []packet.Filter{{Filter: "denied"}, {Filter: "a/#/b"}}},
				&packet.Unsubscribe{PacketID: 6, Filters: []string{"x"}}, &packet.Pubrec{PacketID: 7},
			)
			s.settle()
			all := append(c.All(), c.Connack)
			for _, p := range all {
				var has packet.Properties
				switch p := p.(type) {
				case *packet.Connack:
					has = p.Properties
				case *packet.Puback:
					has = p.Properties
				case *packet.Pubrec:
					has = p.Properties
				case *packet.Pubrel:
					has = p.Properties
				case *packet.Pubcomp:
					has = p.Properties
				case *packet.Suback:
					has = p.Properties
				case *packet.Unsuback:
					has = p.Properties
				}
				if has.ReasonString != "" || len(has.User) > 0 {
					s.Errorf("%v carries %+v", p.Type(), has)
				}
			}
			equal(s, "packets", len(all), 8)
			c.Disconnect(0)
		}
	}},
	"a DISCONNECT leaves out the reason string that does not fit, and has no session expiry": {versions: only5, play: func(s *scene) {
		for _, limit := range []uint32{20, 0} {
			p := s.kept("c")
			p.Properties.MaximumPacketSize = limit
			c := s.connect(p)
			c.Send(p)
			s.ended(c, packet.ReasonProtocolError)
			got := c.All()[0].(*packet.Disconnect).Properties
			if (got.ReasonString == "") != (limit > 0) || got.SessionExpiry != nil || len(got.User) > 0 {
				s.Errorf("with a limit of %d the DISCONNECT says %+v", limit, got)
			}
		}
	}},
	"response information goes only to who asks for it": {
		versions: only5, options: func(o *broker.Options) { o.ResponseInformation = "reply" },
		play: func(s *scene) {
			p := s.clean("c")
			equal(s, "unasked", s.connect(p).Connack.Properties.ResponseInfo, "")
			p.Properties.RequestResponseInfo = 1
			equal(s, "asked", s.connect(p).Connack.Properties.ResponseInfo, "reply")
		},
	},
	"a client there is no room for is told where to go": {
		beyond:  true, // §4.11 has no numbers
		options: func(o *broker.Options) { o.MaxConnections, o.ServerReference = 1, "other:1883" },
		play: func(s *scene) {
			first := s.connect(s.clean("first"))
			second := s.raw()
			got := second.Try(s.clean("second"))
			second.Ended()
			if s.v == packet.V5 {
				equal(s, "CONNACK", got.Reason, packet.ReasonUseAnotherServer)
			} else {
				equal(s, "CONNACK", got.Reason, packet.ReasonServerUnavailable)
			}
			reference := map[bool]string{true: "other:1883"}[s.v == packet.V5]
			equal(s, "reference in the CONNACK", got.Properties.ServerReference, reference)
			s.b.Stop(s.T)
			s.ended(first, packet.ReasonUseAnotherServer)
			if s.v == packet.V5 {
				equal(s, "reference in the DISCONNECT", first.All()[0].(*packet.Disconnect).Properties.ServerReference, reference)
			}
		},
	},
	"nothing after a DISCONNECT is looked at": {play: func(s *scene) {
		c := s.connect(s.clean("c"))
		c.Send(&packet.Disconnect{}, &packet.Publish{Topic: []byte("a"), Retain: true, Payload: []byte("x")}, &packet.Pingreq{})
		c.Ended()
		equal(s, "messages", s.b.Status().MessagesIn, 0)
		equal(s, "packets", len(c.All()), 0)
	}},
	"nothing follows the broker's DISCONNECT": {pipesOnly: true, play: func(s *scene) {
		release := s.holdTopic()
		c := s.connect(s.clean("c"))
		c.Subscribe(1, "a")
		c.Send(&packet.Publish{Topic: []byte("hold")}) // its reader is busy
		s.settle()
		second := s.raw()
		second.Send(s.clean("c")) // takes over
		s.settle()
		p := s.connect(s.clean("p"))
		for qos := byte(0); qos <= 1; qos++ {
			p.Send(&packet.Publish{QoS: qos, PacketID: 1, Topic: []byte("a")})
		}
		s.settle()
		release()
		s.ended(c, packet.ReasonSessionTakenOver)
		all := c.All()
		if s.v == packet.V5 && (len(all) != 1 || all[0].Type() != packet.TypeDisconnect) {
			s.Errorf("got %v", all)
		}
		second.Take(packet.TypeConnack)
	}},
}

// connectBytes is a CONNECT whose fields are not what its flags say.
func (s *scene) connectBytes(flags byte, fields ...string) []byte {
	b := text("MQTT") + string([]byte{byte(s.v), flags, 0, 0})
	if s.v == packet.V5 {
		b += "\x00"
	}
	for i, f := range fields {
		if i == 1 && s.v == packet.V5 && flags&0x04 != 0 {
			b += "\x00" // will properties
		}
		b += text(f)
	}
	return frame(0x10, b)
}

// noneLarger says that the client got no packet of more than limit bytes.
func (s *scene) noneLarger(c *brokertest.Client, limit int) {
	s.Helper()
	for _, p := range c.All() {
		if b, err := p.AppendTo(nil, s.v); err != nil || len(b) > limit {
			s.Errorf("a %v of %d bytes came, %v", p.Type(), len(b), err)
		}
	}
}
