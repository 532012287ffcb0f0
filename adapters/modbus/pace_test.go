package modbus

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/adapters/modbus/modbustest"
)

// intervals is a meter whose points have intervals of their own; 0 is the
// device's.
func intervals(name string, unit int, every time.Duration, points map[int]time.Duration) Device {
	d := meter(name, unit, every)
	for addr, own := range points {
		d.Points = append(d.Points, Point{Name: fmt.Sprint("p", addr), Register: fmt.Sprint("holding:", addr), Every: own})
	}
	return d
}

// record returns the requests of a run, as "unit:address+count".
func (r *rig) record() *[]string {
	var sent []string
	r.onSend = func(adu []byte) {
		sent = append(sent, fmt.Sprintf("%d:%d+%d", adu[0], binary.BigEndian.Uint16(adu[2:]), binary.BigEndian.Uint16(adu[4:])))
	}
	return &sent
}

func TestPointsHaveTheirOwnIntervals(t *testing.T) {
	const minute = 60
	tests := map[string]struct {
		points map[int]time.Duration
		change func(*Device)
		want   map[string]int // readings in a minute
		sent   map[string]int // requests in a minute
	}{
		"the slow one rides along": {
			points: map[int]time.Duration{0: 0, 5: 10 * time.Second},
			want:   map[string]int{"p0": 60, "p5": 6},
			sent:   map[string]int{"1:0+1": 54, "1:0+6": 6},
		},
		"too far to ride": {
			points: map[int]time.Duration{0: 0, 50: 10 * time.Second},
			want:   map[string]int{"p0": 60, "p50": 6},
			sent:   map[string]int{"1:0+1": 60, "1:50+1": 6},
		},
		"not across a hole": {
			points: map[int]time.Duration{0: 0, 5: 10 * time.Second},
			change: func(d *Device) { d.Holes = []string{"holding:3"} },
			want:   map[string]int{"p0": 60, "p5": 6},
			sent:   map[string]int{"1:0+1": 60, "1:5+1": 6},
		},
		"not beyond what the device gives at once": {
			points: map[int]time.Duration{0: 0, 5: 10 * time.Second},
			change: func(d *Device) { d.MaxRegisters = 4 },
			want:   map[string]int{"p0": 60, "p5": 6},
			sent:   map[string]int{"1:0+1": 60, "1:5+1": 6},
		},
		"three in one, and a bridge": {
			points: map[int]time.Duration{0: 0, 8: 20 * time.Second, 16: 5 * time.Second},
			want:   map[string]int{"p0": 60, "p8": 3, "p16": 12},
			sent:   map[string]int{"1:0+1": 57, "1:16+1": 9, "1:0+17": 3},
		},
		// Due at 3.1 s it is read at 3 s, and is in step from then on.
		"nearly due": {
			points: map[int]time.Duration{0: 0, 1: 3100 * time.Millisecond},
			want:   map[string]int{"p0": 60, "p1": 20},
			sent:   map[string]int{"1:0+1": 40, "1:0+2": 20},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := intervals("m", 1, time.Second, tt.points)
				if tt.change != nil {
					tt.change(&d)
				}
				r := newRig(t, options(d))
				r.slave.Unit(1).SetHolding(0, make([]uint16, 100)...)
				sent := r.record()
				r.start()
				r.after(minute*time.Second - 500*time.Millisecond)
				r.stop()
				for p, want := range tt.want {
					if got := len(r.of(p)); got != want {
						t.Errorf("%d readings of %s in a minute, want %d", got, p, want)
					}
				}
				count := map[string]int{}
				for _, s := range *sent {
					count[s]++
				}
				for req, want := range tt.sent {
					if count[req] != want {
						t.Errorf("%d requests %s, want %d", count[req], req, want)
					}
					delete(count, req)
				}
				if len(count) > 0 {
					t.Errorf("requests nobody wants: %v", count)
				}
			})
		})
	}
}

