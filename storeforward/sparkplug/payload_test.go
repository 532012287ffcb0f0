package sparkplug

import (
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
	"pgregory.net/rapid"
)

// The schema, for the protobuf runtime that this package does without: fields by
// number from 1 on; "" leaves a number out.
var schema = []struct {
	name   string
	fields []string // name type, "*" before a repeated one
}{
	{"Payload", []string{"timestamp uint64", "*metrics Metric", "seq uint64", "uuid string", "body bytes"}},
	{"Metric", []string{
		"name string", "alias uint64", "timestamp uint64", "datatype uint32", "is_historical bool", "is_transient bool", "is_null bool",
		"metadata MetaData", "properties PropertySet", "int_value uint32", "long_value uint64", "float_value float", "double_value double",
		"boolean_value bool", "string_value string", "bytes_value bytes", "dataset_value DataSet", "template_value Template",
	}},
	{"MetaData", []string{
		"is_multi_part bool", "content_type string", "size uint64", "seq uint64", "file_name string", "file_type string", "md5 string",
		"description string",
	}},
	{"PropertySet", []string{"*keys string", "*values PropertyValue"}},
	{"PropertyValue", []string{
		"type uint32", "is_null bool", "int_value uint32", "long_value uint64", "float_value float", "double_value double", "boolean_value bool",
		"string_value string", "propertyset_value PropertySet", "propertysets_value PropertySetList",
	}},
	{"PropertySetList", []string{"*propertyset PropertySet"}},
	{"DataSet", []string{"num_of_columns uint64", "*columns string", "*types uint32", "*rows Row"}},
	{"Row", []string{"*elements Element"}},
	{"Element", []string{
		"int_value uint32", "long_value uint64", "float_value float", "double_value double", "boolean_value bool", "string_value string",
	}},
	{"Template", []string{"version string", "*metrics Metric", "*parameters Parameter", "template_ref string", "is_definition bool"}},
	{"Parameter", []string{
		"name string", "type uint32", "int_value uint32", "long_value uint64", "float_value float", "double_value double", "boolean_value bool",
		"string_value string",
	}},
}

var scalars = map[string]descriptorpb.FieldDescriptorProto_Type{
	"uint32": descriptorpb.FieldDescriptorProto_TYPE_UINT32,
	"uint64": descriptorpb.FieldDescriptorProto_TYPE_UINT64,
	"float":  descriptorpb.FieldDescriptorProto_TYPE_FLOAT,
	"double": descriptorpb.FieldDescriptorProto_TYPE_DOUBLE,
	"bool":   descriptorpb.FieldDescriptorProto_TYPE_BOOL,
	"string": descriptorpb.FieldDescriptorProto_TYPE_STRING,
	"bytes":  descriptorpb.FieldDescriptorProto_TYPE_BYTES,
}

// messages returns the descriptors of the schema, by name.
func messages(t *testing.T) protoreflect.MessageDescriptors {
	t.Helper()
	file := &descriptorpb.FileDescriptorProto{Name: new("sparkplug_b.proto"), Syntax: new("proto2")}
	for _, m := range schema {
		d := &descriptorpb.DescriptorProto{Name: new(m.name)}
		for i, f := range m.fields {
			label := descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL
			if f[0] == '*' {
				f, label = f[1:], descriptorpb.FieldDescriptorProto_LABEL_REPEATED
			}
			name, typ, _ := strings.Cut(f, " ")
			fd := &descriptorpb.FieldDescriptorProto{Name: new(name), Number: new(int32(i + 1)), Label: &label}
			if scalar, ok := scalars[typ]; ok {
				fd.Type = &scalar
			} else {
				fd.Type, fd.TypeName = descriptorpb.FieldDescriptorProto_TYPE_MESSAGE.Enum(), new("."+typ)
			}
			d.Field = append(d.Field, fd)
		}
		file.MessageType = append(file.MessageType, d)
	}
	fd, err := protodesc.NewFile(file, nil)
	if err != nil {
		t.Fatal(err)
	}
	return fd.Messages()
}

