package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"holdfast/adapters"
	"holdfast/adapters/reading"
	"holdfast/broker"
	"holdfast/broker/access"
	"holdfast/broker/listen"
	"holdfast/cmd/holdfast/config"
	"holdfast/cmd/holdfast/console"
	"holdfast/storeforward"
	"holdfast/storeforward/uplink"
)

// stopTimeout bounds a clean stop. The unit's TimeoutStopSec is longer.
const stopTimeout = 20 * time.Second

// machineID tells this machine from one that was given a copy of its card.
func machineID() string {
	id, err := os.ReadFile("/etc/machine-id")
	if err != nil {
		return "" // a machine without one: then a copy cannot be told
	}
	return strings.TrimSpace(string(id))
}

// reportEvery is how often the line that systemd shows, and what $SYS says of the
// uplinks, is looked at.
const reportEvery = 5 * time.Second

// gateway is the running daemon: the parts that live as long as the process,
// and those that come and go with the configuration.
//
//	            start                                 stop
//	lock -> store -> broker -> control -> sockets -> uplinks -> listeners -> buses -> READY
//	                                                  the other way round, each with a
//	                                                  share of stopTimeout: see stop
type gateway struct {
	log     *slog.Logger // the gateway's own
	parts   *slog.Logger // what the parts make theirs of
	sup     supervisor
	clock   *reading.Clock
	started time.Time
	g       *graph
	// inherited are the sockets from systemd, open until the end.
	inherited *listen.Inherited
	// connectTimeout is the broker's, which is fixed at the start.
	connectTimeout time.Duration

	// One goroutine changes what follows, that of runGateway, under mu; it
	// reads without. It holds mu for lines, never while a part starts or
	// stops: status and watchdog ask meanwhile.
	mu        sync.Mutex
	cfg       config.Config       // guarded by mu
	uplinks   map[string]*running // guarded by mu
	listeners map[string]*running // guarded by mu; by address
	buses     map[string]*running // guarded by mu; by port
	reloads   reloadStatus        // guarded by mu
	reverted  map[string]string   // guarded by mu; by uplink: why its configuration is not that of the file
	trials    map[string]trial    // by uplink; of the goroutine of runGateway alone
}

// update makes a change that others may see.
func (gw *gateway) update(change func()) {
	gw.mu.Lock()
	defer gw.mu.Unlock()
	change()
}

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
	upFor   func() time.Duration
	cleanup func()
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

