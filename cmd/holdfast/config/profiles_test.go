package config

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/adapters/health"
	"holdfast/adapters/modbus"
	"holdfast/adapters/modbus/modbustest"
	"holdfast/adapters/modbus/profile"
	"holdfast/adapters/reading"
	"holdfast/broker/message"
)

// image is what the registers of a device hold, and what that means.
type image struct {
	registers map[string][]uint16
	values    map[string]string
}

// readImage reads testdata/profiles/MAKER_MODEL.txt: remarks, registers in hex,
// values; an empty line between each.
func readImage(t *testing.T, name string) image {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata/profiles", strings.ReplaceAll(name, "/", "_")+".txt"))
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(strings.TrimSpace(string(data)), "\n\n")
	if len(parts) != 3 || !strings.HasPrefix(parts[0], "# ") {
		t.Fatalf("%s: want a remark, registers and values", name)
	}
	img := image{map[string][]uint16{}, map[string]string{}}
	for line := range strings.SplitSeq(parts[1], "\n") {
		words := strings.Fields(line)
		for _, w := range words[1:] {
			n, err := strconv.ParseUint(w, 16, 16)
			if err != nil {
				t.Fatal(err)
			}
			img.registers[words[0]] = append(img.registers[words[0]], uint16(n))
		}
	}
	for line := range strings.SplitSeq(parts[2], "\n") {
		point, value, _ := strings.Cut(line, " = ")
		img.values[point] = value
	}
	return img
}

func render(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// Each map that is part of the program is complete, names its sources, and reads
// what a device like it would send.
func TestEmbeddedProfiles(t *testing.T) {
	ps := NewProfiles("", false)
	names := profile.Embedded()
	if len(names) < 13 {
		t.Fatalf("there are %d profiles: %v", len(names), names)
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			p, err := ps.Get(name)
			if err != nil {
				t.Fatal(err)
			}
			if len(p.Checked) == 0 {
				t.Error("no second source")
			}
			img := readImage(t, name)
			for _, pt := range p.Points {
				r, n, err := modbus.Extent(pt.Point, p.Order)
				if err != nil {
					t.Fatal(err)
				}
				words := img.registers[r.String()]
				if len(words) != n {
					t.Errorf("%s: the image has %d registers of %v, want %d", pt.Name, len(words), r, n)
					continue
				}
				data, err := hex.DecodeString(fmt.Sprintf(strings.Repeat("%04x", n), anys(words)...))
				if err != nil {
					t.Fatal(err)
				}
				got, reason, err := modbus.Decode(pt.Point, p.Order, data)
				if err != nil || render(got) != img.values[pt.Name] {
					t.Errorf("%s = %s (%s, %v), want %s", pt.Name, render(got), reason, err, img.values[pt.Name])
				}
			}
			for _, choose := range [][]string{nil, {"*"}} {
				d, err := p.Device(choose)
				if err != nil {
					t.Fatal(err)
				}
				requests, err := modbus.Plan(d)
				if err != nil {
					t.Fatal(err)
				}
				for _, r := range requests {
					if limit := d.MaxRegisters; int(r.Count) > limit {
						t.Errorf("%v reads more than %d registers", r, limit)
					}
				}
			}
		})
	}
}

func anys(words []uint16) []any {
	out := make([]any, len(words))
	for i, w := range words {
		out[i] = w
	}
	return out
}

// sink keeps the last reading of each topic, until all that are expected came.
type sink struct {
	mu   sync.Mutex
	last map[string]string // guarded by mu
	want int
	done chan struct{} // closed when want topics have come
}

// PutMessage is for answers to commands: there are none.
func (*sink) PutMessage(string, *message.Message) {}

func (s *sink) Put(prefix string, _ byte, rs ...reading.Reading) {
	for i := range rs {
		s.put(prefix+"/"+rs[i].Device+"/"+rs[i].Point, rs[i].AppendJSON(nil))
	}
}

func (s *sink) put(topic string, payload []byte) {
	var r struct {
		Value json.RawMessage
	}
	_ = json.Unmarshal(payload, &r)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last[topic] = string(r.Value)
	if len(s.last) == s.want {
		select {
		case <-s.done:
		default:
			close(s.done)
		}
	}
}

// end is one end of a pipe as the bus wants its line.
type end struct {
	*modbustest.Line
}

func (e end) Open(context.Context) (modbus.Wire, error) { return e.Line, nil }
func (e end) Wait(context.Context) error                { return nil }

