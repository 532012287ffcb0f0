package modbus

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/adapters/modbus/modbustest"
)

// liveRates runs 24 live units and so many dead ones (from the start, or after a
// while of life) for ten minutes and returns the good readings of each live one.
func liveRates(t *testing.T, every time.Duration, dead int, after time.Duration) (rates []int, st Status) {
	t.Helper()
	const live = 24
	synctest.Test(t, func(t *testing.T) {
		var ds []Device
		for i := range live + dead {
			d := meter(fmt.Sprint("d", i), 1+i, every, 0)
			d.Points[0].Type, d.Points[0].Length = "string", 10 // ten registers, one reading
			ds = append(ds, d)
		}
		r := newRig(t, options(ds...))
		for i := range live + dead {
			if i >= live && after == 0 {
				continue
			}
			u := r.slave.Unit(byte(1 + i))
			u.SetHolding(0, make([]uint16, 10)...)
			u.Fault(modbustest.Fault{Delay: 5 * time.Millisecond}, -1) // what a meter thinks
		}
		counts := map[string]int{}
		r.onPut = func(g got) {
			if g.Quality == "good" {
				counts[g.Device]++
			}
		}
		r.start()
		if after > 0 {
			r.after(after)
			for i := live; i < live+dead; i++ {
				r.slave.Remove(byte(1 + i))
			}
		}
		r.mu.Lock()
		clear(counts)
		r.mu.Unlock()
		r.after(10 * time.Minute)
		st = r.bus.Status()
		r.stop()
		for i := range live {
			rates = append(rates, counts[fmt.Sprint("d", i)])
		}
	})
	return rates, st
}

// 32 units at 9600 baud, 8 of them dead: every live one keeps at least 85 % of
// the rate it has without the dead, on a bus with room and on one with none.
func TestDeadUnitsDoNotSlowTheOthers(t *testing.T) {
	tests := map[string]struct {
		every, after time.Duration
	}{
		"a bus with room, dead from the start": {5 * time.Second, 0},
		"a full bus, dead from the start":      {time.Second, 0},
		"a full bus, dying":                    {time.Second, time.Minute},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if testing.Short() && tt.after > 0 {
				t.Skip("long")
			}
			without, _ := liveRates(t, tt.every, 0, 0)
			with, st := liveRates(t, tt.every, 8, tt.after)
			worst := 1.0
			for i := range without {
				worst = min(worst, float64(with[i])/float64(without[i]))
			}
			var probes uint64
			for _, u := range st.Units {
				probes += u.Probes
			}
			t.Logf("worst live unit keeps %.1f %% of %d readings; bus load %.0f %%, %d probes", 100*worst, without[0], 100*st.Load, probes)
			if worst < 0.85 {
				t.Errorf("a live unit keeps %.1f %% of its rate, want at least 85 %%", 100*worst)
			}
			if probes < 8 {
				t.Errorf("%d probes of 8 dead units in ten minutes", probes)
			}
		})
	}
}

// A unit that answers every other time, or only probes, is worse than a dead
// one: it keeps coming back. It takes its tenth and no more.
func TestAFlappingUnitDoesNotSlowTheOthers(t *testing.T) {
	faults := map[string]func(n int, q modbustest.Request) bool{
		"every other answer":  func(n int, _ modbustest.Request) bool { return n%2 == 0 },
		"one answer in three": func(n int, _ modbustest.Request) bool { return n%3 != 0 },
		"only short requests": func(_ int, q modbustest.Request) bool { return q.Count > 1 },
	}
	rate := func(t *testing.T, silent func(int, modbustest.Request) bool) int {
		t.Helper()
		n := 0
		synctest.Test(t, func(t *testing.T) {
			bad := meter("bad", 2, time.Second, 0, 1)
			good := meter("good", 1, 100*time.Millisecond, 0, 1)
			r := newRig(t, options(good, bad))
			r.slave.Unit(1).SetHolding(0, 1, 2)
			u := r.slave.Unit(2)
			u.SetHolding(0, 1, 2)
			asked := 0
			u.FaultFunc(func(q modbustest.Request) modbustest.Fault {
				asked++
				return modbustest.Fault{Silent: silent(asked, q)}
			})
			r.onPut = func(g got) {
				if g.Device == "good" && g.Quality == "good" {
					n++
				}
			}
			r.start()
			r.after(10 * time.Minute)
			r.stop()
		})
		return n
	}
	healthy := rate(t, func(int, modbustest.Request) bool { return false })
	for name, silent := range faults {
		t.Run(name, func(t *testing.T) {
			got := rate(t, silent)
			t.Logf("the good unit keeps %.1f %% of %d readings", 100*float64(got)/float64(healthy), healthy)
			if float64(got) < 0.85*float64(healthy) {
				t.Errorf("the good unit keeps %d of %d readings, want at least 85 %%", got, healthy)
			}
		})
	}
}

