package main

import (
	"log/slog"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"holdfast/broker/brokertest"
)

// An edge node that is not ours passes through the broker, and a host that comes
// later finds its births.
func TestBirthsAreKept(t *testing.T) {
	b := brokertest.New(t, nil)
	inbox, err := keepCertificates(b.Broker, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(inbox.Close)
	witness := brokertest.Connect(t, b.Pipe(), brokertest.V4("witness"))
	witness.Subscribe(1, "$sparkplug/certificates/#")
	host := brokertest.Connect(t, b.Pipe(), brokertest.V4("host"))
	host.Subscribe(1, "spBv1.0/#")
	node := brokertest.Connect(t, b.Pipe(), brokertest.V4("node"))
	payload := func(seq uint64) string { // a payload with its number only
		return string(protowire.AppendVarint(protowire.AppendTag(nil, 3, protowire.VarintType), seq))
	}
	for i, topic := range []string{"NBIRTH/n", "DBIRTH/n/d", "DDATA/n/d", "DBIRTH/n/d"} {
		node.Publish(0, false, "spBv1.0/g/"+topic, payload(uint64(i)))
		if m := host.Message(); string(m.Topic) != "spBv1.0/g/"+topic || string(m.Payload) != payload(uint64(i)) || m.Retain {
			t.Errorf("the host has %+v", m)
		}
		if i != 2 {
			witness.Message()
		}
	}
	late := brokertest.Connect(t, b.Pipe(), brokertest.V4("late"))
	late.Subscribe(1, "$sparkplug/certificates/#")
	got := map[string]string{}
	for range 2 {
		m := late.Message()
		if !m.Retain {
			t.Errorf("%s is not retained", m.Topic)
		}
		got[string(m.Topic)] = string(m.Payload)
	}
	if len(got) != 2 || got[certificatesPrefix+"spBv1.0/g/NBIRTH/n"] != payload(0) || got[certificatesPrefix+"spBv1.0/g/DBIRTH/n/d"] != payload(3) {
		t.Errorf("kept %q", got)
	}
}
