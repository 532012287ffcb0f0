package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"holdfast/adapters"
	"holdfast/adapters/discovery"
	"holdfast/adapters/health"
	"holdfast/adapters/modbus"
	"holdfast/adapters/reading"
	"holdfast/broker/durable"
	"holdfast/broker/message"
	"holdfast/cmd/holdfast/config"
)

func expectTopics(t *testing.T, gw *gateway, filter string, want ...string) {
	t.Helper()
	waitUntil(t, "retained messages "+strings.Join(want, " "), func() bool {
		var topics []string
		for _, m := range gw.g.broker.Retained(filter) {
			topics = append(topics, m.Topic)
		}
		slices.Sort(topics)
		return slices.Equal(topics, want)
	})
}

// puts is how much the gateway had to tell of itself and its devices.
func puts(gw *gateway) (n uint64) {
	for _, d := range gw.g.statuses.Status().Devices {
		n += d.Put
	}
	return n
}

// Devices are announced to Home Assistant while they are configured, and neither
// their announcement nor their status stays when they are not.
func TestDevicesAreAnnouncedAndTakenBack(t *testing.T) {
	const (
		head = "[gateway]\nid = \"gw\"\n[home_assistant]\nenabled = true\nspread = \"0s\"\n[[listener]]\naddress = \"tcp://127.0.0.1:0\"\n"
		port = "[port.bus]\ndevice = \"/dev/nowhere\"\n"
	)
	device := func(name, unit string) string {
		return "[device." + name + "]\nadapter = \"modbus\"\nport = \"bus\"\nunit = " + unit + "\n[[device." + name + ".point]]\nname = \"power\"\nregister = \"holding:1\"\nunit = \"W\"\n"
	}
	file := filepath.Join(t.TempDir(), "h.toml")
	write := func(s string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(head + port + device("one", "1") + device("two", "2"))
	gw := reloadable(t, file)
	t.Cleanup(gw.announced.close)
	data := gw.cfg.Gateway.Data
	reload := func() {
		t.Helper()
		if err := gw.applyReload(t.Context(), t.Context(), func() (config.Config, error) { return loadConfig(file, data, nil) }); err != nil {
			t.Fatal(err)
		}
	}
	const (
		discovery = "homeassistant/device/holdfast_gw/+/config"
		statuses  = "holdfast/gw/device/+/status"
	)
	expectTopics(t, gw, discovery, "homeassistant/device/holdfast_gw/one/config", "homeassistant/device/holdfast_gw/two/config")
	expectTopics(t, gw, statuses, "holdfast/gw/device/one/status", "holdfast/gw/device/two/status")

	// Home Assistant starts: they are announced once more.
	before := puts(gw)
	if err := gw.g.broker.Publish(&message.Message{Topic: "homeassistant/status", Payload: []byte("online"), QoS: 0}, durable.Origin{}, func(error) {}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-gw.announced.births:
	case <-time.After(10 * time.Second):
		t.Fatal("its birth was not heard")
	}
	gw.announced.born()
	<-gw.announced.again
	gw.announce(&gw.cfg, true)
	if n := puts(gw) - before; n < 2 {
		t.Errorf("%d messages after its birth, want 2", n)
	}
	before = puts(gw)
	gw.announce(&gw.cfg, false)
	if n := puts(gw) - before; n != 0 {
		t.Errorf("%d messages though nothing has changed", n)
	}

	// One that says itself what it measures keeps what was announced until it has.
	write(head + port + device("two", "2") + "[device.one]\nadapter = \"modbus\"\nport = \"bus\"\nunit = 1\nprofile = \"sunspec\"\n")
	reload()
	expectTopics(t, gw, discovery, "homeassistant/device/holdfast_gw/one/config", "homeassistant/device/holdfast_gw/two/config")

	write(head + port + device("two", "2"))
	reload()
	expectTopics(t, gw, discovery, "homeassistant/device/holdfast_gw/two/config")
	expectTopics(t, gw, statuses, "holdfast/gw/device/two/status")

	write(strings.Replace(head, "true", "false", 1) + port + device("two", "2"))
	reload()
	expectTopics(t, gw, discovery)
	expectTopics(t, gw, statuses, "holdfast/gw/device/two/status")
}

func TestGatewaysStatusIsThereForLocalClients(t *testing.T) {
	file := filepath.Join(t.TempDir(), "h.toml")
	if err := os.WriteFile(file, []byte("[gateway]\nid = \"gw\"\n[[listener]]\naddress = \"tcp://127.0.0.1:0\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	gw := reloadable(t, file)
	for _, state := range []string{"online", "offline"} {
		gw.tellState(context.Background(), "gw", state, "")
		ms := gw.g.broker.Retained("holdfast/gw/status")
		if len(ms) != 1 || !strings.HasPrefix(string(ms[0].Payload), `{"state":"`+state+`","session":1,"version":`) {
			t.Fatalf("retained: %v", ms)
		}
	}
}

// neverOpen is a line that is never open.
type neverOpen struct{}

func (neverOpen) Open(context.Context) (modbus.Wire, error) { return nil, os.ErrNotExist }
func (neverOpen) Wait(ctx context.Context) error            { <-ctx.Done(); return ctx.Err() }

// host is Home Assistant: it knows of a device what was announced, gives it
// commands, and hears what became of them.
type host struct {
	handler func(adapters.Command)

	mu      sync.Mutex
	results map[string][]adapters.Result // guarded by mu; by point
}

func (h *host) Subscribe(_ []string, handler func(adapters.Command)) (func(), error) {
	h.handler = handler
	return func() {}, nil
}

func (*host) Put(string, byte, ...reading.Reading) {}

func (h *host) PutMessage(_ string, m *message.Message) {
	var r adapters.Result
	if json.Unmarshal(m.Payload, &r) != nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.results[r.Point] = append(h.results[r.Point], r)
}

// announcedEntity is what the host reads of an entity.
type announcedEntity struct {
	Platform        string
	Name            string
	Options         []string
	Min, Max, Step  float64
	CommandTopic    string `json:"command_topic"`
	CommandTemplate string `json:"command_template"`
	PayloadOn       string `json:"payload_on"`
	PayloadOff      string `json:"payload_off"`
}

// publishes are the payloads of the entity, and what each is to mean.
func (e announcedEntity) publishes(t *testing.T) (payloads []string, means []any) {
	t.Helper()
	text := func(s string) {
		means = append(means, s)
		switch e.CommandTemplate {
		case "":
		case `{"value": {{ value | to_json }}}`:
			b, err := json.Marshal(s)
			if err != nil {
				t.Fatal(err)
			}
			s = `{"value": ` + string(b) + `}`
		default:
			t.Fatalf("%s: command_template %s", e.Name, e.CommandTemplate)
		}
		payloads = append(payloads, s)
	}
	switch e.Platform {
	case "switch":
		return []string{e.PayloadOn, e.PayloadOff}, []any{true, false}
	case "select":
		for _, o := range e.Options {
			text(o)
		}
	case "text":
		text("abc")
		text(`{"1`)
		text(strings.Repeat("x", int(e.Max)))
	case "number":
		for _, v := range []float64{e.Min, e.Max, e.Min + e.Step, e.Max - e.Step} {
			v = math.Round(v*1e6) / 1e6 // as the browser does
			payloads, means = append(payloads, strconv.FormatFloat(v, 'f', -1, 64)), append(means, v)
		}
	default:
		if e.CommandTopic != "" {
			t.Errorf("%s: a %s has a command_topic", e.Name, e.Platform)
		}
	}
	return payloads, means
}

// What Home Assistant publishes for an entity is a command that the device's write
// path takes, and takes for what was meant.
func TestWhatIsAnnouncedCanBeWritten(t *testing.T) {
	d := modbus.DefaultDevice()
	d.Name, d.Unit = "m", 1
	platforms := map[string]string{}
	add := func(platform string, p modbus.Point) {
		p.Name = fmt.Sprint("p", len(d.Points))
		platforms[p.Name] = platform
		d.Points = append(d.Points, p)
	}
	names := map[string]string{"0": "off", "1": "2", "2": "1", "7": "{ <b> }"}
	add("sensor", modbus.Point{Register: "holding:0"})
	add("sensor", modbus.Point{Register: "holding:0", Enum: names})
	add("binary_sensor", modbus.Point{Register: "discrete:0"})
	add("switch", modbus.Point{Register: "coil:0", Write: true})
	add("switch", modbus.Point{Register: "holding:1.3", Write: true})
	add("select", modbus.Point{Register: "coil:1", Enum: map[string]string{"0": "open", "1": "closed"}, Write: true})
	add("select", modbus.Point{Register: "holding:2", Enum: names, Write: true})
	add("select", modbus.Point{Register: "holding:3", Enum: names, Allowed: []string{"off", "2"}, Write: true})
	add("select", modbus.Point{Register: "holding:4", Scale: 0.1, Allowed: []string{"1.50", "2"}, Write: true})
	add("text", modbus.Point{Register: "holding:5", Type: "string", Length: 4, Write: true})
	add("text", modbus.Point{Register: "holding:300", Type: "string", Length: 100, Write: true})
	add("number", modbus.Point{Register: "holding:10", Write: true})
	add("number", modbus.Point{Register: "holding:11", Type: "int16", Scale: -0.1, Offset: 40, Write: true})
	add("number", modbus.Point{Register: "holding:12", Bits: "4-7", Write: true})
	add("number", modbus.Point{Register: "holding:13", Type: "bcd32", Write: true})
	add("number", modbus.Point{Register: "holding:20", Type: "int8", Step: 10, Write: true})
	add("number", modbus.Point{Register: "holding:21", Type: "float32", Min: new(5.0), Max: new(30.0), Step: 0.5, Write: true})
	add("number", modbus.Point{Register: "holding:23", Type: "float16", Min: new(-100.0), Max: new(100.0), Step: 0.5, Write: true})
	add("number", modbus.Point{Register: "holding:24", Type: "float64", Decimals: new(1), Write: true})
	add("number", modbus.Point{Register: "holding:30", Scale: 0.1, Min: new(5.0), Max: new(30.0), Write: true})

	h := &host{results: map[string][]adapters.Result{}}
	opts := modbus.DefaultOptions()
	opts.Prefix, opts.Devices = "sensors", []modbus.Device{d}
	bus, err := modbus.New("bus", opts, neverOpen{}, h, health.NewMonitor(func(health.Change) {}), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	stop, err := bus.TakeCommands(h)
	if err != nil {
		t.Fatal(err)
	}
	g := discovery.Gateway{ID: "gw", Readings: "sensors", DeviceStatusTopic: func(string) string { return "status" }}
	m, err := discovery.DefaultOptions().Message(g, bus.Devices()[0])
	if err != nil {
		t.Fatal(err)
	}
	var announced struct{ Components map[string]announcedEntity }
	if err := json.Unmarshal(m.Payload, &announced); err != nil {
		t.Fatal(err)
	}
	means, payloads := map[string][]any{}, map[string][]string{}
	for point, e := range announced.Components {
		if e.Platform != platforms[point] {
			t.Errorf("%s is a %s, want a %s", point, e.Platform, platforms[point])
		}
		payloads[point], means[point] = e.publishes(t)
		for _, p := range payloads[point] {
			h.handler(adapters.Command{Topic: e.CommandTopic, Payload: []byte(p), QoS: 1, Received: time.Now(), AnswerTopic: e.CommandTopic + "/result"})
		}
	}
	stop()
	for point, want := range means {
		if len(want) == 0 && platforms[point] != "sensor" && platforms[point] != "binary_sensor" {
			t.Errorf("%s, a %s, publishes nothing", point, platforms[point])
		}
		var got []string
		for _, r := range h.results[point] {
			if r.Outcome != adapters.OutcomeFailed { // the line is not open
				t.Errorf("%s: %+v of %q", point, r, payloads[point])
			}
			got = append(got, fmt.Sprint(r.Value))
		}
		slices.Sort(got)
		var meant []string
		for _, v := range want {
			meant = append(meant, fmt.Sprint(v))
		}
		slices.Sort(meant) // one that finds no room is answered before those that wait
		if diff := cmp.Diff(meant, got); diff != "" {
			t.Errorf("%s (-meant +taken):\n%s", point, diff)
		}
	}
}
