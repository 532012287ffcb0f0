package profile_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"

	"holdfast/adapters/modbus"
	"holdfast/adapters/modbus/profile"
)

// registers are those that a device has, from 0.
type registers map[int]uint16

// put writes models one behind the other and returns where they end.
func (r registers) put(at int, words ...uint16) int {
	for i, w := range words {
		r[at+i] = w
	}
	return at + len(words)
}

func (r registers) mark(at int) int { return r.put(at, 0x5375, 0x6e53) }

// model writes a model whose registers are all n.
func (r registers) model(at, id, length int, n uint16) int {
	at = r.put(at, uint16(id), uint16(length))
	for range length {
		at = r.put(at, n)
	}
	return at
}

// walk answers a discovery from these registers; silent ones are not answered.
func walk(t testing.TB, s profile.SunSpec, r registers, silent func(addr int) bool) (modbus.Discovered, error) {
	t.Helper()
	d := s.Discover(modbus.MaxReadRegisters)
	for range 300 {
		addr, count := d.Next()
		if count == 0 {
			return d.Result()
		}
		if count > modbus.MaxReadRegisters || int(addr)+int(count) > 1<<16 {
			t.Fatalf("Next = %d, %d", addr, count)
		}
		var data []byte
		var err error
		for i := range int(count) {
			w, ok := r[int(addr)+i]
			if !ok {
				err = &modbus.ExceptionError{Function: modbus.ReadHoldingRegisters, Code: modbus.IllegalDataAddress}
			}
			data = binary.BigEndian.AppendUint16(data, w)
		}
		if silent != nil && silent(int(addr)) {
			err = modbus.ErrNoAnswer
		}
		if err != nil {
			data = nil
		}
		d.Answer(data, err)
	}
	t.Fatal("the walk does not end")
	panic("unreachable")
}

