package modbus

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"holdfast/adapters"
	"holdfast/adapters/reading"
)

// Options are those of one bus: everything behind one serial port. The zero
// value of a field that must not be zero stands for its default, so that a
// configuration need not name it.
type Options struct {
	// CharTime is how long one character takes on the wire, start, parity
	// and stop bits included (port.Options.CharTime). 0 if the line has no
	// such thing.
	CharTime time.Duration `toml:"-"`
	// Framing is "rtu" or "ascii" (frames in hexadecimal, LRC); empty means
	// rtu. Only a serial line has a choice.
	Framing string `toml:"framing"`
	// Silence is how long the line must be quiet before a request: 0 means
	// three and a half characters, 1.75 ms from 19200 baud up (MODBUS Serial
	// Line V1.02 §2.5.1.1). 0 to 1s.
	Silence time.Duration `toml:"silence"`
	// ChangePause is an additional silence before a request to another unit
	// than the last one. 0 to 1s.
	ChangePause time.Duration `toml:"change_pause"`
	// Turnaround is how long the line is left alone after a broadcast, to which
	// nobody answers (MODBUS Serial Line V1.02 §2.4.1). 0 to 10s.
	Turnaround time.Duration `toml:"turnaround"`
	// WarmUp is how long the line is left alone after it was opened: many
	// adapters lose their first bytes. 0 to 1m.
	WarmUp time.Duration `toml:"warm_up"`
	// Prefix is what the topic of a reading starts with:
	// prefix/device/point.
	Prefix string `toml:"-"`
	// Devices are what is polled.
	Devices []Device `toml:"-"`
	// OnDevices is called by the bus goroutine when what Bus.Devices returns
	// has changed; it must not block. May be nil.
	OnDevices func() `toml:"-"`
}

// DefaultOptions are right for an ordinary RS-485 line.
func DefaultOptions() Options {
	return Options{Framing: FramingRTU, Turnaround: 200 * time.Millisecond, WarmUp: 100 * time.Millisecond, Prefix: "sensors"}
}

// The framings of a serial line.
const (
	FramingRTU   = "rtu"
	FramingASCII = "ascii"
)

func (o Options) framing() string { return cmp.Or(o.Framing, FramingRTU) }

// Device is one device, or a part of one that is polled in its own rhythm:
// several Devices may have the same unit.
type Device struct {
	// Name is the device's level in topics and its name in status and log.
	Name string `toml:"-"`
	// Unit is the address on the bus, 1 to 247; of a peer on the network to
	// 255, which means the peer itself and no unit behind it.
	Unit int `toml:"unit"`
	// Net says that the device is reached over the network.
	Net bool `toml:"-"`
	// Every is how often points that do not say so themselves are read, 10ms
	// to 24h.
	Every time.Duration `toml:"every"`
	// Timeout is how long an answer may take to begin, from the end of the
	// request, 10ms to 1m. After a timeout the unit is left alone for twice
	// as long, so that a late answer cannot be taken for that to another
	// question. 0 means 1s.
	Timeout time.Duration `toml:"timeout"`
	// Pause is how long the unit needs between an answer and the next
	// request, 0 to 10s.
	Pause time.Duration `toml:"pause"`
	// Retries is how often a request is sent again at once when its answer
	// came garbled, or in a later turn when none came, before its points are
	// bad. 0 to 10; nil means 2.
	Retries *int `toml:"retries"`
	// MaxGap is how many addresses nobody asked for may be read along to
	// join two points in one request, 0 to 124; nil means 8.
	MaxGap *int `toml:"max_gap"`
	// MaxRegisters is the most registers the device gives at once, 4 to 125;
	// 0 means 125. A point of more registers than this is refused.
	MaxRegisters int `toml:"max_registers"`
	// MaxBits is the most coils or discrete inputs the device gives at once,
	// 1 to 2000; 0 means 2000.
	MaxBits int `toml:"max_bits"`
	// Holes are addresses never to be read, alone or along with others:
	// "holding:100-110", "coil:7".
	Holes []string `toml:"holes"`
	// Order is the byte order of points that do not name one: "ABCD"
	// (big-endian, the default), "DCBA", "BADC" or "CDAB".
	Order string `toml:"order"`
	// QoS of the readings, 0 to 2; nil means 1.
	QoS *int `toml:"qos"`
	// WriteMaxAge is how old a command may be when it is sent, 100ms to 1h. What
	// the bus had no time for by then is not done. 0 means 10s.
	WriteMaxAge time.Duration `toml:"write_max_age"`
	// Points are the values read.
	Points []Point `toml:"point"`
	// Discover finds out at first contact what the device has besides; nil:
	// it has Points.
	Discover Discoverer `toml:"-"`
}

