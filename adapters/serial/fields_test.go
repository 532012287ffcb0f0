package serial

import (
	"encoding/hex"
	"encoding/json"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"holdfast/adapters"
	"holdfast/adapters/reading"
)

// value decodes a frame that holds one point, "v", and returns it as JSON with
// the reason when it is bad.
func value(t *testing.T, o *Options, frame string) string {
	t.Helper()
	d, err := newDecoder("device", o)
	if err != nil {
		t.Fatal(err)
	}
	res, err := d.decode([]byte(frame), reading.Stamp{})
	if err != nil {
		return err.Error()
	}
	if len(res.readings) != 1 {
		return "missing"
	}
	r := res.readings[0]
	if r.Quality == reading.Bad {
		return r.Reason
	}
	b, err := json.Marshal(r.Value)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestNumbersAsDevicesWriteThem(t *testing.T) {
	tests := map[string]struct {
		change func(*Options, *Point)
		in     string
		want   string
	}{
		"decimal comma":             {func(o *Options, _ *Point) { o.Decimal = "," }, "-12,50", "-12.5"},
		"a point, though a comma":   {func(o *Options, _ *Point) { o.Decimal = "," }, "12.5", `"12.5" is not a number`},
		"two commas":                {func(o *Options, _ *Point) { o.Decimal = "," }, "1,2,5", `"1,2,5" is not a number`},
		"thousands":                 {func(o *Options, _ *Point) { o.Decimal, o.Thousands = ",", "." }, "1.234.567,8", "1234567.8"},
		"thousands, none there":     {func(o *Options, _ *Point) { o.Thousands = "'" }, "1234", "1234"},
		"thousands, a digit lost":   {func(o *Options, _ *Point) { o.Thousands = "," }, "1,23", `"1,23" is not a number`},
		"sign behind":               {func(o *Options, _ *Point) { o.SignAfter = true }, "12.5-", "-12.5"},
		"sign behind, not expected": {nil, "12.5-", `"12.5-" is not a number that fits`},
		"blanks behind the sign":    {nil, "-    12.5", "-12.5"},
		"two signs":                 {nil, "--12", `"--12" is not a number`},
		"a unit behind it":          {func(_ *Options, p *Point) { p.Suffixes = []string{"kg", "g"} }, "12.5 kg", "12.5"},
		"another unit":              {func(_ *Options, p *Point) { p.Suffixes = []string{"kg"} }, "12.5 lb", `"12.5 lb" is not a number`},
		"a unit alone":              {func(_ *Options, p *Point) { p.Suffixes = []string{"kg"} }, "kg", `"kg" is not a number`},
		"hexadecimal":               {func(_ *Options, p *Point) { p.Type = "uint16" }, "0x01f4", "500"},
		"hexadecimal, negative":     {func(_ *Options, p *Point) { p.Type, p.Scale = "int16", 0.1 }, "FF9C", "-10"},
		"hexadecimal float":         {func(_ *Options, p *Point) { p.Type, p.Order = "float32", "DCBA" }, "6666aa41", "21.3"},
		"hexadecimal, too short":    {func(_ *Options, p *Point) { p.Type = "uint16" }, "1f4", `"1f4" is not 4 hexadecimal digits`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			o := DefaultOptions()
			o.Pattern = `^(?P<v>.*)$`
			p := Point{Name: "v"}
			if tt.change != nil {
				tt.change(&o, &p)
			}
			o.Points = []Point{p}
			if got := value(t, &o, tt.in); got != tt.want {
				t.Errorf("%q is %s, want %s", tt.in, got, tt.want)
			}
		})
	}
}

