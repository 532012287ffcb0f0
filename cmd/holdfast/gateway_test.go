package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/adapters/reading"
	"holdfast/broker"
	"holdfast/broker/durable"
	"holdfast/broker/message"
	"holdfast/cmd/holdfast/config"
)

// reloadable is a gateway whose parts are there but the process around them.
func reloadable(t *testing.T, file string) *gateway {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	cfg, err := loadConfig(file, t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	rules, err := cfg.AccessRules()
	if err != nil {
		t.Fatal(err)
	}
	gw := &gateway{
		log: log, parts: log, clock: reading.NewClock(), cfg: cfg, connectTimeout: cfg.Broker.ConnectTimeout,
		uplinks: map[string]*running{}, listeners: map[string]*running{}, buses: map[string]*running{},
		nodes: map[string]*running{}, servers: map[string]*running{}, announced: announcements{births: make(chan struct{}, 1)},
	}
	if gw.g, err = build(t.Context(), &cfg, rules, gw.clock, log); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := gw.stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	if err := gw.g.broker.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := gw.reconcile(t.Context(), t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	return gw
}

// A listener that cannot be opened disturbs no uplink: neither is the one that
// runs replaced, nor one started that would take its session at the cloud over.
func TestFailedReloadTouchesNoUplink(t *testing.T) {
	const (
		listener = "[[listener]]\naddress = \"tcp://127.0.0.1:0\"\n"
		route    = "url = \"mqtt://127.0.0.1:1\"\n"
	)
	file := filepath.Join(t.TempDir(), "h.toml")
	if err := os.WriteFile(file, []byte(listener+"[uplink.cloud]\n"+route), 0o600); err != nil {
		t.Fatal(err)
	}
	gw := reloadable(t, file)
	data, before := gw.cfg.Gateway.Data, gw.uplinks["cloud"]
	bad := listener + "[uplink.other]\n" + route + "[[listener]]\naddress = \"tcp://192.0.2.1:1\"\n"
	if err := os.WriteFile(file, []byte(bad), 0o600); err != nil {
		t.Fatal(err)
	}
	err := gw.applyReload(t.Context(), t.Context(), func() (config.Config, error) { return loadConfig(file, data, nil) })
	if err == nil || !strings.Contains(err.Error(), "went back") {
		t.Fatalf("reload: %v", err)
	}
	if gw.uplinks["cloud"] != before {
		t.Error("the uplink was replaced")
	}
	if _, ok := gw.g.store.Uplinks()["other"]; ok {
		t.Error("the new uplink was started")
	}
}

// A reload that fails must not have let go of an uplink meanwhile: what is
// acknowledged while it is tried is for the uplink that stays.
func TestFailedReloadKeepsUplink(t *testing.T) {
	const (
		listener = "[[listener]]\naddress = \"tcp://127.0.0.1:0\"\n"
		cloud    = "[uplink.cloud]\nurl = \"mqtt://127.0.0.1:1\"\n[[uplink.cloud.route]]\ndirection = \"out\"\nfilter = \"t/#\"\n"
	)
	file := filepath.Join(t.TempDir(), "h.toml")
	write := func(s string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(listener + cloud)
	gw := reloadable(t, file)
	data := gw.cfg.Gateway.Data
	load := func() (config.Config, error) { return loadConfig(file, data, nil) }

	var safe atomic.Int64
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
			}
			done := make(chan error, 1)
			err := gw.g.broker.Publish(&message.Message{Topic: "t/a", QoS: 1}, durable.Origin{}, func(err error) { done <- err })
			if err == nil && <-done == nil {
				safe.Add(1)
			}
		}
	}()
	// A file without the uplink, and with a listener that cannot be opened.
	write(listener + "[[listener]]\naddress = \"tcp://192.0.2.1:1\"\n")
	for range 5 {
		if err := gw.applyReload(t.Context(), t.Context(), load); err == nil || !strings.Contains(err.Error(), "went back") {
			t.Fatalf("reload: %v", err)
		}
		<-time.After(10 * time.Millisecond) // some messages between two of them
	}
	close(stop)
	<-stopped
	var held int64 // in all lanes
	for _, q := range gw.g.store.Status().Queues {
		if q.Name == "cloud" {
			held += q.Messages
		}
	}
	if held != safe.Load() {
		t.Errorf("%d of %d acknowledged messages wait for the uplink", held, safe.Load())
	}

	// One that succeeds does let go of it.
	write(listener)
	if err := gw.applyReload(t.Context(), t.Context(), load); err != nil {
		t.Fatal(err)
	}
	before := gw.g.store.Status().Messages
	done := make(chan error, 1)
	if err := gw.g.broker.Publish(&message.Message{Topic: "t/a", QoS: 1}, durable.Origin{}, func(err error) { done <- err }); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if after := gw.g.store.Status().Messages; after != before {
		t.Errorf("a removed uplink got %d more messages", after-before)
	}
}

