package config

import (
	"fmt"
	"maps"
	"reflect"

	"holdfast/adapters"
	"holdfast/adapters/health"
	"holdfast/adapters/modbus"
	"holdfast/adapters/port"
	"holdfast/adapters/reading"
	"holdfast/adapters/serial"
	"holdfast/storeforward/uplink"
)

// The adapters a device can name.
const (
	AdapterModbus = "modbus"
	AdapterSerial = "serial"
)

// Port is one serial port, or a peer on the network that speaks Modbus: shared by
// the Modbus devices that name it, or owned by the one serial device that does.
type Port struct {
	// Options are those of a serial port.
	port.Options
	// Bus are the settings of a Modbus line.
	Bus modbus.Options `toml:",inline"`
	// Peer is set instead of Options when the device is tcp://… or the like.
	Peer *modbus.PeerOptions `toml:"-"`
}

func (p *Port) setDefaults() { p.Options, p.Bus = port.DefaultOptions(), modbus.DefaultOptions() }

// decodeNode reads the keys that fit what the device is.
func (p *Port) decodeNode(d *decoder, key string, n *node) {
	table, ok := n.value.(map[string]*node)
	if !ok {
		d.problem(n.at, key, "expected a table, found %s", describe(n))
		return
	}
	fields := fieldsOf(reflect.ValueOf(p).Elem())
	maps.Copy(fields, fieldsOf(reflect.ValueOf(&p.Bus).Elem()))
	if dev := table["device"]; dev != nil {
		d.decode(join(key, "device"), dev, fields["device"])
	}
	kind := modbus.PeerKind(p.Device)
	if kind == "" {
		peer := fieldsOf(reflect.ValueOf(new(modbus.PeerOptions)).Elem())
		d.decodeKnown(key, table, fields, peer, "a serial port")
		return
	}
	p.Peer = new(modbus.DefaultPeerOptions())
	p.Peer.Device, p.Device = p.Device, ""
	known := fieldsOf(reflect.ValueOf(p.Peer).Elem())
	all := maps.Clone(fields)
	maps.Copy(all, known)
	own := map[string]reflect.Value{"device": known["device"]}
	for _, k := range modbus.PeerKeys(kind) {
		own[k] = all[k]
	}
	d.decodeKnown(key, table, own, all, "a "+kind+":// peer")
}

// decodeKnown reads the keys of fields; of those in others it says that they
// mean nothing to what.
func (d *decoder) decodeKnown(key string, table map[string]*node, fields, others map[string]reflect.Value, what string) {
	rest := maps.Clone(table)
	for _, k := range sortedKeys(table) {
		if _, ok := fields[k]; ok {
			continue
		}
		if _, ok := others[k]; ok {
			d.problem(table[k].at, join(key, k), "means nothing to %s", what)
			delete(rest, k)
		}
	}
	d.decodeFields(key, rest, fields)
}

// validateRTU says why the port cannot be one of Modbus.
func (p *Port) validateRTU() error {
	if p.Peer == nil && p.Bus.Framing != modbus.FramingASCII && p.DataBits != 8 {
		return fmt.Errorf("data_bits: Modbus RTU has 8 data bits, not %d; framing = \"ascii\" has 7 or 8", p.DataBits)
	}
	return nil
}

// Address is the device as configured: a path, a selector or the address of a
// peer.
func (p *Port) Address() string {
	if p.Peer != nil {
		return p.Peer.Device
	}
	return p.Device
}

// Device is one field device: what all adapters share, and the options of the
// adapter it names; those of the others are nil.
type Device struct {
	// Adapter is "modbus" or "serial".
	Adapter string `toml:"adapter"`
	// Port is the name of a [port.NAME].
	Port string `toml:"port"`

	// Choice is the profile of a Modbus device; Modbus has what it says.
	Choice Choice         `toml:"-"`
	Modbus *modbus.Device `toml:"-"`
	Serial *Serial        `toml:"-"`
}

// Serial is a device that speaks by itself on a line of its own.
type Serial struct {
	serial.Options
	// Health says when the device counts as degraded, stale or offline.
	Health health.Options `toml:",inline"`
}

// DefaultSerial returns the defaults of a serial device.
func DefaultSerial() Serial {
	return Serial{Options: serial.DefaultOptions(), Health: health.DefaultOptions()}
}

