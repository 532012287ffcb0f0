package modbus

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"holdfast/adapters"
)

// The way of a write:
//
//	PREFIX/DEVICE/POINT/set --> command: seen before? stale? allowed? encoded
//	                               |
//	                        [device queue] --goroutine of the device--> Do: write
//	                                                                    Do: read back
//	PREFIX/DEVICE/POINT/set/result, or the response topic <-- result <-----+
//
// Readings have one level less than set topics and can not be taken for them.

// setSuffix is what the topic of a command has behind that of the reading.
const setSuffix = "/set"

const (
	// maxOrders is how many commands wait for one device.
	maxOrders = 16
	// DefaultWriteMaxAge is how old a command may be when it is sent.
	DefaultWriteMaxAge = 10 * time.Second
)

// parseCommand takes a payload apart: a bare value, or {"value": ..., "id": ...}.
// Text says that a bare value is taken as it stands.
func parseCommand(payload []byte, text bool) (value any, id string, err error) {
	trimmed := bytes.TrimSpace(payload)
	switch {
	case len(trimmed) == 0:
		return nil, "", errors.New("the payload is empty")
	case trimmed[0] != '{' && text:
		return string(payload), "", nil
	case trimmed[0] != '{':
		if err := decodeJSON(trimmed, &value); err == nil && scalar(value) {
			return value, "", nil
		}
		return string(trimmed), "", nil
	}
	var c struct {
		Value any `json:"value"`
		ID    any `json:"id"`
	}
	if err := decodeJSON(trimmed, &c); err != nil {
		return nil, "", errors.New(`the payload is neither a value nor {"value": ..., "id": ...}`)
	}
	switch v := c.ID.(type) {
	case nil:
	case string:
		id = v
	case json.Number:
		id = v.String()
	default:
		return nil, "", errors.New("the id is neither a text nor a number")
	}
	if !scalar(c.Value) {
		return nil, id, errors.New("the value is neither a number nor a text, true nor false")
	}
	return c.Value, id, nil
}

func decodeJSON(b []byte, into any) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is something behind it")
	}
	return nil
}

func scalar(v any) bool {
	switch v.(type) {
	case json.Number, string, bool:
		return true
	default:
		return false
	}
}

// writeOrder is one accepted command.
type writeOrder struct {
	*adapters.Order

	p     *point
	c     change
	value any // as it will read
}

// TakeCommands subscribes to the set topics of the devices. Stop ends what waits
// with a result, and waits for what is on the wire.
func (b *Bus) TakeCommands(commands adapters.Commands) (stop func(), err error) {
	// Do ends what waits when ctx does; the request on the wire has its timeout.
	ctx, cancel := context.WithCancel(context.Background())
	// What the devices have besides they may only tell later, and it can only be
	// read: this is of the configuration, and does not change.
	targets := map[string]*target{}
	filters := make([]string, 0, len(b.devices))
	var writers sync.WaitGroup
	for _, d := range b.devices {
		filters = append(filters, b.opts.Prefix+"/"+d.name+"/+"+setSuffix)
		t, err := newTarget(d)
		if err != nil {
			cancel()
			return nil, err
		}
		targets[d.name] = t
	}
	for _, t := range targets {
		if t.writable() {
			t.queue = make(chan writeOrder, maxOrders) // full: the command fails
			writers.Go(func() { b.writeAll(ctx, t) })
		}
	}
	unsubscribe, err := commands.Subscribe(filters, func(c adapters.Command) { b.command(c, targets) })
	stop = func() {
		if unsubscribe != nil {
			unsubscribe()
		}
		cancel()
		writers.Wait()
	}
	if err != nil {
		stop()
		return nil, err
	}
	return stop, nil
}

// target is a device as commands see it. It does not change.
type target struct {
	device  string
	unit    byte
	timeout time.Duration
	maxAge  time.Duration
	points  map[string]*point // by name
	queue   chan writeOrder   // nil: it has no point that can be written
}

func newTarget(d *device) (*target, error) {
	t := &target{
		device: d.name, unit: d.compiled.unit, timeout: d.unit.timeout, maxAge: d.writeMaxAge, points: map[string]*point{},
	}
	points := d.points
	if f := d.finding; f != nil {
		o := f.options
		o.Discover = nil
		o.Points = slices.DeleteFunc(slices.Clone(f.points), func(p Point) bool { return p.Expression != "" })
		if len(o.Points) == 0 {
			return t, nil
		}
		c, err := compile(&o)
		if err != nil {
			return nil, err
		}
		points = c.points
	}
	for _, p := range points {
		t.points[p.name] = p
	}
	return t, nil
}

func (t *target) writable() bool {
	for _, p := range t.points {
		if p.write != nil {
			return true
		}
	}
	return false
}

