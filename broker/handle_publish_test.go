package broker_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker"
	"holdfast/broker/brokertest"
	"holdfast/broker/durable"
	"holdfast/broker/message"
	"holdfast/broker/packet"
)

func TestPublishReasons(t *testing.T) {
	tests := map[string]struct {
		topic  string
		retain bool
		want   packet.ReasonCode
	}{
		"somebody wants it":                   {topic: "wanted", want: packet.ReasonSuccess},
		"nobody wants it":                     {topic: "unwanted", want: packet.ReasonNoMatchingSubscribers},
		"nobody wants it, but it is retained": {topic: "kept", retain: true, want: packet.ReasonSuccess},
		"$SYS":                                {topic: "$SYS/broker/uptime", want: packet.ReasonNotAuthorized},
		"another $ topic":                     {topic: "$aws/things", want: packet.ReasonNoMatchingSubscribers},
		"more levels than allowed":            {topic: "a/b/c/d/e", want: packet.ReasonTopicNameInvalid},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := brokertest.New(t, nil, func(o *broker.Options) { o.MaxTopicLevels = 4 })
				brokertest.Connect(t, b.Pipe(), brokertest.V5("s")).Subscribe(0, "wanted")
				c := brokertest.Connect(t, b.Pipe(), brokertest.V5("c"))
				if got := c.Publish(1, tt.retain, tt.topic, "x"); got != tt.want {
					t.Errorf("PUBACK %v, want %v", got, tt.want)
				}
				want2 := tt.want
				if !want2.Failed() {
					want2 = packet.ReasonSuccess // of the PUBCOMP
				}
				if got := c.Publish(2, tt.retain, tt.topic, "x"); got != want2 {
					t.Errorf("QoS 2 ended with %v, want %v", got, want2)
				}
				c.Publish(0, tt.retain, tt.topic, "x")
				c.Silent()
				old := brokertest.Connect(t, b.Pipe(), brokertest.V4("old"))
				if tt.want == packet.ReasonTopicNameInvalid {
					old.Send(&packet.Publish{QoS: 1, PacketID: 1, Topic: []byte(tt.topic)})
					old.Ended()
					return
				}
				// No right to it: acknowledged, and dropped.
				if got := old.Publish(1, tt.retain, tt.topic, "x"); got != packet.ReasonSuccess {
					t.Errorf("3.1.1 got %v", got)
				}
				if got := old.Publish(2, tt.retain, tt.topic, "x"); got != packet.ReasonSuccess {
					t.Errorf("3.1.1 QoS 2 got %v", got)
				}
				old.Silent()
			})
		})
	}
}

func TestAcknowledgementsWaitForTheStoreAndKeepOrder(t *testing.T) {
	for _, version := range []packet.Version{packet.V311, packet.V5} {
		t.Run(version.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := brokertest.New(t, nil)
				keeper := brokertest.Connect(t, b.Pipe(), brokertest.Keep(brokertest.V5("keeper"), 60))
				keeper.Subscribe(2, "durable/#")
				keeper.Disconnect(0)
				c := brokertest.Connect(t, b.Pipe(), &packet.Connect{Version: version, ClientID: "c", CleanStart: true})
				b.Store.Hold()
				c.Send(
					&packet.Publish{QoS: 1, PacketID: 1, Topic: []byte("durable/1")},
					&packet.Publish{QoS: 1, PacketID: 2, Topic: []byte("nobody")}, // safe at once
					&packet.Publish{QoS: 2, PacketID: 3, Topic: []byte("durable/2")},
					&packet.Publish{QoS: 2, PacketID: 4, Topic: []byte("nobody")},
					&packet.Publish{QoS: 1, PacketID: 5, Topic: []byte("nobody")},
				)
				if rest := c.Silent(); len(rest) > 0 {
					t.Fatalf("acknowledged before the store said safe: %v", rest)
				}
				b.Store.Unhold()
				var order []string
				for range 5 {
					switch p := c.Next().(type) {
					case *packet.Puback:
						order = append(order, fmt.Sprint("ack", p.PacketID))
					case *packet.Pubrec:
						order = append(order, fmt.Sprint("rec", p.PacketID))
					}
				}
				if want := []string{"ack1", "ack2", "rec3", "rec4", "ack5"}; !slices.Equal(order, want) {
					t.Errorf("acknowledged in the order %v, want %v", order, want)
				}
			})
		})
	}
}