func TestBinary(t *testing.T) {
	const frame = "\xff\x01\x02\x03\x04\x05\x06\x07\x08"
	tests := map[string]struct {
		p    Point
		in   string
		want string
	}{
		"uint8":            {Point{Type: "uint8", At: 1}, frame, "1"},
		"int8":             {Point{Type: "int8"}, frame, "-1"},
		"uint16":           {Point{At: 1}, frame, "258"},
		"uint16, DCBA":     {Point{At: 1, Order: "DCBA"}, frame, "513"},
		"int24":            {Point{Type: "int24"}, frame, "-65278"},
		"uint32, BADC":     {Point{Type: "uint32", At: 1, Order: "BADC"}, frame, "33620995"},
		"uint32, CDAB":     {Point{Type: "uint32", At: 1, Order: "CDAB"}, frame, "50594050"},
		"from the end":     {Point{Type: "uint16", At: -2}, frame, "1800"},
		"uint64":           {Point{Type: "uint64", At: 1}, frame, "72623859790382856"},
		"bits":             {Point{Type: "uint8", At: 4, Bit: 2, Bits: 3}, "\x00\x00\x00\x00\xd7", "5"},
		"all 64 bits":      {Point{Type: "uint64", At: 1, Bits: 64}, frame, "72623859790382856"},
		"float32":          {Point{Type: "float32"}, "\x41\xaa\x66\x66", "21.3"},
		"float32, nothing": {Point{Type: "float32"}, "\x7f\xc0\x00\x00", "device has no value"},
		"float64":          {Point{Type: "float64"}, "\x40\x35\x4c\xcc\xcc\xcc\xcc\xcd", "21.3"},
		"bcd":              {Point{Type: TypeBCD, Length: 3, Scale: 0.01}, "\x01\x23\x45", "123.45"},
		"no bcd":           {Point{Type: TypeBCD, Length: 2}, "\x01\x2a", "is not BCD"},
		"string":           {Point{Type: TypeString, Length: 6, At: 1}, "\x00 AB1\x00\xff", `"AB1"`},
		"Latin-1":          {Point{Type: TypeString, Length: 2}, "\xb0C", `"°C"`},
		"invalid":          {Point{Type: "int16", Invalid: []any{int64(-32768)}}, "\x80\x00", "device has no value"},
		"too short":        {Point{Type: "uint32", At: 6}, frame, "frame has 9 bytes, the points need 10"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			o := DefaultOptions()
			o.Format = FormatBinary
			tt.p.Name = "v"
			o.Points = []Point{tt.p}
			if got := value(t, &o, tt.in); got != tt.want {
				t.Errorf("% x is %s, want %s", tt.in, got, tt.want)
			}
		})
	}
}

func TestCSV(t *testing.T) {
	csv := func(change func(*Options)) *Options {
		o := DefaultOptions()
		o.Format, o.Points = FormatCSV, []Point{{Name: "v", Field: "2"}}
		if change != nil {
			change(&o)
		}
		return &o
	}
	named := func(o *Options) { o.Columns, o.Points[0].Field = []string{"time", "temp"}, "temp" }
	tests := map[string]struct {
		o    *Options
		in   string
		want string
	}{
		"by number":               {csv(nil), "a, 12.5 ,c", "12.5"},
		"too few":                 {csv(nil), "a", "frame holds none of the points"},
		"by name":                 {csv(named), "12:00,21.5", "21.5"},
		"a column too many":       {csv(named), "12:00,21.5,9", "frame has 3 columns, not 2"},
		"semicolons":              {csv(func(o *Options) { o.Separator, o.Decimal = ";", "," }), "a;1,5;", "1.5"},
		"quoted":                  {csv(nil), `"a,""b""","7",`, "7"},
		"a quote without its end": {csv(nil), `"a,7`, errQuote.Error()},
		"something after a quote": {csv(nil), `"a"b,7`, errQuote.Error()},
		"before the header":       {csv(func(o *Options) { o.Header, o.Points[0].Field = true, "temp" }), "1,2", errNoHeader.Error()},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := value(t, tt.o, tt.in); got != tt.want {
				t.Errorf("%q is %s, want %s", tt.in, got, tt.want)
			}
		})
	}
	d, err := newDecoder("device", csv(func(o *Options) { o.Header, o.Points[0].Field = true, "temp" }))
	if err != nil {
		t.Fatal(err)
	}
	var got []any
	for _, row := range []string{"time,temp", "1,20", "temp,time,state", "30,2,x", "1,40"} {
		if res, err := d.decode([]byte(row), reading.Stamp{}); err == nil {
			got = append(got, res.readings[0].Value)
		}
	}
	if want := []any{int64(20), int64(30)}; !slices.Equal(got, want) {
		t.Errorf("after headers: %v, want %v", got, want)
	}
}

