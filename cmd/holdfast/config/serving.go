package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"strings"

	"holdfast/adapters/modbus"
	"holdfast/adapters/modbus/server"
	"holdfast/adapters/reading"
	"holdfast/broker/listen"
)

// ModbusListener is where masters connect.
type ModbusListener struct {
	// Address is tcp://host:port or tls://host:port.
	Address string `toml:"address"`
	// The rest is that of a [listen.Options].
	CertFile      string            `toml:"cert_file"`
	KeyFile       string            `toml:"key_file"`
	ClientCAFile  string            `toml:"client_ca_file"`
	ClientCert    listen.ClientCert `toml:"client_cert"`
	TLSMinVersion string            `toml:"tls_min_version"`
}

func defaultModbusListener() ModbusListener {
	o := listen.DefaultOptions()
	return ModbusListener{ClientCert: o.ClientCert, TLSMinVersion: o.TLSMinVersion}
}

// Listen returns the options for [listen.Open].
func (l ModbusListener) Listen() listen.Options {
	o := listen.DefaultOptions()
	o.CertFile, o.KeyFile, o.ClientCAFile, o.ClientCert, o.TLSMinVersion = l.CertFile, l.KeyFile, l.ClientCAFile, l.ClientCert, l.TLSMinVersion
	return o
}

func (l ModbusListener) validate(key string) error {
	a, err := listen.ParseAddress(l.Address)
	switch {
	case l.Address == "":
		return fmt.Errorf("%s.address: is missing; expected tcp://host:port or tls://host:port", key)
	case err != nil:
		return fmt.Errorf("%s.address: %w", key, err)
	case a.Network != "tcp" || a.WebSocket:
		return fmt.Errorf("%s.address: %q is neither tcp://host:port nor tls://host:port", key, l.Address)
	}
	return rekey(l.Listen().Validate(a), "listener", key)
}

// ModbusServer has last values as registers. Its address may be rtu:PORT too.
type ModbusServer struct {
	ModbusListener
	server.RegistersOptions
}

func (s *ModbusServer) setDefaults() {
	*s = ModbusServer{ModbusListener: defaultModbusListener(), RegistersOptions: server.DefaultRegistersOptions()}
}

// decodeNode reads the keys that fit the address: nobody connects on a serial line.
func (s *ModbusServer) decodeNode(d *decoder, key string, n *node) {
	table, ok := n.value.(map[string]*node)
	if !ok {
		d.problem(n.at, key, "expected a table, found %s", describe(n))
		return
	}
	fields := fieldsOf(reflect.ValueOf(s).Elem())
	useless := map[string]reflect.Value{}
	if a := table["address"]; a != nil {
		d.decode(join(key, "address"), a, fields["address"])
	}
	if _, ok := s.Line(); ok {
		for _, k := range []string{"allow", "max_connections", "idle_timeout", "cert_file", "key_file", "client_ca_file", "client_cert", "tls_min_version"} {
			useless[k] = fields[k]
			delete(fields, k)
		}
	}
	d.decodeKnown(key, table, fields, useless, "a server on a serial line")
}

// Line is the name of the [port.NAME] that it is a slave on, if it is one.
func (s *ModbusServer) Line() (port string, ok bool) { return strings.CutPrefix(s.Address, "rtu:") }

// ModbusGateway lets other masters at the units of a port.
type ModbusGateway struct {
	ModbusListener
	// Port is the name of a [port.NAME].
	Port string `toml:"port"`
	server.GatewayOptions
}

func (g *ModbusGateway) setDefaults() {
	*g = ModbusGateway{ModbusListener: defaultModbusListener(), GatewayOptions: server.DefaultGatewayOptions()}
}

// Serving is one of the two.
type Serving struct {
	Server  *ModbusServer
	Gateway *ModbusGateway
	// Line is the port that a server has to itself; nil of all others.
	Line *Port
}

// ModbusServing are the servers and gateways, by their tables: "modbus_server.NAME".
func (c *Config) ModbusServing() map[string]Serving {
	all := map[string]Serving{}
	for name, s := range c.ModbusServers {
		serving := Serving{Server: &s}
		if port, ok := s.Line(); ok {
			serving.Line = new(c.Ports[port])
		}
		all[join("modbus_server", name)] = serving
	}
	for name, g := range c.ModbusGateways {
		all[join("modbus_gateway", name)] = Serving{Gateway: &g}
	}
	return all
}

