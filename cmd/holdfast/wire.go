package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"holdfast/adapters"
	"holdfast/adapters/health"
	"holdfast/adapters/modbus"
	"holdfast/adapters/modbus/server"
	"holdfast/adapters/port"
	"holdfast/adapters/reading"
	"holdfast/adapters/serial"
	"holdfast/broker"
	"holdfast/broker/access"
	"holdfast/broker/durable"
	"holdfast/broker/message"
	"holdfast/cmd/holdfast/config"
	"holdfast/storeforward"
	"holdfast/storeforward/pack"
	"holdfast/storeforward/sparkplug"
	"holdfast/storeforward/uplink"
)

// The three columns never import each other; that they fit is proven here.
var (
	_ broker.Store       = (*storeforward.Store)(nil)
	_ broker.Auth        = (*access.Access)(nil)
	_ uplink.Local       = (*broker.Broker)(nil)
	_ adapters.Publisher = localPublisher{}
	_ sparkplug.Site     = edgeSite{}
	_ uplink.Rendering   = rendering{}
	_ modbus.Sink        = (*adapters.Readings)(nil)
	_ adapters.Commands  = localCommands{}
	_ server.Writer      = (*commandWriter)(nil)
)

// rendering is how uplinks render readings, without knowing what one is.
type rendering struct{ *reading.Renderer }

func (r rendering) Pack(b []byte, records []pack.Record) []byte {
	messages := make([]reading.Packed, len(records))
	for i := range records {
		c := &records[i]
		messages[i] = reading.Packed{Local: c.Local, Remote: c.Topic, Time: c.Time, Payload: c.Payload}
	}
	return r.Renderer.Pack(b, messages)
}

// localPublisher is the adapters' way into the broker's route.
type localPublisher struct{ b *broker.Broker }

func (p localPublisher) Publish(m *message.Message, done func(error)) error {
	return p.b.Publish(m, durable.Origin{}, done)
}

// retryable says which refusals pass by themselves. A message that the broker
// finds invalid stays so.
func retryable(err error) bool { return errors.Is(err, durable.ErrFull) }

// connections are what was last told of the uplinks, by name: 1 connected, 0 not.
type connections map[string]string

// tell has each change published under the name that Mosquitto gives the state of
// a bridge, $SYS/broker/connection/NAME/state.
func (c connections) tell(uplinks map[string]*running, publish func(name, value string)) {
	say := func(name, value string) { publish("connection/"+name+"/state", value) }
	for name := range c {
		if uplinks[name] == nil {
			delete(c, name)
			say(name, "")
		}
	}
	for _, name := range sorted(uplinks) {
		value := "0"
		if uplinks[name].upFor() > 0 {
			value = "1"
		}
		if c[name] != value {
			c[name] = value
			say(name, value)
		}
	}
}

// graph is the gateway's parts, built and connected but not running.
type graph struct {
	store    *storeforward.Store
	access   *access.Access
	broker   *broker.Broker
	monitor  *health.Monitor
	readings *adapters.Outbox   // between the buses and the broker
	sink     *adapters.Readings // what the buses put into it
	statuses *adapters.Outbox   // between the monitor and the broker
	repairs  chan storeforward.Repair
	// described, of 1, tells that a device has said what it measures.
	described chan struct{}
	watchers  deviceWatchers
}

