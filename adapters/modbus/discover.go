package modbus

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Discoverer knows how to find out what a device has that says so itself.
// Values are compared to see whether a configuration has changed.
type Discoverer interface {
	// Discover begins an attempt. No request may be for more registers than
	// this.
	Discover(registers int) Discovery
}

// Discovery is one attempt to find out what a device has. The bus goroutine
// calls it, one method at a time; none may block.
type Discovery interface {
	// Next returns the holding registers to read now, 1 to 125; a count of 0
	// when the attempt is over.
	Next() (addr, count uint16)
	// Answer takes the contents of those registers as on the wire, which are
	// valid during the call, or why there are none: an [*ExceptionError] when
	// the device refuses them, another error when it is silent.
	Answer(data []byte, err error)
	// Result returns what was found out, once the attempt is over.
	Result() (Discovered, error)
}

// Discovered is what a device has.
type Discovered struct {
	Points []Point
	// Same reads the same as long as it is the same device.
	Same Registers
	// About says in a few words what it is, Notes what is odd about it.
	About string
	Notes []string
}

// Registers are the contents of holding registers, as on the wire.
type Registers struct {
	Addr uint16
	Data []byte
}

const (
	// sameEvery is how often a device that described itself is asked whether it
	// is still the same, besides after each time it did not answer.
	sameEvery = 5 * time.Minute
	// A device that cannot be found out about is asked anew after a while,
	// growing from discoverMin to discoverMax.
	discoverMin = 10 * time.Second
	discoverMax = 10 * time.Minute
)

// finding is what is known of a device that describes itself. The bus goroutine
// changes it under Bus.mu.
//
//	asking --Next, Answer ...--> Result --error--> asking, after a while
//	                               |
//	                               v
//	         holding <--silence-- known --every sameEvery--> the same? --no--> asking
//	            |                  ^
//	            +----- the same ---+
type finding struct {
	how     Discoverer
	attempt Discovery     // nil when it is known what the device has
	points  []Point       // of the configuration, polled besides
	options Device        // what compiles the points
	pause   time.Duration // before the next attempt, growing

	found Discovered
	held  []*block // while it is asked whether the device is still the same; nil otherwise
	err   error    // why the last attempt failed
}

// asks says that the block is no poll but a question to a device that describes
// itself.
func (b *block) asks() bool { return b.points[0].ask }

// newFinding begins to find out about a device, before it is compiled: until it
// is known what it has, its only point is the question.
func newFinding(d *Device, c *compiled) *finding {
	f := &finding{how: d.Discover, points: d.Points, options: *d}
	f.attempt = f.how.Discover(c.maxRegs)
	c.points = []*point{f.question(c)}
	return f
}

// question is what the attempt asks next, as a point, nil when it is over.
func (f *finding) question(c *compiled) *point {
	addr, count := f.attempt.Next()
	if count == 0 {
		return nil
	}
	return asking(c, addr, int(count), c.every)
}

func asking(c *compiled, addr uint16, count int, every time.Duration) *point {
	return &point{
		name: "discovery", ask: true, every: every, reg: Register{Table: HoldingRegisters, Addr: addr, Bit: noBit},
		f: format{typ: "string", bit: noBit, n: min(count, c.maxRegs)},
	}
}

// questionBlock asks when it is due, and nothing else with it.
func questionBlock(d *device, p *point, due time.Time) *block {
	k := newBlock(d, []*point{p})
	k.due, k.apart = due, due.Add(forever)
	return k
}

// forever is longer than a gateway lives.
const forever = 100 * 365 * 24 * time.Hour

// swap replaces the blocks of a device. It is called with mu held.
func (u *unit) swap(d *device, blocks []*block) {
	u.blocks = append(slices.DeleteFunc(slices.Clone(u.blocks), func(k *block) bool { return k.dev == d }), blocks...)
}

// stale says that the block has been replaced while it was under way: what it
// brings may be another device's.
func (b *block) stale() bool {
	return b.dev.finding != nil && !slices.Contains(b.dev.unit.blocks, b)
}

// told goes on with what a device answered to a question, or why it did not.
func (b *Bus) told(k *block, data []byte, why error) {
	d := k.dev
	f := d.finding
	if f.attempt == nil {
		b.compareSame(k, data, why)
		return
	}
	f.attempt.Answer(data, why)
	now := time.Now()
	if p := f.question(d.compiled); p != nil {
		b.update(func() { d.unit.swap(d, []*block{questionBlock(d, p, now)}) })
		return
	}
	found, err := f.attempt.Result()
	if err == nil {
		err = b.adopt(d, found, now)
	}
	if err != nil {
		b.giveUp(d, err, now)
	}
}

