package serial

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"holdfast/adapters/reading"
)

// decoder finds the points in frames.
type decoder struct {
	device string
	opts   Options
	points []point
	// pattern is set for format "regexp", group holds each point's group.
	pattern *regexp.Regexp
	group   []int
	ignore  *regexp.Regexp
}

// point is a Point made ready.
type point struct {
	Point
	invalidNumbers []float64
	invalidText    []string
}

// newDecoder checks the options and returns a decoder for them.
func newDecoder(device string, o Options) (*decoder, error) {
	if err := o.validateFrame(); err != nil {
		return nil, err
	}
	d := &decoder{device: device, opts: o}
	var err error
	if d.pattern, d.ignore, err = o.compile(); err != nil {
		return nil, err
	}
	if len(o.Points) == 0 {
		return nil, errors.New("point: there is none")
	}
	seen := make(map[string]bool, len(o.Points))
	for i, p := range o.Points {
		pt := newPoint(p)
		if err := pt.check(); err != nil {
			return nil, fmt.Errorf("point[%d].%w", i, err)
		}
		if seen[p.Name] {
			return nil, fmt.Errorf("point[%d].name: %q is there twice", i, p.Name)
		}
		seen[p.Name] = true
		if d.pattern != nil {
			g := d.pattern.SubexpIndex(pt.Field)
			if g < 0 {
				return nil, fmt.Errorf("point[%d].field: pattern has no group (?P<%s>...)", i, pt.Field)
			}
			d.group = append(d.group, g)
		}
		d.points = append(d.points, pt)
	}
	return d, nil
}

func newPoint(p Point) point {
	if p.Field == "" {
		p.Field = p.Name
	}
	if p.Type == "" {
		p.Type = TypeNumber
	}
	if p.Scale == 0 {
		p.Scale = 1
	}
	pt := point{Point: p}
	for _, v := range p.Invalid {
		switch v := v.(type) {
		case string:
			pt.invalidText = append(pt.invalidText, v)
		case int64:
			pt.invalidNumbers = append(pt.invalidNumbers, float64(v))
		case float64:
			pt.invalidNumbers = append(pt.invalidNumbers, v)
		}
	}
	return pt
}

// result is what became of one frame.
type result struct {
	readings []reading.Reading
	// missing are points that were not in the frame.
	missing int
	// broken are points whose text could not be read as their type; why is
	// about the first of them.
	broken int
	why    error
}

// ignored says that the frame is known not to be a measurement.
func (d *decoder) ignored(frame []byte) bool {
	return d.ignore != nil && d.ignore.Match(frame)
}

// decode finds the points in a frame. An error means that the frame as a whole
// is not what is expected.
func (d *decoder) decode(frame []byte, at reading.Stamp) (result, error) {
	switch d.opts.Format {
	case FormatJSON:
		return d.decodeJSON(frame, at)
	case FormatKeyValue:
		return d.decodeKeyValue(frame, at)
	default:
		return d.decodeRegexp(frame, at)
	}
}

var (
	errNoMatch = errors.New("frame does not match pattern")
	errNoPoint = errors.New("frame holds none of the points")
)

func (d *decoder) decodeRegexp(frame []byte, at reading.Stamp) (result, error) {
	m := d.pattern.FindSubmatchIndex(frame)
	if m == nil {
		return result{}, errNoMatch
	}
	return d.collect(at, func(i int) (any, bool) {
		from, to := m[2*d.group[i]], m[2*d.group[i]+1]
		if from < 0 {
			return nil, false
		}
		return string(frame[from:to]), true
	})
}

func (d *decoder) decodeKeyValue(frame []byte, at reading.Stamp) (result, error) {
	fields := make(map[string]string)
	text := string(frame)
	var pairs []string
	if d.opts.PairSeparator == " " {
		pairs = strings.Fields(text)
	} else {
		pairs = strings.Split(text, d.opts.PairSeparator)
	}
	for _, pair := range pairs {
		if k, v, ok := strings.Cut(pair, d.opts.KeySeparator); ok {
			fields[strings.TrimSpace(k)] = strings.TrimSpace(v)
		}
	}
	return d.collect(at, func(i int) (any, bool) {
		v, ok := fields[d.points[i].Field]
		return v, ok
	})
}

