package modbus

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// pace is how a block keeps its interval. The bus goroutine changes it, under
// Bus.mu.
type pace struct {
	cost     time.Duration // one read of it takes of the bus; what rides along costs nothing
	gap      time.Duration // between two answers
	late     time.Duration // asked so long after it was due
	answered time.Time     // the last time
	behind   time.Duration // due later than its interval says, not yet a whole interval
}

// smooth is how many reads a running mean looks back.
const smooth = 8

func mean(old, v time.Duration) time.Duration {
	if old == 0 {
		return v
	}
	return old + (v-old)/smooth
}

// usage is a share of the time, of the last minute or so.
type usage struct {
	sum float64 // in seconds
	at  time.Time
}

const usageWindow = time.Minute

func (u *usage) share(now time.Time) float64 {
	return u.sum / usageWindow.Seconds() * math.Exp(-now.Sub(u.at).Seconds()/usageWindow.Seconds())
}

func (u *usage) add(d time.Duration, now time.Time) {
	u.sum = u.share(now)*usageWindow.Seconds() + d.Seconds()
	u.at = now
}

// demand is the part of the time that it takes to read everything as often as
// wanted, with what is lost to units that do not answer and to requests from
// outside: above 1 the bus is overloaded.
func (b *Bus) demand(now time.Time) float64 {
	d := max(0, b.spent.share(now)-b.polled.share(now))
	for _, u := range b.units {
		if u.state == UnitDown {
			continue
		}
		for _, k := range u.blocks {
			if k.refused == 0 {
				d += float64(k.pace.cost) / float64(k.every)
			}
		}
	}
	return d
}

// read enters that blocks asked for at begun, in one request, were answered. It
// is called with mu held.
func (b *Bus) read(parts []*block, begun time.Time, cost time.Duration, now time.Time) {
	b.polled.add(cost, now)
	lead := parts[0].turn()
	for i, k := range parts {
		p := &k.pace
		if i == 0 {
			p.cost = mean(p.cost, cost)
		} else {
			p.cost = mean(p.cost, 1) // next to nothing
			if k.turn().After(lead) {
				k.due, k.next = lead, lead // a little early: from now on in step
			}
		}
		p.late = mean(p.late, max(1, begun.Sub(k.due)))
		if !p.answered.IsZero() {
			p.gap = mean(p.gap, now.Sub(p.answered))
		}
		p.answered = now
		b.again(k, now)
	}
}

// again sets when the block is due next: one interval on. What an overloaded bus
// cannot do is taken from all alike: the deadlines of each are stretched by as
// much as the bus is overloaded, instead of the short intervals or the last
// blocks going hungry. Polls left out are counted.
func (b *Bus) again(k *block, now time.Time) {
	step := k.every
	if d := b.demand(now); d > 1 {
		step = time.Duration(float64(step) * d)
	}
	was := k.turn()
	base := was
	if base.After(now) || !base.Add(step).After(now) {
		base = now
	}
	// Due before its turn: a bus that has less to do than was thought goes on.
	k.due, k.next = base.Add(k.every), base.Add(step)
	p := &k.pace
	p.behind = max(0, p.behind+k.next.Sub(was)-k.every)
	k.dev.unit.n.late += uint64(p.behind / k.every)
	p.behind %= k.every
}

// Pace is how a bus keeps up with what is asked of it, as measured or as
// forecast.
type Pace struct {
	// Demand is the part of the time that it takes to read everything as
	// often as wanted: 1.3 on a bus that is 130 % loaded.
	Demand float64 `json:"demand"`
	// Devices say how often each is read.
	Devices []DevicePace `json:"devices"`
}

// DevicePace is how often a device is read: of its requests, that which is
// furthest behind.
type DevicePace struct {
	Device string `json:"device" metric:"label"`
	// Every is the interval wanted, Comes the one that is had (0: not known
	// yet).
	Every time.Duration `json:"every_ns"`
	Comes time.Duration `json:"comes_ns"`
	// Late is how long after its time a request is sent.
	Late time.Duration `json:"late_ns"`
}

// overload is the Demand that is complained of: a little less is noise.
const overload = 1.02

// Overloaded says in a few words what the bus cannot do: "130 % loaded: device
// boiler's points come every 7.2s instead of 5s". It is empty when the bus can
// do all.
func (p Pace) Overloaded() string {
	if p.Demand < overload {
		return ""
	}
	return fmt.Sprintf("%.0f %% loaded%s", 100*p.Demand, p.behind(": "))
}

// behind names the devices that come later than they should.
func (p Pace) behind(lead string) string {
	late := slices.DeleteFunc(slices.Clone(p.Devices), func(d DevicePace) bool { return d.Comes < d.Every+d.Every/20 })
	slices.SortStableFunc(late, func(a, b DevicePace) int {
		return compareRatio(b, a)
	})
	var says []string
	const most = 3
	for _, d := range late[:min(most, len(late))] {
		says = append(says, fmt.Sprintf("device %s's points come every %v instead of %v", d.Device, legible(d.Comes), d.Every))
	}
	if more := len(late) - most; more > 0 {
		says = append(says, fmt.Sprintf("those of %d more devices come late too", more))
	}
	if len(says) == 0 {
		return ""
	}
	return lead + strings.Join(says, ", ")
}

