package modbus

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"holdfast/adapters"
)

// How a write is verified.
const (
	VerifyReadBack = "read_back"
	VerifyNone     = "none"
)

// writing is what makes a point one that can be written.
type writing struct {
	min, max *float64
	step     float64
	allowed  []string // nil: all
	function Function // 0: whatever fits
	verify   bool
	// noMask: the unit does not know function 22. Of the device's goroutine.
	noMask bool
}

// compileWrite returns errors that start with the key within the point.
func compileWrite(o *Point, p *point) error {
	if !o.Write {
		for key, set := range map[string]bool{
			"min": o.Min != nil, "max": o.Max != nil, "step": o.Step != 0, "allowed": o.Allowed != nil,
			"write_function": o.WriteFunction != 0, "verify": o.Verify != "",
		} {
			if set {
				return fmt.Errorf("%s: only a point with write = true has it", key)
			}
		}
		return nil
	}
	w := &writing{min: o.Min, max: o.Max, step: o.Step, function: Function(o.WriteFunction), verify: o.Verify != VerifyNone}
	f := &p.f
	switch {
	case p.reg.Table != Coils && p.reg.Table != HoldingRegisters:
		return fmt.Errorf("write: %v can only be read", p.reg)
	case f.power != nil:
		return errors.New("write: a point with scale_register can only be read")
	case o.Verify != "" && o.Verify != VerifyReadBack && o.Verify != VerifyNone:
		return fmt.Errorf("verify: %q is neither read_back nor none", o.Verify)
	case !p.numeric() && (o.Min != nil || o.Max != nil || o.Step != 0):
		return fmt.Errorf("min: only a number without names has min, max and step, not this %s", f.typ)
	case o.Min != nil && !isFinite(*o.Min): // NaN bounds nothing
		return fmt.Errorf("min: %v is not a number", *o.Min)
	case o.Max != nil && !isFinite(*o.Max):
		return fmt.Errorf("max: %v is not a number", *o.Max)
	case o.Min != nil && o.Max != nil && *o.Min > *o.Max:
		return fmt.Errorf("min: %v is above max, %v", *o.Min, *o.Max)
	case o.Step < 0 || !isFinite(o.Step):
		return fmt.Errorf("step: %v is not a positive number", o.Step)
	case f.n > MaxWriteRegisters:
		return fmt.Errorf("length: %d is more than the %d registers that can be written at once", f.n, MaxWriteRegisters)
	}
	if fits := w.functions(p); w.function != 0 && !slices.Contains(fits, w.function) {
		return fmt.Errorf("write_function: %d does not write %v as %s, want one of %d", o.WriteFunction, p.reg, f.typ, fits)
	}
	for i, a := range o.Allowed {
		if _, err := p.change(w, a); err != nil {
			return fmt.Errorf("allowed[%d]: %q is %w", i, a, err)
		}
		w.allowed = append(w.allowed, a)
	}
	p.write = w
	return nil
}

func isFinite(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }

// functions are those that can write the point.
func (w *writing) functions(p *point) []Function {
	switch {
	case p.reg.Table == Coils:
		return []Function{WriteSingleCoil, WriteMultipleCoils}
	case p.masked() && p.f.n == 1:
		return []Function{WriteSingleRegister, WriteMultipleRegisters, MaskWriteRegister}
	case p.f.n == 1:
		return []Function{WriteSingleRegister, WriteMultipleRegisters}
	default:
		return []Function{WriteMultipleRegisters}
	}
}

// masked says that the point is a part of its register.
func (p *point) masked() bool {
	return p.reg.Bit != noBit || p.f.bits.n > 0 || p.f.typ == "int8" || p.f.typ == "uint8"
}

// change is what a value means on the wire.
func (p *point) change(w *writing, value any) (change, error) {
	value = p.f.unnamed(value)
	if p.reg.Table == Coils {
		on, err := asBool(value)
		if on {
			return change{data: []byte{1}}, err
		}
		return change{data: []byte{0}}, err
	}
	if p.f.number() {
		text, err := asNumber(value)
		if err != nil {
			return change{}, err
		}
		if err := w.within(text); err != nil {
			return change{}, err
		}
	}
	return p.f.encode(value)
}

// within applies min, max and step.
func (w *writing) within(text string) error {
	v, err := finite(text)
	switch {
	case err != nil:
		return err
	case w.min != nil && v < *w.min:
		return fmt.Errorf("below min, %v", *w.min)
	case w.max != nil && v > *w.max:
		return fmt.Errorf("above max, %v", *w.max)
	case w.step > 0:
		from := 0.0
		if w.min != nil {
			from = *w.min
		}
		x := (v - from) / w.step
		if math.Abs(x-math.Round(x)) > nearWhole*max(1, math.Abs(x)) {
			return fmt.Errorf("not in steps of %v", w.step)
		}
	}
	return nil
}

// bounds are those of the numbers that can be written: what was configured, within
// what the type holds. step is 0 for a float without one or decimals.
func (p *point) bounds() (low, high, step float64) {
	f, w := &p.f, p.write
	low, high = -adapters.Unbounded, adapters.Unbounded
	if f.decimals >= 0 {
		step = math.Pow10(-f.decimals)
	}
	if f.typ == "float16" {
		low, high = max(low, -65504*math.Abs(f.scale)), min(high, 65504*math.Abs(f.scale))
	}
	if !strings.HasPrefix(f.typ, "float") {
		bits, signed := f.width(), strings.HasPrefix(f.typ, "int")
		if f.bits.n > 0 {
			bits, signed = f.bits.n, false
		}
		low, high = 0, math.Ldexp(1, bits)-1
		switch {
		case signed:
			low, high = -math.Ldexp(1, bits-1), math.Ldexp(1, bits-1)-1
		case strings.HasPrefix(f.typ, "bcd"):
			high = math.Pow10(bits/4) - 1
		}
		low, high = tidy(low*f.scale+f.offset), tidy(high*f.scale+f.offset)
		low, high = min(low, high), max(low, high) // the scale may be negative
		step = math.Abs(f.scale)
	}
	from := 0.0 // where the steps begin
	switch {
	case w.min != nil:
		from, low = *w.min, *w.min
	case w.step > 0:
		low = tidy(math.Ceil(low/w.step) * w.step)
	}
	switch {
	case w.max != nil:
		high = *w.max
	case w.step > 0:
		high = tidy(from + math.Floor((high-from)/w.step)*w.step)
	}
	return low, high, cmp.Or(w.step, step)
}

// accept judges a value: what to write, and the value as it will read.
func (p *point) accept(value any) (c change, reads any, err error) {
	w := p.write
	c, err = p.change(w, value)
	if err != nil {
		return c, nil, err
	}
	if len(w.allowed) > 0 && !slices.ContainsFunc(w.allowed, func(a string) bool {
		allowed, err := p.change(w, a)
		return err == nil && bytes.Equal(allowed.data, c.data)
	}) {
		return c, nil, errors.New("not one of the allowed values")
	}
	return c, p.value(c.data), nil
}

// value is what the wire bytes of a point read as, nil for nothing.
func (p *point) value(data []byte) any {
	v, _ := p.decode(Request{Addr: p.reg.Addr}, data)
	return v
}