// A slave loaded with the image of a device is polled with its profile from a
// configuration file.
func TestProfilesArePolledEndToEnd(t *testing.T) {
	for _, name := range profile.Embedded() {
		t.Run(name, func(t *testing.T) {
			img := readImage(t, name)
			root, err := parse("h.toml", []byte("[port.p]\ndevice='/dev/x'\n[device.d]\nadapter='modbus'\nport='p'\nunit=7\nprofile='"+name+"'\npoints=['*']\n"))
			if err != nil {
				t.Fatal(err)
			}
			cfg, err := decodeConfig(root)
			if err != nil {
				t.Fatal(err)
			}
			dev := *cfg.Devices["d"].Modbus
			dev.Name, dev.Every = "d", 10*time.Millisecond

			slave := modbustest.New(modbustest.Options{Gap: time.Second})
			unit := slave.Unit(7)
			// Gaps are read along: the device has the registers between.
			for _, r := range planOf(t, &dev) {
				for i := range r.Count {
					if r.Function == modbus.ReadInputRegisters {
						unit.SetInput(r.Addr+i, 0)
					} else {
						unit.SetHolding(r.Addr+i, 0)
					}
				}
			}
			for at, words := range img.registers {
				r, err := modbus.ParseRegister(at)
				if err != nil {
					t.Fatal(err)
				}
				if r.Table == modbus.InputRegisters {
					unit.SetInput(r.Addr, words...)
				} else {
					unit.SetHolding(r.Addr, words...)
				}
			}
			got := poll(t, slave, dev, len(img.values))
			for point, want := range img.values {
				if got["sensors/d/"+point] != want {
					t.Errorf("%s = %s, want %s", point, got["sensors/d/"+point], want)
				}
			}
		})
	}
}

func planOf(t *testing.T, d *modbus.Device) []modbus.Request {
	t.Helper()
	rs, err := modbus.Plan(d)
	if err != nil {
		t.Fatal(err)
	}
	return rs
}

