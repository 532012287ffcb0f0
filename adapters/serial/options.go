package serial

import (
	"encoding/hex"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"holdfast/adapters/reading"
)

// Formats of a frame.
const (
	FormatRegexp   = "regexp"
	FormatJSON     = "json"
	FormatKeyValue = "key_value"
	FormatCSV      = "csv"
	FormatBinary   = "binary"
	FormatOBIS     = "obis"
	FormatSML      = "sml"
	FormatNMEA     = "nmea"
)

// Types of a point.
const (
	TypeNumber = "number"
	TypeText   = "text"
	TypeBool   = "bool"
)

// Framings.
const (
	FramingDelimiter = "delimiter"
	FramingFixed     = "fixed"
	FramingLength    = "length"
	FramingStartEnd  = "start_end"
	FramingSLIP      = "slip"
	FramingCOBS      = "cobs"
	FramingSilence   = "silence"
	FramingRegexp    = "regexp"
	FramingSML       = "sml"
	FramingIEC62056  = "iec62056"
)

// Orders of bytes.
const (
	OrderBig    = "big"
	OrderLittle = "little"
)

// Options say how a device talks and what of it is wanted. Where bytes are
// asked for, a text stands for its own, and "0x0203" for those two.
type Options struct {
	// Framing is how the stream is cut: one of the constants above.
	Framing string `toml:"framing"`
	// Delimiter ends a frame, 1 to 8 bytes. With "\n" a "\r" before it goes
	// as well. Framing "delimiter".
	Delimiter string `toml:"delimiter"`
	// MaxLength is the longest frame in bytes, without what begins and ends
	// it, 1 to 65536; to 4096 with framing "regexp". Anything longer is
	// dropped.
	MaxLength int `toml:"max_length"`
	// FrameTimeout is how long a frame may pause before what there is of it
	// is dropped, 10ms to 1h; 0 means for good.
	FrameTimeout time.Duration `toml:"frame_timeout"`
	// Sync is what a frame begins with, up to 8 bytes, and stays a part of
	// it. Framings "fixed" and "length".
	Sync string `toml:"sync"`
	// Length is how many bytes a frame of framing "fixed" has.
	Length int `toml:"length"`
	// LengthOffset is where in the frame its length stands, LengthSize how
	// many bytes that takes (1, 2 or 4), LengthOrder their order, "big" or
	// "little". LengthAdjust is added to make it the length of the whole
	// frame. Framing "length".
	LengthOffset int    `toml:"length_offset"`
	LengthSize   int    `toml:"length_size"`
	LengthOrder  string `toml:"length_order"`
	LengthAdjust int    `toml:"length_adjust"`
	// Start and End are what a frame of framing "start_end" stands between,
	// 1 to 8 bytes each; they may be the same.
	Start string `toml:"start"`
	End   string `toml:"end"`
	// Escape is the byte that makes the next one data; empty for none. If
	// Start and End are two bytes of which the first is Escape (DLE STX, DLE
	// ETX) only it is doubled in data; else they are one byte, and EscapeXor
	// is what the byte after Escape is changed by, 0 to 255.
	Escape    string `toml:"escape"`
	EscapeXor int    `toml:"escape_xor"`
	// Trailer is how many bytes after End belong to the frame, 0 to 16: its
	// checksum. With some the checksum is over Start and End as well.
	Trailer int `toml:"trailer"`
	// Silence is what ends a frame of framing "silence", 1ms to 1m. Adapters
	// on USB hand on what they have every 16 ms, and a busy gateway may see
	// a shorter silence as none.
	Silence time.Duration `toml:"silence"`
	// FramePattern is what a frame of framing "regexp" looks like (RE2
	// syntax, UTF-8). A frame ends at the first byte at which it matches.
	FramePattern string `toml:"frame_pattern"`
	// Check is the checksum of frames, see [Checks]; empty for none.
	Check string `toml:"check"`
	// CheckEncoding is how it is written, "binary" or "hex".
	CheckEncoding string `toml:"check_encoding"`
	// CheckOrder of its bytes, "big" or "little". Empty: as is usual with
	// this checksum; big with "hex".
	CheckOrder string `toml:"check_order"`
	// CheckAt is where its first byte stands. Negative: where its last byte
	// stands, counted from the end of the frame, which is -1. There it is
	// taken off before the frame is read.
	CheckAt int `toml:"check_at"`
	// CheckFrom and CheckTo are what it is computed over: from the first to
	// before the second. CheckTo 0: up to the checksum, or the end of the
	// frame if the checksum stands before CheckFrom; negative: so many bytes
	// before the end of the frame.
	CheckFrom int `toml:"check_from"`
	CheckTo   int `toml:"check_to"`
	// Format of a frame, see [Formats].
	Format string `toml:"format"`
	// Pattern is the regular expression of format "regexp" (RE2 syntax);
	// its named groups are the fields. Anchor it with ^ and $: a frame that
	// lost some bytes should not match.
	Pattern string `toml:"pattern"`
	// Ignore matches frames that are no measurements and no errors, such as
	// a banner. Empty means none.
	Ignore string `toml:"ignore"`
	// PairSeparator and KeySeparator split a frame of format "key_value".
	// A PairSeparator of " " means any white space.
	PairSeparator string `toml:"pair_separator"`
	KeySeparator  string `toml:"key_separator"`
	// Separator stands between the columns of format "csv", one character.
	// Text in double quotes may contain it.
	Separator string `toml:"separator"`
	// Columns names the columns of format "csv", all of them. Without it,
	// and without Header, the field of a point is a number from 1.
	Columns []string `toml:"columns"`
	// Header says that the device sends the names of the columns of format
	// "csv" itself, in a frame that has the fields of all points.
	Header bool `toml:"header"`
	// Order of the bytes of numbers: ABCD, DCBA, BADC or CDAB, A the most
	// significant one. Format "binary", and types of bytes.
	Order string `toml:"order"`
	// Decimal is what stands before the fraction of a number, "." or ",".
	// Thousands is what may stand between groups of three digits; empty for
	// nothing. Formats of text.
	Decimal   string `toml:"decimal"`
	Thousands string `toml:"thousands"`
	// SignAfter lets a sign stand after a number as well: "12.5-".
	SignAfter bool `toml:"sign_after"`
	// Time is the field in which the device says when it measured; empty for
	// none: the gateway's clock. Not with format "binary".
	Time string `toml:"time"`
	// TimeFormat is "unix", "unix_ms", "rfc3339", or a pattern of %Y %y %m %d
	// %H %M %S %f %z. One without a date means the nearest such time of day.
	TimeFormat string `toml:"time_format"`
	// TimeZone of a time that names none: "UTC", "Local", "+01:00", or a name
	// such as "Europe/Berlin".
	TimeZone string `toml:"time_zone"`
	// TimeTolerance is how far from the gateway's clock, if that is set, the
	// device's may be before it is not believed; 0 to 8760h, 0 for any.
	TimeTolerance time.Duration `toml:"time_tolerance"`
	// TopicPrefix is what the topics of the readings begin with:
	// prefix/device/point.
	TopicPrefix string `toml:"-"`
	// QoS of the readings, 0 to 2.
	QoS int `toml:"qos"`
	// Points are what is published. At least one.
	Points []Point `toml:"point"`
	// Polls are what the device is asked. Without any it talks by itself.
	Polls []Poll `toml:"poll"`
	// Commands are what the device can be told by messages.
	Commands []Command `toml:"command"`
}