// whole has every field that the schema has, each with a value of its own.
func whole() *Payload {
	at := time.UnixMilli(1_700_000_000_123)
	return &Payload{
		Timestamp: at, Seq: 7, HasSeq: true, UUID: "schema", Body: []byte{0xff, 0},
		Metrics: []Metric{
			{
				Name: "meter/power", Alias: 3, HasAlias: true, Timestamp: at.Add(1), Type: Int16, Historical: true, Transient: true,
				Value: uint32(0xfffe),
				MetaData: &MetaData{
					MultiPart: true, ContentType: "text/plain", Size: 11, Seq: 12, FileName: "n", FileType: "t", MD5: "m", Description: "d",
				},
				Properties: &PropertySet{
					Keys: []string{"engUnit", "quality", "sub", "list", "none", "low", "long", "ok"},
					Values: []Property{
						{Type: String, Value: "W"},
						{Type: Int32, Value: uint32(192)},
						{Type: PropertySetType, Value: &PropertySet{Keys: []string{"a"}, Values: []Property{{Type: Float, Value: float32(1.5)}}}},
						{Type: PropertySetListType, Value: []PropertySet{{Keys: []string{"b"}, Values: []Property{{Type: Double, Value: 2.5}}}}},
						{Type: String},
						{Type: Double, Value: -1.0},
						{Type: UInt64, Value: uint64(math.MaxUint64)},
						{Type: Boolean, Value: true},
					},
				},
			},
			{Name: "long", Timestamp: at, Type: Int64, Value: uint64(math.MaxUint64)},
			{Name: "float", Timestamp: at, Type: Float, Value: float32(21.5)},
			{Name: "double", Timestamp: at, Type: Double, Value: math.Inf(-1)},
			{Name: "off", Timestamp: at, Type: Boolean, Value: false},
			{Name: "text", Timestamp: at, Type: String, Value: ""},
			{Name: "bytes", Timestamp: at, Type: Bytes, Value: []byte{}},
			{Name: "null", Timestamp: at, Type: Double},
			{Name: "table", Timestamp: at, Type: DataSetType, Value: &DataSet{
				Columns: []string{"n", "s"}, Types: []DataType{UInt32, String},
				Rows: [][]any{{uint32(1), "one"}, {uint32(2), "two"}},
			}},
			{Name: "motor", Timestamp: at, Type: TemplateType, Value: &Template{
				Version: "1", Ref: "Motor", Definition: true, Metrics: []Metric{{Name: "rpm", Type: UInt16, Value: uint32(900)}},
				Parameters: []Parameter{{Name: "index", Type: Int32, Value: uint32(4)}},
			}},
		},
	}
}

// What this package writes, the protobuf runtime reads as the schema says, and
// what the runtime writes, this package reads.
func TestProtobufRuntimeAgrees(t *testing.T) {
	payload := messages(t).ByName("Payload")
	want := whole()
	m := dynamicpb.NewMessage(payload)
	if err := proto.Unmarshal(want.Append(nil), m); err != nil {
		t.Fatal(err)
	}
	noUnknown(t, m)

	text := func(m protoreflect.Message, names ...protoreflect.Name) protoreflect.Value {
		t.Helper()
		for _, n := range names[:len(names)-1] {
			fd := m.Descriptor().Fields().ByName(n)
			v := m.Get(fd)
			if fd.IsList() {
				m = v.List().Get(0).Message()
			} else {
				m = v.Message()
			}
		}
		return m.Get(m.Descriptor().Fields().ByName(names[len(names)-1]))
	}
	for _, c := range []struct {
		path []protoreflect.Name
		want any
	}{
		{[]protoreflect.Name{"timestamp"}, uint64(1_700_000_000_123)},
		{[]protoreflect.Name{"seq"}, uint64(7)},
		{[]protoreflect.Name{"uuid"}, "schema"},
		{[]protoreflect.Name{"metrics", "name"}, "meter/power"},
		{[]protoreflect.Name{"metrics", "alias"}, uint64(3)},
		{[]protoreflect.Name{"metrics", "timestamp"}, uint64(1_700_000_000_123)},
		{[]protoreflect.Name{"metrics", "datatype"}, uint32(2)},
		{[]protoreflect.Name{"metrics", "is_historical"}, true},
		{[]protoreflect.Name{"metrics", "is_transient"}, true},
		{[]protoreflect.Name{"metrics", "is_null"}, false},
		{[]protoreflect.Name{"metrics", "int_value"}, uint32(0xfffe)},
		{[]protoreflect.Name{"metrics", "metadata", "is_multi_part"}, true},
		{[]protoreflect.Name{"metrics", "metadata", "content_type"}, "text/plain"},
		{[]protoreflect.Name{"metrics", "metadata", "size"}, uint64(11)},
		{[]protoreflect.Name{"metrics", "metadata", "seq"}, uint64(12)},
		{[]protoreflect.Name{"metrics", "metadata", "file_name"}, "n"},
		{[]protoreflect.Name{"metrics", "metadata", "file_type"}, "t"},
		{[]protoreflect.Name{"metrics", "metadata", "md5"}, "m"},
		{[]protoreflect.Name{"metrics", "metadata", "description"}, "d"},
		{[]protoreflect.Name{"metrics", "properties", "values", "type"}, uint32(12)},
		{[]protoreflect.Name{"metrics", "properties", "values", "string_value"}, "W"},
	} {
		if got := text(m, c.path...).Interface(); got != c.want {
			t.Errorf("%v is %v, want %v", c.path, got, c.want)
		}
	}

	again, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse(again)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(trimmed(want), got); diff != "" {
		t.Errorf("read back (-want +got):\n%s", diff)
	}
}

