package adapters_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"holdfast/adapters"
)

func TestClassesFollowFromTheUnit(t *testing.T) {
	for name, c := range map[string]struct {
		in     adapters.Point
		number bool
		want   adapters.Point
	}{
		"a voltage":             {adapters.Point{Unit: "V"}, true, adapters.Point{Unit: "V", DeviceClass: "voltage", StateClass: "measurement"}},
		"a counter":             {adapters.Point{Unit: "kWh"}, true, adapters.Point{Unit: "kWh", DeviceClass: "energy", StateClass: "total_increasing"}},
		"a counter with a sign": {adapters.Point{Unit: "kWh", StateClass: "total"}, true, adapters.Point{Unit: "kWh", DeviceClass: "energy", StateClass: "total"}},
		"a percentage":          {adapters.Point{Unit: "%"}, true, adapters.Point{Unit: "%", StateClass: "measurement"}},
		"a humidity":            {adapters.Point{Unit: "%", DeviceClass: "humidity"}, true, adapters.Point{Unit: "%", DeviceClass: "humidity", StateClass: "measurement"}},
		"a power factor":        {adapters.Point{DeviceClass: "power_factor"}, true, adapters.Point{DeviceClass: "power_factor", StateClass: "measurement"}},
		"a unit nobody knows":   {adapters.Point{Unit: "furlong"}, true, adapters.Point{Unit: "furlong"}},
		"a text":                {adapters.Point{}, false, adapters.Point{}},
		"none":                  {adapters.Point{Unit: "V", DeviceClass: "none", StateClass: "none"}, true, adapters.Point{Unit: "V"}},
	} {
		if got := adapters.Describe(c.in, c.number); !cmp.Equal(got, c.want) {
			t.Errorf("%s: Describe(%+v) = %+v, want %+v", name, c.in, got, c.want)
		}
	}
}

func TestClassesAreThoseOfHomeAssistant(t *testing.T) {
	for _, c := range [][2]string{{"", ""}, {"none", "none"}, {"energy", "total"}, {"power_factor", "measurement"}} {
		if err := adapters.ValidClasses(c[0], c[1]); err != nil {
			t.Errorf("ValidClasses(%q, %q) = %v", c[0], c[1], err)
		}
	}
	for _, c := range [][2]string{{"volts", ""}, {"", "rising"}} {
		if adapters.ValidClasses(c[0], c[1]) == nil {
			t.Errorf("ValidClasses(%q, %q) = nil", c[0], c[1])
		}
	}
}
