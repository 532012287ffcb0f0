package sparkplug

import "time"

// DataType is the type of a value (Sparkplug 3.0 §6.4.16).
type DataType uint32

// The data types. Those from Int8Array on are packed into Metric bytes.
const (
	Unknown DataType = iota
	Int8
	Int16
	Int32
	Int64
	UInt8
	UInt16
	UInt32
	UInt64
	Float
	Double
	Boolean
	String
	DateTime
	Text
	UUID
	DataSetType
	Bytes
	File
	TemplateType
	PropertySetType
	PropertySetListType
	Int8Array
	Int16Array
	Int32Array
	Int64Array
	UInt8Array
	UInt16Array
	UInt32Array
	UInt64Array
	FloatArray
	DoubleArray
	BooleanArray
	StringArray
	DateTimeArray

	lastType = DateTimeArray
)

var typeNames = [...]string{
	"Unknown", "Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64", "Float", "Double", "Boolean",
	"String", "DateTime", "Text", "UUID", "DataSet", "Bytes", "File", "Template", "PropertySet", "PropertySetList",
	"Int8Array", "Int16Array", "Int32Array", "Int64Array", "UInt8Array", "UInt16Array", "UInt32Array", "UInt64Array",
	"FloatArray", "DoubleArray", "BooleanArray", "StringArray", "DateTimeArray",
}

// String returns the name that the specification gives the type.
func (t DataType) String() string {
	if t > lastType {
		return "Unknown"
	}
	return typeNames[t]
}

// Payload is what every Sparkplug message but STATE carries (§6.4.1).
type Payload struct {
	// Timestamp is when the message was made; zero leaves it out.
	Timestamp time.Time
	// Seq counts the messages of an edge node from 0 to 255; HasSeq says that
	// it is there. A death of the node has none.
	Seq    uint64
	HasSeq bool
	// UUID names the schema of Body; both are rare and only passed through.
	UUID string
	Body []byte

	Metrics []Metric
}

// Metric is one value (§6.4.5).
type Metric struct {
	// Name is the whole name, with slashes for folders; empty in data that
	// goes by alias.
	Name string
	// Alias stands for the name once a birth has told both; HasAlias says
	// that it is there.
	Alias    uint64
	HasAlias bool
	// Timestamp is when the value was measured; zero leaves it out.
	Timestamp time.Time
	// Type is needed in births; Unknown leaves it out.
	Type DataType
	// Historical values are older than what the host may hold as current,
	// Transient ones are not to be kept.
	Historical, Transient bool
	// Value is a uint32 (the types of up to 32 bits; [Signed] has the sign),
	// uint64 (those of 64, DateTime), float32, float64, bool, string, []byte,
	// *DataSet or *Template; nil means null.
	Value any

	MetaData   *MetaData
	Properties *PropertySet
}

// Signed returns the integer of a metric's value with the sign that its type
// gives it: signed values travel as their two's complement in an unsigned
// field. ok is false when the value is no integer.
func (m *Metric) Signed() (n int64, ok bool) {
	switch v := m.Value.(type) {
	case uint32:
		switch m.Type {
		case Int8:
			return int64(int8(v)), true
		case Int16:
			return int64(int16(v)), true
		case Int32:
			return int64(int32(v)), true
		default:
			return int64(v), true
		}
	case uint64:
		return int64(v), true
	default:
		return 0, false
	}
}

// MetaData describes a metric (§6.4.7).
type MetaData struct {
	MultiPart   bool
	ContentType string
	Size, Seq   uint64
	FileName    string
	FileType    string
	MD5         string
	Description string
}

// PropertySet are named properties of a metric, in order (§6.4.8).
type PropertySet struct {
	Keys   []string
	Values []Property
}

// Property is the value of one property (§6.4.9). Value is as in [Metric], or a
// *PropertySet, or a []PropertySet for a list of them; nil means null.
type Property struct {
	Type  DataType
	Value any
}

// DataSet is a table (§6.4.12).
type DataSet struct {
	Columns []string
	Types   []DataType
	// Rows hold one value for each column, as in [Metric].
	Rows [][]any
}

// Template is a definition or an instance of a composite value (§6.4.14).
// Holdfast makes none, but reads those of others.
type Template struct {
	Version    string
	Metrics    []Metric
	Parameters []Parameter
	Ref        string
	Definition bool
}

// Parameter is one of a Template.
type Parameter struct {
	Name  string
	Type  DataType
	Value any
}