// command judges a command as it comes.
func (b *Bus) command(c adapters.Command, targets map[string]*target) {
	if c.Retain && len(c.Payload) == 0 {
		return // somebody clears a retained command: nothing to do
	}
	of, name, _ := strings.Cut(strings.TrimSuffix(strings.TrimPrefix(c.Topic, b.opts.Prefix+"/"), setSuffix), "/")
	t := targets[of]
	if t == nil {
		return // a filter of ours matched it: cannot be
	}
	p := t.points[name]
	value, id, err := parseCommand(c.Payload, p != nil && p.f.typ == "string")
	o := b.receiver.Take(c, of, name, id, t.maxAge)
	switch {
	case o == nil:
		return
	case p == nil:
		o.Refuse("there is no such point")
		return
	case p.write == nil:
		o.Refuse("the point is not writable")
		return
	case err != nil:
		o.Refuse(err.Error())
		return
	}
	w := writeOrder{Order: o, p: p}
	if w.c, w.value, err = p.accept(value); err != nil {
		o.Refuse("the value is " + err.Error())
		return
	}
	select {
	case t.queue <- w:
	default:
		o.Finish(adapters.Result{Outcome: adapters.OutcomeFailed, Reason: "too many commands wait for the device", Value: w.value})
	}
}

// writeAll carries out the commands for one device, one after the other, until ctx
// ends.
func (b *Bus) writeAll(ctx context.Context, t *target) {
	for {
		select {
		case <-ctx.Done():
			for {
				select {
				case o := <-t.queue:
					o.Finish(adapters.Result{Outcome: adapters.OutcomeFailed, Reason: "the gateway stops", Value: o.value})
				default:
					return
				}
			}
		case o := <-t.queue:
			res := b.writeOne(ctx, t, o)
			res.Value = o.value
			o.Finish(res)
		}
	}
}

// writeOne writes a point and sees whether it has the value then.
func (b *Bus) writeOne(ctx context.Context, t *target, o writeOrder) adapters.Result {
	if reason := o.Stale(time.Now(), t.maxAge); reason != "" {
		return adapters.Result{Outcome: adapters.OutcomeFailed, Reason: reason}
	}
	until := o.Received.Add(t.maxAge)
	if o.HasExpiry {
		until = earlier(until, o.Received.Add(o.Expiry))
	}
	inTime, cancel := context.WithDeadline(ctx, until)
	err := b.send(inTime, t, o)
	cancel()
	res := adapters.Result{Outcome: adapters.OutcomeOK}
	refusal, refused := errors.AsType[*ExceptionError](err)
	switch {
	case err == nil:
	case errors.Is(err, errNotWritten):
		return adapters.Result{Outcome: adapters.OutcomeFailed, Reason: "the register could not be read before: " + shortly(err)}
	case refused && refusal.Code == Acknowledge, refused && refusal.Code == GatewayTargetNoAnswer:
		// It may be doing it.
		res = adapters.Result{Outcome: adapters.OutcomeNoAnswer, Reason: reasonOf(err)}
	case refused:
		return adapters.Result{Outcome: adapters.OutcomeFailed, Reason: reasonOf(err)}
	case notSent(err):
		return adapters.Result{Outcome: adapters.OutcomeFailed, Reason: whyNotSent(err)}
	case errors.Is(err, ErrLost):
		return adapters.Result{Outcome: adapters.OutcomeNoAnswer, Reason: ErrLost.Error()}
	default:
		res = adapters.Result{Outcome: adapters.OutcomeNoAnswer, Reason: reasonOf(err)}
	}
	if !o.p.write.verify {
		return res
	}
	return b.verify(ctx, t, o, res)
}

