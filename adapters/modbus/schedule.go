package modbus

import (
	"slices"
	"time"
)

// job is what the bus does next: a block, a probe (idle: nobody else is due),
// or neither.
type job struct {
	block *block
	probe *unit
	idle  bool
}

// next picks what to do now: a probe that the budget allows, else the due block
// with the earliest deadline, else a probe that nobody will notice; else it
// says when to ask again.
func (b *Bus) next(now time.Time) (j job, wake time.Time) {
	wake = now.Add(time.Hour)
	earliest := func(t time.Time) {
		if t.Before(wake) {
			wake = t
		}
	}
	var probe *unit
	idleUntil := wake // when the next block is due
	for _, u := range b.units {
		if u.full() {
			continue // until its answer has come
		}
		if u.state == UnitDown {
			if at := later(u.probeAt, u.notBefore); at.After(now) {
				earliest(at)
			} else if probe == nil || at.Before(probe.probeAt) {
				probe = u
			}
			continue
		}
		ready := u.ready(now)
		for _, k := range u.blocks {
			at := later(k.due, ready)
			switch {
			case k.flying: // until its answer has come
			case at.After(now):
				earliest(at)
				if at.Before(idleUntil) {
					idleUntil = at
				}
			case j.block == nil || k.deadline().Before(j.block.deadline()):
				j.block = k
			}
		}
	}
	if probe == nil {
		return j, wake
	}
	free := b.probes.free(1, now)
	idle := j.block == nil && !idleUntil.Before(now.Add(probe.timeout))
	if idle || !free.After(now) {
		return job{probe: probe, idle: idle}, now
	}
	earliest(free)
	return j, wake
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// turn is when the block should be read.
func (b *block) turn() time.Time { return later(b.due, b.next) }

// deadline is when the block should have been read at the latest: before it is
// its turn again.
func (b *block) deadline() time.Time { return b.turn().Add(b.every) }

// ride returns the request that reads k and, in the same go, whatever else of
// its device is due and fits: what is read every minute goes along with what is
// read every second once a minute, for a few registers more instead of a request
// of its own. Nothing rides with a block that has failed, so that it is known
// who is to blame. It returns blocks in no order, k first.
func (b *Bus) ride(k *block, now time.Time) (parts []*block, r Request) {
	parts, r = append(k.self[:0], k), k.req
	if k.fails > 0 || k.refused > 0 || k.apart.After(now) {
		return parts, r
	}
	table := k.points[0].reg.Table
	first, end := int(r.Addr), int(r.Addr)+int(r.Count)
	for grown := true; grown; {
		grown = false
		for _, o := range k.dev.unit.blocks {
			if o.dev != k.dev || o.points[0].reg.Table != table || o.flying || o.fails > 0 || o.refused > 0 || o.apart.After(now) ||
				o.due.After(now.Add(min(k.every, o.every)/early)) || slices.Contains(parts, o) {
				continue
			}
			lo, hi := min(end, o.end()), max(first, int(o.req.Addr)) // the gap between them, if lo < hi
			from, to := min(first, int(o.req.Addr)), max(end, o.end())
			if hi-lo > k.dev.maxGap || to-from > k.dev.limit(table) ||
				lo < hi && (crosses(k.dev.holes, table, lo, hi) || k.dev.refuses(table, lo, hi)) {
				continue
			}
			parts, first, end, grown = append(parts, o), from, to, true
		}
	}
	r.Addr, r.Count = uint16(first), uint16(end-first)
	return parts, r
}

// early is how much before its time a block is read for the sake of a request
// saved, as a part of its interval: one in early.
const early = 8

// refuses says whether one of the addresses from first to before end is known to
// be refused.
func (d *device) refuses(t Table, first, end int) bool {
	return slices.ContainsFunc(d.unit.blocks, func(k *block) bool {
		return k.dev == d && k.refused > 0 && k.points[0].reg.Table == t && k.end() > first && int(k.req.Addr) < end
	})
}

// keepApart says that blocks read together are to be read each by itself for a
// while: the unit did not answer them together.
func keepApart(parts []*block, now time.Time) {
	if len(parts) > 1 {
		for _, k := range parts {
			k.apart = now.Add(refusedMax)
		}
	}
}
