package discovery

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

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

// The schemas are those of home-assistant.io/integrations/ with sensor.mqtt,
// binary_sensor.mqtt, switch.mqtt, number.mqtt, select.mqtt and text.mqtt.
func TestEntities(t *testing.T) {
	long := &adapters.Write{Length: 300, Object: true}
	tests := map[string]struct {
		point adapters.Point
		want  string
	}{
		"a bool": {
			adapters.Point{Kind: adapters.Bool},
			`{"platform": "binary_sensor", "payload_on": "True", "payload_off": "False"}`,
		},
		"a bool that can be written": {
			adapters.Point{Kind: adapters.Bool, Write: &adapters.Write{Object: true}},
			`{"platform": "switch", "command_topic": "s/d/p/set", "payload_on": "true", "payload_off": "false", "state_on": "True", "state_off": "False"}`,
		},
		"a number": {
			adapters.Point{Kind: adapters.Number, Unit: "V", DeviceClass: "voltage", StateClass: "measurement"},
			`{"platform": "sensor", "unit_of_measurement": "V", "device_class": "voltage", "state_class": "measurement"}`,
		},
		"a number that can be written": {
			adapters.Point{Kind: adapters.Number, Unit: "°C", DeviceClass: "temperature", StateClass: "measurement", Write: &adapters.Write{Min: 5, Max: 30, Step: 0.5, Object: true}},
			`{"platform": "number", "command_topic": "s/d/p/set", "unit_of_measurement": "°C", "device_class": "temperature", "min": 5, "max": 30, "step": 0.5}`,
		},
		"from 0, in small steps": {
			adapters.Point{Kind: adapters.Number, Write: &adapters.Write{Max: 1, Step: 0.0003}},
			`{"platform": "number", "command_topic": "s/d/p/set", "min": 0, "max": 1, "step": 0.0012}`,
		},
		"in any steps": {
			adapters.Point{Kind: adapters.Number, DeviceClass: "timestamp", Write: &adapters.Write{Min: -1, Max: 1}},
			`{"platform": "number", "command_topic": "s/d/p/set", "min": -1, "max": 1, "step": 0.001}`,
		},
		"one number only": {
			adapters.Point{Kind: adapters.Number, Unit: "W", Write: &adapters.Write{Min: 7, Max: 7, Step: 1}},
			`{"platform": "sensor", "unit_of_measurement": "W"}`,
		},
		"names": {
			adapters.Point{Kind: adapters.Text, Options: []string{"off", "auto \"<1>\""}, Unit: "W", StateClass: "measurement"},
			`{"platform": "sensor", "device_class": "enum", "options": ["off", "auto \"<1>\""],
				"value_template": "{{ value_json.value if value_json.value | string in [\"off\",\"auto \\\"\\u003c1\\u003e\\\"\"] else none }}"}`,
		},
		"names that can be written": {
			adapters.Point{Kind: adapters.Text, Options: []string{"off", "1"}, Write: &adapters.Write{Object: true}},
			`{"platform": "select", "command_topic": "s/d/p/set", "options": ["off", "1"], "command_template": "{\"value\": {{ value | to_json }}}",
				"value_template": "{{ value_json.value if value_json.value | string in [\"off\",\"1\"] else none }}"}`,
		},
		"a text": {
			adapters.Point{Kind: adapters.Text, Unit: "V"},
			`{"platform": "sensor"}`,
		},
		"a text that can be written": {
			adapters.Point{Kind: adapters.Text, Write: &adapters.Write{Length: 8}},
			`{"platform": "text", "command_topic": "s/d/p/set", "max": 8, "value_template": "{{ value_json.value if value_json.value is not none else '' }}"}`,
		},
		"a long text": {
			adapters.Point{Kind: adapters.Text, Write: long},
			`{"platform": "text", "command_topic": "s/d/p/set", "max": 255, "command_template": "{\"value\": {{ value | to_json }}}",
				"value_template": "{{ value_json.value if value_json.value is not none else '' }}"}`,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			tt.point.Name = "p"
			b, err := json.Marshal(entityOf(tt.point, "s/d/p"))
			if err != nil {
				t.Fatal(err)
			}
			var got map[string]any
			if err := json.Unmarshal(b, &got); err != nil {
				t.Fatal(err)
			}
			// What all have in common.
			want := map[string]any{
				"unique_id": "", "name": "p", "state_topic": "s/d/p", "json_attributes_topic": "s/d/p",
				"value_template": "{{ value_json.value }}",
			}
			if err := json.Unmarshal([]byte(tt.want), &want); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got, cmpopts.EquateApprox(1e-9, 0)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
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
