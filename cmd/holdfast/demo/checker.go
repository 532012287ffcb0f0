package demo

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// window is a span of time in which something may happen that may not
// otherwise.
type window struct {
	from, to time.Time
	why      string
}

func (w window) overlaps(from, to time.Time) bool { return !to.Before(w.from) && !from.After(w.to) }

// stream is what arrived of one topic with one QoS. Its messages are numbered:
// by the sender, or, where a reading carries no number, by the time in it.
type stream struct {
	topic    string
	qos      byte
	first    map[uint64]time.Time // number to first arrival
	max      uint64
	arrived  int
	repeats  []repeat
	disorder []uint64 // numbers that came for the first time after a later one
}

// repeat is an arrival of a number that had come before.
type repeat struct {
	n  uint64
	at time.Time
}

func (s *stream) got(n uint64, at time.Time) {
	s.arrived++
	if _, again := s.first[n]; again {
		s.repeats = append(s.repeats, repeat{n, at})
		return
	}
	if n < s.max {
		s.disorder = append(s.disorder, n)
	}
	s.first[n] = at
	s.max = max(s.max, n)
}

// outside returns the repeats that no cut explains: QoS 1 may come twice only
// if its acknowledgement could be lost, so its first arrival must be within or
// just before a cut, or in the catching up after it, and the second later than
// the beginning (MQTT 5.0 §4.4).
func (s *stream) outside(cuts []window) (bad []uint64) {
	const inFlight = 2 * time.Second // from arrival at the cloud to PUBACK at the gateway
	for _, r := range s.repeats {
		first := s.first[r.n]
		if !slices.ContainsFunc(cuts, func(w window) bool {
			return first.After(w.from.Add(-inFlight)) && !first.After(w.to) && r.at.After(w.from)
		}) {
			bad = append(bad, r.n)
		}
	}
	return bad
}

// separate takes out of the repeats what are different readings of the same
// millisecond, and returns how many they are: lines that lay in the port for a
// moment are read at once. times says how many readings each has.
func (s *stream) separate(times map[uint64]int) (out *stream, same int) {
	out = new(*s)
	out.repeats = nil
	seen := map[uint64]int{}
	for _, r := range s.repeats {
		if seen[r.n]++; seen[r.n] < times[r.n] {
			same++
			continue
		}
		out.repeats = append(out.repeats, r)
	}
	return out, same
}

// badValue marks the stream of the readings of a topic that say that there is
// no value.
const badValue = " without a value"

// checker gathers what arrives at the cloud. It judges nothing before the end.
type checker struct {
	mu      sync.Mutex
	streams map[string]*stream // guarded by mu; by topic and QoS
	strange []string           // guarded by mu; what cannot be understood
}

func newChecker() *checker { return &checker{streams: map[string]*stream{}} }

// got takes note of message n of a topic.
func (c *checker) got(topic string, qos byte, n uint64, at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.streamLocked(topic, qos).got(n, at)
}

func (c *checker) streamLocked(topic string, qos byte) *stream {
	key := fmt.Sprintf("%s %d", topic, qos)
	s := c.streams[key]
	if s == nil {
		s = &stream{topic: topic, qos: qos, first: map[uint64]time.Time{}}
		c.streams[key] = s
	}
	return s
}

// complain takes note of a message that should not be there at all.
func (c *checker) complain(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.strange) < 20 { // the first ones say it all
		c.strange = append(c.strange, fmt.Sprintf(format, args...))
	}
}

// delivered is how many messages have arrived, repeats included.
func (c *checker) delivered() (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.streams {
		n += s.arrived
	}
	return n
}

// distinct is how many different messages of a topic have arrived.
func (c *checker) distinct(topic string, qos byte) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.streamLocked(topic, qos).first)
}

// row is a line of the summary. Lost, twice (where that is not allowed) and
// disorder make the demo fail.
type row struct {
	what     string
	qos      byte
	sent     uint64
	acked    uint64
	arrived  int // different ones
	lost     int
	twice    int // allowed or not
	disorder int
	problems []string
	notes    []string
}

