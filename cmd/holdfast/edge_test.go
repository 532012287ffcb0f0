package main

import (
	"fmt"
	"testing"
	"time"

	"holdfast/adapters/reading"
	"holdfast/broker/brokertest"
	"holdfast/broker/message"
	"holdfast/storeforward/sparkplug"
)

func TestReadingsForAnEdgeNode(t *testing.T) {
	at := time.Date(2026, 3, 4, 5, 6, 7, 8e6, time.UTC)
	ours := reading.Reading{Device: "meter", Point: "power", Value: 2.5, Unit: "kW", Time: reading.Stamp{Wall: at}}
	bad := ours
	bad.Value, bad.Quality, bad.Reason = nil, reading.Bad, "no answer"
	received := at.Add(time.Hour)
	for _, c := range []struct {
		topic, payload string
		want           sparkplug.Reading
		ok             bool
	}{
		{"sensors/meter/power", string(ours.AppendJSON(nil)), sparkplug.Reading{Device: "meter", Metric: "power", Value: 2.5, Unit: "kW", Good: true, Time: at}, true},
		{"sensors/meter/power", string(bad.AppendJSON(nil)), sparkplug.Reading{Device: "meter", Metric: "power", Unit: "kW", Time: at}, true},
		{"sensors/door/open", "true", sparkplug.Reading{Device: "door", Metric: "open", Value: true, Good: true, Time: received}, true},
		{"sensors/door/name", `"north"`, sparkplug.Reading{Device: "door", Metric: "name", Value: "north", Good: true, Time: received}, true},
		{"sensors/door/temperature", "-1.5", sparkplug.Reading{Device: "door", Metric: "temperature", Value: -1.5, Good: true, Time: received}, true},
		{"sensors/door/x", "north", sparkplug.Reading{}, false},
		{"sensors/door/x", "[1]", sparkplug.Reading{}, false},
		{"sensors/door/x", `{"value":{}}`, sparkplug.Reading{}, false},
		{"sensors/door/x", "", sparkplug.Reading{}, false},
		{"sensors/door/x/set", "1", sparkplug.Reading{}, false},
		{"sensors/door", "1", sparkplug.Reading{}, false},
		{"other/door/x", "1", sparkplug.Reading{}, false},
	} {
		got, ok := edgeSite{prefix: "sensors/"}.Reading(&message.Message{Topic: c.topic, Payload: []byte(c.payload), Received: received})
		if ok != c.ok || ok && got != c.want {
			t.Errorf("%s %s: %+v, %v; want %+v", c.topic, c.payload, got, ok, c.want)
		}
	}
}

func TestCommandsOfAHostReachTheDevicesTopic(t *testing.T) {
	b := brokertest.New(t, nil)
	c := brokertest.Connect(t, b.Pipe(), brokertest.V5("plc"))
	c.Subscribe(1, "sensors/+/+/set")
	site := edgeSite{b: b.Broker, prefix: "sensors/", name: sparkplug.RecipientName("scada")}
	for _, v := range []any{1.5, int64(-3), uint64(4), true, "on"} {
		if err := site.Command("pump", "speed", v); err != nil {
			t.Fatal(err)
		}
		m := c.Message()
		if got := string(m.Topic) + " " + string(m.Payload); got != "sensors/pump/speed/set "+fmt.Sprint(v) {
			t.Errorf("%s for %v", got, v)
		}
	}
	if err := site.Command("pump", "speed", []byte{1}); err == nil {
		t.Error("bytes were written")
	}
}
