package serial

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"holdfast/adapters/reading"
)

func TestDecode(t *testing.T) {
	weight := []Point{{Name: "weight", Unit: "kg"}}
	regexpOptions := func(pattern string, points ...Point) Options {
		o := DefaultOptions()
		o.Pattern, o.Points = pattern, points
		return o
	}
	jsonOptions := func(points ...Point) Options {
		o := DefaultOptions()
		o.Format, o.Points = FormatJSON, points
		return o
	}
	kv := func(change func(*Options), points ...Point) Options {
		o := DefaultOptions()
		o.Format, o.Points = FormatKeyValue, points
		if change != nil {
			change(&o)
		}
		return o
	}
	good := func(point string, v any) reading.Reading {
		return reading.Reading{Device: "scale", Point: point, Value: v}
	}
	bad := func(point, reason string) reading.Reading {
		return reading.Reading{Device: "scale", Point: point, Quality: reading.Bad, Reason: reason}
	}
	unit := func(r reading.Reading, unit string) reading.Reading { r.Unit = unit; return r }
	const none = "device has no value"

	tests := map[string]struct {
		o       Options
		frame   string
		want    []reading.Reading
		missing int
		broken  int
		err     string
	}{
		"a named group": {
			o: regexpOptions(`^W=(?P<weight>[-0-9.]+)kg$`, weight...), frame: "W=12.50kg",
			want: []reading.Reading{unit(good("weight", 12.5), "kg")},
		},
		"whole numbers stay whole": {
			o: regexpOptions(`^(?P<weight>.*)$`, weight...), frame: "+0042",
			want: []reading.Reading{unit(good("weight", int64(42)), "kg")},
		},
		"the largest counter": {
			o: regexpOptions(`^(?P<weight>.*)$`, weight...), frame: "18446744073709551615",
			want: []reading.Reading{unit(good("weight", uint64(math.MaxUint64)), "kg")},
		},
		"no match": {
			o: regexpOptions(`^W=(?P<weight>[-0-9.]+)kg$`, weight...), frame: "W=12W=13kg", err: "does not match",
		},
		"an optional group that is not there": {
			o:     regexpOptions(`^(?P<a>\d+)( (?P<b>\d+))?$`, Point{Name: "a"}, Point{Name: "b"}),
			frame: "1", want: []reading.Reading{good("a", int64(1))}, missing: 1,
		},
		"scale and offset without noise": {
			o:     regexpOptions(`^(?P<t>\d+)$`, Point{Name: "t", Scale: 0.1, Offset: -40}),
			frame: "403", want: []reading.Reading{good("t", 0.3)},
		},
		"a field under another name": {
			o:     regexpOptions(`^(?P<x>\d+)$`, Point{Name: "weight", Field: "x"}),
			frame: "7", want: []reading.Reading{good("weight", int64(7))},
		},
		"invalid numbers and texts are null": {
			o: kv(nil, Point{Name: "a", Invalid: []any{int64(9999)}}, Point{Name: "b", Invalid: []any{"ERR"}},
				Point{Name: "c", Invalid: []any{-32768.0}, Scale: 0.1}),
			frame: "a=9999.0, b=ERR, c=-32768", want: []reading.Reading{bad("a", none), bad("b", none), bad("c", none)},
		},
		"not a number": {
			o: kv(nil, Point{Name: "a"}, Point{Name: "b"}), frame: "a=OL,b=2",
			want: []reading.Reading{bad("a", `"OL" is not a number`), good("b", int64(2))}, broken: 1,
		},
		"what ParseFloat takes and people do not": {
			o:     kv(nil, Point{Name: "a"}, Point{Name: "b"}, Point{Name: "c"}, Point{Name: "d"}),
			frame: "a=NaN,b=infinity,c=0x1p4,d=1e999",
			want: []reading.Reading{
				bad("a", `"NaN" is not a number`), bad("b", `"infinity" is not a number`),
				bad("c", `"0x1p4" is not a number`), bad("d", `"1e999" is not a number that fits`),
			}, broken: 4,
		},
		"text and truth": {
			o:     kv(nil, Point{Name: "s", Type: "text"}, Point{Name: "on", Type: "bool"}, Point{Name: "x", Type: "bool"}),
			frame: "s=run A,on=ON,x=maybe",
			want:  []reading.Reading{good("s", "run A"), good("on", true), bad("x", `"maybe" is not a truth value`)}, broken: 1,
		},
		"pairs by white space and colon": {
			o: kv(func(o *Options) { o.PairSeparator, o.KeySeparator = " ", ":" }, Point{Name: "t"}, Point{Name: "h"}), frame: "  t:1.5\t h:2 junk",
			want: []reading.Reading{good("t", 1.5), good("h", int64(2))},
		},
		"none of the keys": {o: kv(nil, Point{Name: "t"}), frame: "x=1", err: "none of the points"},
		"json paths": {
			o: jsonOptions(Point{Name: "t", Field: "data.0.temp"}, Point{Name: "id"}, Point{Name: "dotted", Field: "a.b"},
				Point{Name: "deep", Field: "c.d.e"}, Point{Name: "gone", Field: "data.1.temp"}),
			frame: `{"data":[{"temp":21.3}],"id":9007199254740993,"a.b":1,"c":{"d.e":2}}`,
			want: []reading.Reading{
				good("t", 21.3), good("id", int64(9007199254740993)), good("dotted", int64(1)), good("deep", int64(2)),
			}, missing: 1,
		},
		"json values of each kind": {
			o:     jsonOptions(Point{Name: "n"}, Point{Name: "s"}, Point{Name: "b", Type: "bool"}, Point{Name: "o"}, Point{Name: "t", Type: "text"}),
			frame: `{"n":null,"s":" 5 ","b":true,"o":{},"t":"é"}`,
			want: []reading.Reading{
				bad("n", none), good("s", int64(5)), good("b", true), bad("o", "is an object or array, not a value"), good("t", "é"),
			}, broken: 1,
		},
		"half a document":   {o: jsonOptions(Point{Name: "t"}), frame: `{"t":1`, err: "not JSON"},
		"two documents":     {o: jsonOptions(Point{Name: "t"}), frame: `{"t":1}{"t":2}`, err: "something follows"},
		"json, but a list":  {o: jsonOptions(Point{Name: "t"}), frame: `[1]`, err: "none of the points"},
		"json, but a value": {o: jsonOptions(Point{Name: "t"}), frame: `12`, err: "none of the points"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			d, err := newDecoder("scale", &tt.o)
			if err != nil {
				t.Fatal(err)
			}
			res, err := d.decode([]byte(tt.frame), reading.Stamp{})
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("decode(%q) = %v, want %q", tt.frame, err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatalf("decode(%q): %v", tt.frame, err)
			}
			if diff := cmp.Diff(tt.want, res.readings); diff != "" {
				t.Errorf("decode(%q) (-want +got):\n%s", tt.frame, diff)
			}
			if res.missing != tt.missing || res.broken != tt.broken || (res.why != nil) != (tt.broken > 0) {
				t.Errorf("missing %d, broken %d (%v), want %d, %d", res.missing, res.broken, res.why, tt.missing, tt.broken)
			}
		})
	}
}

