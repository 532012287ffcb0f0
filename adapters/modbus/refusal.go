package modbus

import (
	"slices"
	"time"
)

// refusal handles an exception: the unit is alive, this block is not to be had.
func (b *Bus) refusal(k *block, e *ExceptionError, at time.Time) {
	now := time.Now()
	d := k.dev
	if k.asks() && e.Code != Acknowledge && e.Code != ServerDeviceBusy {
		b.told(k, nil, e)
		return
	}
	switch e.Code {
	case IllegalDataAddress, IllegalDataValue:
		if len(k.points) > 1 {
			b.split(k, now, e)
			return
		}
		b.leaveAlone(k, e, at, now)
	case IllegalFunction:
		b.leaveAlone(k, e, at, now)
	case Acknowledge, ServerDeviceBusy:
		// It works on something else: a moment later it will answer.
		retry := false
		b.update(func() {
			k.attempts++
			if retry = k.attempts <= d.retries; retry {
				d.unit.n.retries++
				d.unit.notBefore = now.Add(max(d.timeout/4, d.unit.pause))
				return
			}
			k.attempts = 0
			b.again(k, now)
		})
		if retry {
			return
		}
		d.tracker.Bad(at, e)
		b.lose(d, k.points, at, reasonOf(e))
	default:
		b.update(func() { b.again(k, now) })
		d.tracker.Bad(at, e)
		b.lose(d, k.points, at, reasonOf(e))
	}
}

// blames says that the unit refuses an address, not that it cannot answer now.
func (e *ExceptionError) blames() bool {
	return e.Code == IllegalDataAddress || e.Code == IllegalDataValue
}

// split replaces a block by its halves.
func (b *Bus) split(k *block, now time.Time, why error) {
	low, high := k.split()
	low.due, high.due = now, now
	low.apart, high.apart = now.Add(refusedMax), now.Add(refusedMax)
	u := k.dev.unit
	i := slices.Index(u.blocks, k)
	if i < 0 {
		return // planned anew while it was being read
	}
	b.update(func() {
		u.blocks[i] = low
		u.blocks = append(u.blocks, high)
	})
	b.log.Info("request split", "device", k.dev.name, "unit_id", u.id, "request", k.req.String(), "err", why)
}

// leaveAlone takes a block that the unit refuses out of the rhythm.
func (b *Bus) leaveAlone(k *block, e *ExceptionError, at, now time.Time) {
	first := k.refused == 0
	b.update(func() {
		k.refused = min(max(2*k.refused, refusedMin), refusedMax)
		k.due = now.Add(max(k.refused, k.every))
		k.attempts = 0
	})
	k.dev.tracker.Bad(at, e)
	b.lose(k.dev, k.points, at, reasonOf(e))
	if first {
		b.log.Warn("register refused", "device", k.dev.name, "unit_id", k.dev.unit.id, "request", k.req.String(), "delay", k.refused, "err", e)
	}
}

// replan joins the requests of a device anew, after one of its registers has
// come back: when a whole device refused for a moment, its blocks were split
// down to single points. What it refuses still is left out.
func (b *Bus) replan(d *device, now time.Time) {
	u := d.unit
	culprits := map[*point]bool{}
	due := map[time.Duration]time.Time{} // by interval
	kept := make([]*block, 0, len(u.blocks))
	for _, k := range u.blocks {
		switch {
		case k.dev != d, k.asks():
			kept = append(kept, k)
		case k.refused > 0, k.flying:
			kept = append(kept, k)
			for _, p := range k.points {
				culprits[p] = true
			}
		default:
			if at, ok := due[k.every]; !ok || k.due.Before(at) {
				due[k.every] = k.due
			}
		}
	}
	for _, k := range plan(d, culprits) {
		k.due = now
		if at, ok := due[k.every]; ok {
			k.due = at
		}
		kept = append(kept, k)
	}
	b.update(func() { u.blocks = kept })
}
