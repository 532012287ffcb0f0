package pack

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

const most = 16 << 20

func unpackAll(b []byte) (rs []Record, err error) {
	err = Unpack(b, most, func(r Record) error {
		rs = append(rs, r)
		return nil
	})
	return rs, err
}

func packed(t rapid.TB, f Format, c Compression, rs []Record) []byte {
	t.Helper()
	p, err := NewPacker(f, c)
	if err != nil {
		t.Fatal(err)
	}
	b, how, err := p.Pack(rs)
	if err != nil {
		t.Fatal(err)
	}
	if how != CompressionNone && how != c {
		t.Fatalf("compressed with %q, asked for %q", how, c)
	}
	if c != CompressionNone {
		plain := packed(t, f, CompressionNone, rs)
		if len(b) > len(plain) || how == CompressionNone != bytes.Equal(b, plain) {
			t.Fatalf("%s with %s, said to be %q: %d bytes, %d without", f, c, how, len(b), len(plain))
		}
	}
	return b
}

func anyRecord(t *rapid.T) Record {
	payload := rapid.OneOf(
		rapid.SliceOfN(rapid.Byte(), 0, 300),
		rapid.Map(rapid.String(), func(s string) []byte { return []byte(s) }),
		rapid.SampledFrom([][]byte{[]byte(`{"value":1.50}`), []byte("{\n}"), []byte(` 1`), []byte("null"), []byte(`"<a>\u0041"`), []byte("1e400")}),
	)
	r := Record{
		Topic:   rapid.StringN(1, 60, -1).Draw(t, "topic"),
		Time:    time.UnixMilli(rapid.Int64Range(0, 4e12).Draw(t, "time")).UTC(),
		Payload: payload.Draw(t, "payload"), QoS: byte(rapid.IntRange(0, 2).Draw(t, "qos")),
	}
	if r.HasExpiry = rapid.Bool().Draw(t, "has expiry"); r.HasExpiry {
		r.Expiry = rapid.Uint32().Draw(t, "expiry")
	}
	if rapid.Bool().Draw(t, "has properties") {
		r.Properties = rapid.SliceOfN(rapid.Byte(), 1, 40).Draw(t, "properties")
	}
	return r
}

// What goes in comes out, byte for byte, in every format and compression.
func TestRoundTrip(t *testing.T) {
	for _, f := range Formats {
		for _, c := range Compressions {
			t.Run(Suffix(f, c), func(t *testing.T) {
				rapid.Check(t, func(t *rapid.T) {
					n := rapid.IntRange(1, 30).Draw(t, "n")
					rs := make([]Record, n)
					for i := range rs {
						if rs[i] = anyRecord(t); i > 0 && rapid.Bool().Draw(t, "same topic") {
							rs[i].Topic = rs[i-1].Topic
						}
					}
					b := packed(t, f, c, rs)
					got, err := unpackAll(b)
					if err != nil {
						t.Fatalf("Unpack(%q): %v", b, err)
					}
					if diff := cmp.Diff(rs, got, cmpopts.EquateEmpty()); diff != "" {
						t.Errorf("(-in +out)\n%s", diff)
					}
				})
			})
		}
	}
}

// The examples of the documentation.
func TestFormats(t *testing.T) {
	rs := []Record{
		{Topic: "s/a", Time: time.UnixMilli(1_777_629_600_123), Payload: []byte(`{"value":21.5}`)},
		{Topic: "s/a", Time: time.UnixMilli(1_777_629_600_100), Payload: []byte{0xff}, QoS: 1},
	}
	tests := map[Format]string{
		FormatJSONLines: `{"topic":"s/a","time":"2026-05-01T10:00:00.123Z","payload":{"value":21.5}}` + "\n" +
			`{"topic":"s/a","time":"2026-05-01T10:00:00.100Z","qos":1,"base64":"/w=="}` + "\n",
		FormatJSON: `[{"topic":"s/a","time":"2026-05-01T10:00:00.123Z","payload":{"value":21.5}},` +
			`{"topic":"s/a","time":"2026-05-01T10:00:00.100Z","qos":1,"base64":"/w=="}]`,
		FormatCBOR: "\xd9\xd9\xf7\x82" + "\x83\x63s/a\x1b\x00\x00\x01\x9d\xe2\xfb\x19\x7b\x6e{\"value\":21.5}" + "\x84\x00\x36\x41\xff\x01",
	}
	for f, want := range tests {
		if got := packed(t, f, CompressionNone, rs); string(got) != want {
			t.Errorf("%s is\n%q, want\n%q", f, got, want)
		}
	}
}