// build opens the store and connects the parts that live as long as the
// process. Uplinks, listeners and buses come and go with the configuration:
// see reconcile.
func build(ctx context.Context, cfg *config.Config, rules *access.Rules, clock *reading.Clock, log *slog.Logger) (g *graph, err error) {
	opts := cfg.Store
	opts.ClockSynchronised = func() bool { return clock.Now().Synchronised }
	repairs := make(chan storeforward.Repair, maxRepairs)
	opts.OnRepair = func(r storeforward.Repair) {
		select {
		case repairs <- r:
		default: // see maxRepairs
		}
	}
	store, err := storeforward.Open(ctx, opts, log)
	if err != nil {
		return nil, err
	}
	g = &graph{store: store, repairs: repairs, described: make(chan struct{}, 1), access: access.New(rules, log), watchers: deviceWatchers{nodes: map[string]deviceWatcher{}}}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.close(ctx))
		}
	}()
	bopts := cfg.Broker
	bopts.Auth = g.access
	bopts.Stored = store.Held
	bopts.Version, bopts.Built = "holdfast version "+version, buildTime().UTC().Format(time.RFC3339)
	if g.broker, err = broker.New(bopts, store, log); err != nil {
		return nil, err
	}
	oopts := adapters.DefaultOutboxOptions()
	oopts.Retry = retryable
	pub := localPublisher{g.broker}
	ropts := cfg.Readings
	ropts.Retry = retryable
	if g.readings, err = adapters.NewOutbox("readings", pub, ropts.OutboxOptions, log); err != nil {
		return nil, err
	}
	if g.sink, err = adapters.NewReadings(g.readings, cfg.Gateway.ID, store.StartNumber(), ropts); err != nil {
		return nil, err
	}
	if g.statuses, err = adapters.NewOutbox("statuses", pub, oopts, log); err != nil {
		return nil, err
	}
	gateway, session := cfg.Gateway.ID, store.StartNumber()
	g.monitor = health.NewMonitor(func(c health.Change) {
		g.watchers.tell(c)
		g.statuses.Put(c.Device, &message.Message{
			Topic:   config.DeviceStatusTopic(gateway, c.Device),
			Payload: c.AppendJSON(nil, session),
			QoS:     1,
			Retain:  true,
		})
	})
	return g, nil
}

// newModbus builds the bus behind a serial port or a peer on the network.
func (g *graph) newModbus(name, readings string, bus config.Bus, line modbus.Line, log *slog.Logger) (*modbus.Bus, error) {
	opts := bus.Modbus(readings)
	opts.OnDevices = func() {
		select {
		case g.described <- struct{}{}:
		default: // one is enough
		}
	}
	b, err := modbus.New(name, opts, line, g.sink, g.monitor, log)
	if err != nil {
		return nil, fmt.Errorf("port %s: %w", name, err)
	}
	return b, nil
}

// newBus builds the adapter of one port with the devices behind it.
func (g *graph) newBus(name, readings string, bus config.Bus, clock *reading.Clock, log *slog.Logger) (adapter adapters.Adapter, status func() any, err error) {
	if peer := bus.Port.Peer; peer != nil { // of Modbus, says the configuration
		line, err := modbus.NewPeer(*peer)
		if err != nil {
			return nil, nil, fmt.Errorf("port %s: %w", name, err)
		}
		b, err := g.newModbus(name, readings, bus, line, log)
		if err != nil {
			return nil, nil, err
		}
		return b, func() any { return b.Status() }, nil
	}
	line, err := port.NewLine(name, bus.Port.Options, log)
	if err != nil {
		return nil, nil, fmt.Errorf("port %s: %w", name, err)
	}
	switch bus.Adapter {
	case config.AdapterModbus:
		b, err := g.newModbus(name, readings, bus, modbus.PortLine(line), log)
		if err != nil {
			return nil, nil, err
		}
		return b, func() any { return modbusStatus{b.Status(), line.Status()} }, nil
	case config.AdapterSerial:
		for device, settings := range bus.Devices { // exactly one, says the configuration
			tracker, err := g.monitor.Add(device, settings.Serial.Health)
			if err != nil {
				return nil, nil, fmt.Errorf("device %s: %w", device, err)
			}
			opts := settings.Serial.Options
			opts.TopicPrefix = readings
			a, err := serial.New(device, opts, line, g.sink, tracker, clock, log)
			if err != nil {
				g.monitor.Remove(device)
				return nil, nil, fmt.Errorf("device %s: %w", device, err)
			}
			return a, func() any { return a.Status() }, nil
		}
		panic("config passed a port without a device")
	default:
		panic("config passed adapter " + bus.Adapter)
	}
}

// modbusStatus is a bus with the port that it is on.
type modbusStatus struct {
	modbus.Status
	Port port.Status `json:"port"`
}

// close ends the parts in the reverse order of build.
func (g *graph) close(ctx context.Context) error {
	var errs []error
	for _, o := range []*adapters.Outbox{g.readings, g.statuses} {
		if o == nil {
			continue
		}
		if err := o.Close(ctx); err != nil {
			errs = append(errs, fmt.Errorf("drain readings: %w", err))
		}
	}
	if g.broker != nil {
		if err := g.broker.Shutdown(ctx); err != nil {
			errs = append(errs, fmt.Errorf("stop broker: %w", err))
		}
	}
	return errors.Join(append(errs, g.store.Close())...)
}