// Point is one measured quantity of a device.
type Point struct {
	// Name is the last level of the topic.
	Name string `toml:"name"`
	// Field is where it is in the frame: a named group, a path into JSON
	// ("data.0.temp"), a key, a column. Empty means Name. Format "binary"
	// has At instead.
	Field string `toml:"field"`
	// Type is "number", "text" or "bool", or a type of bytes (see
	// [ByteTypes]), which in text are written as hexadecimal digits. Empty
	// means "number", and "uint16" with format "binary".
	Type string `toml:"type"`
	// At is where in a binary frame the value begins, from 0; negative:
	// from the end of the frame.
	At int `toml:"at"`
	// Length is how many bytes a "string" or "bcd" has, 1 to 255.
	Length int `toml:"length"`
	// Bit is the lowest of the Bits that make up the value of an unsigned
	// type, 0 the least significant. Bits 0: all.
	Bit  int `toml:"bit"`
	Bits int `toml:"bits"`
	// Order is that of Options, for this point; empty for the same.
	Order string `toml:"order"`
	// Poll is the one whose answers hold it; empty: all that do.
	Poll string `toml:"poll"`
	// Suffixes are what may stand behind a number in the field, such as its
	// unit.
	Suffixes []string `toml:"suffixes"`
	// Unit is for people.
	Unit string `toml:"unit"`
	// Scale multiplies a number; 0 means 1. Offset is added afterwards.
	Scale  float64 `toml:"scale"`
	Offset float64 `toml:"offset"`
	// Invalid are values by which the device says that it has none: numbers,
	// compared before scaling, or strings. They become null with quality
	// "bad".
	Invalid []any `toml:"invalid"`
}

