package modbus

import (
	"encoding/hex"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// pointOf compiles a single point, failing the test if it is refused.
func pointOf(tb testing.TB, p Point) *point {
	tb.Helper()
	if p.Name == "" {
		p.Name = "p"
	}
	if p.Register == "" {
		p.Register = "holding:0"
	}
	d := DefaultDevice()
	d.Name, d.Unit, d.Points = "d", 1, []Point{p}
	c, err := compile(&d)
	if err != nil {
		tb.Fatal(err)
	}
	return c.points[0]
}

// Each type in each order, as bytes on the wire. The signed and the unsigned
// type of a width read the same bytes in the same order: a known product does
// not.
func TestDecodeEveryTypeInEveryOrder(t *testing.T) {
	values := map[string]struct {
		bytes string // most significant first
		want  any
	}{
		"uint16":  {"fffe", uint64(0xfffe)},
		"int16":   {"fffe", int64(-2)},
		"uint8":   {"00fe", uint64(0xfe)},
		"int8":    {"00fe", int64(-2)},
		"bool":    {"0100", true},
		"float16": {"4d53", 21.296875},
		"bcd16":   {"1234", uint64(1234)},
		"uint32":  {"fffefdfc", uint64(0xfffefdfc)},
		"int32":   {"fffefdfc", int64(-66052)},
		"float32": {"42f6e979", 123.456},
		"bcd32":   {"12345678", uint64(12345678)},
		"uint64":  {"fffefdfcfbfaf9f8", uint64(0xfffefdfcfbfaf9f8)},
		"int64":   {"fffefdfcfbfaf9f8", int64(-283686952306184)},
		"float64": {"405edd2f1a9fbe77", 123.456},
		"bcd64":   {"0123456789012345", uint64(123456789012345)},
	}
	// The order's name says which byte stands where: position i of the wire
	// carries the byte of that letter.
	orders := map[int][]string{
		1: {"AB", "BA"},
		2: {"ABCD", "DCBA", "BADC", "CDAB"},
		4: {"ABCDEFGH", "HGFEDCBA", "BADCFEHG", "GHEFCDAB", "EFGHABCD", "FEHGBADC", "CDABGHEF", "DCBAHGFE"},
	}
	short := map[string]string{"ABCDEFGH": "ABCD", "HGFEDCBA": "DCBA", "BADCFEHG": "BADC", "GHEFCDAB": "CDAB"}
	tested := map[string]bool{"string": true} // has a test of its own
	for typ, v := range values {
		tested[typ] = true
		bytes, err := hex.DecodeString(v.bytes)
		if err != nil {
			t.Fatal(err)
		}
		for _, order := range orders[len(bytes)/2] {
			wire := make([]byte, len(bytes))
			for i, letter := range order {
				wire[i] = bytes[letter-'A']
			}
			names := []string{order}
			if s := short[order]; s != "" {
				names = append(names, s)
			}
			for _, name := range names {
				p := pointOf(t, Point{Type: typ, Order: name})
				got, reason := p.f.decode(wire)
				if got != v.want || reason != "" {
					t.Errorf("%s in order %s: % x = %v (%s), want %v", typ, name, wire, got, reason, v.want)
				}
			}
		}
	}
	for _, typ := range Types() {
		if !tested[typ] {
			t.Errorf("type %s has no test", typ)
		}
	}
}

func TestDecodeNumbers(t *testing.T) {
	tests := map[string]struct {
		point  Point
		wire   string
		want   any
		reason string
	}{
		"scale without float noise":            {Point{Scale: 0.1}, "0003", 0.3, ""},
		"scale and offset":                     {Point{Type: "int16", Scale: 0.1, Offset: -40}, "ff9c", -50.0, ""},
		"scale of a 32-bit counter":            {Point{Type: "uint32", Scale: 0.001}, "075bcd15", 123456.789, ""},
		"offset alone":                         {Point{Offset: 5}, "0001", 6.0, ""},
		"float32 has its own digits":           {Point{Type: "float32"}, "41aa6666", 21.3, ""},
		"float32 scaled":                       {Point{Type: "float32", Scale: 0.1}, "41aa6666", 2.13, ""},
		"decimals":                             {Point{Type: "float32", Decimals: new(1)}, "40490fdb", 3.1, ""},
		"no decimals":                          {Point{Type: "float32", Decimals: new(0)}, "40490fdb", 3.0, ""},
		"zero stays zero":                      {Point{Type: "float32"}, "00000000", 0.0, ""},
		"NaN is no zero":                       {Point{Type: "float32"}, "7fc00000", nil, "not a number"},
		"infinity":                             {Point{Type: "float64"}, "fff0000000000000", nil, "not a number"},
		"half NaN":                             {Point{Type: "float16"}, "7e00", nil, "not a number"},
		"half infinity":                        {Point{Type: "float16"}, "fc00", nil, "not a number"},
		"smallest half":                        {Point{Type: "float16"}, "0001", math.Ldexp(1, -24), ""},
		"invalid pattern":                      {Point{Type: "int16", Invalid: []int64{0x8000}}, "8000", nil, "invalid value"},
		"invalid number":                       {Point{Type: "int16", Invalid: []int64{-32768}}, "8000", nil, "invalid value"},
		"invalid pattern, scaled":              {Point{Scale: 0.1, Invalid: []int64{0x8000, 0xffff}}, "ffff", nil, "invalid value"},
		"invalid minus one is all ones":        {Point{Type: "uint32", Invalid: []int64{-1}}, "ffffffff", nil, "invalid value"},
		"invalid 64 bits":                      {Point{Type: "int64", Invalid: []int64{math.MinInt64}}, "8000000000000000", nil, "invalid value"},
		"invalid after the order":              {Point{Type: "uint32", Order: "CDAB", Invalid: []int64{0x80000000}}, "00008000", nil, "invalid value"},
		"invalid float number":                 {Point{Type: "float32", Invalid: []int64{-9999}}, "c61c3c00", nil, "invalid value"},
		"invalid float pattern":                {Point{Type: "float32", Invalid: []int64{0x7f7fffff}}, "7f7fffff", nil, "invalid value"},
		"neighbour of invalid":                 {Point{Type: "int16", Invalid: []int64{0x8000}}, "8001", int64(-32767), ""},
		"bit of a register":                    {Point{Register: "holding:0.9"}, "0200", true, ""},
		"another bit":                          {Point{Register: "holding:0.8"}, "0200", false, ""},
		"bit in swapped bytes":                 {Point{Register: "holding:0.1", Order: "BA"}, "0200", true, ""},
		"high byte":                            {Point{Type: "uint8", Order: "BA"}, "ab00", uint64(0xab), ""},
		"not BCD":                              {Point{Type: "bcd16"}, "12a4", nil, "not BCD"},
		"BCD scaled":                           {Point{Type: "bcd32", Scale: 0.01}, "00123456", 1234.56, ""},
		"string":                               {Point{Type: "string", Length: 3}, "4d4f44454c00", "MODEL", ""},
		"string swapped":                       {Point{Type: "string", Length: 2, Order: "BA"}, "424144 43", "ABCD", ""},
		"string padded":                        {Point{Type: "string", Length: 2}, "41422020", "AB", ""},
		"string in Latin-1":                    {Point{Type: "string", Length: 1}, "b043", "°C", ""},
		"string not programmed":                {Point{Type: "string", Length: 2}, "ffffffff", nil, "invalid value"},
		"string empty":                         {Point{Type: "string", Length: 1}, "0000", "", ""},
		"uint64 above 2^63":                    {Point{Type: "uint64"}, "ffffffffffffffff", uint64(math.MaxUint64), ""},
		"scale overflows":                      {Point{Type: "float64", Scale: 1e300}, "7fe0000000000000", nil, "not a number"},
		"bits":                                 {Point{Bits: "4-7"}, "12a4", uint64(0xa), ""},
		"one bit as a number":                  {Point{Bits: "12"}, "1000", uint64(1), ""},
		"all bits":                             {Point{Type: "uint64", Bits: "0-63"}, "ffffffffffffffff", uint64(math.MaxUint64), ""},
		"bits across registers":                {Point{Type: "uint32", Bits: "12-19"}, "000abcde", uint64(0xab), ""},
		"bits after the order":                 {Point{Type: "uint32", Bits: "0-15", Order: "CDAB"}, "12345678", uint64(0x1234), ""},
		"bits of a byte":                       {Point{Type: "uint8", Bits: "4-7"}, "12a4", uint64(0xa), ""},
		"bits scaled":                          {Point{Bits: "8-15", Scale: 0.5}, "0500", 2.5, ""},
		"bits of an invalid register":          {Point{Bits: "0-3", Invalid: []int64{0xffff}}, "ffff", nil, "invalid value"},
		"enum":                                 {Point{Enum: map[string]string{"0": "off", "1": "on"}}, "0001", "on", ""},
		"enum in hexadecimal":                  {Point{Enum: map[string]string{"0x100": "fault"}}, "0100", "fault", ""},
		"enum of a negative number":            {Point{Type: "int16", Enum: map[string]string{"-1": "none"}}, "ffff", "none", ""},
		"enum of a negative byte":              {Point{Type: "int8", Enum: map[string]string{"-1": "none"}}, "00ff", "none", ""},
		"enum of bits":                         {Point{Bits: "8-9", Enum: map[string]string{"2": "manual"}}, "0200", "manual", ""},
		"enum of a bit":                        {Point{Register: "holding:0.9", Enum: map[string]string{"0": "open", "1": "shut"}}, "0200", "shut", ""},
		"a number without a name":              {Point{Enum: map[string]string{"0": "off"}}, "0007", "7", "a number without a name"},
		"a negative one":                       {Point{Type: "int32", Enum: map[string]string{"0": "off"}}, "fffffffe", "-2", "a number without a name"},
		"invalid is not asked for its name":    {Point{Invalid: []int64{7}, Enum: map[string]string{"7": "seven"}}, "0007", nil, "invalid value"},
		"integers stay integers with decimals": {Point{Type: "int32", Decimals: new(2)}, "0000002a", int64(42), ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			wire, err := hex.DecodeString(strings.ReplaceAll(tt.wire, " ", ""))
			if err != nil {
				t.Fatal(err)
			}
			got, reason := pointOf(t, tt.point).f.decode(wire)
			if diff := cmp.Diff(tt.want, got); diff != "" || reason != tt.reason {
				t.Errorf("decode(% x) = %v (%s), want %v (%s)", wire, got, reason, tt.want, tt.reason)
			}
		})
	}
}