// decodeNode reads the keys that fit the adapter.
func (dev *Device) decodeNode(d *decoder, key string, n *node) {
	table, ok := n.value.(map[string]*node)
	if !ok {
		d.problem(n.at, key, "expected a table, found %s", describe(n))
		return
	}
	fields := fieldsOf(reflect.ValueOf(dev).Elem())
	adapter := table["adapter"]
	if adapter == nil {
		d.problem(n.at, join(key, "adapter"), `is missing; expected "modbus" or "serial"`)
		return
	}
	d.decode(join(key, "adapter"), adapter, fields["adapter"])
	var own reflect.Value
	switch dev.Adapter {
	case AdapterModbus:
		dev.Modbus = new(modbus.DefaultDevice())
		own = reflect.ValueOf(dev.Modbus).Elem()
		d.applyProfile(key, table, &dev.Choice, dev.Modbus)
		maps.Copy(fields, fieldsOf(reflect.ValueOf(&dev.Choice).Elem()))
		if points := table["point"]; points != nil {
			d.points(join(key, "point"), points, dev.Modbus)
		}
		table = maps.Clone(table)
		for _, done := range []string{"profile", "points", "point"} {
			delete(table, done)
		}
	case AdapterSerial:
		dev.Serial = new(DefaultSerial())
		own = reflect.ValueOf(dev.Serial).Elem()
	default:
		d.problem(adapter.at, join(key, "adapter"), `%q is not one of "modbus", "serial"`, dev.Adapter)
		return
	}
	maps.Copy(fields, fieldsOf(own))
	d.decodeFields(key, table, fields)
	if dev.Serial != nil {
		dev.Serial.useless(d, key, table)
	}
}

// useless reports the keys that are written down and have no meaning with the
// framing, check or format chosen.
func (s *Serial) useless(d *decoder, key string, table map[string]*node) {
	for _, k := range sortedKeys(table) {
		if err := s.Useless(k); err != nil {
			d.problem(table[k].at, join(key, k), "%v", err)
		}
	}
	points := table["point"]
	if points == nil {
		return
	}
	list, _ := points.value.([]*node)
	for i := range min(len(list), len(s.Points)) {
		point, _ := list[i].value.(map[string]*node)
		for _, k := range sortedKeys(point) {
			if err := s.UselessInPoint(&s.Points[i], k); err != nil {
				d.problem(point[k].at, join(index(join(key, "point"), i), k), "%v", err)
			}
		}
	}
}

// Bus is everything behind one port.
type Bus struct {
	Adapter string
	Port    Port
	Devices map[string]Device
}

// Buses groups the devices by port; one that only others ask has none. The
// configuration must be valid.
func (c *Config) Buses() map[string]Bus {
	buses := map[string]Bus{}
	for name, dev := range c.Devices {
		b, ok := buses[dev.Port]
		if !ok {
			b = Bus{Adapter: dev.Adapter, Port: c.Ports[dev.Port], Devices: map[string]Device{}}
		}
		b.Devices[name] = dev
		buses[dev.Port] = b
	}
	for _, g := range c.ModbusGateways {
		if _, ok := buses[g.Port]; !ok {
			buses[g.Port] = Bus{Adapter: AdapterModbus, Port: c.Ports[g.Port], Devices: map[string]Device{}}
		}
	}
	return buses
}

// Modbus returns the options of a Modbus bus, whose readings have topics under
// prefix.
func (b Bus) Modbus(prefix string) modbus.Options {
	opts := b.Port.Bus
	if b.Port.Peer == nil {
		opts.CharTime = b.Port.CharTime()
	} else if modbus.PeerKind(b.Port.Peer.Device) != modbus.PeerRTUTCP {
		opts.WarmUp = 0 // a connection has lost nothing
	}
	opts.Prefix = prefix
	for _, name := range sortedKeys(b.Devices) {
		dev := *b.Devices[name].Modbus
		dev.Name, dev.Net = name, b.Port.Peer != nil
		opts.Devices = append(opts.Devices, dev)
	}
	return opts
}

