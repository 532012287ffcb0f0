package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"holdfast/cmd/holdfast/console"
)

// pollEvery is how often the gateway is asked for its status. What it had
// acknowledged when it was killed is known to within this.
const pollEvery = 200 * time.Millisecond

// The topics of the local publisher, one for each QoS, and of the commands.
const (
	topicStrokes  = "sensors/press/strokes" // QoS 1
	topicEnergy   = "meters/energy/pulses"  // QoS 2
	topicCommands = "commands/pump"         // from the cloud, QoS 2
)

// The devices.
const (
	meterName  = "boiler"
	sensorName = "weather"
)

// site is the gateway: its files, and the process while there is one.
type site struct {
	id      string
	binary  string
	dir     string
	config  string
	socket  string
	log     string
	address string // of the local broker, host:port
	env     []string
	process *process // the script's

	mu     sync.Mutex
	latest status    // guarded by mu; of the current life
	asked  time.Time // guarded by mu; when latest was true; zero before the first answer
	lives  []life    // guarded by mu; one for each start
}

// life is what the gateway said last, from one start to its end.
type life struct {
	session uint64 // 0 when it never answered
	devices map[string]deviceStatus
}

// status is what the demo takes of GET /api/v1/status.
type status struct {
	Session uint64         `json:"session"`
	Uplinks []uplinkStatus `json:"uplinks"`
	Devices []deviceStatus `json:"devices"`
}

type uplinkStatus struct {
	State         string  `json:"state"`
	Reason        string  `json:"reason"`
	Backlog       int64   `json:"backlog"`
	OldestSeconds float64 `json:"backlog_age_seconds"`
	Resends       uint64  `json:"resends"`
}

type deviceStatus struct {
	Name         string `json:"name"`
	State        string `json:"state"`
	Bad          uint64 `json:"bad"`
	Put          uint64 `json:"put"`
	Acknowledged uint64 `json:"acknowledged"`
	Dropped      uint64 `json:"dropped"`
	Failed       uint64 `json:"failed"`
}

func (s *status) uplink() uplinkStatus {
	if len(s.Uplinks) == 0 {
		return uplinkStatus{State: "unknown"}
	}
	return s.Uplinks[0]
}

func (s *status) device(name string) deviceStatus {
	for _, d := range s.Devices {
		if d.Name == name {
			return d
		}
	}
	return deviceStatus{Name: name, State: "unknown"}
}

// configText is the gateway's configuration, which is also an example. What
// stands in ${...} is filled in by newSite. (Package text/template would make
// the whole program a tenth larger: with it the linker keeps every method.)
const configText = `# Written by "holdfast demo".
[gateway]
id = ${ID}
data = ${Data}

[control]
socket = ${Socket}

[[listener]]
address = ${Listen}

[uplink.cloud]
url = ${URL}
${Secrets}keep_alive = "5s"          # so short only because a minute is all we have
connect_timeout = "3s"
reconnect_min = "200ms"
reconnect_max = "1s"
will_delay = "1s"
session_expiry = "10m"

[[uplink.cloud.route]]
direction = "out"
filter = "sensors/#"
prefix = ${Prefix}
qos = 1

[[uplink.cloud.route]]
direction = "out"
filter = "meters/#"
prefix = ${Prefix}
qos = 2

[[uplink.cloud.route]]
direction = "in"
filter = "commands/#"
prefix = ${Prefix}
qos = 2

[port.rs485]
device = ${Meter}
driver = "bugst"
baud = 19200

[port.line]
device = ${Sensor}
driver = "tarm"
baud = 9600

[device.${MeterName}]
adapter = "modbus"
port = "rs485"
unit = ${MeterUnit}
every = ${MeterEvery}
order = "CDAB"
[[device.${MeterName}.point]]
name = "flow"
register = "holding:100"
type = "float32"
unit = "l/min"
decimals = 2
[[device.${MeterName}.point]]
name = "pressure"
register = "holding:102"
type = "float32"
unit = "bar"
decimals = 3
[[device.${MeterName}.point]]
name = "polls"
register = "holding:104"
type = "uint32"

[device.${SensorName}]
adapter = "serial"
port = "line"
pattern = '^T=(?P<temperature>[-0-9.]+) H=(?P<humidity>[0-9.]+) N=(?P<line>[0-9]+)$'
expect = "2s"
[[device.${SensorName}.point]]
name = "temperature"
unit = "°C"
[[device.${SensorName}.point]]
name = "humidity"
unit = "%"
[[device.${SensorName}.point]]
name = "line"
`

// tomlString quotes s as a basic string; JSON's escapes are among TOML's.
func tomlString(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err) // a string always encodes
	}
	return string(b)
}

// points are the topics of a device's points below sensors/DEVICE/, the one
// that counts last.
var points = map[string][]string{
	meterName:  {"flow", "pressure", "polls"},
	sensorName: {"temperature", "humidity", "line"},
}

