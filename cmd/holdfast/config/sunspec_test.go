package config

import (
	"context"
	"encoding/json"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/adapters/health"
	"holdfast/adapters/modbus"
	"holdfast/adapters/modbus/modbustest"
	"holdfast/adapters/reading"
	"holdfast/broker/message"
)

// sunSpec is a device with models, as a slave's registers.
type sunSpec struct {
	unit *modbustest.Unit
	at   uint16
}

func newSunSpec(unit *modbustest.Unit, base uint16, serial string) *sunSpec {
	s := &sunSpec{unit, base}
	s.put(0x5375, 0x6e53)
	s.put(1, 66)
	text := func(s string, n int) (words []uint16) {
		b := append([]byte(s), make([]byte, 2*n)...)
		for i := range n {
			words = append(words, uint16(b[2*i])<<8|uint16(b[2*i+1]))
		}
		return words
	}
	s.put(text("Maker", 16)...)
	s.put(text("Model", 16)...)
	s.put(text("", 8)...)
	s.put(text("1.0", 8)...)
	s.put(text(serial, 16)...)
	s.put(1, 0x8000)
	return s
}

func (s *sunSpec) put(words ...uint16) {
	s.unit.SetHolding(s.at, words...)
	s.at += uint16(len(words))
}

// model adds one whose registers are not implemented but for these.
func (s *sunSpec) model(id, length uint16, words map[int]uint16) {
	s.put(id, length)
	for i := range int(length) {
		w, ok := words[i]
		if !ok {
			w = 0x8000
		}
		s.put(w)
	}
}

func (s *sunSpec) end() { s.put(0xffff, 0) }

// Values of model 103 and 160, not taken from a device: none with all of them
// implemented is published. The layout is that of SolarEdge's and Fronius's
// documents.
func (s *sunSpec) inverter() {
	s.model(103, 50, map[int]uint16{
		0: 1234, 1: 411, 2: 412, 3: 411, 4: 0xfffe, // 12.34 A
		5: 0xffff, 6: 0xffff, 7: 0xffff, 8: 2301, 9: 2302, 10: 2303, 11: 0xffff, // 230.1 V
		12: 8500, 13: 0, 14: 5001, 15: 0xfffe, // W, Hz
		16: 851, 17: 1, 18: 0xff9c, 19: 0, // 8510 VA, -100 var
		20: 0x8000, 21: 0, 22: 0x0012, 23: 0xd687, 24: 0, // PF not implemented, 1234567 Wh
		25: 0xffff, 26: 0x8000, 27: 7123, 28: 0xffff, 29: 8700, 30: 0,
		31: 0xfff6, 35: 0, 36: 4, 38: 0, 39: 2,
	})
	s.model(160, 48, map[int]uint16{
		0: 0xfffe, 1: 0xffff, 2: 0, 3: 1, 4: 0, 5: 0, 6: 2, 7: 0xffff,
		8 + 9: 500, 8 + 10: 7000, 8 + 11: 3500, 8 + 12: 0, 8 + 13: 99, 8 + 16: 40,
		28 + 9: 0xffff, 28 + 10: 0xffff, 28 + 11: 0xffff, 28 + 12: 0, 28 + 13: 0, 28 + 16: 0x8000,
	})
}

// values are the latest readings, by point; each change is announced.
type values struct {
	mu   sync.Mutex
	last map[string]string // guarded by mu
}

// PutMessage is for answers to commands: there are none.
func (*values) PutMessage(string, *message.Message) {}

func (v *values) Put(_ string, _ byte, rs ...reading.Reading) {
	for i := range rs {
		var r struct {
			Value json.RawMessage
		}
		_ = json.Unmarshal(rs[i].AppendJSON(nil), &r)
		v.mu.Lock()
		v.last[rs[i].Point] = string(r.Value)
		v.mu.Unlock()
	}
}

func (v *values) get(point string) string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.last[point]
}

// runSunSpec polls the slave's unit 7 with profile = "sunspec" on a fake clock
// and calls check.
func runSunSpec(t *testing.T, keys string, slave *modbustest.Slave, check func(bus *modbus.Bus, v *values), onDevices ...func()) {
	t.Helper()
	root, err := parse("h.toml", []byte("[port.p]\ndevice='/dev/x'\n[device.d]\nadapter='modbus'\nport='p'\nunit=7\nprofile='sunspec'\n"+keys))
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := decodeConfig(root)
	if err != nil {
		t.Fatal(err)
	}
	dev := *cfg.Devices["d"].Modbus
	dev.Name = "d"
	synctest.Test(t, func(t *testing.T) {
		const char = 1146 * time.Microsecond
		master, far := modbustest.NewLine(char)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		defer wg.Wait()
		defer cancel()
		wg.Go(func() { _ = slave.Serve(ctx, far) })
		opts := modbus.DefaultOptions()
		opts.CharTime, opts.Devices = char, []modbus.Device{dev}
		for _, fn := range onDevices {
			opts.OnDevices = fn
		}
		v := &values{last: map[string]string{}}
		bus, err := modbus.New("p", opts, end{master}, v, health.NewMonitor(func(health.Change) {}), slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() { _ = bus.Run(ctx) })
		check(bus, v)
	})
}