// earlier is the first of two instants.
func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// notSent says that a request has not reached the wire.
func notSent(err error) bool {
	for _, e := range []error{ErrBusy, ErrDown, ErrNotOpen, context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func whyNotSent(err error) string {
	switch {
	case errors.Is(err, context.Canceled):
		return "the gateway stops"
	case errors.Is(err, context.DeadlineExceeded):
		return "it was too old when the bus was free"
	}
	for _, e := range []error{ErrBusy, ErrDown, ErrNotOpen} {
		if errors.Is(err, e) {
			return e.Error()
		}
	}
	return err.Error()
}

// send puts the change on the wire.
func (b *Bus) send(ctx context.Context, t *target, o writeOrder) error {
	return o.put(ctx, t.unit, b.Do, func() {
		b.log.Info("unit knows no mask write, its register is read before it is written", "device", t.device, "point", o.p.name, "unit_id", t.unit)
	})
}

// put makes the requests that write o, by do; noMask is called when the unit
// turns out not to know function 22.
func (o writeOrder) put(ctx context.Context, unit byte, do func(context.Context, Request) ([]byte, error), noMask func()) error {
	p, w := o.p, o.p.write
	r := Request{Unit: unit, Addr: p.reg.Addr, Count: uint16(p.f.n), Function: w.function, Data: o.c.data}
	if p.reg.Table == Coils {
		if r.Function == 0 {
			r.Function = WriteSingleCoil
		}
		if r.Function == WriteSingleCoil {
			r.Data = []byte{0xff * o.c.data[0], 0}
		}
		_, err := do(ctx, r)
		return err
	}
	if o.c.mask != nil {
		if w.function == MaskWriteRegister || w.function == 0 && p.f.n == 1 && !w.noMask {
			r.Function = MaskWriteRegister
			r.Data = maskOf(o.c)
			_, err := do(ctx, r)
			refusal, refused := errors.AsType[*ExceptionError](err)
			if w.function != 0 || !refused || refusal.Code != IllegalFunction {
				return err
			}
			w.noMask = true
			noMask()
		}
		// Between the two somebody else may write the register: function 22
		// is there for that.
		r.Function, r.Data = ReadHoldingRegisters, nil
		old, err := do(ctx, r)
		if err != nil {
			return fmt.Errorf("%w: %w", errNotWritten, err)
		}
		r.Data = make([]byte, len(old))
		for i := range old {
			r.Data[i] = old[i]&^o.c.mask[i] | o.c.data[i]&o.c.mask[i]
		}
		r.Function = w.function
	}
	if r.Function == 0 {
		r.Function = WriteMultipleRegisters
		if p.f.n == 1 {
			r.Function = WriteSingleRegister
		}
	}
	_, err := do(ctx, r)
	return err
}

// errNotWritten: what was to be read before could not be.
var errNotWritten = errors.New("not written")

// maskOf is the AND and the OR mask for a change: result = (old AND and) OR (or
// AND NOT and) (V1.1b3 §6.16).
func maskOf(c change) []byte {
	m := binary.BigEndian.Uint16(c.mask)
	b := binary.BigEndian.AppendUint16(nil, ^m)
	return binary.BigEndian.AppendUint16(b, binary.BigEndian.Uint16(c.data)&m)
}

// verify reads the point back: res is what is known without.
func (b *Bus) verify(ctx context.Context, t *target, o writeOrder, res adapters.Result) adapters.Result {
	p := o.p
	// Polls have their share of the bus, and a unit its quarantine.
	ctx, cancel := context.WithTimeout(ctx, (2+2*quarantine)*t.timeout+10*time.Second)
	defer cancel()
	r := Request{Unit: t.unit, Function: p.reg.Table.Read(), Addr: p.reg.Addr, Count: uint16(p.f.n)}
	data, err := b.Do(ctx, r)
	if errors.Is(err, ErrGarbled) || errors.Is(err, ErrNoAnswer) {
		data, err = b.Do(ctx, r)
	}
	b.refresh(written{t.device, p.name})
	if err != nil {
		if res.Outcome == adapters.OutcomeOK {
			res = adapters.Result{Outcome: adapters.OutcomeNoAnswer, Reason: "written, but not read back: " + shortly(err)}
		}
		return res
	}
	res.Read = p.value(data)
	switch same := o.isIn(data); {
	case same && res.Outcome != adapters.OutcomeOK:
		return adapters.Result{Outcome: adapters.OutcomeOK, Read: res.Read, Reason: res.Reason + ", but the value is there"}
	case !same && res.Outcome == adapters.OutcomeOK:
		res.Outcome, res.Reason = adapters.OutcomeMismatch, "the device has another value"
	}
	return res
}

func shortly(err error) string {
	if errors.Is(err, context.DeadlineExceeded) {
		return "the bus had no time for it"
	}
	if notSent(err) {
		return whyNotSent(err)
	}
	return reasonOf(err)
}

// isIn says whether data, as read, holds what was written, as exactly as the
// encoding can tell.
func (o writeOrder) isIn(data []byte) bool {
	if o.p.reg.Table.Bits() {
		return data[0]&1 == o.c.data[0]&1
	}
	for i := range data {
		mask := byte(0xff)
		if o.c.mask != nil {
			mask = o.c.mask[i]
		}
		if (data[i]^o.c.data[i])&mask != 0 {
			// Some devices calculate in floats of their own.
			got, ok := o.p.value(data).(float64)
			want, isFloat := o.value.(float64)
			return ok && isFloat && strings.HasPrefix(o.p.f.typ, "float") && math.Abs(got-want) <= 1e-6*math.Abs(want)
		}
	}
	return true
}
