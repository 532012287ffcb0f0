package discovery

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"holdfast/adapters"
)

var gateway = Gateway{
	ID: "plant 7", Version: "1.2.3", Readings: "sensors", StatusTopic: "holdfast/plant 7/status",
	DeviceStatusTopic: func(device string) string { return "holdfast/plant 7/device/" + device + "/status" },
}

// The schema is that of home-assistant.io/integrations/mqtt, section "Device
// discovery payload", and of its sensor.
func TestMessage(t *testing.T) {
	o := DefaultOptions()
	m, err := o.Message(gateway, adapters.Device{Name: "meter", Points: []adapters.Point{
		adapters.Describe(adapters.Point{Name: "energy", Unit: "kWh"}, true),
		adapters.Describe(adapters.Point{Name: "phase/a b", Unit: "V"}, true),
		{Name: "serial"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if m.Topic != "homeassistant/device/holdfast_plant-20-7/meter/config" || m.QoS != 1 || !m.Retain {
		t.Errorf("%s, QoS %d, retained %v", m.Topic, m.QoS, m.Retain)
	}
	var got, want any
	if err := json.Unmarshal(m.Payload, &got); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(`{
		"device": {"identifiers": ["holdfast_plant-20-7_meter"], "name": "meter"},
		"origin": {"name": "holdfast", "sw_version": "1.2.3"},
		"availability": [
			{"topic": "holdfast/plant 7/status", "value_template": "{{ value_json.state }}"},
			{"topic": "holdfast/plant 7/device/meter/status",
			 "value_template": "{{ 'online' if value_json.state in ['online', 'degraded'] else 'offline' }}"}
		],
		"availability_mode": "all",
		"qos": 1,
		"components": {
			"energy": {"platform": "sensor", "unique_id": "holdfast_plant-20-7_meter_energy", "name": "energy",
				"state_topic": "sensors/meter/energy", "value_template": "{{ value_json.value }}",
				"unit_of_measurement": "kWh", "device_class": "energy", "state_class": "total_increasing",
				"json_attributes_topic": "sensors/meter/energy"},
			"phase-2f-a-20-b": {"platform": "sensor", "unique_id": "holdfast_plant-20-7_meter_phase-2f-a-20-b", "name": "phase/a b",
				"state_topic": "sensors/meter/phase/a b", "value_template": "{{ value_json.value }}",
				"unit_of_measurement": "V", "device_class": "voltage", "state_class": "measurement",
				"json_attributes_topic": "sensors/meter/phase/a b"},
			"serial": {"platform": "sensor", "unique_id": "holdfast_plant-20-7_meter_serial", "name": "serial",
				"state_topic": "sensors/meter/serial", "value_template": "{{ value_json.value }}",
				"json_attributes_topic": "sensors/meter/serial"}
		}
	}`), &want); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if _, err := o.Message(gateway, adapters.Device{Name: "meter"}); !errors.Is(err, ErrNothing) {
		t.Errorf("a device without points: %v", err)
	}
}

func TestDifferentNamesStayDifferent(t *testing.T) {
	seen := map[string]string{}
	for _, name := range []string{"a b", "a-b", "a_b", "ab", "aB", "ä", "a/b", "a-20-b", "日本"} {
		if other, ok := seen[id(name)]; ok && name != "a-20-b" {
			t.Errorf("%q and %q are both %q", name, other, id(name))
		}
		seen[id(name)] = name
	}
}

func TestOptions(t *testing.T) {
	for _, c := range []struct {
		change func(*Options)
		says   string
	}{
		{func(*Options) {}, ""},
		{func(o *Options) { o.Prefix = "" }, "prefix: is missing"},
		{func(o *Options) { o.Prefix = "a/#" }, `prefix: "a/#" is no topic to publish to`},
		{func(o *Options) { o.BirthTopic = "$SYS/x" }, `birth_topic: "$SYS/x" is no topic to publish to`},
		{func(o *Options) { o.Spread = time.Hour }, "spread: 1h0m0s is outside 0s..10m"},
	} {
		o := DefaultOptions()
		c.change(&o)
		says := ""
		if err := o.Validate(); err != nil {
			says = err.Error()
		}
		if says != c.says {
			t.Errorf("%q, want %q", says, c.says)
		}
	}
}
