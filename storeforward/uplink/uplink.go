package uplink

import (
	"fmt"
	"log/slog"
	"sync"
	"time"

	"holdfast/broker/durable"
	"holdfast/broker/message"
	"holdfast/storeforward"
	"holdfast/storeforward/pack"
	"holdfast/storeforward/uplink/dial"
)

// Local is the way of the cloud's messages into the gateway: the broker.
// Publish must not wait for other messages; done is called once, from any
// goroutine, when the message is safe, unless Publish returned an error.
type Local interface {
	Publish(m *message.Message, from durable.Origin, done func(error)) error
}

// Uplink is one cloud session. Use [New].
type Uplink struct {
	opts   Options
	name   string
	from   string
	queue  durable.QueueID // stands for all lanes
	lanes  storeforward.Lanes
	store  *storeforward.Store
	local  Local
	log    *slog.Logger
	dialer *dial.Dialer
	shown  chan struct{} // of 1: the cloud has shown a certificate
	wake   chan struct{} // of 1: something changed for Run's goroutine; another would say nothing new
	out    ways
	in     ways

	mu        sync.Mutex
	sess      *session           // guarded by mu; never nil
	changes   []change           // guarded by mu; of lanes, oldest first
	link      *link              // guarded by mu; nil while down
	status    Status             // guarded by mu
	roundTrip time.Duration      // guarded by mu
	carried   int                // guarded by mu; what the last link held, bytes
	drops     limiter            // guarded by mu
	budget    budget             // guarded by mu
	thinned   map[string]thinned // guarded by mu; by topic
	onTrial   bool               // guarded by mu; see Options
	topics    map[string]carried // guarded by mu; see carries
	again     backoff            // guarded by mu; until refused messages of a 3.1.1 cloud are asked for again

	packers map[string]*pack.Packer // of Run's goroutine, by format and compression

	// Of Run's goroutine: why the next birth message, and why the last
	// connection failed or ended.
	why, lost string
	// The way in use, or last tried (written under mu), the one of the
	// connection before, where the cloud has sent us, the rank that is next in
	// a round, and what is known of the protocols, by address.
	at, before dial.Path
	referred   *dial.Path
	turn       int
	spare      map[int]sparing // by rank
	protocols  map[string]*protocol
}

// New opens the uplink's queue in the store. From then on the broker may
// append to it; Run connects it.
func New(name string, opts Options, store *storeforward.Store, local Local, log *slog.Logger) (*Uplink, error) {
	if err := opts.Validate(); err != nil {
		return nil, fmt.Errorf("uplink %s: %w", name, err)
	}
	queue, received, err := store.OpenUplink(name)
	if err != nil {
		return nil, fmt.Errorf("uplink %s: open queue: %w", name, err)
	}
	if err := store.SetPolicy(queue, opts.queuePolicy()); err != nil {
		return nil, fmt.Errorf("uplink %s: %w", name, err)
	}
	lanes, err := store.SetLanes(queue, opts.laneRoutes())
	if err != nil {
		return nil, fmt.Errorf("uplink %s: %w", name, err)
	}
	u := &Uplink{
		opts:      opts,
		dialer:    dial.New(opts.Options),
		shown:     make(chan struct{}, 1),
		protocols: map[string]*protocol{}, spare: map[int]sparing{},
		name:  name,
		from:  RecipientName(name),
		queue: queue,
		lanes: lanes,
		store: store,
		local: local,
		log:   log.With("component", "uplink", "uplink", name),
		wake:  make(chan struct{}, 1),
		sess:  newSession(received),

		onTrial: opts.OnTrial,
	}
	u.at = u.dialer.Paths()[0]
	u.dialer.Spent = u.spent
	u.drops = make(limiter)
	u.packers = make(map[string]*pack.Packer)
	u.changes = u.newChanges(lanes)
	u.again = newBackoff(opts.ReconnectMin, opts.ReconnectMax)
	u.out, u.in = compile(opts.Routes, opts.Gateway)
	if err := u.useRenderings(); err != nil {
		return nil, fmt.Errorf("uplink %s: %w", name, err)
	}
	u.budget = newBudget(name, &u.opts, store)
	u.status = Status{
		Name: name, URL: u.at.Target.String(), ClientID: opts.clientID(),
		State: StateIdle, Since: time.Now(),
		Dropped: make(map[string]uint64),
		Lanes:   make([]LaneStatus, len(lanes.Queues)),
	}
	for i, q := range lanes.Queues {
		u.status.Lanes[i].Lane = q.String()
	}
	return u, nil
}

// Name is how the broker knows the uplink; its messages carry it as From.
func (u *Uplink) Name() string { return u.from }

// Queue is the uplink's queue in the store.
func (u *Uplink) Queue() durable.QueueID { return u.queue }

// Proven says that the configuration stays: what no route takes is dropped now.
func (u *Uplink) Proven() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.onTrial = false
	u.wakeLocked()
}

// Routes are the local topics the uplink takes.
func (u *Uplink) Routes() []OutRoute {
	rs := make([]OutRoute, len(u.out))
	for i, w := range u.out {
		rs[i] = OutRoute{Filter: w.filter, QoS: w.qos}
	}
	return rs
}