func TestSunSpecWalk(t *testing.T) {
	const end = 0xffff
	for name, c := range map[string]struct {
		build  func(r registers)
		silent func(addr int) bool
		about  string
		points []string // among those found
		not    []string // not among them
		notes  []string // parts of them
		err    string
	}{
		"an inverter with two inputs": {
			build: func(r registers) {
				at := r.model(r.mark(40000), 1, 66, 0x4141)
				at = r.model(at, 103, 50, 1)
				at = r.model(at, 120, 26, 1)
				at = r.model(at, 160, 8+2*20, 1)
				r.put(at, end, 0)
			},
			about:  "SunSpec models 1, 103, 120, 160",
			points: []string{"inverter_power=holding:40084/40085", "inverter_energy=holding:40094/40096", "mppt1_power=holding:40171/40154", "mppt2_energy=holding:40192/40155", "mppt_events=holding:40156/"},
			not:    []string{"nameplate_power", "serial", "inverter_voltage_l1_l2"},
		},
		"a meter at 0": {
			build: func(r registers) {
				r.put(r.model(r.model(r.mark(0), 1, 65, 1), 203, 105, 1), end, 0)
			},
			about:  "SunSpec models 1, 203",
			points: []string{"meter_power=holding:87/91", "meter_energy_import=holding:115/123"},
		},
		"two meters behind models nobody reads, at 50000, the other places silent": {
			build: func(r registers) {
				at := r.model(r.mark(50000), 1, 66, 1)
				at = r.model(at, 64999, 300, 1)
				at = r.model(at, 213, 124, 1)
				at = r.model(at, 201, 105, 1)
				at = r.model(at, 1, 66, 1)
				at = r.model(at, 204, 105, 1)
				r.put(at, end, 0)
			},
			silent: func(addr int) bool { return addr < 50000 },
			about:  "SunSpec models 1, 64999, 213, 201, 1, 204",
			points: []string{"meter_power=", "meter2_power="},
		},
		"floats and a battery": {
			build: func(r registers) {
				at := r.model(r.mark(40000), 1, 66, 1)
				at = r.model(at, 112, 60, 1)
				at = r.model(at, 801, 1, 1)
				at = r.model(at, 802, 62, 1)
				r.put(at, end, 0)
			},
			about:  "SunSpec models 1, 112, 801, 802",
			points: []string{"inverter_power=holding:40092/", "battery_soc=", "battery_power="},
		},
		"more inputs than one request holds": {
			build: func(r registers) {
				r.put(r.model(r.model(r.mark(40000), 1, 66, 1), 160, 8+7*20, 1), end, 0)
			},
			about:  "SunSpec models 1, 160",
			points: []string{"mppt6_energy="},
			not:    []string{"mppt7_energy"},
			notes:  []string{"mppt7_power is not read: it and its scale factor do not fit one request"},
		},
		"a wrong length": {
			build: func(r registers) {
				at := r.model(r.mark(40000), 1, 66, 1)
				at = r.model(at, 103, 49, 1)
				r.put(r.model(at, 203, 105, 1), end, 0)
			},
			about: "SunSpec models 1, 103, 203", points: []string{"meter_power="}, not: []string{"inverter_power"},
			notes: []string{"model 103 has 49 registers, not 50: it is not read"},
		},
		"half an input": {
			build: func(r registers) {
				at := r.model(r.mark(40000), 1, 66, 1)
				r.put(r.model(r.model(at, 160, 30, 1), 101, 50, 1), end, 0)
			},
			about: "SunSpec models 1, 160, 101", points: []string{"inverter_power="}, not: []string{"mppt1_power"},
			notes: []string{"model 160 has 30 registers, not 8 and a multiple of 20: it is not read"},
		},
		"no end": {
			build: func(r registers) { r.model(r.model(r.mark(40000), 1, 66, 1), 103, 50, 1) },
			about: "SunSpec models 1, 103", points: []string{"inverter_power="},
			notes: []string{"the list of models has no end at 40122: read holding registers: exception 2"},
		},
		"zeros behind the models": {
			build: func(r registers) {
				r.model(r.model(r.model(r.mark(40000), 1, 66, 1), 103, 50, 1), 0, 10, 0)
			},
			about: "SunSpec models 1, 103", points: []string{"inverter_power="},
			notes: []string{"the list of models breaks off at 40122: model 0 of 10 registers"},
		},
		"a circle": {
			build: func(r registers) {
				at := r.model(r.mark(0), 1, 66, 1)
				for range 100 {
					at = r.model(at, 103, 50, 1)
				}
			},
			about: "SunSpec models 1" + strings.Repeat(", 103", 63), points: []string{"inverter_power=", "inverter63_power="},
			notes: []string{"the list of models has no end within 64 models"},
		},
		"nothing but model 1": {
			build: func(r registers) { r.put(r.model(r.mark(40000), 1, 66, 1), end, 0) },
			err:   "the device has SunSpec models 1, and none of their points is to be read",
		},
		"no SunS": {
			build: func(r registers) { r.put(0, 1, 2) },
			err:   "no SunSpec device: where it should say SunS there is at 40000 read holding registers: exception 2 (illegal data address), at 0 something else, at 50000 read",
		},
		"silence": {
			build:  func(registers) {},
			silent: func(int) bool { return true },
			err:    "at 40000 no answer, at 0 no answer, at 50000 no answer",
		},
		"silence in the middle is no end": {
			build:  func(r registers) { r.model(r.model(r.mark(40000), 1, 66, 1), 103, 50, 1) },
			silent: func(addr int) bool { return addr == 40122 },
			err:    "the model at 40122 cannot be read: no answer",
		},
		"model 1 is not the first": {
			build: func(r registers) { r.model(r.mark(40000), 103, 50, 1) },
			err:   "the first model is 103, not 1",
		},
		"model 1 of another length": {
			build: func(r registers) { r.model(r.mark(40000), 1, 60, 1) },
			err:   "model 1 has 60 registers, not 66 or 65",
		},
		"past the last register": {
			build: func(r registers) { r.put(r.model(r.mark(50000), 1, 66, 1), 64000, 65000) },
			err:   "none of their points",
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := registers{}
			c.build(r)
			got, err := walk(t, profile.SunSpec{}, r, c.silent)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("error %v, want %s", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got.About != c.about {
				t.Errorf("About = %q, want %q", got.About, c.about)
			}
			var all []string
			for _, p := range got.Points {
				all = append(all, fmt.Sprintf("%s=%s/%s", p.Name, p.Register, strings.TrimPrefix(p.ScaleRegister, "holding:")))
			}
			text := "\n" + strings.Join(all, "\n") + "\n"
			for _, want := range c.points {
				if !strings.Contains(text, "\n"+want) {
					t.Errorf("no point %q among %s", want, text)
				}
			}
			for _, not := range c.not {
				if strings.Contains(text, "\n"+not+"=") {
					t.Errorf("there is a point %q", not)
				}
			}
			notes := strings.Join(got.Notes, "\n")
			for _, want := range c.notes {
				if !strings.Contains(notes, want) {
					t.Errorf("notes %q, want %q", notes, want)
				}
			}
			if len(c.notes) == 0 && len(got.Notes) > 0 {
				t.Errorf("notes %q", notes)
			}
			compiles(t, got.Points)
		})
	}
}