// wait lets the fake clock run.
func wait(d time.Duration) { <-time.After(d) }

func TestSunSpecDeviceIsPolledByWhatItSays(t *testing.T) {
	slave := modbustest.New(modbustest.Options{})
	s := newSunSpec(slave.Unit(7), 40000, "A1")
	s.inverter()
	s.end()
	runSunSpec(t, "", slave, func(bus *modbus.Bus, v *values) {
		wait(20 * time.Second)
		for point, want := range map[string]string{
			"inverter_current": "12.34", "inverter_voltage_l1": "230.1", "inverter_power": "8500", "inverter_frequency": "50.01",
			"inverter_apparent_power": "8510", "inverter_reactive_power": "-100", "inverter_power_factor": "null",
			"inverter_energy": "1234567", "inverter_dc_current": "null", "inverter_dc_voltage": "712.3", "inverter_temperature": "-10",
			"inverter_state": "4", "inverter_events": "2",
			"mppt1_current": "5", "mppt1_voltage": "700", "mppt1_power": "3500", "mppt1_energy": "990", "mppt1_temperature": "40",
			"mppt2_current": "null", "mppt2_power": "null", "mppt2_energy": "null",
		} {
			if got := v.get(point); got != want {
				t.Errorf("%s = %s, want %s", point, got, want)
			}
		}
		if got := v.get("inverter_temperature_sink"); got != "" {
			t.Errorf("a detail was read: %s", got)
		}
		described := bus.Status().Described
		if len(described) != 1 || described[0].About != "SunSpec models 1, 103, 160" || described[0].Points == 0 || described[0].LastError != "" {
			t.Errorf("Described = %+v", described)
		}
		var power string
		for _, p := range bus.Devices()[0].Points {
			if p.Name == "inverter_power" {
				power = p.Unit + " " + p.DeviceClass + " " + p.StateClass
			}
		}
		if power != "W power measurement" {
			t.Errorf("inverter_power is described as %q", power)
		}
		// What does not change is not found out again.
		before := slave.Stats().Requests
		wait(time.Minute)
		if n := slave.Stats().Requests - before; n > 3*13 {
			t.Errorf("%d requests a minute for three blocks every 5 s", n)
		}
	})
}

// A scale factor that changes while the device runs is that of its moment.
func TestSunSpecScaleFactorsMayChange(t *testing.T) {
	slave := modbustest.New(modbustest.Options{})
	s := newSunSpec(slave.Unit(7), 40000, "A1")
	s.inverter()
	s.end()
	runSunSpec(t, "points=['inverter_power']\n", slave, func(_ *modbus.Bus, v *values) {
		wait(20 * time.Second)
		slave.Unit(7).SetHolding(40084, 850, 1)
		wait(10 * time.Second)
		if got := v.get("inverter_power"); got != "8500" {
			t.Errorf("inverter_power = %s, want 8500", got)
		}
	})
}

// Another device at the same address is found out about before anything is read
// of it as if it were the first.
func TestSunSpecDeviceIsReplaced(t *testing.T) {
	slave := modbustest.New(modbustest.Options{})
	unit := slave.Unit(7)
	s := newSunSpec(unit, 40000, "A1")
	s.inverter()
	s.end()
	runSunSpec(t, "timeout='200ms'\n", slave, func(bus *modbus.Bus, v *values) {
		wait(20 * time.Second)
		if got := v.get("inverter_power"); got != "8500" {
			t.Fatalf("inverter_power = %s", got)
		}
		slave.SetMute(true)
		wait(10 * time.Second)
		unit.Unset(modbustest.Holding, 40000, 400)
		// The same register that was a power is something else now.
		other := newSunSpec(unit, 40000, "B2")
		other.model(203, 105, map[int]uint16{12: 4711, 13: 0, 16: 42, 20: 0})
		other.end()
		v.mu.Lock()
		clear(v.last)
		v.mu.Unlock()
		slave.SetMute(false)
		wait(2 * time.Minute)
		if got := v.get("inverter_power"); got != "" && got != "null" {
			t.Errorf("inverter_power = %s, of a device that has none", got)
		}
		if got := v.get("meter_power"); got != "42" {
			t.Errorf("meter_power = %s, want 42", got)
		}
		if about := bus.Status().Described[0].About; about != "SunSpec models 1, 203" {
			t.Errorf("About = %q", about)
		}
	})
}