// Point is one value of a device.
type Point struct {
	// Name is the last level of the topic.
	Name string `toml:"name"`
	// Register says where the value starts: see [ParseRegister].
	Register string `toml:"register"`
	// Expression computes the value from other points of the device, in place
	// of a register: `voltage * current / 1000`. There are the operators of Go
	// for numbers, bools and texts, abs, floor, ceil, sqrt, exp, ln, log10,
	// pow, min, max, round, choose(condition, a, b), and point("a-b") for
	// names that are no words. The quality is that of the worst input;
	// division by zero is bad.
	Expression string `toml:"expression"`
	// Every is how often the point is read, 10ms to 24h; 0 means the device's.
	// Points that are due at the same time share a request.
	Every time.Duration `toml:"every"`
	// Type is one of [Types]; empty means bool for bits, else uint16.
	Type string `toml:"type"`
	// Length is the number of registers of a string, 1 to 125.
	Length int `toml:"length"`
	// Order is the byte order, most significant byte A: "AB" or "BA" for one
	// register, "ABCD", "DCBA", "BADC", "CDAB" for two, the same names or
	// "ABCDEFGH", "HGFEDCBA", "BADCFEHG", "GHEFCDAB", "EFGHABCD", "FEHGBADC",
	// "CDABGHEF", "DCBAHGFE" for four. Empty means the device's.
	Order string `toml:"order"`
	// Bits are what is taken of an unsigned number, as another number: "4-7",
	// "12". 0 is the lowest, after the order. Empty: all of it. A single bit
	// of a register as a bool is a Register such as "holding:100.3".
	Bits string `toml:"bits"`
	// Enum are texts for the numbers of an integer or bool, decimal or 0x
	// hexadecimal: {0 = "off", 1 = "on"}. A number that is not among them
	// becomes its digits, with quality "uncertain".
	Enum map[string]string `toml:"enum"`
	// Scale and Offset make the value: raw*scale+offset. A Scale of 0 means 1.
	Scale  float64 `toml:"scale"`
	Offset float64 `toml:"offset"`
	// ScaleRegister is where the unit says by which power of ten the value is
	// multiplied besides: a signed register of the same table, near enough for
	// one request, so that value and power are of the same moment. Empty: none.
	ScaleRegister string `toml:"scale_register"`
	// Decimals rounds the value, 0 to 15; nil leaves it as it is.
	Decimals *int `toml:"decimals"`
	// Unit is what the value is measured in, for people: "°C".
	Unit string `toml:"unit"`
	// DeviceClass and StateClass are those of Home Assistant; empty means what
	// follows from the unit, "none" that there is none.
	DeviceClass string `toml:"device_class"`
	StateClass  string `toml:"state_class"`
	// Report says which of the values are published.
	reading.Report
	// Invalid are register contents that mean "no value" and become null:
	// bit patterns (0x8000), for signed types also the number itself
	// (-32768), for floats also the number (-9999).
	Invalid []int64 `toml:"invalid"`
	// Write lets the point be written by its set topic, PREFIX/DEVICE/NAME/set;
	// the rest is about that.
	Write bool `toml:"write"`
	// Min and Max bound what may be written, in units of the value; nil is what
	// the type holds.
	Min *float64 `toml:"min"`
	Max *float64 `toml:"max"`
	// Step is what written values are multiples of, from Min on if there is one;
	// 0 is any.
	Step float64 `toml:"step"`
	// Allowed are the only values that may be written: "21.5", or names of Enum.
	// Empty means all.
	Allowed []string `toml:"allowed"`
	// WriteFunction is for a unit that knows only one: 5 or 15 for coils, 6 or 16
	// for registers, 22, or else reading before, for a part of one. 0 means 5, 6
	// for one register, 16 for more, 22 and, if the unit does not know it, reading
	// before.
	WriteFunction int `toml:"write_function"`
	// Verify is "read_back", the default, or "none": whether the point is read
	// after it was written.
	Verify string `toml:"verify"`
}

