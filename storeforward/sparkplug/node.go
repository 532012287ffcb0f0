package sparkplug

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"holdfast/broker/durable"
	"holdfast/broker/message"
	"holdfast/storeforward"
	"holdfast/storeforward/uplink/dial"
)

// Reading is a value that goes out as a metric of a device.
type Reading struct {
	// Device is the device id, Metric the metric's name.
	Device, Metric string
	// Value is a float64, int64, uint64, bool, string, or nil for none.
	Value any
	// Unit is what it is measured in; empty when there is none.
	Unit string
	// Good says that the value can be trusted.
	Good bool
	// Time is when it was measured.
	Time time.Time
}

// Site is what an edge node needs of the gateway around it. Its methods may be
// called from any goroutine and must not block.
type Site interface {
	// Readings returns the readings that a local message carries, all of one
	// device; none when it carries none. It must not call the node or the store.
	Readings(m *message.Message) []Reading
	// Command has a metric of a device written.
	Command(device, metric string, value any) error
	// About are metrics of the node itself, which its birth tells: software,
	// hardware.
	About() []Metric
}

// State is how an edge node is.
type State string

// The states.
const (
	StateIdle       State = "idle"
	StateConnecting State = "connecting"
	StateWaiting    State = "waiting for the host" // connected; the primary host is not online
	StateUp         State = "up"
	StateBackingOff State = "backing off"
	StateStopped    State = "stopped"
)

// Status is an edge node for people and metrics.
type Status struct {
	Name   string    `json:"name"`
	Group  string    `json:"group"`
	Node   string    `json:"node"`
	URL    string    `json:"url"`
	State  State     `json:"state"`
	Reason string    `json:"reason,omitempty"`
	Since  time.Time `json:"since"`
	// NextAttempt is when a connection is tried again.
	NextAttempt time.Time `json:"next_attempt,omitzero"`
	// BirthNumber is the bdSeq of the session.
	BirthNumber uint64 `json:"bd_seq" metric:"gauge"`
	Devices     uint64 `json:"devices" metric:"gauge"`
	Metrics     uint64 `json:"metrics" metric:"gauge"`

	BacklogMessages int64 `json:"backlog_messages"`
	BacklogBytes    int64 `json:"backlog_bytes"`

	Connects   uint64 `json:"connects"`
	NodeBirths uint64 `json:"node_births"`
	Births     uint64 `json:"device_births"`
	Deaths     uint64 `json:"device_deaths"`
	Rebirths   uint64 `json:"rebirths_asked"`
	Live       uint64 `json:"live_values"`
	Historical uint64 `json:"historical_values"`
	Confirmed  uint64 `json:"confirmed_messages"`
	Skipped    uint64 `json:"messages_without_reading"`
	Refused    uint64 `json:"values_refused"`
	Dropped    uint64 `json:"values_dropped"` // of QoS 0, which the link had no room for
	Commands   uint64 `json:"commands"`
	BadCommand uint64 `json:"commands_refused"`
	BytesIn    uint64 `json:"bytes_in"`
	BytesOut   uint64 `json:"bytes_out"`
}

// Node is one edge node: a session of its own with a host's broker, that takes
// its readings from the store. Use [New].
type Node struct {
	opts   Options
	name   string
	queue  durable.QueueID
	store  *storeforward.Store
	site   Site
	log    *slog.Logger
	dialer *dial.Dialer
	wake   chan struct{} // of 1
	turn   int           // Run's: which way is next
	number int64         // Run's: bdSeq of the next CONNECT; -1 when it is still to be taken

	// The store and the broker call with locks of their own held, so that neither
	// is called under this one.
	mu     sync.Mutex
	model  model                // guarded by mu
	sess   *session             // guarded by mu; nil while down
	status Status               // guarded by mu
	warned map[string]time.Time // guarded by mu; see warnLocked
}