// judge says what is wrong with a stream, whatever its numbers mean.
func (c *checker) judgeLocked(s *stream, cuts []window, r *row) {
	r.arrived += len(s.first)
	r.twice += len(s.repeats)
	r.disorder += len(s.disorder)
	if len(s.disorder) > 0 {
		r.problem("%s: out of order: %s", s.topic, numbers(s.disorder))
	}
	if s.qos == 2 && len(s.repeats) > 0 {
		var ns []uint64
		for _, rep := range s.repeats {
			ns = append(ns, rep.n)
		}
		r.problem("%s: QoS 2 delivered more than once: %s", s.topic, numbers(ns))
		return
	}
	if bad := s.outside(cuts); len(bad) > 0 {
		r.problem("%s: delivered twice though nothing could have lost the acknowledgement: %s", s.topic, numbers(bad))
	}
}

func (r *row) problem(format string, args ...any) {
	r.problems = append(r.problems, fmt.Sprintf(format, args...))
}

func (r *row) note(format string, args ...any) {
	r.notes = append(r.notes, fmt.Sprintf(format, args...))
}

// published checks a stream against the journal of who published it.
func (c *checker) published(topic string, qos byte, e entries, cuts []window) row {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.streamLocked(topic, qos)
	r := row{what: topic, qos: qos, sent: e.published, acked: uint64(len(e.acked))}
	c.judgeLocked(s, cuts, &r)
	var lost []uint64
	for _, n := range e.acked {
		if _, ok := s.first[n]; !ok {
			lost = append(lost, n)
		}
	}
	if r.lost = len(lost); r.lost > 0 {
		r.problem("%s: acknowledged and lost: %s", topic, numbers(lost))
	}
	var unknown []uint64
	for n := range s.first {
		if n == 0 || n > e.published {
			unknown = append(unknown, n)
		}
	}
	if len(unknown) > 0 {
		r.problem("%s: arrived and never published: %s", topic, numbers(unknown))
	}
	for n, why := range e.refused {
		r.problem("%s: message %d was refused: %s", topic, n, why)
	}
	if open := int(e.published) - len(e.acked) - len(e.refused); open > 0 {
		r.problem("%s: %d messages were never acknowledged", topic, open)
	}
	return r
}

// device is what is known of one device apart from what arrived.
type device struct {
	name string
	// topics of its points without a number of their own, and of the one
	// with it.
	points  []string
	counter string
	// put and acked are the gateway's counters, of all its lives.
	put, acked uint64
	// bad is how many answers the gateway could not use while the device was
	// there, of all its lives.
	bad uint64
	// dropped is how many readings the gateway took and gave up, of all its
	// lives; none should be.
	dropped uint64
	// times of the readings by number, from the cloud: number to when the
	// gateway read it.
	times map[uint64]time.Time
	// gaps are the times in which readings may be missing: the gateway was
	// killed or the device did not answer.
	gaps []window
}

// readings checks the streams of a device. Its counter grows with every reading
// taken, so that a gap is a reading that did not arrive; all its points belong
// to the same readings.
func (c *checker) readings(d device, cuts []window) row {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := row{what: d.name, qos: 1, sent: d.put, acked: d.acked}
	counter := c.streamLocked(d.counter, 1)
	c.judgeLocked(counter, cuts, &r)
	c.gapsLocked(counter, d, &r)
	whole := map[uint64]int{} // how many of the counter's readings have that time
	for n := range counter.first {
		whole[stamp(d.times[n])]++
	}
	for _, topic := range d.points {
		s, same := c.streamLocked(topic, 1).separate(whole)
		r.arrived += same
		c.judgeLocked(s, cuts, &r)
		c.siblingsLocked(s, whole, d, &r)
	}
	for _, topic := range append(d.points, d.counter) {
		c.judgeLocked(c.streamLocked(topic+badValue, 1), cuts, &r)
	}
	if missing := int(d.acked) - r.arrived; missing > 0 {
		r.lost += missing
		r.problem("%s: the gateway had acknowledged %d readings, %d arrived", d.name, d.acked, r.arrived)
	}
	if d.dropped > 0 {
		r.problem("%s: the gateway gave up %s", d.name, count(int(d.dropped), "reading"))
	}
	if r.arrived == 0 {
		r.problem("%s: no reading arrived", d.name)
	}
	return r
}

