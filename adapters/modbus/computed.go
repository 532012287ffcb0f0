package modbus

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"holdfast/adapters"
	"holdfast/adapters/reading"
)

// computed is what a point has that others are computed from, or that is itself
// computed. All of it is the bus goroutine's.
type computed struct {
	expr   *expression
	inputs []*point // in the order of expr.inputs
	seen   []uint64 // how often each input was read when this was computed last

	kept bool   // another point is computed from this one
	n    uint64 // how often it was read
	last reading.Reading
}

// compileComputed adds the points with an expression to c, each behind those it
// is computed from. Errors start with the key within the device.
func compileComputed(d *Device, c *compiled) error {
	todo := map[string]int{} // index in d.Points
	for i := range d.Points {
		if d.Points[i].Expression != "" {
			todo[d.Points[i].Name] = i
		}
	}
	find := func(name string) *point {
		is := func(p *point) bool { return p.name == name }
		if i := slices.IndexFunc(c.points, is); i >= 0 {
			return c.points[i]
		}
		if i := slices.IndexFunc(c.computed, is); i >= 0 {
			return c.computed[i]
		}
		return nil
	}
	var add func(i int, chain []string) error
	add = func(i int, chain []string) error {
		o := &d.Points[i]
		chain = append(chain, o.Name)
		var nested error
		e, err := parseExpression(o.Expression, func(name string) (kind, bool) {
			j, later := todo[name]
			switch {
			case nested != nil:
				return aNumber, true // it is said below
			case later && slices.Contains(chain, name):
				nested = fmt.Errorf("point[%d].expression: %s is computed from itself (%s)", i, name, strings.Join(append(chain, name), " <- "))
				return aNumber, true
			case later && find(name) == nil:
				if nested = add(j, chain); nested != nil {
					return aNumber, true
				}
			}
			if p := find(name); p != nil {
				return p.kind(), true
			}
			return "", false
		})
		switch {
		case nested != nil:
			return nested
		case err != nil:
			return fmt.Errorf("point[%d].expression: %w", i, err)
		}
		p, err := newComputed(o, e, c)
		if err != nil {
			return fmt.Errorf("point[%d].%w", i, err)
		}
		for _, name := range e.inputs {
			in := find(name)
			in.kept = true
			p.inputs = append(p.inputs, in)
		}
		p.seen = make([]uint64, len(p.inputs))
		c.computed = append(c.computed, p)
		return nil
	}
	for i := range d.Points {
		if o := &d.Points[i]; o.Expression != "" && find(o.Name) == nil {
			if err := add(i, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// newComputed returns errors that start with the key within the point.
func newComputed(o *Point, e *expression, c *compiled) (*point, error) {
	if err := reading.ValidName(o.Name); err != nil {
		return nil, fmt.Errorf("name: %w", err)
	}
	if err := adapters.ValidClasses(o.DeviceClass, o.StateClass); err != nil {
		return nil, err
	}
	p := &point{name: o.Name, unit: o.Unit, device: o.DeviceClass, state: o.StateClass, every: cmp.Or(o.Every, c.every)}
	p.expr = e
	p.f = format{typ: map[kind]string{aNumber: "float64", aBool: "bool", aText: "string"}[e.kind], bit: noBit, decimals: orDefault(o.Decimals, -1)}
	switch {
	case len(e.inputs) == 0:
		return nil, fmt.Errorf("expression: %q names no point", o.Expression)
	case p.every < minEvery || p.every > maxEvery:
		return nil, fmt.Errorf("every: %v is outside 10ms..24h", o.Every)
	case o.Register != "" || o.Type != "" || o.Length != 0 || o.Order != "" || o.Bits != "" || len(o.Enum) > 0 ||
		(o.Scale != 0 && o.Scale != 1) || o.Offset != 0 || o.ScaleRegister != "" || len(o.Invalid) > 0 || o.Write:
		return nil, errors.New("expression: a point that is computed has no register, and nothing that is of one")
	case o.Decimals != nil && (*o.Decimals < 0 || *o.Decimals > 15 || e.kind != aNumber):
		return nil, fmt.Errorf("decimals: %d is outside 0..15, or the value is no number", *o.Decimals)
	}
	if err := o.Report.Validate(p.numeric()); err != nil {
		return nil, err
	}
	p.report = reading.NewReporter(o.Report)
	return p, nil
}

// kind is what the values of the point are.
func (p *point) kind() kind {
	switch {
	case p.numeric():
		return aNumber
	case p.f.typ == "bool" && p.f.names == nil:
		return aBool
	default:
		return aText
	}
}

// keep remembers a reading for those that are computed from it.
func (p *point) keep(r reading.Reading) {
	if p.kept {
		p.last = r
		p.n++
	}
}

// renewed says whether the point is to be computed: each input that is read at
// least as often as it has been read since, and one at least; those that are read
// less often count as they were.
func (p *point) renewed() bool {
	some, waits := false, false
	for i, in := range p.inputs {
		switch {
		case in.n == 0:
			return false
		case in.n != p.seen[i]:
			some = true
		case in.every <= p.every:
			waits = true
		}
	}
	return some && !waits
}

// compute appends to rs the points that are computed from what has been read, or
// lost, at that time.
func (d *device) compute(rs []reading.Reading, at time.Time, stamp reading.Stamp) []reading.Reading {
	for _, p := range d.computed {
		lost := slices.IndexFunc(p.inputs, func(in *point) bool { return in.bad })
		if lost >= 0 && p.bad || lost < 0 && !p.renewed() {
			continue
		}
		r := reading.Reading{Device: d.name, Point: p.name, Unit: p.unit, Time: stamp}
		p.bad = lost >= 0
		env := make([]any, len(p.inputs))
		for i, in := range p.inputs {
			p.seen[i] = in.n
			env[i] = in.last.Value
			switch env[i].(type) {
			case int64, uint64: // expressions know one kind of number
				env[i], _ = reading.Number(env[i])
			}
			if in.last.Quality > r.Quality {
				r.Quality, r.Reason = in.last.Quality, in.name+": "+in.last.Reason
			}
		}
		if r.Quality != reading.Bad {
			v, err := p.expr.value(env)
			if f, ok := v.(float64); ok && p.f.decimals >= 0 {
				v = round(f, p.f.decimals)
			}
			if r.Value = v; err != nil {
				r.Quality, r.Reason = reading.Bad, err.Error()
			}
		}
		p.keep(r)
		if p.report.Take(&r, at) {
			rs = append(rs, r)
		}
	}
	return rs
}