func TestDeviceOrderHoldsForAllWidths(t *testing.T) {
	d := DefaultDevice()
	d.Name, d.Unit, d.Order = "d", 1, "DCBA"
	d.Points = []Point{
		{Name: "one", Register: "holding:0"},
		{Name: "two", Register: "holding:1", Type: "uint32"},
		{Name: "own", Register: "holding:3", Type: "uint32", Order: "ABCD"},
	}
	c, err := compile(&d)
	if err != nil {
		t.Fatal(err)
	}
	wire := []byte{0x34, 0x12, 0x78, 0x56, 0x34, 0x12, 0x12, 0x34, 0x56, 0x78}
	for i, want := range []uint64{0x1234, 0x12345678, 0x12345678} {
		p := c.points[i]
		if got, _ := p.f.decode(wire[2*p.reg.Addr : 2*p.end()]); got != want {
			t.Errorf("%s = %#x, want %#x", p.name, got, want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add("float32", "CDAB", 0.1, []byte{0x42, 0xf6, 0xe9, 0x79})
	f.Add("int64", "", 0.0, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	f.Add("string", "BA", 0.0, []byte("LOEDM"))
	f.Add("bcd16", "AB", 1e-9, []byte{0x99, 0x99})
	f.Fuzz(func(t *testing.T, typ, order string, scale float64, wire []byte) {
		d := DefaultDevice()
		d.Name, d.Unit = "d", 1
		d.Points = []Point{{Name: "p", Register: "input:0", Type: typ, Order: order, Scale: scale}}
		if typ == "string" {
			d.Points[0].Length = len(wire) / 2
		}
		c, err := compile(&d)
		if err != nil {
			return
		}
		p := c.points[0]
		if len(wire) < 2*p.f.n {
			return
		}
		v, reason := p.f.decode(wire[:2*p.f.n])
		switch v := v.(type) {
		case nil:
			if reason == "" {
				t.Errorf("no value and no reason for % x as %s", wire, typ)
			}
		case float64:
			if math.IsNaN(v) || math.IsInf(v, 0) {
				t.Errorf("%v out of % x as %s", v, wire, typ)
			}
		}
		if v != nil && reason != "" {
			t.Errorf("%v with reason %q", v, reason)
		}
	})
}
