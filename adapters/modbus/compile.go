package modbus

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"holdfast/adapters"
	"holdfast/adapters/reading"
)

// compiled is a device in the form the bus works with.
type compiled struct {
	name        string
	unit        byte
	every       time.Duration
	timeout     time.Duration
	pause       time.Duration
	retries     int
	maxGap      int
	maxRegs     int
	maxBits     int
	holes       []span
	writeMaxAge time.Duration
	qos         byte
	points      []*point
	finding     *finding // see Device.Discover
	// computed from points and one another, each behind its inputs
	computed []*point
}

// fastest is the shortest interval of a point.
func (c *compiled) fastest() time.Duration {
	return slices.MinFunc(c.points, func(a, b *point) int { return cmp.Compare(a.every, b.every) }).every
}

// point is a Point in the form the bus works with.
type point struct {
	name   string
	unit   string
	device string // class
	state  string // class
	every  time.Duration
	reg    Register
	f      format
	// report is the bus goroutine's.
	report reading.Reporter
	ask    bool     // no value but a question: see finding
	write  *writing // nil: it is only read
	// bad: the last reading said that the point cannot be read. It is said
	// once, not in every cycle.
	bad bool
	computed
}

// numeric says whether the values are numbers.
func (p *point) numeric() bool { return p.f.number() && p.f.names == nil }

// end is the address behind the point.
func (p *point) end() int { return int(p.reg.Addr) + p.f.n }

// describe tells what the point measures, and what it can be given.
func (p *point) describe() adapters.Point {
	a := adapters.Describe(adapters.Point{Name: p.name, Unit: p.unit, DeviceClass: p.device, StateClass: p.state}, p.numeric())
	a.Kind = map[kind]adapters.Kind{aNumber: adapters.Number, aBool: adapters.Bool, aText: adapters.Text}[p.kind()]
	for _, v := range slices.Sorted(maps.Keys(p.f.names)) {
		if name := p.f.names[v]; !slices.Contains(a.Options, name) {
			a.Options = append(a.Options, name)
		}
	}
	if p.write == nil {
		return a
	}
	a.Write = &adapters.Write{Object: true}
	switch a.Kind {
	case adapters.Number:
		a.Write.Min, a.Write.Max, a.Write.Step = p.bounds()
	case adapters.Text:
		a.Write.Length = 2 * p.f.n
	case adapters.Bool:
	}
	if len(p.write.allowed) > 0 && a.Kind != adapters.Bool {
		a.Options = nil
		for _, allowed := range p.write.allowed {
			if _, reads, err := p.accept(allowed); err == nil {
				a.Options = append(a.Options, fmt.Sprint(reads))
			}
		}
	}
	return a
}

