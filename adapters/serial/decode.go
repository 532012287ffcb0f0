package serial

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"holdfast/adapters/reading"
)

// decoder finds the points in frames.
type decoder struct {
	device string
	points []point
	format format
	ignore *regexp.Regexp
	time   *deviceTime
	timed  bool // the field after those of the points is the device's time
}

// point is a Point made ready.
type point struct {
	Point
	style          numberStyle
	invalidNumbers []float64
	invalidText    []string
}

// newDecoder checks the options and returns a decoder for them.
func newDecoder(device string, o *Options) (*decoder, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	d := &decoder{device: device, timed: o.Time != ""}
	var err error
	if o.Ignore != "" {
		if d.ignore, err = regexp.Compile(o.Ignore); err != nil {
			return nil, fmt.Errorf("ignore: %w", err)
		}
	}
	if d.time, err = newDeviceTime(o); err != nil {
		return nil, err
	}
	if len(o.Points) == 0 {
		return nil, errors.New("point: there is none")
	}
	kind := formats[o.Format]
	seen := make(map[string]bool, len(o.Points))
	for i, p := range o.Points {
		pt := newPoint(o, p, kind.types[0])
		if err := pt.check(o.Format, kind.types); err != nil {
			return nil, fmt.Errorf("point[%d].%w", i, err)
		}
		if seen[p.Name] {
			return nil, fmt.Errorf("point[%d].name: %q is there twice", i, p.Name)
		}
		seen[p.Name] = true
		d.points = append(d.points, pt)
	}
	wanted := d.points
	if d.timed {
		wanted = append(slices.Clip(wanted), newPoint(o, Point{Name: "time", Field: o.Time, Type: TypeText}, TypeText))
	}
	if d.format, err = kind.new(o, wanted); err != nil {
		if rest, ok := strings.CutPrefix(err.Error(), fmt.Sprintf("point[%d].field", len(d.points))); ok {
			return nil, errors.New("time" + rest)
		}
		return nil, err
	}
	return d, nil
}

// newPoint fills in what the options leave out; typ is the format's own type.
func newPoint(o *Options, p Point, typ string) point {
	if p.Field == "" {
		p.Field = p.Name
	}
	if p.Type == "" {
		p.Type = typ
	}
	if p.Scale == 0 {
		p.Scale = 1
	}
	if p.Order == "" {
		p.Order = o.Order
	}
	pt := point{Point: p, style: numberStyle{decimal: o.Decimal, thousands: o.Thousands, signAfter: o.SignAfter}}
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
	// badTime says why the device's time is not that of the readings.
	badTime error
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
	res := result{readings: make([]reading.Reading, 0, len(d.points))}
	at.Device, res.badTime = d.when(f, at)
	for i := range d.points {
		p := &d.points[i]
		raw, ok := f.get(i)
		if !ok {
			if !f.part {
				res.missing++
			}
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

// when returns when the device says that it measured; zero if it does not, or
// with the reason why that cannot be.
func (d *decoder) when(f fields, at reading.Stamp) (t time.Time, err error) {
	t = f.time
	if d.timed {
		raw, ok := f.get(len(d.points))
		if !ok || raw == nil {
			return time.Time{}, errors.New("frame has no time")
		}
		text, ok := textual(raw)
		if !ok {
			return time.Time{}, errors.New("time is an object or array, not a value")
		}
		if t, err = d.time.read(text, at.Wall); err != nil {
			return time.Time{}, err
		}
	}
	if t.IsZero() {
		return t, nil
	}
	if err := d.time.believe(t, at); err != nil {
		return time.Time{}, err
	}
	return t, nil
}

// value makes a value of the point's type out of what stands in the frame.
// invalid means that the device says it has none.
func (p *point) value(raw any) (v any, invalid bool, err error) {
	switch x := raw.(type) {
	case nil: // JSON null
		return nil, true, nil
	case error: // of the format
		return nil, false, x
	}
	text, ok := textual(raw)
	if !ok {
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
	case TypeNumber:
		if n, ok := raw.(json.Number); ok {
			return p.number(n.String(), numberStyle{decimal: "."})
		}
	default:
		if s, ok := raw.(string); ok && p.Type != TypeString {
			if raw, err = p.fromHex(s); err != nil {
				return nil, false, err
			}
		}
	}
	switch raw.(type) {
	case float64, int64, uint64:
		v, invalid = p.scaled(raw)
		return v, invalid, nil
	}
	if p.Type == TypeString {
		return text, false, nil
	}
	return p.number(text, p.style)
}

// textual writes a value of a field as text, without blanks around it.
func textual(raw any) (text string, ok bool) {
	switch raw := raw.(type) {
	case string:
		return strings.TrimSpace(raw), true
	case json.Number:
		return raw.String(), true
	case bool:
		return strconv.FormatBool(raw), true
	case float64:
		return strconv.FormatFloat(raw, 'g', -1, 64), true
	case int64:
		return strconv.FormatInt(raw, 10), true
	case uint64:
		return strconv.FormatUint(raw, 10), true
	}
	return "", false
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

// short quotes a text from outside for an error message.
func short(s string) string {
	const enough = 32
	if len(s) > enough {
		return strconv.Quote(s[:enough]) + "..."
	}
	return strconv.Quote(s)
}
