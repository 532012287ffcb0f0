package reading_test

import (
	"encoding/json"
	"math"
	"math/big"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"holdfast/adapters/reading"
)

var noon = time.Date(2026, 1, 2, 15, 4, 5, 123_999_000, time.FixedZone("CET", 3600))

func TestAppendJSON(t *testing.T) {
	at := reading.Stamp{Wall: noon, Synchronised: true}
	const tail = `,"quality":"good","time":"2026-01-02T14:04:05.123Z","clock":"synchronised"}`
	const bad = `,"quality":"bad","reason":"not a number","time":"2026-01-02T14:04:05.123Z","clock":"synchronised"}`
	tests := map[string]struct {
		r    reading.Reading
		want string
	}{
		"shortest decimals":    {reading.Reading{Value: 0.1, Unit: "kW"}, `{"value":0.1,"unit":"kW"` + tail},
		"no fraction":          {reading.Reading{Value: 23.0}, `{"value":23` + tail},
		"large":                {reading.Reading{Value: 1e21}, `{"value":1e+21` + tail},
		"small":                {reading.Reading{Value: 1.5e-7}, `{"value":1.5e-07` + tail},
		"minus zero":           {reading.Reading{Value: math.Copysign(0, -1)}, `{"value":0` + tail},
		"int64":                {reading.Reading{Value: int64(math.MinInt64)}, `{"value":-9223372036854775808` + tail},
		"uint64":               {reading.Reading{Value: uint64(math.MaxUint64)}, `{"value":18446744073709551615` + tail},
		"bool":                 {reading.Reading{Value: true}, `{"value":true` + tail},
		"nothing":              {reading.Reading{}, `{"value":null` + tail},
		"text":                 {reading.Reading{Value: "a\"\\\n\r\t\x01\x7f é\xff"}, `{"value":"a\"\\\n\r\t\u0001\u007f é` + "\ufffd" + `"` + tail},
		"nan":                  {reading.Reading{Value: math.NaN()}, `{"value":null` + bad},
		"infinity":             {reading.Reading{Value: math.Inf(-1)}, `{"value":null` + bad},
		"a type of no meaning": {reading.Reading{Value: []int{1}}, `{"value":null` + bad},
		"bad hides its value": {
			reading.Reading{Value: 65535.0, Quality: reading.Bad, Reason: "exception 2"},
			`{"value":null,"quality":"bad","reason":"exception 2","time":"2026-01-02T14:04:05.123Z","clock":"synchronised"}`,
		},
		"uncertain keeps its value": {
			reading.Reading{Value: 1.0, Quality: reading.Uncertain},
			`{"value":1,"quality":"uncertain","time":"2026-01-02T14:04:05.123Z","clock":"synchronised"}`,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			tt.r.Time = at
			if got := string(tt.r.AppendJSON(nil)); got != tt.want {
				t.Errorf("AppendJSON = %s\nwant         %s", got, tt.want)
			}
			if got, err := json.Marshal(&tt.r); err != nil || !json.Valid(got) {
				t.Errorf("Marshal = %s, %v", got, err)
			}
		})
	}
	r := reading.Reading{Value: 1.0, Time: reading.Stamp{Wall: noon}}
	if got := string(r.AppendJSON(nil)); !strings.HasSuffix(got, `"clock":"unsynchronised"}`) {
		t.Errorf("an unset clock is not said: %s", got)
	}
	r.Time.Device = noon.Add(-time.Hour)
	if got := string(r.AppendJSON(nil)); !strings.HasSuffix(got, `"time":"2026-01-02T13:04:05.123Z","clock":"device"}`) {
		t.Errorf("the device's own time is not taken: %s", got)
	}
}

// Whatever the strings and numbers: valid JSON that says the same.
func TestJSONIsValidAndExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := rapid.Float64().Draw(t, "value")
		r := reading.Reading{Value: f, Unit: string(rapid.SliceOf(rapid.Byte()).Draw(t, "unit"))}
		var got struct {
			Value *float64
			Unit  string
		}
		b := r.AppendJSON(nil)
		if err := json.Unmarshal(b, &got); err != nil {
			t.Fatalf("%s: %v", b, err)
		}
		if got.Value == nil || *got.Value != f {
			t.Fatalf("%v became %s", f, b)
		}
		if want := strings.ToValidUTF8(r.Unit, "\ufffd"); strings.ReplaceAll(got.Unit, "\ufffd", "") != strings.ReplaceAll(want, "\ufffd", "") {
			t.Fatalf("%q became %q", r.Unit, got.Unit)
		}
	})
}

