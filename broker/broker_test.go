package broker_test

import (
	"testing"
	"time"

	"go.uber.org/goleak"

	"holdfast/broker"
	"holdfast/broker/brokertest"
	"holdfast/broker/packet"
)

var _ broker.Store = (*brokertest.MemoryStore)(nil)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestPublishSubscribe(t *testing.T) {
	for _, version := range []packet.Version{packet.V31, packet.V311, packet.V5} {
		for qos := byte(0); qos <= 2; qos++ {
			t.Run(version.String()+" QoS "+string('0'+rune(qos)), func(t *testing.T) {
				b := brokertest.Start(t, nil)
				sub := brokertest.Connect(t, b.Dial(t), &packet.Connect{Version: version, ClientID: "sub", CleanStart: true})
				pub := brokertest.Connect(t, b.Dial(t), &packet.Connect{Version: version, ClientID: "pub", CleanStart: true})
				if got := sub.Subscribe(qos, "a/+/c"); got[0] != packet.ReasonCode(qos) {
					t.Fatalf("granted %v, want %d", got[0], qos)
				}
				for i := range 100 {
					if r := pub.Publish(qos, false, "a/b/c", string(rune('A'+i%26))); r != 0 {
						t.Fatalf("acknowledged with %v", r)
					}
				}
				for i := range 100 {
					m := sub.Message()
					if want := string(rune('A' + i%26)); string(m.Payload) != want || m.QoS != qos || string(m.Topic) != "a/b/c" {
						t.Fatalf("message %d is %q %q QoS %d, want %q QoS %d", i, m.Topic, m.Payload, m.QoS, want, qos)
					}
				}
				pub.Disconnect(0)
				sub.Disconnect(0)
			})
		}
	}
}

// pass lets time pass inside a synctest bubble.
func pass(d time.Duration) { <-time.After(d) }
