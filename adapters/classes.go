package adapters

import (
	"fmt"
	"slices"
	"strings"
)

// Point describes one measured value to whoever lists or announces it.
type Point struct {
	Name string `json:"name"`
	Unit string `json:"unit,omitempty"`
	// DeviceClass and StateClass are what Home Assistant calls the kind of a
	// sensor and how its values behave over time; empty when there is none.
	DeviceClass string `json:"device_class,omitempty"`
	StateClass  string `json:"state_class,omitempty"`
	// Kind is what its values are; empty where that is not known.
	Kind Kind `json:"kind,omitempty"`
	// Options are all values that it can have or, if Write is not nil, all that
	// it can be given, as they read; nil: there is no list of them.
	Options []string `json:"options,omitempty"`
	// Write is nil for a point that can only be read.
	Write *Write `json:"write,omitempty"`
}

// Kind is what the values of a point are.
type Kind string

// The kinds of values.
const (
	Number Kind = "number"
	Bool   Kind = "bool"
	Text   Kind = "text"
)

// Write is what a point can be given on its topic with "/set" behind it.
type Write struct {
	// Min and Max bound a number, Step is the distance between two; 0: any.
	Min  float64 `json:"min"`
	Max  float64 `json:"max"`
	Step float64 `json:"step,omitempty"`
	// Length is how many bytes a text has at most.
	Length int `json:"length,omitempty"`
	// Object says that the value may also come as {"value": ...}, which leaves no
	// doubt whether 1 is a number or a text.
	Object bool `json:"object,omitempty"`
}

// Unbounded is the bound of numbers that have no other: enough for any setpoint, and
// few enough digits for whoever shows it.
const Unbounded = 1e9

// NoClass says that a point has no class, where an empty one would stand for
// that of its unit.
const NoClass = "none"

// The state classes of Home Assistant: a value as it is, a sum that may fall,
// and one that falls only when it starts anew.
const (
	Measurement     = "measurement"
	Total           = "total"
	TotalIncreasing = "total_increasing"
)

// units are those that say what is measured, with the classes that follow.
var units = map[string]Point{
	"V": {DeviceClass: "voltage"}, "mV": {DeviceClass: "voltage"},
	"A": {DeviceClass: "current"}, "mA": {DeviceClass: "current"},
	"W": {DeviceClass: "power"}, "kW": {DeviceClass: "power"},
	"VA": {DeviceClass: "apparent_power"}, "var": {DeviceClass: "reactive_power"},
	"Wh": {DeviceClass: "energy", StateClass: TotalIncreasing}, "kWh": {DeviceClass: "energy", StateClass: TotalIncreasing}, "MWh": {DeviceClass: "energy", StateClass: TotalIncreasing},
	"varh": {DeviceClass: "reactive_energy", StateClass: TotalIncreasing}, "kvarh": {DeviceClass: "reactive_energy", StateClass: TotalIncreasing},
	"VAh": {StateClass: TotalIncreasing}, "kVAh": {StateClass: TotalIncreasing},
	"Hz": {DeviceClass: "frequency"}, "°C": {DeviceClass: "temperature"}, "°F": {DeviceClass: "temperature"},
	"hPa": {DeviceClass: "pressure"}, "bar": {DeviceClass: "pressure"}, "lx": {DeviceClass: "illuminance"},
	"s": {DeviceClass: "duration"}, "min": {DeviceClass: "duration"}, "h": {DeviceClass: "duration"}, "ppm": {},
	"Ah": {}, "%": {}, "°": {}, "m³/h": {DeviceClass: "volume_flow_rate"}, "m³": {DeviceClass: "volume", StateClass: Total},
}

// KnownUnit says whether the unit is one that profiles may use: the spelling is
// that of Home Assistant.
func KnownUnit(unit string) bool {
	_, ok := units[unit]
	return ok
}

// deviceClasses are those of Home Assistant's sensors.
var deviceClasses = strings.Fields(`apparent_power aqi area atmospheric_pressure battery blood_glucose_concentration carbon_dioxide
	carbon_monoxide conductivity current data_rate data_size date distance duration energy energy_distance energy_storage
	enum frequency gas humidity illuminance irradiance moisture monetary nitrogen_dioxide nitrogen_monoxide nitrous_oxide ozone ph
	pm1 pm10 pm25 power power_factor precipitation precipitation_intensity pressure reactive_energy reactive_power
	signal_strength sound_pressure speed sulphur_dioxide temperature timestamp volatile_organic_compounds
	volatile_organic_compounds_parts voltage volume volume_flow_rate volume_storage water weight wind_direction wind_speed`)

// ValidClasses reports classes that Home Assistant does not have, naming the
// key. Empty ones and [NoClass] are valid.
func ValidClasses(device, state string) error {
	if device != "" && device != NoClass && !slices.Contains(deviceClasses, device) {
		return fmt.Errorf("device_class: %q is no class of a Home Assistant sensor", device)
	}
	switch state {
	case "", NoClass, Measurement, Total, TotalIncreasing:
		return nil
	default:
		return fmt.Errorf("state_class: %q is none of measurement, total, total_increasing, none", state)
	}
}

// Describe fills in the classes that follow from the unit where p leaves them
// empty. number says that the point's values are numbers: only those have a
// state class.
func Describe(p Point, number bool) Point {
	known, ok := units[p.Unit]
	if p.DeviceClass == "" {
		p.DeviceClass = known.DeviceClass
	}
	if p.StateClass == "" && number {
		switch {
		case known.StateClass != "":
			p.StateClass = known.StateClass
		case ok || p.DeviceClass != "" && p.DeviceClass != NoClass:
			p.StateClass = Measurement
		}
	}
	if p.DeviceClass == NoClass {
		p.DeviceClass = ""
	}
	if p.StateClass == NoClass {
		p.StateClass = ""
	}
	return p
}
