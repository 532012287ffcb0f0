package sparkplug

import (
	"math"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// The numbers of the fields are those of sparkplug_b.proto (Sparkplug 3.0, 17.1).

// Append appends the payload as it goes over the wire.
func (p *Payload) Append(b []byte) []byte {
	b = appendTime(b, 1, p.Timestamp)
	for i := range p.Metrics {
		b = appendMessage(b, 2, p.Metrics[i].append)
	}
	if p.HasSeq {
		b = appendUint(b, 3, p.Seq)
	}
	b = appendText(b, 4, p.UUID)
	if len(p.Body) > 0 {
		b = protowire.AppendBytes(protowire.AppendTag(b, 5, protowire.BytesType), p.Body)
	}
	return b
}

func (m *Metric) append(b []byte) []byte {
	b = appendText(b, 1, m.Name)
	if m.HasAlias {
		b = appendUint(b, 2, m.Alias)
	}
	b = appendTime(b, 3, m.Timestamp)
	if m.Type != Unknown {
		b = appendUint(b, 4, uint64(m.Type))
	}
	b = appendTrue(b, 5, m.Historical)
	b = appendTrue(b, 6, m.Transient)
	b = appendTrue(b, 7, m.Value == nil)
	if m.MetaData != nil {
		b = appendMessage(b, 8, m.MetaData.append)
	}
	if m.Properties != nil {
		b = appendMessage(b, 9, m.Properties.append)
	}
	switch v := m.Value.(type) {
	case []byte:
		return protowire.AppendBytes(protowire.AppendTag(b, 16, protowire.BytesType), v)
	case *DataSet:
		return appendMessage(b, 17, v.append)
	case *Template:
		return appendMessage(b, 18, v.append)
	default:
		return appendValue(b, 10, v)
	}
}

// appendValue appends a simple value in a oneof whose fields follow each other
// in the order that all of the schema keeps: int, long, float, double, boolean,
// string.
func appendValue(b []byte, first protowire.Number, v any) []byte {
	switch v := v.(type) {
	case uint32:
		return appendUint(b, first, uint64(v))
	case uint64:
		return appendUint(b, first+1, v)
	case float32:
		return protowire.AppendFixed32(protowire.AppendTag(b, first+2, protowire.Fixed32Type), math.Float32bits(v))
	case float64:
		return protowire.AppendFixed64(protowire.AppendTag(b, first+3, protowire.Fixed64Type), math.Float64bits(v))
	case bool:
		return appendUint(b, first+4, protowire.EncodeBool(v))
	case string:
		return protowire.AppendString(protowire.AppendTag(b, first+5, protowire.BytesType), v)
	default:
		return b
	}
}

func (m *MetaData) append(b []byte) []byte {
	b = appendTrue(b, 1, m.MultiPart)
	b = appendText(b, 2, m.ContentType)
	for i, n := range [...]uint64{m.Size, m.Seq} {
		if n != 0 {
			b = appendUint(b, protowire.Number(3+i), n)
		}
	}
	for i, s := range [...]string{m.FileName, m.FileType, m.MD5, m.Description} {
		b = appendText(b, protowire.Number(5+i), s)
	}
	return b
}

func (s *PropertySet) append(b []byte) []byte {
	for _, k := range s.Keys {
		b = protowire.AppendString(protowire.AppendTag(b, 1, protowire.BytesType), k)
	}
	for i := range s.Values {
		b = appendMessage(b, 2, s.Values[i].append)
	}
	return b
}

func (p *Property) append(b []byte) []byte {
	if p.Type != Unknown {
		b = appendUint(b, 1, uint64(p.Type))
	}
	b = appendTrue(b, 2, p.Value == nil)
	switch v := p.Value.(type) {
	case *PropertySet:
		return appendMessage(b, 9, v.append)
	case []PropertySet:
		return appendMessage(b, 10, func(b []byte) []byte {
			for i := range v {
				b = appendMessage(b, 1, v[i].append)
			}
			return b
		})
	default:
		return appendValue(b, 3, v)
	}
}

func (d *DataSet) append(b []byte) []byte {
	b = appendUint(b, 1, uint64(len(d.Columns)))
	for _, c := range d.Columns {
		b = protowire.AppendString(protowire.AppendTag(b, 2, protowire.BytesType), c)
	}
	for _, t := range d.Types { // proto2: not packed
		b = appendUint(b, 3, uint64(t))
	}
	for _, row := range d.Rows {
		b = appendMessage(b, 4, func(b []byte) []byte {
			for _, v := range row {
				b = appendMessage(b, 1, func(b []byte) []byte { return appendValue(b, 1, v) })
			}
			return b
		})
	}
	return b
}

func (t *Template) append(b []byte) []byte {
	b = appendText(b, 1, t.Version)
	for i := range t.Metrics {
		b = appendMessage(b, 2, t.Metrics[i].append)
	}
	for i := range t.Parameters {
		b = appendMessage(b, 3, func(b []byte) []byte {
			b = appendText(b, 1, t.Parameters[i].Name)
			b = appendUint(b, 2, uint64(t.Parameters[i].Type))
			return appendValue(b, 3, t.Parameters[i].Value)
		})
	}
	b = appendText(b, 4, t.Ref)
	return appendUint(b, 5, protowire.EncodeBool(t.Definition))
}

func appendUint(b []byte, num protowire.Number, n uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, num, protowire.VarintType), n)
}

func appendTrue(b []byte, num protowire.Number, v bool) []byte {
	if !v {
		return b
	}
	return appendUint(b, num, 1)
}

func appendText(b []byte, num protowire.Number, s string) []byte {
	if s == "" {
		return b
	}
	return protowire.AppendString(protowire.AppendTag(b, num, protowire.BytesType), s)
}

// appendTime appends milliseconds since 1970 (§6.4.2); a time before that has
// no place in the field.
func appendTime(b []byte, num protowire.Number, t time.Time) []byte {
	if t.IsZero() {
		return b
	}
	return appendUint(b, num, uint64(max(0, t.UnixMilli())))
}

// appendMessage appends what fill appends as a field with its length before it.
// The length is put in afterwards: nearly all are below 128 and need one byte.
func appendMessage(b []byte, num protowire.Number, fill func([]byte) []byte) []byte {
	b = append(protowire.AppendTag(b, num, protowire.BytesType), 0)
	start := len(b)
	b = fill(b)
	n := uint64(len(b) - start)
	if more := protowire.SizeVarint(n) - 1; more > 0 {
		b = append(b, make([]byte, more)...)
		copy(b[start+more:], b[start:])
		start += more
		protowire.AppendVarint(b[:start-more-1], n)
		return b
	}
	b[start-1] = byte(n)
	return b
}
