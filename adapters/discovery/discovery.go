// Package discovery tells Home Assistant of the gateway's devices: for each the
// retained message of MQTT discovery, one for a device with all its entities
// (home-assistant.io/integrations/mqtt, "device discovery payload"). It makes
// messages and publishes none, keeps nothing and starts no goroutines.
//
// An entity is available when the gateway is online and its device answers: two
// topics, mode "all". Home Assistant cannot compare the session numbers of the two;
// it need not, since a gateway that starts says of each device "unknown" first.
package discovery

import (
	"encoding/json"
	"errors"
	"fmt"
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
	Platform    string `json:"platform"`
	UniqueID    string `json:"unique_id"`
	Name        string `json:"name"`
	StateTopic  string `json:"state_topic"`
	Template    string `json:"value_template"`
	Unit        string `json:"unit_of_measurement,omitempty"`
	DeviceClass string `json:"device_class,omitempty"`
	StateClass  string `json:"state_class,omitempty"`
	Attributes  string `json:"json_attributes_topic,omitempty"`
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
		p.Components[id(pt.Name)] = entity{
			Platform: "sensor", UniqueID: own + "_" + id(pt.Name), Name: pt.Name, StateTopic: topic,
			Template: "{{ value_json.value }}", Unit: pt.Unit, DeviceClass: pt.DeviceClass, StateClass: pt.StateClass,
			Attributes: topic,
		}
	}
	b, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("device %s: %w", d.Name, err)
	}
	return &message.Message{Topic: o.Topic(g.ID, d.Name), Payload: b, QoS: 1, Retain: true, Received: time.Now()}, nil
}
