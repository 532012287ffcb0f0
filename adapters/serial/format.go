package serial

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The way of a byte:
//
//	port --> framer --> check --> format --> points --> readings
//	         cuts       is it     fields     numbers,
//	                    whole?               scale, time
//
// A new format is a row in formats and a type that parses.

// format takes frames apart. It belongs to one goroutine and may remember what
// earlier frames said, such as the header of a table.
type format interface {
	// parse finds the fields of one frame, which is valid during the call.
	// What it returns is used before the next call. errNothing means that the
	// frame is well and holds no measurement; any other error, that it is not
	// what is expected.
	parse(frame []byte) (fields, error)
}

// fields are what a frame says.
type fields struct {
	// get returns what the frame says of a point, by its place in the options:
	// a string (read as the point's type), a json.Number, float64, int64,
	// uint64, bool, or nil if the device says that it has no value; an error if
	// what it says is none. False: the frame does not speak of it.
	get func(i int) (v any, ok bool)
	// unit returns the unit that the frame names for a point, empty for none.
	// It is used where the options name none. Nil: frames name no units.
	unit func(i int) string
	// time is when the device says that it measured; zero if it does not.
	time time.Time
	// part says that a frame is about some points only: the others are not
	// missing.
	part bool
}

// errNothing is returned by a format for a frame without a measurement.
var errNothing = errors.New("frame holds no measurement")

// formatKind is one value of the key "format".
type formatKind struct {
	// types are what a point's type can be, the default first.
	types []string
	// new checks the options that are the format's own, and those of the
	// points, and returns the format. Errors begin with the key.
	new func(o *Options, points []point) (format, error)
}

// texts are the types of a format whose fields are text, which may stand for
// bytes as hexadecimal digits.
var texts = append([]string{TypeNumber, TypeText, TypeBool}, ByteTypes()...)

var formats = map[string]formatKind{
	FormatRegexp:   {types: texts, new: newRegexpFormat},
	FormatJSON:     {types: texts, new: newJSONFormat},
	FormatKeyValue: {types: texts, new: newKeyValueFormat},
	FormatCSV:      {types: texts, new: newCSVFormat},
	FormatBinary:   {types: ByteTypes(), new: newBinaryFormat},
	FormatOBIS:     {types: texts, new: newOBISFormat},
	FormatNMEA:     {types: texts, new: newNMEAFormat},
	FormatSML:      {types: texts, new: newSMLFormat},
}

// oneOf lists the values of a key for an error message.
func oneOf[V any](m map[string]V) string {
	return `"` + strings.Join(slices.Sorted(maps.Keys(m)), `", "`) + `"`
}

// regexpFormat finds fields by the named groups of a regular expression.
type regexpFormat struct {
	pattern *regexp.Regexp
	group   []int // of each point
}

var errNoMatch = errors.New("frame does not match pattern")

func newRegexpFormat(o *Options, points []point) (format, error) {
	if o.Pattern == "" {
		return nil, errors.New(`pattern: is missing; format "regexp" needs one such as '^W=(?P<weight>[-0-9.]+)kg$'`)
	}
	pattern, err := regexp.Compile(o.Pattern)
	if err != nil {
		return nil, fmt.Errorf("pattern: %w", err)
	}
	f := &regexpFormat{pattern: pattern}
	for i, p := range points {
		g := pattern.SubexpIndex(p.Field)
		if g < 0 {
			return nil, fmt.Errorf("point[%d].field: pattern has no group (?P<%s>...)", i, p.Field)
		}
		f.group = append(f.group, g)
	}
	return f, nil
}

func (f *regexpFormat) parse(frame []byte) (fields, error) {
	m := f.pattern.FindSubmatchIndex(frame)
	if m == nil {
		return fields{}, errNoMatch
	}
	return fields{get: func(i int) (any, bool) {
		from, to := m[2*f.group[i]], m[2*f.group[i]+1]
		if from < 0 {
			return nil, false
		}
		return string(frame[from:to]), true
	}}, nil
}

// keyValueFormat finds fields by the keys before them.
type keyValueFormat struct {
	pairs, keys string // separators
	names       []string
}

func newKeyValueFormat(o *Options, points []point) (format, error) {
	switch {
	case o.PairSeparator == "":
		return nil, errors.New("pair_separator: is empty")
	case o.KeySeparator == "":
		return nil, errors.New("key_separator: is empty")
	case o.KeySeparator == o.PairSeparator:
		return nil, fmt.Errorf("key_separator: %q is pair_separator as well", o.KeySeparator)
	}
	return &keyValueFormat{pairs: o.PairSeparator, keys: o.KeySeparator, names: fieldNames(points)}, nil
}

func fieldNames(points []point) []string {
	var names []string
	for _, p := range points {
		names = append(names, p.Field)
	}
	return names
}

func (f *keyValueFormat) parse(frame []byte) (fields, error) {
	found := make(map[string]string)
	text := string(frame)
	var pairs []string
	if f.pairs == " " {
		pairs = strings.Fields(text)
	} else {
		pairs = strings.Split(text, f.pairs)
	}
	for _, pair := range pairs {
		if k, v, ok := strings.Cut(pair, f.keys); ok {
			found[strings.TrimSpace(k)] = strings.TrimSpace(v)
		}
	}
	return fields{get: func(i int) (any, bool) {
		v, ok := found[f.names[i]]
		return v, ok
	}}, nil
}

// jsonFormat finds fields by paths into a JSON document.
type jsonFormat struct{ paths []string }

func newJSONFormat(_ *Options, points []point) (format, error) {
	return &jsonFormat{paths: fieldNames(points)}, nil
}

func (f *jsonFormat) parse(frame []byte) (fields, error) {
	dec := json.NewDecoder(bytes.NewReader(frame))
	dec.UseNumber() // a counter beyond 2^53 must not lose its last digits
	var doc any
	if err := dec.Decode(&doc); err != nil {
		return fields{}, fmt.Errorf("frame is not JSON: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return fields{}, errors.New("frame is not JSON: something follows the value")
	}
	return fields{get: func(i int) (any, bool) { return lookup(doc, f.paths[i]) }}, nil
}

// lookup follows a dotted path; a number steps into an array. A key that holds
// dots itself is found as well, if it is the whole rest of the path.
func lookup(doc any, path string) (any, bool) {
	for {
		head, rest, more := strings.Cut(path, ".")
		switch v := doc.(type) {
		case map[string]any:
			if whole, ok := v[path]; ok {
				return whole, true
			}
			next, ok := v[head]
			if !ok {
				return nil, false
			}
			doc = next
		case []any:
			i, err := strconv.Atoi(head)
			if err != nil || i < 0 || i >= len(v) {
				return nil, false
			}
			doc = v[i]
		default:
			return nil, false
		}
		if !more {
			return doc, true
		}
		path = rest
	}
}