// runGateway runs the daemon until ctx ends, then stops cleanly. reload yields
// a value for every request to read the configuration again.
func runGateway(ctx context.Context, cfg config.Config, load func() (config.Config, error), reload <-chan os.Signal, log *slog.Logger) (err error) {
	rules, err := cfg.AccessRules()
	if err != nil {
		return &exitError{exitConfig, err}
	}
	// A disk that takes nothing does not end the start: the store says so, and
	// makes the folder when it can.
	if err := os.MkdirAll(cfg.Gateway.Data, 0o750); err != nil {
		log.Error("data folder not made", "component", "gateway", "path", cfg.Gateway.Data, "err", err)
	}
	unlock, err := lockData(cfg.Gateway.Data)
	if err != nil {
		return err
	}
	defer unlock()

	gw := &gateway{
		log: log.With("component", "gateway"), parts: log, sup: supervisor{log}, clock: reading.NewClock(), started: time.Now(), cfg: cfg,
		inherited: listen.FromSystemd(), connectTimeout: cfg.Broker.ConnectTimeout,
		uplinks: map[string]*running{}, listeners: map[string]*running{}, buses: map[string]*running{},
	}
	gw.log.Info("gateway started", "gateway", cfg.Gateway.ID, "version", version, "commit", buildCommit())
	defer func() { err = errors.Join(err, gw.inherited.Close()) }()
	cfg.Store.Crashed = noteCrashes(cfg.Gateway.Data, gw.log)
	// The parts outlive ctx: it asks for the stop, which has its own order.
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	if gw.g, err = build(life, &cfg, rules, gw.clock, log); err != nil {
		return err
	}
	var background sync.WaitGroup
	defer func() {
		gw.sup.stopping()
		gw.log.Info("gateway stopping")
		grace, cancel := context.WithTimeout(life, stopTimeout)
		defer cancel()
		err = errors.Join(err, gw.stop(grace))
		end()
		background.Wait()
		gw.log.Info("gateway stopped")
	}()
	background.Go(func() { gw.g.monitor.Run(life) })
	if err := gw.g.broker.Start(life); err != nil {
		return fmt.Errorf("start broker: %w", err)
	}
	background.Go(func() { gw.publishRepairs(life, cfg.Gateway.ID) })
	control, err := console.Listen(life, cfg.Control.Socket)
	switch {
	case storeforward.DiskRefuses(err):
		gw.log.Error("no control socket for now", "err", err)
	case err != nil:
		return err
	}
	background.Go(func() {
		if err := gw.serveControl(life, control, cfg.Control.Socket); err != nil {
			gw.log.Error("control socket failed", "err", err)
		}
	})
	if err := gw.reconcile(life, ctx, cfg); err != nil {
		return err
	}
	background.Go(func() { gw.sup.feedWatchdog(life, gw.alive) })
	gw.sup.ready(gw.summary())
	trimMemory()
	report := time.NewTicker(reportEvery)
	defer report.Stop()
	var handshakes handshakeGarbage
	told, connected := "", connections{}
	for {
		connected.tell(gw.uplinks, gw.g.broker.TellSys)
		select {
		case <-ctx.Done():
			return nil
		case <-report.C:
			if s := gw.summary(); s != told {
				gw.sup.status(s)
				told = s
			}
			handshakes.look(gw.g.broker.Status().Connects)
			gw.confirm(life, ctx, time.Now())
		case <-reload:
			gw.reload(life, ctx, load)
		}
	}
}

// serveControl answers on the control socket until ctx ends. One that a disk had no
// place for is opened when it has.
func (gw *gateway) serveControl(ctx context.Context, control net.Listener, path string) (err error) {
	again := time.NewTicker(reportEvery)
	defer again.Stop()
	for control == nil {
		select {
		case <-ctx.Done():
			return nil
		case <-again.C:
		}
		if control, err = console.Listen(ctx, path); err != nil && !storeforward.DiskRefuses(err) {
			return err
		}
	}
	return console.Serve(ctx, control, console.Source{Status: gw.status, Healthy: gw.healthy, Store: gw.g.store, Sessions: gw.g.broker}, gw.parts)
}

// stop ends everything in the reverse order of the start. A part that does not
// end in time is left behind and named: the others have their turn, and the
// store is closed, all the same.
func (gw *gateway) stop(ctx context.Context) error {
	return errors.Join(
		within(ctx, stopTimeout/4, func(ctx context.Context) error { return stopAll(ctx, gw.buses, errStopped) }),
		// What the buses left behind becomes durable before the broker stops.
		within(ctx, stopTimeout/4, gw.g.readings.Close),
		within(ctx, stopTimeout/8, func(ctx context.Context) error { return stopAll(ctx, gw.listeners, errStopped) }),
		// The goodbye has a limit of its own, stop_timeout, which may be longer.
		within(ctx, stopTimeout/2, func(ctx context.Context) error { return stopAll(ctx, gw.uplinks, errStopped) }),
		gw.g.close(ctx),
	)
}

// within calls fn with that long at most.
func within(ctx context.Context, limit time.Duration, fn func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return fn(ctx)
}

// Why parts are stopped.
var (
	errStopped = errors.New("stopped")
	errChanged = errors.New("configuration changed")
)

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

