package modbus

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/adapters"
	"holdfast/adapters/modbus/modbustest"
	"holdfast/broker/message"
)

// panel gives commands to the bus of a rig and gets their results.
type panel struct {
	tb      testing.TB
	rig     *rig
	handler func(adapters.Command)
	stop    func()

	mu      sync.Mutex
	results []adapters.Result // guarded by mu
}

// Subscribe is adapters.Commands.
func (p *panel) Subscribe(filters []string, handler func(adapters.Command)) (cancel func(), err error) {
	if want := []string{"sensors/m/+/set"}; !slices.Equal(filters, want) {
		p.tb.Errorf("subscribed to %q, want %q", filters, want)
	}
	p.handler = handler
	return func() {}, nil
}

// newPanel starts the bus with one device, m, whose commands the panel gives.
func newPanel(tb testing.TB, d Device) *panel {
	tb.Helper()
	p := &panel{tb: tb, rig: newRig(tb, options(d))}
	p.rig.onMessage = func(m *message.Message) {
		if !strings.HasSuffix(m.Topic, "/result") {
			return
		}
		var r adapters.Result
		if err := json.Unmarshal(m.Payload, &r); err != nil {
			tb.Errorf("result %s: %v", m.Payload, err)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.results = append(p.results, r)
	}
	stop, err := p.rig.bus.TakeCommands(p)
	if err != nil {
		tb.Fatal(err)
	}
	p.stop = stop
	p.rig.start()
	p.rig.after(time.Second)
	return p
}

func (p *panel) end() {
	p.stop()
	_ = p.rig.stop()
}

// set gives a command.
func (p *panel) set(point, payload string, change ...func(*adapters.Command)) {
	c := adapters.Command{
		Topic: "sensors/m/" + point + "/set", Payload: []byte(payload), QoS: 1, Received: time.Now(),
		AnswerTopic: "sensors/m/" + point + "/set/result",
	}
	for _, f := range change {
		f(&c)
	}
	p.handler(c)
}

// say returns the results so far, each as "result value read reason".
func (p *panel) say() []string {
	synctest.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []string
	for _, r := range p.results {
		out = append(out, strings.TrimSpace(fmt.Sprintln(r.Outcome, r.Value, r.Read, r.Reason)))
	}
	p.results = nil
	return out
}

// expect lets time pass and compares what was said.
func (p *panel) expect(within time.Duration, want ...string) {
	p.tb.Helper()
	p.rig.after(within)
	if got := p.say(); !slices.Equal(got, want) {
		p.tb.Errorf("results %q, want %q", got, want)
	}
}

// thermostat has a point of each kind of register that can be written.
func thermostat() Device {
	d := DefaultDevice()
	d.Name, d.Unit, d.Every = "m", 1, time.Minute
	d.Points = []Point{
		{Name: "setpoint", Register: "holding:0", Scale: 0.1, Write: true, Min: new(5.0), Max: new(30.0)},
		{Name: "curve", Register: "holding:1", Type: "float32", Write: true},
		{Name: "fan", Register: "holding:3.2", Write: true},
		{Name: "mode", Register: "holding:4", Write: true, WriteFunction: 16},
		{Name: "pump", Register: "coil:0", Write: true},
		{Name: "valve", Register: "coil:1", Write: true, WriteFunction: 15},
		{Name: "blind", Register: "holding:5", Write: true, Verify: VerifyNone},
		{Name: "temperature", Register: "holding:6"},
	}
	return d
}

func plant(p *panel) *modbustest.Unit {
	u := p.rig.slave.Unit(1)
	u.SetHolding(0, 200, 0, 0, 0xfff0, 1, 0, 0)
	u.SetCoil(0, false, false)
	return u
}

func TestWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, thermostat())
		u := plant(p)
		var functions []byte
		u.OnWrite(func(r modbustest.Request) { functions = append(functions, r.Function) })
		p.rig.after(2 * time.Minute)
		p.set("setpoint", "21.5")
		p.set("curve", `{"value": 1.25, "id": "x"}`)
		p.set("fan", "on")
		p.set("mode", "3")
		p.set("pump", "true")
		p.set("valve", "ON")
		p.set("blind", "9")
		p.expect(3*time.Second,
			"ok 21.5 21.5", "ok 1.25 1.25", "ok true true", "ok 3 3", "ok true true", "ok true true", "ok 9 <nil>")
		if u.Holding(0) != 215 || u.Holding(1) != 0x3fa0 || u.Holding(2) != 0 || u.Holding(3) != 0xfff4 || u.Holding(4) != 3 || !u.Coil(0) || !u.Coil(1) || u.Holding(5) != 9 {
			t.Errorf("the plant has %d %#x %#x %#x %d %v %v %d", u.Holding(0), u.Holding(1), u.Holding(2), u.Holding(3), u.Holding(4), u.Coil(0), u.Coil(1), u.Holding(5))
		}
		if want := []byte{6, 16, 22, 16, 5, 15, 6}; !slices.Equal(functions, want) {
			t.Errorf("written by functions %d, want %d", functions, want)
		}
		// What was written is read soon, long before the next minute.
		if got := p.rig.of("setpoint"); got[len(got)-1] != "21.5 good" {
			t.Errorf("readings of the setpoint: %q", got)
		}
		p.end()
	})
}

