package modbus

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"holdfast/adapters/reading"
)

// writable is a point with write = true.
func writable(tb testing.TB, change func(*Point)) *point {
	tb.Helper()
	d := DefaultDevice()
	d.Name, d.Unit = "m", 1
	d.Points = []Point{{Name: "p", Register: "holding:0", Write: true}}
	change(&d.Points[0])
	c, err := compile(&d)
	if err != nil {
		tb.Fatal(err)
	}
	return c.points[0]
}

func TestAcceptedValues(t *testing.T) {
	tests := map[string]struct {
		point   func(*Point)
		payload string
		want    string // data, or data/mask, or the error
		reads   any
	}{
		"plain":                        {func(*Point) {}, "42", "002a", uint64(42)},
		"in JSON":                      {func(*Point) {}, `{"value": 42}`, "002a", uint64(42)},
		"a number in a text":           {func(*Point) {}, `"42"`, "002a", uint64(42)},
		"too large":                    {func(*Point) {}, "65536", "outside of what a uint16 holds", nil},
		"negative":                     {func(*Point) {}, "-1", "outside of what a uint16 holds", nil},
		"not whole":                    {func(*Point) {}, "1.5", "not in steps of 1", nil},
		"whole with a fraction":        {func(*Point) {}, "7.0", "0007", uint64(7)},
		"a word":                       {func(*Point) {}, "warm", "not a number", nil},
		"not a number":                 {func(*Point) {}, "NaN", "not a number", nil},
		"infinite":                     {func(*Point) {}, "1e999", "not a number", nil},
		"hexadecimal":                  {func(*Point) {}, "0x10", "not a number", nil},
		"true for a number":            {func(*Point) {}, "true", "not a number", nil},
		"scaled":                       {func(p *Point) { p.Scale = 0.1 }, "21.3", "00d5", 21.3},
		"scaled, between":              {func(p *Point) { p.Scale = 0.1 }, "21.37", "not in steps of 0.1", nil},
		"scaled with an offset":        {func(p *Point) { p.Scale, p.Offset = 0.5, -40 }, "-39.5", "0001", -39.5},
		"signed":                       {func(p *Point) { p.Type = "int16" }, "-2", "fffe", int64(-2)},
		"signed, too small":            {func(p *Point) { p.Type = "int16" }, "-32769", "outside of what a int16 holds", nil},
		"signed, the least":            {func(p *Point) { p.Type = "int16" }, "-32768", "8000", int64(-32768)},
		"no value":                     {func(p *Point) { p.Type, p.Invalid = "int16", []int64{-32768} }, "-32768", "what stands for no value", nil},
		"int64, all bits":              {func(p *Point) { p.Type = "int64" }, "-9223372036854775807", "8000000000000001", int64(math.MinInt64 + 1)},
		"uint64, all bits":             {func(p *Point) { p.Type = "uint64" }, "18446744073709551615", "ffffffffffffffff", uint64(math.MaxUint64)},
		"uint64, one more":             {func(p *Point) { p.Type = "uint64" }, "18446744073709551616", "outside of what a uint64 holds", nil},
		"words reversed":               {func(p *Point) { p.Type, p.Order = "uint32", "CDAB" }, "65538", "00020001", uint64(65538)},
		"bytes swapped":                {func(p *Point) { p.Type, p.Order = "uint32", "BADC" }, "16909060", "02010403", uint64(16909060)},
		"float32":                      {func(p *Point) { p.Type = "float32" }, "21.5", "41ac0000", 21.5},
		"float32, too large":           {func(p *Point) { p.Type = "float32" }, "1e39", "outside of what a float32 holds", nil},
		"float16":                      {func(p *Point) { p.Type = "float16" }, "-1.5", "be00", -1.5},
		"float16, too large":           {func(p *Point) { p.Type = "float16" }, "65520", "outside of what a float16 holds", nil},
		"float64":                      {func(p *Point) { p.Type = "float64" }, "0.1", "3fb999999999999a", 0.1},
		"float, no value":              {func(p *Point) { p.Type, p.Invalid = "float32", []int64{-9999} }, "-9999", "what stands for no value", nil},
		"BCD":                          {func(p *Point) { p.Type = "bcd32" }, "12345678", "12345678", uint64(12345678)},
		"BCD, too long":                {func(p *Point) { p.Type = "bcd16" }, "12345", "outside of what a bcd16 holds", nil},
		"half a register":              {func(p *Point) { p.Type = "int8" }, "-1", "00ff/00ff", int64(-1)},
		"half a register, swapped":     {func(p *Point) { p.Type, p.Order = "uint8", "BA" }, "5", "0500/ff00", uint64(5)},
		"half a register, too large":   {func(p *Point) { p.Type = "uint8" }, "256", "outside of what a uint8 holds", nil},
		"one bit":                      {func(p *Point) { p.Register = "holding:0.4" }, "on", "0010/0010", true},
		"one bit, swapped":             {func(p *Point) { p.Register, p.Order = "holding:0.4", "BA" }, "1", "1000/1000", true},
		"one bit off":                  {func(p *Point) { p.Register = "holding:0.4" }, "false", "0000/0010", false},
		"a register as bool":           {func(p *Point) { p.Type = "bool" }, "ON", "0001", true},
		"a coil":                       {func(p *Point) { p.Register = "coil:0" }, `{"value":true,"id":7}`, "01", true},
		"a coil, neither":              {func(p *Point) { p.Register = "coil:0" }, "2", errNoBool.Error(), nil},
		"a text":                       {func(p *Point) { p.Type, p.Length = "string", 2 }, "abc", "61626300", "abc"},
		"a text in JSON":               {func(p *Point) { p.Type, p.Length = "string", 2 }, `{"value":"abc"}`, "61626300", "abc"},
		"a text, too long":             {func(p *Point) { p.Type, p.Length = "string", 2 }, "abcde", "5 bytes, the device takes 4", nil},
		"within min and max":           {func(p *Point) { p.Min, p.Max = new(5.0), new(30.0) }, "30", "001e", uint64(30)},
		"below min":                    {func(p *Point) { p.Min, p.Max = new(5.0), new(30.0) }, "4", "below min, 5", nil},
		"above max":                    {func(p *Point) { p.Min, p.Max = new(5.0), new(30.0) }, "31", "above max, 30", nil},
		"in steps from min":            {func(p *Point) { p.Min, p.Step = new(5.0), 10 }, "25", "0019", uint64(25)},
		"between steps":                {func(p *Point) { p.Min, p.Step = new(5.0), 10 }, "20", "not in steps of 10", nil},
		"in steps of a tenth":          {func(p *Point) { p.Type, p.Step = "float32", 0.1 }, "0.3", "3e99999a", 0.3},
		"allowed":                      {func(p *Point) { p.Allowed, p.Enum = []string{"1", "eco"}, map[string]string{"2": "eco", "7": "boost"} }, "1", "0001", "1"},
		"allowed by its name":          {func(p *Point) { p.Allowed, p.Enum = []string{"1", "eco"}, map[string]string{"2": "eco", "7": "boost"} }, "eco", "0002", "eco"},
		"allowed, written another way": {func(p *Point) { p.Allowed, p.Enum = []string{"1", "eco"}, map[string]string{"2": "eco", "7": "boost"} }, "2.0", "0002", "eco"},
		"a name not allowed":           {func(p *Point) { p.Allowed, p.Enum = []string{"1"}, map[string]string{"1": "on", "7": "boost"} }, "boost", "not one of the allowed values", nil},
		"a name of nothing":            {func(p *Point) { p.Enum = map[string]string{"1": "on"} }, "warm", "not a number", nil},
		"a name of a negative":         {func(p *Point) { p.Type, p.Enum = "int16", map[string]string{"-1": "off"} }, "off", "ffff", "off"},
		"a coil by its name":           {func(p *Point) { p.Register, p.Enum = "coil:0", map[string]string{"0": "closed", "1": "open"} }, "open", "01", "open"},
		"a field of bits":              {func(p *Point) { p.Bits = "4-7" }, "9", "0090/00f0", uint64(9)},
		"a field of bits, too large":   {func(p *Point) { p.Bits = "4-7" }, "16", "more than 4 bits hold", nil},
		"a field in two registers":     {func(p *Point) { p.Type, p.Bits = "uint32", "15-16" }, "3", "00018000/00018000", uint64(3)},
		"not allowed":                  {func(p *Point) { p.Allowed, p.Enum = []string{"1", "eco"}, map[string]string{"2": "eco", "7": "boost"} }, "3", "not one of the allowed values", nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			p := writable(t, tt.point)
			value, _, err := parseCommand([]byte(tt.payload), p.f.typ == "string")
			if err != nil {
				t.Fatal(err)
			}
			c, reads, err := p.accept(value)
			got := fmt.Sprintf("%x", c.data)
			if c.mask != nil {
				got += fmt.Sprintf("/%x", c.mask)
			}
			if err != nil {
				got = err.Error()
			}
			if got != tt.want || reads != tt.reads {
				t.Errorf("%s is %s and reads %v (%T), want %s and %v (%T)", tt.payload, got, reads, reads, tt.want, tt.reads, tt.reads)
			}
		})
	}
}

