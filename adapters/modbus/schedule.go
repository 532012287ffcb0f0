package modbus

import "time"

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

// deadline is when the block should have been read at the latest: before it is
// due again.
func (b *block) deadline() time.Time { return b.due.Add(b.dev.every) }