// reconcile makes the parts that come and go what cfg says: those that are gone
// or changed are stopped, those that are new or changed are started, the rest
// is not touched. A listener that cannot be opened is an error, found before
// anything but listeners has been touched; everything else starts and tries on
// its own. The parts live as long as life; a part that will not stop is waited
// for until patience ends, at most for stopTimeout, and the others go on.
func (gw *gateway) reconcile(life, patience context.Context, cfg config.Config) error {
	grace, cancel := context.WithTimeout(patience, stopTimeout)
	defer cancel()
	stuck := drop(grace, gw, gw.listeners, listenersByAddress(cfg.Listeners))
	// Who connects from here on waits until the uplinks are there.
	opened := map[string]*listen.Endpoint{}
	defer func() {
		for _, e := range opened { // by an error
			_ = e.Close()
		}
	}()
	for _, l := range cfg.Listeners {
		if gw.listeners[l.Address] == nil {
			e, err := gw.openListener(life, l)
			if err != nil {
				return errors.Join(err, stuck)
			}
			opened[l.Address] = e
		}
	}
	buses := cfg.Buses()
	stuck = errors.Join(stuck, drop(grace, gw, gw.buses, buses))
	var gone []string
	for name := range gw.uplinks {
		if _, ok := cfg.Uplinks[name]; !ok {
			gone = append(gone, name)
		}
	}
	// One that only changed stays a recipient: what comes in meanwhile waits
	// for its successor. So does one that is gone, until nothing can fail any
	// more: a reload that does goes back to it.
	stuck = errors.Join(stuck, drop(grace, gw, gw.uplinks, cfg.Uplinks))

	for _, name := range sorted(cfg.Uplinks) {
		if gw.uplinks[name] == nil {
			u, err := gw.startUplink(life, name, cfg.Uplinks[name])
			if err != nil {
				return err
			}
			gw.update(func() { gw.uplinks[name] = u })
		}
	}
	for _, l := range cfg.Listeners {
		if e := opened[l.Address]; e != nil {
			gw.update(func() { gw.listeners[l.Address] = gw.startListener(life, l, e) })
			delete(opened, l.Address)
		}
	}
	for _, name := range sorted(buses) {
		if gw.buses[name] == nil {
			b, err := gw.startBus(life, name, cfg.Gateway.Readings, buses[name])
			if err != nil {
				return err
			}
			gw.update(func() { gw.buses[name] = b })
		}
	}
	if stuck != nil {
		return stuck
	}
	for _, name := range gone {
		gw.g.broker.RemoveRecipient(uplink.RecipientName(name))
	}
	gw.update(func() { gw.cfg = cfg })
	return nil
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
	opts.ClockFloor = buildTime()
	if seen := gw.g.store.ClockFloor(); seen.After(opts.ClockFloor) {
		opts.ClockFloor = seen
	}
	opts.ClockSynchronised = func() bool { return gw.clock.Now().Synchronised }
	opts.Epoch = machineID() + "/" + gw.g.store.ID()
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
	r.upFor = u.UpFor
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

func (gw *gateway) startBus(ctx context.Context, name, readings string, bus config.Bus) (*running, error) {
	adapter, status, err := gw.g.newBus(name, readings, bus, gw.clock, gw.parts)
	if err != nil {
		return nil, err
	}
	s := adapters.NewSupervisor(adapter, adapters.DefaultSuperviseOptions(), gw.parts)
	r := gw.startPart(ctx, "port "+name, bus, func(ctx context.Context) error {
		s.Run(ctx)
		return nil
	})
	r.status = func() any { return busStatus{Name: name, Supervisor: s.Status(), Bus: status()} }
	r.cleanup = func() {
		for device := range bus.Devices {
			gw.g.monitor.Remove(device)
		}
	}
	return r, nil
}

// reloadStatus says how the latest reload went.
type reloadStatus struct {
	Count     uint64    `json:"count"`
	Failures  uint64    `json:"failures"`
	LastAt    time.Time `json:"last_at,omitzero"`
	LastError string    `json:"last_error,omitempty"`
	// Reverts counts changed configurations of uplinks that did not come up
	// and were taken back.
	Reverts uint64 `json:"reverts"`
	// Reverted says why, by uplink, until the next reload.
	Reverted map[string]string `json:"reverted,omitempty" metric:"-"`
	// Waiting are the sections of the file whose changes wait for a restart.
	Waiting []string `json:"waiting_for_restart,omitempty"`
}

// reload reads the configuration again and applies what can be changed while
// running. A file with a mistake changes nothing.
func (gw *gateway) reload(life, patience context.Context, load func() (config.Config, error)) {
	gw.sup.reloading()
	err := gw.applyReload(life, patience, load)
	gw.update(func() {
		gw.reloads.Count++
		gw.reloads.LastAt = time.Now()
		gw.reloads.LastError = ""
		if err != nil {
			gw.reloads.Failures++
			gw.reloads.LastError = err.Error()
		}
	})
	if err != nil {
		gw.log.Error("configuration not reloaded", "err", err)
	} else {
		gw.log.Info("configuration reloaded")
	}
	gw.sup.ready(gw.summary())
}

func (gw *gateway) applyReload(life, patience context.Context, load func() (config.Config, error)) error {
	cfg, err := load()
	if err != nil {
		return err
	}
	rules, err := cfg.AccessRules()
	if err != nil {
		return err
	}
	old := gw.cfg
	fixed := fixedKeys(&old, &cfg)
	if len(fixed) > 0 {
		gw.log.Warn("changes wait for a restart", "keys", strings.Join(fixed, " "))
		cfg.Gateway, cfg.Broker, cfg.Store, cfg.Control, cfg.Log = old.Gateway, old.Broker, old.Store, old.Control, old.Log
		cfg.Resolve()
	}
	// Before the listeners: a new one may be meant for the new users.
	before := gw.g.access.Replace(rules)
	trials := gw.trialsFor(&cfg)
	if err := gw.reconcile(life, patience, cfg); err != nil {
		gw.g.access.Replace(before)
		gw.g.broker.Reauthorize()
		back := gw.reconcile(life, patience, old)
		return errors.Join(fmt.Errorf("%w (went back to the previous configuration)", err), back)
	}
	gw.settle(trials, time.Now())
	gw.update(func() { gw.reloads.Waiting = fixed })
	gw.enforce(rules, before, &old, &cfg)
	return nil
}

// enforce applies new rights to the clients that are connected: those who could
// not connect any more as they are have to do it again, those of a listener
// that is gone or has changed too, and what the others may receive is asked
// anew.
func (gw *gateway) enforce(rules, before *access.Rules, old, fresh *config.Config) {
	changed := map[string]bool{}
	now := listenersByAddress(fresh.Listeners)
	for _, l := range old.Listeners {
		changed[l.Label()] = !reflect.DeepEqual(now[l.Address], l)
	}
	gw.g.broker.Reauthorize()
	n := gw.g.broker.Revoke(func(id broker.Identity) bool { return changed[id.Listener] || rules.Revokes(before, id) })
	if n > 0 {
		gw.log.Warn("clients have to log in again", "clients", n)
	}
	if n := gw.g.broker.Redirect(); n > 0 {
		gw.log.Info("clients sent to another server", "clients", n)
	}
}

// fixedKeys names the sections that differ but are read only at the start.
func fixedKeys(old, fresh *config.Config) []string {
	var keys []string
	for key, pair := range map[string][2]any{
		"gateway": {old.Gateway, fresh.Gateway},
		"broker":  {old.Broker, fresh.Broker},
		"store":   {old.Store, fresh.Store},
		"control": {old.Control, fresh.Control},
		"log":     {old.Log, fresh.Log},
	} {
		if !reflect.DeepEqual(pair[0], pair[1]) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

// lockData makes sure that one process owns the data folder. It is the folder that
// is locked: that needs no room, no right to write, and no file that somebody could
// remove. The lock goes with the process, however it ends.
func lockData(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return func() {}, nil // nor can anybody else use it
	}
	if err != nil {
		return nil, fmt.Errorf("data folder: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		err = fmt.Errorf("data folder %s: another holdfast is using it", dir)
		return nil, errors.Join(err, f.Close())
	}
	return func() { _ = f.Close() }, nil
}