// poll runs a bus with this device against the slave until that many points
// have been read, and returns the values by topic.
func poll(t *testing.T, slave *modbustest.Slave, dev modbus.Device, points int) map[string]string {
	t.Helper()
	master, far := modbustest.NewLine(10 * time.Microsecond)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { _ = slave.Serve(ctx, far) })
	s := &sink{last: map[string]string{}, want: points, done: make(chan struct{})}
	opts := modbus.DefaultOptions()
	opts.CharTime, opts.WarmUp, opts.Devices = 10*time.Microsecond, 0, []modbus.Device{dev}
	bus, err := modbus.New("p", opts, end{master}, s, health.NewMonitor(func(health.Change) {}), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	wg.Go(func() { _ = bus.Run(ctx) })
	select {
	case <-s.done:
	case <-time.After(20 * time.Second):
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

// What a user writes of a device changes what its profile says.
func TestDeviceChangesItsProfile(t *testing.T) {
	root, err := parse("h.toml", []byte(`
[port.p]
device = "/dev/x"
[device.d]
adapter = "modbus"
port = "p"
unit = 1
profile = "eastron/sdm120"
points = ["voltage", "power", "energy_*"]
max_gap = 3
[[device.d.point]]
name = "mine"
register = "holding:5"
[[device.d.point]]
name = "power"
scale = 0.001
unit = "kW"
`))
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := decodeConfig(root)
	if err != nil {
		t.Fatal(err)
	}
	d := cfg.Devices["d"].Modbus
	var names []string
	for _, p := range d.Points {
		names = append(names, p.Name)
	}
	if got, want := strings.Join(names, " "), "mine power voltage energy_import energy_export"; got != want {
		t.Errorf("points %q, want %q", got, want)
	}
	power := d.Points[1]
	if power.Register != "input:12" || power.Type != "float32" || power.Scale != 0.001 || power.Unit != "kW" {
		t.Errorf("power = %+v", power)
	}
	if *d.MaxGap != 3 || d.MaxRegisters != 80 {
		t.Errorf("max_gap %d, max_registers %d", *d.MaxGap, d.MaxRegisters)
	}
}

func TestUsersOwnProfiles(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const head = "title = \"Boiler\"\nsource = \"manual\"\n"
	device := func(name string) string {
		return "[port.p]\ndevice='/dev/x'\n[device.d]\nadapter='modbus'\nport='p'\nunit=1\nprofile='" + name + "'\n"
	}
	load := func() (Config, error) { return Load(filepath.Join(dir, "h.toml")) }

	write("h.toml", device("boiler"))
	if _, err := load(); err == nil || !strings.Contains(err.Error(), `h.toml:7: device.d.profile: there is no profile "boiler"; known here: abb/b23,`) {
		t.Errorf("no such profile: %v", err)
	}
	write("profiles/boiler.toml", head+"point = [{name='t', register='input:1'}]\n")
	cfg, err := load()
	if err != nil || len(cfg.Devices["d"].Modbus.Points) != 1 {
		t.Fatalf("own profile: %v", err)
	}
	// Read again with the configuration: what has changed is another device.
	write("profiles/boiler.toml", head+"point = [{name='t', register='input:1'}, {name='u', register='input:2'}]\n")
	if cfg, err = load(); err != nil || len(cfg.Devices["d"].Modbus.Points) != 2 {
		t.Fatalf("changed profile: %v", err)
	}
	// The user's own goes before the one of the program.
	write("profiles/eastron/sdm120.toml", head+"point = [{name='t', register='input:1'}]\n")
	write("h.toml", device("eastron/sdm120"))
	if cfg, err = load(); err != nil || cfg.Devices["d"].Modbus.Points[0].Name != "t" {
		t.Errorf("own profile of a known name: %v", err)
	}
	for name, c := range map[string]struct{ text, want string }{
		"unknown key":  {head + "point = [\n{name='t', regster='input:1'}]\n", `boiler.toml:4: point[0].regster: unknown key; did you mean "register"?`},
		"wrong unit":   {head + "[[point]]\nname='t'\nregister='input:1'\nunit='KWh'\n", `boiler.toml:6: point[0].unit: "KWh" is none of the units`},
		"bad register": {head + "[[point]]\nname='t'\nregister='imput:1'\n", `boiler.toml:5: point[0].register: "imput:1"`},
		"no points":    {head, `boiler.toml: point: there is no point to read`},
		"no title":     {"source='x'\n[[point]]\nname='t'\nregister='input:1'\n", `title: is missing`},
		"twice":        {head + "point = [{name='t', register='input:1'},\n{name='t', register='input:2'}]\n", `boiler.toml:4: point[1].name: "t" is taken`},
		"a sign":       {head + "point = [{name='t', register='input:1'}]\n[[identify]]\nregister='holding:1'\n", `boiler.toml:5: identify[0].register: needs one of values`},
		"a class":      {head + "point = [{name='t', register='input:1', device_class='heat'}]\n", `boiler.toml:3: point[0].device_class: "heat" is no class`},
		"no TOML":      {"title\n", `boiler.toml:1:`},
	} {
		write("profiles/boiler.toml", c.text)
		write("h.toml", device("boiler"))
		if _, err := load(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %s", name, err, c.want)
		}
	}
	write("h.toml", device("../h"))
	if _, err := load(); err == nil || !strings.Contains(err.Error(), `"../h" is no name of a profile`) {
		t.Errorf("a way out of the folder: %v", err)
	}
	write("h.toml", device("eastron/sdm630")+"points=['powr*']\n")
	if _, err := load(); err == nil || !strings.Contains(err.Error(), `h.toml:8: device.d.points: "powr*" matches no point`) {
		t.Errorf("a pattern that matches nothing: %v", err)
	}
	write("h.toml", "[gateway]\nprofiles='"+dir+"/none'\n"+device("boiler"))
	if _, err := load(); err == nil || !strings.Contains(err.Error(), "there is no profile") {
		t.Errorf("a folder that is not there: %v", err)
	}
}

func TestMatchRecognisesDevices(t *testing.T) {
	all, err := NewProfiles("", false).All()
	if err != nil {
		t.Fatal(err)
	}
	answers := func(name string) profile.Identification {
		img := readImage(t, name)
		id := profile.Identification{Registers: map[profile.Question][]byte{}}
		for _, q := range profile.Questions(all) {
			if words := img.registers[q.Register.String()]; len(words) == q.Count {
				data, err := hex.DecodeString(fmt.Sprintf(strings.Repeat("%04x", q.Count), anys(words)...))
				if err != nil {
					t.Fatal(err)
				}
				id.Registers[q] = data
			}
		}
		return id
	}
	if found := profile.Match(all, answers("eastron/sdm630")); len(found) == 0 || found[0].Profile.Name != "eastron/sdm630" || found[0].Certain {
		t.Errorf("SDM630: %+v", found)
	}
	if found := profile.Match(all, profile.Identification{}); len(found) != 0 {
		t.Errorf("a device that says nothing: %+v", found)
	}
	r, err := modbus.ParseRegister("holding:35168")
	if err != nil {
		t.Fatal(err)
	}
	id := profile.Identification{Registers: map[profile.Question][]byte{{Register: r, Count: 2}: []byte("B23 ")}}
	if found := profile.Match(all, id); len(found) != 1 || found[0].Profile.Name != "abb/b23" || !found[0].Certain {
		t.Errorf("B23: %+v", found)
	}
	id.Registers[profile.Question{Register: r, Count: 2}] = []byte("B99 ")
	if found := profile.Match(all, id); len(found) != 0 {
		t.Errorf("B99: %+v", found)
	}
}

// No file makes the decoder of profiles fail in another way than by an error.
func FuzzProfile(f *testing.F) {
	for _, name := range profile.Embedded() {
		data, _ := profile.Open(name)
		f.Add(data)
	}
	f.Add([]byte("title='a'\nsource='b'\nidentify=[{object=0,text=['x*']}]\n[[point]]\nname='a'\nregister='coil:1'\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := decodeProfile("fuzz.toml", "fuzz", data)
		if err != nil {
			return
		}
		profile.Match([]*profile.Profile{p}, profile.Identification{})
		d, err := p.Device([]string{"*"})
		if err != nil {
			t.Fatalf("a valid profile has no points: %v", err)
		}
		if _, err := modbus.Plan(d); err != nil {
			t.Fatalf("a valid profile cannot be planned: %v", err)
		}
	})
}