func TestValidateNamesTheKey(t *testing.T) {
	base := func() Options {
		o := DefaultOptions()
		o.Pattern, o.Points = `^(?P<w>\d+)$`, []Point{{Name: "w"}}
		return o
	}
	tests := map[string]struct {
		change func(*Options)
		want   string
	}{
		"valid":                        {func(*Options) {}, ""},
		"no delimiter":                 {func(o *Options) { o.Delimiter = "" }, "delimiter: "},
		"long delimiter":               {func(o *Options) { o.Delimiter = "123456789" }, "delimiter: "},
		"no length":                    {func(o *Options) { o.MaxLength = 0 }, "max_length: 0"},
		"too much length":              {func(o *Options) { o.MaxLength = 1 << 20 }, "max_length: 1048576"},
		"short timeout":                {func(o *Options) { o.FrameTimeout = time.Millisecond }, "frame_timeout: 1ms"},
		"no timeout":                   {func(o *Options) { o.FrameTimeout = 0 }, ""},
		"format":                       {func(o *Options) { o.Format = "xml" }, `format: "xml"`},
		"qos":                          {func(o *Options) { o.QoS = 3 }, "qos: 3"},
		"no prefix":                    {func(o *Options) { o.TopicPrefix = "" }, "topic_prefix: "},
		"wildcard prefix":              {func(o *Options) { o.TopicPrefix = "a/#" }, "topic_prefix: "},
		"prefix of levels":             {func(o *Options) { o.TopicPrefix = "a/b" }, ""},
		"no pattern":                   {func(o *Options) { o.Pattern = "" }, "pattern: is missing"},
		"bad pattern":                  {func(o *Options) { o.Pattern = "(" }, "pattern: "},
		"pattern elsewhere":            {func(o *Options) { o.Format = FormatJSON }, "pattern: has no use"},
		"bad ignore":                   {func(o *Options) { o.Ignore = "[" }, "ignore: "},
		"no points":                    {func(o *Options) { o.Points = nil }, "point: "},
		"point without group":          {func(o *Options) { o.Points[0].Field = "x" }, "point[0].field: "},
		"point name":                   {func(o *Options) { o.Points[0].Name = "a/b" }, "point[0].name: "},
		"point twice":                  {func(o *Options) { o.Points = append(o.Points, o.Points[0]) }, "point[1].name: "},
		"point type":                   {func(o *Options) { o.Points[0].Type = "int" }, "point[0].type: "},
		"point scale":                  {func(o *Options) { o.Points[0].Scale = math.Inf(1) }, "point[0].scale: "},
		"point offset":                 {func(o *Options) { o.Points[0].Offset = math.NaN() }, "point[0].offset: "},
		"scaled text":                  {func(o *Options) { o.Points[0].Type, o.Points[0].Scale = "text", 2 }, "point[0].scale: "},
		"invalid of another type":      {func(o *Options) { o.Points[0].Invalid = []any{true} }, "point[0].invalid: "},
		"key_value without separators": {func(o *Options) { o.Format, o.Pattern, o.PairSeparator = FormatKeyValue, "", "" }, "pair_separator: "},
		"key_value without key":        {func(o *Options) { o.Format, o.Pattern, o.KeySeparator = FormatKeyValue, "", "" }, "key_separator: "},
		"key_value, both the same":     {func(o *Options) { o.Format, o.Pattern, o.KeySeparator = FormatKeyValue, "", "," }, "key_separator: "},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			o := base()
			tt.change(&o)
			err := o.Validate()
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.HasPrefix(err.Error(), tt.want)) {
				t.Errorf("Validate = %v, want %q", err, tt.want)
			}
		})
	}
}