// Defaults of Device, where nil or 0 stands for them.
const (
	DefaultTimeout = time.Second // 500 ms lost 5 answers in 1000 for a user, 600 ms none
	DefaultRetries = 2
	DefaultMaxGap  = 8
	DefaultQoS     = 1
)

// The limits of an interval.
const (
	minEvery = 10 * time.Millisecond
	maxEvery = 24 * time.Hour
)

// DefaultDevice returns a device with all defaults spelled out.
func DefaultDevice() Device {
	return Device{
		Every: 5 * time.Second, Timeout: DefaultTimeout, Retries: new(DefaultRetries), MaxGap: new(DefaultMaxGap),
		MaxRegisters: MaxReadRegisters, MaxBits: MaxReadBits, Order: "ABCD", QoS: new(DefaultQoS),
		WriteMaxAge: DefaultWriteMaxAge,
	}
}

// Validate reports the first value out of range, naming its key.
func (o Options) Validate() error {
	if o.CharTime < 0 {
		return fmt.Errorf("char_time: %v is negative", o.CharTime)
	}
	if f := o.framing(); f != FramingRTU && f != FramingASCII {
		return fmt.Errorf(`framing: %q is neither "rtu" nor "ascii"`, f)
	}
	if o.Silence < 0 || o.Silence > time.Second {
		return fmt.Errorf("silence: %v is outside 0s..1s", o.Silence)
	}
	if o.ChangePause < 0 || o.ChangePause > time.Second {
		return fmt.Errorf("change_pause: %v is outside 0s..1s", o.ChangePause)
	}
	if o.Turnaround < 0 || o.Turnaround > 10*time.Second {
		return fmt.Errorf("turnaround: %v is outside 0s..10s", o.Turnaround)
	}
	if o.WarmUp < 0 || o.WarmUp > time.Minute {
		return fmt.Errorf("warm_up: %v is outside 0s..1m", o.WarmUp)
	}
	if o.Prefix == "" || strings.ContainsAny(o.Prefix, "+#\x00") {
		return fmt.Errorf("prefix: %q is no start of a topic", o.Prefix)
	}
	names := map[string]bool{}
	for i := range o.Devices {
		d := &o.Devices[i]
		if err := d.Validate(); err != nil {
			return err
		}
		if names[d.Name] {
			return fmt.Errorf("device.%s: this name is taken", d.Name)
		}
		names[d.Name] = true
	}
	return nil
}

// Validate reports the first value out of range, naming its key from the
// device's table on: "device.boiler.point[1].register: ...".
func (d *Device) Validate() error {
	_, err := compile(d)
	return err
}

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

// describe tells what the point measures.
func (p *point) describe() adapters.Point {
	return adapters.Describe(adapters.Point{Name: p.name, Unit: p.unit, DeviceClass: p.device, StateClass: p.state}, p.numeric())
}

func compile(d *Device) (*compiled, error) {
	at := func(key string) string { return "device." + d.Name + "." + key }
	if err := reading.ValidName(d.Name); err != nil {
		return nil, fmt.Errorf("device: the name %w", err)
	}
	c := &compiled{
		name: d.Name, unit: byte(d.Unit), every: d.Every, timeout: d.Timeout, pause: d.Pause,
		retries: orDefault(d.Retries, DefaultRetries), maxGap: orDefault(d.MaxGap, DefaultMaxGap),
		maxRegs: d.MaxRegisters, maxBits: d.MaxBits, qos: byte(orDefault(d.QoS, DefaultQoS)),
		writeMaxAge: d.WriteMaxAge,
	}
	if c.timeout == 0 {
		c.timeout = DefaultTimeout
	}
	if c.writeMaxAge == 0 {
		c.writeMaxAge = DefaultWriteMaxAge
	}
	if c.maxRegs == 0 {
		c.maxRegs = MaxReadRegisters
	}
	if c.maxBits == 0 {
		c.maxBits = MaxReadBits
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
	p := &point{name: o.Name, unit: o.Unit, device: o.DeviceClass, state: o.StateClass, every: o.Every, reg: reg}
	if p.every == 0 {
		p.every = c.every
	}
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
	finite := func(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }
	switch {
	case !finite(o.Scale):
		return fmt.Errorf("scale: %v is not a number", o.Scale)
	case !finite(o.Offset):
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
