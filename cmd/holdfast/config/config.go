// Package config reads the gateway's configuration: one TOML file, drop-ins
// beside it, and values looked up in the environment, in files and in systemd
// credentials. It puts the Options of every package together and is strict: an
// unknown key, a wrong type or a value out of range is a [ProblemError] that names
// file, line, key and what was expected. It opens nothing but files and starts
// no goroutines.
package config

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"holdfast/adapters"
	"holdfast/adapters/discovery"
	"holdfast/adapters/reading"
	"holdfast/broker"
	"holdfast/broker/access"
	"holdfast/broker/listen"
	"holdfast/broker/topic"
	"holdfast/storeforward"
	"holdfast/storeforward/sparkplug"
	"holdfast/storeforward/uplink"
	"holdfast/storeforward/uplink/dial"
)

// Config is the whole configuration.
type Config struct {
	Gateway   Gateway                   `toml:"gateway"`
	Log       Log                       `toml:"log"`
	Control   Control                   `toml:"control"`
	Listeners []Listener                `toml:"listener"`
	Access    access.Options            `toml:"access"`
	Users     map[string]access.User    `toml:"user"`
	Broker    broker.Options            `toml:"broker"`
	Store     storeforward.Options      `toml:"store"`
	Uplinks   map[string]uplink.Options `toml:"uplink"`
	Readings  adapters.ReadingsOptions  `toml:"readings"`
	// Nodes are the Sparkplug edge nodes.
	Nodes map[string]sparkplug.Options `toml:"sparkplug"`
	// HomeAssistant is how the devices are announced to it.
	HomeAssistant discovery.Options `toml:"home_assistant"`
	Ports         map[string]Port   `toml:"port"`
	Devices       map[string]Device `toml:"device"`
	// ModbusServers have values as registers, ModbusGateways let others at a port.
	ModbusServers  map[string]ModbusServer  `toml:"modbus_server"`
	ModbusGateways map[string]ModbusGateway `toml:"modbus_gateway"`
}

// Gateway says who this gateway is.
type Gateway struct {
	// ID is the gateway's name in topics, client ids and statuses: one topic
	// level. Empty means the host name.
	ID string `toml:"id"`
	// Data is the folder of the store. Empty means what systemd passes in
	// STATE_DIRECTORY, else /var/lib/holdfast.
	Data string `toml:"data"`
	// Readings are the first levels of the topics of readings:
	// readings/device/point.
	Readings string `toml:"readings"`
	// Profiles is the folder of the user's own register maps. Empty means the
	// folder profiles beside the configuration.
	Profiles string `toml:"profiles"`
	// SparkplugAware has the broker keep the births of Sparkplug edge nodes that
	// pass through it, retained below $sparkplug/certificates/.
	SparkplugAware bool `toml:"sparkplug_aware"`
}

// Log says what is logged, to standard error.
type Log struct {
	// Level is "debug", "info", "warn" or "error".
	Level string `toml:"level"`
	// Format is "text" or "json".
	Format string `toml:"format"`
}

// Control is the Unix socket that `holdfast status` asks.
type Control struct {
	// Socket is its path. Empty means holdfast.sock in the folder systemd
	// passes in RUNTIME_DIRECTORY, else in the data folder.
	Socket string `toml:"socket"`
}

// Listener is one socket of the local broker.
type Listener struct {
	// Address is tcp://host:port, tls://host:port, ws://host:port,
	// wss://host:port, unix:///path or systemd:NAME; see [listen.ParseAddress].
	Address string `toml:"address"`
	broker.Listener
	// Identity says where the user names of the clients come from.
	Identity access.ListenerIdentity `toml:"identity"`
	listen.Options
}

func (l *Listener) setDefaults() {
	l.Anonymous = broker.AnonymousLoopback
	l.Identity = access.ByPassword
	l.Options = listen.DefaultOptions()
}

// Validate names every key that is wrong.
func (l *Listener) Validate() error {
	errs := []error{l.Listener.Validate()}
	if a, err := listen.ParseAddress(l.Address); err != nil {
		errs = append(errs, fmt.Errorf("listener.address: %w", err))
	} else {
		errs = append(errs, l.Options.Validate(a), l.validateIdentity(a))
	}
	return errors.Join(errs...)
}

// validateIdentity refuses names from where none can come: nobody would get in.
func (l *Listener) validateIdentity(a listen.Address) error {
	switch l.Identity {
	case access.ByCommonName, access.ByAlternativeName:
		if l.ClientCert != listen.ClientCertRequired && l.ClientCert != listen.ClientCertOptional {
			return fmt.Errorf("listener.identity: %s needs client_cert = \"required\" or \"optional\"", l.Identity)
		}
	case access.ByPeer:
		if a.TLS || a.WebSocket || a.Network == "tcp" {
			return fmt.Errorf("listener.identity: %s is for Unix sockets only", l.Identity)
		}
	default:
	}
	return nil
}

