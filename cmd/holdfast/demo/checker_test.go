package demo

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var epoch = time.Date(2026, 1, 2, 3, 4, 0, 0, time.UTC)

// at is that many seconds after epoch.
func at(seconds float64) time.Time {
	return epoch.Add(time.Duration(seconds * float64(time.Second)))
}

// cut is a link cut from second 10 to 20.
var cut = []window{{from: at(10), to: at(20), why: "cut"}}

// arrival is number n at second s.
type arrival struct {
	n uint64
	s float64
}

// steady are numbers from to until, one a second.
func steady(from, until uint64) (as []arrival) {
	for n := from; n <= until; n++ {
		as = append(as, arrival{n, float64(n)})
	}
	return as
}

func wantProblems(t *testing.T, r row, want ...string) {
	t.Helper()
	if len(want) == 0 && len(r.problems) > 0 {
		t.Errorf("problems = %q, want none", r.problems)
	}
	for _, w := range want {
		if !slices.ContainsFunc(r.problems, func(p string) bool { return strings.Contains(p, w) }) {
			t.Errorf("problems = %q, want one with %q", r.problems, w)
		}
	}
}

func TestCheckPublished(t *testing.T) {
	tests := map[string]struct {
		qos       byte
		arrivals  []arrival
		published uint64
		unacked   []uint64
		refused   []uint64
		lost      int
		twice     int
		disorder  int
		problems  []string
	}{
		"all well":                  {qos: 1, arrivals: steady(1, 30), published: 30},
		"all well, QoS 2":           {qos: 2, arrivals: steady(1, 30), published: 30},
		"nothing published":         {qos: 1},
		"one lost":                  {qos: 1, arrivals: append(steady(1, 13), steady(15, 30)...), published: 30, lost: 1, problems: []string{"acknowledged and lost: 14"}},
		"the last ones lost":        {qos: 2, arrivals: steady(1, 27), published: 30, lost: 3, problems: []string{"acknowledged and lost: 28-30"}},
		"everything lost":           {qos: 1, published: 30, lost: 30, problems: []string{"acknowledged and lost: 1-30"}},
		"not acknowledged, no loss": {qos: 1, arrivals: steady(1, 29), published: 30, unacked: []uint64{30}, problems: []string{"1 messages were never acknowledged"}},
		"refused":                   {qos: 1, arrivals: steady(1, 29), published: 30, refused: []uint64{30}, problems: []string{"message 30 was refused"}},
		"never published":           {qos: 1, arrivals: steady(1, 31), published: 30, problems: []string{"never published: 31"}},
		"number 0":                  {qos: 1, arrivals: append([]arrival{{0, 0}}, steady(1, 3)...), published: 3, problems: []string{"never published: 0"}},
		"twice around the cut":      {qos: 1, arrivals: append(steady(1, 9), arrival{9, 21}, arrival{10, 21}), published: 10, twice: 1},
		"twice while catching up":   {qos: 1, arrivals: append(steady(1, 18), arrival{17, 19}), published: 18, twice: 1},
		"twice before the cut":      {qos: 1, arrivals: append(steady(1, 9), arrival{9, 9.5}), published: 9, twice: 1, problems: []string{"delivered twice though nothing could have lost the acknowledgement: 9"}},
		"twice long after the first": {
			qos: 1, arrivals: append(steady(1, 9), arrival{3, 21}), published: 9, twice: 1,
			problems: []string{"nothing could have lost the acknowledgement: 3"},
		},
		"twice long after the cut": {
			qos: 1, arrivals: append(steady(1, 30), arrival{28, 31}), published: 30, twice: 1,
			problems: []string{"nothing could have lost the acknowledgement: 28"},
		},
		"QoS 2 twice around the cut": {
			qos: 2, arrivals: append(steady(1, 9), arrival{9, 21}, arrival{10, 21}), published: 10, twice: 1,
			problems: []string{"QoS 2 delivered more than once: 9"},
		},
		"two swapped": {
			qos: 1, arrivals: []arrival{{1, 1}, {3, 2}, {2, 3}, {4, 4}}, published: 4, disorder: 1,
			problems: []string{"out of order: 2"},
		},
		"older one at the end": {
			qos: 2, arrivals: append(steady(2, 30), arrival{1, 31}), published: 30, disorder: 1,
			problems: []string{"out of order: 1"},
		},
		"a block repeated is in order": {
			qos: 1, arrivals: append(steady(1, 11), arrival{9, 21}, arrival{10, 21}, arrival{11, 21}, arrival{12, 21}), published: 12, twice: 3,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := newChecker()
			for _, a := range tt.arrivals {
				c.got("a", tt.qos, a.n, at(a.s))
			}
			var j journal
			for n := j.next(); n <= tt.published; n = j.next() {
				switch {
				case slices.Contains(tt.unacked, n):
				case slices.Contains(tt.refused, n):
					j.done(n, errors.New("no"))
				default:
					j.done(n, nil)
				}
			}
			e := j.entries()
			e.published-- // the loop asked once more than it published
			r := c.published("a", tt.qos, e, cut)
			wantProblems(t, r, tt.problems...)
			if r.lost != tt.lost || r.twice != tt.twice || r.disorder != tt.disorder {
				t.Errorf("lost, twice, disorder = %d, %d, %d, want %d, %d, %d", r.lost, r.twice, r.disorder, tt.lost, tt.twice, tt.disorder)
			}
		})
	}
}

