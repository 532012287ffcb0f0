package sparkplug

import (
	"cmp"
	"math"
	"slices"
	"time"
)

// model is what the host is to know of the node: it is learnt from the readings
// and stays over connections.
type model struct {
	devices map[string]*device
	order   []*device
	byAlias []*metric // alias 1 is at 0
	metrics int
	bytes   int // of names and texts
	shown   int // values in all metrics' shown
}

// device is a Sparkplug device. What belongs to a session is cleared by
// [model.endSession].
type device struct {
	name    string
	metrics map[string]*metric
	order   []*metric // by alias
	offline bool      // it cannot be reached
	removed bool      // it is configured no more: forgotten once it is dead

	// Of the session.
	born    bool
	want    time.Time // since when it is to be born, with what has come meanwhile; zero when it is not
	waiting []value   // that came before the birth they need
	refused bool      // not even its first metric has room in a packet that the server takes
}

// dead says that a reading only tells that its device cannot be reached, which the
// host knows by the death: no reason for another birth.
func (d *device) dead(r *Reading) bool { return d.offline && !d.born && !r.Good }

// metric is a metric of a device.
type metric struct {
	device *device
	name   string
	alias  uint64
	typ    DataType

	// The newest value known.
	value any
	unit  string
	good  bool
	at    time.Time
	// unseen: it came from Observe, and the queue still has it.
	unseen bool
	bytes  int // of name, unit and text

	// Of the session.
	born    bool // the host knows it, with this type
	refused bool // its birth has no room in a packet that the server takes
	fine    bool // the quality of what was last sent
	// told and current are the value that the host holds as current.
	told    time.Time
	current sample
	// shown are the values that the host was shown ahead of the queue, ascending.
	shown []sample
}

// sample is a value at a time, in milliseconds: what a host can tell from another.
type sample struct {
	ms    int64
	value any
	good  bool
}

// tell notes what the host holds as current.
func (m *metric) tell(at time.Time, v any, good bool) {
	m.told, m.current = at, sample{at.UnixMilli(), v, good}
}

// value is one value of a metric on its way to the host.
type value struct {
	metric     *metric
	value      any
	good       bool
	at         time.Time
	historical bool
	of         *inHand // the message of the queue; nil when it is not from there
	// silent: the host has it, or will have it by what is in line before this.
	silent bool
}

func (v *value) sample() sample { return sample{v.at.UnixMilli(), v.value, v.good} }

const (
	// maxMetrics bounds what is learnt: far above any gateway's points, and
	// the bound on what a client with strange topics can make us keep.
	maxMetrics = 20_000
	// maxNames bounds the bytes of names, units and texts, and so the sum of all
	// births: four times of what 20,000 metrics with long names have.
	maxNames = 8 << 20
	// maxShown bounds the values remembered in all: a host that is shown a
	// value twice takes it as a historical one.
	maxShown = 100_000
	// ahead is how much a device's clock may be ahead of ours; a value that is
	// further in the future tells that our clock has gone back.
	ahead = 2 * time.Second
)

func newModel() model { return model{devices: make(map[string]*device)} }

func (x *model) device(name string) *device {
	d := x.devices[name]
	if d == nil {
		d = &device{name: name, metrics: make(map[string]*metric)}
		x.devices[name] = d
		x.order = append(x.order, d)
	}
	return d
}

// metric returns the metric of a reading; nil when there are too many.
func (x *model) metric(r *Reading) *metric {
	if d := x.devices[r.Device]; d != nil {
		if m := d.metrics[r.Metric]; m != nil {
			return m
		}
	}
	size := len(r.Device) + len(r.Metric)
	if x.metrics >= maxMetrics || x.bytes+size > maxNames || validID(r.Device) != nil || r.Metric == "" {
		return nil
	}
	x.bytes += size
	d := x.device(r.Device)
	m := &metric{device: d, name: r.Metric, alias: uint64(len(x.byAlias) + 1), typ: Double, bytes: size}
	d.metrics[r.Metric] = m
	d.order = append(d.order, m)
	x.byAlias = append(x.byAlias, m)
	x.metrics++
	return m
}

// alias returns the metric behind an alias.
func (x *model) alias(a uint64) *metric {
	if a == 0 || a > uint64(len(x.byAlias)) {
		return nil
	}
	return x.byAlias[a-1]
}

// note takes the reading as the newest value of its metric if it is, and gives its
// value the metric's type if that can be; nil when there is no room for it. now is
// zero for what may have waited. When our clock has gone back, what is measured now
// is the newest although its time says otherwise.
func (x *model) note(r *Reading, now time.Time) *metric {
	m := x.metric(r)
	if m == nil {
		return nil
	}
	r.Value = m.fit(r.Value)
	if r.Time.Before(m.at) && (now.IsZero() || !m.at.After(now.Add(ahead))) {
		return m
	}
	size := len(r.Device) + len(r.Metric) + len(r.Unit)
	if text, ok := r.Value.(string); ok {
		size += len(text)
	}
	if x.bytes+size-m.bytes > maxNames {
		return nil
	}
	x.bytes += size - m.bytes
	if t := typeOf(r.Value); t != Unknown && t != m.typ {
		m.typ, m.born = t, false
	}
	m.value, m.unit, m.good, m.at, m.unseen, m.bytes = r.Value, r.Unit, r.Good, r.Time, false, size
	return m
}