// What the unit refuses to give together is asked for apart, and that is
// remembered: a refusal, or a silence, does not come back each minute.
func TestWhatCannotRideTogetherIsRemembered(t *testing.T) {
	for name, fault := range map[string]modbustest.Fault{
		"refused": {Exception: modbustest.IllegalDataAddress},
		"silent":  {Silent: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, options(intervals("m", 1, time.Second, map[int]time.Duration{0: 0, 5: 10 * time.Second})))
				u := r.slave.Unit(1)
				u.SetHolding(0, make([]uint16, 6)...)
				u.FaultFunc(func(q modbustest.Request) modbustest.Fault {
					if q.Count > 1 {
						return fault
					}
					return modbustest.Fault{}
				})
				r.start()
				r.after(100 * time.Minute)
				r.stop()
				st := r.unit()
				if n := st.Exceptions + st.Timeouts; n == 0 || n > 4 {
					t.Errorf("%d refusals and timeouts in 100 minutes, want one each hour", n)
				}
				for p, want := range map[string]int{"p0": 5900, "p5": 590} {
					got := r.of(p)
					bad := slices.Index(got, "<nil> bad")
					// A unit whose very first answer does not come counts as dead for a moment.
					if len(got) < want || bad > 0 || slices.Contains(got[1:], "<nil> bad") {
						t.Errorf("%s has %d readings, want %d, all but the first good", p, len(got), want)
					}
				}
			})
		})
	}
}

// overloaded is a bus of units with short and long intervals that wants more
// than there is.
func overloaded() Options {
	var ds []Device
	for i, millis := range []int{200, 200, 500, 500, 1000, 1000, 2000, 5000} {
		d := meter(fmt.Sprint("d", i), 1+i, time.Duration(millis)*time.Millisecond, 0)
		d.Points[0].Type, d.Points[0].Length = "string", 20
		ds = append(ds, d)
	}
	return options(ds...)
}

// On an overloaded bus every unit is late by the same factor, whatever its
// interval: the one that `holdfast check` has foretold and that the status
// shows.
func TestAnOverloadedBusIsFairAndForetold(t *testing.T) {
	o := overloaded()
	forecast, err := o.Forecast()
	if err != nil {
		t.Fatal(err)
	}
	if forecast.Demand < 1.2 || forecast.Demand > 1.5 {
		t.Fatalf("forecast = %+v, want a bus that is loaded by something like 130 %%", forecast)
	}
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, o)
		for i := range o.Devices {
			u := r.slave.Unit(byte(1 + i))
			u.SetHolding(0, make([]uint16, 20)...)
			u.Fault(modbustest.Fault{Delay: turnaround}, -1)
		}
		counts := map[string]int{}
		r.onPut = func(g got) { counts[g.Device]++ }
		r.start()
		r.after(10 * time.Minute)
		st := r.bus.Status()
		r.stop()
		if math.Abs(st.Pace.Demand-forecast.Demand) > 0.05 {
			t.Errorf("demand measured %.2f, forecast %.2f", st.Pace.Demand, forecast.Demand)
		}
		for i, d := range o.Devices {
			achieved := 10 * time.Minute / time.Duration(counts[d.Name])
			factor := float64(achieved) / float64(d.Every)
			t.Logf("%s: every %v, achieved %v: factor %.2f; forecast %v, measured %v", d.Name, d.Every, achieved, factor, forecast.Devices[i].Comes, st.Pace.Devices[i].Comes)
			if math.Abs(factor-forecast.Demand) > 0.1 {
				t.Errorf("%s is read every %v instead of %v, %.2f times; want %.2f as all", d.Name, achieved, d.Every, factor, forecast.Demand)
			}
			for what, comes := range map[string]time.Duration{"forecast": forecast.Devices[i].Comes, "status": st.Pace.Devices[i].Comes} {
				if ratio := float64(comes) / float64(achieved); ratio < 0.9 || ratio > 1.1 {
					t.Errorf("%s: %s says %v, it is %v", d.Name, what, comes, achieved)
				}
			}
		}
		if skipped := st.Units[0].Skipped; skipped < 500 || skipped > 900 {
			t.Errorf("unit 1 has %d polls left out, want about 700 of 3000", skipped)
		}
		if st.Load < 0.98 {
			t.Errorf("the bus was in use for %.0f %% of the time, though there was more to do", 100*st.Load)
		}
		if words := st.Pace.Overloaded(); !strings.HasPrefix(words, fmt.Sprintf("%.0f %% loaded: device d", 100*st.Pace.Demand)) {
			t.Errorf("status says %q", words)
		}
	})
}

