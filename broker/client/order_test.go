package client

import (
	"context"
	"testing"
	"testing/synctest"

	"holdfast/broker/packet"
)

// PUBACK and PUBREC leave in the order of the PUBLISH packets, PUBREL in that
// of the PUBRECs (MQTT 5.0 §4.6 [MQTT-4.6.0-2] [MQTT-4.6.0-3] [MQTT-4.6.0-4]).
func TestAnswersKeepTheirOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := clientOn(t, Options{}, &packet.Connack{}, func(Message) {})
		defer c.Abort()
		var ps []packet.Packet
		for i := range uint16(20) {
			ps = append(ps, &packet.Publish{Topic: []byte("a"), QoS: byte(1 + i/2%2), PacketID: 100 - i})
		}
		s.send(ps...)
		for i := range uint16(20) {
			var got uint16
			if i/2%2 == 0 {
				got = expect[*packet.Puback](s).PacketID
			} else {
				got = expect[*packet.Pubrec](s).PacketID
			}
			if got != 100-i {
				t.Errorf("answer %d is to packet %d, want %d", i, got, 100-i)
			}
		}
		var ids []uint16
		for range 5 {
			c.PublishAsync(msg("a", "", 2), func(error) {})
			ids = append(ids, expect[*packet.Publish](s).PacketID)
		}
		order := []int{3, 0, 4, 2, 1}
		for _, i := range order {
			s.send(&packet.Pubrec{PacketID: ids[i]})
		}
		for _, i := range order {
			if got := expect[*packet.Pubrel](s).PacketID; got != ids[i] {
				t.Errorf("PUBREL %d, want %d", got, ids[i])
			}
		}
	})
}

// What is not PUBLISH goes out whatever waits for room in the window
// (MQTT 5.0 §3.3.4 [MQTT-3.3.4-8]).
func TestFullWindowHoldsBackMessagesOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := clientOn(t, Options{}, &packet.Connack{Properties: packet.Properties{ReceiveMaximum: 1}}, func(Message) {})
		defer c.Abort()
		for range 3 {
			c.PublishAsync(msg("a", "", 1), func(error) {})
		}
		expect[*packet.Publish](s)
		go func() { _, _ = c.Subscribe(context.Background(), []packet.Filter{{Filter: "x"}}) }()
		s.send(&packet.Suback{PacketID: expect[*packet.Subscribe](s).PacketID, Reasons: []packet.ReasonCode{0}})
		s.send(&packet.Publish{Topic: []byte("b"), QoS: 2, PacketID: 7}, &packet.Pubrel{PacketID: 7})
		expect[*packet.Pubrec](s)
		expect[*packet.Pubcomp](s)
		s.nothingMore()
	})
}

// We make no use of topic aliases, allowed or not (MQTT 5.0 §3.2.2.3.8
// [MQTT-3.2.2-17] [MQTT-3.2.2-18]).
func TestNoAliasesToTheServer(t *testing.T) {
	for _, maximum := range []uint16{0, 10} {
		synctest.Test(t, func(t *testing.T) {
			c, s := clientOn(t, Options{}, &packet.Connack{Properties: packet.Properties{TopicAliasMaximum: maximum}}, nil)
			defer c.Abort()
			for qos := range byte(3) {
				for range 2 {
					c.PublishAsync(msg("some/topic", "", qos), func(error) {})
					if p := expect[*packet.Publish](s); p.TopicAlias != 0 || string(p.Topic) != "some/topic" {
						t.Errorf("topic %q, alias %d", p.Topic, p.TopicAlias)
					}
				}
			}
		})
	}
}
