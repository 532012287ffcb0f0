package server

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"sort"
	"sync"
	"time"

	"holdfast/adapters/modbus"
	"holdfast/adapters/reading"
)

// RegistersOptions say which values stand in which registers.
type RegistersOptions struct {
	Options
	// Units are the unit ids that are answered, 0 to 255; others have exception
	// 11. Empty means all.
	Units []int `toml:"units"`
	// MaxAge is how old a value may be, from when the gateway took it: 0 for ever,
	// else 1s to 24h. An older one is bad.
	MaxAge time.Duration `toml:"max_age"`
	// WhenBad is what is read where no good or uncertain value is: "invalid", the
	// pattern that stands for none; "hold", the last value that was one; or
	// "exception", 4 for the whole request.
	WhenBad string `toml:"when_bad"`
	// FillGaps has addresses without a value read as 0xFFFF, and 0 for bits, where
	// a request reads values too; else it has exception 2.
	FillGaps bool `toml:"fill_gaps"`
	// WriteTimeout is how long a master waits for what becomes of its write, 100ms
	// to 1m: then it has exception 4, and a command that is still on its way
	// expires.
	WriteTimeout time.Duration `toml:"write_timeout"`
	// Confirm has a write answered when the device has done it. Without, it is
	// answered once the command is published: for devices that are MQTT clients
	// and give no result.
	Confirm bool `toml:"confirm"`
	// Registers are the values.
	Registers []Register `toml:"register"`
}

// What RegistersOptions.WhenBad can be.
const (
	Invalid   = "invalid"
	Hold      = "hold"
	ByFailing = "exception"
)

// Register is one value in its place.
type Register struct {
	// Device and Point name the value, as in the topic of its readings.
	Device string `toml:"device"`
	Point  string `toml:"point"`
	// Register is where it begins: see [modbus.ParseRegister].
	Register string `toml:"register"`
	// Type, Length, Order, Scale, Offset and Enum are as for a point that is
	// read: the value is raw*scale+offset. Types that fill no register, and
	// single bits of one, are not served.
	Type   string            `toml:"type"`
	Length int               `toml:"length"`
	Order  string            `toml:"order"`
	Scale  float64           `toml:"scale"`
	Offset float64           `toml:"offset"`
	Enum   map[string]string `toml:"enum"`
	// Invalid is the pattern that stands for no value: nil means NaN for floats,
	// the least number for signed integers, all ones for the others, NULs for
	// texts. A bit has none unless it is said to be 0 or 1: it is an exception
	// then.
	Invalid *int64 `toml:"invalid"`
	// WhenBad and MaxAge are those of the server if they are empty or 0.
	WhenBad string        `toml:"when_bad"`
	MaxAge  time.Duration `toml:"max_age"`
	// Quality is the register for how it is with the value: 0 good, 1 uncertain,
	// 2 bad or too old, 3 there was none yet. Age is that for the seconds since
	// the last one, 65534 for more, 65535 for none yet. Empty means nowhere.
	Quality string `toml:"quality"`
	Age     string `toml:"age"`
	// Write lets masters write it, if the device lets the point be written.
	Write bool `toml:"write"`
}

// DefaultRegistersOptions serve nothing yet.
func DefaultRegistersOptions() RegistersOptions {
	return RegistersOptions{Options: defaultOptions(), MaxAge: 10 * time.Minute, WhenBad: Invalid, WriteTimeout: 5 * time.Second, Confirm: true}
}

// Validate reports the first value out of range, naming its key.
func (o RegistersOptions) Validate() error {
	_, err := layOut(o)
	return err
}

// The qualities as registers tell them.
const (
	good = iota
	uncertain
	bad
	never
)

const (
	noAge = math.MaxUint16
	// noGap is read where there is no value.
	noGap = 0xff
)

// value is one value and where it stands.
type value struct {
	Register
	codec   *modbus.Codec
	absent  []byte // nil: there is nothing that says so
	whenBad string
	maxAge  time.Duration

	data    []byte          // the last value, as on the wire; nil: none yet. Guarded by Registers.mu
	at      time.Time       // when it came; guarded by Registers.mu
	quality reading.Quality // of the last reading; guarded by Registers.mu
	away    bool            // the device is; guarded by Registers.mu
}

// What a cell holds of a value.
const (
	valueItself = iota
	valueQuality
	valueAge
)

// cell is a run of addresses.
type cell struct {
	first, n int
	what     int
	v        *value
}

// layout is what is where.
type layout struct {
	tables [4][]cell // by modbus.Table, in the order of addresses
	points map[point][]*value
	units  [256]bool
}