// TestSafeByAcknowledgement: what every durable recipient has acknowledged is
// acknowledged to the publisher without a commit.
func TestSafeByAcknowledgement(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t, nil)
		keeper := brokertest.Connect(t, b.Pipe(), brokertest.Keep(brokertest.V5("keeper"), 60))
		keeper.Subscribe(1, "a")
		synctest.Wait() // its streams are live
		b.Store.Hold()
		c := brokertest.Connect(t, b.Pipe(), brokertest.V5("c"))
		if got := c.Publish(1, false, "a", "x"); got != packet.ReasonSuccess {
			t.Errorf("PUBACK %v", got)
		}
		keeper.Message()
	})
}

func TestRefusedByTheStore(t *testing.T) {
	refusals := map[string]struct {
		set  func(*brokertest.MemoryStore, error)
		err  error
		want packet.ReasonCode
	}{
		"full":           {(*brokertest.MemoryStore).SetFull, durable.ErrFull, packet.ReasonQuotaExceeded},
		"commit fails":   {(*brokertest.MemoryStore).SetFailing, errors.New("disk on fire"), packet.ReasonImplementationSpecific},
		"full at commit": {(*brokertest.MemoryStore).SetFailing, durable.ErrFull, packet.ReasonQuotaExceeded},
	}
	for name, tt := range refusals {
		for qos := byte(1); qos <= 2; qos++ {
			t.Run(fmt.Sprintf("%s, QoS %d", name, qos), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					b := brokertest.New(t, nil)
					keeper := brokertest.Connect(t, b.Pipe(), brokertest.Keep(brokertest.V5("keeper"), 60))
					keeper.Subscribe(2, "a")
					keeper.Disconnect(0)
					onlooker := brokertest.Connect(t, b.Pipe(), brokertest.V5("onlooker"))
					onlooker.Subscribe(2, "a")
					c := brokertest.Connect(t, b.Pipe(), brokertest.V5("c"))
					old := brokertest.Connect(t, b.Pipe(), brokertest.V4("old"))
					tt.set(b.Store, tt.err)
					if got := c.Publish(qos, false, "a", "x"); got != tt.want {
						t.Errorf("got %v, want %v", got, tt.want)
					}
					// 3.x cannot be told: closed without an acknowledgement.
					old.Send(&packet.Publish{QoS: qos, PacketID: 1, Topic: []byte("a")})
					if _, told := old.Ended(); told || old.Received() > 0 {
						t.Errorf("3.1.1 was sent %d packets", old.Received())
					}
					tt.set(b.Store, nil)
					if got := c.Publish(qos, false, "a", "after"); got != packet.ReasonSuccess {
						t.Errorf("afterwards: %v", got)
					}
					// All or nothing: a QoS 2 message goes to nobody unless it
					// was taken; of QoS 1 that holds for what was refused.
					if qos == 2 || tt.want == packet.ReasonQuotaExceeded && name == "full" {
						if got := onlooker.Messages(1); got[0] != "after" {
							t.Errorf("onlooker got %q", got)
						}
					}
				})
			})
		}
	}
}