// newSite writes the configuration of a gateway that reaches cloud through the
// relay.
func newSite(id, binary, dir, logs, prefix, relay string, cloud *url.URL) (*site, error) {
	g := &site{
		id: id, binary: binary, dir: dir,
		config: filepath.Join(dir, "gateway.toml"), socket: filepath.Join(dir, "gw.sock"), log: filepath.Join(logs, "gateway.log"),
	}
	var err error
	if g.address, err = freeAddress(); err != nil {
		return nil, err
	}
	scheme, name := cloud.Scheme, ""
	switch scheme {
	case "mqtts", "ssl", "tls":
		scheme, name = "mqtts", cloud.Hostname() // the relay has another name than the certificate
	default:
		scheme = "mqtt"
	}
	user := cloud.User.Username()
	password, _ := cloud.User.Password()
	g.env = []string{"HOLDFAST_DEMO_USERNAME=" + user, "HOLDFAST_DEMO_PASSWORD=" + password}
	var secrets strings.Builder
	if name != "" {
		fmt.Fprintf(&secrets, "server_name = %s\n", tomlString(name))
	}
	if user != "" {
		fmt.Fprintln(&secrets, `username = "env:HOLDFAST_DEMO_USERNAME"`)
	}
	if password != "" {
		fmt.Fprintln(&secrets, `password = "env:HOLDFAST_DEMO_PASSWORD"`)
	}
	values := map[string]string{
		"ID": tomlString(id), "Data": tomlString(filepath.Join(dir, "gateway")), "Socket": tomlString(g.socket),
		"Listen": tomlString("tcp://" + g.address), "URL": tomlString(scheme + "://" + relay), "Secrets": secrets.String(),
		"Prefix": tomlString(prefix), "Meter": tomlString(g.meterPort()), "Sensor": tomlString(g.sensorPort()),
		"MeterName": meterName, "MeterUnit": strconv.Itoa(meterUnit), "MeterEvery": tomlString(meterEvery.String()), "SensorName": sensorName,
	}
	text := os.Expand(configText, func(key string) string { return values[key] })
	if err := os.WriteFile(g.config, []byte(text), 0o600); err != nil {
		return nil, fmt.Errorf("write the configuration: %w", err)
	}
	return g, nil
}

func (g *site) meterPort() string  { return filepath.Join(g.dir, "tty-meter") }
func (g *site) sensorPort() string { return filepath.Join(g.dir, "tty-sensor") }

func (g *site) start() (err error) {
	g.mu.Lock()
	g.lives = append(g.lives, life{})
	g.latest, g.asked = status{}, time.Time{}
	g.mu.Unlock()
	g.process, err = startProcess("gateway", g.binary, g.log, g.env, "run", "--config", g.config)
	return err
}

// watch asks for the status until ctx ends.
func (g *site) watch(ctx context.Context) {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			_ = g.poll(ctx) // a gateway that was killed does not answer
		}
	}
}

// poll asks once.
func (g *site) poll(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	g.mu.Lock()
	current := len(g.lives) - 1
	g.mu.Unlock()
	at := time.Now()
	body, code, err := console.Get(ctx, g.socket, "/api/v1/status")
	if err != nil {
		return err
	}
	if code != 200 {
		return fmt.Errorf("ask for the status: HTTP %d", code)
	}
	return g.take(current, body, at)
}

// take takes note of an answer asked for in that life.
func (g *site) take(asked int, body []byte, at time.Time) error {
	var st status
	if err := json.Unmarshal(body, &st); err != nil {
		return fmt.Errorf("read the status: %w", err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if asked == len(g.lives)-1 {
		g.latest, g.asked = st, at
	}
	said := life{session: st.Session, devices: map[string]deviceStatus{}}
	for _, d := range st.Devices {
		said.devices[d.Name] = d
	}
	g.lives[asked] = said
	return nil
}

// status returns the latest, and whether it is fresh.
func (g *site) status() (st status, fresh bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.latest, time.Since(g.asked) < 5*pollEvery
}

// counters adds up what all lives said of a device.
func (g *site) counters(name string) (sum deviceStatus) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, l := range g.lives {
		d := l.devices[name]
		sum.Put += d.Put
		sum.Acknowledged += d.Acknowledged
		sum.Bad += d.Bad
		sum.Dropped += d.Dropped
		sum.Failed += d.Failed
	}
	return sum
}

// sessions are the session numbers of the lives, which have to grow: states of
// an earlier life must not be taken for those of a later one.
func (g *site) sessions() (ns []uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, l := range g.lives {
		ns = append(ns, l.session)
	}
	return ns
}

// alive is nil while the process runs.
func (g *site) alive() error { return running(g.process) }

func running(p *process) error {
	if p == nil {
		return nil
	}
	select {
	case <-p.done:
		return errors.Join(fmt.Errorf("%s has ended by itself", p.name), p.ended())
	default:
		return nil
	}
}
