package modbus

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"math"
	"strings"
	"testing"
)

// What a value looks like in registers, what stands there without one, and that it
// comes out again.
func TestCodec(t *testing.T) {
	tests := map[string]struct {
		point  Point
		value  any
		want   string // hexadecimal; empty: it does not fit
		back   any
		absent string
	}{
		"float":                    {Point{Register: "input:0", Type: "float32"}, 21.5, "41ac0000", 21.5, "7fc00000"},
		"float, words swapped":     {Point{Register: "input:0", Type: "float32", Order: "CDAB"}, 21.5, "000041ac", 21.5, "00007fc0"},
		"half":                     {Point{Register: "input:0", Type: "float16"}, 1.5, "3e00", 1.5, "7e00"},
		"double":                   {Point{Register: "input:0", Type: "float64"}, int64(-2), "c000000000000000", -2.0, "7ff8000000000001"},
		"signed":                   {Point{Register: "holding:0", Type: "int16"}, int64(-1), "ffff", int64(-1), "8000"},
		"the nearest step":         {Point{Register: "holding:0", Type: "int16", Scale: 0.1}, 21.57, "00d8", 21.6, "8000"},
		"an offset":                {Point{Register: "holding:0", Scale: 0.5, Offset: -40}, 20.0, "0078", 20.0, "ffff"},
		"unsigned, 64 bits":        {Point{Register: "holding:0", Type: "uint64"}, uint64(1) << 63, "8000000000000000", uint64(1) << 63, "ffffffffffffffff"},
		"BCD":                      {Point{Register: "holding:0", Type: "bcd32"}, int64(12345678), "12345678", uint64(12345678), "ffffffff"},
		"a text":                   {Point{Register: "holding:0", Type: "string", Length: 3}, "abc", "616263000000", "abc", "000000000000"},
		"a number as a text":       {Point{Register: "holding:0", Type: "string", Length: 2}, int64(17), "31370000", "17", "00000000"},
		"true in a register":       {Point{Register: "holding:0"}, true, "0001", uint64(1), "ffff"},
		"a name":                   {Point{Register: "holding:0", Enum: map[string]string{"7": "run"}}, "run", "0007", "run", "ffff"},
		"a coil":                   {Point{Register: "coil:0"}, true, "01", true, ""},
		"a discrete input of 0":    {Point{Register: "discrete:0"}, int64(0), "00", false, ""},
		"another invalid":          {Point{Register: "holding:0", Type: "int16", Invalid: []int64{-1}}, int64(-32768), "8000", int64(-32768), "ffff"},
		"a float's invalid":        {Point{Register: "holding:0", Type: "float32", Invalid: []int64{-9999}}, 1.0, "3f800000", 1.0, "c61c3c00"},
		"too large":                {Point{Register: "holding:0"}, int64(70000), "", nil, "ffff"},
		"what is taken for none":   {Point{Register: "holding:0"}, int64(65535), "", nil, "ffff"},
		"not a number":             {Point{Register: "holding:0", Type: "float32"}, math.NaN(), "", nil, "7fc00000"},
		"no number":                {Point{Register: "holding:0"}, "on", "", nil, "ffff"},
		"a text that is too long":  {Point{Register: "holding:0", Type: "string", Length: 1}, "abc", "", nil, "0000"},
		"neither true nor false":   {Point{Register: "coil:0"}, int64(2), "", nil, ""},
		"nothing":                  {Point{Register: "holding:0"}, nil, "", nil, "ffff"},
		"a large number in a half": {Point{Register: "holding:0", Type: "float16"}, 1e6, "", nil, "7e00"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c, err := NewCodec(tt.point)
			if err != nil {
				t.Fatal(err)
			}
			if got := hex.EncodeToString(c.Absent()); got != tt.absent {
				t.Errorf("without a value %s, want %s", got, tt.absent)
			}
			if tt.absent != "" && tt.point.Type != "string" {
				if v := c.Decode(c.Absent()); v != nil {
					t.Errorf("what stands for no value decodes as %v", v)
				}
			}
			got, err := c.Encode(tt.value)
			if (err != nil) != (tt.want == "") {
				t.Fatalf("Encode(%v): %v", tt.value, err)
			}
			if err != nil {
				return
			}
			if hex.EncodeToString(got) != tt.want {
				t.Errorf("Encode(%v) = %x, want %s", tt.value, got, tt.want)
			}
			if back := c.Decode(got); back != tt.back {
				t.Errorf("Decode(%x) = %v, want %v", got, back, tt.back)
			}
		})
	}
}

func TestCodecRefuses(t *testing.T) {
	for key, p := range map[string]Point{
		"register: ": {Register: "holding:1.3"},
		"type: ":     {Register: "holding:1", Type: "int8"},
		"length: ":   {Register: "holding:1", Type: "string"},
		"invalid[0]": {Register: "holding:1", Invalid: []int64{1 << 20}},
	} {
		if _, err := NewCodec(p); err == nil || !strings.HasPrefix(err.Error(), key) {
			t.Errorf("NewCodec(%+v): %v, want an error of %q", p, err, key)
		}
	}
}

// Whatever is in the registers, a value that comes out goes in again.
func FuzzCodec(f *testing.F) {
	f.Add(byte(0), uint64(0x41ac0000), 0.1)
	f.Add(byte(5), uint64(0xffff), 1.0)
	types := []string{"int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64", "bcd16", "bcd32", "bcd64", "bool"}
	f.Fuzz(func(t *testing.T, typ byte, raw uint64, scale float64) {
		p := Point{Register: "holding:0", Type: types[int(typ)%len(types)]}
		if strings.HasPrefix(p.Type, "int") && scale > 1e-3 && scale < 1e3 {
			p.Scale = scale
		}
		c, err := NewCodec(p)
		if err != nil {
			t.Fatal(err)
		}
		var b [8]byte
		binary.BigEndian.PutUint64(b[:], raw)
		in := b[8-2*c.Len():]
		v := c.Decode(in)
		if v == nil {
			return
		}
		out, err := c.Encode(v)
		if err != nil {
			// The largest numbers of 64 bits are no floats.
			if p.Scale != 0 && strings.HasSuffix(p.Type, "64") {
				return
			}
			t.Fatalf("%s: Decode(%x) = %v: %v", p.Type, in, v, err)
		}
		if again := c.Decode(out); again != v && !(p.Scale != 0 && strings.HasSuffix(p.Type, "64")) {
			t.Errorf("%s of scale %v: %x is %v, and %x is %v", p.Type, p.Scale, in, v, out, again)
		}
		if p.Scale == 0 && !bytes.Equal(in, out) && p.Type != "bool" && !strings.HasPrefix(p.Type, "float") {
			t.Errorf("%s: %x became %x", p.Type, in, out)
		}
	})
}