// DefaultOptions are for lines of text. There is no default pattern and no
// default point.
func DefaultOptions() Options {
	return Options{
		Framing: FramingDelimiter, Delimiter: "\n", MaxLength: 1024, FrameTimeout: 2 * time.Second,
		LengthSize: 1, LengthOrder: OrderBig, Silence: 50 * time.Millisecond,
		CheckEncoding: EncodingBinary, CheckAt: -1,
		Format: FormatRegexp, PairSeparator: ",", KeySeparator: "=", Separator: ",",
		Order: "ABCD", Decimal: ".", TimeFormat: "rfc3339", TimeZone: "UTC", TimeTolerance: 24 * time.Hour,
		TopicPrefix: "sensors", QoS: 1,
	}
}

// Framings lists the values of the key "framing".
func Framings() []string { return slices.Sorted(maps.Keys(framings)) }

// Checks lists the values of the key "check": for CRCs the names of the
// catalogue of parametrised CRC algorithms.
func Checks() []string { return slices.Sorted(maps.Keys(checks)) }

// Formats lists the values of the key "format".
func Formats() []string { return slices.Sorted(maps.Keys(formats)) }

// Validate reports the first value that is wrong, naming its key.
func (o *Options) Validate() error {
	_, err := o.compile("device")
	return err
}

// compiled is what the options say, made ready.
type compiled struct {
	framer framer
	check  *check
	conv   conversation
	dec    *decoder // nil if there are polls, which have their own
}

// compile checks the options and makes them ready.
func (o *Options) compile(device string) (k compiled, err error) {
	if err := o.validate(); err != nil {
		return k, err
	}
	if k.framer, err = o.newFramer(); err != nil {
		return k, err
	}
	if k.check, err = newCheck(o); err != nil {
		return k, err
	}
	if k.conv, err = newConversation(device, o, k.check); err != nil {
		return k, err
	}
	if len(o.Polls) == 0 {
		k.dec, err = newDecoder(device, o)
	}
	return k, err
}

// newFramer checks the options of the framing and returns one.
func (o *Options) newFramer() (framer, error) {
	kind, ok := framings[o.Framing]
	switch {
	case !ok:
		return nil, fmt.Errorf("framing: %q is none of %s", o.Framing, oneOf(framings))
	case o.MaxLength < 1 || o.MaxLength > 65536:
		return nil, fmt.Errorf("max_length: %d is outside 1..65536", o.MaxLength)
	case o.FrameTimeout != 0 && (o.FrameTimeout < 10*time.Millisecond || o.FrameTimeout > time.Hour):
		return nil, fmt.Errorf("frame_timeout: %v is neither 0 nor within 10ms..1h", o.FrameTimeout)
	}
	return kind(o)
}

