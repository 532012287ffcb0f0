package serial

import (
	"fmt"
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
)

// Types of a point.
const (
	TypeNumber = "number"
	TypeText   = "text"
	TypeBool   = "bool"
)

// Options say how a device talks and what of it is wanted.
type Options struct {
	// Delimiter ends a frame, 1 to 8 bytes. With "\n" a "\r" before it goes
	// as well.
	Delimiter string `toml:"delimiter"`
	// MaxLength is the longest frame, without its delimiter, in bytes, 1 to
	// 65536. Anything longer is dropped up to the next delimiter.
	MaxLength int `toml:"max_length"`
	// FrameTimeout is how long a frame may pause before what there is of it
	// is dropped, 10ms to 1h; 0 means for good.
	FrameTimeout time.Duration `toml:"frame_timeout"`
	// Format of a frame: "regexp", "json" or "key_value".
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
	// TopicPrefix is what the topics of the readings begin with:
	// prefix/device/point.
	TopicPrefix string `toml:"-"`
	// QoS of the readings, 0 to 2.
	QoS int `toml:"qos"`
	// Points are what is published. At least one.
	Points []Point `toml:"point"`
}

// Point is one measured quantity of a device.
type Point struct {
	// Name is the last level of the topic.
	Name string `toml:"name"`
	// Field is where it is in the frame: a named group, a path into JSON
	// ("data.0.temp"), or a key. Empty means Name.
	Field string `toml:"field"`
	// Type is "number", "text" or "bool"; empty means "number".
	Type string `toml:"type"`
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
		Delimiter: "\n", MaxLength: 1024, FrameTimeout: 2 * time.Second,
		Format: FormatRegexp, PairSeparator: ",", KeySeparator: "=",
		TopicPrefix: "sensors", QoS: 1,
	}
}

// Validate reports the first value that is wrong, naming its key.
func (o Options) Validate() error {
	_, err := newDecoder("device", o)
	return err
}

func (o Options) validateFrame() error {
	switch {
	case o.Delimiter == "" || len(o.Delimiter) > 8:
		return fmt.Errorf("delimiter: %q has %d bytes, not 1 to 8", o.Delimiter, len(o.Delimiter))
	case o.MaxLength < 1 || o.MaxLength > 65536:
		return fmt.Errorf("max_length: %d is outside 1..65536", o.MaxLength)
	case o.FrameTimeout != 0 && (o.FrameTimeout < 10*time.Millisecond || o.FrameTimeout > time.Hour):
		return fmt.Errorf("frame_timeout: %v is neither 0 nor within 10ms..1h", o.FrameTimeout)
	case o.QoS < 0 || o.QoS > 2:
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
	if o.Pattern != "" && o.Format != FormatRegexp {
		return fmt.Errorf("pattern: has no use with format %q", o.Format)
	}
	return nil
}

// check checks a point, with its defaults filled in.
func (p Point) check(format string, types []string) error {
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
	if p.Type != TypeNumber && (p.Scale != 1 || p.Offset != 0) {
		return fmt.Errorf("scale: scale and offset have no use with type %q", p.Type)
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