// What was written reads as what was to be written, for all types and orders.
func TestEncodeIsTheInverseOfDecode(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		typ := rapid.SampledFrom([]string{"int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64", "bcd16", "bcd32", "bcd64"}).Draw(t, "type")
		f := format{
			typ: typ, n: typeRegisters(typ), bit: noBit, decimals: -1,
			scale: rapid.SampledFrom([]float64{1, 0.1, -0.5, 100}).Draw(t, "scale"), offset: rapid.SampledFrom([]float64{0, -40}).Draw(t, "offset"),
			order: order{dwordsSwapped: rapid.Bool().Draw(t, "dwords"), wordsSwapped: rapid.Bool().Draw(t, "words"), bytesSwapped: rapid.Bool().Draw(t, "bytes")},
		}
		wire := rapid.SliceOfN(rapid.Byte(), 2*f.n, 2*f.n).Draw(t, "wire")
		value, reason := f.decode(wire)
		if reason != "" {
			t.Skip("no value")
		}
		var text string
		switch v := value.(type) {
		case float64:
			if !strings.HasPrefix(typ, "float") && math.Abs(v) > 1e14 {
				t.Skip("more digits than a float64 has")
			}
			text = strconv.FormatFloat(v, 'g', -1, 64)
		default:
			text = fmt.Sprint(v)
		}
		c, err := f.encode(json.Number(text))
		if err != nil {
			t.Fatalf("%s of % x, which reads %s: %v", typ, wire, text, err)
		}
		again, _ := f.decode(c.data)
		got, isFloat := again.(float64)
		want, _ := value.(float64)
		if again != value && !(isFloat && strings.HasPrefix(typ, "float") && math.Abs(got-want) <= 1e-3*math.Abs(want)+1e-3) {
			t.Errorf("%s: % x reads %v, is written % x and reads %v", typ, wire, value, c.data, again)
		}
	})
}

