package config

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"holdfast/adapters/modbus"
	"holdfast/adapters/modbus/server"
	"holdfast/adapters/serial"
	"holdfast/broker/access"
	"holdfast/broker/durable"
	"holdfast/storeforward/pack"
	"holdfast/storeforward/sparkplug"
	"holdfast/storeforward/uplink"
)

const samplePath = "../../../packaging/holdfast.toml"

// serialDevices show the framings and formats between them.
const serialDevices = "device.weather|scale|flow|level|meter|counter"

var (
	keyLine   = regexp.MustCompile(`^#(\[|[a-z0-9_]+ = )`)
	noDefault = regexp.MustCompile(`# no default\b`)
)

// uncomment turns the sample's commented keys into real ones.
func uncomment(t *testing.T) (text string, examples map[int]bool) {
	t.Helper()
	data, err := os.ReadFile(samplePath)
	if err != nil {
		t.Fatal(err)
	}
	examples = map[int]bool{}
	lines := strings.Split(string(data), "\n")
	for i, line := range lines {
		if keyLine.MatchString(line) {
			lines[i] = line[1:]
			examples[i+1] = noDefault.MatchString(line)
		} else if line != "" && !strings.HasPrefix(line, "# ") && line != "#" {
			t.Errorf("%s:%d: %q is neither a commented key nor a remark", samplePath, i+1, line)
		}
	}
	return strings.Join(lines, "\n"), examples
}

func TestSampleAsShippedIsTheDefaults(t *testing.T) {
	got, err := Load(samplePath)
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Resolve()
	if diff := cmp.Diff(want, got, cmp.Exporter(func(reflect.Type) bool { return true }), funcsEqual); diff != "" {
		t.Errorf("the sample changes something (-default +sample):\n%s", diff)
	}
}

var funcsEqual = cmp.FilterValues(func(a, _ any) bool {
	return reflect.TypeOf(a) != nil && reflect.TypeOf(a).Kind() == reflect.Func
}, cmp.Comparer(func(_, _ any) bool { return true }))