func (d *decoder) decodeJSON(frame []byte, at reading.Stamp) (result, error) {
	dec := json.NewDecoder(bytes.NewReader(frame))
	dec.UseNumber() // a counter beyond 2^53 must not lose its last digits
	var doc any
	if err := dec.Decode(&doc); err != nil {
		return result{}, fmt.Errorf("frame is not JSON: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return result{}, errors.New("frame is not JSON: something follows the value")
	}
	return d.collect(at, func(i int) (any, bool) {
		return lookup(doc, d.points[i].Field)
	})
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

// collect makes readings of the points that field finds: as a string, or as a
// value of encoding/json with UseNumber.
func (d *decoder) collect(at reading.Stamp, field func(i int) (any, bool)) (result, error) {
	res := result{readings: make([]reading.Reading, 0, len(d.points))}
	for i := range d.points {
		p := &d.points[i]
		raw, ok := field(i)
		if !ok {
			res.missing++
			continue
		}
		r := reading.Reading{Device: d.device, Point: p.Name, Unit: p.Unit, Time: at}
		v, invalid, err := p.value(raw)
		switch {
		case err != nil:
			r.Quality, r.Reason = reading.Bad, err.Error()
			res.broken++
			if res.why == nil {
				res.why = fmt.Errorf("point %s: %w", p.Name, err)
			}
		case invalid:
			r.Quality, r.Reason = reading.Bad, "device has no value"
		default:
			r.Value = v
		}
		res.readings = append(res.readings, r)
	}
	if len(res.readings) == 0 {
		return result{}, errNoPoint
	}
	return res, nil
}

// value makes a value of the point's type out of what stands in the frame.
// invalid means that the device says it has none.
func (p *point) value(raw any) (v any, invalid bool, err error) {
	var text string
	switch raw := raw.(type) {
	case nil: // JSON null
		return nil, true, nil
	case string:
		text = strings.TrimSpace(raw)
	case json.Number:
		text = raw.String()
	case bool:
		text = strconv.FormatBool(raw)
	default:
		return nil, false, errors.New("is an object or array, not a value")
	}
	if slices.Contains(p.invalidText, text) {
		return nil, true, nil
	}
	switch p.Type {
	case TypeText:
		return text, false, nil
	case TypeBool:
		b, err := parseBool(text)
		return b, false, err
	default:
		return p.number(text)
	}
}

func parseBool(s string) (bool, error) {
	switch strings.ToLower(s) {
	case "1", "true", "on", "yes":
		return true, nil
	case "0", "false", "off", "no":
		return false, nil
	}
	return false, fmt.Errorf("%s is not a truth value", short(s))
}

// number keeps whole numbers whole as long as nothing is to be computed.
func (p *point) number(s string) (v any, invalid bool, err error) {
	if !isDecimal(s) {
		return nil, false, fmt.Errorf("%s is not a number", short(s))
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil {
		return nil, false, fmt.Errorf("%s is not a number that fits", short(s))
	}
	if slices.Contains(p.invalidNumbers, f) {
		return nil, true, nil
	}
	if p.Scale == 1 && p.Offset == 0 {
		if i, err := strconv.ParseInt(s, 10, 64); err == nil {
			return i, false, nil
		}
		if u, err := strconv.ParseUint(s, 10, 64); err == nil {
			return u, false, nil
		}
	}
	return reading.Scale(f, p.Scale, p.Offset), false, nil
}

// isDecimal lets pass what people write as numbers; ParseFloat would take
// "infinity", "nan" and hexadecimal floats too.
func isDecimal(s string) bool {
	return s != "" && strings.Trim(s, "0123456789+-.eE") == "" && strings.ContainsAny(s, "0123456789")
}

// short quotes a text from outside for an error message.
func short(s string) string {
	const enough = 32
	if len(s) > enough {
		return strconv.Quote(s[:enough]) + "..."
	}
	return strconv.Quote(s)
}