// A bus that is not overloaded any more, because a unit has gone, is not slow.
func TestABusRelievedKeepsItsIntervals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ds []Device
		for i := range 3 {
			d := meter(fmt.Sprint("d", i), 1+i, 200*time.Millisecond, 0)
			d.Points[0].Type, d.Points[0].Length = "string", 30
			ds = append(ds, d)
		}
		r := newRig(t, options(ds...))
		for i := range 3 {
			r.slave.Unit(byte(1+i)).SetHolding(0, make([]uint16, 30)...)
		}
		n := 0
		r.onPut = func(g got) {
			if g.Device == "d0" {
				n++
			}
		}
		r.start()
		r.after(10 * time.Minute)
		if d := r.bus.Status().Pace.Demand; d < 1.1 {
			t.Errorf("demand = %.2f, want an overloaded bus", d)
		}
		r.slave.Remove(3)
		r.after(5 * time.Minute)
		r.mu.Lock()
		n = 0
		r.mu.Unlock()
		r.after(10 * time.Minute)
		st := r.bus.Status()
		r.stop()
		if n < 2850 {
			t.Errorf("%d of 3000 readings in ten minutes; pace %+v", n, st.Pace)
		}
		if words := st.Pace.Overloaded(); words != "" {
			t.Errorf("status says %q of a bus that can do all", words)
		}
	})
}

// The hour that a unit was dead is no interval of its polls.
func TestTheTimeAUnitWasAwayIsNoInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, options(meter("m", 1, time.Second, 0)))
		u := r.slave.Unit(1)
		u.SetHolding(0, 1)
		r.start()
		r.after(time.Minute)
		u.Fault(modbustest.Fault{Silent: true}, -1)
		r.after(time.Hour)
		u.Fault(modbustest.Fault{}, 0)
		r.after(90 * time.Second)
		st := r.bus.Status()
		r.stop()
		if p := st.Pace.Devices[0]; p.Comes < 950*time.Millisecond || p.Comes > 1500*time.Millisecond || st.Units[0].State != UnitUp {
			t.Errorf("pace = %+v, state %v, want every second, up", p, st.Units[0].State)
		}
	})
}

func TestWarningsForetellTheLoad(t *testing.T) {
	long := func(name string, unit int, every time.Duration, registers int) Device {
		d := meter(name, unit, every, 0)
		d.Points[0].Type, d.Points[0].Length = "string", registers
		return d
	}
	tests := map[string]struct {
		o    Options
		want []string
	}{
		"room enough": {options(long("boiler", 1, 5*time.Second, 100)), nil},
		"too much": {
			options(long("boiler", 1, 200*time.Millisecond, 100)),
			[]string{"134 % loaded: device boiler's points come every 270ms instead of 200ms"},
		},
		"many": {
			func() Options {
				var ds []Device
				for i := range 32 {
					ds = append(ds, long(fmt.Sprint("m", i), 1+i, 5*time.Second, 100))
				}
				return options(ds...)
			}(),
			[]string{"172 % loaded: device m0's points come every 8.6s instead of 5s, device m1's points come every 8.6s instead of 5s, device m2's points come every 8.6s instead of 5s, those of 29 more devices come late too"},
		},
		"hardly room": {
			options(long("boiler", 1, 285*time.Millisecond, 100)),
			[]string{"94 % loaded: a unit that does not answer will make the others late"},
		},
		"a unit that rests too long": {
			func() Options {
				d := meter("meter", 1, time.Second, 0, 50)
				d.Pause = time.Second
				return options(d)
			}(),
			[]string{"device meter's points come every 2.1s instead of 1s: their units need more rest between requests than that leaves"},
		},
		"a line of which nothing is known": {
			func() Options {
				o := options(long("boiler", 1, 10*time.Millisecond, 100))
				o.CharTime = 0
				return o
			}(),
			nil,
		},
		"once a day":     {options(long("boiler", 1, 24*time.Hour, 100)), nil},
		"nothing at all": {options(), nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := tt.o.Warnings(); !slices.Equal(got, tt.want) {
				t.Errorf("Warnings() = %q\nwant         %q", got, tt.want)
			}
		})
	}
}

