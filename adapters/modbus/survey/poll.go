package survey

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"holdfast/adapters/modbus"
)

// Polled is what a point read as.
type Polled struct {
	Name     string `json:"name"`
	Register string `json:"register"`
	// Value is null when there is none, Note then says why.
	Value any    `json:"value"`
	Unit  string `json:"unit,omitempty"`
	Note  string `json:"note,omitempty"`
}

// Poller reads the points of a device again and again, in as few requests as it
// takes.
type Poller struct {
	dev    *modbus.Device
	points []polledPoint
	reads  []modbus.Request
}

type polledPoint struct {
	o  modbus.Point
	at modbus.Register
	n  int
}

// NewPoller returns what reads d. Points that are computed are left out.
func NewPoller(d *modbus.Device) (*Poller, error) {
	p := &Poller{dev: d}
	for _, o := range d.Points {
		if o.Expression != "" {
			continue
		}
		at, n, err := modbus.Extent(o, d.Order)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", o.Name, err)
		}
		p.points = append(p.points, polledPoint{o, at, n})
	}
	var err error
	p.reads, err = modbus.Plan(d)
	return p, err
}

// covers says that r reads the point.
func (q *polledPoint) covers(r *modbus.Request) bool {
	return r.Function == q.at.Table.Read() && r.Addr <= q.at.Addr && int(q.at.Addr)+q.n <= int(r.Addr)+int(r.Count)
}

// Read reads all points once, in their order. A block that the unit refuses is
// read point by point from then on. The error is that of the line or of ctx.
func (p *Poller) Read(ctx context.Context, do modbus.Do, timeout time.Duration) ([]Polled, error) {
	out := make([]Polled, len(p.points))
	for i := 0; i < len(p.reads); i++ {
		r := p.reads[i]
		data, err := do(ctx, r, timeout)
		if given(err) {
			return nil, err
		}
		if err != nil && modbus.Alive(err) && p.split(i) {
			i--
			continue
		}
		for j := range p.points {
			if q := &p.points[j]; q.covers(&r) {
				out[j] = q.polled(&r, data, err, p.dev.Order)
			}
		}
	}
	return out, nil
}

// split puts a read of each point in place of the one at i; false when there is
// only one.
func (p *Poller) split(i int) bool {
	r := p.reads[i]
	var single []modbus.Request
	for j := range p.points {
		q := &p.points[j]
		own := r
		own.Addr, own.Count = q.at.Addr, uint16(q.n)
		if q.covers(&r) && !slices.ContainsFunc(single, func(s modbus.Request) bool { return s.Addr == own.Addr && s.Count == own.Count }) {
			single = append(single, own)
		}
	}
	if len(single) < 2 && (len(single) == 0 || single[0].Count == r.Count) {
		return false
	}
	p.reads = append(append(p.reads[:i:i], single...), p.reads[i+1:]...)
	return true
}

// polled is the point in the answer to r.
func (q *polledPoint) polled(r *modbus.Request, data []byte, err error, order string) Polled {
	v := Polled{Name: q.o.Name, Register: q.o.Register, Unit: q.o.Unit}
	at := int(q.at.Addr - r.Addr)
	switch {
	case err != nil:
		if _, v.Note, _ = strings.Cut(err.Error(), ": "); v.Note == "" { // the request is known
			v.Note = err.Error()
		}
		if e, ok := errors.AsType[*modbus.ExceptionError](err); ok {
			v.Note = fmt.Sprintf("exception %d (%v)", byte(e.Code), e.Code)
		}
	case q.at.Table.Bits():
		v.Value = data[at/8]>>(at%8)&1 != 0
	default:
		v.Value, v.Note, err = modbus.Decode(q.o, order, data[2*at:2*(at+q.n)])
		if err != nil {
			v.Note = err.Error()
		}
	}
	return v
}
