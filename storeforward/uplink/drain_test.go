package uplink

import (
	"math"
	"testing"
	"time"
)

// How long a backlog lasts follows from what the cloud takes and what comes.
func TestDrainEstimate(t *testing.T) {
	type lane struct {
		backlog    int64
		age        float64
		comes, eta float64
	}
	tests := map[string]struct {
		acked float64
		lanes []lane
		all   float64
	}{
		"nothing waits":               {acked: 100, lanes: []lane{{}}},
		"on its way already":          {acked: 100, lanes: []lane{{backlog: 20, age: 1, comes: 90}}},
		"nothing comes":               {acked: 100, lanes: []lane{{backlog: 1000, age: 60, eta: 10}}, all: 10},
		"as much comes as goes":       {acked: 100, lanes: []lane{{backlog: 1000, age: 60, comes: 100}}},
		"the link is down":            {lanes: []lane{{backlog: 1000, age: 60, comes: 10}}},
		"higher lanes go first":       {acked: 110, lanes: []lane{{backlog: 100, age: 30, comes: 10, eta: 1}, {backlog: 900, age: 60, comes: 50, eta: 20}}, all: 20},
		"only the low lane waits":     {acked: 100, lanes: []lane{{comes: 20}, {backlog: 800, age: 60, eta: 10}}, all: 10},
		"the low lane may not send":   {acked: 100, lanes: []lane{{backlog: 100, age: 30, eta: 1}, {backlog: 900, age: 60, comes: math.Inf(1)}}},
		"the low lane has too little": {acked: 100, lanes: []lane{{backlog: 100, age: 30, comes: 50, eta: 2}, {backlog: 900, age: 60, comes: 50}}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			st := Status{AckedRate: tt.acked}
			var comes []float64
			for _, l := range tt.lanes {
				st.Lanes = append(st.Lanes, LaneStatus{Backlog: l.backlog, BacklogAge: l.age})
				comes = append(comes, l.comes)
			}
			st.estimateDrain(comes)
			for i, l := range tt.lanes {
				if got := st.Lanes[i].DrainSeconds; got != l.eta {
					t.Errorf("lane %d: drained in %v s, want %v", i, got, l.eta)
				}
			}
			if st.DrainSeconds != tt.all {
				t.Errorf("drained in %v s, want %v", st.DrainSeconds, tt.all)
			}
		})
	}
}

// A flow that stops counts for less and less.
func TestFlowFades(t *testing.T) {
	var f flow
	now := time.Unix(0, 0)
	for range 31 {
		f.add(10, now)
		now = now.Add(100 * time.Millisecond)
	}
	if got := f.perSecond(now); got < 99 || got > 101 {
		t.Errorf("%v messages a second, want 100", got)
	}
	if got := f.perSecond(now.Add(time.Minute)); got > 2 {
		t.Errorf("%v messages a second after a minute of silence", got)
	}
}
