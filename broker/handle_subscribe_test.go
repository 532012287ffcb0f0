package broker_test

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker"
	"holdfast/broker/brokertest"
	"holdfast/broker/packet"
)

func TestSubscribeReasons(t *testing.T) {
	tests := map[string]struct {
		filter string
		five   packet.ReasonCode // answer in 5.0
		old    packet.ReasonCode // answer in 3.1.1
	}{
		"plain":                           {"a/b", packet.ReasonGrantedQoS2, packet.ReasonGrantedQoS2},
		"everything":                      {"#", packet.ReasonGrantedQoS2, packet.ReasonGrantedQoS2},
		"$SYS":                            {"$SYS/#", packet.ReasonGrantedQoS2, packet.ReasonGrantedQoS2},
		"'#' not last":                    {"a/#/b", packet.ReasonTopicFilterInvalid, packet.ReasonUnspecified},
		"'+' not alone":                   {"a/b+", packet.ReasonTopicFilterInvalid, packet.ReasonUnspecified},
		"too many levels":                 {"a/b/c/d/e", packet.ReasonTopicFilterInvalid, packet.ReasonUnspecified},
		"shared":                          {"$share/g/a", packet.ReasonGrantedQoS2, packet.ReasonGrantedQoS2},
		"shared without a filter":         {"$share/g", packet.ReasonTopicFilterInvalid, packet.ReasonUnspecified},
		"share name with a wildcard":      {"$share/+/a", packet.ReasonTopicFilterInvalid, packet.ReasonUnspecified},
		"one more than max_subscriptions": {"last", packet.ReasonQuotaExceeded, packet.ReasonUnspecified},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := brokertest.New(t, nil, func(o *broker.Options) { o.MaxTopicLevels, o.MaxSubscriptions = 4, 3 })
				for i, p := range []*packet.Connect{brokertest.V5("five"), brokertest.V4("old")} {
					c := brokertest.Connect(t, b.Pipe(), p)
					if tt.filter == "last" {
						c.Subscribe(0, "1", "2", "3")
						c.Subscribe(1, "1") // again: no further one
					}
					want := []packet.ReasonCode{tt.five, tt.old}[i]
					if got := c.Subscribe(2, tt.filter); got[0] != want {
						t.Errorf("%v: SUBACK %v, want %v", p.Version, got[0], want)
					}
					c.Silent()
				}
			})
		})
	}
}

func TestOverlappingSubscriptionsDeliverOnce(t *testing.T) {
	for name, connect := range map[string]*packet.Connect{
		"clean": brokertest.V5("sub"), "persistent": brokertest.Keep(brokertest.V5("sub"), 60),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := brokertest.New(t, nil)
				sub := brokertest.Connect(t, b.Pipe(), connect)
				sub.SubscribeWith(7, packet.Filter{Filter: "a/+", QoS: 0})
				sub.SubscribeWith(3, packet.Filter{Filter: "a/b", QoS: 2})
				sub.SubscribeWith(300, packet.Filter{Filter: "#", QoS: 1})
				sub.SubscribeWith(0, packet.Filter{Filter: "a/#", QoS: 1})
				c := brokertest.Connect(t, b.Pipe(), brokertest.V4("c"))
				for qos := byte(0); qos <= 2; qos++ {
					c.Publish(qos, false, "a/b", "x")
					m := sub.Message()
					if m.QoS != qos || !slices.Equal(m.SubscriptionIDs, []uint32{3, 7, 300}) {
						t.Errorf("QoS %d ids %v, want QoS %d ids [3 7 300]", m.QoS, m.SubscriptionIDs, qos)
					}
				}
				synctest.Wait()
				if rest := sub.Silent(); len(rest) > 0 {
					t.Errorf("more than one delivery: %v", rest)
				}
			})
		})
	}
}

func TestSubscribeAgainReplaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t, nil)
		sub := brokertest.Connect(t, b.Pipe(), brokertest.V5("sub"))
		sub.SubscribeWith(1, packet.Filter{Filter: "a", QoS: 2})
		sub.SubscribeWith(2, packet.Filter{Filter: "a", QoS: 1})
		c := brokertest.Connect(t, b.Pipe(), brokertest.V5("c"))
		c.Publish(2, false, "a", "x")
		if m := sub.Message(); m.QoS != 1 || !slices.Equal(m.SubscriptionIDs, []uint32{2}) {
			t.Errorf("QoS %d ids %v, want QoS 1 ids [2]", m.QoS, m.SubscriptionIDs)
		}
		if n := b.Status().Subscriptions; n != 1 {
			t.Errorf("%d subscriptions, want 1", n)
		}
		unsub := func(filters ...string) []packet.ReasonCode {
			sub.Send(&packet.Unsubscribe{PacketID: sub.ID(), Filters: filters})
			ack, _ := sub.Take(packet.TypeUnsuback).(*packet.Unsuback)
			return ack.Reasons
		}
		if got := unsub("b", "a", "a"); !slices.Equal(got, []packet.ReasonCode{0x11, 0, 0x11}) {
			t.Errorf("UNSUBACK %v", got)
		}
		if got := c.Publish(1, false, "a", "x"); got != packet.ReasonNoMatchingSubscribers {
			t.Errorf("after UNSUBSCRIBE: %v", got)
		}
	})
}

func TestNoLocal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t, nil)
		c := brokertest.Connect(t, b.Pipe(), brokertest.V5("c"))
		d := brokertest.Connect(t, b.Pipe(), brokertest.V5("d"))
		for _, x := range []*brokertest.Client{c, d} {
			x.SubscribeWith(1, packet.Filter{Filter: "a/#", QoS: 1, NoLocal: true})
		}
		c.Publish(1, false, "a/b", "not for me")
		if m := d.Message(); string(m.Payload) != "not for me" {
			t.Errorf("other client got %q", m.Payload)
		}
		if rest := c.Silent(); len(rest) > 0 {
			t.Errorf("own message came back: %v", rest)
		}
		// Another subscription that also matches is not no-local.
		c.SubscribeWith(2, packet.Filter{Filter: "a/b"})
		c.Publish(1, false, "a/b", "for me")
		if m := c.Message(); m.QoS != 0 || !slices.Equal(m.SubscriptionIDs, []uint32{2}) {
			t.Errorf("QoS %d ids %v, want QoS 0 ids [2]", m.QoS, m.SubscriptionIDs)
		}
		c.SendBytes([]byte("\x82\x10\x00\x09\x00\x00\x0a$share/g/a\x04")) // MQTT 5.0 §3.8.3.1 [MQTT-3.8.3-4]
		if got, _ := c.Ended(); got != packet.ReasonProtocolError {
			t.Errorf("no local on a shared subscription: %v", got)
		}
	})
}

func TestRetained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t, nil)
		c := brokertest.Connect(t, b.Pipe(), brokertest.V5("c"))
		live := brokertest.Connect(t, b.Pipe(), brokertest.V5("live"))
		live.SubscribeWith(0, packet.Filter{Filter: "+/+", QoS: 2}, packet.Filter{Filter: "rap/#", QoS: 2, RetainAsPublished: true})
		for qos := byte(0); qos <= 2; qos++ {
			c.Publish(qos, true, fmt.Sprintf("kept/%d", qos), "old")
			c.Publish(qos, true, fmt.Sprintf("kept/%d", qos), "new")
			c.Publish(qos, true, fmt.Sprintf("gone/%d", qos), "x")
			c.Publish(qos, true, fmt.Sprintf("gone/%d", qos), "")
			c.Publish(qos, true, fmt.Sprintf("rap/%d", qos), "x")
		}
		for range 15 {
			m := live.Message()
			if rap := string(m.Topic[:3]) == "rap"; m.Retain != rap {
				t.Errorf("%s came with RETAIN %v", m.Topic, m.Retain)
			}
		}
		for name, connect := range map[string]*packet.Connect{
			"clean": brokertest.V5("x"), "3.1.1": brokertest.V4("y"), "persistent": brokertest.Keep(brokertest.V5("z"), 60),
		} {
			sub := brokertest.Connect(t, b.Pipe(), connect)
			sub.Subscribe(1, "+/+")
			var got []string
			for range 6 {
				m := sub.Message()
				got = append(got, fmt.Sprintf("%s %s %d %v", m.Topic, m.Payload, m.QoS, m.Retain))
			}
			slices.Sort(got)
			want := []string{
				"kept/0 new 0 true", "kept/1 new 1 true", "kept/2 new 1 true",
				"rap/0 x 0 true", "rap/1 x 1 true", "rap/2 x 1 true",
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s: retained %q, want %q", name, got, want)
			}
			synctest.Wait()
			if rest := sub.Silent(); len(rest) > 0 {
				t.Errorf("%s: more came: %v", name, rest)
			}
		}
	})
}

