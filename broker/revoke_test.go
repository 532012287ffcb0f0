package broker_test

import (
	"testing"
	"testing/synctest"

	"holdfast/broker"
	"holdfast/broker/brokertest"
	"holdfast/broker/packet"
)

func TestRevokeDisconnectsThoseItNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t, nil, func(o *broker.Options) { o.Auth = users{} })
		gone := as(brokertest.V5("gone"), "gone")
		gone.Will = &packet.Will{Topic: "gone/will", QoS: 1, Payload: []byte("bye")}
		out := brokertest.Connect(t, b.Pipe(), gone)
		old := brokertest.Connect(t, b.Pipe(), as(brokertest.V4("old"), "gone"))
		brokertest.Connect(t, b.Pipe(), brokertest.Keep(as(brokertest.V5("away"), "gone"), 60)).Disconnect(0)
		stays := brokertest.Connect(t, b.Pipe(), as(brokertest.V5("stays"), "stays"))
		stays.Subscribe(1, "#")
		if n := b.Revoke(func(id broker.Identity) bool { return id.Name == "gone" }); n != 2 {
			t.Errorf("%d disconnected, want 2", n)
		}
		if got, told := out.Ended(); !told || got != packet.ReasonNotAuthorized {
			t.Errorf("DISCONNECT %v, %t", got, told)
		}
		old.Ended()
		if got := stays.Messages(1); got[0] != "bye" {
			t.Errorf("the will: %q", got)
		}
	})
}