// Whatever is planted is found, and nothing else.
func TestCheckPublishedFindsWhatIsPlanted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Uint64Range(5, 200).Draw(t, "n")
		pick := func(name string) uint64 { return rapid.Uint64Range(2, n-1).Draw(t, name) }
		var as []arrival
		for i := uint64(1); i <= n; i++ {
			as = append(as, arrival{i, 100 + float64(i)}) // far from the cut
		}
		var want string
		qos := rapid.SampledFrom([]byte{1, 2}).Draw(t, "qos")
		switch rapid.IntRange(0, 3).Draw(t, "plant") {
		case 0:
		case 1:
			i := pick("lost")
			as = slices.Delete(as, int(i-1), int(i))
			want = "lost"
		case 2:
			as = append(as, arrival{pick("twice"), 100 + float64(n) + 1})
			want = "delivered"
		case 3:
			i := pick("swapped")
			as[i-1], as[i-2] = arrival{i - 1, as[i-1].s}, arrival{i, as[i-2].s}
			want = "out of order"
		}
		c := newChecker()
		for _, a := range as {
			c.got("a", qos, a.n, at(a.s))
		}
		e := entries{published: n}
		for i := uint64(1); i <= n; i++ {
			e.acked = append(e.acked, i)
		}
		r := c.published("a", qos, e, cut)
		if want == "" && len(r.problems) > 0 || want != "" && (len(r.problems) != 1 || !strings.Contains(r.problems[0], want)) {
			t.Fatalf("problems = %q, want %q", r.problems, want)
		}
	})
}

// boiler is a device with counter "n" and points "x" and "y", read once a
// second, number i at second i.
func boiler(c *checker, ns []uint64, drop map[string][]uint64) device {
	d := device{name: "boiler", counter: "n", points: []string{"x", "y"}, times: map[uint64]time.Time{}}
	for _, n := range ns {
		when := at(float64(n))
		for _, topic := range []string{"n", "x", "y"} {
			if slices.Contains(drop[topic], n) {
				continue
			}
			if topic == "n" {
				c.got(topic, 1, n, when)
				d.times[n] = when
			} else {
				c.got(topic, 1, stamp(when), when)
			}
			d.acked++
		}
	}
	d.put = d.acked
	return d
}

func span(from, to uint64) (ns []uint64) {
	for n := from; n <= to; n++ {
		ns = append(ns, n)
	}
	return ns
}