// A part that hangs when it is asked to stop keeps neither the reload nor the
// stop, and the others go on.
func TestPartThatDoesNotStop(t *testing.T) {
	const listener = "[[listener]]\naddress = \"tcp://127.0.0.1:0\"\n"
	file := filepath.Join(t.TempDir(), "h.toml")
	if err := os.WriteFile(file, []byte(listener), 0o600); err != nil {
		t.Fatal(err)
	}
	gw := reloadable(t, file)
	data := gw.cfg.Gateway.Data
	load := func() (config.Config, error) { return loadConfig(file, data, nil) }
	freed := make(chan struct{})
	hanging := gw.startPart(t.Context(), "port rs485", nil, func(context.Context) error {
		<-freed
		return nil
	})
	gw.buses["rs485"] = hanging

	asked, ask := context.WithCancel(t.Context())
	ask() // SIGTERM has come: the reload is not waited for
	if err := os.WriteFile(file, []byte(listener+"name = \"other\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := gw.applyReload(t.Context(), asked, load)
	if err == nil || !strings.Contains(err.Error(), "port rs485 did not stop in time") {
		t.Errorf("reload = %v", err)
	}
	if gw.buses["rs485"] != hanging {
		t.Error("the place of the port that hangs is free")
	}
	done := make(chan error, 1)
	err = gw.g.broker.Publish(&message.Message{Topic: "t", QoS: 1, Retain: true, Payload: []byte("x")}, durable.Origin{}, func(err error) { done <- err })
	if err := errors.Join(err, <-done); err != nil {
		t.Errorf("publish with a port that hangs: %v", err)
	}

	if err := gw.stop(asked); err == nil || !strings.Contains(err.Error(), "port rs485 did not stop in time") {
		t.Errorf("stop = %v", err)
	}
	err = gw.g.broker.Publish(&message.Message{Topic: "t", QoS: 1}, durable.Origin{}, nil)
	if !errors.Is(err, durable.ErrClosed) && !errors.Is(err, broker.ErrClosed) {
		t.Errorf("publish after the stop = %v", err)
	}
	close(freed)
	<-hanging.done
	gw.buses = nil
}

// A listener that ends by itself is a problem, not only a line in the log, and
// the next reload opens it again.
func TestListenerThatEnds(t *testing.T) {
	file := filepath.Join(t.TempDir(), "h.toml")
	if err := os.WriteFile(file, []byte("[[listener]]\naddress = \"tcp://127.0.0.1:0\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	gw := reloadable(t, file)
	data, address := gw.cfg.Gateway.Data, "tcp://127.0.0.1:0"
	before := gw.listeners[address]
	if err := before.stop(t.Context(), errChanged); err != nil {
		t.Fatal(err)
	}
	broken := gw.startPart(t.Context(), "listener "+address, before.settings, func(context.Context) error { return errors.New("accept: no luck") })
	broken.status = before.status
	gw.listeners[address] = broken
	<-broken.done

	const want = "listener " + "tcp://127.0.0.1:0 has ended: accept: no luck"
	if s := gw.snapshot(); !slices.Contains(s.Problems, want) {
		t.Errorf("problems = %q, want %q", s.Problems, want)
	}
	if err := gw.healthy(); err == nil || err.Error() != want {
		t.Errorf("healthy = %v, want %q", err, want)
	}
	if err := gw.applyReload(t.Context(), t.Context(), func() (config.Config, error) { return loadConfig(file, data, nil) }); err != nil {
		t.Fatal(err)
	}
	if err := gw.healthy(); err != nil || gw.listeners[address] == broken {
		t.Errorf("after a reload healthy = %v", err)
	}
}