// Nothing goes on the wire that is not wanted, or too late.
func TestRefusedWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, thermostat())
		u := plant(p)
		p.rig.after(2 * time.Minute)
		u.OnWrite(func(r modbustest.Request) { t.Errorf("function %d was carried out", r.Function) })
		p.set("setpoint", "31")
		p.set("setpoint", "warm")
		p.set("setpoint", `{"valeu": 3}`)
		p.set("setpoint", "")
		p.set("temperature", "3")
		p.set("nothing", "3")
		p.set("setpoint", "20", func(c *adapters.Command) { c.Retain = true })
		p.set("setpoint", "", func(c *adapters.Command) { c.Retain = true })
		p.set("setpoint", "20", func(c *adapters.Command) { c.Received = c.Received.Add(-11 * time.Second) })
		p.set("setpoint", "20", func(c *adapters.Command) { c.HasExpiry, c.Expiry = true, 0 })
		p.expect(time.Second,
			"refused <nil> <nil> the value is above max, 30",
			"refused <nil> <nil> the value is not a number",
			`refused <nil> <nil> the payload is neither a value nor {"value": ..., "id": ...}`,
			"refused <nil> <nil> the payload is empty",
			"refused <nil> <nil> the point is not writable",
			"refused <nil> <nil> there is no such point",
			"refused <nil> <nil> "+adapters.StaleRetained,
			"refused <nil> <nil> too old",
			"refused <nil> <nil> expired",
		)
		p.end()
		if st := p.rig.bus.Status().Commands; st.Received != 9 || st.Refused != 9 || st.Stale != 3 {
			t.Errorf("status %+v, want 9 received and refused, 3 of them stale", st)
		}
	})
}

// A command that comes twice, with an id, is done once and answered twice.
func TestRepeatedCommandsAreDoneOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, thermostat())
		u := plant(p)
		n := 0
		u.OnWrite(func(modbustest.Request) { n++ })
		p.rig.after(2 * time.Minute)
		for range 3 {
			p.set("mode", `{"value":3,"id":"job 7"}`)
			p.rig.after(time.Second)
			p.set("mode", "4", func(c *adapters.Command) { c.Correlation = []byte{1, 2, 3} })
			p.rig.after(time.Second)
		}
		if got := p.say(); len(got) != 6 || n != 2 {
			t.Errorf("%d writes, %q", n, got)
		}
		p.end()
		if st := p.rig.bus.Status().Commands; st.Repeated != 4 || st.OK != 2 {
			t.Errorf("status %+v, want 4 repeated, 2 ok", st)
		}
	})
}

func TestWhatAWriteCanComeTo(t *testing.T) {
	tests := map[string]struct {
		point string
		on    func(u *modbustest.Unit, r *rig)
		want  string
	}{
		"refused by the device": {"mode", func(u *modbustest.Unit, _ *rig) {
			u.FaultFunc(func(r modbustest.Request) modbustest.Fault {
				if r.Function == 16 {
					return modbustest.Fault{Exception: 3}
				}
				return modbustest.Fault{}
			})
		}, "failed 3 <nil> exception 3 (illegal data value)"},
		"taken and changed": {"mode", func(u *modbustest.Unit, _ *rig) {
			u.OnWrite(func(modbustest.Request) { u.SetHolding(4, 7) })
		}, "mismatch 3 7 the device has another value"},
		"done, but the answer is lost": {"mode", func(u *modbustest.Unit, _ *rig) {
			u.FaultFunc(func(r modbustest.Request) modbustest.Fault {
				return modbustest.Fault{Rewrite: func(b []byte) []byte {
					if r.Function == 16 {
						return nil
					}
					return b
				}}
			})
		}, "ok 3 3 no answer, but the value is there"},
		"not done, and no answer": {"mode", func(u *modbustest.Unit, _ *rig) {
			u.FaultFunc(func(r modbustest.Request) modbustest.Fault { return modbustest.Fault{Silent: r.Function == 16} })
		}, "no_answer 3 1 no answer"},
		"silent from then on": {"mode", func(u *modbustest.Unit, _ *rig) {
			u.Fault(modbustest.Fault{Silent: true}, -1)
		}, "no_answer 3 <nil> no answer"},
		"garbled answer": {"mode", func(u *modbustest.Unit, _ *rig) {
			u.FaultFunc(func(r modbustest.Request) modbustest.Fault { return modbustest.Fault{CorruptCRC: r.Function == 16} })
		}, "ok 3 3 garbled answer, but the value is there"},
		"a bit, without function 22": {"fan", func(u *modbustest.Unit, _ *rig) {
			u.FaultFunc(func(r modbustest.Request) modbustest.Fault {
				if r.Function == 22 {
					return modbustest.Fault{Exception: 1}
				}
				return modbustest.Fault{}
			})
		}, "ok true true"},
		"without verification": {"blind", func(u *modbustest.Unit, _ *rig) {
			u.OnWrite(func(modbustest.Request) { u.SetHolding(5, 7) })
		}, "ok 3 <nil>"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPanel(t, thermostat())
				u := plant(p)
				p.rig.after(2 * time.Minute)
				tt.on(u, p.rig)
				value := "3"
				if tt.point == "fan" {
					value = "1"
				}
				p.set(tt.point, value)
				p.expect(15*time.Second, tt.want)
				if tt.point == "fan" && u.Holding(3) != 0xfff4 {
					t.Errorf("the register is %#x, want 0xfff4", u.Holding(3))
				}
				p.end()
			})
		})
	}
}