func TestCheckReadings(t *testing.T) {
	kill := []window{{from: at(14), to: at(18), why: "in memory at the kill"}}
	tests := map[string]struct {
		ns       []uint64
		drop     map[string][]uint64
		gaps     []window
		bad      uint64
		dropped  uint64
		acked    int // more than arrived
		repeat   []arrival
		lost     int
		problems []string
		notes    string
	}{
		"all well":                      {ns: span(5, 30)},
		"nothing":                       {problems: []string{"no reading arrived"}},
		"a gap":                         {ns: append(span(1, 6), span(8, 30)...), lost: 1, problems: []string{"1 reading missing between number 6 and 8"}},
		"a gap far from the kill":       {ns: append(span(1, 6), span(8, 30)...), gaps: kill, lost: 1, problems: []string{"missing between number 6 and 8"}},
		"a gap at the kill":             {ns: append(span(1, 14), span(17, 30)...), gaps: kill, notes: "2 readings between number 14 and 17: in memory at the kill"},
		"a gap that holds the kill":     {ns: append(span(1, 10), span(20, 30)...), gaps: kill, notes: "9 readings"},
		"acknowledged before the kill":  {ns: append(span(1, 14), span(17, 30)...), gaps: kill, acked: 3, lost: 3, problems: []string{"the gateway had acknowledged 87 readings, 84 arrived"}, notes: "2 readings"},
		"a bad answer":                  {ns: append(span(1, 6), span(8, 30)...), bad: 1, notes: "came too late or garbled"},
		"more missing than bad answers": {ns: append(span(1, 6), span(9, 30)...), bad: 1, lost: 2, problems: []string{"2 readings missing"}},
		"given up by the gateway":       {ns: span(5, 30), dropped: 2, problems: []string{"the gateway gave up 2 readings"}},
		"a point missing":               {ns: span(1, 30), drop: map[string][]uint64{"y": {9}}, lost: 1, problems: []string{"y: missing of the readings at"}},
		"a point missing at the kill":   {ns: span(1, 30), drop: map[string][]uint64{"x": {15}}, gaps: kill},
		"a number missing, not its points": {
			ns: span(1, 30), drop: map[string][]uint64{"n": {9}}, lost: 3, // the number, and a point of each sibling
			problems: []string{"n: 1 reading missing", "number missing of the readings"},
		},
		"a number twice": {ns: span(1, 30), repeat: []arrival{{25, 26}}, problems: []string{"delivered twice"}},
		"out of order":   {ns: []uint64{1, 2, 4, 3, 5}, problems: []string{"n: out of order: 3", "x: out of order", "y: out of order"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := newChecker()
			d := boiler(c, tt.ns, tt.drop)
			d.gaps, d.bad, d.dropped = tt.gaps, tt.bad, tt.dropped
			d.acked += uint64(tt.acked)
			for _, a := range tt.repeat {
				c.got("n", 1, a.n, at(a.s))
			}
			r := c.readings(d, cut)
			wantProblems(t, r, tt.problems...)
			if r.lost != tt.lost {
				t.Errorf("lost = %d, want %d; problems %q", r.lost, tt.lost, r.problems)
			}
			if notes := strings.Join(r.notes, "\n"); !strings.Contains(notes, tt.notes) || tt.notes == "" && notes != "" {
				t.Errorf("notes = %q, want %q", notes, tt.notes)
			}
		})
	}
}

// Lines that lay in the port are read in the same millisecond: only as many as
// there are numbers with that time are different ones.
func TestCheckReadingsOfOneMillisecond(t *testing.T) {
	for extra, problem := range []string{"", "x: delivered twice"} {
		c := newChecker()
		d := device{name: "weather", counter: "n", points: []string{"x"}, times: map[uint64]time.Time{}}
		for n := uint64(1); n <= 10; n++ {
			when := at(float64(n / 2))
			c.got("n", 1, n, when)
			c.got("x", 1, stamp(when), when)
			d.times[n] = when
		}
		for range extra {
			c.got("x", 1, stamp(at(2)), at(30))
		}
		d.acked, d.put = 20, 20
		r := c.readings(d, cut)
		if problem == "" {
			wantProblems(t, r)
		} else {
			wantProblems(t, r, problem)
		}
		if r.arrived != 20 {
			t.Errorf("arrived = %d, want 20", r.arrived)
		}
	}
}

func TestCheckReadingsWithoutAValue(t *testing.T) {
	c := newChecker()
	d := boiler(c, span(1, 10), nil)
	for s := 11; s < 15; s++ { // the device does not answer
		for _, topic := range []string{"n", "x", "y"} {
			c.got(topic+badValue, 1, stamp(at(float64(s))), at(float64(s)))
			d.acked++
		}
	}
	wantProblems(t, c.readings(d, cut))
	d.acked++
	wantProblems(t, c.readings(d, cut), "acknowledged 43 readings, 42 arrived")
}

func TestJournal(t *testing.T) {
	var j journal
	for range 5 {
		j.next()
	}
	j.done(1, nil)
	j.done(3, nil)
	j.done(4, errors.New("no"))
	if j.open() != 2 {
		t.Errorf("open() = %d, want 2", j.open())
	}
	e := j.entries()
	if e.published != 5 || !slices.Equal(e.acked, []uint64{1, 3}) || e.refused[4] != "no" || len(e.refused) != 1 {
		t.Errorf("entries() = %+v", e)
	}
}

func TestNumbers(t *testing.T) {
	tests := map[string]struct {
		in   []uint64
		want string
	}{
		"none":       {},
		"one":        {[]uint64{7}, "7"},
		"unsorted":   {[]uint64{9, 1, 3}, "1, 3, 9"},
		"range":      {[]uint64{4, 5, 6}, "4-6"},
		"repeated":   {[]uint64{4, 4, 5}, "4-5"},
		"many":       {[]uint64{1, 3, 5, 7, 9, 11, 13}, "1, 3, 5, 7, 9 and 2 more"},
		"five":       {[]uint64{1, 3, 5, 7, 9}, "1, 3, 5, 7, 9"},
		"long range": {span(1, 1000), "1-1000"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := numbers(tt.in); got != tt.want {
				t.Errorf("numbers(%v) = %q, want %q", tt.in, got, tt.want)
			}
		})
	}
}