type point struct{ device, point string }

func layOut(o RegistersOptions) (*layout, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	switch {
	case o.MaxAge != 0 && (o.MaxAge < time.Second || o.MaxAge > 24*time.Hour):
		return nil, fmt.Errorf("max_age: %v is neither 0s nor within 1s..24h", o.MaxAge)
	case !slices.Contains([]string{Invalid, Hold, ByFailing}, o.WhenBad):
		return nil, fmt.Errorf(`when_bad: %q is none of "invalid", "hold", "exception"`, o.WhenBad)
	case o.WriteTimeout < 100*time.Millisecond || o.WriteTimeout > time.Minute:
		return nil, fmt.Errorf("write_timeout: %v is outside 100ms..1m", o.WriteTimeout)
	}
	l := &layout{points: map[point][]*value{}}
	for i, u := range o.Units {
		if u < 0 || u > 255 {
			return nil, fmt.Errorf("units[%d]: %d is outside 0..255", i, u)
		}
		l.units[u] = true
	}
	if len(o.Units) == 0 {
		for u := range l.units {
			l.units[u] = true
		}
	}
	for i, r := range o.Registers {
		if err := l.add(o, r); err != nil {
			return nil, fmt.Errorf("register[%d].%w", i, err)
		}
	}
	for t := range l.tables {
		slices.SortFunc(l.tables[t], func(a, b cell) int { return cmp.Compare(a.first, b.first) })
	}
	return l, nil
}

func (l *layout) add(o RegistersOptions, r Register) error {
	for _, name := range []struct{ key, value string }{{"device", r.Device}, {"point", r.Point}} {
		if err := reading.ValidName(name.value); err != nil {
			return fmt.Errorf("%s: the name %w", name.key, err)
		}
	}
	p := modbus.Point{Register: r.Register, Type: r.Type, Length: r.Length, Order: r.Order, Scale: r.Scale, Offset: r.Offset, Enum: r.Enum}
	at, err := modbus.ParseRegister(r.Register)
	if err == nil && !at.Table.Bits() && r.Invalid != nil {
		p.Invalid = []int64{*r.Invalid}
	}
	codec, err := modbus.NewCodec(p)
	if err != nil {
		return err
	}
	v := &value{Register: r, codec: codec, absent: codec.Absent(), whenBad: cmp.Or(r.WhenBad, o.WhenBad), maxAge: cmp.Or(r.MaxAge, o.MaxAge)}
	switch {
	case at.Table.Bits() && r.Invalid != nil && *r.Invalid != 0 && *r.Invalid != 1:
		return fmt.Errorf("invalid: %d is neither 0 nor 1", *r.Invalid)
	case at.Table.Bits() && r.Invalid != nil:
		v.absent = []byte{byte(*r.Invalid)}
	}
	switch {
	case !slices.Contains([]string{Invalid, Hold, ByFailing}, v.whenBad):
		return fmt.Errorf(`when_bad: %q is none of "invalid", "hold", "exception"`, r.WhenBad)
	case r.MaxAge != 0 && (r.MaxAge < time.Second || r.MaxAge > 24*time.Hour):
		return fmt.Errorf("max_age: %v is neither 0s nor within 1s..24h", r.MaxAge)
	case r.Write && at.Table != modbus.Coils && at.Table != modbus.HoldingRegisters:
		return fmt.Errorf("write: %v can only be read", at)
	}
	if err := l.place("register", at, codec.Len(), valueItself, v); err != nil {
		return err
	}
	for _, extra := range []struct {
		key, at string
		what    int
	}{{"quality", r.Quality, valueQuality}, {"age", r.Age, valueAge}} {
		if extra.at == "" {
			continue
		}
		at, err := modbus.ParseRegister(extra.at)
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w", extra.key, err)
		case at.Table.Bits() || at.Bit >= 0:
			return fmt.Errorf("%s: %v is no whole register", extra.key, at)
		}
		if err := l.place(extra.key, at, 1, extra.what, v); err != nil {
			return err
		}
	}
	key := point{r.Device, r.Point}
	l.points[key] = append(l.points[key], v)
	return nil
}

func (l *layout) place(key string, at modbus.Register, n, what int, v *value) error {
	c := cell{first: int(at.Addr), n: n, what: what, v: v}
	for _, o := range l.tables[at.Table] {
		if o.first < c.first+c.n && c.first < o.first+o.n {
			return fmt.Errorf("%s: %v is taken by point %s of device %s", key, at, o.v.Point, o.v.Device)
		}
	}
	l.tables[at.Table] = append(l.tables[at.Table], c)
	return nil
}

