package main

import (
	"fmt"
	"math"
	"slices"
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
		{"sensors/door/opened", "7", sparkplug.Reading{Device: "door", Metric: "opened", Value: int64(7), Good: true, Time: received}, true},
		{"sensors/door/lux", `{"value":7.5}`, sparkplug.Reading{Device: "door", Metric: "lux", Value: 7.5, Good: true, Time: received}, true},
		{"sensors/door/x", "trueish", sparkplug.Reading{}, false},
		{"sensors/door", `{"value":1}`, sparkplug.Reading{}, false},
		{"sensors/door/x", "north", sparkplug.Reading{}, false},
		{"sensors/door/x", "[1]", sparkplug.Reading{}, false},
		{"sensors/door/x", `{"value":{}}`, sparkplug.Reading{}, false},
		{"sensors/door/x", "", sparkplug.Reading{}, false},
		{"sensors/door/x/set", "1", sparkplug.Reading{}, false},
		{"sensors/door", "1", sparkplug.Reading{}, false},
		{"other/door/x", "1", sparkplug.Reading{}, false},
	} {
		got := edgeSite{prefix: "sensors/"}.Readings(&message.Message{Topic: c.topic, Payload: []byte(c.payload), Received: received})
		for i := range got {
			got[i].Time = got[i].Time.UTC()
		}
		if len(got) > 1 || (len(got) == 1) != c.ok || c.ok && got[0] != c.want {
			t.Errorf("%s %s: %+v; want %+v, %v", c.topic, c.payload, got, c.want, c.ok)
		}
	}
}

// With per = "device" a message carries all points of a device.
func TestReadingsOfADeviceForAnEdgeNode(t *testing.T) {
	at := time.Date(2026, 3, 4, 5, 6, 7, 8e6, time.UTC)
	stamp := reading.Stamp{Wall: at, Synchronised: true}
	late := reading.Stamp{Wall: at.Add(time.Second), Synchronised: true}
	payload := reading.AppendDevice(nil, []reading.Reading{
		{Point: "energy", Value: uint64(math.MaxUint64), Unit: "Wh", Time: stamp},
		{Point: "level", Quality: reading.Bad, Reason: "no answer", Time: late},
		{Point: "power", Value: 2.5, Quality: reading.Uncertain, Time: stamp},
	})
	want := []sparkplug.Reading{
		{Device: "meter", Metric: "energy", Value: uint64(math.MaxUint64), Unit: "Wh", Good: true, Time: at},
		{Device: "meter", Metric: "level", Time: at.Add(time.Second)},
		{Device: "meter", Metric: "power", Value: 2.5, Time: at},
	}
	got := edgeSite{prefix: "sensors/"}.Readings(&message.Message{Topic: "sensors/meter", Payload: payload, Received: at})
	if !slices.EqualFunc(got, want, func(a, b sparkplug.Reading) bool {
		same := a.Time.Equal(b.Time)
		a.Time, b.Time = time.Time{}, time.Time{}
		return same && a == b
	}) {
		t.Errorf("%s:\n%+v, want\n%+v", payload, got, want)
	}
	if got := (edgeSite{prefix: "sensors/"}).Readings(&message.Message{Topic: "sensors/meter/x", Payload: payload, Received: at}); len(got) != 0 {
		t.Errorf("a device's message on a point's topic: %+v", got)
	}
}

func TestAnEdgeNodeSaysWhatItIs(t *testing.T) {
	about := map[string]any{}
	for _, m := range (edgeSite{}).About() {
		about[m.Name] = m.Value
		if text, ok := m.Value.(string); m.Type != sparkplug.String || !ok || text == "" {
			t.Errorf("%s is %v", m.Name, m.Value)
		}
	}
	if about["Properties/Software"] != "Holdfast "+version || about["Properties/OS"] != "Linux" || about["Properties/OS Version"] == nil {
		t.Errorf("%v", about)
	}
}

func TestCommandsOfAHostReachTheDevicesTopic(t *testing.T) {
	b := brokertest.New(t, nil)
	c := brokertest.Connect(t, b.Pipe(), brokertest.V5("plc"))
	c.Subscribe(1, "sensors/+/+/set")
	site := edgeSite{b: b.Broker, prefix: "sensors/", name: sparkplug.RecipientName("scada")}
	if err := site.Command("pump", "speed", math.NaN()); err == nil {
		t.Error("NaN was written")
	}
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