// trimmed cuts times to what the wire carries.
func trimmed(p *Payload) *Payload {
	p.Timestamp = time.UnixMilli(p.Timestamp.UnixMilli())
	for i := range p.Metrics {
		m := &p.Metrics[i]
		m.Timestamp = time.UnixMilli(m.Timestamp.UnixMilli())
	}
	return p
}

// noUnknown fails where a field has no place in the schema.
func noUnknown(t *testing.T, m protoreflect.Message) {
	t.Helper()
	if u := m.GetUnknown(); len(u) > 0 {
		t.Errorf("%s: fields that the schema has not: %x", m.Descriptor().Name(), u)
	}
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.Message() == nil:
		case fd.IsList():
			for i := range v.List().Len() {
				noUnknown(t, v.List().Get(i).Message())
			}
		default:
			noUnknown(t, v.Message())
		}
		return true
	})
}

func TestPayloadsRoundTrip(t *testing.T) {
	payload := messages(t).ByName("Payload")
	at := rapid.Custom(func(t *rapid.T) time.Time { return time.UnixMilli(rapid.Int64Range(0, 1<<42).Draw(t, "ms")) })
	value := rapid.OneOf(
		rapid.Just[any](nil), rapid.Uint32().AsAny(), rapid.Uint64().AsAny(), rapid.Float32().AsAny(), rapid.Float64().AsAny(),
		rapid.Bool().AsAny(), rapid.String().AsAny(),
	)
	metric := rapid.Custom(func(t *rapid.T) Metric {
		m := Metric{
			Name: rapid.String().Draw(t, "name"), HasAlias: rapid.Bool().Draw(t, "has alias"), Timestamp: at.Draw(t, "at"),
			Type: DataType(rapid.Uint32Range(0, uint32(lastType)).Draw(t, "type")), Historical: rapid.Bool().Draw(t, "historical"),
			Value: value.Draw(t, "value"),
		}
		if m.HasAlias {
			m.Alias = rapid.Uint64().Draw(t, "alias")
		}
		if keys := rapid.SliceOfN(rapid.String(), 0, 3).Draw(t, "keys"); len(keys) > 0 {
			m.Properties = &PropertySet{Keys: keys}
			for range keys {
				m.Properties.Values = append(m.Properties.Values, Property{Type: String, Value: value.Draw(t, "property")})
			}
		}
		return m
	})
	rapid.Check(t, func(rt *rapid.T) {
		p := &Payload{Timestamp: at.Draw(rt, "at"), HasSeq: rapid.Bool().Draw(rt, "has seq"), Metrics: rapid.SliceOf(metric).Draw(rt, "metrics")}
		if len(p.Metrics) == 0 {
			p.Metrics = nil
		}
		if p.HasSeq {
			p.Seq = rapid.Uint64Range(0, 255).Draw(rt, "seq")
		}
		m := dynamicpb.NewMessage(payload)
		if err := proto.Unmarshal(p.Append(nil), m); err != nil {
			rt.Fatal(err)
		}
		noUnknown(t, m)
		b, err := proto.Marshal(m)
		if err != nil {
			rt.Fatal(err)
		}
		got, err := Parse(b)
		if err != nil {
			rt.Fatal(err)
		}
		if diff := cmp.Diff(p, got, cmp.Comparer(sameFloat[float64]), cmp.Comparer(sameFloat[float32])); diff != "" {
			rt.Fatalf("(-want +got):\n%s", diff)
		}
	})
}

func sameFloat[F float32 | float64](a, b F) bool { return a == b || a != a && b != b }

