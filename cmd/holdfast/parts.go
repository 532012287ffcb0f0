package main

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"holdfast/adapters"
	"holdfast/adapters/modbus"
	"holdfast/adapters/reading"
	"holdfast/broker"
	"holdfast/broker/listen"
	"holdfast/cmd/holdfast/config"
	"holdfast/cmd/holdfast/console"
	"holdfast/storeforward/uplink"
)

// running is one part that can be stopped and replaced while the rest goes on.
type running struct {
	name     string
	settings any // as configured; a change means a replacement
	cancel   context.CancelCauseFunc
	done     chan struct{}
	ended    bool // stop has seen it end
	// failure is why the part ended without being asked to; nil while it runs.
	failure atomic.Pointer[error]
	status  func() any
	// state is how an uplink is, without a look at the disk; nil for others.
	state func() uplink.State
	// upFor is how long an uplink has been up, 0 while it is not; nil for others.
	upFor func() time.Duration
	// proven tells an uplink on trial that its configuration stays; nil for others.
	proven  func()
	cleanup func()
	// devices are those behind a port; nil for other parts.
	devices func() []adapters.Device
	// bus is a Modbus bus, device what it is behind; nil for other parts.
	bus    *modbus.Bus
	device string
}

// stop ends the part; why is what it tells others, such as the cloud. It is an
// error when the part has not ended with ctx: then it is left behind.
func (r *running) stop(ctx context.Context, why error) error {
	r.cancel(why)
	select {
	case <-r.done:
	case <-ctx.Done():
		select {
		case <-r.done: // it was only late to be asked
		default:
			return fmt.Errorf("%s did not stop in time", r.name)
		}
	}
	r.ended = true
	if r.cleanup != nil {
		r.cleanup()
	}
	return nil
}

// startPart runs fn until the part is stopped. An error before that is logged,
// is a problem in the status, and has the part started anew by the next reload.
func (gw *gateway) startPart(ctx context.Context, name string, settings any, fn func(context.Context) error) *running {
	ctx, cancel := context.WithCancelCause(ctx)
	r := &running{name: name, settings: settings, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		if err := fn(ctx); err != nil && ctx.Err() == nil {
			r.failure.Store(&err)
			gw.log.Error("part ended", "part", name, "err", err)
		}
	}()
	return r
}

// within calls fn with that long at most.
func within(ctx context.Context, limit time.Duration, fn func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return fn(ctx)
}

