package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"holdfast/adapters/health"
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

// Reading takes readings as the adapters publish them, and also the bare numbers,
// texts and truth values of clients that know no better.
func (s edgeSite) Reading(m *message.Message) (r sparkplug.Reading, ok bool) {
	name, ok := strings.CutPrefix(m.Topic, s.prefix)
	if !ok {
		return r, false
	}
	device, metric, ok := strings.Cut(name, "/")
	if !ok || strings.Contains(metric, "/") {
		return r, false
	}
	r = sparkplug.Reading{Device: device, Metric: metric, Time: m.Received}
	if len(m.Payload) == 0 {
		return r, false
	}
	if m.Payload[0] != '{' {
		if err := json.Unmarshal(m.Payload, &r.Value); err != nil {
			return r, false
		}
		r.Good = r.Value != nil
		return r, scalar(r.Value)
	}
	var p struct {
		Value   any       `json:"value"`
		Unit    string    `json:"unit"`
		Quality string    `json:"quality"`
		Time    time.Time `json:"time"`
	}
	if err := json.Unmarshal(m.Payload, &p); err != nil || !scalar(p.Value) {
		return r, false
	}
	r.Value, r.Unit, r.Good = p.Value, p.Unit, p.Value != nil && (p.Quality == "good" || p.Quality == "")
	if !p.Time.IsZero() {
		r.Time = p.Time
	}
	return r, true
}

func scalar(v any) bool {
	switch v.(type) {
	case nil, float64, string, bool:
		return true
	default:
		return false
	}
}

// Command publishes what the host has written where local clients command the
// device, too.
func (s edgeSite) Command(device, metric string, value any) error {
	var payload []byte
	switch v := value.(type) {
	case float64:
		payload = strconv.AppendFloat(nil, v, 'g', -1, 64)
	case int64:
		payload = strconv.AppendInt(nil, v, 10)
	case uint64:
		payload = strconv.AppendUint(nil, v, 10)
	case bool:
		payload = strconv.AppendBool(nil, v)
	case string:
		payload = []byte(v)
	default:
		return fmt.Errorf("a value of this kind (%T) cannot be written", value)
	}
	return s.b.Publish(&message.Message{
		Topic: s.prefix + device + "/" + metric + "/set", Payload: payload, QoS: 1, Received: time.Now(), From: s.name,
	}, durable.Origin{}, func(error) {})
}

// edgeNodes are the edge nodes that run; the monitor tells them of the devices.
type edgeNodes struct {
	mu    sync.Mutex
	nodes map[string]*sparkplug.Node // guarded by mu
}

// tell passes on a device's change; see health.NewMonitor.
func (e *edgeNodes) tell(c health.Change) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, n := range e.nodes {
		n.SetDevice(c.Device, reachable(c.State))
	}
}

// reachable says whether the host may take a device for alive. One that only
// answers badly or slowly is.
func reachable(s health.State) bool { return s != health.Offline && s != health.Unknown }

func (e *edgeNodes) remove(device string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, n := range e.nodes {
		n.RemoveDevice(device)
	}
}

func (e *edgeNodes) set(name string, n *sparkplug.Node) {
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
	gw.g.edges.set(name, n)
	for _, d := range gw.g.monitor.Status() {
		n.SetDevice(d.Device, reachable(d.State))
	}
	r := gw.startPart(ctx, "sparkplug "+name, settings, n.Run)
	r.status = func() any { return n.Status() }
	r.cleanup = func() {
		gw.g.edges.set(name, nil)
		inbox.Close()
	}
	return r, nil
}