// A unit that is down, a port that is not there: the write fails at once, and is
// never made later.
func TestWritesAreNotMadeLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, thermostat())
		u := plant(p)
		p.rig.after(2 * time.Minute)
		written := 0
		u.OnWrite(func(modbustest.Request) { written++ })
		// Unplugged while a command is on the wire and others wait.
		p.rig.slave.SetMute(true)
		for i := range 3 {
			p.set("mode", fmt.Sprint(10+i))
		}
		synctest.Wait()
		p.rig.mu.Lock()
		p.rig.broken = errLineGone
		far := p.rig.far
		p.rig.mu.Unlock()
		_ = far.Close()
		synctest.Wait()
		<-p.rig.ended
		done := written // a request on the wire may be carried out
		p.expect(0,
			"no_answer 10 <nil> the line was lost before the answer came",
			"failed 11 <nil> the line is not open", "failed 12 <nil> the line is not open")
		p.set("mode", "13")
		p.expect(0, "failed 13 <nil> the line is not open")
		// Back again.
		p.rig.mu.Lock()
		p.rig.broken = nil
		p.rig.mu.Unlock()
		p.rig.slave.SetMute(false)
		p.rig.start()
		p.rig.after(10 * time.Minute)
		if written != done || done > 1 {
			t.Errorf("%d writes, %d of them after the line was back", written, written-done)
		}
		// Down.
		u.Fault(modbustest.Fault{Silent: true}, -1)
		p.rig.after(3 * time.Minute)
		if st := p.rig.unit().State; st != UnitDown {
			t.Fatalf("unit is %v", st)
		}
		p.set("mode", "14")
		p.expect(0, "failed 14 <nil> the unit is down")
		u.Fault(modbustest.Fault{}, 0)
		p.rig.after(10 * time.Minute)
		if written != done {
			t.Errorf("%d writes after the unit was up", written-done)
		}
		p.end()
	})
}

// What the bus has no time for before it is too old is not done, and too many at
// once fail.
func TestCommandsGrowOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := thermostat()
		d.WriteMaxAge, d.Timeout = 5*time.Second, 4*time.Second
		p := newPanel(t, d)
		u := plant(p)
		p.rig.after(2 * time.Minute)
		var written []uint16
		u.OnWrite(func(modbustest.Request) { written = append(written, u.Holding(5)) })
		u.Fault(modbustest.Fault{Delay: 2 * time.Second}, -1)
		for i := range 2 + maxOrders {
			p.set("blind", fmt.Sprint(1+i))
			synctest.Wait()
		}
		p.rig.after(20 * time.Second)
		got := p.say()
		p.end()
		if len(got) != 2+maxOrders || got[0] != "failed 18 <nil> too many commands wait for the device" {
			t.Errorf("results %q", got)
		}
		if want := []uint16{1, 2, 3}; !slices.Equal(written, want) {
			t.Errorf("written %d, want %d", written, want)
		}
		if last := got[len(got)-1]; last != "failed 17 <nil> too old" {
			t.Errorf("the last is %q", last)
		}
	})
}

// Commands of one device are carried out in their order.
func TestCommandsKeepTheirOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, thermostat())
		u := plant(p)
		p.rig.after(2 * time.Minute)
		var got []uint16
		u.OnWrite(func(modbustest.Request) { got = append(got, u.Holding(4)) })
		var want []uint16
		for i := range 10 {
			p.set("mode", fmt.Sprint(i))
			want = append(want, uint16(i))
		}
		p.rig.after(5 * time.Second)
		p.end()
		if !slices.Equal(got, want) {
			t.Errorf("written %d, want %d", got, want)
		}
	})
}