func TestAppendJSONDoesNotAllocate(t *testing.T) {
	r := reading.Reading{Device: "d", Point: "p", Value: 21.5, Unit: "°C", Time: reading.Stamp{Wall: noon}}
	b := make([]byte, 0, 256)
	if n := testing.AllocsPerRun(100, func() { b = r.AppendJSON(b[:0]) }); n != 0 {
		t.Errorf("AppendJSON allocates %v times, want 0", n)
	}
}

func TestScale(t *testing.T) {
	tests := map[string]struct{ value, scale, offset, want float64 }{
		"three tenths":            {3, 0.1, 0, 0.3},
		"cancellation":            {1000.1, 1, -1000, 0.1},
		"temperature":             {403, 0.1, -40, 0.3},
		"hundredths":              {1234567, 0.01, 0, 12345.67},
		"millionths":              {1, 1e-6, 0, 1e-6},
		"unscaled noise stays":    {0.1 + 0.2, 1, 0, 0.1 + 0.2},
		"large":                   {1e300, 2, 0, 2e300},
		"a third has no decimals": {1, 1.0 / 3, 0, 1.0 / 3},
		"negative":                {-32768, 0.1, 0, -3276.8},
	}
	for name, tt := range tests {
		if got := reading.Scale(tt.value, tt.scale, tt.offset); got != tt.want {
			t.Errorf("%s: Scale(%v, %v, %v) = %v, want %v", name, tt.value, tt.scale, tt.offset, got, tt.want)
		}
	}
	if got := reading.Scale(math.NaN(), 2, 0); !math.IsNaN(got) {
		t.Errorf("Scale(NaN) = %v", got)
	}
}

// A register times a scale of few decimals is what exact arithmetic gives.
func TestScaleIsExactForRegisters(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := float64(rapid.Int32().Draw(t, "register"))
		scale := strconv.FormatInt(int64(rapid.IntRange(-999, 999).Draw(t, "mantissa")), 10) + "e-" +
			strconv.Itoa(rapid.IntRange(0, 5).Draw(t, "decimals"))
		offset := strconv.FormatInt(int64(rapid.IntRange(-9999, 9999).Draw(t, "offset")), 10) + "e-2"
		s, _ := new(big.Rat).SetString(scale)
		o, _ := new(big.Rat).SetString(offset)
		want, _ := new(big.Rat).Add(new(big.Rat).Mul(new(big.Rat).SetFloat64(v), s), o).Float64()
		sf, _ := strconv.ParseFloat(scale, 64)
		of, _ := strconv.ParseFloat(offset, 64)
		if got := reading.Scale(v, sf, of); got != want {
			t.Fatalf("Scale(%v, %s, %s) = %v, want %v", v, scale, offset, got, want)
		}
	})
}

func TestFloat32KeepsItsDecimals(t *testing.T) {
	if got := reading.Float32(21.3); got != 21.3 {
		t.Errorf("Float32(21.3) = %v", got)
	}
	rapid.Check(t, func(t *rapid.T) {
		f := rapid.Float32().Draw(t, "f")
		if got := reading.Float32(f); float32(got) != f || strconv.FormatFloat(got, 'g', -1, 64) != strconv.FormatFloat(float64(f), 'g', -1, 32) {
			t.Fatalf("Float32(%v) = %v", f, got)
		}
	})
	if !math.IsNaN(reading.Float32(float32(math.NaN()))) || !math.IsInf(reading.Float32(float32(math.Inf(1))), 1) {
		t.Error("Float32 of NaN or infinity is a number")
	}
}

func TestValidName(t *testing.T) {
	for name, ok := range map[string]bool{
		"boiler": true, "pump house 7": true, "temp.é": true, "$SYS": true,
		"": false, "a/b": false, "+": false, "a#": false, "a\x00": false, "a\n": false, "\xff": false, "\u0085": false,
		strings.Repeat("x", 128): true, strings.Repeat("x", 129): false,
	} {
		if err := reading.ValidName(name); (err == nil) != ok {
			t.Errorf("ValidName(%q) = %v", name, err)
		}
	}
}