func (c *Config) validateServing(add func(error)) {
	opened := map[string]string{} // address -> who named it first
	for _, l := range c.Listeners {
		opened[place(l.Address)] = "a listener of MQTT"
	}
	check := func(key string, l ModbusListener) {
		add(l.validate(key))
		if first, taken := opened[place(l.Address)]; taken && l.Address != "" {
			add(fmt.Errorf("%s.address: %s is that of %s", key, l.Address, first))
		} else {
			opened[place(l.Address)] = key
		}
	}
	for _, name := range sortedKeys(c.ModbusServers) {
		key, s := join("modbus_server", name), c.ModbusServers[name]
		if port, ok := s.Line(); ok {
			c.validateLine(add, name, port)
		} else {
			check(key, s.ModbusListener)
		}
		add(rekey(s.RegistersOptions.Validate(), "", key))
	}
	for _, name := range sortedKeys(c.ModbusGateways) {
		key, g := join("modbus_gateway", name), c.ModbusGateways[name]
		check(key, g.ModbusListener)
		add(rekey(g.GatewayOptions.Validate(), "", key))
		p, known := c.Ports[g.Port]
		switch {
		case g.Port == "":
			add(fmt.Errorf("%s.port: is missing; expected the name of a [port.NAME]", key))
			continue
		case !known:
			add(fmt.Errorf("%s.port: there is no [port.%s]%s", key, g.Port, suggest(g.Port, sortedKeys(c.Ports))))
			continue
		}
		for _, device := range sortedKeys(c.Devices) {
			if d := c.Devices[device]; d.Port == g.Port && d.Adapter != AdapterModbus {
				add(fmt.Errorf("%s.port: port %s belongs to device %s, which does not speak Modbus", key, g.Port, device))
			}
		}
		if err := p.validateRTU(); err != nil {
			add(errors.New(join("port", g.Port) + "." + err.Error()))
		}
	}
}

// validateLine checks a server that is a slave on a line: nobody else may use it here.
func (c *Config) validateLine(add func(error), name, port string) {
	key, s := join("modbus_server", name), c.ModbusServers[name]
	refuse := func(format string, args ...any) {
		add(fmt.Errorf("%s.address: %s", key, fmt.Sprintf(format, args...)))
	}
	add(rekey(server.ValidLineUnits(s.Units), "", key))
	p, known := c.Ports[port]
	switch {
	case !known:
		refuse("there is no [port.%s]%s", port, suggest(port, sortedKeys(c.Ports)))
		return
	case p.Peer != nil:
		refuse("port %s is a Modbus peer, no serial line", port)
		return
	case p.Bus.Framing == modbus.FramingASCII:
		refuse("port %s has framing = \"ascii\"; a server speaks RTU", port)
	case p.validateRTU() != nil:
		add(errors.New(join("port", port) + "." + p.validateRTU().Error()))
	}
	for _, device := range sortedKeys(c.Devices) {
		if c.Devices[device].Port == port {
			refuse("port %s belongs to device %s", port, device)
		}
	}
	for _, gateway := range sortedKeys(c.ModbusGateways) {
		if c.ModbusGateways[gateway].Port == port {
			refuse("port %s belongs to %s", port, join("modbus_gateway", gateway))
		}
	}
	for _, other := range sortedKeys(c.ModbusServers) {
		o := c.ModbusServers[other]
		if first, ok := o.Line(); ok && first == port && other < name {
			refuse("port %s belongs to %s", port, join("modbus_server", other))
		}
	}
}

// place is an address without what is spoken there.
func place(address string) string {
	_, at, _ := strings.Cut(address, "://")
	return at
}

// servingWarnings returns what is allowed and yet likely to end in trouble.
func (c *Config) servingWarnings() []string {
	var out []string
	for _, name := range sortedKeys(c.ModbusServers) {
		key, s := join("modbus_server", name), c.ModbusServers[name]
		if len(s.Registers) == 0 {
			out = append(out, key+": it has no registers")
		}
		if c.Readings.Render != reading.FormJSON {
			out = append(out, key+`: values of the devices here are not understood unless readings.render = "json"`)
		}
		for i, r := range s.Registers {
			if _, known := c.Devices[r.Device]; !known {
				out = append(out, fmt.Sprintf("%s.device: there is no [device.%s]: values come from MQTT clients only", index(key+".register", i), r.Device))
			}
		}
		out = append(out, openTo(key, s.ModbusListener, s.Allow)...)
	}
	for _, name := range sortedKeys(c.ModbusGateways) {
		g := c.ModbusGateways[name]
		out = append(out, openTo(join("modbus_gateway", name), g.ModbusListener, g.Allow)...)
	}
	return out
}

// openTo warns of what everybody may use: Modbus knows no passwords.
func openTo(key string, l ModbusListener, allow []string) []string {
	host, _, err := net.SplitHostPort(place(l.Address))
	ip, _ := netip.ParseAddr(host)
	if err != nil || host == "localhost" || ip.IsLoopback() || len(allow) > 0 || l.ClientCert == listen.ClientCertRequired {
		return nil
	}
	return []string{key + ".allow: is empty: whoever reaches " + l.Address + " may connect"}
}