// Down, its points bad once, probed at a growing distance; back at once when a
// probe is answered.
func TestAUnitGoesDownAndComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, options(meter("m", 1, time.Second, 0)))
		u := r.slave.Unit(1)
		u.SetHolding(0, 1)
		r.start()
		r.after(10 * time.Second)
		if st := r.unit(); st.State != UnitUp {
			t.Fatalf("state = %v, want up", st.State)
		}
		u.Fault(modbustest.Fault{Silent: true}, -1)
		r.after(1500 * time.Millisecond)
		if st := r.unit(); st.State != UnitSuspect {
			t.Errorf("state after a timeout = %v, want suspect", st.State)
		}
		r.after(10 * time.Second)
		if st := r.unit(); st.State != UnitDown || st.Timeouts < 3 {
			t.Errorf("state after three timeouts = %v (%d), want down", st.State, st.Timeouts)
		}
		r.after(10 * time.Minute)
		// 1, 2, 4 ... 32, 60, 60 ... seconds with 20 % of jitter.
		if st := r.unit(); st.Probes < 11 || st.Probes > 20 || st.Requests != 10+3+st.Probes {
			t.Errorf("%d probes and %d requests in ten minutes, want about 15 and nothing else", st.Probes, st.Requests)
		}
		if got := r.of("p0"); len(got) != 11 || got[10] != "<nil> bad" {
			t.Errorf("p0 = %v, want ten good and one bad", got)
		}
		if got := r.states(); got[len(got)-1] != "offline" {
			t.Errorf("health = %v, want offline last", got)
		}
		u.Fault(modbustest.Fault{}, 0)
		r.after(2 * time.Minute)
		r.stop()
		if st := r.unit(); st.State != UnitUp {
			t.Errorf("state after it came back = %v, want up", st.State)
		}
		if good, bad := r.count("m"); bad != 1 || good < 10+40 {
			t.Errorf("%d good and %d bad readings, want over 50 and 1", good, bad)
		}
		if got := r.states(); got[len(got)-1] != "online" {
			t.Errorf("health = %v, want online last", got)
		}
	})
}

// A single timeout loses one reading at most, and no other unit anything.
func TestAfterATimeoutTheUnitIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, options(meter("slow", 1, time.Second, 0), meter("other", 2, time.Second, 0)))
		u := r.slave.Unit(1)
		u.SetHolding(0, 1)
		r.slave.Unit(2).SetHolding(0, 2)
		var sent []time.Time
		r.onSend = func(adu []byte) {
			if adu[0] == 1 {
				sent = append(sent, time.Now())
			}
		}
		n := 0
		u.FaultFunc(func(modbustest.Request) modbustest.Fault {
			if n++; n == 5 {
				return modbustest.Fault{Delay: 2900 * time.Millisecond}
			}
			return modbustest.Fault{}
		})
		r.start()
		r.after(20*time.Second - 300*time.Millisecond)
		r.stop()
		if pause := sent[5].Sub(sent[4]); pause < 3*time.Second || pause > 3500*time.Millisecond {
			t.Errorf("asked again %v after a request that timed out, want 3s and a little", pause)
		}
		if good, bad := r.count("other"); good < 19 || bad != 0 {
			// The timeout took the line for as long as its period.
			t.Errorf("the other unit has %d good and %d bad readings, want at least 19 and 0", good, bad)
		}
		if good, bad := r.count("slow"); good < 17 || bad != 0 {
			t.Errorf("the slow unit has %d good and %d bad readings, want at least 17 and 0", good, bad)
		}
		if st := r.bus.Status(); st.ForeignFrames+st.StrayBytes == 0 {
			t.Error("the late answer was not seen")
		}
	})
}

// State belongs to a unit of a bus: two devices with one unit share it.
func TestTwoDevicesOfOneUnitShareItsQuarantine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, options(meter("fast", 1, time.Second, 0), meter("rare", 1, 10*time.Second, 100)))
		var sent []time.Time
		r.onSend = func([]byte) { sent = append(sent, time.Now()) }
		u := r.slave.Unit(1)
		u.SetHolding(0, 1)
		u.SetHolding(100, 1)
		r.start()
		r.after(5 * time.Second)
		u.Fault(modbustest.Fault{Delay: 2 * time.Second}, 2)
		r.after(30 * time.Second)
		r.stop()
		asked := 0
		for i := 1; i < len(sent); i++ {
			if sent[i].Sub(sent[i-1]) > 2*time.Second {
				asked++
			}
		}
		if asked != 2 {
			t.Errorf("%d pauses of a quarantine, want 2: %v", asked, sent)
		}
		if st := r.bus.Status(); len(st.Units) != 1 || len(st.Units[0].Devices) != 2 {
			t.Errorf("Status() = %+v, want one unit with two devices", st)
		}
		for _, d := range []string{"fast", "rare"} {
			if good, bad := r.count(d); good < 3 || bad != 0 {
				t.Errorf("%s has %d good and %d bad readings", d, good, bad)
			}
		}
	})
}

// Some devices do not refuse a register they lack but fall silent. The others
// of the block are found all the same, and the bus is not spent on waiting.
func TestASilentRegisterIsSetApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, options(meter("m", 1, time.Second, 0, 1, 2, 3, 50), meter("other", 2, time.Second, 0)))
		r.slave.Unit(2).SetHolding(0, 1)
		u := r.slave.Unit(1)
		u.SetHolding(0, 10, 11, 12, 13)
		u.SetHolding(50, 14)
		u.FaultFunc(func(q modbustest.Request) modbustest.Fault {
			return modbustest.Fault{Silent: q.Addr <= 2 && q.Addr+q.Count > 2} // register 2
		})
		r.start()
		r.after(10 * time.Minute)
		r.stop()
		for _, p := range []string{"p0", "p1", "p3"} {
			if got := r.of(p); len(got) < 100 || got[len(got)-1] == "<nil> bad" {
				t.Errorf("%s = %d readings, the last %v, want it to be read", p, len(got), got[max(0, len(got)-1):])
			}
		}
		if got := r.of("p2"); len(got) != 1 {
			t.Errorf("p2 = %v, want said once to be bad", got)
		}
		if good, _ := r.count("other"); good < 510 {
			t.Errorf("the other unit has %d of 600 readings, want at least 85 %%", good)
		}
	})
}