// stopAll stops the parts at the same time.
func stopAll(ctx context.Context, parts map[string]*running, why error) error {
	var wg sync.WaitGroup
	names := sorted(parts)
	errs := make([]error, len(names))
	for i, name := range names {
		wg.Go(func() { errs[i] = parts[name].stop(ctx, why) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// drop stops the parts that want does not name, or has other settings for. One
// that does not stop stays among the parts, without settings, so that the next
// reload waits for it again: nothing may take its place while it holds its port.
func drop[S any](grace context.Context, gw *gateway, parts map[string]*running, want map[string]S) error {
	gone := map[string]*running{}
	for name, p := range parts {
		if s, ok := want[name]; !ok || !reflect.DeepEqual(p.settings, any(s)) || p.failure.Load() != nil {
			p.settings = nil
			gone[name] = p
		}
	}
	err := stopAll(grace, gone, errChanged)
	gw.update(func() {
		for name, p := range gone {
			if p.ended {
				delete(parts, name)
			}
		}
	})
	return err
}

func listenersByAddress(ls []config.Listener) map[string]config.Listener {
	m := make(map[string]config.Listener, len(ls))
	for _, l := range ls {
		m[l.Address] = l
	}
	return m
}

func (gw *gateway) startUplink(ctx context.Context, name string, settings uplink.Options) (*running, error) {
	opts := settings
	opts.Software = version
	_, opts.OnTrial = gw.trials[name]
	opts.ClockFloor = buildTime()
	if seen := gw.g.store.ClockFloor(); seen.After(opts.ClockFloor) {
		opts.ClockFloor = seen
	}
	opts.ClockSynchronised = func() bool { return gw.clock.Now().Synchronised }
	opts.Epoch = machineID() + "/" + gw.g.store.ID()
	opts.Rendering = func(form, template string) (uplink.Rendering, error) {
		r, err := reading.NewRenderer(reading.Form(form), template, opts.Gateway)
		return rendering{r}, err
	}
	opts.Routes = append(slices.Clone(opts.Routes), config.StatusRoute(opts.Gateway))
	u, err := uplink.New(name, opts, gw.g.store, gw.g.broker, gw.parts)
	if err != nil {
		return nil, err
	}
	var routes []broker.Route
	for _, r := range u.Routes() {
		routes = append(routes, broker.Route{Filter: r.Filter, QoS: r.QoS})
	}
	if err := gw.g.broker.AddRecipient(broker.Recipient{Name: u.Name(), Queue: u.Queue(), Routes: routes, Offer0: u.Offer0}); err != nil {
		return nil, fmt.Errorf("uplink %s: %w", name, err)
	}
	r := gw.startPart(ctx, "uplink "+name, settings, u.Run)
	r.status = func() any { return u.Status() }
	r.state = u.State
	r.upFor, r.proven = u.UpFor, u.Proven
	return r, nil
}

// openListener opens the sockets; the kernel lets clients wait until they are
// served.
func (gw *gateway) openListener(ctx context.Context, l config.Listener) (*listen.Endpoint, error) {
	opts := l.Options
	opts.HandshakeTimeout = gw.connectTimeout
	endpoint, err := listen.Open(ctx, l.Address, opts, gw.inherited, gw.parts)
	if err != nil {
		return nil, fmt.Errorf("listener %s: %w", l.Address, err)
	}
	return endpoint, nil
}

func (gw *gateway) startListener(ctx context.Context, l config.Listener, endpoint *listen.Endpoint) *running {
	gw.log.Info("listening", "address", l.Address)
	policy := l.Listener
	policy.Name = l.Label()
	r := gw.startPart(ctx, "listener "+l.Address, l, func(ctx context.Context) error {
		// One of its sockets without the others would only look alive.
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		var serving sync.WaitGroup
		errs := make([]error, len(endpoint.Listeners()))
		for i, nl := range endpoint.Listeners() {
			serving.Go(func() {
				defer cancel()
				errs[i] = gw.g.broker.Serve(ctx, nl, policy)
			})
		}
		serving.Wait()
		return errors.Join(errs...)
	})
	r.status = func() any { return endpoint.Status() }
	return r
}

// Buses is part of console.Buses.
func (gw *gateway) Buses() []console.BusInfo {
	gw.mu.Lock()
	defer gw.mu.Unlock()
	list := []console.BusInfo{}
	for _, name := range sorted(gw.buses) {
		if r := gw.buses[name]; r.bus != nil {
			list = append(list, console.BusInfo{Port: name, Device: r.device})
		}
	}
	return list
}

// Ask is part of console.Buses.
func (gw *gateway) Ask(ctx context.Context, port string, r modbus.Request, timeout time.Duration) ([]byte, error) {
	gw.mu.Lock()
	part := gw.buses[port]
	gw.mu.Unlock()
	if part == nil || part.bus == nil {
		return nil, console.ErrNoBus
	}
	return part.bus.DoWithin(ctx, r, timeout)
}

func (gw *gateway) startBus(ctx context.Context, name, readings string, bus config.Bus) (*running, error) {
	adapter, status, err := gw.g.newBus(name, readings, bus, gw.clock, gw.parts)
	if err != nil {
		return nil, err
	}
	s := adapters.NewSupervisor(adapter, adapters.DefaultSuperviseOptions(), gw.parts)
	forget := func() {
		for device := range bus.Devices {
			gw.g.monitor.Remove(device)
			gw.g.watchers.remove(device)
		}
	}
	stop := func() {}
	if commanded, ok := adapter.(adapters.Commanded); ok {
		from := localCommands{b: gw.g.broker, name: name, own: []string{readings + "/", config.OwnTopics}}
		if stop, err = commanded.TakeCommands(from); err != nil {
			forget()
			return nil, fmt.Errorf("port %s: %w", name, err)
		}
	}
	r := gw.startPart(ctx, "port "+name, bus, func(ctx context.Context) error {
		defer stop()
		s.Run(ctx)
		return nil
	})
	if l, ok := adapter.(lister); ok {
		r.devices = l.Devices
	}
	if b, ok := adapter.(*modbus.Bus); ok {
		r.bus, r.device = b, bus.Port.Address()
	}
	r.status = func() any { return busStatus{Name: name, Supervisor: s.Status(), Bus: status()} }
	r.cleanup = forget
	return r, nil
}
