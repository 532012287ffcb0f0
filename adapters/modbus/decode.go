package modbus

import (
	"math"
	"slices"
	"strconv"

	"holdfast/adapters/reading"
)

// Why a point has no value though its registers were read.
const (
	reasonInvalid = "invalid value"
	reasonNaN     = "not a number"
	reasonBCD     = "not BCD"
	reasonUnnamed = "a number without a name"
	reasonPower   = "scale factor not implemented"
)

// Types lists what a point's type can be, in the order a manual would.
func Types() []string {
	return []string{
		"bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64",
		"float16", "float32", "float64", "bcd16", "bcd32", "bcd64", "string",
	}
}

// typeRegisters is how many registers a type takes; string says so itself.
func typeRegisters(typ string) int {
	switch typ {
	case "bool", "int8", "uint8", "int16", "uint16", "float16", "bcd16":
		return 1
	case "int32", "uint32", "float32", "bcd32":
		return 2
	case "int64", "uint64", "float64", "bcd64":
		return 4
	default:
		return 0
	}
}

// order says where the bytes of a value are on the wire, in three independent
// steps: A is the most significant byte, and a register carries its first byte
// first (MODBUS Application Protocol V1.1b3 §4.2).
type order struct {
	dwordsSwapped bool // of four registers the less significant two come first
	wordsSwapped  bool // of each two registers the less significant one
	bytesSwapped  bool // within each register the low byte
}

// parseOrder reads the name of an order; width is how many registers it names.
// An order of two registers holds for four in the way that devices mean it:
// CDAB has the least significant register first, so it is GHEFCDAB.
func parseOrder(s string) (o order, width int, ok bool) {
	switch s {
	case "AB", "ABCD", "ABCDEFGH":
	case "BA", "BADC", "BADCFEHG":
		o = order{bytesSwapped: true}
	case "CDAB", "GHEFCDAB":
		o = order{dwordsSwapped: true, wordsSwapped: true}
	case "DCBA", "HGFEDCBA":
		o = order{dwordsSwapped: true, wordsSwapped: true, bytesSwapped: true}
	case "EFGHABCD":
		o = order{dwordsSwapped: true}
	case "FEHGBADC":
		o = order{dwordsSwapped: true, bytesSwapped: true}
	case "CDABGHEF":
		o = order{wordsSwapped: true}
	case "DCBAHGFE":
		o = order{wordsSwapped: true, bytesSwapped: true}
	default:
		return order{}, 0, false
	}
	return o, len(s) / 2, true
}

// orderNames says for an error message which orders a value of n registers has.
func orderNames(n int) string {
	switch n {
	case 1:
		return "AB or BA"
	case 2:
		return "ABCD, DCBA, BADC or CDAB"
	default:
		return "ABCDEFGH, HGFEDCBA, BADCFEHG or GHEFCDAB (or their short forms ABCD, DCBA, BADC, CDAB), EFGHABCD, FEHGBADC, CDABGHEF or DCBAHGFE"
	}
}

// arrange puts wire bytes into the order ABCD..., into dst. Words are swapped in
// two or four registers only.
func (o order) arrange(dst, wire []byte) {
	n := len(wire) / 2
	for i := range n {
		from := i
		if o.wordsSwapped && n > 1 {
			from ^= 1
		}
		if o.dwordsSwapped && n > 2 {
			from ^= 2
		}
		hi, lo := wire[2*from], wire[2*from+1]
		if o.bytesSwapped {
			hi, lo = lo, hi
		}
		dst[2*i], dst[2*i+1] = hi, lo
	}
}

// format is how the registers of one point become a value.
type format struct {
	typ      string
	order    order
	n        int // registers, or 1 bit
	bit      int // noBit, or the bit of the register
	scale    float64
	offset   float64
	decimals int // -1: as they come
	// invalid are bit patterns that mean "no value"; with floats also the
	// numbers invalidValues.
	invalid       []uint64
	invalidValues []float64
	// power is nil, or says where among the n registers the value is, and
	// where the power of ten to multiply it by.
	power *power
	// bits, if bits.n is not 0, are what is taken of an unsigned number.
	bits bits
	// names are texts for integers, by the number in two's complement; nil:
	// the number itself is the value.
	names map[uint64]string
	// nearest says that a value between two steps is written as the nearer one.
	nearest bool
}

// bits are n bits of a number from first on, 0 the lowest.
type bits struct{ first, n int }

// power is the place of a value and its power of ten, in registers from the
// first of both.
type power struct{ value, n, at int }

// maxPower is the largest power of ten that a device may name, either way
// (SunSpec Device Information Model Specification V1.2, sunssf).
const maxPower = 10

// number says whether the values are numbers.
func (f *format) number() bool { return f.typ != "bool" && f.typ != "string" }