func TestMalformedPayloads(t *testing.T) {
	tag := func(num protowire.Number, typ protowire.Type) []byte { return protowire.AppendTag(nil, num, typ) }
	nested := []byte{}
	for range maxNesting + 1 { // a metric that is a template of a metric ...
		nested = protowire.AppendBytes(tag(2, protowire.BytesType), nested)
		nested = protowire.AppendBytes(tag(18, protowire.BytesType), nested)
	}
	nested = protowire.AppendBytes(tag(2, protowire.BytesType), nested)
	metric := func(b []byte) []byte { return protowire.AppendBytes(tag(2, protowire.BytesType), b) }
	named := protowire.AppendString(tag(1, protowire.BytesType), "pump")
	for _, c := range []struct {
		name string
		b    []byte
		err  error
		says string
	}{
		{"truncated tag", []byte{0x80}, ErrMalformed, "payload: no Sparkplug B payload: unexpected EOF"},
		{"length that lies", []byte{0x12, 5, 0}, ErrMalformed, "payload: no Sparkplug B payload: field 2: unexpected EOF"},
		{
			"seq as text", protowire.AppendString(tag(3, protowire.BytesType), "7"), ErrMalformed,
			"payload: no Sparkplug B payload: field 3 has wire type 2, not 0",
		},
		{
			"name that is no text", metric(protowire.AppendBytes(tag(1, protowire.BytesType), []byte{0xff})), ErrMalformed,
			"payload: no Sparkplug B payload: field 1 is not UTF-8",
		},
		{
			"data type that is none", metric(append(named, append(tag(4, protowire.VarintType), 99)...)), ErrMalformed,
			`payload: metric "pump": no Sparkplug B payload: data type 99`,
		},
		{
			"time beyond all", append(tag(1, protowire.VarintType), 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1), ErrMalformed,
			"payload: no Sparkplug B payload: field 1: time 18446744073709551615",
		},
		{"nested too deep", nested, ErrNested, "payload: nested too deep"},
		{
			"data set without its names", metric(protowire.AppendBytes(append(named, tag(17, protowire.BytesType)...), append(tag(1, protowire.VarintType), 2))),
			ErrMalformed, `payload: metric "pump": no Sparkplug B payload: a data set of 2 columns has 0 names and 0 types`,
		},
		{
			"property without a value", metric(protowire.AppendBytes(append(named, tag(9, protowire.BytesType)...), named)),
			ErrMalformed, `payload: metric "pump": no Sparkplug B payload: 1 keys and 0 values of properties`,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := Parse(c.b)
			if !errors.Is(err, c.err) || err.Error() != c.says {
				t.Errorf("%v, %v; want %q", p, err, c.says)
			}
		})
	}
}

func TestUnknownFieldsArePassedOver(t *testing.T) {
	b := (&Payload{Seq: 1, HasSeq: true}).Append(nil)
	b = protowire.AppendString(protowire.AppendTag(b, 100, protowire.BytesType), "extension")
	p, err := Parse(b)
	if err != nil || p.Seq != 1 {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestSigned(t *testing.T) {
	for _, c := range []struct {
		m    Metric
		want int64
		ok   bool
	}{
		{Metric{Type: Int8, Value: uint32(0xff)}, -1, true},
		{Metric{Type: Int16, Value: uint32(0xffff8000)}, -32768, true}, // sign-extended, as some write it
		{Metric{Type: Int16, Value: uint32(0x8000)}, -32768, true},
		{Metric{Type: Int32, Value: uint32(math.MaxUint32)}, -1, true},
		{Metric{Type: UInt32, Value: uint32(math.MaxUint32)}, math.MaxUint32, true},
		{Metric{Type: Int64, Value: uint64(math.MaxUint64)}, -1, true},
		{Metric{Type: Double, Value: 1.0}, 0, false},
	} {
		if n, ok := c.m.Signed(); n != c.want || ok != c.ok {
			t.Errorf("%v %v: %d, %v", c.m.Type, c.m.Value, n, ok)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(whole().Append(nil))
	f.Add([]byte{0x12, 0x03, 0x4a, 0x01, 0x0a})
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := Parse(b)
		if err != nil {
			return
		}
		again, err := Parse(p.Append(nil))
		if err != nil {
			t.Fatalf("what was read cannot be written and read: %v", err)
		}
		if diff := cmp.Diff(p, again, cmp.Comparer(sameFloat[float64]), cmp.Comparer(sameFloat[float32])); diff != "" {
			t.Errorf("(-first +second):\n%s", diff)
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	p := &Payload{Timestamp: time.UnixMilli(1), HasSeq: true, Metrics: []Metric{{Alias: 7, HasAlias: true, Timestamp: time.UnixMilli(1), Value: 21.5}}}
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		buf = p.Append(buf[:0])
	}
	b.ReportMetric(float64(len(buf)), "bytes")
}