// DefaultListen is where the local broker listens unless told otherwise.
const DefaultListen = "tcp://127.0.0.1:1883"

// DefaultFile is read when no file is named.
const DefaultFile = "/etc/holdfast/holdfast.toml"

// Default returns the configuration of a gateway that is told nothing.
func Default() Config {
	l := Listener{Address: DefaultListen}
	l.setDefaults()
	store := storeforward.DefaultOptions()
	store.Path = "" // in the data folder
	return Config{
		Gateway:       Gateway{Readings: "sensors"},
		Log:           Log{Level: "info", Format: "text"},
		Listeners:     []Listener{l},
		Access:        access.DefaultOptions(),
		Broker:        broker.DefaultOptions(),
		HomeAssistant: discovery.DefaultOptions(),
		Store:         store,
		Readings:      adapters.DefaultReadingsOptions(),
	}
}

// elementDefaults is where maps of Options that live in other packages get
// their defaults from.
var elementDefaults = map[reflect.Type]func() any{
	reflect.TypeFor[uplink.Options]():    func() any { return uplink.DefaultOptions() },
	reflect.TypeFor[sparkplug.Options](): func() any { return sparkplug.DefaultOptions() },
}

// Load reads the file and its drop-ins: every *.toml in the folder beside it
// that is called like the file with .d for .toml, in alphabetical order. What a
// drop-in says is laid over what came before: tables are merged key by key,
// arrays are replaced. The error joins every [ProblemError] found.
func Load(file string) (Config, error) {
	root, err := load(file)
	if err != nil {
		return Config{}, err
	}
	return decodeConfig(root)
}

// load reads the file with its drop-ins laid over it.
func load(file string) (*node, error) {
	root, err := parseFile(file)
	if err != nil {
		return nil, err
	}
	dropins, err := filepath.Glob(filepath.Join(strings.TrimSuffix(file, ".toml")+".d", "*.toml"))
	if err != nil {
		return nil, fmt.Errorf("drop-ins of %s: %w", file, err)
	}
	slices.Sort(dropins)
	for _, name := range dropins {
		over, err := parseFile(name)
		if err != nil {
			return nil, err
		}
		root = merge(root, over)
	}
	return root, nil
}

func decodeConfig(root *node) (Config, error) {
	cfg := Default()
	d := decoder{places: map[string]position{}}
	d.profiles = profilesUnder(root)
	d.decode("", root, reflect.ValueOf(&cfg).Elem())
	if len(d.problems) > 0 {
		return Config{}, d.err()
	}
	cfg.Resolve()
	if err := cfg.Validate(); err != nil {
		d.place(err, root.at.file)
		return Config{}, d.err()
	}
	return cfg, nil
}

// place turns the errors of Validate, which start with a key, into Problems
// with the place where that key, or the nearest table around it, was written.
func (d *decoder) place(err error, file string) {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range joined.Unwrap() {
			d.place(e, file)
		}
		return
	}
	key, text, ok := strings.Cut(err.Error(), ": ")
	if !ok {
		d.problems = append(d.problems, err)
		return
	}
	at := position{file: file}
	for k := key; k != ""; {
		if p, ok := d.places[k]; ok {
			at = p
			break
		}
		cut := strings.LastIndexAny(k, ".[")
		if cut < 0 {
			break
		}
		k = k[:cut]
	}
	d.problem(at, key, "%s", text)
}

// Resolve fills in what depends on the machine and on other keys. Load has
// done it already.
func (c *Config) Resolve() {
	if c.Gateway.ID == "" {
		c.Gateway.ID = hostName()
	}
	if c.Gateway.Data == "" {
		c.Gateway.Data = "/var/lib/holdfast"
		if dir := firstPath(os.Getenv("STATE_DIRECTORY")); dir != "" {
			c.Gateway.Data = dir
		}
	}
	if c.Control.Socket == "" {
		c.Control.Socket = c.defaultSocket()
	}
	if c.Store.Path == "" {
		c.Store.Path = c.defaultStore()
	}
	for name, u := range c.Uplinks {
		u.Gateway = c.Gateway.ID
		c.Uplinks[name] = u
	}
	for name, n := range c.Nodes {
		n.Gateway = c.Gateway.ID
		if len(n.Topics) == 0 {
			n.Topics = []string{c.Gateway.Readings + "/#"}
		}
		c.Nodes[name] = n
	}
}