func (o *Options) validate() error {
	if o.QoS < 0 || o.QoS > 2 {
		return fmt.Errorf("qos: %d is outside 0..2", o.QoS)
	}
	// The prefix may have several levels, each as a name is.
	for level := range strings.SplitSeq(o.TopicPrefix, "/") {
		if err := reading.ValidName(level); err != nil {
			return fmt.Errorf("topic_prefix: %q: a level %w", o.TopicPrefix, err)
		}
	}
	if _, ok := formats[o.Format]; !ok {
		return fmt.Errorf("format: %q is none of %s", o.Format, oneOf(formats))
	}
	if err := o.validateNumbers(); err != nil {
		return err
	}
	return o.useless()
}

func (o *Options) validateNumbers() error {
	switch o.Decimal {
	case ".", ",":
	default:
		return fmt.Errorf(`decimal: %q is neither "." nor ","`, o.Decimal)
	}
	switch {
	case len([]rune(o.Thousands)) > 1 || strings.ContainsAny(o.Thousands, "0123456789+-eE"):
		return fmt.Errorf("thousands: %q is not one character beside digits, signs and e", o.Thousands)
	case o.Thousands == o.Decimal:
		return fmt.Errorf("thousands: %q is decimal as well", o.Thousands)
	}
	if _, ok := byteOrders[o.Order]; !ok {
		return fmt.Errorf(`order: %q is none of "ABCD", "DCBA", "BADC", "CDAB"`, o.Order)
	}
	return nil
}

// bytesOf returns the bytes that a value of the configuration stands for.
func bytesOf(key, s string, least, most int) ([]byte, error) {
	b := []byte(s)
	if digits, ok := strings.CutPrefix(s, "0x"); ok {
		var err error
		if b, err = hex.DecodeString(strings.ReplaceAll(digits, " ", "")); err != nil {
			return nil, fmt.Errorf("%s: %q is not 0x and pairs of hexadecimal digits", key, s)
		}
	}
	if len(b) < least || len(b) > most {
		return nil, fmt.Errorf("%s: %q has %d bytes, not %d to %d", key, s, len(b), least, most)
	}
	return b, nil
}

// check checks a point, with its defaults filled in.
func (p *Point) check(format string, types []string) error {
	if err := reading.ValidName(p.Name); err != nil {
		return fmt.Errorf("name: %w", err)
	}
	if !slices.Contains(types, p.Type) {
		return fmt.Errorf(`type: %q is none of "%s" (format %q)`, p.Type, strings.Join(types, `", "`), format)
	}
	if math.IsNaN(p.Scale) || math.IsInf(p.Scale, 0) {
		return fmt.Errorf("scale: %v is no number", p.Scale)
	}
	if math.IsNaN(p.Offset) || math.IsInf(p.Offset, 0) {
		return fmt.Errorf("offset: %v is no number", p.Offset)
	}
	if !p.numeric() && (p.Scale != 1 || p.Offset != 0) {
		return fmt.Errorf("scale: scale and offset have no use with type %q", p.Type)
	}
	if err := p.checkBytes(); err != nil {
		return err
	}
	for _, s := range p.Suffixes {
		if s == "" || strings.ContainsAny(s, "0123456789") {
			return fmt.Errorf("suffixes: %q is empty or has a digit", s)
		}
	}
	for _, v := range p.Invalid {
		switch v.(type) {
		case string, int64, float64:
		default:
			return fmt.Errorf("invalid: %v is neither a number nor a string", v)
		}
	}
	return nil
}

// numeric says that the value is a number.
func (p *Point) numeric() bool {
	return p.Type != TypeText && p.Type != TypeBool && p.Type != TypeString
}