// giveUp begins anew after a while.
func (b *Bus) giveUp(d *device, err error, now time.Time) {
	f := d.finding
	if f.err == nil || f.err.Error() != err.Error() {
		b.log.Warn("device did not say what it has", "device", d.name, "unit_id", d.unit.id, "err", err)
	}
	b.update(func() {
		f.err = err
		f.pause = min(max(2*f.pause, discoverMin), discoverMax)
		f.attempt = f.how.Discover(d.maxRegs)
		d.unit.swap(d, []*block{questionBlock(d, f.question(d.compiled), now.Add(f.pause))})
	})
	d.tracker.Bad(now, err)
}

// adopt polls what the device has from now on.
func (b *Bus) adopt(d *device, found Discovered, now time.Time) error {
	f := d.finding
	options := f.options
	options.Discover, options.Points = nil, slices.Concat(f.points, found.Points)
	c, err := compile(&options)
	if err != nil {
		return fmt.Errorf("points of %s: %w", found.About, err)
	}
	b.log.Info("device described itself", "device", d.name, "unit_id", d.unit.id, "about", found.About, "points", len(c.points))
	for _, note := range found.Notes {
		b.log.Warn("device described itself oddly", "device", d.name, "unit_id", d.unit.id, "err", note)
	}
	b.update(func() {
		d.compiled = c
		f.attempt, f.found, f.err, f.pause, f.held = nil, found, nil, 0, nil
		blocks := plan(d, nil)
		for _, k := range blocks {
			k.due = now
		}
		d.unit.swap(d, append(blocks, f.same(d, now.Add(sameEvery))))
	})
	if b.opts.OnDevices != nil {
		b.opts.OnDevices()
	}
	return nil
}

// same asks whether it is the same device.
func (f *finding) same(d *device, due time.Time) *block {
	return questionBlock(d, asking(d.compiled, f.found.Same.Addr, len(f.found.Same.Data)/2, sameEvery), due)
}

// hold polls nothing of the unit's devices that described themselves before each
// has said that it is still the same. It is called with mu held.
func (u *unit) hold(now time.Time) {
	for _, d := range u.devices {
		f := d.finding
		if f == nil || f.attempt != nil || f.held != nil {
			continue
		}
		f.held = []*block{}
		for _, k := range u.blocks {
			if k.dev == d && !k.asks() {
				f.held = append(f.held, k)
			}
		}
		u.swap(d, []*block{f.same(d, now)})
	}
}

var errOtherDevice = errors.New("it is another device now")

// compareSame goes on with the polls, or finds out about the other device.
func (b *Bus) compareSame(k *block, data []byte, why error) {
	d, now := k.dev, time.Now()
	f := d.finding
	if why == nil && bytes.Equal(data, f.found.Same.Data) {
		b.update(func() {
			k.due = now.Add(sameEvery)
			if f.held == nil {
				return
			}
			for _, h := range f.held {
				if h.due.Before(now) {
					h.due = now
				}
			}
			d.unit.swap(d, append(f.held, k))
			f.held = nil
		})
		return
	}
	if _, refused := errors.AsType[*ExceptionError](why); why != nil && !refused {
		return // silence says nothing; it is asked again when the unit speaks
	}
	b.log.Warn("device is another one now", "device", d.name, "unit_id", d.unit.id, "about", f.found.About)
	b.lose(d, d.points, now, errOtherDevice.Error())
	b.update(func() {
		f.attempt, f.held = f.how.Discover(d.maxRegs), nil
		d.unit.swap(d, []*block{questionBlock(d, f.question(d.compiled), now)})
	})
}

// DescribedStatus is what is known of a device that describes itself.
type DescribedStatus struct {
	Device string `json:"device" metric:"label"`
	// About is what it said it is, empty while it has not.
	About string   `json:"about,omitempty"`
	Notes []string `json:"notes,omitempty"`
	// Points are how many are polled.
	Points int `json:"points"`
	// LastError is why it is not known what it has.
	LastError string `json:"last_error,omitempty"`
}

// described is called with Bus.mu held.
func (b *Bus) described() []DescribedStatus {
	var all []DescribedStatus
	for _, d := range b.devices {
		f := d.finding
		if f == nil {
			continue
		}
		s := DescribedStatus{Device: d.name}
		if f.attempt == nil {
			s.About, s.Notes, s.Points = f.found.About, f.found.Notes, len(d.points)
		}
		if f.err != nil {
			s.LastError = f.err.Error()
		}
		all = append(all, s)
	}
	return all
}