// The same device, back after a silence, is polled on without a walk.
func TestSunSpecDeviceComesBack(t *testing.T) {
	slave := modbustest.New(modbustest.Options{})
	s := newSunSpec(slave.Unit(7), 40000, "A1")
	s.inverter()
	s.end()
	var asked []uint16 // where each read began, while not muted
	var mu sync.Mutex
	slave.Unit(7).OnRead(func(r modbustest.Request) {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, r.Addr)
	})
	runSunSpec(t, "timeout='200ms'\n", slave, func(_ *modbus.Bus, v *values) {
		wait(20 * time.Second)
		slave.SetMute(true)
		wait(10 * time.Second)
		mu.Lock()
		asked = nil
		mu.Unlock()
		slave.Unit(7).SetHolding(40084, 9000)
		slave.SetMute(false)
		wait(2 * time.Minute)
		if got := v.get("inverter_power"); got != "9000" {
			t.Errorf("inverter_power = %s, want 9000", got)
		}
		mu.Lock()
		defer mu.Unlock()
		if len(asked) < 2 || asked[1] != 40004 {
			t.Errorf("after the probe the device was asked %v, want first whether it is the same", asked[:min(len(asked), 5)])
		}
		for _, addr := range asked {
			if addr == 40000 {
				t.Error("the models were walked again")
			}
		}
	})
}

// The map may be elsewhere, and the device silent where it is not.
func TestSunSpecAtOtherPlaces(t *testing.T) {
	for name, base := range map[string]uint16{"0": 0, "50000": 50000} {
		t.Run(name, func(t *testing.T) {
			slave := modbustest.New(modbustest.Options{})
			unit := slave.Unit(7)
			s := newSunSpec(unit, base, "A1")
			s.inverter()
			s.end()
			unit.FaultFunc(func(r modbustest.Request) modbustest.Fault {
				return modbustest.Fault{Silent: r.Addr < base || r.Addr >= base+1000}
			})
			runSunSpec(t, "timeout='200ms'\n", slave, func(_ *modbus.Bus, v *values) {
				wait(3 * time.Minute)
				if got := v.get("inverter_power"); got != "8500" {
					t.Errorf("inverter_power = %s, want 8500", got)
				}
			})
		})
	}
}

// A device that is none is said to be, and asked again now and then.
func TestSunSpecOfAnotherKindOfDevice(t *testing.T) {
	slave := modbustest.New(modbustest.Options{})
	slave.Unit(7).SetHolding(0, make([]uint16, 200)...)
	runSunSpec(t, "", slave, func(bus *modbus.Bus, v *values) {
		wait(10 * time.Minute)
		s := bus.Status().Described[0]
		if s.About != "" || !strings.Contains(s.LastError, "no SunSpec device: where it should say SunS there is at 40000 read holding registers: exception 2") {
			t.Errorf("Described = %+v", s)
		}
		if n := slave.Stats().Requests; n > 30 {
			t.Errorf("%d requests in ten minutes", n)
		}
		// It was only starting.
		sun := newSunSpec(slave.Unit(7), 40000, "A1")
		sun.inverter()
		sun.end()
		wait(15 * time.Minute)
		if got := v.get("inverter_power"); got != "8500" {
			t.Errorf("inverter_power = %s, want 8500", got)
		}
		if s := bus.Status().Described[0]; s.LastError != "" {
			t.Errorf("LastError = %q", s.LastError)
		}
	})
}

// Who announces devices is told when one has said what it measures.
func TestSunSpecDeviceIsAnnouncedWhenItHasSpoken(t *testing.T) {
	slave := modbustest.New(modbustest.Options{})
	s := newSunSpec(slave.Unit(7), 40000, "A1")
	s.inverter()
	s.end()
	var told atomic.Int32
	runSunSpec(t, "", slave, func(bus *modbus.Bus, _ *values) {
		if d := bus.Devices()[0]; !d.Pending || len(d.Points) != 0 {
			t.Errorf("before: %+v", d)
		}
		wait(time.Minute)
		if n := told.Load(); n != 1 {
			t.Errorf("told %d times, want once", n)
		}
		if d := bus.Devices()[0]; d.Pending || len(d.Points) == 0 {
			t.Errorf("after: %+v", d)
		}
	}, func() { told.Add(1) })
}