// ErrRefused says that a value is not one that may be written.
var ErrRefused = errors.New("the value was refused")

// Writer has points of devices written.
type Writer interface {
	// Write asks a device for a value, a float64, int64, uint64, bool or string.
	// Nil says that it was done. An error that wraps ErrRefused says that it will
	// never be. It waits for ctx at most.
	Write(ctx context.Context, device, point string, value any) error
}

// Identity is what a server says of itself.
type Identity struct {
	// Version and Name of the gateway, of which as much is told as there is room.
	Version, Name string
}

// Registers are the last values as registers. What is read at once is of one moment.
type Registers struct {
	*layout
	opts   RegistersOptions
	ident  []modbus.Object
	writer Writer
	log    *slog.Logger

	mu   sync.RWMutex
	n    RegistersStatus // guarded by mu; the counters
	told time.Time       // guarded by mu; when a value that does not fit was logged
}

// NewRegisters returns the registers; writer may be nil if none can be written.
func NewRegisters(name string, o RegistersOptions, id Identity, writer Writer, log *slog.Logger) (*Registers, error) {
	l, err := layOut(o)
	if err != nil {
		return nil, err
	}
	const room = 60
	short := func(s string) []byte { return []byte(s[:min(len(s), room)]) }
	return &Registers{
		layout: l, opts: o, writer: writer, log: log.With("component", "modbus", "server", name),
		ident: []modbus.Object{
			{ID: 0, Value: []byte("Holdfast")}, {ID: 1, Value: []byte("holdfast")}, {ID: 2, Value: short(id.Version)}, {ID: 6, Value: short(id.Name)},
		},
	}, nil
}

// Put takes readings of configured points, and lets go of others. Received is when
// the gateway took them.
func (r *Registers) Put(received time.Time, rs ...reading.Reading) {
	for _, m := range rs {
		for _, v := range r.points[point{m.Device, m.Point}] {
			r.put(v, received, &m)
		}
	}
}

func (r *Registers) put(v *value, received time.Time, m *reading.Reading) {
	quality := m.Quality
	var data []byte
	var err error
	if m.Value == nil {
		quality = reading.Bad
	}
	if quality != reading.Bad {
		if data, err = v.codec.Encode(m.Value); err != nil {
			quality = reading.Bad
		}
	}
	r.mu.Lock()
	r.n.Updates++
	v.quality = quality
	if quality != reading.Bad {
		v.data, v.at = data, received
	}
	now := time.Now()
	tell := err != nil && now.Sub(r.told) >= complain
	if err != nil {
		r.n.Unfit++
	}
	if tell {
		r.told = now
	}
	unfit := r.n.Unfit
	r.mu.Unlock()
	if tell {
		r.log.Warn("value does not fit its register, and is bad there", "device", m.Device, "point", m.Point, "err", err, "count", unfit)
	}
}

// SetDevice says whether a device is there; the values of one that is not are bad.
func (r *Registers) SetDevice(name string, here bool) {
	r.each(name, func(v *value) { v.away = !here })
}

// RemoveDevice makes the values of a device bad until others come: from somebody
// else, of whom nothing more is known.
func (r *Registers) RemoveDevice(name string) {
	r.each(name, func(v *value) { v.away, v.quality = false, reading.Bad })
}

func (r *Registers) each(device string, change func(*value)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, vs := range r.points {
		if key.device == device {
			for _, v := range vs {
				change(v)
			}
		}
	}
}

// state is the quality at now. It is called with mu held.
func (v *value) state(now time.Time) int {
	switch {
	case v.data == nil:
		return never
	case v.quality == reading.Bad || v.away || v.maxAge > 0 && now.Sub(v.at) > v.maxAge:
		return bad
	case v.quality == reading.Uncertain:
		return uncertain
	default:
		return good
	}
}

// content is what is read of the value at now; nil for an exception. It is called
// with mu held.
func (v *value) content(now time.Time) []byte {
	switch state := v.state(now); {
	case state <= uncertain, state == bad && v.whenBad == Hold:
		return v.data
	case v.whenBad == ByFailing:
		return nil
	default:
		return v.absent
	}
}

