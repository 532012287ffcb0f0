package server

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"slices"
	"sort"
	"sync"
	"time"

	"holdfast/adapters/modbus"
	"holdfast/adapters/reading"
)

// ErrRefused says that a value is not one that may be written.
var ErrRefused = errors.New("the value was refused")

// Writer has points of devices written.
type Writer interface {
	// Write asks a device for a value, a float64, int64, uint64, bool or string, and
	// returns what it reads as then, nil if that is not known. An error that wraps
	// ErrRefused says that it will never be done. It waits for ctx at most.
	Write(ctx context.Context, device, point string, value any) (read any, err error)
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
		writing.Go(func() {
			var read any
			// Whoever writes and reads at once does not see what was before.
			if read, errs[i] = r.writer.Write(ctx, o.v.Device, o.v.Point, o.value); read != nil {
				r.Put(time.Now(), reading.Reading{Device: o.v.Device, Point: o.v.Point, Value: read})
			}
		})
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