// compiles checks that the bus takes the points.
func compiles(t testing.TB, points []modbus.Point) {
	t.Helper()
	d := modbus.DefaultDevice()
	d.Name, d.Unit, d.Points, d.MaxGap = "d", 1, points, new(124)
	if err := d.Validate(); err != nil {
		t.Fatal(err)
	}
}

func TestSunSpecChoosesPoints(t *testing.T) {
	r := registers{}
	r.put(r.model(r.model(r.mark(40000), 1, 66, 1), 103, 50, 1), 0xffff, 0)
	got, err := walk(t, profile.SunSpec{Points: []string{"serial", "inverter_temperature*", "meter_*"}}, r, nil)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range got.Points {
		names = append(names, p.Name)
	}
	if want := "serial inverter_temperature inverter_temperature_sink inverter_temperature_transformer inverter_temperature_other"; strings.Join(names, " ") != want {
		t.Errorf("points %v, want %s", names, want)
	}
	if len(got.Notes) != 1 || !strings.Contains(got.Notes[0], `"meter_*" matches none of the points`) {
		t.Errorf("notes %q", got.Notes)
	}
	if got.Same.Addr != 40004 || len(got.Same.Data) != 128 {
		t.Errorf("Same = %d, %d bytes", got.Same.Addr, len(got.Same.Data))
	}
}

// Whatever a device says, the walk ends, and its points are such as the bus takes.
func FuzzSunSpecWalk(f *testing.F) {
	good := registers{}
	good.put(good.model(good.model(good.model(good.mark(0), 1, 66, 1), 103, 50, 1), 160, 48, 1), 0xffff, 0)
	var seed []byte
	for i := range 300 {
		seed = binary.BigEndian.AppendUint16(seed, good[i])
	}
	f.Add(seed, uint16(0), uint8(0))
	f.Add(seed, uint16(40000), uint8(3))
	f.Add([]byte("SunS\x00\x01\x00B"), uint16(50000), uint8(9))
	f.Fuzz(func(t *testing.T, data []byte, base uint16, trouble uint8) {
		s := profile.SunSpec{}
		d := s.Discover(modbus.MaxReadRegisters)
		for step := 0; ; step++ {
			addr, count := d.Next()
			if count == 0 {
				break
			}
			if step > 200 || count > modbus.MaxReadRegisters || int(addr)+int(count) > 1<<16 {
				t.Fatalf("step %d reads %d from %d", step, count, addr)
			}
			at := (int(addr) - int(base)) * 2
			switch {
			case trouble != 0 && step == int(trouble):
				d.Answer(nil, errors.New("trouble"))
			case at < 0 || at+2*int(count) > len(data):
				d.Answer(nil, &modbus.ExceptionError{Function: modbus.ReadHoldingRegisters, Code: modbus.IllegalDataAddress})
			default:
				d.Answer(data[at:at+2*int(count)], nil)
			}
		}
		found, err := d.Result()
		if err != nil {
			return
		}
		compiles(t, found.Points)
	})
}
