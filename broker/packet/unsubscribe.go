package packet

// Unsubscribe gives topics back (MQTT 5.0 §3.10).
type Unsubscribe struct {
	PacketID   uint16
	Filters    []string
	Properties Properties
}

// Type returns [TypeUnsubscribe].
func (*Unsubscribe) Type() Type { return TypeUnsubscribe }

// unsubscribe takes the body of an UNSUBSCRIBE.
func (c *cursor) unsubscribe(v Version) *Unsubscribe {
	p := &Unsubscribe{PacketID: c.packetID()}
	if v >= V5 {
		c.properties(TypeUnsubscribe, &p.Properties)
	}
	n := c.countFilters(0)
	if c.err != nil {
		return p
	}
	p.Filters = make([]string, 0, n)
	for len(c.b) > 0 {
		p.Filters = append(p.Filters, c.string(fieldFilter))
	}
	return p
}

// AppendTo appends the packet in wire form.
func (p *Unsubscribe) AppendTo(b []byte, v Version) ([]byte, error) {
	w := builder{b: b}
	start := w.start(TypeUnsubscribe)
	w.packetID(p.PacketID)
	if v >= V5 {
		w.properties(TypeUnsubscribe, &p.Properties)
	}
	if len(p.Filters) == 0 {
		w.fail(errNoFilters())
	}
	for _, filter := range p.Filters {
		w.string(fieldFilter, filter)
	}
	w.shut(start)
	return w.done(b, TypeUnsubscribe)
}
