package modbus

import (
	"cmp"
	"slices"
	"time"
)

// block is one request and the points its answer holds. All fields are the bus
// goroutine's; those that Status shows are changed under Bus.mu.
type block struct {
	dev    *device
	req    Request
	points []*point      // by address, at least one
	every  time.Duration // how often its points are to be read

	due      time.Time     // when it may be read next
	next     time.Time     // when it is its turn, if that is later: see again
	apart    time.Time     // until then it is read alone: see ride
	flying   bool          // it is being read
	attempts int           // failed in a row since it was due
	fails    int           // failed in a row since it was last answered
	failedAt time.Time     // the first of them
	misses   int           // cycles missed in a row
	refused  time.Duration // the unit refuses it: how long it is left alone now; 0 if it does not

	self [1]*block // for ride
	pace pace
}

// plan joins the points of a device into as few requests as its options allow:
// points that touch, overlap or lie at most max_gap apart, within one table,
// up to the size limit, never across a declared hole, never with a point cut
// in two. Points the unit refuses are left out, and not read along either.
//
// Points of different intervals are in different blocks, so that what is read
// once an hour does not lengthen what is read every second. Blocks that are due
// at the same time become one request again in ride.
func plan(d *device, refused map[*point]bool) []*block {
	ps := slices.DeleteFunc(slices.Clone(d.points), func(p *point) bool { return refused[p] })
	holes := slices.Clone(d.holes)
	for p := range refused {
		holes = append(holes, span{table: p.reg.Table, first: p.reg.Addr, last: uint16(p.end() - 1)})
	}
	slices.SortStableFunc(ps, func(a, b *point) int {
		return cmp.Or(cmp.Compare(a.every, b.every), cmp.Compare(a.reg.Table, b.reg.Table), cmp.Compare(a.reg.Addr, b.reg.Addr))
	})
	var bs []*block
	for len(ps) > 0 {
		n, end := 1, ps[0].end()
		for n < len(ps) && d.joins(ps[0], end, ps[n], holes) {
			end = max(end, ps[n].end())
			n++
		}
		bs = append(bs, newBlock(d, ps[:n:n]))
		ps = ps[n:]
	}
	return bs
}

// joins says whether p can be read with a block that starts at first and ends
// before end.
func (c *compiled) joins(first *point, end int, p *point, holes []span) bool {
	t := p.reg.Table
	return p.every == first.every && t == first.reg.Table && int(p.reg.Addr)-end <= c.maxGap &&
		max(end, p.end())-int(first.reg.Addr) <= c.limit(t) && !crosses(holes, t, end, int(p.reg.Addr))
}

// limit is how many addresses of t the device gives at once.
func (c *compiled) limit(t Table) int {
	if t.Bits() {
		return c.maxBits
	}
	return c.maxRegs
}

// crosses says whether any of the addresses from first to before end is in a
// hole.
func crosses(holes []span, t Table, first, end int) bool {
	return slices.ContainsFunc(holes, func(h span) bool { return h.table == t && int(h.last) >= first && int(h.first) < end })
}

// newBlock reads these points, which are in order, with one request.
func newBlock(d *device, points []*point) *block {
	first, end := points[0].reg, 0
	for _, p := range points {
		end = max(end, p.end())
	}
	return &block{
		dev: d, points: points, every: points[0].every,
		req: Request{Unit: d.compiled.unit, Function: first.Table.Read(), Addr: first.Addr, Count: uint16(end - int(first.Addr))},
	}
}

// split halves a block the unit will not answer as a whole. The halves stay
// apart, for refusedMax: that is how the culprit between them, or in the gap
// between them, is remembered.
func (b *block) split() (low, high *block) {
	half := len(b.points) / 2
	low, high = newBlock(b.dev, b.points[:half:half]), newBlock(b.dev, b.points[half:])
	low.due, high.due = b.due, b.due
	return low, high
}

// end is the address behind the block.
func (b *block) end() int { return int(b.req.Addr) + int(b.req.Count) }

// decode returns the value of p in the data that answers r.
func (p *point) decode(r Request, data []byte) (value any, reason string) {
	i := int(p.reg.Addr - r.Addr)
	if p.reg.Table.Bits() {
		return p.f.boolean(data[i/8]>>(i%8)&1 != 0)
	}
	return p.f.decode(data[2*i : 2*(i+p.f.n)])
}