// gapsLocked looks for numbers that did not arrive. A gap is explained by a
// window that overlaps it, and by answers the gateway counted as bad.
func (c *checker) gapsLocked(s *stream, d device, r *row) {
	bad := d.bad
	ns := slices.Sorted(maps.Keys(s.first))
	for i := 1; i < len(ns); i++ {
		missing := ns[i] - ns[i-1] - 1
		if missing == 0 {
			continue
		}
		from, to := d.times[ns[i-1]], d.times[ns[i]]
		at := slices.IndexFunc(d.gaps, func(w window) bool { return w.overlaps(from, to) })
		switch {
		case at >= 0:
			r.note("%s: %s between number %d and %d: %s, never acknowledged", d.name, count(int(missing), "reading"), ns[i-1], ns[i], d.gaps[at].why)
		case missing <= bad:
			bad -= missing
			r.note("%s: %s between number %d and %d came too late or garbled", d.name, count(int(missing), "answer"), ns[i-1], ns[i])
		default:
			r.lost += int(missing)
			r.problem("%s: %s missing between number %d and %d", d.counter, count(int(missing), "reading"), ns[i-1], ns[i])
		}
	}
}

// siblingsLocked compares the readings of a point with those of the counter: a
// kill may take some points of one reading and leave the others.
func (c *checker) siblingsLocked(s *stream, whole map[uint64]int, d device, r *row) {
	var lost, extra []uint64
	excused := func(n uint64) bool {
		at := time.UnixMilli(int64(n))
		return slices.ContainsFunc(d.gaps, func(w window) bool { return w.overlaps(at, at) })
	}
	for n := range whole {
		if _, ok := s.first[n]; !ok && !excused(n) {
			lost = append(lost, n)
		}
	}
	for n := range s.first {
		if whole[n] == 0 && !excused(n) {
			extra = append(extra, n)
		}
	}
	if len(lost) > 0 {
		r.lost += len(lost)
		r.problem("%s: missing of the readings at %s", s.topic, instants(lost))
	}
	if len(extra) > 0 {
		r.lost += len(extra)
		r.problem("%s: number missing of the readings at %s", d.counter, instants(extra))
	}
}

// stamp is the number of a reading without one: the millisecond it was taken.
func stamp(at time.Time) uint64 { return uint64(at.UnixMilli()) }

func instants(ns []uint64) string {
	slices.Sort(ns)
	var out []string
	for _, n := range ns[:min(len(ns), 5)] {
		out = append(out, time.UnixMilli(int64(n)).Format("15:04:05.000"))
	}
	return andMore(out, len(ns))
}

// numbers names some of them, as ranges.
func numbers(ns []uint64) string {
	ns = slices.Compact(slices.Sorted(slices.Values(ns)))
	var out []string
	for i := 0; i < len(ns) && len(out) < 5; {
		j := i
		for j+1 < len(ns) && ns[j+1] == ns[j]+1 {
			j++
		}
		if i == j {
			out = append(out, strconv.FormatUint(ns[i], 10))
		} else {
			out = append(out, fmt.Sprintf("%d-%d", ns[i], ns[j]))
		}
		i = j + 1
		if len(out) == 5 && i < len(ns) {
			return strings.Join(out, ", ") + fmt.Sprintf(" and %d more", len(ns)-i)
		}
	}
	return strings.Join(out, ", ")
}

func andMore(shown []string, all int) string {
	s := strings.Join(shown, ", ")
	if all > len(shown) {
		s += fmt.Sprintf(" and %d more", all-len(shown))
	}
	return s
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