// A full map, 125 registers at a time from one unit after another: the wire
// carries characters for at least 90 % of the time that the protocol leaves
// them, which is all but the three and a half characters of silence before a
// request (MODBUS Serial Line V1.02 §2.5.1.1). The units answer at once here.
func TestAFullMapUsesTheBus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ds []Device
		for i := range 4 {
			d := meter(fmt.Sprint("d", i), 1+i, time.Second)
			for a := range 500 {
				d.Points = append(d.Points, Point{Name: fmt.Sprint("p", a), Register: fmt.Sprint("holding:", a)})
			}
			ds = append(ds, d)
		}
		r := newRig(t, options(ds...))
		for i := range 4 {
			r.slave.Unit(byte(1+i)).SetHolding(0, make([]uint16, 500)...)
		}
		chars, requests := 0, 0
		r.onSend = func(adu []byte) {
			chars += len(adu) + 5 + 2*int(binary.BigEndian.Uint16(adu[4:]))
			requests++
		}
		r.onPut = func(got) {}
		r.start()
		const span = time.Minute
		r.after(span)
		r.stop()
		busy := time.Duration(chars) * char9600
		allowed := busy + time.Duration(requests)*7*char9600/2
		use := float64(busy) / float64(span) / (float64(busy) / float64(allowed))
		t.Logf("%d requests, the wire busy for %.1f %% of the time: %.1f %% of what the protocol allows", requests, 100*float64(busy)/float64(span), 100*use)
		if use < 0.9 {
			t.Errorf("the bus is used for %.1f %% of what the protocol allows, want at least 90 %%", 100*use)
		}
	})
}

// A dead unit is asked for one register, and all probes together take at most a
// tenth of a bus that others want.
func TestProbesAreCheapAndWithinATenth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const live, dead = 24, 8
		var ds []Device
		for i := range live + dead {
			d := meter(fmt.Sprint("d", i), 1+i, time.Second, 0)
			d.Points[0].Type, d.Points[0].Length = "string", 10
			ds = append(ds, d)
		}
		r := newRig(t, options(ds...))
		for i := range live {
			r.slave.Unit(byte(1+i)).SetHolding(0, make([]uint16, 10)...)
		}
		var lost time.Duration
		var probing time.Time
		asked := map[byte]int{}
		r.onSend = func(adu []byte) {
			now := time.Now()
			if !probing.IsZero() {
				lost += now.Sub(probing)
			}
			probing = time.Time{}
			if id := adu[0]; id > live {
				if asked[id]++; asked[id] > 1 {
					probing = now
					if n := binary.BigEndian.Uint16(adu[4:]); n != 1 {
						t.Errorf("a probe of unit %d asks for %d registers, want 1", id, n)
					}
				}
			}
		}
		r.onPut = func(got) {}
		r.start()
		const span = 10 * time.Minute
		r.after(span)
		r.stop()
		share := float64(lost) / float64(span)
		t.Logf("probes of %d dead units took %.1f %% of a full bus", len(asked), 100*share)
		if share > 0.1 || len(asked) != dead {
			t.Errorf("probes took %.1f %%, want at most 10 %%, of %d units, want %d", 100*share, len(asked), dead)
		}
	})
}

// A forecast counts the characters that the framing of the line needs: ASCII
// takes about twice as many as RTU.
func TestForecastKnowsTheFraming(t *testing.T) {
	r := Request{Unit: 1, Function: ReadHoldingRegisters, Addr: 7, Count: 10}
	question, err := r.AppendPDU(nil)
	if err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 2+2*10) // function, length, registers
	for framing, frames := range map[string]int{
		FramingRTU:   len(AppendRTU(nil, 1, question)) + len(AppendRTU(nil, 1, answer)),
		FramingASCII: len(AppendASCII(nil, 1, question)) + len(AppendASCII(nil, 1, answer)),
	} {
		o := Options{Framing: framing, CharTime: time.Millisecond}
		if got, want := o.cost(r), o.silence()+time.Duration(frames)*time.Millisecond+turnaround; got != want {
			t.Errorf("%s: a request costs %v, want %v", framing, got, want)
		}
	}
}