func TestRetainHandling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t, nil)
		brokertest.Connect(t, b.Pipe(), brokertest.V5("c")).Publish(1, true, "a", "x")
		sub := brokertest.Connect(t, b.Pipe(), brokertest.V5("sub"))
		for i, step := range []struct {
			handling byte
			want     int
		}{{2, 0}, {1, 0}, {0, 1}, {0, 1}, {1, 0}} {
			sub.SubscribeWith(0, packet.Filter{Filter: "a", RetainHandling: step.handling})
			if got := sub.Silent(); len(got) != step.want {
				t.Errorf("step %d, retain handling %d: %d retained messages, want %d", i, step.handling, len(got), step.want)
			}
		}
		fresh := brokertest.Connect(t, b.Pipe(), brokertest.V5("fresh"))
		fresh.SubscribeWith(0, packet.Filter{Filter: "a", RetainHandling: 1})
		fresh.Message()
		fresh.Subscribe(0, "$share/g/a") // shared ones get none
		if got := fresh.Silent(); len(got) > 0 {
			t.Errorf("a shared subscription got retained messages: %v", got)
		}
	})
}

func TestRetainedBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t, nil, func(o *broker.Options) { o.MaxRetained, o.MaxRetainedBytes = 2, 20 })
		c := brokertest.Connect(t, b.Pipe(), brokertest.V5("c"))
		publish := func(topic, payload string, want packet.ReasonCode) {
			t.Helper()
			if got := c.Publish(1, true, topic, payload); got != want {
				t.Errorf("retain %s: %v, want %v", topic, got, want)
			}
		}
		publish("a", "12345", 0)
		publish("b", "12345", 0)
		publish("c", "1", packet.ReasonQuotaExceeded) // third
		publish("a", "123456789012345", packet.ReasonQuotaExceeded)
		publish("a", "", 0)
		publish("c", "1", 0)
		if st := b.Status(); st.Retained != 2 || st.RetainedBytes != 8 || st.RetainedRefused != 2 {
			t.Errorf("status %+v", st)
		}
	})
}

// TestRetainedIsNeverStale: a retained message that waits to be handed out does
// not come after a live one that replaced it.
func TestRetainedIsNeverStale(t *testing.T) {
	for name, connect := range map[string]*packet.Connect{
		"clean": brokertest.V5("x"), "persistent": brokertest.Keep(brokertest.V5("z"), 60),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := brokertest.New(t, nil)
				c := brokertest.Connect(t, b.Pipe(), brokertest.V5("c"))
				const topics = 5
				all := func(payload string) {
					for i := range topics {
						c.Publish(byte(i%3), true, fmt.Sprint("t/", i), payload)
					}
				}
				all("1")
				connect.Properties.ReceiveMaximum = 1
				sub := brokertest.Connect(t, b.Pipe(), connect)
				sub.SetManual(true)
				sub.Subscribe(1, "t/#")
				synctest.Wait()
				all("2")
				c.Publish(1, true, "t/0", "") // and one is cleared
				latest := make(map[string]string)
				for range 3 * topics {
					synctest.Wait()
					for _, m := range sub.Rest() {
						if got := string(m.Payload); got < latest[string(m.Topic)] && got != "" {
							t.Errorf("%s: %q came after %q", m.Topic, got, latest[string(m.Topic)])
						}
						latest[string(m.Topic)] = string(m.Payload)
						if m.QoS == 1 {
							sub.Send(&packet.Puback{PacketID: m.PacketID})
						}
					}
				}
				for i := range topics {
					want := "2"
					if i == 0 {
						want = ""
					}
					if got := latest[fmt.Sprint("t/", i)]; got != want {
						t.Errorf("t/%d ended at %q, want %q", i, got, want)
					}
				}
			})
		})
	}
}

