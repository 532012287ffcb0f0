package reading_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"holdfast/adapters/reading"
	"holdfast/broker/cbor"
)

func renderer(tb testing.TB, form reading.Form, template string) *reading.Renderer {
	tb.Helper()
	r, err := reading.NewRenderer(form, template, "gw 7")
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

func good(value any, unit string) reading.Reading {
	return reading.Reading{
		Device: "boiler", Point: "flow", Value: value, Unit: unit, Session: 7, Seq: 345,
		Time: reading.Stamp{Wall: noon, Synchronised: true},
	}
}

func TestForms(t *testing.T) {
	bad := reading.Reading{Device: "boiler", Point: "flow", Quality: reading.Bad, Reason: "exception 2", Time: reading.Stamp{Wall: noon, Synchronised: true}}
	early := good(1.5, "")
	early.Time = reading.Stamp{Wall: time.Unix(100, 0)}
	odd := good("a \"b\"\n", "°C")
	odd.Device, odd.Point = "pump 1", "a=b"
	const topic = "sites/7/boiler/flow"
	tests := map[string]struct {
		form     reading.Form
		template string
		r        reading.Reading
		topic    string
		want     string
	}{
		"senml":             {form: reading.FormSenML, r: good(21.3, "°C"), want: `[{"bn":"sites/7/boiler/","bt":1767362645.123,"n":"flow","u":"Cel","v":21.3,"session":7,"seq":345}]`},
		"senml, bad":        {form: reading.FormSenML, r: bad, want: `[{"bn":"sites/7/boiler/","bt":1767362645.123,"n":"flow","vs":"exception 2","quality":"bad"}]`},
		"senml, early":      {form: reading.FormSenML, r: early, want: `[{"bn":"sites/7/boiler/","n":"flow","v":1.5,"clock":"unsynchronised","session":7,"seq":345}]`},
		"senml, odd name":   {form: reading.FormSenML, r: good(true, ""), topic: "a b/é", want: `[{"bn":"a_20b/_c3_a9","bt":1767362645.123,"vb":true,"topic":"a b/é","session":7,"seq":345}]`},
		"senml, odd point":  {form: reading.FormSenML, r: good(true, ""), topic: "a/é", want: `[{"bn":"a/","bt":1767362645.123,"n":"_c3_a9","vb":true,"topic":"a/é","session":7,"seq":345}]`},
		"senml, no levels":  {form: reading.FormSenML, r: good(int64(1), ""), topic: "a", want: `[{"bn":"a","bt":1767362645.123,"v":1,"session":7,"seq":345}]`},
		"raw":               {form: reading.FormRaw, r: good(0.1, "kW"), want: "0.1"},
		"raw text":          {form: reading.FormRaw, r: odd, want: "a \"b\"\n"},
		"raw, none":         {form: reading.FormRaw, r: bad, want: ""},
		"line":              {form: reading.FormLine, r: good(int64(21), "kW"), want: `sites/7,device=boiler,gateway=gw\ 7 flow=21 1767362645123999000`},
		"line, bad":         {form: reading.FormLine, r: bad, want: `sites/7,device=boiler,gateway=gw\ 7 flow_quality="bad" 1767362645123999000`},
		"line, not a value": {form: reading.FormLine, r: good(math.NaN(), ""), want: `sites/7,device=boiler,gateway=gw\ 7 flow_quality="bad" 1767362645123999000`},
		"line, early":       {form: reading.FormLine, r: early, want: `sites/7,device=boiler,gateway=gw\ 7 flow=1.5`},
		"line, odd":         {form: reading.FormLine, r: odd, topic: "d/p", want: "readings,device=pump\\ 1,gateway=gw\\ 7 a\\=b=\"a \\\"b\\\"\n\" 1767362645123999000"},
		"template":          {form: reading.FormTemplate, template: `$${"d":${json:device},"v":${json:value},"t":${unix_ms}} ${value} ${topic} ${seq}`, r: odd, topic: "x", want: "${\"d\":\"pump 1\",\"v\":\"a \\\"b\\\"\\n\",\"t\":1767362645123} a \"b\"\n x 345"},
		"template, none":    {form: reading.FormTemplate, template: `${value},${json:value},${quality},${reason},${time},${clock},${unix},${unix_ns},${unit},${point},${gateway},${session}`, r: bad, want: ",null,bad,exception 2,2026-01-02T14:04:05.123Z,synchronised,1767362645,1767362645123999000,,flow,gw 7,0"},
		"json":              {form: reading.FormJSON, r: good(1.5, ""), want: `{"value":1.5,"quality":"good","time":"2026-01-02T14:04:05.123Z","clock":"synchronised","session":7,"seq":345}`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if tt.topic == "" {
				tt.topic = topic
			}
			got := string(renderer(t, tt.form, tt.template).Append(nil, tt.topic, []reading.Reading{tt.r}, false))
			if got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestTemplatesThatAreWrong(t *testing.T) {
	for template, want := range map[string]string{
		"":                       "template: is missing",
		"${valu}":                "template: there is no ${valu}",
		"${value":                `template: "${value" is not closed`,
		"5 $":                    "template: a $ stands alone",
		strings.Repeat("x", 5e3): "template: has 5000 bytes",
	} {
		if _, err := reading.NewRenderer(reading.FormTemplate, template, ""); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%.20q: %v, want %s", template, err, want)
		}
	}
	if _, err := reading.NewRenderer("xml", "", ""); err == nil || !strings.HasPrefix(err.Error(), "render: ") {
		t.Errorf("xml: %v", err)
	}
	if _, err := reading.NewRenderer(reading.FormRaw, "x", ""); err == nil || !strings.HasPrefix(err.Error(), "template: ") {
		t.Errorf("a template that is not used: %v", err)
	}
}

// What is no reading is not rendered: it goes as it is.
func TestWhatIsNoReading(t *testing.T) {
	for _, payload := range []string{
		"", "21.5", "[]", `{"value":1}`, `{"value":1,"time":"noon"}`, `{"time":"2026-01-02T14:04:05Z"}`, `{"value":[1],"time":"2026-01-02T14:04:05Z"}`,
		`{"points":{},"time":"2026-01-02T14:04:05Z"}`, `{"points":{"a":{"unit":"V"}},"time":"2026-01-02T14:04:05Z"}`, `{"value":1,"time":"2026-01-02T14:04:05Z"`,
	} {
		if got, ok := renderer(t, reading.FormRaw, "").Render("a/b", "a/b", []byte(payload)); ok {
			t.Errorf("%s became %s", payload, got)
		}
	}
}

func TestMessageOfADevice(t *testing.T) {
	a, b, c := good(1.5, "m³/h"), good(nil, ""), good(true, "")
	b.Point, b.Quality, b.Reason = "level", reading.Bad, "exception 2"
	c.Point, c.Time.Wall = "on", noon.Add(time.Second)
	rs := []reading.Reading{a, b, c}
	payload := renderer(t, reading.FormJSON, "").Append(nil, "s/boiler", rs, true)
	const want = `{"time":"2026-01-02T14:04:05.123Z","clock":"synchronised","session":7,"seq":345,"points":{"flow":{"value":1.5,"unit":"m³/h"},` +
		`"level":{"value":null,"quality":"bad","reason":"exception 2"},"on":{"value":true,"time":"2026-01-02T14:04:06.123Z","clock":"synchronised"}}}`
	if string(payload) != want {
		t.Fatalf("got  %s\nwant %s", payload, want)
	}
	got, ok := renderer(t, reading.FormLine, "").Render("s/boiler", "t/s/boiler", payload)
	const lines = `t/s,device=boiler,gateway=gw\ 7 flow=1.5 1767362645123000000` + "\n" +
		`t/s,device=boiler,gateway=gw\ 7 level_quality="bad" 1767362645123000000` + "\n" +
		`t/s,device=boiler,gateway=gw\ 7 on=true 1767362646123000000`
	if !ok || string(got) != lines {
		t.Errorf("got  %s\nwant %s", got, lines)
	}
	if same, ok := renderer(t, reading.FormJSON, "").Render("s/boiler", "x", payload); !ok || string(same) != want {
		t.Errorf("%s", same)
	}
}

var plainUnits = []string{"", "V", "kW", "l/min"} // those SenML writes the same

func drawReading(t *rapid.T, topics []string) (topic string, r reading.Reading) {
	topic = rapid.SampledFrom(topics).Draw(t, "topic")
	at := time.UnixMilli(rapid.Int64Range(1e12, 2e12).Draw(t, "ms"))
	r = reading.Reading{
		Unit:    rapid.SampledFrom(plainUnits).Draw(t, "unit"),
		Session: rapid.Uint64Range(0, 2).Draw(t, "session"), Seq: rapid.Uint64Range(0, 5).Draw(t, "seq"),
		Quality: rapid.SampledFrom([]reading.Quality{reading.Good, reading.Good, reading.Uncertain, reading.Bad}).Draw(t, "quality"),
	}
	switch rapid.IntRange(0, 2).Draw(t, "clock") {
	case 0:
		r.Time = reading.Stamp{Wall: at, Synchronised: true}
	case 1:
		r.Time = reading.Stamp{Wall: at}
	default:
		r.Time = reading.Stamp{Wall: noon, Device: at}
	}
	if r.Quality != reading.Good {
		r.Reason = rapid.SampledFrom([]string{"", "no answer"}).Draw(t, "reason")
	}
	switch rapid.IntRange(0, 5).Draw(t, "type") {
	case 0:
		r.Value = rapid.Int64().Draw(t, "int")
	case 1:
		r.Value = rapid.Uint64().Draw(t, "uint")
	case 2:
		r.Value = rapid.Bool().Draw(t, "bool")
	case 3:
		r.Value = rapid.StringMatching(`[a-z"\\ é]*`).Draw(t, "text")
	case 4:
		r.Value = float64(rapid.Int32().Draw(t, "mantissa")) / 100
	default:
		r.Value = rapid.Float64().Draw(t, "float")
	}
	return topic, r
}

// A pack holds exactly what went in: the readings of each topic in their order,
// and messages that are none.
func TestPacksAreReadBack(t *testing.T) {
	topics := []string{"a", "s/boiler/flow", "s/boiler/level", "s/pump 1/é", "s/pump 1/b", "s/", "/x", "x/y/z/w"}
	rapid.Check(t, func(t *rapid.T) {
		form := rapid.SampledFrom([]reading.Form{reading.FormSenML, reading.FormSenMLCBOR}).Draw(t, "form")
		want, got := map[string][]string{}, map[string][]string{}
		var in []reading.Packed
		for range rapid.IntRange(0, 12).Draw(t, "records") {
			topic, r := drawReading(t, topics)
			payload := r.AppendJSON(nil)
			if rapid.IntRange(0, 5).Draw(t, "other") == 0 {
				payload = rapid.SliceOf(rapid.Byte()).Draw(t, "payload")
			}
			in = append(in, reading.Packed{Local: topic, Remote: topic, Time: noon, Payload: payload})
			want[topic] = append(want[topic], string(payload))
		}
		rd, err := reading.NewRenderer(form, "", "")
		if err != nil {
			t.Fatal(err)
		}
		pack := rd.Pack(nil, in)
		if form == reading.FormSenML && !json.Valid(pack) {
			t.Fatalf("not JSON: %s", pack)
		}
		if err := reading.UnpackSenML(pack, func(u reading.Unpacked) error {
			got[u.Topic] = append(got[u.Topic], string(u.Payload))
			return nil
		}); err != nil {
			t.Fatalf("%s (% x): %v", pack, pack, err)
		}
		for topic := range want {
			if fmt.Sprintf("%q", got[topic]) != fmt.Sprintf("%q", want[topic]) {
				t.Fatalf("%s: %s\ngot  %q\nwant %q", topic, pack, got[topic], want[topic])
			}
		}
	})
}

// The example of RFC 8428 §5.1.3 and §6, as others write it.
func TestPacksOfOthers(t *testing.T) {
	const text = `[{"bn":"urn:dev:ow:10e2073a0108006:","bt":1.276020076001e+09,"bu":"A","bver":5,"n":"voltage","u":"V","v":120.1},
		{"n":"current","t":-5,"v":1.2},{"n":"current","t":-4,"v":1.3}]`
	binary := []byte{
		0x81, 0xa5, 0x21, 0x63, 'a', ':', 'b', 0x22, 0xfb, 0x41, 0xd3, 0x03, 0xa1, 0x5b, 0x00, 0x10, 0x62, // bn, bt
		0x00, 0x61, 'c', 0x02, 0xf9, 0x4d, 0x40, 0x2f, 0x05, // n, v (half: 21), a label nobody knows
	}
	for name, tt := range map[string]struct {
		in   []byte
		want []string
	}{
		"json": {[]byte(text), []string{
			`urn:dev:ow:10e2073a0108006:voltage {"value":120.1,"unit":"V","quality":"good","time":"2010-06-08T18:01:16.001Z","clock":"synchronised"}`,
			`urn:dev:ow:10e2073a0108006:current {"value":1.2,"unit":"A","quality":"good","time":"2010-06-08T18:01:11.001Z","clock":"synchronised"}`,
			`urn:dev:ow:10e2073a0108006:current {"value":1.3,"unit":"A","quality":"good","time":"2010-06-08T18:01:12.001Z","clock":"synchronised"}`,
		}},
		"cbor": {binary, []string{`a:bc {"value":21,"quality":"good","time":"2010-06-08T18:01:16.001Z","clock":"synchronised"}`}},
	} {
		var got []string
		if err := reading.UnpackSenML(tt.in, func(u reading.Unpacked) error {
			got = append(got, u.Topic+" "+string(u.Payload))
			return nil
		}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if strings.Join(got, "\n") != strings.Join(tt.want, "\n") {
			t.Errorf("%s: got %s", name, strings.Join(got, "\n"))
		}
	}
}

func FuzzUnpackSenML(f *testing.F) {
	for _, form := range []reading.Form{reading.FormSenML, reading.FormSenMLCBOR} {
		f.Add(renderer(f, form, "").Pack(nil, site(3)))
	}
	f.Add([]byte("[{}]"))
	f.Add([]byte{0x81, 0xa1, 0x02, 0xc4, 0x82, 0x3b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01})
	f.Fuzz(func(t *testing.T, b []byte) {
		err := reading.UnpackSenML(b, func(u reading.Unpacked) error {
			if len(u.Payload) > 8*len(b)+1024 {
				t.Errorf("%d bytes out of %d", len(u.Payload), len(b))
			}
			return nil
		})
		if err != nil && !errors.Is(err, reading.ErrSenML) && !errors.Is(err, cbor.ErrMalformed) {
			t.Errorf("%v wraps neither ErrSenML nor ErrMalformed", err)
		}
	})
}

func FuzzParse(f *testing.F) {
	r := good(1.5, "V")
	f.Add(r.AppendJSON(nil))
	f.Add(reading.AppendDevice(nil, []reading.Reading{r, r}))
	f.Fuzz(func(t *testing.T, b []byte) {
		rs, whole, ok := reading.Parse("a/b/c", b)
		if !ok {
			return
		}
		for _, form := range reading.Forms {
			template := ""
			if form == reading.FormTemplate {
				template = "${json:value}${reason}"
			}
			out := renderer(t, form, template).Append(nil, "a/b/c", rs, whole)
			if (form == reading.FormSenML || form == reading.FormJSON) && !json.Valid(out) {
				t.Errorf("%s: %s became %s", form, b, out)
			}
		}
	})
}

// site is what a gateway sends: cycles of 10 devices with 8 points each, every
// 5 seconds, as canonical JSON.
func site(cycles int) (out []reading.Packed) {
	points := []struct {
		name, unit string
		value      float64
	}{
		{"voltage", "V", 230.4},
		{"current", "A", 1.372},
		{"power", "W", 315.2},
		{"energy", "kWh", 10452.71},
		{"frequency", "Hz", 50.01},
		{"power_factor", "", 0.98},
		{"temperature", "°C", 41.3},
		{"flow", "m³/h", 2.117},
	}
	for c := range cycles {
		at := noon.Add(time.Duration(c)*5*time.Second + time.Duration(c%7)*time.Millisecond)
		for d := range 10 {
			for _, p := range points {
				r := reading.Reading{
					Value: reading.Scale(math.Round(p.value*1000)+float64((c*7+d)%50), 0.001, 0), Unit: p.unit, Session: 7, Seq: uint64(1000 + c),
					Time: reading.Stamp{Wall: at.Add(time.Duration(d) * 30 * time.Millisecond), Synchronised: true},
				}
				topic := fmt.Sprintf("sensors/meter-%02d/%s", d, p.name)
				out = append(out, reading.Packed{Local: topic, Remote: topic, Time: at, Payload: r.AppendJSON(nil)})
			}
		}
	}
	return out
}

func zipped(t *testing.T, b []byte) int {
	t.Helper()
	var out bytes.Buffer
	w, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Len()
}

// What the forms cost, in bytes of payload and topic for each reading.
func TestBytesPerReading(t *testing.T) {
	in := site(6) // 480 readings: half a minute
	most := map[reading.Form]float64{reading.FormSenML: 35, reading.FormSenMLCBOR: 24}
	for _, form := range reading.Forms {
		template := ""
		if form == reading.FormTemplate {
			template = `{"v":${json:value},"t":${unix_ms}}`
		}
		r, alone, topics := renderer(t, form, template), 0, 0
		for _, m := range in {
			p, ok := r.Render(m.Local, m.Remote, m.Payload)
			if !ok {
				t.Fatalf("%s is no reading", m.Payload)
			}
			alone += len(p)
			topics += len(m.Remote)
		}
		text := fmt.Sprintf("%-10s alone %5.1f + topic %.1f", form, float64(alone)/float64(len(in)), float64(topics)/float64(len(in)))
		if form.Packs() {
			once, all := r.Pack(nil, in[:80]), r.Pack(nil, in)
			each := float64(len(all)) / float64(len(in))
			text += fmt.Sprintf("; packed: one cycle %.1f, six cycles %.1f, gzip %.1f", float64(len(once))/80, each, float64(zipped(t, all))/float64(len(in)))
			if each > most[form] {
				t.Errorf("%s takes %.1f bytes a reading", form, each)
			}
		}
		t.Log(text)
	}
}