func TestDeviceTime(t *testing.T) {
	now := time.Date(2026, 3, 1, 0, 0, 30, 0, time.UTC)
	tests := map[string]struct {
		format, zone, in string
		want             string // empty: refused
	}{
		"RFC 3339":             {TimeRFC3339, "UTC", "2026-02-28T23:59:58+01:00", "2026-02-28T22:59:58Z"},
		"Unix":                 {TimeUnix, "UTC", "1772323200.5", "2026-03-01T00:00:00.5Z"},
		"Unix, milliseconds":   {TimeUnixMillis, "UTC", "1772323200500", "2026-03-01T00:00:00.5Z"},
		"Unix, infinite":       {TimeUnix, "UTC", "1e300", ""},
		"Unix, text":           {TimeUnix, "UTC", "inf", ""},
		"pattern":              {"%d.%m.%Y %H:%M:%S", "+01:00", "28.02.2026 23:59:58", "2026-02-28T22:59:58Z"},
		"year of two digits":   {"%y%m%d%H%M%S", "UTC", "260301000010", "2026-03-01T00:00:10Z"},
		"fraction and zone":    {"%Y-%m-%dT%H:%M:%S.%f%z", "UTC", "2026-03-01T01:00:10.25+01:00", "2026-03-01T00:00:10.25Z"},
		"zone without a colon": {"%Y-%m-%d %H:%M:%S %z", "UTC", "2026-03-01 01:00:10 +0100", "2026-03-01T00:00:10Z"},
		"Z":                    {"%Y-%m-%d %H:%M:%S%z", "+05:00", "2026-03-01 00:00:10Z", "2026-03-01T00:00:10Z"},
		"time of day":          {"%H:%M:%S", "UTC", "00:00:10", "2026-03-01T00:00:10Z"},
		"just before midnight": {"%H:%M:%S", "UTC", "23:59:58", "2026-02-28T23:59:58Z"},
		"31st of February":     {"%Y-%m-%d %H:%M", "UTC", "2026-02-31 10:00", ""},
		"hour 24":              {"%H:%M", "UTC", "24:00", ""},
		"something behind":     {"%H:%M", "UTC", "10:00x", ""},
		"something missing":    {"%H:%M", "UTC", "10:0", ""},
		"no zone":              {"%H:%M%z", "UTC", "10:00", ""},
		"a sign":               {"%H:%M", "UTC", "-1:00", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			o := DefaultOptions()
			o.TimeFormat, o.TimeZone = tt.format, tt.zone
			d, err := newDeviceTime(&o)
			if err != nil {
				t.Fatal(err)
			}
			at, err := d.read(tt.in, now)
			got := ""
			if err == nil {
				got = at.UTC().Format(time.RFC3339Nano)
			}
			if got != tt.want {
				t.Errorf("%q is %q (%v), want %q", tt.in, got, err, tt.want)
			}
		})
	}
}

// The device's time is that of the reading, unless the gateway knows better.
func TestDeviceTimeOfReadings(t *testing.T) {
	o := DefaultOptions()
	o.Pattern, o.Time, o.Points = `^(?P<v>\d+)( (?P<at>\S+))?$`, "at", []Point{{Name: "v"}}
	d, err := newDecoder("device", &o)
	if err != nil {
		t.Fatal(err)
	}
	wall := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	tests := map[string]struct {
		in      string
		unset   bool
		clock   string
		badTime bool
	}{
		"its own":                        {"1 2026-03-01T11:59:00Z", false, "device", false},
		"too far off":                    {"1 2000-01-01T00:00:00Z", false, "synchronised", true},
		"too far off, if ours were set":  {"1 2026-01-01T00:00:00Z", true, "device", false},
		"none":                           {"1", false, "synchronised", true},
		"unreadable, and ours not known": {"1 noon", true, "unsynchronised", true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			res, err := d.decode([]byte(tt.in), reading.Stamp{Wall: wall, Synchronised: !tt.unset})
			if err != nil {
				t.Fatal(err)
			}
			if _, clock := res.readings[0].Time.Measured(); clock != tt.clock || (res.badTime != nil) != tt.badTime {
				t.Errorf("clock %s (%v), want %s", clock, res.badTime, tt.clock)
			}
		})
	}
}

