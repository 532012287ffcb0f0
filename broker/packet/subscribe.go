package packet

import "strings"

// Filter is one topic filter of a SUBSCRIBE with its options
// (MQTT 5.0 §3.8.3.1); 3.x knows only QoS.
type Filter struct {
	Filter            string
	QoS               byte
	NoLocal           bool
	RetainAsPublished bool
	RetainHandling    byte
}

// Subscribe asks for topics (MQTT 5.0 §3.8).
type Subscribe struct {
	PacketID   uint16
	Filters    []Filter
	Properties Properties
}

// The subscription options (MQTT 5.0 §3.8.3.1).
const (
	optionQoS               = 3
	optionNoLocal           = 1 << 2
	optionRetainAsPublished = 1 << 3
	optionRetainHandling    = 3 << 4
	optionReserved          = 3 << 6

	fieldFilter  = "topic filter"
	fieldOptions = "subscription options"
)

// sharedPrefix begins a shared subscription (MQTT 5.0 §4.8.2).
const sharedPrefix = "$share/"

// Type returns [TypeSubscribe].
func (*Subscribe) Type() Type { return TypeSubscribe }

// subscribe takes the body of a SUBSCRIBE.
func (c *cursor) subscribe(v Version) *Subscribe {
	p := &Subscribe{PacketID: c.packetID()}
	if v >= V5 {
		c.properties(TypeSubscribe, &p.Properties)
	}
	n := c.countFilters(1)
	if c.err != nil {
		return p
	}
	p.Filters = make([]Filter, 0, n)
	for len(c.b) > 0 {
		f := Filter{Filter: c.string(fieldFilter)}
		c.options(&f, c.byte(fieldOptions), v)
		p.Filters = append(p.Filters, f)
	}
	return p
}

// countFilters walks over the filters, each with extra bytes behind it, so
// that the memory for them can be taken at once. What is wrong with them, the
// second walk finds.
func (c *cursor) countFilters(extra int) (n int) {
	walk := cursor{b: c.b}
	for len(walk.b) > 0 {
		walk.bytes(fieldFilter, int(walk.uint16(fieldFilter)))
		walk.bytes(fieldOptions, extra)
		n++
	}
	if n == 0 {
		c.fail(errNoFilters())
	}
	return n
}

// errNoFilters is MQTT 5.0 [MQTT-3.8.3-2] [MQTT-3.10.3-2].
func errNoFilters() *Error { return protocol(fieldFilter, "there is none") }

// options unpacks the byte behind a filter. In 3.1 its upper six bits are not
// used (MQTT 3.1 §3.8), in 3.1.1 they are 0 (§3.8.3 [MQTT-3-8.3-4]).
func (c *cursor) options(f *Filter, options byte, v Version) {
	f.QoS = options & optionQoS
	switch {
	case v == V31:
	case options&optionReserved != 0 || v == V311 && options&^optionQoS != 0:
		c.fail(malformed(fieldOptions, "reserved bits are set")) // MQTT 5.0 [MQTT-3.8.3-5]
	case v >= V5:
		f.NoLocal = options&optionNoLocal != 0
		f.RetainAsPublished = options&optionRetainAsPublished != 0
		f.RetainHandling = options & optionRetainHandling >> 4
	}
	if c.err == nil {
		c.fail(f.check())
	}
}

// check applies the rules about values (MQTT 5.0 §3.8.3.1).
func (f *Filter) check() *Error {
	switch {
	case f.QoS > 2:
		return protocol(fieldOptions, "maximum qos %d", f.QoS)
	case f.RetainHandling > 2:
		return protocol(fieldOptions, "retain handling %d", f.RetainHandling)
	case f.NoLocal && strings.HasPrefix(f.Filter, sharedPrefix):
		return protocol(fieldOptions, "no local on a shared subscription") // [MQTT-3.8.3-4]
	}
	return nil
}

// AppendTo appends the packet in wire form. For 3.x the options but QoS are
// left out.
func (p *Subscribe) AppendTo(b []byte, v Version) ([]byte, error) {
	w := builder{b: b}
	start := w.start(TypeSubscribe)
	w.packetID(p.PacketID)
	if v >= V5 {
		w.properties(TypeSubscribe, &p.Properties)
	}
	if len(p.Filters) == 0 {
		w.fail(errNoFilters())
	}
	for i := range p.Filters {
		f := &p.Filters[i]
		if err := f.check(); err != nil {
			w.fail(err)
		}
		w.string(fieldFilter, f.Filter)
		w.byte(f.options(v))
	}
	w.shut(start)
	return w.done(b, TypeSubscribe)
}

func (f *Filter) options(v Version) byte {
	options := f.QoS
	if v < V5 {
		return options
	}
	if f.NoLocal {
		options |= optionNoLocal
	}
	if f.RetainAsPublished {
		options |= optionRetainAsPublished
	}
	return options | f.RetainHandling<<4
}