// Handle is part of Handler.
func (r *Registers) Handle(ctx context.Context, unit byte, pdu, answer []byte) []byte {
	if !r.units[unit] {
		return refuse(answer, pdu[0], modbus.GatewayTargetNoAnswer)
	}
	q, e := parse(unit, pdu)
	if e != 0 {
		return refuse(answer, pdu[0], e)
	}
	data, e := r.do(ctx, &q)
	if e != 0 {
		return refuse(answer, pdu[0], e)
	}
	out, err := q.AppendAnswer(answer, data)
	if err != nil {
		return refuse(answer, pdu[0], modbus.ServerDeviceFailure) // cannot be
	}
	return out
}

func (r *Registers) do(ctx context.Context, q *modbus.Request) ([]byte, modbus.Exception) {
	switch q.Function {
	case modbus.ReadCoils:
		return r.readBits(modbus.Coils, q)
	case modbus.ReadDiscreteInputs:
		return r.readBits(modbus.DiscreteInputs, q)
	case modbus.ReadHoldingRegisters:
		return r.read(modbus.HoldingRegisters, q)
	case modbus.ReadInputRegisters:
		return r.read(modbus.InputRegisters, q)
	case modbus.WriteSingleCoil:
		return nil, r.write(ctx, modbus.Coils, int(q.Addr), []byte{q.Data[0] & 1})
	case modbus.WriteMultipleCoils:
		each := make([]byte, q.Count)
		for i := range each {
			each[i] = q.Data[i/8] >> (i % 8) & 1
		}
		return nil, r.write(ctx, modbus.Coils, int(q.Addr), each)
	case modbus.WriteSingleRegister, modbus.WriteMultipleRegisters:
		return nil, r.write(ctx, modbus.HoldingRegisters, int(q.Addr), q.Data)
	case modbus.MaskWriteRegister:
		return nil, r.writeMasked(ctx, q)
	case modbus.ReadWriteRegisters: // the write comes first (V1.1b3 §6.17)
		if e := r.write(ctx, modbus.HoldingRegisters, int(q.WriteAddr), q.Data); e != 0 {
			return nil, e
		}
		return r.read(modbus.HoldingRegisters, q)
	case modbus.ReadDeviceID:
		return r.identify(q.Data[1], q.Data[2])
	default:
		return nil, modbus.IllegalFunction
	}
}

// from finds the first cell of a table that ends behind addr.
func (l *layout) from(t modbus.Table, addr int) []cell {
	cells := l.tables[t]
	return cells[sort.Search(len(cells), func(i int) bool { return cells[i].first+cells[i].n > addr }):]
}

