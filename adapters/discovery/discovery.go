// Package discovery tells Home Assistant of the gateway's devices: for each the
// retained message of MQTT discovery, one for a device with all its entities
// (home-assistant.io/integrations/mqtt, "device discovery payload"). It makes
// messages and publishes none, keeps nothing and starts no goroutines.
//
// An entity is available when the gateway is online and its device answers: two
// topics, mode "all". Home Assistant cannot compare the session numbers of the two;
// it need not, since a gateway that starts says of each device "unknown" first.
//
// A point is a sensor or, if its values are true and false, a binary_sensor; one that
// can be written a switch, a number, a select or a text, with the topic of commands.
package discovery

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"holdfast/adapters"
	"holdfast/broker/message"
)

// Options are the settings of the discovery.
type Options struct {
	// Enabled has the devices announced.
	Enabled bool `toml:"enabled"`
	// Prefix is what the discovery topics start with; Home Assistant's own
	// setting, "homeassistant" unless somebody changed it there.
	Prefix string `toml:"prefix"`
	// BirthTopic is where Home Assistant says "online" when it has started;
	// then the devices are announced again.
	BirthTopic string `toml:"birth_topic"`
	// Spread is how long at most that waits, by chance, so that not all
	// gateways answer at once. 0 to 10m.
	Spread time.Duration `toml:"spread"`
}

// DefaultOptions announce nothing, where Home Assistant would look for it.
func DefaultOptions() Options {
	return Options{Prefix: "homeassistant", BirthTopic: "homeassistant/status", Spread: 10 * time.Second}
}

// Validate reports the first value out of range, naming its key.
func (o Options) Validate() error {
	for _, t := range []struct{ key, value string }{{"prefix", o.Prefix}, {"birth_topic", o.BirthTopic}} {
		switch {
		case t.value == "":
			return fmt.Errorf("%s: is missing", t.key)
		case strings.ContainsAny(t.value, "+#\x00") || strings.HasPrefix(t.value, "$"):
			return fmt.Errorf("%s: %q is no topic to publish to", t.key, t.value)
		}
	}
	if o.Spread < 0 || o.Spread > 10*time.Minute {
		return fmt.Errorf("spread: %v is outside 0s..10m", o.Spread)
	}
	return nil
}

// Gateway is what all its devices have in common.
type Gateway struct {
	ID, Version string
	// Readings is what the topics of readings start with.
	Readings string
	// StatusTopic is that of the gateway, DeviceStatusTopic that of a device;
	// both carry JSON with a member "state".
	StatusTopic       string
	DeviceStatusTopic func(device string) string
}

// deviceTemplate makes the availability of a device's state: degraded is one in
// which it still answers.
const deviceTemplate = "{{ 'online' if value_json.state in ['online', 'degraded'] else 'offline' }}"

// Topic is that of a device's discovery message; "+" for the device makes it the
// filter of all of them.
func (o Options) Topic(gateway, device string) string {
	if device != "+" {
		device = id(device)
	}
	return o.Prefix + "/device/" + id("holdfast_"+gateway) + "/" + device + "/config"
}

// id is a name in the characters that Home Assistant allows in ids: letters,
// digits, "_" and "-". Others become their number, so that different names stay
// different.
func id(name string) string {
	var b strings.Builder
	for _, r := range name {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '_', r == '-':
			b.WriteRune(r)
		default:
			fmt.Fprintf(&b, "-%x-", r)
		}
	}
	return b.String()
}

type payload struct {
	Device           device            `json:"device"`
	Origin           origin            `json:"origin"`
	Availability     []availability    `json:"availability"`
	AvailabilityMode string            `json:"availability_mode"`
	QoS              int               `json:"qos"`
	Components       map[string]entity `json:"components"`
}

type device struct {
	Identifiers []string `json:"identifiers"`
	Name        string   `json:"name"`
}

type origin struct {
	Name    string `json:"name"`
	Version string `json:"sw_version"`
}

type availability struct {
	Topic    string `json:"topic"`
	Template string `json:"value_template"`
}

type entity struct {
	Platform    string   `json:"platform"`
	UniqueID    string   `json:"unique_id"`
	Name        string   `json:"name"`
	StateTopic  string   `json:"state_topic"`
	Template    string   `json:"value_template"`
	Unit        string   `json:"unit_of_measurement,omitempty"`
	DeviceClass string   `json:"device_class,omitempty"`
	StateClass  string   `json:"state_class,omitempty"`
	Options     []string `json:"options,omitempty"`
	Attributes  string   `json:"json_attributes_topic,omitempty"`

	CommandTopic    string   `json:"command_topic,omitempty"`
	CommandTemplate string   `json:"command_template,omitempty"`
	Min             *float64 `json:"min,omitempty"`
	Max             *float64 `json:"max,omitempty"`
	Step            float64  `json:"step,omitempty"`
	PayloadOn       string   `json:"payload_on,omitempty"`
	PayloadOff      string   `json:"payload_off,omitempty"`
	StateOn         string   `json:"state_on,omitempty"`
	StateOff        string   `json:"state_off,omitempty"`
}