func compile(d *Device) (*compiled, error) {
	at := func(key string) string { return "device." + d.Name + "." + key }
	if err := reading.ValidName(d.Name); err != nil {
		return nil, fmt.Errorf("device: the name %w", err)
	}
	c := &compiled{
		name: d.Name, unit: byte(d.Unit), every: d.Every, timeout: cmp.Or(d.Timeout, DefaultTimeout), pause: d.Pause,
		retries: orDefault(d.Retries, DefaultRetries), maxGap: orDefault(d.MaxGap, DefaultMaxGap),
		maxRegs: cmp.Or(d.MaxRegisters, MaxReadRegisters), maxBits: cmp.Or(d.MaxBits, MaxReadBits),
		qos: byte(orDefault(d.QoS, DefaultQoS)), writeMaxAge: cmp.Or(d.WriteMaxAge, DefaultWriteMaxAge),
	}
	switch {
	case d.Net && (d.Unit < 1 || d.Unit > 255):
		return nil, fmt.Errorf("%s: %d is outside 1..255", at("unit"), d.Unit)
	case !d.Net && (d.Unit < 1 || d.Unit > 247):
		return nil, fmt.Errorf("%s: %d is outside 1..247", at("unit"), d.Unit)
	case d.Every < minEvery || d.Every > maxEvery:
		return nil, fmt.Errorf("%s: %v is outside 10ms..24h", at("every"), d.Every)
	case c.timeout < 10*time.Millisecond || c.timeout > time.Minute:
		return nil, fmt.Errorf("%s: %v is outside 10ms..1m", at("timeout"), d.Timeout)
	case d.Pause < 0 || d.Pause > 10*time.Second:
		return nil, fmt.Errorf("%s: %v is outside 0s..10s", at("pause"), d.Pause)
	case c.retries < 0 || c.retries > 10:
		return nil, fmt.Errorf("%s: %d is outside 0..10", at("retries"), c.retries)
	case c.maxGap < 0 || c.maxGap >= MaxReadRegisters:
		return nil, fmt.Errorf("%s: %d is outside 0..124", at("max_gap"), c.maxGap)
	case c.maxRegs < 4 || c.maxRegs > MaxReadRegisters:
		return nil, fmt.Errorf("%s: %d is outside 4..125", at("max_registers"), c.maxRegs)
	case c.maxBits < 1 || c.maxBits > MaxReadBits:
		return nil, fmt.Errorf("%s: %d is outside 1..2000", at("max_bits"), c.maxBits)
	case d.QoS != nil && (*d.QoS < 0 || *d.QoS > 2):
		return nil, fmt.Errorf("%s: %d is outside 0..2", at("qos"), *d.QoS)
	case c.writeMaxAge < 100*time.Millisecond || c.writeMaxAge > time.Hour:
		return nil, fmt.Errorf("%s: %v is outside 100ms..1h", at("write_max_age"), d.WriteMaxAge)
	}
	for i, h := range d.Holes {
		sp, err := parseSpan(h)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", at(fmt.Sprintf("holes[%d]", i)), err)
		}
		c.holes = append(c.holes, sp)
	}
	var common order
	if d.Order != "" {
		o, width, ok := parseOrder(d.Order)
		if !ok || width != 2 {
			return nil, fmt.Errorf("%s: %q is none of ABCD, DCBA, BADC, CDAB", at("order"), d.Order)
		}
		common = o
	}
	names := map[string]bool{}
	for i := range d.Points {
		if names[d.Points[i].Name] {
			return nil, fmt.Errorf("%s: %q is taken by another point", at(fmt.Sprintf("point[%d].name", i)), d.Points[i].Name)
		}
		names[d.Points[i].Name] = true
		if d.Points[i].Expression != "" {
			continue
		}
		p, err := compilePoint(&d.Points[i], common, c)
		if err != nil {
			return nil, fmt.Errorf("%s.%w", at(fmt.Sprintf("point[%d]", i)), err)
		}
		c.points = append(c.points, p)
	}
	switch {
	case d.Discover != nil: // what there is to compute from will be known then
		c.finding = newFinding(d, c)
		return c, nil
	case len(c.points) == 0:
		return nil, fmt.Errorf("%s: there is no point to read", at("point"))
	}
	if err := compileComputed(d, c); err != nil {
		return nil, fmt.Errorf("%s%w", at(""), err)
	}
	return c, nil
}