// TestManyRetained: a new subscription to more than fits its window and queue
// gets all of it, and keeps its connection.
func TestManyRetained(t *testing.T) {
	for name, connect := range map[string]*packet.Connect{
		"clean": brokertest.V5("x"), "persistent": brokertest.Keep(brokertest.V5("z"), 60),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := brokertest.New(t, nil, func(o *broker.Options) { o.MaxQueued, o.MaxOutput = 10, 4096 })
				const n = 500
				c := brokertest.Connect(t, b.Pipe(), brokertest.V4("c"))
				for i := range n {
					c.Publish(byte(i%3), true, fmt.Sprintf("t/%d", i), "x")
				}
				connect.Properties.ReceiveMaximum = 5
				sub := brokertest.Connect(t, b.Pipe(), connect)
				sub.Subscribe(2, "t/#")
				seen := make(map[string]bool)
				for range n {
					seen[string(sub.Message().Topic)] = true
				}
				if len(seen) != n {
					t.Errorf("%d different topics, want %d", len(seen), n)
				}
				sub.Silent()
			})
		})
	}
}

func TestDollarTopicsAreHidden(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t, nil, func(o *broker.Options) { o.SysInterval = 10 * time.Second })
		synctest.Wait()
		sub := brokertest.Connect(t, b.Pipe(), brokertest.V4("sub"))
		sub.Subscribe(0, "#", "+/broker/uptime")
		if got := sub.Silent(); len(got) > 0 {
			t.Errorf("wildcards reached $SYS: %v", got)
		}
		sub.Subscribe(0, "$SYS/broker/uptime", "$SYS/broker/version")
		sub.Messages(2)
		pass(10 * time.Second)
		sub.Messages(1) // the version is what it was
	})
}