func (c *Config) defaultSocket() string {
	dir := firstPath(os.Getenv("RUNTIME_DIRECTORY"))
	if dir == "" {
		dir = c.Gateway.Data
	}
	return filepath.Join(dir, "holdfast.sock")
}

func (c *Config) defaultStore() string { return filepath.Join(c.Gateway.Data, "holdfast.db") }

// firstPath is the first of the folders systemd separates by colons.
func firstPath(s string) string {
	dir, _, _ := strings.Cut(s, ":")
	return dir
}

// hostName is the host name as one topic level.
func hostName() string {
	name, err := os.Hostname()
	if err != nil || !oneLevel(name) {
		return "holdfast"
	}
	return name
}

func oneLevel(s string) bool {
	return topic.ValidName(s) == nil && !strings.ContainsAny(s, "/$")
}

// Validate says everything that is wrong, each error beginning with the key.
func (c *Config) Validate() error {
	var errs []error
	add := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}
	if !oneLevel(c.Gateway.ID) {
		add(fmt.Errorf("gateway.id: %q is not one topic level (no / + # $)", c.Gateway.ID))
	}
	if err := topic.ValidName(c.Gateway.Readings); err != nil || strings.HasPrefix(c.Gateway.Readings, "$") {
		add(fmt.Errorf("gateway.readings: %q is not the start of a topic", c.Gateway.Readings))
	}
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, c.Log.Level) {
		add(fmt.Errorf(`log.level: %q is not one of "debug", "info", "warn", "error"`, c.Log.Level))
	}
	if !slices.Contains([]string{"text", "json"}, c.Log.Format) {
		add(fmt.Errorf(`log.format: %q is not one of "text", "json"`, c.Log.Format))
	}
	for i, l := range c.Listeners {
		key := index("listener", i)
		add(rekey(l.Validate(), "listener", key))
		for j := range i {
			if c.Listeners[j].Address == l.Address {
				add(fmt.Errorf("%s.address: %q is listened on already", key, l.Address))
			}
		}
	}
	c.validateAccess(add)
	add(c.Broker.Validate())
	add(c.Store.Validate())
	add(rekey(c.Readings.Validate(), "", "readings"))
	for _, name := range sortedKeys(c.Uplinks) {
		key := join("uplink", name)
		if !oneLevel(name) {
			add(fmt.Errorf("%s: the name is not one topic level (no / + # $)", key))
		}
		add(rekey(c.Uplinks[name].Validate(), "uplink", key))
		for i, r := range c.Uplinks[name].Routes {
			if r.Form() == "" && r.Template == "" {
				continue
			}
			if _, err := reading.NewRenderer(reading.Form(cmp.Or(r.Form(), string(reading.FormJSON))), r.Template, ""); err != nil {
				add(fmt.Errorf("%s.%w", index(key+".route", i), err))
			}
		}
	}
	for _, name := range sortedKeys(c.Nodes) {
		key := join("sparkplug", name)
		if !oneLevel(name) {
			add(fmt.Errorf("%s: the name is not one topic level (no / + # $)", key))
		}
		n := c.Nodes[name]
		add(rekey(n.Options.Validate(), "uplink", key))
		add(rekey(n.Validate(), "", key))
	}
	add(rekey(c.HomeAssistant.Validate(), "", "home_assistant"))
	c.validateClientIDs(add)
	c.validateDevices(add)
	c.validateServing(add)
	return errors.Join(errs...)
}

// validateClientIDs finds uplinks that would throw each other out: a broker
// keeps one connection, and one session, for a client id.
func (c *Config) validateClientIDs(add func(error)) {
	type session struct{ address, clientID string }
	taken := map[session]string{}
	for _, name := range sortedKeys(c.Uplinks) {
		u := c.Uplinks[name]
		id := u.ClientID
		if id == "" {
			id = c.Gateway.ID
		}
		for _, raw := range u.Addresses() {
			t, err := dial.ParseTarget(raw)
			if err != nil {
				continue // which is a problem of its own
			}
			s := session{t.Address(), id}
			if first, ok := taken[s]; ok && first != name {
				add(fmt.Errorf("%s.client_id: %q is that of uplink %s at the same broker; give each its own", join("uplink", name), id, first))
				break
			}
			taken[s] = name
		}
	}
}

// rekey replaces the first word of the key of each error below err.
func rekey(err error, from, to string) error {
	if err == nil {
		return nil
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var errs []error
		for _, e := range joined.Unwrap() {
			errs = append(errs, rekey(e, from, to))
		}
		return errors.Join(errs...)
	}
	text := err.Error()
	if rest, ok := strings.CutPrefix(text, from); ok && from != "" {
		return errors.New(to + rest)
	}
	return errors.New(to + "." + text)
}