func TestTemplates(t *testing.T) {
	modbus := func(o *Options) { o.Check = "crc16-modbus" }
	tests := map[string]struct {
		in     string
		change func(*Options)
		number float64
		want   string // hexadecimal
		err    string
	}{
		"text":                {in: "W?${hex:0D0A}", want: "573f0d0a"},
		"bytes":               {in: "0x0203FF", want: "0203ff"},
		"decimals":            {in: "${value:2}", number: 1.005, want: hex.EncodeToString([]byte("1.00"))},
		"digits":              {in: "${value:hex4}", number: 500, want: hex.EncodeToString([]byte("01F4"))},
		"too many digits":     {in: "${value:hex2}", number: 256, err: "does not fit"},
		"digits of a sign":    {in: "${value:hex2}", number: -1, err: "does not fit"},
		"big":                 {in: "${value:u16}", number: 500, want: "01f4"},
		"little":              {in: "${value:i32le}", number: -2, want: "feffffff"},
		"out of range":        {in: "${value:i8}", number: 128, err: "outside -128..127"},
		"no whole number":     {in: "${value:u8}", number: 1.5, err: "not a whole number"},
		"float":               {in: "${value:f32}", number: 21.3, want: "41aa6666"},
		"a checksum":          {in: "${hex:01 03 00 00 00 0A}${check}", change: modbus, want: "01030000000ac5cd"},
		"NMEA":                {in: "$PMTK220,${value}*${check}", change: func(o *Options) { o.Check = CheckNMEA }, number: 1000, want: hex.EncodeToString([]byte("$PMTK220,1000*1F"))},
		"no check":            {in: "${check}", err: "needs a check"},
		"unclosed":            {in: "a${value", err: "has no }"},
		"unknown":             {in: "${valve}", err: "is none of"},
		"unknown verb":        {in: "${value:u24}", err: "is none of"},
		"half a byte":         {in: "${hex:0}", err: "not pairs"},
		"half a byte in 0x":   {in: "0x0", err: "not 0x and pairs"},
		"empty":               {in: "", err: "has 0 bytes"},
		"longer than allowed": {in: strings.Repeat("x", maxRequest+1), err: "bytes"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			o := DefaultOptions()
			if tt.change != nil {
				tt.change(&o)
			}
			c, err := newCheck(&o)
			if err != nil {
				t.Fatal(err)
			}
			var got []byte
			tp, err := parseTemplate("request", tt.in, c, o.CheckFrom)
			if err == nil {
				got, err = tp.append(nil, "1000", tt.number)
			}
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("%q: %v, want %q", tt.in, err, tt.err)
				}
				return
			}
			if err != nil || hex.EncodeToString(got) != tt.want {
				t.Errorf("%q = %x, %v, want %s", tt.in, got, err, tt.want)
			}
		})
	}
}

// Whatever the payload, a text that is sent has no control character, and a
// number is one within its bounds.
func FuzzCommandValue(f *testing.F) {
	f.Add([]byte("auto\rW1"))
	f.Add([]byte("1e3"))
	f.Add([]byte("-0x1"))
	text := valueRule{typ: TypeText, maxLen: 64}
	number := valueRule{typ: TypeNumber, min: -5, max: math.Inf(1), maxLen: 64}
	f.Fuzz(func(t *testing.T, payload []byte) {
		if s, _, err := text.read(payload); err == nil && (len(s) > 64 || strings.ContainsFunc(s, func(c rune) bool { return c < 0x20 || c > 0x7e })) {
			t.Errorf("%q is sent as %q", payload, s)
		}
		if s, n, err := number.read(payload); err == nil && (n < -5 || math.IsInf(n, 0) || strings.Trim(s, "-.0123456789") != "") {
			t.Errorf("%q is sent as %q, %v", payload, s, n)
		}
	})
}

func FuzzDeviceTime(f *testing.F) {
	f.Add("%Y-%m-%d %H:%M:%S.%f%z", "2026-03-01 10:00:00.5+01:00")
	f.Add(TimeUnix, "1e9")
	now := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, format, in string) {
		o := DefaultOptions()
		o.TimeFormat = format
		d, err := newDeviceTime(&o)
		if err != nil {
			return
		}
		if at, err := d.read(in, now); err == nil && (at.Year() < -1 || at.Year() > 10000) {
			t.Errorf("%q as %q is %v", in, format, at)
		}
	})
}

