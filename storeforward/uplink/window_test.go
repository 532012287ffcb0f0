package uplink

import (
	"math/rand/v2"
	"testing"
	"time"
)

// path is a link in a simulation: a bottleneck of so many bytes a second with a
// queue in front of it, a round trip, a cloud that answers in its own time.
type path struct {
	rate  float64       // bytes a second
	trip  time.Duration // of an empty link
	every time.Duration // the cloud answers together what came in so long; 0: at once
	loss  float64       // share of messages behind which everything waits a round trip
}

// drain sends through the path for so long, in messages of so many bytes, and
// returns the share of the link that was used in the second half, the longest
// time a message was on its way then, and what is urgent took to the cloud at
// worst, from the first message on.
func (p path) drain(most int, d time.Duration, change func(p *path, at time.Duration)) (used float64, worst, urgent time.Duration) {
	const size = 104
	type flying struct {
		s        sample
		sent, at time.Time
	}
	w := newWindow(most, 0)
	rnd := rand.New(rand.NewPCG(1, 2))
	began := time.Unix(1_000_000, 0)
	now, free, back := began, began, began
	var fs []flying
	var answered, could float64
	for now.Sub(began) < d {
		if change != nil {
			change(&p, now.Sub(began))
		}
		for w.moving == 0 || w.moving+size <= w.limit() {
			f := flying{s: w.sent(size, now), sent: now}
			if now.After(free) {
				free = now
			}
			free = free.Add(time.Duration(size / p.rate * float64(time.Second)))
			if rnd.Float64() < p.loss {
				free = free.Add(p.trip)
			}
			f.at = free.Add(p.trip)
			urgent = max(urgent, free.Add(p.trip/2).Sub(now))
			if p.every > 0 {
				f.at = f.at.Truncate(p.every).Add(p.every)
			}
			if f.at.Before(back) {
				f.at = back
			}
			back = f.at
			fs = append(fs, f)
		}
		f := fs[0]
		fs = fs[1:]
		step := f.at.Sub(now)
		now = f.at
		w.acked(&f.s, f.sent, now, now.Sub(f.sent))
		if now.Sub(began) > d/2 {
			answered += size
			could += p.rate * step.Seconds()
			worst = max(worst, now.Sub(f.sent))
		}
	}
	return answered / could, worst, urgent
}

func TestWindowFollowsTheLink(t *testing.T) {
	const ms = time.Millisecond
	tests := map[string]struct {
		path  path
		used  float64       // at least
		worst time.Duration // at most, 0 does not matter
	}{
		"1 Mbit/s, 300 ms":                  {path{rate: 125e3, trip: 300 * ms}, 0.95, 600 * ms},
		"50 kbit/s, 600 ms":                 {path{rate: 6250, trip: 600 * ms}, 0.95, 1200 * ms},
		"10 kbit/s, 1 s":                    {path{rate: 1250, trip: time.Second}, 0.95, 5 * time.Second},
		"30 Mbit/s, 100 ms":                 {path{rate: 3.75e6, trip: 100 * ms}, 0.95, 200 * ms},
		"100 Mbit/s, 1 ms":                  {path{rate: 12.5e6, trip: ms}, 0.95, 10 * ms},
		"1 Mbit/s, 300 ms, 2 % stall":       {path{rate: 125e3, trip: 300 * ms, loss: 0.0002}, 0.85, 0},
		"answers every 50 ms, 10 ms away":   {path{rate: 1e6, trip: 10 * ms, every: 50 * ms}, 0.9, 200 * ms},
		"answers every 200 ms, 100 ms away": {path{rate: 1e6, trip: 100 * ms, every: 200 * ms}, 0.9, 0},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			used, worst, _ := test.path.drain(1<<20, time.Minute, nil)
			t.Logf("%.3f of the link, at most %v", used, worst)
			if used < test.used {
				t.Errorf("%.3f of the link was used, want %.2f", used, test.used)
			}
			if test.worst > 0 && worst > test.worst {
				t.Errorf("a message was %v on its way, want at most %v", worst, test.worst)
			}
		})
	}
}

// What is urgent waits at most two round trips behind a backlog, also behind the
// first of it, when nothing is known of the link.
func TestUrgentWaitsTwoRoundTrips(t *testing.T) {
	for _, p := range []path{
		{rate: 6250, trip: 600 * time.Millisecond},
		{rate: 12_500, trip: 400 * time.Millisecond},
		{rate: 125e3, trip: 300 * time.Millisecond},
		{rate: 125e3, trip: 300 * time.Millisecond, every: 50 * time.Millisecond},
	} {
		used, _, urgent := p.drain(1<<20, time.Minute, nil)
		t.Logf("%+v: %v, %.3f of the link", p, urgent, used)
		if urgent > 2*p.trip {
			t.Errorf("%+v: %v", p, urgent)
		}
	}
}

// A full window lets a packet's worth of what is urgent go, and no more before it
// has had room again.
func TestFullWindowLetsUrgentGo(t *testing.T) {
	const size = 200
	w, now := newWindow(1<<20, 0), time.Unix(1_000_000, 0)
	send := func() sample { return w.sent(size, now) }
	var first sample
	for i := 0; w.lets(size, false); i++ {
		if s := send(); i == 0 {
			first = s
		}
	}
	for round := range 2 {
		n := 0
		for ; w.lets(size, true); n++ {
			send()
		}
		if n != overtaking/size {
			t.Errorf("round %d: %d went, want %d", round, n, overtaking/size)
		}
		for w.moving+size > w.limit() {
			now = now.Add(time.Second)
			s := sample{size: size}
			if first.size != 0 {
				s, first = first, sample{}
			}
			w.acked(&s, now.Add(-time.Second), now, 0)
		}
		if !w.lets(size, false) {
			t.Fatal("no room in a window that has some")
		}
		send()
	}
}

func TestWindowFollowsAChange(t *testing.T) {
	const ms = time.Millisecond
	tests := map[string]func(p *path, at time.Duration){
		"slower": func(p *path, at time.Duration) {
			if at > 15*time.Second {
				p.rate = 12.5e3
			}
		},
		"faster": func(p *path, at time.Duration) {
			if at > 15*time.Second {
				p.rate = 1e6
			}
		},
		"longer": func(p *path, at time.Duration) {
			if at > 15*time.Second {
				p.trip = 600 * ms
			}
		},
		"shorter": func(p *path, at time.Duration) {
			if at > 15*time.Second {
				p.trip = 30 * ms
			}
		},
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			p := path{rate: 125e3, trip: 200 * ms}
			used, worst, _ := p.drain(1<<20, 80*time.Second, change)
			t.Logf("%.3f of the link, at most %v", used, worst)
			if used < 0.9 {
				t.Errorf("%.3f of the link was used, want 0.9", used)
			}
			if worst > 1300*ms {
				t.Errorf("a message was %v on its way", worst)
			}
		})
	}
}