// read returns what is at the addresses. A value is read as a whole or not at all:
// its halves, from two requests, would be of two moments.
func (r *Registers) read(t modbus.Table, q *modbus.Request) ([]byte, modbus.Exception) {
	width := 2
	if t.Bits() {
		width = 1
	}
	addr, end := int(q.Addr), int(q.Addr)+int(q.Count)
	out := make([]byte, 0, width*int(q.Count))
	cells := r.from(t, addr)
	if len(cells) == 0 || cells[0].first >= end {
		return nil, modbus.IllegalDataAddress
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	now := time.Now()
	for addr < end {
		if len(cells) == 0 || cells[0].first > addr {
			if !r.opts.FillGaps {
				return nil, modbus.IllegalDataAddress
			}
			if addr++; width == 1 {
				out = append(out, 0)
			} else {
				out = append(out, noGap, noGap)
			}
			continue
		}
		c := cells[0]
		if c.first != addr || addr+c.n > end {
			return nil, modbus.IllegalDataAddress
		}
		switch c.what {
		case valueItself:
			data := c.v.content(now)
			if data == nil {
				return nil, modbus.ServerDeviceFailure
			}
			out = append(out, data...)
		case valueQuality:
			out = binary.BigEndian.AppendUint16(out, uint16(c.v.state(now)))
		case valueAge:
			age := uint16(noAge)
			if c.v.data != nil {
				age = uint16(min(max(now.Sub(c.v.at)/time.Second, 0), noAge-1))
			}
			out = binary.BigEndian.AppendUint16(out, age)
		}
		addr, cells = addr+c.n, cells[1:]
	}
	return out, 0
}

func (r *Registers) readBits(t modbus.Table, q *modbus.Request) ([]byte, modbus.Exception) {
	each, e := r.read(t, q)
	packed := make([]byte, (len(each)+7)/8)
	for i, b := range each {
		packed[i/8] |= b << (i % 8)
	}
	return packed, e
}

// write has the values at the addresses written, all at the same time. Nothing is
// written when one of them cannot be; what a device makes of it is known only then,
// and the others may be written when one fails.
func (r *Registers) write(ctx context.Context, t modbus.Table, addr int, data []byte) modbus.Exception {
	width := 2
	if t.Bits() {
		width = 1
	}
	type order struct {
		v     *value
		value any
	}
	var orders []order
	for cells := r.from(t, addr); len(data) > 0; cells = cells[1:] {
		if len(cells) == 0 || cells[0].first != addr {
			return modbus.IllegalDataAddress
		}
		c := cells[0]
		n := width * c.n
		if n > len(data) || c.what != valueItself || !c.v.Write || r.writer == nil {
			return modbus.IllegalDataAddress
		}
		x := c.v.codec.Decode(data[:n])
		if x == nil {
			return modbus.IllegalDataValue
		}
		orders = append(orders, order{c.v, x})
		addr, data = addr+c.n, data[n:]
	}
	ctx, cancel := context.WithTimeout(ctx, r.opts.WriteTimeout)
	defer cancel()
	errs := make([]error, len(orders))
	var writing sync.WaitGroup
	for i, o := range orders {
		writing.Go(func() { errs[i] = r.writer.Write(ctx, o.v.Device, o.v.Point, o.value) })
	}
	writing.Wait()
	err := errors.Join(errs...)
	r.mu.Lock()
	r.n.Writes += uint64(len(orders))
	for _, e := range errs {
		if e != nil {
			r.n.WritesFailed++
		}
	}
	r.mu.Unlock()
	switch {
	case err == nil:
		return 0
	case errors.Is(err, ErrRefused):
		return modbus.IllegalDataValue
	default:
		return modbus.ServerDeviceFailure
	}
}

// writeMasked changes bits of a register that is a value (V1.1b3 §6.16).
func (r *Registers) writeMasked(ctx context.Context, q *modbus.Request) modbus.Exception {
	cells := r.from(modbus.HoldingRegisters, int(q.Addr))
	if len(cells) == 0 || cells[0].first != int(q.Addr) || cells[0].n != 1 || cells[0].what != valueItself {
		return modbus.IllegalDataAddress
	}
	v := cells[0].v
	r.mu.RLock()
	state, data := v.state(time.Now()), v.data
	r.mu.RUnlock()
	if state > uncertain {
		return modbus.ServerDeviceFailure // bits of what?
	}
	and, or := binary.BigEndian.Uint16(q.Data), binary.BigEndian.Uint16(q.Data[2:])
	x := binary.BigEndian.Uint16(data)&and | or&^and
	return r.write(ctx, modbus.HoldingRegisters, int(q.Addr), binary.BigEndian.AppendUint16(nil, x))
}

// identify answers what the server is (V1.1b3 §6.21).
func (r *Registers) identify(code, object byte) ([]byte, modbus.Exception) {
	const conformity = 0x82 // regular, also one by one
	out := []byte{code, conformity, 0, 0, 0}
	last := byte(2)
	if code != modbus.IdentifyBasic {
		last = 6
	}
	has := func(id byte) bool {
		return slices.ContainsFunc(r.ident, func(o modbus.Object) bool { return o.ID == id })
	}
	switch {
	case code == modbus.IdentifyOne && !has(object):
		return nil, modbus.IllegalDataAddress
	case code == modbus.IdentifyOne:
		last = object
	case !has(object) || object > last:
		object = 0 // it begins anew (V1.1b3 §6.21)
	}
	for _, o := range r.ident {
		if o.ID >= object && o.ID <= last {
			out = append(append(out, o.ID, byte(len(o.Value))), o.Value...)
			out[4]++
		}
	}
	return out, 0
}

// RegistersStatus says how it is with the values, by their qualities, and what
// became of readings and writes.
type RegistersStatus struct {
	Good      int `json:"good"`
	Uncertain int `json:"uncertain"`
	Bad       int `json:"bad"`
	Never     int `json:"never"`
	// Updates are what readings brought, for each value that is served of them;
	// Unfit of these do not fit their registers.
	Updates uint64 `json:"updates"`
	Unfit   uint64 `json:"unfit"`
	// Writes are the values that masters wanted written.
	Writes       uint64 `json:"writes"`
	WritesFailed uint64 `json:"writes_failed"`
}

// Status returns a snapshot.
func (r *Registers) Status() RegistersStatus {
	r.mu.RLock()
	defer r.mu.RUnlock()
	st, now := r.n, time.Now()
	for _, vs := range r.points {
		for _, v := range vs {
			switch v.state(now) {
			case good:
				st.Good++
			case uncertain:
				st.Uncertain++
			case bad:
				st.Bad++
			default:
				st.Never++
			}
		}
	}
	return st
}
