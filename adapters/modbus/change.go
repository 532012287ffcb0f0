package modbus

import (
	"context"
	"fmt"
	"time"
)

// Do makes a request, as [Bus.DoWithin] does.
type Do func(ctx context.Context, r Request, timeout time.Duration) ([]byte, error)

// Change is one value to be written to a place in a unit, by hand.
type Change struct {
	unit byte
	p    *point
	o    writeOrder
}

// NewChange returns what writes text to the point o of a unit; order is the byte
// order where the point names none. What the type cannot hold is an error.
func NewChange(unit byte, o Point, order, text string) (*Change, error) {
	o.Write = true
	p, err := alone(o, order)
	if err != nil {
		return nil, err
	}
	w := writeOrder{p: p}
	if w.c, w.value, err = p.accept(text); err != nil {
		return nil, fmt.Errorf("%q is %w", text, err)
	}
	return &Change{unit: unit, p: p, o: w}, nil
}

// Value is what is written, as a reading would have it.
func (c *Change) Value() any { return c.o.value }

// Read returns what the place holds; same says that this is the value to be
// written.
func (c *Change) Read(ctx context.Context, do Do, timeout time.Duration) (value any, same bool, err error) {
	r := Request{Unit: c.unit, Function: c.p.reg.Table.Read(), Addr: c.p.reg.Addr, Count: uint16(c.p.f.n)}
	data, err := do(ctx, r, timeout)
	if err != nil {
		return nil, false, err
	}
	return c.p.value(data), c.o.isIn(data), nil
}

// Write writes it. On a line of which it is not known if it echoes, what a single
// write is answered with could be its echo, and does not count: Read comes first.
// After an error that is no [*ExceptionError] it is not known
// whether the unit did what it was told.
func (c *Change) Write(ctx context.Context, do Do, timeout time.Duration) error {
	return c.o.put(ctx, c.unit, func(ctx context.Context, r Request) ([]byte, error) { return do(ctx, r, timeout) }, func() {})
}
