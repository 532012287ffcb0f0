package serial

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"holdfast/adapters/reading"
)

// Types of a point that are written as bytes and have a length of their own.
const (
	TypeString = "string"
	TypeBCD    = "bcd"
)

// unsignedTypes can be taken apart into bits.
var unsignedTypes = []string{"uint8", "uint16", "uint24", "uint32", "uint64"}

// orderedTypes have more than one byte.
var orderedTypes = []string{
	"int16", "uint16", "int24", "uint24", "int32", "uint32", "int64", "uint64", "float32", "float64", TypeBCD,
}

// byteTypes are the types that are written as bytes; 0 for those whose point
// says how many.
var byteTypes = map[string]int{
	"uint8": 1, "int8": 1, "uint16": 2, "int16": 2, "uint24": 3, "int24": 3, "uint32": 4, "int32": 4,
	"uint64": 8, "int64": 8, "float32": 4, "float64": 8, TypeBCD: 0, TypeString: 0,
}

// ByteTypes lists the types that are written as bytes, the default first.
func ByteTypes() []string {
	return []string{
		"uint16", "int16", "uint8", "int8", "uint24", "int24", "uint32", "int32", "uint64", "int64",
		"float32", "float64", TypeBCD, TypeString,
	}
}

// byteOrder says where the bytes of a number are: A is the most significant.
type byteOrder struct {
	reversed bool // D comes first
	swapped  bool // each pair of bytes has changed places
}

var byteOrders = map[string]byteOrder{
	"ABCD": {}, "DCBA": {reversed: true}, "BADC": {swapped: true}, "CDAB": {reversed: true, swapped: true},
}

// arrange puts b into the order ABCD.
func (o byteOrder) arrange(b []byte) {
	if o.swapped {
		for i := 0; i+1 < len(b); i += 2 {
			b[i], b[i+1] = b[i+1], b[i]
		}
	}
	if o.reversed {
		slices.Reverse(b)
	}
}

// checkBytes checks what is said of a type that is written as bytes.
func (p *Point) checkBytes() error {
	size, ok := byteTypes[p.Type]
	switch {
	case !ok:
		return nil
	case size == 0 && (p.Length < 1 || p.Length > 255):
		return fmt.Errorf("length: %d is outside 1..255 for type %q", p.Length, p.Type)
	case p.Type == TypeBCD && p.Length > 9:
		return fmt.Errorf("length: %d is outside 1..9 for type %q: a number has at most 18 digits", p.Length, p.Type)
	}
	if _, ok := byteOrders[p.Order]; !ok {
		return fmt.Errorf(`order: %q is none of "ABCD", "DCBA", "BADC", "CDAB"`, p.Order)
	}
	if n := p.width(); byteOrders[p.Order].swapped && n%2 != 0 {
		return fmt.Errorf("order: %s swaps pairs of bytes, and there are %d", p.Order, n)
	}
	if !slices.Contains(unsignedTypes, p.Type) {
		return nil // Bit and Bits have no use, which is said elsewhere
	}
	if width := 8 * size; p.Bits < 0 || p.Bit < 0 || p.Bits > width || p.Bit+max(p.Bits, 1) > width {
		return fmt.Errorf("bits: %d from bit %d are not within the %d of type %q", p.Bits, p.Bit, width, p.Type)
	} else if p.Bits == 0 && p.Bit != 0 {
		return errors.New("bit: needs bits, how many there are from it")
	}
	return nil
}

// width is how many bytes the point takes.
func (p *Point) width() int {
	if n := byteTypes[p.Type]; n > 0 {
		return n
	}
	return p.Length
}

var errNotBCD = errors.New("is not BCD")

// fromBytes makes a value of the bytes that stand for it, of which there are
// width: a string, float64, int64 or uint64. It changes b.
func (p *Point) fromBytes(b []byte) (any, error) {
	if p.Type == TypeString {
		return reading.FixedText(b), nil
	}
	byteOrders[p.Order].arrange(b)
	if p.Type == TypeBCD {
		var v uint64
		for _, x := range b {
			if x>>4 > 9 || x&0xf > 9 {
				return nil, errNotBCD
			}
			v = v*100 + uint64(x>>4)*10 + uint64(x&0xf)
		}
		return v, nil
	}
	var wide [8]byte
	copy(wide[8-len(b):], b)
	raw := binary.BigEndian.Uint64(wide[:])
	switch p.Type {
	case "float32":
		return reading.Float32(math.Float32frombits(uint32(raw))), nil
	case "float64":
		return math.Float64frombits(raw), nil
	case "int8", "int16", "int24", "int32", "int64":
		shift := 64 - 8*len(b)
		return int64(raw<<shift) >> shift, nil
	}
	if p.Bits > 0 {
		raw = raw >> uint(p.Bit) & (1<<p.Bits - 1)
	}
	return raw, nil
}

// fromHex makes a value of the digits that stand for its bytes.
func (p *Point) fromHex(s string) (any, error) {
	s = strings.TrimPrefix(strings.TrimPrefix(s, "0x"), "0X")
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != p.width() {
		return nil, fmt.Errorf("%s is not %d hexadecimal digits", short(s), 2*p.width())
	}
	return p.fromBytes(b)
}

// binaryFormat finds fields by their place among the bytes of a frame.
type binaryFormat struct {
	points []point
	least  int // bytes of the shortest frame that has all points
}

func newBinaryFormat(o *Options, points []point) (format, error) {
	f := &binaryFormat{points: points}
	for i := range points {
		p := &points[i].Point
		end := p.At + p.width()
		if p.At < 0 {
			end = -p.At
			if p.width() > end {
				return nil, fmt.Errorf("point[%d].at: %d is less than the %d bytes of the type before the end", i, p.At, p.width())
			}
		}
		if end > o.MaxLength {
			return nil, fmt.Errorf("point[%d].at: %d is not within max_length", i, p.At)
		}
		f.least = max(f.least, end)
	}
	return f, nil
}

func (f *binaryFormat) parse(frame []byte) (fields, error) {
	if len(frame) < f.least {
		return fields{}, fmt.Errorf("frame has %d bytes, the points need %d", len(frame), f.least)
	}
	return fields{get: func(i int) (any, bool) {
		p := &f.points[i]
		at := p.At
		if at < 0 {
			at += len(frame)
		}
		v, err := p.fromBytes(slices.Clone(frame[at : at+p.width()]))
		if err != nil {
			return err, true
		}
		return v, true
	}}, nil
}
