package modbus

import (
	"fmt"
	"time"

	"holdfast/adapters"
)

// alone compiles a point that is not part of a device; order is what its device
// would have.
func alone(o Point, order string) (*point, error) {
	d := DefaultDevice()
	d.Name, d.Unit, d.Points = "point", 1, []Point{o}
	if order != "" {
		d.Order = order
	}
	c, err := compile(&d)
	if err != nil {
		return nil, err
	}
	return c.points[0], nil
}

// Extent returns where the point starts, its power of ten included, and how many
// registers or bits it takes.
func Extent(o Point, order string) (Register, int, error) {
	p, err := alone(o, order)
	if err != nil {
		return Register{}, 0, err
	}
	return p.reg, p.f.n, nil
}

// Decode returns the value of the point in the contents of its registers, as on
// the wire; nil and a reason when they are no value. order is the device's.
func Decode(o Point, order string, data []byte) (value any, reason string, err error) {
	p, err := alone(o, order)
	switch {
	case err != nil:
		return nil, "", err
	case p.reg.Table.Bits():
		return nil, "", fmt.Errorf("%v is no register", p.reg)
	case len(data) != 2*p.f.n:
		return nil, "", fmt.Errorf("%d bytes for %d registers", len(data), p.f.n)
	}
	value, reason = p.f.decode(data)
	return value, reason, nil
}

// Plan returns the requests that read all points of the device once.
func Plan(d *Device) ([]Request, error) {
	c, err := compile(d)
	if err != nil {
		return nil, err
	}
	var rs []Request
	for _, k := range plan(&device{compiled: c}, nil) {
		rs = append(rs, k.req)
	}
	return rs, nil
}

// TimeOnLine is how long the request and its answer take on a serial line of RTU,
// with the silences before them, for a unit that answers at once.
func (r Request) TimeOnLine(char time.Duration) time.Duration {
	o := Options{CharTime: char}
	return 2*o.silence() + o.onWire(r)
}

// About is what can be said of a point without reading it.
type About struct {
	adapters.Point
	Type string
}

// Describe tells what the point measures.
func Describe(o Point) (About, error) {
	p, err := alone(o, "")
	if err != nil {
		return About{}, err
	}
	return About{Point: p.describe(), Type: p.f.typ}, nil
}
