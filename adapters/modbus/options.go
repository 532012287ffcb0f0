package modbus

import (
	"cmp"
	"fmt"
	"strings"
	"time"

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