func TestUnpackRefuses(t *testing.T) {
	whole := packed(t, FormatCBOR, CompressionZstd, []Record{{Topic: "a", Payload: bytes.Repeat([]byte("x"), 1000)}})
	plain := packed(t, FormatCBOR, CompressionNone, []Record{{Topic: "a", Payload: bytes.Repeat([]byte("x"), 1000)}})
	tests := map[string][]byte{
		"nothing":                 {},
		"something else":          []byte("hello"),
		"half of it":              whole[:len(whole)/2],
		"half of it, plain":       plain[:len(plain)/2],
		"more than it":            append(bytes.Clone(plain), 0),
		"half an array":           []byte(`[{"topic":"a"}`),
		"half a line":             []byte(`{"topic":"a"`),
		"no topic":                []byte(`{}`),
		"a topic of nowhere":      []byte(selfDescribed + "\x81\x83\x00\x00\x60"),
		"records without end":     []byte(selfDescribed + "\x9b\xff\xff\xff\xff\xff\xff\xff\xff"),
		"a payload without end":   []byte(selfDescribed + "\x81\x83\x61a\x00\x5b\xff\xff\xff\xff\xff\xff\xff\xff"),
		"an indefinite length":    []byte(selfDescribed + "\x9f\xff"),
		"something beside zstd":   append(bytes.Clone(whole), "hello"...),
		"a line behind a bracket": []byte("{\"topic\":\"a\"}\n]\n{\"topic\":\"b\"}"),
		"a line behind a brace":   []byte("{\"topic\":\"a\"}\n}\n{\"topic\":\"b\"}"),
		"an array and more":       []byte(`[{"topic":"a"}] {"topic":"b"}`),
		"a QoS that there is not": []byte(selfDescribed + "\x81\x84\x61a\x00\x60\x03"),
	}
	for name, b := range tests {
		if rs, err := unpackAll(b); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: got %d records and %v, want an error", name, len(rs), err)
		}
	}
	long := packed(t, FormatJSONLines, CompressionNone, []Record{{Topic: "a", Payload: make([]byte, 1000)}})
	if err := Unpack(long, 1000, func(Record) error { return nil }); !errors.Is(err, ErrFormat) {
		t.Errorf("a plain batch that is too long: %v", err)
	}
	bomb := packed(t, FormatJSONLines, CompressionZstd, []Record{{Topic: "a", Payload: bytes.Repeat([]byte("x"), 1<<20)}})
	if err := Unpack(bomb, 1000, func(Record) error { return nil }); !errors.Is(err, ErrFormat) {
		t.Errorf("a batch that is too long: %v", err)
	}
}

func FuzzUnpack(f *testing.F) {
	for _, format := range Formats {
		for _, c := range Compressions {
			f.Add(packed(f, format, c, readings(3)))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		rs, err := unpackAll(b)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatalf("%v is not ErrFormat", err)
			}
			return
		}
		for i := range rs {
			rs[i].Time = rs[i].Time.Truncate(time.Millisecond)
		}
		again, err := unpackAll(packed(t, FormatCBOR, CompressionNone, rs))
		if err != nil {
			t.Fatalf("packed again: %v", err)
		}
		if diff := cmp.Diff(rs, again, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("(-first +again)\n%s", diff)
		}
	})
}

// readings are messages as a gateway sends them: a payload of 64 bytes on one of
// twenty topics of 40 characters.
func readings(n int) []Record {
	rnd := rand.New(rand.NewPCG(1, 2))
	at := time.UnixMilli(1_777_629_600_123)
	rs := make([]Record, n)
	for i := range rs {
		at = at.Add(time.Duration(40+rnd.IntN(20)) * time.Millisecond)
		value := fmt.Sprintf("%.2f", 20+rnd.NormFloat64())
		payload := fmt.Appendf(nil, `{"value":%s,"unit":"C","time":"%s"`, value, at.UTC().Format(timeFormat))
		payload = append(append(payload, bytes.Repeat([]byte(" "), 63-len(payload))...), '}')
		rs[i] = Record{Topic: fmt.Sprintf("sensors/hall-3/line-%02d/temperature/inlet", i%20), Time: at, Payload: payload, QoS: 1}
	}
	return rs
}

// A batch is worth its while: of a reading's 110 bytes as a plain QoS 1 PUBLISH
// of 3.1.1 these are left.
func TestBatchesAreSmall(t *testing.T) {
	const plain = 2 + 2 + 40 + 2 + 64
	rs := readings(500)
	if n, m := len(rs[0].Topic), len(rs[0].Payload); n != 40 || m != 64 {
		t.Fatalf("topic of %d, payload of %d bytes", n, m)
	}
	want := map[string]float64{"cbor.zst": 0.1, "jsonl.zst": 0.12, "json.zst": 0.12, "cbor.gz": 0.1, "jsonl.gz": 0.12, "json.gz": 0.12, "cbor": 0.7, "jsonl": 1.6, "json": 1.6}
	for _, f := range Formats {
		for _, c := range Compressions {
			each := float64(len(packed(t, f, c, rs))) / float64(len(rs))
			t.Logf("%-9s %6.1f bytes a reading, %.3f of plain", Suffix(f, c), each, each/plain)
			if each/plain > want[Suffix(f, c)] {
				t.Errorf("%s takes %.3f of plain, want at most %.2f", Suffix(f, c), each/plain, want[Suffix(f, c)])
			}
		}
	}
}

// P7: a payload that is nested too deep for some reader does not take the batch with it.
func TestDeepJSONIsText(t *testing.T) {
	deep := func(n int) []byte {
		return slices.Concat(bytes.Repeat([]byte(`[{"a]":`), n), []byte(`"\\"`), bytes.Repeat([]byte("}]"), n))
	}
	for _, f := range []Format{FormatJSON, FormatJSONLines} {
		rs := []Record{{Topic: "a", Payload: deep(maxNesting / 2)}, {Topic: "b", Payload: deep(maxNesting/2 + 1)}, {Topic: "c", Payload: deep(4999)}}
		b := packed(t, f, CompressionNone, rs)
		if n := bytes.Count(b, []byte(`"text":`)); n != 2 {
			t.Errorf("%s: %d payloads are text, want 2", f, n)
		}
		got, err := unpackAll(b)
		if err != nil || len(got) != len(rs) {
			t.Fatalf("%s: %d records, %v", f, len(got), err)
		}
		for i := range rs {
			if !bytes.Equal(rs[i].Payload, got[i].Payload) {
				t.Errorf("%s: payload %d is another one", f, i)
			}
		}
	}
}
