package sparkplug

import (
	"errors"
	"fmt"
	"math"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// maxNesting bounds templates in templates and properties in properties; nobody
// nests deeper than a few.
const maxNesting = 16

// Errors that callers test for.
var (
	// ErrMalformed means bytes that are no Sparkplug B payload.
	ErrMalformed = errors.New("no Sparkplug B payload")
	// ErrNested means templates or properties nested deeper than 16 times.
	ErrNested = errors.New("nested too deep")
)

// Parse reads a payload. The result shares nothing with b.
func Parse(b []byte) (*Payload, error) {
	p := new(Payload)
	err := fields(b, func(f field) error {
		switch f.num {
		case 1:
			return f.time(&p.Timestamp)
		case 2:
			p.Metrics = append(p.Metrics, Metric{})
			return f.message(p.Metrics[len(p.Metrics)-1].parse, maxNesting)
		case 3:
			p.HasSeq = true
			return f.uint(&p.Seq)
		case 4:
			return f.text(&p.UUID)
		case 5:
			return f.bytes(&p.Body)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("payload: %w", err)
	}
	return p, nil
}

func (m *Metric) parse(b []byte, depth int) error {
	null := false
	err := fields(b, func(f field) error {
		switch f.num {
		case 1:
			return f.text(&m.Name)
		case 2:
			m.HasAlias = true
			return f.uint(&m.Alias)
		case 3:
			return f.time(&m.Timestamp)
		case 4:
			return f.dataType(&m.Type)
		case 5:
			return f.bool(&m.Historical)
		case 6:
			return f.bool(&m.Transient)
		case 7:
			return f.bool(&null)
		case 8:
			m.MetaData = new(MetaData)
			return f.message(m.MetaData.parse, depth)
		case 9:
			m.Properties = new(PropertySet)
			return f.message(m.Properties.parse, depth)
		case 16:
			var v []byte
			if err := f.bytes(&v); err != nil {
				return err
			}
			m.Value = v
			return nil
		case 17:
			d := new(DataSet)
			m.Value = d
			return f.message(d.parse, depth)
		case 18:
			t := new(Template)
			m.Value = t
			return f.message(t.parse, depth)
		default:
			return f.value(10, &m.Value)
		}
	})
	if null {
		m.Value = nil
	}
	if err != nil && m.Name != "" {
		return fmt.Errorf("metric %.100q: %w", m.Name, err)
	}
	return err
}

func (m *MetaData) parse(b []byte, _ int) error {
	return fields(b, func(f field) error {
		switch f.num {
		case 1:
			return f.bool(&m.MultiPart)
		case 2:
			return f.text(&m.ContentType)
		case 3:
			return f.uint(&m.Size)
		case 4:
			return f.uint(&m.Seq)
		case 5:
			return f.text(&m.FileName)
		case 6:
			return f.text(&m.FileType)
		case 7:
			return f.text(&m.MD5)
		case 8:
			return f.text(&m.Description)
		}
		return nil
	})
}

func (s *PropertySet) parse(b []byte, depth int) error {
	err := fields(b, func(f field) error {
		switch f.num {
		case 1:
			s.Keys = append(s.Keys, "")
			return f.text(&s.Keys[len(s.Keys)-1])
		case 2:
			s.Values = append(s.Values, Property{})
			return f.message(s.Values[len(s.Values)-1].parse, depth)
		}
		return nil
	})
	if err == nil && len(s.Keys) != len(s.Values) {
		return fmt.Errorf("%w: %d keys and %d values of properties", ErrMalformed, len(s.Keys), len(s.Values))
	}
	return err
}

func (p *Property) parse(b []byte, depth int) error {
	null := false
	err := fields(b, func(f field) error {
		switch f.num {
		case 1:
			return f.dataType(&p.Type)
		case 2:
			return f.bool(&null)
		case 9:
			s := new(PropertySet)
			p.Value = s
			return f.message(s.parse, depth)
		case 10:
			var list []PropertySet
			err := f.message(func(b []byte, depth int) error {
				return fields(b, func(f field) error {
					if f.num != 1 {
						return nil
					}
					list = append(list, PropertySet{})
					return f.message(list[len(list)-1].parse, depth)
				})
			}, depth)
			p.Value = list
			return err
		default:
			return f.value(3, &p.Value)
		}
	})
	if null {
		p.Value = nil
	}
	return err
}

func (d *DataSet) parse(b []byte, depth int) error {
	var columns uint64
	err := fields(b, func(f field) error {
		switch f.num {
		case 1:
			return f.uint(&columns)
		case 2:
			d.Columns = append(d.Columns, "")
			return f.text(&d.Columns[len(d.Columns)-1])
		case 3:
			return f.repeated(func(n uint64) error {
				t, err := dataType(n)
				d.Types = append(d.Types, t)
				return err
			})
		case 4:
			d.Rows = append(d.Rows, nil)
			row := &d.Rows[len(d.Rows)-1]
			return f.message(func(b []byte, depth int) error {
				return fields(b, func(f field) error {
					if f.num != 1 {
						return nil
					}
					*row = append(*row, nil)
					v := &(*row)[len(*row)-1]
					return f.message(func(b []byte, _ int) error {
						return fields(b, func(f field) error { return f.value(1, v) })
					}, depth)
				})
			}, depth)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if columns != uint64(len(d.Columns)) || len(d.Types) != len(d.Columns) {
		return fmt.Errorf("%w: a data set of %d columns has %d names and %d types", ErrMalformed, columns, len(d.Columns), len(d.Types))
	}
	for i, row := range d.Rows {
		if len(row) != len(d.Columns) {
			return fmt.Errorf("%w: row %d of a data set has %d values for %d columns", ErrMalformed, i, len(row), len(d.Columns))
		}
	}
	return nil
}

func (t *Template) parse(b []byte, depth int) error {
	return fields(b, func(f field) error {
		switch f.num {
		case 1:
			return f.text(&t.Version)
		case 2:
			t.Metrics = append(t.Metrics, Metric{})
			return f.message(t.Metrics[len(t.Metrics)-1].parse, depth)
		case 3:
			t.Parameters = append(t.Parameters, Parameter{})
			p := &t.Parameters[len(t.Parameters)-1]
			return f.message(func(b []byte, _ int) error {
				return fields(b, func(f field) error {
					switch f.num {
					case 1:
						return f.text(&p.Name)
					case 2:
						return f.dataType(&p.Type)
					default:
						return f.value(3, &p.Value)
					}
				})
			}, depth)
		case 4:
			return f.text(&t.Ref)
		case 5:
			return f.bool(&t.Definition)
		}
		return nil
	})
}

// field is one field of a message.
type field struct {
	num  int32
	typ  protowire.Type
	n    uint64 // of a varint or a fixed number
	data []byte // of a field with a length
}

// fields calls fn with each field of a message.
func fields(b []byte, fn func(field) error) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return fmt.Errorf("%w: %w", ErrMalformed, protowire.ParseError(n))
		}
		b = b[n:]
		f := field{num: int32(num), typ: typ}
		switch typ {
		case protowire.VarintType:
			f.n, n = protowire.ConsumeVarint(b)
		case protowire.Fixed32Type:
			var v uint32
			v, n = protowire.ConsumeFixed32(b)
			f.n = uint64(v)
		case protowire.Fixed64Type:
			f.n, n = protowire.ConsumeFixed64(b)
		case protowire.BytesType:
			f.data, n = protowire.ConsumeBytes(b)
		default: // groups, which the schema has none of
			n = protowire.ConsumeFieldValue(num, typ, b)
		}
		if n < 0 {
			return fmt.Errorf("%w: field %d: %w", ErrMalformed, num, protowire.ParseError(n))
		}
		b = b[n:]
		if err := fn(f); err != nil {
			return err
		}
	}
	return nil
}

func (f field) is(typ protowire.Type) error {
	if f.typ != typ {
		return fmt.Errorf("%w: field %d has wire type %d, not %d", ErrMalformed, f.num, f.typ, typ)
	}
	return nil
}

func (f field) uint(v *uint64) error {
	*v = f.n
	return f.is(protowire.VarintType)
}

func (f field) bool(v *bool) error {
	*v = f.n != 0
	return f.is(protowire.VarintType)
}

func (f field) time(v *time.Time) error {
	if f.n > math.MaxInt64/2 { // year 146138512
		return fmt.Errorf("%w: field %d: time %d", ErrMalformed, f.num, f.n)
	}
	*v = time.UnixMilli(int64(f.n))
	return f.is(protowire.VarintType)
}

func dataType(n uint64) (DataType, error) {
	if n > uint64(lastType) {
		return Unknown, fmt.Errorf("%w: data type %d", ErrMalformed, n)
	}
	return DataType(n), nil
}

func (f field) dataType(v *DataType) (err error) {
	if *v, err = dataType(f.n); err != nil {
		return err
	}
	return f.is(protowire.VarintType)
}

func (f field) text(v *string) error {
	if !utf8.Valid(f.data) {
		return fmt.Errorf("%w: field %d is not UTF-8", ErrMalformed, f.num)
	}
	*v = string(f.data)
	return f.is(protowire.BytesType)
}

func (f field) bytes(v *[]byte) error {
	*v = append([]byte{}, f.data...)
	return f.is(protowire.BytesType)
}

func (f field) message(parse func([]byte, int) error, depth int) error {
	if depth == 0 {
		return ErrNested
	}
	if err := f.is(protowire.BytesType); err != nil {
		return err
	}
	return parse(f.data, depth-1)
}

// repeated takes a number of a repeated field, or many in packed form, which
// some encoders write although the schema does not ask for it.
func (f field) repeated(fn func(uint64) error) error {
	if f.typ == protowire.VarintType {
		return fn(f.n)
	}
	if err := f.is(protowire.BytesType); err != nil {
		return err
	}
	for b := f.data; len(b) > 0; {
		v, n := protowire.ConsumeVarint(b)
		if n < 0 {
			return fmt.Errorf("%w: field %d: %w", ErrMalformed, f.num, protowire.ParseError(n))
		}
		b = b[n:]
		if err := fn(v); err != nil {
			return err
		}
	}
	return nil
}

// value takes a simple value; first is the number of its first field, see
// appendValue.
func (f field) value(first int32, v *any) error {
	switch f.num - first {
	case 0:
		*v = uint32(f.n)
		return f.is(protowire.VarintType)
	case 1:
		*v = f.n
		return f.is(protowire.VarintType)
	case 2:
		*v = math.Float32frombits(uint32(f.n))
		return f.is(protowire.Fixed32Type)
	case 3:
		*v = math.Float64frombits(f.n)
		return f.is(protowire.Fixed64Type)
	case 4:
		*v = f.n != 0
		return f.is(protowire.VarintType)
	case 5:
		var s string
		err := f.text(&s)
		*v = s
		return err
	}
	return nil
}