const (
	// A template makes True, False and None of what JSON calls true, false and
	// null; None is what Home Assistant takes for unknown.
	valueTemplate = "{{ value_json.value }}"
	isTrue        = "True"
	isFalse       = "False"
	// textTemplate: an entity for text takes None for a text.
	textTemplate = "{{ value_json.value if value_json.value is not none else '' }}"
	// objectTemplate leaves no doubt about what is a text.
	objectTemplate = `{"value": {{ value | to_json }}}`
	// smallestStep and longestText are the limits of Home Assistant's number and
	// text.
	smallestStep = 0.001
	longestText  = 255
)

// entityOf is what Home Assistant has for a point whose readings are on that topic:
// home-assistant.io/integrations/{sensor,binary_sensor,number,switch,select,text}.mqtt.
func entityOf(p adapters.Point, topic string) entity {
	e := entity{Platform: "sensor", Name: p.Name, StateTopic: topic, Template: valueTemplate, Attributes: topic}
	w := p.Write
	if w != nil {
		e.CommandTopic = topic + "/set"
	}
	switch {
	case len(p.Options) > 0:
		e.Options = p.Options
		// What the device has besides would be an error there.
		list, err := json.Marshal(p.Options)
		if err != nil {
			panic(err) // strings always marshal
		}
		e.Template = "{{ value_json.value if value_json.value | string in " + string(list) + " else none }}"
		if w != nil {
			e.Platform = "select"
		} else {
			e.DeviceClass = "enum"
		}
	case p.Kind == adapters.Bool && w != nil:
		e.Platform, e.StateOn, e.StateOff = "switch", isTrue, isFalse
		e.PayloadOn, e.PayloadOff = "true", "false"
	case p.Kind == adapters.Bool:
		e.Platform, e.PayloadOn, e.PayloadOff = "binary_sensor", isTrue, isFalse
	case p.Kind == adapters.Number && w != nil && w.Min < w.Max:
		e.Platform, e.Unit, e.DeviceClass = "number", p.Unit, p.DeviceClass
		e.Min, e.Max, e.Step = &w.Min, &w.Max, step(w.Step)
		if slices.Contains([]string{"date", "enum", "timestamp"}, e.DeviceClass) {
			e.DeviceClass = "" // those are of sensors alone
		}
	case p.Kind == adapters.Text && w != nil:
		e.Platform, e.Template = "text", textTemplate
		length := float64(min(w.Length, longestText))
		e.Max = &length
	default:
		e.CommandTopic, e.DeviceClass, e.StateClass = "", p.DeviceClass, p.StateClass
		if p.Kind != adapters.Text { // what has a unit must be a number there
			e.Unit = p.Unit
		}
	}
	if w != nil && w.Object && (e.Platform == "select" || e.Platform == "text") {
		e.CommandTemplate = objectTemplate
	}
	return e
}

// step is a multiple of s, the smallest that Home Assistant takes.
func step(s float64) float64 {
	switch {
	case s == 0:
		return smallestStep
	case s < smallestStep:
		return s * math.Ceil(smallestStep/s)
	default:
		return s
	}
}

// ErrNothing means a device without points.
var ErrNothing = errors.New("the device has no points")

// Message announces a device.
func (o Options) Message(g Gateway, d adapters.Device) (*message.Message, error) {
	if len(d.Points) == 0 {
		return nil, ErrNothing
	}
	own := id("holdfast_" + g.ID + "_" + d.Name)
	p := payload{
		Device: device{Identifiers: []string{own}, Name: d.Name},
		Origin: origin{"holdfast", g.Version},
		Availability: []availability{
			{g.StatusTopic, "{{ value_json.state }}"},
			{g.DeviceStatusTopic(d.Name), deviceTemplate},
		},
		AvailabilityMode: "all",
		QoS:              1,
		Components:       make(map[string]entity, len(d.Points)),
	}
	for _, pt := range d.Points {
		topic := g.Readings + "/" + d.Name + "/" + pt.Name
		e := entityOf(pt, topic)
		e.UniqueID = own + "_" + id(pt.Name)
		p.Components[id(pt.Name)] = e
	}
	b, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("device %s: %w", d.Name, err)
	}
	return &message.Message{Topic: o.Topic(g.ID, d.Name), Payload: b, QoS: 1, Retain: true, Received: time.Now()}, nil
}