func TestUselessKeysAreNamed(t *testing.T) {
	lines := func(change func(*Options)) *Options {
		o := DefaultOptions()
		o.Pattern, o.Points = `^(?P<v>.*)$`, []Point{{Name: "v"}}
		change(&o)
		return &o
	}
	tests := map[string]struct {
		o    *Options
		want string
	}{
		"of another framing":    {lines(func(o *Options) { o.Sync = "AA" }), `sync: has no use with framing "delimiter", only with fixed, length`},
		"of another format":     {lines(func(o *Options) { o.Header = true }), `header: has no use with format "regexp", only with csv`},
		"of a framing's own":    {lines(func(o *Options) { o.Framing, o.Check = FramingIEC62056, "xor" }), `check: has no use with framing "iec62056"`},
		"of a check":            {lines(func(o *Options) { o.CheckAt = 3 }), `check_at: has no use without check`},
		"of a point":            {lines(func(o *Options) { o.Points[0].At = 3 }), `point[0].at: has no use with format "regexp", only with binary`},
		"of another type":       {lines(func(o *Options) { o.Points[0].Bits = 3 }), `point[0].bits: has no use with type "number"`},
		"fixed without a sync":  {lines(func(o *Options) { o.Framing, o.Delimiter, o.Length = FramingFixed, "\n", 8 }), `sync: framing "fixed" needs sync, check or polls`},
		"no start":              {lines(func(o *Options) { o.Framing = FramingStartEnd }), `start: `},
		"anchors in a stream":   {lines(func(o *Options) { o.Framing, o.FramePattern = FramingRegexp, "^a$" }), `frame_pattern: ^ and $ have no use`},
		"unknown check":         {lines(func(o *Options) { o.Check = "crc16" }), `check: "crc16" is none of`},
		"unknown framing":       {lines(func(o *Options) { o.Framing = "lines" }), `framing: "lines" is none of`},
		"no such poll":          {lines(func(o *Options) { o.Points[0].Poll = "x" }), `point[0].poll: there is no poll "x"`},
		"a value in a poll":     {lines(func(o *Options) { o.Polls = []Poll{{Name: "p", Request: "${value}"}} }), `poll[0].request: `},
		"min of a text":         {lines(func(o *Options) { o.Commands = []Command{{Name: "c", Request: "${value}", Min: new(1.0)}} }), `command[0].min: `},
		"min that is no number": {lines(func(o *Options) { o.Commands = []Command{{Name: "c", Request: "${value:1}", Min: new(math.NaN())}} }), `command[0].min: NaN is no number`},
		"max that is no number": {lines(func(o *Options) { o.Commands = []Command{{Name: "c", Request: "${value:1}", Max: new(math.Inf(1))}} }), `command[0].max: +Inf is no number`},
		"a type without value":  {lines(func(o *Options) { o.Commands = []Command{{Name: "c", Request: "x", Type: TypeNumber}} }), `command[0].type: `},
		"a time that is no one": {lines(func(o *Options) { o.TimeFormat, o.Time = "%H:%Q", "v" }), `time_format: `},
		"a time not in pattern": {lines(func(o *Options) { o.Time = "at" }), `time: pattern has no group`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if err := tt.o.Validate(); err == nil || !strings.HasPrefix(err.Error(), tt.want) {
				t.Errorf("Validate = %v, want %s", err, tt.want)
			}
		})
	}
}

// A command of a point's name writes it, if both speak of the same kind of value.
func TestCommandsMakePointsWritable(t *testing.T) {
	tests := map[string]struct {
		command Command
		kind    adapters.Kind
		want    *adapters.Write
		accepts string // what Home Assistant publishes
	}{
		"a number":                {Command{Type: TypeNumber, Min: new(0.5), Max: new(9.0)}, adapters.Number, &adapters.Write{Min: 0.5, Max: 9}, "8.5"},
		"a number without bounds": {Command{Type: TypeNumber}, adapters.Number, &adapters.Write{Min: -adapters.Unbounded, Max: adapters.Unbounded}, "-1000000000"},
		"a bool":                  {Command{Type: TypeBool, On: "ON", Off: "OFF"}, adapters.Bool, &adapters.Write{}, "true"},
		"a bool, off":             {Command{Type: TypeBool}, adapters.Bool, &adapters.Write{}, "false"},
		"a text":                  {Command{Type: TypeText, MaxLength: 8}, adapters.Text, &adapters.Write{Length: 8}, "{\"1"},
		"a text for a number":     {Command{Type: TypeText}, adapters.Number, nil, "x"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			tt.command.Name, tt.command.Request = "p", "W ${value}"
			o := DefaultOptions()
			o.Pattern, o.Points, o.Commands = `^(?P<p>.*)$`, []Point{{Name: "p"}}, []Command{tt.command}
			k, err := o.compile("d")
			if err != nil {
				t.Fatal(err)
			}
			cmd := k.conv.commands["p"]
			if diff := cmp.Diff(tt.want, cmd.writes(tt.kind)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if _, _, err := cmd.rule.read([]byte(tt.accepts)); err != nil {
				t.Errorf("%s: %v", tt.accepts, err)
			}
		})
	}
}