// RecipientName is how the broker knows the edge node called name.
func RecipientName(name string) string { return queuePrefix + name }

// queuePrefix keeps the queues of edge nodes apart from those of uplinks, whose
// names hold no slash.
const queuePrefix = "sparkplug/"

// New opens the node's queue in the store. From then on the broker may append to
// it; Run connects it.
func New(name string, opts Options, store *storeforward.Store, site Site, log *slog.Logger) (*Node, error) {
	if err := errors.Join(opts.Options.Validate(), opts.Validate()); err != nil {
		return nil, fmt.Errorf("sparkplug %s: %w", name, err)
	}
	queue, _, err := store.OpenUplink(RecipientName(name))
	if err != nil {
		return nil, fmt.Errorf("sparkplug %s: open queue: %w", name, err)
	}
	n := &Node{
		opts: opts, name: name, queue: queue, store: store, site: site,
		log:    log.With("component", "sparkplug", "sparkplug", name),
		dialer: dial.New(opts.Options),
		wake:   make(chan struct{}, 1),
		number: -1,
		model:  newModel(),
		warned: make(map[string]time.Time),
	}
	n.status = Status{Name: name, Group: opts.Group, Node: opts.node(), State: StateIdle, Since: time.Now()}
	return n, nil
}

// Name is how the broker knows the node.
func (n *Node) Name() string { return RecipientName(n.name) }

// Queue is the node's queue in the store.
func (n *Node) Queue() durable.QueueID { return n.queue }

// Topics are the filters of the local topics the node takes.
func (n *Node) Topics() []string { return n.opts.Topics }

// Status returns how the node is.
func (n *Node) Status() Status {
	messages, bytes := n.store.Backlog(n.queue)
	n.mu.Lock()
	defer n.mu.Unlock()
	s := n.status
	s.BacklogMessages, s.BacklogBytes = messages, bytes
	s.Devices, s.Metrics = uint64(len(n.model.devices)), uint64(n.model.metrics)
	if n.sess != nil {
		s.BytesIn += n.sess.conn.BytesIn()
		s.BytesOut += n.sess.conn.BytesOut()
	}
	return s
}

// Observe takes a message as it is published, whether or not it also waits in the
// queue: while a backlog is being sent, what is measured now goes before it. What
// Observe shows the host is left out when the queue comes to it. It is also the
// way of QoS 0 messages, which have no other.
func (n *Node) Observe(m *message.Message) {
	rs := n.site.Readings(m)
	if len(rs) == 0 {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	now := time.Now()
	for i := range rs {
		if n.sess != nil && n.sess.born {
			n.sess.observeLocked(rs[i], m.QoS > 0, now)
		} else {
			n.model.note(&rs[i], now)
		}
	}
	n.wakeUp()
}

// warnEvery is how often a line is logged that others can cause; what it is about
// is counted.
const warnEvery = time.Minute

func (n *Node) warnLocked(msg string, args ...any) {
	now := time.Now()
	if last, ok := n.warned[msg]; ok && now.Sub(last) < warnEvery {
		return
	}
	n.warned[msg] = now
	n.log.Warn(msg, args...) //nolint:sloglint // the callers' are constants
}

// SetDevice says whether a device can be reached; one that was never told of is
// taken to be there.
func (n *Node) SetDevice(device string, online bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.model.device(device).offline = !online
	n.wakeUp()
}

// RemoveDevice forgets a device that is no longer configured; the host is told
// of its death.
func (n *Node) RemoveDevice(device string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if d := n.model.devices[device]; d != nil {
		d.offline, d.removed = true, true
	}
	n.wakeUp()
}

func (n *Node) wakeUp() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

func (n *Node) setState(s State, reason string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.status.State != s || n.status.Reason != reason {
		n.status.State, n.status.Reason, n.status.Since = s, reason, time.Now()
	}
	if s != StateBackingOff {
		n.status.NextAttempt = time.Time{}
	}
}