func TestReceiveMaximum(t *testing.T) {
	few := func(o *broker.Options) { o.ReceiveMaximum, o.MaxUnacknowledgedBytes = 3, 1024 }
	t.Run("5.0 is disconnected", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := brokertest.New(t, nil, few)
			c := brokertest.Connect(t, b.Pipe(), brokertest.V5("c"))
			for i := range uint16(4) {
				c.Send(&packet.Publish{QoS: 2, PacketID: i + 1, Topic: []byte("a")})
			}
			if got, _ := c.Ended(); got != packet.ReasonReceiveMaximumExceeded {
				t.Errorf("DISCONNECT %v", got)
			}
		})
	})
	t.Run("finished ones count no more", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := brokertest.New(t, nil, few)
			c := brokertest.Connect(t, b.Pipe(), brokertest.Keep(brokertest.V5("c"), 60))
			for range 10 {
				c.Publish(1, false, "a", "x")
				c.Publish(2, false, "a", "x")
				if got := c.Publish(2, false, "$SYS/a", "x"); got != packet.ReasonNotAuthorized {
					t.Errorf("got %v", got)
				}
			}
		})
	})
	t.Run("3.1.1 is slowed down", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := brokertest.New(t, nil, few)
			brokertest.Connect(t, b.Pipe(), brokertest.Keep(brokertest.V5("keeper"), 60)).Subscribe(1, "a")
			connect := brokertest.V4("c")
			connect.KeepAlive = 10 // it does not run while nothing is read
			c := brokertest.Connect(t, b.Pipe(), connect)
			synctest.Wait()
			b.Store.Hold()
			keeper := 10
			go func() {
				for i := range keeper {
					c.Send(&packet.Publish{QoS: 1, PacketID: uint16(i + 1), Topic: []byte("b"), Retain: true, Payload: []byte("x")})
				}
			}()
			pass(time.Hour)
			if st := b.Status(); st.MessagesIn != 4 || st.ReadingPaused != 1 {
				t.Errorf("%d messages were read though 4 are the limit, %d pauses counted", st.MessagesIn, st.ReadingPaused)
			}
			b.Store.Unhold()
			for i := range keeper {
				ack, _ := c.Take(packet.TypePuback).(*packet.Puback)
				if int(ack.PacketID) != i+1 {
					t.Errorf("PUBACK %d, want %d", ack.PacketID, i+1)
				}
			}
		})
	})
}

func TestTopicAliases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t, nil, func(o *broker.Options) { o.MaxTopicAliases = 2 })
		sub := brokertest.Connect(t, b.Pipe(), brokertest.V5("sub"))
		sub.Subscribe(0, "#")
		c := brokertest.Connect(t, b.Pipe(), brokertest.V5("c"))
		send := func(alias uint16, topic string) {
			c.PublishWith(&packet.Publish{Topic: []byte(topic), TopicAlias: alias})
		}
		send(1, "one")
		send(2, "two")
		send(1, "")
		send(2, "")
		send(1, "uno")
		send(1, "")
		var got []string
		for range 6 {
			m := sub.Message()
			got = append(got, string(m.Topic))
			if m.TopicAlias != 0 {
				t.Error("the publisher's alias went along")
			}
		}
		if want := []string{"one", "two", "one", "two", "uno", "uno"}; !slices.Equal(got, want) {
			t.Errorf("topics %q, want %q", got, want)
		}
		// An alias is for one connection.
		d := brokertest.Connect(t, b.Pipe(), brokertest.V5("d"))
		d.Send(&packet.Publish{TopicAlias: 1})
		if got, _ := d.Ended(); got != packet.ReasonProtocolError {
			t.Errorf("unknown alias: %v", got)
		}
		c.Send(&packet.Publish{TopicAlias: 3, Topic: []byte("x")})
		if got, _ := c.Ended(); got != packet.ReasonTopicAliasInvalid {
			t.Errorf("alias over the maximum: %v", got)
		}
	})
}

func TestPropertiesTravelUnaltered(t *testing.T) {
	properties, err := packet.PublishProperties{
		HasPayloadFormat: true, PayloadFormat: 1, ContentType: "text/plain", ResponseTopic: "reply/here",
		CorrelationData: []byte{0, 1, 2},
		User:            []packet.UserProperty{{Key: "b", Value: "1"}, {Key: "a", Value: "2"}, {Key: "b", Value: "1"}},
	}.AppendTo(nil)
	if err != nil {
		t.Fatal(err)
	}
	for qos := byte(0); qos <= 2; qos++ {
		for name, connect := range map[string]*packet.Connect{
			"clean": brokertest.V5("sub"), "persistent": brokertest.Keep(brokertest.V5("sub"), 60),
		} {
			t.Run(fmt.Sprintf("QoS %d to a %s session", qos, name), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					b := brokertest.New(t, nil)
					sub := brokertest.Connect(t, b.Pipe(), connect)
					sub.Subscribe(2, "a")
					old := brokertest.Connect(t, b.Pipe(), brokertest.V4("old"))
					old.Subscribe(2, "a")
					c := brokertest.Connect(t, b.Pipe(), brokertest.V5("c"))
					c.PublishWith(&packet.Publish{QoS: qos, Topic: []byte("a"), Payload: []byte("p"), Properties: properties})
					if got := sub.Message(); string(got.Properties) != string(properties) || string(got.Payload) != "p" {
						t.Errorf("got % x %q, want % x", got.Properties, got.Payload, properties)
					}
					if got := old.Message(); len(got.Properties) > 0 || string(got.Payload) != "p" {
						t.Errorf("3.1.1 got % x %q", got.Properties, got.Payload)
					}
				})
			})
		}
	}
}

func TestMessageExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t, nil)
		keep := brokertest.Keep(brokertest.V5("keeper"), 600)
		k := brokertest.Connect(t, b.Pipe(), keep)
		k.Subscribe(1, "a")
		k.Disconnect(0)
		c := brokertest.Connect(t, b.Pipe(), brokertest.V5("c"))
		publish := func(payload string, seconds uint32, retain bool) {
			c.PublishWith(&packet.Publish{QoS: 1, Topic: []byte("a"), Payload: []byte(payload), Retain: retain, HasExpiry: true, MessageExpiry: seconds})
		}
		publish("short", 5, false)
		publish("long", 100, false)
		c.Publish(1, false, "a", "eternal")
		publish("kept", 50, true)
		pass(30 * time.Second)
		k = brokertest.Connect(t, b.Pipe(), keep)
		for _, want := range []struct {
			payload string
			left    uint32
		}{{"long", 70}, {"eternal", 0}, {"kept", 20}} {
			m := k.Message()
			if string(m.Payload) != want.payload || m.MessageExpiry != want.left || m.HasExpiry != (want.left > 0) {
				t.Errorf("got %q with %d s left, want %q with %d s", m.Payload, m.MessageExpiry, want.payload, want.left)
			}
		}
		synctest.Wait()
		if got := b.Store.DroppedFor("keeper", "expired"); got != 1 {
			t.Errorf("%d counted as expired, want 1", got)
		}
		late := brokertest.Connect(t, b.Pipe(), brokertest.V5("late"))
		late.Subscribe(0, "a")
		if m := late.Message(); m.MessageExpiry != 20 {
			t.Errorf("retained with %d s left, want 20", m.MessageExpiry)
		}
		pass(2 * time.Minute)
		late.Subscribe(0, "a")
		if rest := late.Silent(); len(rest) > 0 {
			t.Errorf("an expired retained message came: %v", rest)
		}
		if st := b.Status(); st.Retained != 0 || st.RetainedBytes != 0 {
			t.Errorf("expired retained messages still weigh %+v", st)
		}
	})
}

func TestPublishFromWithin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t, nil)
		sub := brokertest.Connect(t, b.Pipe(), brokertest.V5("sub"))
		sub.Subscribe(2, "#")
		for qos := byte(0); qos <= 2; qos++ {
			done := make(chan error, 1)
			if err := b.Publish(&message.Message{Topic: "a", QoS: qos, Payload: []byte("x")}, durable.Origin{}, func(err error) { done <- err }); err != nil {
				t.Fatal(err)
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
			if m := sub.Message(); m.QoS != qos {
				t.Errorf("QoS %d, want %d", m.QoS, qos)
			}
		}
		for _, wrong := range []*message.Message{
			{Topic: ""}, {Topic: "a/+"}, {Topic: "#"}, {Topic: strings.Repeat("x", 65536)}, {Topic: "a", QoS: 3},
		} {
			if err := b.Publish(wrong, durable.Origin{}, nil); !errors.Is(err, broker.ErrTopic) {
				t.Errorf("Publish to %.10q: %v, want ErrTopic", wrong.Topic, err)
			}
		}
		b.Store.SetFull(durable.ErrFull)
		if err := b.Publish(&message.Message{Topic: "a", Retain: true, Payload: []byte("x")}, durable.Origin{}, nil); !errors.Is(err, durable.ErrFull) {
			t.Errorf("full: %v", err)
		}
		if err := b.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		if err := b.Publish(&message.Message{Topic: "a"}, durable.Origin{}, nil); !errors.Is(err, broker.ErrClosed) {
			t.Errorf("after Shutdown: %v", err)
		}
	})
}
