package server

import (
	"cmp"
	"fmt"
	"math"
	"slices"
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
