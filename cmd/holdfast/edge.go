package main

import (
	"context"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/adapters/health"
	"holdfast/adapters/reading"
	"holdfast/broker"
	"holdfast/broker/durable"
	"holdfast/broker/message"
	"holdfast/storeforward/sparkplug"
)

// edgeSite is what a Sparkplug edge node sees of the gateway.
type edgeSite struct {
	b *broker.Broker
	// prefix is that of the topics of readings, with its slash.
	prefix string
	// name is how the broker knows the node, as the publisher of commands.
	name string
}

// Readings is part of sparkplug.Site.
func (s edgeSite) Readings(m *message.Message) []sparkplug.Reading {
	rs := s.readings(m)
	out := make([]sparkplug.Reading, len(rs))
	for i := range rs {
		r := &rs[i]
		at, _ := r.Time.Measured()
		out[i] = sparkplug.Reading{
			Device: r.Device, Metric: r.Point, Value: r.Value, Unit: r.Unit,
			Good: r.Value != nil && r.Quality == reading.Good, Time: at,
		}
	}
	return out
}

// readings takes readings as the adapters publish them, one or all of a device, and
// also the bare numbers, texts and truth values of clients that know no better.
func (s edgeSite) readings(m *message.Message) []reading.Reading {
	name, ok := strings.CutPrefix(m.Topic, s.prefix)
	if !ok || len(m.Payload) == 0 {
		return nil
	}
	device, metric, ofPoint := strings.Cut(name, "/")
	if strings.Contains(metric, "/") || device == "" || ofPoint && metric == "" {
		return nil
	}
	if m.Payload[0] != '{' {
		v, ok := reading.ParseValue(m.Payload)
		if !ok || !ofPoint {
			return nil
		}
		return []reading.Reading{{Device: device, Point: metric, Value: v, Time: reading.Stamp{Wall: m.Received, Synchronised: true}}}
	}
	rs, whole, ok := reading.ParseAt(m.Topic, m.Payload, m.Received)
	if !ok || whole == ofPoint {
		return nil
	}
	return rs
}

// About names what runs here; the names are those of the examples in Sparkplug 3.0.
func (s edgeSite) About() []sparkplug.Metric {
	ms := []sparkplug.Metric{{Name: "Properties/Software", Type: sparkplug.String, Value: "Holdfast " + version}}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		ms = append(ms,
			sparkplug.Metric{Name: "Properties/OS", Type: sparkplug.String, Value: unix.ByteSliceToString(u.Sysname[:])},
			sparkplug.Metric{Name: "Properties/OS Version", Type: sparkplug.String, Value: unix.ByteSliceToString(u.Release[:])})
	}
	// Boards have a device tree; others leave it out.
	if model, err := os.ReadFile("/proc/device-tree/model"); err == nil {
		ms = append(ms, sparkplug.Metric{
			Name: "Properties/Hardware Model", Type: sparkplug.String,
			Value: strings.ToValidUTF8(strings.TrimRight(string(model), "\x00\n"), "?"),
		})
	}
	return ms
}

// Command publishes what the host has written where local clients command the
// device, too.
func (s edgeSite) Command(device, metric string, value any) error {
	payload, err := commandPayload(value)
	if err != nil {
		return err
	}
	return s.b.Publish(&message.Message{
		Topic: s.prefix + device + "/" + metric + "/set", Payload: payload, QoS: 1, Received: time.Now(), From: s.name,
	}, durable.Origin{}, func(error) {})
}

// commandPayload is a value as the payload of a command.
func commandPayload(value any) ([]byte, error) {
	switch v := value.(type) {
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return nil, fmt.Errorf("%v cannot be written", v)
		}
		return strconv.AppendFloat(nil, v, 'g', -1, 64), nil
	case int64:
		return strconv.AppendInt(nil, v, 10), nil
	case uint64:
		return strconv.AppendUint(nil, v, 10), nil
	case bool:
		return strconv.AppendBool(nil, v), nil
	case string:
		return []byte(v), nil
	default:
		return nil, fmt.Errorf("a value of this kind (%T) cannot be written", value)
	}
}

// deviceWatcher wants to know how the devices are; a *sparkplug.Node is one.
type deviceWatcher interface {
	SetDevice(name string, reachable bool)
	RemoveDevice(name string)
}

// deviceWatchers are the edge nodes and Modbus servers that run; the monitor tells
// them of the devices.
type deviceWatchers struct {
	mu    sync.Mutex
	nodes map[string]deviceWatcher // guarded by mu
}

// tell passes on a device's change; see health.NewMonitor.
func (e *deviceWatchers) tell(c health.Change) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, n := range e.nodes {
		n.SetDevice(c.Device, reachable(c.State))
	}
}

// reachable says whether the host may take a device for alive. One that only
// answers badly or slowly is.
func reachable(s health.State) bool { return s != health.Offline && s != health.Unknown }

func (e *deviceWatchers) remove(device string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, n := range e.nodes {
		n.RemoveDevice(device)
	}
}

func (e *deviceWatchers) set(name string, n deviceWatcher) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if n == nil {
		delete(e.nodes, name)
		return
	}
	e.nodes[name] = n
}

// observed is how many readings may wait for an edge node to look at them; what
// is dropped comes from the queue, a little later.
const (
	observed    = 1024
	maxObserved = 64 << 10
)

func (gw *gateway) startNode(ctx context.Context, name, readings string, settings sparkplug.Options) (*running, error) {
	site := edgeSite{b: gw.g.broker, prefix: readings + "/", name: sparkplug.RecipientName(name)}
	n, err := sparkplug.New(name, settings, gw.g.store, site, gw.parts)
	if err != nil {
		return nil, err
	}
	var routes []broker.Route
	for _, f := range n.Topics() {
		routes = append(routes, broker.Route{Filter: f, QoS: 1})
	}
	if err := gw.g.broker.AddRecipient(broker.Recipient{Name: n.Name(), Queue: n.Queue(), Routes: routes}); err != nil {
		return nil, fmt.Errorf("sparkplug %s: %w", name, err)
	}
	// Everything, QoS 0 too, is seen as it is published: see Node.Observe.
	inbox, err := gw.g.broker.OpenInbox(broker.InboxOptions{Name: n.Name(), Queue: observed, MaxSize: maxObserved}, n.Topics(),
		func(in broker.Incoming) { n.Observe(in.Message) })
	if err != nil {
		return nil, fmt.Errorf("sparkplug %s: %w", name, err)
	}
	gw.g.watchers.set(n.Name(), n)
	for _, d := range gw.g.monitor.Status() {
		n.SetDevice(d.Device, reachable(d.State))
	}
	r := gw.startPart(ctx, "sparkplug "+name, settings, n.Run)
	r.status = func() any { return n.Status() }
	r.cleanup = func() {
		gw.g.watchers.set(n.Name(), nil)
		inbox.Close()
	}
	return r, nil
}