// powered decodes a value with the power of ten that came with it.
func (f *format) powered(wire []byte) (value any, reason string) {
	var b [2]byte
	order{bytesSwapped: f.order.bytesSwapped}.arrange(b[:], wire[2*f.power.at:2*f.power.at+2])
	exponent := int(int16(uint16(b[0])<<8 | uint16(b[1])))
	if exponent < -maxPower || exponent > maxPower {
		return nil, reasonPower
	}
	own := *f
	own.power, own.n, own.decimals = nil, f.power.n, -1
	value, reason = own.decode(wire[2*f.power.value : 2*(f.power.value+f.power.n)])
	v, ok := reading.Number(value)
	if !ok { // nothing there is to multiply
		return value, reason
	}
	ten := format{scale: math.Pow10(exponent), decimals: f.decimals}
	return ten.scaled(v)
}

// decode turns the wire bytes of the point, 2n of them, into a value; nil with
// a reason when they are no measurement, a value with a reason when it is to be
// taken with care. A number that is not there must never come out as 0.
func (f *format) decode(wire []byte) (value any, reason string) {
	if f.power != nil {
		return f.powered(wire)
	}
	var buf [8]byte
	if f.typ == "string" {
		return f.decodeString(wire)
	}
	b := buf[:2*f.n]
	f.order.arrange(b, wire)
	var raw uint64
	for _, x := range b {
		raw = raw<<8 | uint64(x)
	}
	if f.bit != noBit {
		return f.boolean(raw>>f.bit&1 != 0)
	}
	if f.typ == "int8" || f.typ == "uint8" {
		raw &= 0xff
	}
	if slices.Contains(f.invalid, raw) {
		return nil, reasonInvalid
	}
	if f.bits.n > 0 {
		raw = raw >> f.bits.first & (1<<f.bits.n - 1)
	}
	switch f.typ {
	case "bool":
		return f.boolean(raw != 0)
	case "int8":
		return f.signed(int64(int8(raw)))
	case "int16":
		return f.signed(int64(int16(raw)))
	case "int32":
		return f.signed(int64(int32(raw)))
	case "int64":
		return f.signed(int64(raw))
	case "float16":
		return f.float(reading.Float16(uint16(raw)))
	case "float32":
		return f.float(reading.Float32(math.Float32frombits(uint32(raw))))
	case "float64":
		return f.float(math.Float64frombits(raw))
	case "bcd16", "bcd32", "bcd64":
		v, ok := bcd(raw)
		if !ok {
			return nil, reasonBCD
		}
		return f.unsigned(v)
	default: // uint8, uint16, uint32, uint64
		return f.unsigned(raw)
	}
}

func (f *format) plain() bool { return f.scale == 1 && f.offset == 0 }

func (f *format) boolean(v bool) (any, string) {
	if f.names == nil {
		return v, ""
	}
	if v {
		return f.named(1, "1")
	}
	return f.named(0, "0")
}

// named returns the name of a number. One that has none keeps its digits: the
// device has told something, but not what anybody can rely on.
func (f *format) named(v uint64, digits string) (any, string) {
	if name, ok := f.names[v]; ok {
		return name, ""
	}
	return digits, reasonUnnamed
}

func (f *format) unsigned(v uint64) (any, string) {
	if f.names != nil {
		return f.named(v, strconv.FormatUint(v, 10))
	}
	if f.plain() {
		return v, ""
	}
	return f.scaled(float64(v))
}

func (f *format) signed(v int64) (any, string) {
	if f.names != nil {
		return f.named(uint64(v), strconv.FormatInt(v, 10))
	}
	if f.plain() {
		return v, ""
	}
	return f.scaled(float64(v))
}

func (f *format) float(v float64) (any, string) {
	if slices.Contains(f.invalidValues, v) {
		return nil, reasonInvalid
	}
	return f.scaled(v)
}

func (f *format) scaled(v float64) (any, string) {
	if !f.plain() {
		v = reading.Scale(v, f.scale, f.offset)
	}
	if f.decimals >= 0 {
		v = round(v, f.decimals)
	}
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return nil, reasonNaN
	}
	return v, ""
}

// round rounds to n decimals, with a result that prints with no more of them.
func round(v float64, n int) float64 {
	var buf [64]byte
	r, err := strconv.ParseFloat(string(strconv.AppendFloat(buf[:0], v, 'f', n, 64)), 64)
	if err != nil {
		return v
	}
	return r
}

// decodeString takes two characters per register.
func (f *format) decodeString(wire []byte) (any, string) {
	b := make([]byte, len(wire))
	f.order.arrange(b, wire)
	blank := true
	for _, x := range b {
		blank = blank && x == 0xff
	}
	if blank {
		return nil, reasonInvalid
	}
	return reading.FixedText(b), ""
}

// bcd reads four bits per digit.
func bcd(raw uint64) (v uint64, ok bool) {
	for shift := 60; shift >= 0; shift -= 4 {
		d := raw >> shift & 0xf
		if d > 9 {
			return 0, false
		}
		v = v*10 + d
	}
	return v, true
}