// compilePoint returns errors that start with the key within the point.
func compilePoint(o *Point, common order, c *compiled) (*point, error) {
	if err := reading.ValidName(o.Name); err != nil {
		return nil, fmt.Errorf("name: %w", err)
	}
	reg, err := ParseRegister(o.Register)
	if err != nil {
		return nil, fmt.Errorf("register: %w", err)
	}
	if err := adapters.ValidClasses(o.DeviceClass, o.StateClass); err != nil {
		return nil, err
	}
	p := &point{name: o.Name, unit: o.Unit, device: o.DeviceClass, state: o.StateClass, every: cmp.Or(o.Every, c.every), reg: reg}
	if p.every < minEvery || p.every > maxEvery {
		return nil, fmt.Errorf("every: %v is outside 10ms..24h", o.Every)
	}
	p.f = format{typ: o.Type, bit: reg.Bit, order: common, scale: o.Scale, offset: o.Offset, decimals: orDefault(o.Decimals, -1)}
	f := &p.f
	single := reg.Table.Bits() || reg.Bit != noBit
	switch {
	case f.typ == "" && single:
		f.typ = "bool"
	case f.typ == "":
		f.typ = "uint16"
	case !slices.Contains(Types(), f.typ):
		return nil, fmt.Errorf("type: %q is none of %s", f.typ, strings.Join(Types(), ", "))
	case single && f.typ != "bool":
		return nil, fmt.Errorf("type: %q cannot be read from the single bit %v, want bool", f.typ, reg)
	}
	f.n = typeRegisters(f.typ)
	if f.typ == "string" {
		f.order = order{bytesSwapped: f.order.bytesSwapped} // text is never read backwards
		if o.Length < 1 || o.Length > c.maxRegs {
			return nil, fmt.Errorf("length: %d is outside 1..%d registers", o.Length, c.maxRegs)
		}
		f.n = o.Length
	} else if o.Length != 0 {
		return nil, fmt.Errorf("length: only a string has one, not %s", f.typ)
	}
	if p.end() > 1<<16 {
		return nil, fmt.Errorf("register: %v and %d more go past 65535", reg, f.n-1)
	}
	for _, h := range c.holes {
		if h.table == reg.Table && int(h.first) < p.end() && h.last >= reg.Addr {
			return nil, fmt.Errorf("register: %v lies in a hole", reg)
		}
	}
	if err := compileOrder(o, f); err != nil {
		return nil, err
	}
	if err := compileNumber(o, f, single); err != nil {
		return nil, err
	}
	if err := compileMeaning(o, f); err != nil {
		return nil, err
	}
	if err := o.Report.Validate(p.numeric()); err != nil {
		return nil, err
	}
	p.report = reading.NewReporter(o.Report)
	if o.ScaleRegister != "" {
		if err := compilePower(o, p, c); err != nil {
			return nil, fmt.Errorf("scale_register: %w", err)
		}
	}
	if err := compileWrite(o, p); err != nil {
		return nil, err
	}
	return p, nil
}

// compilePower makes the point reach from its value to its power of ten.
func compilePower(o *Point, p *point, c *compiled) error {
	at, err := ParseRegister(o.ScaleRegister)
	if err != nil {
		return err
	}
	if !p.f.number() || at.Bit != noBit || at.Table != p.reg.Table {
		return fmt.Errorf("%v and %v are not a number and a register of one table", p.reg, at)
	}
	first := min(at.Addr, p.reg.Addr)
	end := max(int(at.Addr)+1, p.end())
	if n := end - int(first); n > c.maxRegs {
		return fmt.Errorf("%v and %v are %d registers, more than the %d of a request", p.reg, at, n, c.maxRegs)
	}
	for _, h := range c.holes {
		if h.table == at.Table && int(h.first) < end && h.last >= first {
			return fmt.Errorf("there is a hole between %v and %v", p.reg, at)
		}
	}
	p.f.power = &power{value: int(p.reg.Addr - first), n: p.f.n, at: int(at.Addr - first)}
	p.reg.Addr, p.f.n = first, end-int(first)
	return nil
}

func compileOrder(o *Point, f *format) error {
	if o.Order == "" {
		return nil
	}
	order, width, ok := parseOrder(o.Order)
	fits := width == f.n || width == 2 && f.n == 4 || f.typ == "string" && width <= 2
	if !ok || !fits {
		return fmt.Errorf("order: %q is no order of %d bytes, want %s", o.Order, 2*f.n, orderNames(f.n))
	}
	f.order = order
	return nil
}