func TestHalfIsTheInverseOfFloat16(t *testing.T) {
	for h := range 1 << 16 {
		v := reading.Float16(uint16(h))
		if math.IsNaN(v) || math.IsInf(v, 0) {
			continue
		}
		if got, ok := half(v); !ok || got != uint16(h) {
			t.Fatalf("half(%v) = %#x, %v, want %#x", v, got, ok, h)
		}
	}
}

func TestWriteOptionsThatAreWrong(t *testing.T) {
	tests := map[string]struct {
		change func(*Point)
		want   string
	}{
		"min of a point that is read":         {func(p *Point) { p.Write, p.Min = false, new(1.0) }, "min: only a point"},
		"an input register":                   {func(p *Point) { p.Register = "input:0" }, "write: input:0 can only be read"},
		"a discrete input":                    {func(p *Point) { p.Register = "discrete:0" }, "write: discrete:0 can only be read"},
		"min above max":                       {func(p *Point) { p.Min, p.Max = new(2.0), new(1.0) }, "min: 2 is above max, 1"},
		"min that is no number":               {func(p *Point) { p.Min = new(math.NaN()) }, "min: NaN is not a number"},
		"max that is no number":               {func(p *Point) { p.Max = new(math.Inf(1)) }, "max: +Inf is not a number"},
		"min of a coil":                       {func(p *Point) { p.Register, p.Min = "coil:0", new(1.0) }, "min: only a number"},
		"a negative step":                     {func(p *Point) { p.Step = -1 }, "step: -1"},
		"an unknown way to verify":            {func(p *Point) { p.Verify = "maybe" }, `verify: "maybe"`},
		"a function for coils":                {func(p *Point) { p.WriteFunction = 5 }, "write_function: 5"},
		"6 for two registers":                 {func(p *Point) { p.Type, p.WriteFunction = "float32", 6 }, "write_function: 6"},
		"22 for a whole register":             {func(p *Point) { p.WriteFunction = 22 }, "write_function: 22"},
		"an allowed value too large":          {func(p *Point) { p.Allowed = []string{"1", "70000"} }, `allowed[1]: "70000" is outside`},
		"a value that has a scale of its own": {func(p *Point) { p.ScaleRegister = "holding:1" }, "write: a point with scale_register"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			d := DefaultDevice()
			d.Name, d.Unit = "m", 1
			d.Points = []Point{{Name: "p", Register: "holding:0", Write: true}}
			tt.change(&d.Points[0])
			if err := d.Validate(); err == nil || !strings.Contains(err.Error(), "device.m.point[0]."+tt.want) {
				t.Errorf("Validate() = %v, want device.m.point[0].%s", err, tt.want)
			}
		})
	}
}

func FuzzParseCommand(f *testing.F) {
	for _, s := range []string{"1", "-2.5e3", `"x"`, `{"value":1,"id":"a"}`, `{"value":true,"id":5}`, "ON", "{", `{"value":{}}`, "[1]"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		value, _, err := parseCommand(payload, false)
		if err != nil {
			return
		}
		for _, typ := range Types() {
			if typ == "string" {
				continue
			}
			ff := format{typ: typ, n: typeRegisters(typ), bit: noBit, scale: 1, decimals: -1}
			c, err := ff.encode(value)
			if err == nil && len(c.data) != 2*ff.n {
				t.Errorf("%s of %q: % x", typ, payload, c.data)
			}
			if _, reason := ff.decode(c.data); err == nil && reason != "" {
				t.Errorf("%s of %q is written % x, which is %s", typ, payload, c.data, reason)
			}
		}
	})
}
