package modbus

import (
	"strings"
	"testing"
)

func TestPowerOfTenComesWithTheValue(t *testing.T) {
	for name, c := range map[string]struct {
		point Point
		wire  []byte // of holding:10 on
		first uint16
		want  any
	}{
		"behind the value":   {Point{Register: "holding:10", ScaleRegister: "holding:12"}, []byte{0x09, 0x05, 0, 0, 0xff, 0xff}, 10, 230.9},
		"before it":          {Point{Register: "holding:12", Type: "int16", ScaleRegister: "holding:10"}, []byte{0, 1, 0, 0, 0xff, 0xfe}, 10, -20.0},
		"two registers":      {Point{Register: "holding:10", Type: "uint32", ScaleRegister: "holding:12"}, []byte{0, 1, 0, 0, 0xff, 0xfe}, 10, 655.36},
		"besides a scale":    {Point{Register: "holding:10", ScaleRegister: "holding:11", Scale: 0.001}, []byte{0, 5, 0, 2}, 10, 0.5},
		"rounded at the end": {Point{Register: "holding:10", ScaleRegister: "holding:11", Decimals: new(1)}, []byte{0x04, 0xd2, 0xff, 0xfd}, 10, 1.2},
		"not implemented":    {Point{Register: "holding:10", ScaleRegister: "holding:11"}, []byte{0, 5, 0x80, 0}, 10, nil},
		"too large":          {Point{Register: "holding:10", ScaleRegister: "holding:11"}, []byte{0, 5, 0, 11}, 10, nil},
		"no value":           {Point{Register: "holding:10", ScaleRegister: "holding:11", Invalid: []int64{0xffff}}, []byte{0xff, 0xff, 0, 0}, 10, nil},
	} {
		c.point.Name = "p"
		d := DefaultDevice()
		d.Name, d.Unit, d.Points = "d", 1, []Point{c.point}
		comp, err := compile(&d)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		p := comp.points[0]
		if p.reg.Addr != c.first || 2*p.f.n != len(c.wire) {
			t.Errorf("%s: reads %d from %v, want %d from %d", name, p.f.n, p.reg, len(c.wire)/2, c.first)
			continue
		}
		if got, reason := p.f.decode(c.wire); got != c.want {
			t.Errorf("%s: decode = %v (%s), want %v", name, got, reason, c.want)
		}
	}
}

func TestPowerOfTenMustFitOneRequest(t *testing.T) {
	for name, c := range map[string]struct {
		point Point
		want  string
	}{
		"other table": {Point{Register: "holding:1", ScaleRegister: "input:2"}, "are not a number and a register of one table"},
		"a text":      {Point{Register: "holding:1", Type: "string", Length: 2, ScaleRegister: "holding:9"}, "are not a number"},
		"a bit":       {Point{Register: "holding:1", ScaleRegister: "holding:2.1"}, "are not a number"},
		"too far":     {Point{Register: "holding:1", ScaleRegister: "holding:126"}, "126 registers, more than the 125"},
		"a hole":      {Point{Register: "holding:1", ScaleRegister: "holding:60"}, "there is a hole between"},
		"no register": {Point{Register: "holding:1", ScaleRegister: "x"}, "point[0].scale_register: \"x\""},
	} {
		c.point.Name = "p"
		d := DefaultDevice()
		d.Name, d.Unit, d.Holes, d.Points = "d", 1, []string{"holding:50-51"}, []Point{c.point}
		if _, err := compile(&d); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: compile = %v, want %q", name, err, c.want)
		}
	}
}
