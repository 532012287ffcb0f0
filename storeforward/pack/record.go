package pack

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// ErrFormat means that bytes are not a batch, or not a whole one.
var ErrFormat = errors.New("not a batch")

// Format is how records are written.
type Format string

// The formats.
const (
	FormatJSONLines Format = "jsonl"
	FormatJSON      Format = "json"
	FormatCBOR      Format = "cbor"
	// FormatSenML and FormatSenMLCBOR are packs of SenML (RFC 8428), which others
	// write and read: see [NewPackerOf].
	FormatSenML     Format = "senml"
	FormatSenMLCBOR Format = "senml_cbor"
)

// Formats are those that this package writes, and ForeignFormats the others.
var (
	Formats        = []Format{FormatJSONLines, FormatJSON, FormatCBOR}
	ForeignFormats = []Format{FormatSenML, FormatSenMLCBOR}
)

// Foreign says that the records are not written by this package.
func (f Format) Foreign() bool { return slices.Contains(ForeignFormats, f) }

// ContentType is the content type of a batch before compression.
func (f Format) ContentType() string {
	switch f {
	case FormatJSONLines:
		return "application/x-ndjson"
	case FormatJSON:
		return "application/json"
	case FormatSenML:
		return "application/senml+json"
	case FormatSenMLCBOR:
		return "application/senml+cbor"
	default:
		return "application/cbor"
	}
}

// Compression is how a batch is compressed.
type Compression string

// The compressions.
const (
	CompressionNone Compression = "none"
	CompressionGzip Compression = "gzip"
	CompressionZstd Compression = "zstd"
)

// Compressions are all of them.
var Compressions = []Compression{CompressionNone, CompressionGzip, CompressionZstd}

// EncodingProperty is the user property of MQTT 5.0 that names the compression.
const EncodingProperty = "content-encoding"

// Suffix is what a 3.1.1 topic ends with, such as "jsonl.zst".
func Suffix(f Format, c Compression) string {
	switch c {
	case CompressionGzip:
		return string(f) + ".gz"
	case CompressionZstd:
		return string(f) + ".zst"
	default:
		return string(f)
	}
}

// Record is one message in a batch.
type Record struct {
	Topic string
	// Local is the topic at the gateway, for those who write other formats.
	Local string
	// Time is when it was accepted, kept to the millisecond.
	Time    time.Time
	Payload []byte
	QoS     byte // the publisher's, 0 to 2
	// HasExpiry says that Expiry counts: the seconds left.
	HasExpiry bool
	Expiry    uint32
	// Properties are those of MQTT 5.0 in wire form, without the length.
	Properties []byte
}

func wrong(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrFormat}, args...)...)
}