// compareRatio orders by how far behind a device is.
func compareRatio(a, b DevicePace) int {
	ra, rb := float64(a.Comes)/float64(a.Every), float64(b.Comes)/float64(b.Every)
	switch {
	case ra < rb:
		return -1
	case ra > rb:
		return 1
	default:
		return 0
	}
}

// legible rounds to two digits or a little more.
func legible(d time.Duration) time.Duration {
	unit := time.Microsecond
	for d >= 100*unit {
		unit *= 10
	}
	return d.Round(unit)
}

// pace returns the measured pace. It is called with mu held.
func (b *Bus) pace(now time.Time) Pace {
	p := Pace{Demand: b.demand(now)}
	for _, d := range b.devices {
		worst := DevicePace{Device: d.name, Every: d.every}
		for _, k := range d.unit.blocks {
			if k.dev != d || k.refused > 0 || k.pace.gap == 0 {
				continue
			}
			own := DevicePace{Device: d.name, Every: k.every, Comes: k.pace.gap, Late: k.pace.late}
			if worst.Comes == 0 || compareRatio(own, worst) > 0 {
				worst = own
			}
		}
		p.Devices = append(p.Devices, worst)
	}
	return p
}

// turnaround is what a unit typically takes to begin its answer: meters need 5
// to 50 ms, and a USB adapter keeps bytes back for up to 16 ms.
const turnaround = 20 * time.Millisecond

// Forecast says how the bus will keep up when every unit answers: the schedule is
// run with the time each request takes by the characters on the wire, silence,
// pauses and a typical turnaround. On a line without characters (Options.CharTime
// 0) nothing is known of the network, and only the units' pauses count.
func (o Options) Forecast() (Pace, error) {
	now := time.Unix(0, 0)
	b := &Bus{opts: o}
	var longest time.Duration
	for i := range o.Devices {
		c, err := compile(&o.Devices[i])
		if err != nil {
			return Pace{}, err
		}
		for _, k := range b.add(c, now).unit.blocks {
			k.due = now
			longest = max(longest, k.every)
		}
	}
	type seen struct {
		first time.Time
		n     int
	}
	answers := map[*block]seen{}
	end, half := now.Add(20*longest), 0
	for half < 2 {
		half++
		clear(answers) // the first half is for settling down
		for n := 0; n < forecastRequests && now.Before(end); n++ {
			j, wake := b.next(now)
			if j.block == nil {
				now = wake
				continue
			}
			begun := now
			parts, r := b.ride(j.block, now)
			cost := o.cost(r)
			u := j.block.dev.unit
			if b.last != u {
				cost += o.ChangePause
			}
			now = now.Add(cost)
			b.last, u.notBefore = u, now.Add(u.pause)
			b.spent.add(cost, now)
			b.read(parts, begun, cost, now)
			for _, k := range parts {
				s := answers[k]
				if s.n++; s.n == 1 {
					s.first = now
				}
				answers[k] = s
			}
		}
		end = end.Add(20 * longest)
	}
	p := b.pace(now)
	for i, d := range b.devices {
		worst := DevicePace{Device: d.name, Every: p.Devices[i].Every}
		for _, k := range d.unit.blocks {
			if s := answers[k]; k.dev == d && s.n >= 3 {
				own := DevicePace{Device: d.name, Every: k.every, Comes: k.pace.answered.Sub(s.first) / time.Duration(s.n-1), Late: k.pace.late}
				if worst.Comes == 0 || compareRatio(own, worst) > 0 {
					worst = own
				}
			}
		}
		if worst.Comes == 0 { // its interval is too long to be seen
			worst.Comes = time.Duration(float64(worst.Every) * max(1, p.Demand))
		}
		p.Devices[i] = worst
	}
	return p, nil
}

// forecastRequests bounds each half of a forecast.
const forecastRequests = 5000

// cost is how long the line is in use for r when it is answered.
func (o Options) cost(r Request) time.Duration {
	if o.CharTime == 0 {
		return 0
	}
	return o.silence() + o.onWire(r) + turnaround
}

// onWire is how long the frames of a request for registers or bits, and of its
// answer, take by their characters.
func (o Options) onWire(r Request) time.Duration {
	const question = 5 // function, address and count
	chars := framings[o.framing()].chars
	return time.Duration(chars(question)+chars(r.answerLen())) * o.CharTime
}

// Warnings says what the bus will not be able to do.
func (o Options) Warnings() []string {
	p, err := o.Forecast()
	if err != nil {
		return nil // said by Validate
	}
	if w := p.Overloaded(); w != "" {
		return []string{w}
	}
	if w := p.behind(""); w != "" {
		return []string{w + ": their units need more rest between requests than that leaves"}
	}
	if p.Demand > fullBus {
		return []string{fmt.Sprintf("%.0f %% loaded: a unit that does not answer will make the others late", 100*p.Demand)}
	}
	return nil
}

// fullBus leaves units that do not answer the tenth of the bus that they may
// take.
const fullBus = 0.9
