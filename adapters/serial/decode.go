package serial

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"holdfast/adapters/reading"
)

// decoder finds the points in frames.
type decoder struct {
	device string
	points []point
	format format
	ignore *regexp.Regexp
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
	d := &decoder{device: device}
	if o.Ignore != "" {
		var err error
		if d.ignore, err = regexp.Compile(o.Ignore); err != nil {
			return nil, fmt.Errorf("ignore: %w", err)
		}
	}
	if len(o.Points) == 0 {
		return nil, errors.New("point: there is none")
	}
	kind := formats[o.Format]
	seen := make(map[string]bool, len(o.Points))
	for i, p := range o.Points {
		pt := newPoint(p, kind.types[0])
		if err := pt.check(o.Format, kind.types); err != nil {
			return nil, fmt.Errorf("point[%d].%w", i, err)
		}
		if seen[p.Name] {
			return nil, fmt.Errorf("point[%d].name: %q is there twice", i, p.Name)
		}
		seen[p.Name] = true
		d.points = append(d.points, pt)
	}
	var err error
	if d.format, err = kind.new(&o, d.points); err != nil {
		return nil, err
	}
	return d, nil
}

// newPoint fills in what the options leave out; typ is the format's own type.
func newPoint(p Point, typ string) point {
	if p.Field == "" {
		p.Field = p.Name
	}
	if p.Type == "" {
		p.Type = typ
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

var errNoPoint = errors.New("frame holds none of the points")

// decode finds the points in a frame. errNothing means that it has none and
// need not; any other error, that the frame as a whole is not what is expected.
func (d *decoder) decode(frame []byte, at reading.Stamp) (result, error) {
	f, err := d.format.parse(frame)
	if err != nil {
		return result{}, err
	}
	return d.collect(f, at)
}

// collect makes readings of the fields.
func (d *decoder) collect(f fields, at reading.Stamp) (result, error) {
	at.Device = f.time
	res := result{readings: make([]reading.Reading, 0, len(d.points))}
	for i := range d.points {
		p := &d.points[i]
		raw, ok := f.get(i)
		if !ok {
			res.missing++
			continue
		}
		r := reading.Reading{Device: d.device, Point: p.Name, Unit: p.Unit, Time: at}
		if r.Unit == "" && f.unit != nil {
			r.Unit = f.unit(i)
		}
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
	case float64:
		text = strconv.FormatFloat(raw, 'g', -1, 64)
	case int64:
		text = strconv.FormatInt(raw, 10)
	case uint64:
		text = strconv.FormatUint(raw, 10)
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
