package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"holdfast/adapters/reading"
	"holdfast/broker/listen"
	"holdfast/cmd/holdfast/config"
	"holdfast/cmd/holdfast/console"
	"holdfast/storeforward"
	"holdfast/storeforward/sparkplug"
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
//	lock -> store -> broker -> control -> sockets -> uplinks -> listeners -> buses -> Modbus servers -> READY
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
	cfg       config.Config        // guarded by mu
	uplinks   map[string]*running  // guarded by mu
	listeners map[string]*running  // guarded by mu; by address
	buses     map[string]*running  // guarded by mu; by port
	nodes     map[string]*running  // guarded by mu; Sparkplug edge nodes
	servers   map[string]*running  // guarded by mu; Modbus servers and gateways, by config.ModbusServing
	announced announcements        // of the goroutine of runGateway alone
	reloads   reloadStatus         // guarded by mu
	reverted  map[string]takenBack // guarded by mu; by uplink: why its configuration is not that of the file
	trials    map[string]trial     // by uplink; of the goroutine of runGateway alone
	attempts  []byte               // as they are in the file; of the goroutine of runGateway alone
}

// update makes a change that others may see.
func (gw *gateway) update(change func()) {
	gw.mu.Lock()
	defer gw.mu.Unlock()
	change()
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
		nodes: map[string]*running{}, servers: map[string]*running{}, announced: announcements{births: make(chan struct{}, 1)},
	}
	gw.log.Info("gateway started", "gateway", cfg.Gateway.ID, "version", version, "commit", buildCommit())
	defer func() { err = errors.Join(err, gw.inherited.Close()) }()
	gw.resumeAttempts(&cfg, time.Now())
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
		gw.announced.close()
		gw.tellState(life, cfg.Gateway.ID, "offline", "stopped")
		grace, cancel := context.WithTimeout(life, stopTimeout)
		defer cancel()
		err = errors.Join(err, gw.stop(grace))
		end()
		background.Wait()
		gw.log.Info("gateway stopped")
	}()
	if cfg.Gateway.SparkplugAware {
		certificates, err := keepCertificates(gw.g.broker, gw.parts)
		if err != nil {
			return err
		}
		defer certificates.Close()
	}
	background.Go(func() { gw.g.monitor.Run(life) })
	if err := gw.g.broker.Start(life); err != nil {
		return fmt.Errorf("start broker: %w", err)
	}
	background.Go(func() { gw.publishRepairs(life, cfg.Gateway.ID) })
	gw.tellState(ctx, cfg.Gateway.ID, "online", "")
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
		case <-gw.announced.births:
			gw.announced.born()
		case <-gw.announced.again:
			gw.announced.again = nil
			gw.announce(&gw.cfg, true)
		case <-gw.g.described:
			gw.announce(&gw.cfg, false)
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
	return console.Serve(ctx, control, console.Source{Status: gw.status, Healthy: gw.healthy, Store: gw.g.store, Sessions: gw.g.broker, Buses: gw}, gw.parts)
}

// stop ends everything in the reverse order of the start. A part that does not
// end in time is left behind and named: the others have their turn, and the
// store is closed, all the same.
func (gw *gateway) stop(ctx context.Context) error {
	return errors.Join(
		within(ctx, stopTimeout/8, func(ctx context.Context) error { return stopAll(ctx, gw.servers, errStopped) }),
		within(ctx, stopTimeout/8, func(ctx context.Context) error { return stopAll(ctx, gw.buses, errStopped) }),
		// What the buses left behind becomes durable before the broker stops.
		within(ctx, stopTimeout/4, gw.g.readings.Close),
		within(ctx, stopTimeout/8, func(ctx context.Context) error { return stopAll(ctx, gw.listeners, errStopped) }),
		// The goodbye has a limit of its own, stop_timeout, which may be longer.
		within(ctx, stopTimeout/2, func(ctx context.Context) error {
			var nodes error
			var wg sync.WaitGroup
			wg.Go(func() { nodes = stopAll(ctx, gw.nodes, errStopped) })
			uplinks := stopAll(ctx, gw.uplinks, errStopped)
			wg.Wait()
			return errors.Join(uplinks, nodes)
		}),
		gw.g.close(ctx),
	)
}

// Why parts are stopped.
var (
	errStopped = errors.New("stopped")
	errChanged = errors.New("configuration changed")
)

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
	buses, servers := cfg.Buses(), cfg.ModbusServing()
	stuck = errors.Join(stuck, drop(grace, gw, gw.servers, servers), drop(grace, gw, gw.buses, buses))
	var gone []string // recipients
	for name := range gw.uplinks {
		if _, ok := cfg.Uplinks[name]; !ok {
			gone = append(gone, uplink.RecipientName(name))
		}
	}
	for name := range gw.nodes {
		if _, ok := cfg.Nodes[name]; !ok {
			gone = append(gone, sparkplug.RecipientName(name))
		}
	}
	// One that only changed stays a recipient: what comes in meanwhile waits
	// for its successor. So does one that is gone, until nothing can fail any
	// more: a reload that does goes back to it.
	stuck = errors.Join(stuck, drop(grace, gw, gw.uplinks, cfg.Uplinks), drop(grace, gw, gw.nodes, cfg.Nodes))

	for _, name := range sorted(cfg.Uplinks) {
		if gw.uplinks[name] == nil {
			u, err := gw.startUplink(life, name, cfg.Uplinks[name])
			if err != nil {
				return err
			}
			gw.update(func() { gw.uplinks[name] = u })
		}
	}
	for _, name := range sorted(cfg.Nodes) {
		if gw.nodes[name] == nil {
			n, err := gw.startNode(life, name, cfg.Gateway.Readings, cfg.Nodes[name])
			if err != nil {
				return err
			}
			gw.update(func() { gw.nodes[name] = n })
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
	for _, name := range sorted(servers) {
		if gw.servers[name] == nil {
			s, err := gw.startServer(life, name, &cfg, servers[name])
			if err != nil {
				return err
			}
			gw.update(func() { gw.servers[name] = s })
		}
	}
	if stuck != nil {
		return stuck
	}
	for _, name := range gone {
		gw.g.broker.RemoveRecipient(name)
	}
	gw.update(func() { gw.cfg = cfg })
	gw.announce(&cfg, false)
	return gw.announced.listen(gw.g.broker, cfg.HomeAssistant)
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