// Whatever is on the line, a decoder does not panic, and its readings are
// JSON.
func FuzzDecode(f *testing.F) {
	decoders := make([]*decoder, 0, 3)
	for _, format := range Formats() {
		o := DefaultOptions()
		o.Format = format
		if format == FormatRegexp {
			o.Pattern = `(?P<a>[^,]*),?(?P<b>.*)`
		}
		o.Points = []Point{
			{Name: "a", Scale: 0.1, Offset: 3, Invalid: []any{int64(5), "ERR"}},
			{Name: "b", Type: TypeText},
			{Name: "c", Field: "b", Type: TypeBool},
			{Name: "d", Field: "a"},
		}
		switch o.Format {
		case FormatBinary:
			o.Points = []Point{{Name: "a"}, {Name: "b", Type: TypeString, Length: 5, At: 1}, {Name: "c", Type: TypeBCD, Length: 3, At: -3}, {Name: "d", Type: "float32"}}
		case FormatCSV:
			o.Columns = []string{"a", "b"}
		case FormatJSON:
			o.Points[3].Field = "a.0.b"
		case FormatNMEA:
			for i, field := range []string{"RMC.1", "XDR.a", "RMC.status", "RMC.latitude"} {
				o.Points[i].Field = field
			}
		}
		d, err := newDecoder("device", &o)
		if err != nil {
			f.Fatal(err)
		}
		decoders = append(decoders, d)
	}
	for _, seed := range []string{"1.5,on", `{"a":[{"b":1}],"b":"x"}`, "a=5,b=\xff", "a=1e308", "$GPRMC,1,A,4807.038,N", `{"a":"` + strings.Repeat("9", 400) + `"}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		for _, d := range decoders {
			res, err := d.decode(frame, reading.Stamp{Wall: time.Unix(1, 0)})
			if err != nil {
				continue
			}
			for _, r := range res.readings {
				if b := r.AppendJSON(nil); !json.Valid(b) {
					t.Errorf("%q became %s", frame, b)
				}
			}
		}
	})
}