func (c *Config) validateDevices(add func(error)) {
	opened := map[string]string{} // device -> the port that named it first
	for _, name := range sortedKeys(c.Ports) {
		key := join("port", name)
		p := c.Ports[name]
		if p.Peer != nil {
			add(rekey(p.Peer.Validate(), "", key))
		} else {
			add(rekey(p.Options.Validate(), "", key))
		}
		add(rekey(p.Bus.Validate(), "", key))
		device := p.Address()
		if first, ok := opened[device]; ok && device != "" {
			add(fmt.Errorf("%s.device: %q belongs to port %s; a device has one port", key, device, first))
		} else {
			opened[device] = name
		}
	}
	users := map[string]string{} // port -> the device that named it first
	for _, name := range sortedKeys(c.Devices) {
		key := join("device", name)
		if err := reading.ValidName(name); err != nil {
			add(fmt.Errorf("%s: the name %w", key, err))
			continue
		}
		dev := c.Devices[name]
		switch {
		case dev.Modbus != nil:
			dev.Modbus.Name, dev.Modbus.Net = name, c.Ports[dev.Port].Peer != nil
			add(rekey(dev.Modbus.Validate(), "device."+name, key))
		case dev.Serial != nil:
			add(rekey(dev.Serial.Options.Validate(), "device", key))
			add(rekey(dev.Serial.Health.Validate(), "", key))
		}
		p, known := c.Ports[dev.Port]
		first, shared := users[dev.Port]
		switch {
		case dev.Port == "":
			add(fmt.Errorf("%s.port: is missing; expected the name of a [port.NAME]", key))
		case !known:
			add(fmt.Errorf("%s.port: there is no [port.%s]%s", key, dev.Port, suggest(dev.Port, sortedKeys(c.Ports))))
		case shared && (dev.Adapter != AdapterModbus || c.Devices[first].Adapter != AdapterModbus):
			add(fmt.Errorf("%s.port: port %s belongs to device %s; only Modbus devices share one", key, dev.Port, first))
		case dev.Serial != nil && c.Ports[dev.Port].Peer != nil:
			add(fmt.Errorf("%s.port: port %s is a Modbus peer, no serial line", key, dev.Port))
		case dev.Serial != nil && dev.Serial.ChangesBaud() && c.Ports[dev.Port].Driver == port.DriverTarm:
			add(fmt.Errorf("%s: the meter is read with a change of the baud rate, which driver %q cannot do; driver %q can",
				join("port", dev.Port)+".driver", port.DriverTarm, port.DriverBugst))
		case dev.Modbus != nil && p.validateRTU() != nil:
			add(rekey(p.validateRTU(), "", join("port", dev.Port)))
		default:
			users[dev.Port] = name
		}
	}
}

// Warnings returns what is allowed and yet likely to end in trouble.
func (c *Config) Warnings() []string {
	out := c.accessWarnings()
	for _, name := range sortedKeys(c.Ports) {
		warnings := c.Ports[name].Warnings()
		if peer := c.Ports[name].Peer; peer != nil {
			warnings = peer.Warnings()
		}
		for _, w := range warnings {
			out = append(out, join("port", name)+"."+w)
		}
	}
	used := map[string]bool{}
	for _, dev := range c.Devices {
		used[dev.Port] = true
	}
	for _, g := range c.ModbusGateways {
		used[g.Port] = true
	}
	for _, srv := range c.ModbusServers {
		if port, ok := srv.Line(); ok {
			used[port] = true
		}
	}
	for _, name := range sortedKeys(c.Ports) {
		if !used[name] {
			out = append(out, join("port", name)+": no device uses it")
		}
	}
	out = append(out, c.servingWarnings()...)
	plain := c.Readings.Render == reading.FormJSON
	if c.HomeAssistant.Enabled && !(plain && c.Readings.Per == adapters.PerPoint) {
		out = append(out, `readings.render: Home Assistant needs readings as render = "json", per = "point"`)
	}
	if len(c.Nodes) > 0 && !plain {
		out = append(out, `readings.render: Sparkplug needs readings as render = "json"`)
	}
	for _, name := range sortedKeys(c.Uplinks) {
		for i, r := range c.Uplinks[name].Routes {
			if r.Form() != "" && c.Readings.Render != reading.FormJSON {
				out = append(out, fmt.Sprintf("%s.render: readings are %s here already (readings.render) and go as they are", index(join("uplink", name)+".route", i), c.Readings.Render))
			}
		}
	}
	buses := c.Buses()
	for _, name := range sortedKeys(buses) {
		if bus := buses[name]; bus.Adapter == AdapterModbus {
			for _, w := range bus.Modbus(c.Gateway.Readings).Warnings() {
				out = append(out, join("port", name)+": "+w)
			}
		}
	}
	out = append(out, uplink.Loops(sortedKeys(c.Uplinks), c.Uplinks)...)
	for _, name := range sortedKeys(c.Uplinks) {
		if len(c.Uplinks[name].Routes) == 0 {
			out = append(out, join("uplink", name)+": it has no routes; only statuses go to the cloud")
		}
		for _, w := range c.Uplinks[name].Warnings() {
			out = append(out, join("uplink", name)+": "+w)
		}
	}
	return out
}