// Every key that a configuration can have stands in the sample, and every value
// that is not marked "no default" is the default.
func TestSampleShowsEveryKeyAtItsDefault(t *testing.T) {
	text, examples := uncomment(t)
	root, err := parse("sample", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := decodeConfig(root); err != nil {
		t.Fatalf("the sample with its comments removed is refused:\n%v", err)
	}
	def := Default()
	table := root.value.(map[string]*node)
	shown := map[string]bool{}
	for key, want := range map[string]any{
		"gateway": def.Gateway, "log": def.Log, "control": def.Control, "broker": def.Broker, "store": def.Store,
		"readings": def.Readings, "access": def.Access, "access.rule": access.Rule{}, "user.pump-7": access.User{},
		"listener": def.Listeners[0], "uplink.*": uplink.DefaultOptions(), "uplink.cloud.route": defaultRoute(),
		"home_assistant": def.HomeAssistant, "sparkplug.*": sparkplug.DefaultOptions(),
		"modbus_server.*": defaultServer(), "modbus_server.scada.register": server.Register{Scale: 1}, "modbus_gateway.*": defaultGateway(),
		"port.rs485": defaultPort(), "device.boiler": defaultModbus(), "device.boiler.point": defaultPoint(),
		serialDevices: DefaultSerial(), serialDevices + ".point": defaultField(),
		"device.meter.poll": serial.Poll{Every: 10 * time.Second, Timeout: time.Second},
		"device.meter.command": serial.Command{
			Timeout: time.Second, MaxAge: 10 * time.Second, MaxLength: 64, On: "1", Off: "0",
		},
	} {
		nodes := []*node{{value: table}} // keys that exclude each other stand in different ones
		for part := range strings.SplitSeq(key, ".") {
			var next []*node
			for _, n := range nodes {
				members := n.value.(map[string]*node)
				names := strings.Split(part, "|")
				if part == "*" {
					names = sortedKeys(members)
				}
				for _, name := range names {
					switch m := members[name]; {
					case m == nil:
					case isList(m):
						next = append(next, m.value.([]*node)...)
					default:
						next = append(next, m)
					}
				}
			}
			if nodes = next; len(nodes) == 0 {
				t.Fatalf("the sample has no [%s]", key)
			}
		}
		n := all(nodes)
		shown[strings.SplitN(key, ".", 2)[0]] = true
		compareSample(t, key, n.value.(map[string]*node), want, examples)
	}
	for key := range fieldsOf(reflect.ValueOf(&def).Elem()) {
		if !shown[key] {
			t.Errorf("the sample does not show [%s]", key)
		}
	}
}

func isList(n *node) bool {
	_, ok := n.value.([]*node)
	return ok
}

// all puts the elements of an array of tables together: keys that exclude each
// other stand in different ones. The first that has a key shows it.
func all(list []*node) *node {
	n := list[len(list)-1]
	for _, el := range slices.Backward(list[:len(list)-1]) {
		n = merge(n, el)
	}
	return n
}

func compareSample(t *testing.T, key string, table map[string]*node, want any, examples map[int]bool) {
	t.Helper()
	wv := reflect.New(reflect.TypeOf(want)).Elem()
	wv.Set(reflect.ValueOf(want))
	gv := reflect.New(reflect.TypeOf(want)).Elem()
	wants, gots := fieldsOf(wv), fieldsOf(gv)
	for name, w := range wants {
		at := key + "." + name
		n, ok := table[name]
		if !ok {
			if name != "adapter" && name != "port" {
				t.Errorf("%s is not in the sample", at)
			}
			continue
		}
		if _, tables := n.value.([]*node); tables && w.Kind() == reflect.Slice && w.Type().Elem().Kind() == reflect.Struct {
			continue // compared on its own
		}
		d := decoder{places: map[string]position{}}
		d.decode(at, n, gots[name])
		if err := d.err(); err != nil {
			t.Error(err)
			continue
		}
		got := gots[name]
		if examples[n.at.line] {
			if got.IsZero() {
				t.Errorf("sample:%d: %s is marked as an example and shows nothing", n.at.line, at)
			}
			continue
		}
		if (got.Kind() == reflect.Slice || got.Kind() == reflect.Map) && got.Len() == 0 && w.Len() == 0 {
			continue
		}
		if !cmp.Equal(w.Interface(), got.Interface()) {
			t.Errorf("sample:%d: %s = %v, the default is %v", n.at.line, at, show(got), show(w))
		}
	}
}

func show(v reflect.Value) any {
	if v.Kind() == reflect.Pointer && !v.IsNil() {
		return v.Elem().Interface()
	}
	return v.Interface()
}

// Where the zero value stands for a default, the sample says which.
func defaultRoute() uplink.Route {
	return uplink.Route{
		QoS: new(2), Lane: new(durable.DefaultLane), Retain: uplink.RetainKeep, QoS0: uplink.QoS0Drop, Policy: durable.PolicyRefuse,
		Compression: pack.CompressionZstd, BatchTopic: uplink.DefaultBatchTopic, BatchMessages: uplink.DefaultBatchMessages,
		BatchBytes: uplink.DefaultBatchBytes, BatchDelay: uplink.DefaultBatchDelay,
	}
}

func defaultPort() Port {
	var p Port
	p.setDefaults()
	return p
}

func defaultServer() (s ModbusServer) {
	s.setDefaults()
	return s
}

func defaultGateway() (g ModbusGateway) {
	g.setDefaults()
	return g
}

// modbusKeys are those that a Modbus device can have.
type modbusKeys struct {
	modbus.Device
	Choice
}

func defaultModbus() modbusKeys  { return modbusKeys{Device: modbus.DefaultDevice()} }
func defaultPoint() modbus.Point { return modbus.Point{Scale: 1} }
func defaultField() serial.Point { return serial.Point{Type: serial.TypeNumber, Scale: 1} }

func TestDropInsAreLaidOverInOrder(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("holdfast.toml", "[gateway]\nid = \"one\"\ndata = \"/d\"\n[log]\nlevel = \"warn\"\n")
	write("holdfast.d/20-b.toml", "[gateway]\nid = \"three\"\n")
	write("holdfast.d/10-a.toml", "[gateway]\nid = \"two\"\n[log]\nlevel = \"debug\"\n")
	write("holdfast.d/readme.txt", "not read")
	cfg, err := Load(filepath.Join(dir, "holdfast.toml"))
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Gateway.ID != "three" || cfg.Gateway.Data != "/d" || cfg.Log.Level != "debug" {
		t.Errorf("gateway %+v, log %+v", cfg.Gateway, cfg.Log)
	}
	write("holdfast.d/30-c.toml", "\n[broker]\nmax_conections = 1\n")
	_, err = Load(filepath.Join(dir, "holdfast.toml"))
	want := filepath.Join(dir, "holdfast.d/30-c.toml") + `:3: broker.max_conections: unknown key; did you mean "max_connections"?`
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

// What Validate of each package finds is reported where it was written.
func TestValuesOutOfRangeNameTheirPlace(t *testing.T) {
	tests := map[string]struct{ in, want string }{
		"gateway":                     {"[gateway]\nid='a/b'\n", `h.toml:2: gateway.id: "a/b" is not one topic level`},
		"broker":                      {"[broker]\n\nmax_inflight=0\n", `h.toml:3: broker.max_inflight: 0 is outside 1..32767`},
		"store":                       {"[store]\ncommit_window='2h'\n", `h.toml:2: store.commit_window: 2h0m0s is outside 0s..1m0s`},
		"listener":                    {"[[listener]]\naddress='tcp://:1883'\n", `h.toml:2: listener[0].address: the host is missing`},
		"listener kind":               {"[[listener]]\naddress='udp://x:1'\n", `h.toml:2: listener[0].address: "udp://x:1" is not supported`},
		"anonymous":                   {"[[listener]]\naddress='tcp://127.0.0.1:1'\nanonymous='maybe'\n", `h.toml:3: listener[0].anonymous: "maybe" is not loopback, never or always`},
		"no key":                      {"[[listener]]\naddress='tls://127.0.0.1:1'\ncert_file='/c'\n", `h.toml:1: listener[0].key_file: is missing`},
		"useless key":                 {"[[listener]]\naddress='tcp://127.0.0.1:1'\nkey_file='/k'\n", `h.toml:3: listener[0].key_file: is for tls:// and wss:// only`},
		"same listener":               {"[[listener]]\naddress='tcp://127.0.0.1:1'\n[[listener]]\naddress='tcp://127.0.0.1:1'\n", `h.toml:4: listener[1].address: "tcp://127.0.0.1:1" is listened on already`},
		"identity":                    {"[[listener]]\naddress='tcp://127.0.0.1:1'\nidentity='cn'\n", `h.toml:3: listener[0].identity: "cn" is not password, certificate_cn, certificate_san or peer`},
		"identity, TLS":               {"[[listener]]\naddress='tcp://127.0.0.1:1'\nidentity='certificate_cn'\n", `h.toml:3: listener[0].identity: certificate_cn needs client_cert`},
		"identity, TCP":               {"[[listener]]\naddress='tcp://127.0.0.1:1'\nidentity='peer'\n", `h.toml:3: listener[0].identity: peer is for Unix sockets only`},
		"listener name":               {"[[listener]]\naddress='tcp://127.0.0.1:1'\nname='a'\n[[listener]]\naddress='tcp://127.0.0.1:2'\nname='a'\n", `h.toml:6: listener[1].name: another listener is called "a" already`},
		"access":                      {"[access]\nmax_hashing=0\n", `h.toml:2: access.max_hashing: 0 is outside 1..64`},
		"access rule":                 {"[[access.rule]]\nallow=['read']\ntopics=['a/#/b']\n", `h.toml:3: access.rule[0].topics: "a/#/b": `},
		"rule listener":               {"[[access.rule]]\nallow=['read']\ntopics=['a']\nlisteners=['lna']\n[[listener]]\naddress='tcp://127.0.0.1:1'\nname='lan'\n", `h.toml:4: access.rule[0].listeners: there is no listener "lna"; did you mean "lan"?`},
		"user password":               {"[user.ann]\npassword='hunter2'\n", `h.toml:2: user.ann.password: is not a hash of a password`},
		"user name":                   {"[user.\"a:b\"]\n", `h.toml:1: user.a:b: the user name has the character U+003A in it`},
		"uplink":                      {"[uplink.c]\nurl='mqtt://h'\nwindow=0\n", `h.toml:3: uplink.c.window: 0 is outside 1..65535`},
		"uplink url":                  {"[uplink.c]\nwindow=1\n", `h.toml:1: uplink.c.url: is missing`},
		"uplink urls":                 {"[uplink.c]\nurls=['mqtt://h',\n'ftp://i']\n", `h.toml:3: uplink.c.urls[1]: scheme "ftp" is not one of mqtt, tcp, mqtts, ws, wss`},
		"uplink psk":                  {"[uplink.c]\nurl='mqtts://h'\npsk='00'\n", `h.toml:3: uplink.c.psk: pre-shared keys are not offered: Go's TLS does not have them; use certificates`},
		"uplink stop":                 {"[uplink.c]\nurl='mqtt://h'\nstop_timeout='11s'\n", `h.toml:3: uplink.c.stop_timeout: 11s is outside 0s..10s: a stop of the gateway waits no longer`},
		"uplink scram":                {"[uplink.c]\nurl='mqtt://h'\nscram=true\n", `h.toml:3: uplink.c.scram: needs a username and a password`},
		"scram, 3.1.1":                {"[uplink.c]\nurl='mqtt://h'\nusername='u'\npassword='p'\nscram=true\nprotocol='3.1.1'\n", `h.toml:5: uplink.c.scram: needs protocol "auto" or "5.0"`},
		"uplink alpn":                 {"[uplink.c]\nurl='mqtt://h'\nalpn=['mqtt']\n", `h.toml:3: uplink.c.alpn: means nothing without mqtts:// or wss:// in url`},
		"uplink proxy":                {"[uplink.c]\nurl='mqtt://h'\nproxy='https://p:1'\n", `h.toml:3: uplink.c.proxy: TLS to the proxy itself is not offered`},
		"interfaces":                  {"[uplink.c]\nurl='mqtt://h'\ninterfaces=['eth0',\n'eth0']\n", `h.toml:4: uplink.c.interfaces[1]: eth0 is in the list already`},
		"confirm":                     {"[uplink.c]\nurl='mqtt://h'\nconfirm='1s'\n", `h.toml:3: uplink.c.confirm: 1s is outside 10s..24h0m0s`},
		"readings":                    {"[readings]\nrender='xml'\n", `h.toml:2: readings.render: "xml" is not one of`},
		"readings, RAM":               {"[readings]\n\npolicy='wait'\n", `h.toml:3: readings.policy: "wait" is not one of`},
		"render":                      {"[uplink.c]\nurl='mqtt://h'\n[[uplink.c.route]]\ndirection='out'\nfilter='a'\nrender='xml'\n", `h.toml:6: uplink.c.route[0].render: "xml" is not one of`},
		"template":                    {"[uplink.c]\nurl='mqtt://h'\n[[uplink.c.route]]\ndirection='out'\nfilter='a'\ntemplate='x'\n", `h.toml:6: uplink.c.route[0].template: means nothing`},
		"render, batch":               {"[uplink.c]\nurl='mqtt://h'\n[[uplink.c.route]]\ndirection='out'\nfilter='a'\nrender='raw'\nbatch='senml'\n", `h.toml:6: uplink.c.route[0].render: "raw" contradicts batch`},
		"render, in":                  {"[uplink.c]\nurl='mqtt://h'\n[[uplink.c.route]]\ndirection='in'\nfilter='a'\nrender='raw'\n", `h.toml:6: uplink.c.route[0].render: means nothing for direction "in"`},
		"same broker":                 {"[uplink.a]\nurl='mqtt://h'\n[uplink.b]\nurls=['mqtt://i','mqtt://h:1883']\n", `h.toml:3: uplink.b.client_id: "`},
		"route":                       {"[uplink.c]\nurl='mqtt://h'\n[[uplink.c.route]]\ndirection='out'\nfilter='a/#/b'\n", `h.toml:5: uplink.c.route[0].filter: `},
		"sparkplug":                   {"[sparkplug.s]\nurl='mqtt://h'\ngroup='a/b'\n", `h.toml:3: sparkplug.s.group: "a/b" holds a character that a Sparkplug id cannot: / + #`},
		"edge node url":               {"[sparkplug.s]\ngroup='g'\n", `h.toml:1: sparkplug.s.url: is missing`},
		"baud rate that changes":      {"[port.p]\ndevice='/dev/x'\ndriver='tarm'\n[device.d]\nadapter='serial'\nport='p'\nframing='iec62056'\nformat='obis'\n[[device.d.poll]]\nname='r'\nrequest=\"/?!\\r\\n\"\n[[device.d.point]]\nname='e'\nfield='1.8.0'\n", `port.p.driver: the meter is read with a change of the baud rate, which driver "tarm" cannot do`},
		"port":                        {"[port.p]\ndevice='/dev/x'\ndriver='tarm'\nparity='even'\n", `h.toml:4: port.p.parity: driver "tarm" cannot do even parity`},
		"bus":                         {"[port.p]\ndevice='/dev/x'\nsilence='5s'\n", `h.toml:3: port.p.silence: 5s is outside`},
		"no adapter":                  {"[device.d]\nport='p'\n", `h.toml:1: device.d.adapter: is missing`},
		"wrong adapter":               {"[device.d]\nadapter='can'\n", `h.toml:2: device.d.adapter: "can" is not one of "modbus", "serial"`},
		"other's key":                 {"[port.p]\ndevice='/dev/x'\n[device.d]\nadapter='modbus'\nport='p'\nunit=1\npattern='x'\n", `h.toml:7: device.d.pattern: unknown key`},
		"no port":                     {"[port.rs485]\ndevice='/dev/x'\n[device.d]\nadapter='modbus'\nport='rs48'\nunit=1\n[[device.d.point]]\nname='a'\nregister='holding:1'\n", `h.toml:5: device.d.port: there is no [port.rs48]; did you mean "rs485"?`},
		"register":                    {"[port.p]\ndevice='/dev/x'\n[device.d]\nadapter='modbus'\nport='p'\nunit=1\n[[device.d.point]]\nname='a'\nregister='holding:1'\n[[device.d.point]]\nname='b'\nregister='holding:70000'\n", `h.toml:12: device.d.point[1].register: `},
		"shared port":                 {"[port.p]\ndevice='/dev/x'\n[device.a]\nadapter='modbus'\nport='p'\nunit=1\n[[device.a.point]]\nname='a'\nregister='holding:1'\n[device.b]\nadapter='serial'\nport='p'\nformat='json'\n[[device.b.point]]\nname='x'\n", `h.toml:12: device.b.port: port p belongs to device a; only Modbus devices share one`},
		"pattern":                     {"[port.p]\ndevice='/dev/x'\n[device.b]\nadapter='serial'\nport='p'\npattern='('\n[[device.b.point]]\nname='x'\n", `h.toml:6: device.b.pattern: `},
		"useless, though the default": {"[port.p]\ndevice='/dev/x'\n[device.b]\nadapter='serial'\nport='p'\nformat='json'\nlength_size=1\n[[device.b.point]]\nname='x'\n", `h.toml:7: device.b.length_size: has no use with framing "delimiter", only with length`},
		"useless in a point":          {"[port.p]\ndevice='/dev/x'\n[device.b]\nadapter='serial'\nport='p'\nformat='json'\n[[device.b.point]]\nname='x'\nat=0\n", `h.toml:9: device.b.point[0].at: has no use with format "json", only with binary`},
		"modbus server":               {"[modbus_server.s]\naddress='tcp://127.0.0.1:1'\n[[modbus_server.s.register]]\ndevice='d'\npoint='p'\nregister='input:1'\n[[modbus_server.s.register]]\ndevice='d'\npoint='q'\nregister='input:0'\ntype='uint32'\n", `h.toml:10: modbus_server.s.register[1].register: input:0 is taken by point p of device d`},
		"modbus server, place":        {"[modbus_server.s]\naddress='tcp://127.0.0.1:1883'\n[[listener]]\naddress='tcp://127.0.0.1:1883'\n", `h.toml:2: modbus_server.s.address: tcp://127.0.0.1:1883 is that of a listener of MQTT`},
		"modbus server, line":         {"[port.p]\ndevice='/dev/x'\n[modbus_server.s]\naddress='rtu:p'\n", `h.toml:3: modbus_server.s.units: is missing; others share the line`},
		"modbus server, unit":         {"[port.p]\ndevice='/dev/x'\n[modbus_server.s]\naddress='rtu:p'\nunits=[1,248]\n", `h.toml:5: modbus_server.s.units[1]: 248 is outside 1..247`},
		"modbus server, no port":      {"[modbus_server.s]\naddress='rtu:p'\nunits=[1]\n", `h.toml:2: modbus_server.s.address: there is no [port.p]`},
		"modbus server, useless":      {"[port.p]\ndevice='/dev/x'\n[modbus_server.s]\naddress='rtu:p'\nunits=[1]\nallow=['10.0.0.1']\n", `h.toml:6: modbus_server.s.allow: means nothing to a server on a serial line`},
		"modbus server, peer":         {"[port.p]\ndevice='tcp://h:502'\n[modbus_server.s]\naddress='rtu:p'\nunits=[1]\n", `h.toml:4: modbus_server.s.address: port p is a Modbus peer`},
		"modbus server, ASCII":        {"[port.p]\ndevice='/dev/x'\nframing='ascii'\n[modbus_server.s]\naddress='rtu:p'\nunits=[1]\n", `h.toml:5: modbus_server.s.address: port p has framing = "ascii"`},
		"modbus server, two":          {"[port.p]\ndevice='/dev/x'\n[modbus_server.r]\naddress='rtu:p'\nunits=[1]\n[modbus_server.s]\naddress='rtu:p'\nunits=[2]\n", `h.toml:7: modbus_server.s.address: port p belongs to modbus_server.r`},
		"modbus server, device":       {"[port.p]\ndevice='/dev/x'\n[device.d]\nadapter='modbus'\nport='p'\nunit=1\n[[device.d.point]]\nname='a'\nregister='holding:1'\n[modbus_server.s]\naddress='rtu:p'\nunits=[1]\n", `h.toml:11: modbus_server.s.address: port p belongs to device d`},
		"modbus server, gateway":      {"[port.p]\ndevice='/dev/x'\n[modbus_gateway.g]\naddress='tcp://127.0.0.1:1'\nport='p'\n[modbus_server.s]\naddress='rtu:p'\nunits=[1]\n", `h.toml:7: modbus_server.s.address: port p belongs to modbus_gateway.g`},
		"modbus gateway":              {"[port.rs485]\ndevice='/dev/x'\n[modbus_gateway.g]\naddress='tcp://127.0.0.1:1'\nport='rs48'\n", `h.toml:5: modbus_gateway.g.port: there is no [port.rs48]; did you mean "rs485"?`},
		"modbus gateway, function":    {"[port.p]\ndevice='/dev/x'\n[modbus_gateway.g]\naddress='tcp://127.0.0.1:1'\nport='p'\nfunctions=[1,8]\n", `h.toml:6: modbus_gateway.g.functions[1]: 8 is not one of`},
		"expect":                      {"[port.p]\ndevice='/dev/x'\n[device.b]\nadapter='serial'\nport='p'\nformat='json'\nexpect='1ms'\n[[device.b.point]]\nname='x'\n", `h.toml:7: device.b.expect: `},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			root, err := parse("h.toml", []byte(tt.in))
			if err != nil {
				t.Fatal(err)
			}
			_, err = decodeConfig(root)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got  %v\nwant %s", err, tt.want)
			}
		})
	}
}

// A port that only a server has is used.
func TestPortOfAServerIsUsed(t *testing.T) {
	const in = "[port.p]\ndevice='/dev/x'\n[port.q]\ndevice='/dev/y'\n[modbus_server.s]\naddress='rtu:p'\nunits=[1]\n"
	root, err := parse("h.toml", []byte(in))
	if err != nil {
		t.Fatal(err)
	}
	c, err := decodeConfig(root)
	if err != nil {
		t.Fatal(err)
	}
	warnings := c.Warnings()
	if slices.Contains(warnings, "port.p: no device uses it") || !slices.Contains(warnings, "port.q: no device uses it") {
		t.Errorf("warnings %q", warnings)
	}
}
