package modbus

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
)

// Codec puts values into the registers, or the bit, of one point, and takes them
// out again as a bus does. It does not change.
type Codec struct {
	p      *point
	absent []byte
}

// NewCodec returns the codec of a point, of which Register, Type, Length, Order,
// Scale, Offset, Enum and Invalid count. A register of which one bit is meant, and
// types that are a part of one, have none. Errors begin with the key.
func NewCodec(o Point) (*Codec, error) {
	o = Point{
		Name: "point", Register: o.Register, Type: o.Type, Length: o.Length, Order: o.Order,
		Scale: o.Scale, Offset: o.Offset, Enum: o.Enum, Invalid: o.Invalid,
	}
	if r, err := ParseRegister(o.Register); err == nil && len(o.Invalid) == 0 && !r.Table.Bits() && r.Bit == noBit {
		o.Invalid = notImplemented(cmp.Or(o.Type, "uint16"))
	}
	p, err := compilePoint(&o, order{}, &compiled{every: minEvery, maxRegs: MaxReadRegisters})
	switch {
	case err != nil:
		return nil, err
	case p.reg.Bit != noBit:
		return nil, fmt.Errorf("register: %v is one bit of a register; a coil or discrete input holds one", p.reg)
	case p.masked():
		return nil, fmt.Errorf("type: a %s is a part of a register; want one that fills it", p.f.typ)
	}
	p.f.nearest = true
	c := &Codec{p: p}
	switch {
	case p.reg.Table.Bits():
	case p.f.typ == "string":
		c.absent = make([]byte, 2*p.f.n)
	case len(p.f.invalidValues) > 0:
		own := p.f
		own.scale, own.offset, own.invalidValues = 1, 0, nil
		raw, err := own.rawFloat(strconv.FormatFloat(p.f.invalidValues[0], 'g', -1, 64))
		if err != nil {
			return nil, fmt.Errorf("invalid: %w", err)
		}
		c.absent = p.f.wire(raw)
	case len(p.f.invalid) > 0:
		c.absent = p.f.wire(p.f.invalid[0])
	case p.f.typ == "float16":
		c.absent = p.f.wire(0x7e00)
	case p.f.typ == "float32":
		c.absent = p.f.wire(0x7fc00000)
	default:
		c.absent = p.f.wire(math.Float64bits(math.NaN()))
	}
	return c, nil
}

// notImplemented are the register contents that mean "no value" where nobody has
// said others (SunSpec Device Information Model Specification V1.2 §4.2): the
// least number of a signed type, all ones of an unsigned one. A float has NaN.
func notImplemented(typ string) []int64 {
	switch typ {
	case "int16":
		return []int64{math.MinInt16}
	case "int32":
		return []int64{math.MinInt32}
	case "int64":
		return []int64{math.MinInt64}
	case "bool", "uint16", "bcd16":
		return []int64{math.MaxUint16}
	case "uint32", "bcd32":
		return []int64{math.MaxUint32}
	case "uint64", "bcd64":
		return []int64{-1}
	default:
		return nil
	}
}

// Register is where the value begins.
func (c *Codec) Register() Register { return c.p.reg }

// Len is how many registers the value takes, or 1 bit.
func (c *Codec) Len() int { return c.p.f.n }

// Absent is what is in the registers when there is no value; nil for a bit, which
// has no room for that. It must not be changed.
func (c *Codec) Absent() []byte { return c.absent }

// Encode returns the registers as they go over the wire, one byte of 0 or 1 for a
// bit. Between two steps of an integer the nearer is taken. Value is what
// reading.Reading has, or a json.Number. It is an error when the value does not fit, or would be
// taken for none.
func (c *Codec) Encode(value any) ([]byte, error) {
	switch v := value.(type) {
	case float64:
		value = json.Number(strconv.FormatFloat(v, 'g', -1, 64))
	case int64:
		value = json.Number(strconv.FormatInt(v, 10))
	case uint64:
		value = json.Number(strconv.FormatUint(v, 10))
	case bool:
		if c.p.f.number() && v {
			value = json.Number("1")
		} else if c.p.f.number() {
			value = json.Number("0")
		}
	}
	if c.p.reg.Table.Bits() {
		on, err := asBool(value)
		if on {
			return []byte{1}, err
		}
		return []byte{0}, err
	}
	if _, text := value.(string); !text && c.p.f.typ == "string" {
		value = fmt.Sprint(value)
	}
	ch, err := c.p.f.encode(value)
	return ch.data, err
}

// Decode is the inverse of Encode; nil when the registers hold no value.
func (c *Codec) Decode(data []byte) any {
	if c.p.reg.Table.Bits() {
		return data[0]&1 != 0
	}
	if v, reason := c.p.f.decode(data); reason == "" {
		return v
	}
	return nil
}