func TestSharedSubscriptions(t *testing.T) {
	count := func(c *brokertest.Client) int { return len(c.Silent()) }
	t.Run("evenly among those online", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := brokertest.New(t, nil)
			var members []*brokertest.Client
			for i := range 3 {
				m := brokertest.Connect(t, b.Pipe(), brokertest.V5(fmt.Sprint("m", i)))
				m.Subscribe(1, "$share/g/a/+", "$share/other/a/+")
				members = append(members, m)
			}
			alone := brokertest.Connect(t, b.Pipe(), brokertest.V5("alone"))
			alone.Subscribe(1, "a/#")
			c := brokertest.Connect(t, b.Pipe(), brokertest.V5("c"))
			for range 30 {
				c.Publish(1, false, "a/b", "x")
			}
			for i, m := range members {
				if n := count(m); n != 20 { // 10 of each group
					t.Errorf("member %d got %d, want 20", i, n)
				}
			}
			if n := count(alone); n != 30 {
				t.Errorf("the subscription of its own got %d, want 30", n)
			}
			members[0].Disconnect(0)
			members[1].Send(&packet.Unsubscribe{PacketID: members[1].ID(), Filters: []string{"$share/g/a/+"}})
			members[1].Take(packet.TypeUnsuback)
			for range 10 {
				c.Publish(1, false, "a/b", "x")
			}
			if n := count(members[2]); n != 15 {
				t.Errorf("the last member got %d, want 10 and half of 10", n)
			}
			members[1].Disconnect(0)
			members[2].Disconnect(0)
			if got := c.Publish(1, false, "a/b", "x"); got != 0 {
				t.Errorf("PUBACK %v", got) // alone
			}
			alone.Disconnect(0)
			if got := c.Publish(1, false, "a/b", "x"); got != packet.ReasonNoMatchingSubscribers {
				t.Errorf("nobody is left, PUBACK %v", got)
			}
		})
	})
	t.Run("kept for offline members when none is online", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := brokertest.New(t, nil)
			keep := func(id string) *packet.Connect { return brokertest.Keep(brokertest.V5(id), 600) }
			for _, id := range []string{"p", "q"} {
				p := brokertest.Connect(t, b.Pipe(), keep(id))
				p.Subscribe(1, "$share/g/a")
				p.Disconnect(0)
			}
			clean := brokertest.Connect(t, b.Pipe(), brokertest.V5("clean"))
			clean.Subscribe(1, "$share/g/a")
			c := brokertest.Connect(t, b.Pipe(), brokertest.V5("c"))
			for range 4 {
				c.Publish(1, false, "a", "online")
			}
			if n := count(clean); n != 4 {
				t.Errorf("the member online got %d, want 4", n)
			}
			clean.Disconnect(0)
			for range 4 {
				c.Publish(1, false, "a", "offline")
			}
			total := 0
			for _, id := range []string{"p", "q"} {
				p := brokertest.Connect(t, b.Pipe(), keep(id))
				synctest.Wait()
				total += count(p)
			}
			if total != 4 {
				t.Errorf("offline members got %d, want 4", total)
			}
		})
	})
	t.Run("in 3.1.1 too", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := brokertest.New(t, nil)
			old := brokertest.Connect(t, b.Pipe(), brokertest.V4("old"))
			old.Subscribe(1, "$share/g/a")
			five := brokertest.Connect(t, b.Pipe(), brokertest.V5("five"))
			five.Subscribe(1, "$share/g/a")
			for range 4 {
				five.Publish(1, false, "a", "x")
			}
			if n, m := count(old), count(five); n != 2 || m != 2 {
				t.Errorf("got %d and %d, want 2 each", n, m)
			}
		})
	})
	t.Run("member with a subscription of its own", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := brokertest.New(t, nil)
			for _, connect := range []*packet.Connect{brokertest.V5("m"), brokertest.Keep(brokertest.V5("p"), 60)} {
				m := brokertest.Connect(t, b.Pipe(), connect)
				m.SubscribeWith(1, packet.Filter{Filter: "$share/g/a", QoS: 2})
				m.SubscribeWith(2, packet.Filter{Filter: "a", QoS: 1})
				c := brokertest.Connect(t, b.Pipe(), brokertest.V5("c"))
				if got := c.Publish(2, false, "a", "x"); got.Failed() {
					t.Errorf("got %v", got)
				}
				synctest.Wait()
				got := m.Silent()
				if connect.ClientID == "m" && len(got) != 2 || connect.ClientID == "p" && len(got) != 1 {
					t.Errorf("%s got %d messages", connect.ClientID, len(got))
				}
				m.Disconnect(0)
			}
		})
	})
}

// TestSubackWaitsForTheStore: changes of a persistent session are durable
// before their answer.
func TestSubackWaitsForTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t, nil)
		c := brokertest.Connect(t, b.Pipe(), brokertest.Keep(brokertest.V5("c"), 60))
		c.Subscribe(1, "old")
		b.Store.Hold()
		c.Send(
			&packet.Subscribe{PacketID: 1, Filters: []packet.Filter{{Filter: "a"}}},
			&packet.Unsubscribe{PacketID: 2, Filters: []string{"old"}},
		)
		if got := c.Silent(); len(got) > 0 {
			t.Errorf("answered before durable: %v", got)
		}
		b.Store.Unhold()
		c.Take(packet.TypeSuback)
		c.Take(packet.TypeUnsuback)
		kept, err := b.Store.Sessions(t.Context())
		if err != nil || len(kept) != 1 || len(kept[0].Subscriptions) != 1 || kept[0].Subscriptions[0].Filter != "a" {
			t.Errorf("kept %+v, %v", kept, err)
		}
	})
}