// maxExact is up to where a float64 holds every whole number.
const maxExact = 1 << 53

// fit is a reading's value as the metric has it. Numbers are Double, so that a
// metric does not change its type whenever its value happens to be whole; only
// numbers that Double cannot hold are integers, and what is whole then fits in.
func (m *metric) fit(v any) any {
	f, isFloat := v.(float64)
	switch n := v.(type) {
	case int64:
		if isFloat = -maxExact <= n && n <= maxExact; isFloat {
			f = float64(n)
		}
	case uint64:
		if isFloat = n <= maxExact; isFloat {
			f = float64(n)
		}
	}
	switch {
	case !isFloat:
		return v
	case f != math.Trunc(f) || math.Abs(f) > maxExact:
		return f
	case m.typ == Int64:
		return int64(f)
	case m.typ == UInt64 && f >= 0:
		return uint64(f)
	default:
		return f
	}
}

// forget takes a device out of the model. Aliases are not given again.
func (x *model) forget(d *device) {
	for _, m := range d.order {
		x.byAlias[m.alias-1] = nil
		x.shown -= len(m.shown)
		x.bytes -= m.bytes
		x.metrics--
	}
	delete(x.devices, d.name)
	x.order = slices.DeleteFunc(x.order, func(e *device) bool { return e == d })
}

// endSession forgets what a host was told: the next one is told anew.
func (x *model) endSession() {
	for _, d := range x.order {
		d.born, d.want, d.waiting, d.refused = false, time.Time{}, nil, false
		for _, m := range d.order {
			m.born, m.refused, m.fine, m.shown = false, false, false, nil
			m.told, m.current = time.Time{}, sample{}
		}
	}
	x.shown = 0
}

// show remembers that the host was shown a value that the queue still has.
func (x *model) show(m *metric, v sample) {
	if x.shown >= maxShown {
		return
	}
	i, _ := slices.BinarySearchFunc(m.shown, v, byTime)
	m.shown = slices.Insert(m.shown, i, v)
	x.shown++
}

// wasShown says whether the host has had the value, and forgets it: the queue comes
// to each only once.
func (x *model) wasShown(m *metric, v sample) bool {
	i, _ := slices.BinarySearchFunc(m.shown, v, byTime)
	for ; i < len(m.shown) && m.shown[i].ms == v.ms; i++ {
		if m.shown[i] == v {
			m.shown = slices.Delete(m.shown, i, i+1)
			x.shown--
			return true
		}
	}
	return false
}

func byTime(a, b sample) int { return cmp.Compare(a.ms, b.ms) }

// typeOf is the data type of a reading's value; Unknown for none.
func typeOf(v any) DataType {
	switch v.(type) {
	case float64:
		return Double
	case int64:
		return Int64
	case uint64:
		return UInt64
	case bool:
		return Boolean
	case string:
		return String
	default:
		return Unknown
	}
}

// wireValue is a reading's value as [Metric] carries it.
func wireValue(v any) any {
	if n, ok := v.(int64); ok {
		return uint64(n) // two's complement (§6.4.6)
	}
	return v
}

// The values of the property "Quality" (§6.4.9).
const (
	qualityBad  = 0
	qualityGood = 192
)

func qualityOf(good bool) Property {
	if good {
		return Property{Type: Int32, Value: uint32(qualityGood)}
	}
	return Property{Type: Int32, Value: uint32(qualityBad)}
}

// birth is the metric as a birth certificate has it.
func (m *metric) birth(aliases bool) Metric {
	out := Metric{Name: m.name, Timestamp: m.at, Type: m.typ, Value: wireValue(m.value)}
	if aliases {
		out.Alias, out.HasAlias = m.alias, true
	}
	out.Properties = &PropertySet{Keys: []string{"Quality"}, Values: []Property{qualityOf(m.good)}}
	if m.unit != "" {
		out.Properties.Keys = append(out.Properties.Keys, "engUnit")
		out.Properties.Values = append(out.Properties.Values, Property{Type: String, Value: m.unit})
	}
	return out
}

// data is the value as a data message has it. One of another type than the birth
// has told says so itself.
func (v *value) data(aliases bool) Metric {
	m := v.metric
	out := Metric{Timestamp: v.at, Historical: v.historical, Value: wireValue(v.value)}
	if aliases {
		out.Alias, out.HasAlias = m.alias, true
	} else {
		out.Name, out.Type = m.name, m.typ
	}
	if t := typeOf(v.value); t != Unknown && t != m.typ {
		out.Type = t
	}
	if v.good != m.fine || !v.good {
		out.Properties = &PropertySet{Keys: []string{"Quality"}, Values: []Property{qualityOf(v.good)}}
	}
	return out
}