// compileMeaning reads what the bits and numbers of a point stand for.
func compileMeaning(o *Point, f *format) error {
	width := f.width()
	if o.Bits != "" {
		if f.bit != noBit || !strings.HasPrefix(f.typ, "uint") {
			return fmt.Errorf("bits: only an unsigned number has bits to take, not a %s", f.typ)
		}
		first, last, ok := strings.Cut(o.Bits, "-")
		if !ok {
			last = first
		}
		lo, err := strconv.ParseUint(first, 10, 8)
		hi, err2 := strconv.ParseUint(last, 10, 8)
		if err != nil || err2 != nil || lo > hi || int(hi) >= width {
			return fmt.Errorf("bits: %q is no such thing as \"4-7\" or \"12\", within 0..%d", o.Bits, width-1)
		}
		width = int(hi-lo) + 1
		f.bits = bits{first: int(lo), n: width}
	}
	if len(o.Enum) == 0 {
		return nil
	}
	low, high := int64(0), int64(1)<<min(width, 62) // high is outside
	switch {
	case f.typ == "bool":
		high = 2
	case strings.HasPrefix(f.typ, "int"):
		low, high = -1<<min(width-1, 62), 1<<min(width-1, 62)
	case strings.HasPrefix(f.typ, "uint"):
	default:
		return fmt.Errorf("enum: only an integer or bool has names, not a %s", f.typ)
	}
	if !f.plain() || o.Decimals != nil || o.ScaleRegister != "" {
		return errors.New("enum: a number with names has no scale, offset, decimals or scale_register")
	}
	f.names = make(map[uint64]string, len(o.Enum))
	for _, key := range slices.Sorted(maps.Keys(o.Enum)) {
		v, err := strconv.ParseInt(key, 0, 64)
		if err != nil || v < low || v >= high {
			return fmt.Errorf("enum: %q is not a number within %d..%d", key, low, high-1)
		}
		if _, twice := f.names[uint64(v)]; twice {
			return fmt.Errorf("enum: %q is there twice", key)
		}
		f.names[uint64(v)] = o.Enum[key]
	}
	return nil
}

// width is how many bits of its registers the value has.
func (f *format) width() int {
	if f.typ == "int8" || f.typ == "uint8" {
		return 8
	}
	return 16 * f.n
}

func compileNumber(o *Point, f *format, single bool) error {
	number := f.number()
	switch {
	case !isFinite(o.Scale):
		return fmt.Errorf("scale: %v is not a number", o.Scale)
	case !isFinite(o.Offset):
		return fmt.Errorf("offset: %v is not a number", o.Offset)
	case !number && (o.Scale != 0 || o.Offset != 0 || o.Decimals != nil):
		return fmt.Errorf("type: a %s has no scale, offset or decimals", f.typ)
	case o.Decimals != nil && (*o.Decimals < 0 || *o.Decimals > 15):
		return fmt.Errorf("decimals: %d is outside 0..15", *o.Decimals)
	case single && len(o.Invalid) > 0, f.typ == "string" && len(o.Invalid) > 0:
		return errors.New("invalid: a single bit or a string has no invalid values")
	}
	if f.scale == 0 {
		f.scale = 1
	}
	width := f.width()
	float := strings.HasPrefix(f.typ, "float")
	for i, v := range o.Invalid {
		bits := uint64(v)
		if width < 64 {
			if !float && (v >= 1<<width || v < -1<<(width-1)) {
				return fmt.Errorf("invalid[%d]: %d does not fit into %d bits", i, v, width)
			}
			bits &= 1<<width - 1
		}
		if float {
			f.invalidValues = append(f.invalidValues, float64(v))
			if v < 0 || width < 64 && v >= 1<<width {
				continue // a number, no bit pattern
			}
		}
		f.invalid = append(f.invalid, bits)
	}
	return nil
}

func orDefault(p *int, def int) int {
	if p == nil {
		return def
	}
	return *p
}
