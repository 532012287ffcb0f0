package sparkplug

import (
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
	shown   int // times in all metrics' shown
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

	// Of the session.
	born bool      // the host knows it, with this type
	told time.Time // of the value that the host holds as current
	fine bool      // that value's quality
	// shown are the times of values that the host was shown ahead of the queue,
	// in milliseconds, ascending.
	shown []int64
}

// value is one value of a metric on its way to the host.
type value struct {
	metric     *metric
	value      any
	good       bool
	at         time.Time
	historical bool
	seq        uint64 // of the message in the queue; 0 when it is not from there
}

const (
	// maxMetrics bounds what is learnt: far above any gateway's points, and
	// the bound on what a client with strange topics can make us keep.
	maxMetrics = 20_000
	// maxShown bounds the times remembered in all: a host that is shown a
	// value twice takes it as a historical one.
	maxShown = 200_000
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
	if x.metrics >= maxMetrics {
		return nil
	}
	d := x.device(r.Device)
	m := &metric{device: d, name: r.Metric, alias: uint64(len(x.byAlias) + 1), typ: Double}
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

// note takes the reading as the newest value of its metric if it is.
func (x *model) note(r Reading) *metric {
	m := x.metric(&r)
	if m == nil {
		return nil
	}
	if t := typeOf(r.Value); t != Unknown && t != m.typ {
		m.typ, m.born = t, false
	}
	if !r.Time.Before(m.at) {
		m.value, m.unit, m.good, m.at, m.unseen = r.Value, r.Unit, r.Good, r.Time, false
	}
	return m
}

// forget takes a device out of the model. Aliases are not given again.
func (x *model) forget(d *device) {
	for _, m := range d.order {
		x.byAlias[m.alias-1] = nil
		x.shown -= len(m.shown)
		x.metrics--
	}
	delete(x.devices, d.name)
	x.order = slices.DeleteFunc(x.order, func(e *device) bool { return e == d })
}

// endSession forgets what a host was told: the next one is told anew.
func (x *model) endSession() {
	for _, d := range x.order {
		d.born, d.want, d.waiting = false, time.Time{}, nil
		for _, m := range d.order {
			m.born, m.told, m.fine, m.shown = false, time.Time{}, false, nil
		}
	}
	x.shown = 0
}

// show remembers that the host was shown a value that the queue still has.
func (x *model) show(m *metric, at time.Time) {
	if x.shown >= maxShown {
		return
	}
	ms := at.UnixMilli()
	if i, found := slices.BinarySearch(m.shown, ms); !found {
		m.shown = slices.Insert(m.shown, i, ms)
		x.shown++
	}
}

// wasShown says whether the host has had the value of that time, and forgets it:
// the queue comes to each only once.
func (x *model) wasShown(m *metric, at time.Time) bool {
	i, found := slices.BinarySearch(m.shown, at.UnixMilli())
	if found {
		m.shown = slices.Delete(m.shown, i, i+1)
		x.shown--
	}
	return found
}

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

// data is the value as a data message has it.
func (v *value) data(aliases bool) Metric {
	m := v.metric
	out := Metric{Timestamp: v.at, Historical: v.historical, Value: wireValue(v.value)}
	if aliases {
		out.Alias, out.HasAlias = m.alias, true
	} else {
		out.Name, out.Type = m.name, m.typ
	}
	if v.good != m.fine || !v.good {
		out.Properties = &PropertySet{Keys: []string{"Quality"}, Values: []Property{qualityOf(v.good)}}
	}
	return out
}
