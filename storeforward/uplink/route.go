package uplink

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"holdfast/broker/durable"
	"holdfast/broker/message"
	"holdfast/broker/topic"
	"holdfast/storeforward/pack"
)

// Values of Route.Direction, Route.Retain and Route.QoS0.
const (
	DirectionOut  = "out"  // to the cloud
	DirectionIn   = "in"   // from the cloud
	DirectionBoth = "both" // either way

	RetainKeep  = "keep"  // as the publisher set it
	RetainStrip = "strip" // never

	QoS0Drop = "drop" // what comes while the link is down is dropped
	QoS0Keep = "keep" // it waits in the store
)

// Route maps topics here to topics of the cloud. With filter X a message of
// local_prefix+X here is prefix+X there, and the other way round. When several
// routes of one direction match a topic, the first one in the file carries
// the message; it is never sent twice. It is delivered with the highest QoS that
// any of them carries.
type Route struct {
	// Direction is "out", "in" or "both".
	Direction string `toml:"direction"`
	// Filter is the topic filter without the prefixes.
	Filter string `toml:"filter"`
	// Rename is what the topic without the prefixes becomes at the cloud: {1},
	// {2} ... as whole levels stand for the wildcards of Filter, each once. Empty
	// keeps it. Inbound routes read it backwards.
	Rename string `toml:"rename"`
	// Prefix is what the topic has in front at the cloud.
	Prefix string `toml:"prefix"`
	// LocalPrefix is what the topic has in front here.
	LocalPrefix string `toml:"local_prefix"`
	// QoS is the highest QoS the route carries, 0 to 2; nil means 2, that is,
	// the publisher's.
	QoS *int `toml:"qos"`
	// QoS0 is "drop" (QoS 0 is sent while the link is up) or "keep" (it is kept
	// and sent as QoS 1 is); empty means drop.
	QoS0 string `toml:"qos0"`
	// Retain is "keep" or "strip"; empty means keep.
	Retain string `toml:"retain"`
	// Lane is the priority of what goes to the cloud, 0 to 7: a higher one goes
	// first, and each one that waits gets at least a 64th of what the link
	// carries. nil means 3. The order of a topic is kept within its lane, and
	// through a change of it.
	Lane *int `toml:"lane"`
	// Latest keeps only the newest message of each topic for the cloud, and
	// those that have been sent: for states. Messages go as QoS 1 and are
	// counted when a newer one takes their place; a topic goes by when it last
	// changed. Latest messages of a lane go before the others.
	Latest bool `toml:"latest"`
	// Expiry is the most a message may wait for the cloud, whole seconds; the
	// cloud is told what is left of it (5.0). 0 leaves it to the publisher.
	Expiry time.Duration `toml:"expiry"`
	// Snapshot sends the retained messages of the route again before what waits
	// for the cloud, when something does or the cloud has lost the session. The
	// queue then follows in its order: the cloud sees the newest value, what led
	// to it, and the newest again.
	Snapshot bool `toml:"snapshot"`
	// Policy is what happens to a message for the cloud when the queue is
	// full: "refuse" (the publisher is told), "wait" (its acknowledgement is
	// withheld), "drop_oldest", "drop_newest", or "thin" (of each topic ever
	// fewer messages are kept the older they are, from before the queue is
	// full). Empty means refuse. What has been sent is never dropped.
	Policy durable.Policy `toml:"policy"`

	// Render is the form in which readings go to the cloud, and Template that of
	// the form "template"; empty leaves them as they are. What is no reading goes
	// as it is, and is counted. The forms are those of [Options.Rendering].
	Render   string `toml:"render"`
	Template string `toml:"template"`

	// Batch puts many QoS 1 messages into one on BatchTopic, as "jsonl", "json"
	// or "cbor" (see package pack), or "senml" or "senml_cbor", in which form
	// those readings go too that go alone; empty does not. QoS 2 and what is retained
	// go alone. Messages here keep their order, and each is finished when its
	// batch is acknowledged.
	Batch pack.Format `toml:"batch"`
	// Compression of a batch: "zstd", "gzip" or "none"; empty means zstd. A batch
	// that it makes no smaller goes plain, and says so.
	Compression pack.Compression `toml:"compression"`
	// BatchTopic is the cloud's topic of the batches, with {gateway} standing
	// for the gateway's id; empty means [DefaultBatchTopic]. In 3.1.1 it gets
	// one more level, "cbor.zst", or "cbor" when zstd makes that batch no smaller.
	BatchTopic string `toml:"batch_topic"`
	// BatchMessages and BatchBytes (before compression) are what makes a batch
	// full; 0 means [DefaultBatchMessages] and [DefaultBatchBytes].
	BatchMessages int `toml:"batch_messages"`
	BatchBytes    int `toml:"batch_bytes"`
	// BatchDelay is how long the first message of a batch waits for others; 0
	// means [DefaultBatchDelay]. What waits longer than the store's
	// commit_window is written to flash.
	BatchDelay time.Duration `toml:"batch_delay"`
}

// maxExpiry is the longest message expiry interval there is (MQTT 5.0 §3.3.2.3.3).
const maxExpiry = (1<<32 - 1) * time.Second

// OutRoute is what the broker must know of a route to the cloud: which local
// messages it takes and the highest QoS they are delivered with.
type OutRoute struct {
	Filter string
	QoS    byte
}

func (r *Route) validate(gateway string) error {
	switch r.Direction {
	case DirectionOut, DirectionIn, DirectionBoth:
	case "":
		return errors.New("direction: is missing; expected \"out\", \"in\" or \"both\"")
	default:
		return fmt.Errorf("direction: %q is not one of \"out\", \"in\", \"both\"", r.Direction)
	}
	if r.Filter == "" {
		return errors.New("filter: is missing; expected something like \"sensors/#\"")
	}
	// A filter that is not valid alone can hide behind a prefix ("a" + "#").
	if err := topic.ValidFilter(r.Filter); err != nil {
		return fmt.Errorf("filter: %w", err)
	}
	if strings.HasPrefix(r.Filter, "$share/") {
		return fmt.Errorf("filter: %q is a shared subscription; a route is not shared", r.Filter)
	}
	for key, prefix := range map[string]string{"prefix": r.Prefix, "local_prefix": r.LocalPrefix} {
		if strings.ContainsAny(prefix, "+#") {
			return fmt.Errorf("%s: %q has a wildcard", key, prefix)
		}
		// "a" in front of "#" would make "a#", which is none: a prefix before a
		// wildcard ends in a slash.
		if err := topic.ValidFilter(prefix + r.Filter); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
	}
	if r.QoS != nil && (*r.QoS < 0 || *r.QoS > 2) {
		return fmt.Errorf("qos: %d is outside 0..2", *r.QoS)
	}
	if r.Policy != "" && !slices.Contains(durable.Policies, r.Policy) {
		return fmt.Errorf("policy: %q is not one of %q", r.Policy, durable.Policies)
	}
	if r.Lane != nil && (*r.Lane < 0 || *r.Lane >= durable.Lanes) {
		return fmt.Errorf("lane: %d is outside 0..%d", *r.Lane, durable.Lanes-1)
	}
	if r.Latest && r.QoS != nil && *r.QoS != 1 {
		return fmt.Errorf("latest: needs qos = 1, the newest message of a topic is kept and goes at least once, not %d", *r.QoS)
	}
	if r.Expiry < 0 || r.Expiry > maxExpiry || r.Expiry%time.Second != 0 {
		return fmt.Errorf("expiry: %v is not whole seconds up to %v", r.Expiry, maxExpiry)
	}
	if r.Direction == DirectionIn {
		for key, set := range map[string]bool{"lane": r.Lane != nil, "latest": r.Latest, "expiry": r.Expiry != 0, "render": r.Render != ""} {
			if set {
				return fmt.Errorf("%s: means nothing for direction \"in\"", key)
			}
		}
	}
	switch r.Retain {
	case "", RetainKeep, RetainStrip:
	default:
		return fmt.Errorf("retain: %q is not one of \"keep\", \"strip\"", r.Retain)
	}
	switch r.QoS0 {
	case "", QoS0Drop:
	case QoS0Keep:
		if r.QoS != nil && *r.QoS == 0 {
			return errors.New("qos0: \"keep\" needs acknowledgements; set qos to 1 or 2")
		}
	default:
		return fmt.Errorf("qos0: %q is not one of \"drop\", \"keep\"", r.QoS0)
	}
	if r.Rename != "" {
		ls, err := templateLevels(r.Prefix+r.Rename, filterLevels(r.LocalPrefix+r.Filter))
		if err != nil {
			return fmt.Errorf("rename: %w", err)
		}
		if err := topic.ValidFilter(filterOf(ls)); err != nil || strings.ContainsAny(r.Rename, "+#") {
			return fmt.Errorf("rename: %q makes no topic", r.Prefix+r.Rename)
		}
	}
	return r.validateBatch(gateway)
}

// way is one direction of a route, ready for use.
type way struct {
	filter string // whole filter on the side the message comes from
	from   string // prefix on that side
	to     string // prefix on the other side
	qos    byte
	strip  bool // RETAIN is cleared
	keep0  bool // QoS 0 goes through the store
	thin   bool // the policy gives the licence to leave out
	// snapshot says that retained messages are sent before what waits.
	snapshot bool
	// fromLevels and toLevels rename; nil where the prefixes say it all.
	fromLevels, toLevels []level
	batch                *batching // nil for messages that go alone
	render               Rendering // nil for readings that go as they are
	expiry               time.Duration
}

// ways are the routes of one direction in the order of the file.
type ways []way

func compile(routes []Route, gateway string) (out, in ways) {
	for i := range routes {
		r := &routes[i]
		qos := byte(2)
		if r.QoS != nil {
			qos = byte(*r.QoS)
		}
		w := way{qos: qos, strip: r.Retain == RetainStrip, keep0: r.QoS0 == QoS0Keep, expiry: r.Expiry, snapshot: r.Snapshot, thin: r.Policy == durable.PolicyThin}
		here, there := filterLevels(r.LocalPrefix+r.Filter), []level(nil)
		if r.Rename != "" {
			there, _ = templateLevels(r.Prefix+r.Rename, here) // validated
		}
		if r.Direction != DirectionIn {
			w.filter, w.from, w.to = r.LocalPrefix+r.Filter, r.LocalPrefix, r.Prefix
			if there != nil {
				w.from, w.to, w.fromLevels, w.toLevels = "", "", here, there
			}
			w.batch = r.batching(gateway)
			out = append(out, w)
		}
		if r.Direction != DirectionOut {
			w.filter, w.from, w.to, w.batch = r.Prefix+r.Filter, r.Prefix, r.LocalPrefix, nil
			if there != nil {
				w.filter, w.from, w.to, w.fromLevels, w.toLevels = filterOf(there), "", "", there, here
			}
			in = append(in, w)
		}
	}
	return out, in
}

// queuePolicy is what the store must know of the queue to the cloud.
func (o Options) queuePolicy() durable.QueuePolicy {
	p := durable.QueuePolicy{MaxMessages: o.MaxMessages, MaxBytes: o.MaxBytes, MaxAge: o.MaxAge}
	for i := range o.Routes {
		if r := &o.Routes[i]; r.Direction != DirectionIn {
			p.Routes = append(p.Routes, durable.RoutePolicy{Filter: r.LocalPrefix + r.Filter, Policy: r.Policy})
		}
	}
	return p
}

// laneRoutes say which lanes the topics of the routes out take.
func (o Options) laneRoutes() (lanes []durable.LaneRoute) {
	for i := range o.Routes {
		if r := &o.Routes[i]; r.Direction != DirectionIn {
			lanes = append(lanes, durable.LaneRoute{Filter: r.LocalPrefix + r.Filter, Lane: r.lane()})
		}
	}
	return lanes
}

// lane is the route's lane.
func (r *Route) lane() durable.Lane {
	l := durable.Lane{Number: durable.DefaultLane, Latest: r.Latest}
	if r.Lane != nil {
		l.Number = byte(*r.Lane)
	}
	return l
}

// find returns the way that carries name and what name becomes; nil when none
// does.
func (ws ways) find(name string) (*way, string) {
	for i := range ws {
		if ok, other := ws[i].carry(name); ok {
			return &ws[i], other
		}
	}
	return nil, ""
}

// carry says whether the way carries name, and what name becomes.
func (w *way) carry(name string) (ok bool, other string) {
	switch {
	case !topic.Match(w.filter, name) || !strings.HasPrefix(name, w.from):
		return false, ""
	case w.fromLevels != nil:
		return true, rename(name, w.fromLevels, w.toLevels)
	case w.from == w.to:
		return true, name
	default:
		return true, w.to + name[len(w.from):]
	}
}

// batch says that some of the ways put messages together.
func (ws ways) batch() bool {
	return slices.ContainsFunc(ws, func(w way) bool { return w.batch != nil })
}

// carried is what [Uplink.carries] has found out.
type carried struct {
	way    *way
	remote string
}

// maxCarried is how many topics are remembered, as the broker's plans do.
const maxCarried = 8192

// carries returns the way out of a topic here and what it becomes at the cloud;
// nil when there is none. The caller holds mu.
func (u *Uplink) carries(name string) (*way, string) {
	c, known := u.topics[name]
	if !known {
		c.way, c.remote = u.out.find(name)
		if u.topics == nil || len(u.topics) >= maxCarried {
			u.topics = make(map[string]carried)
		}
		u.topics[name] = c
	}
	return c.way, c.remote
}

// remaining is what is left of a message's expiry, seconds: the publisher's, or the
// route's where that is shorter. limited says that there is one, alive that it has
// not passed. There may be no way: our own messages have none.
func (w *way) remaining(m *message.Message, now time.Time) (left uint32, limited, alive bool) {
	left, alive = m.Remaining(now)
	if w == nil || w.expiry == 0 {
		return left, m.HasExpiry, alive
	}
	own := *m
	own.HasExpiry, own.Expiry = true, uint32(w.expiry/time.Second)
	ours, still := own.Remaining(now)
	if m.HasExpiry {
		ours = min(ours, left)
	}
	return ours, true, alive && still
}

// inbound maps a message of the cloud to the local topic. What would land on
// a topic of the broker's own ($SYS and the like) or on none is not carried.
func (ws ways) inbound(name string) (*way, string) {
	w, local := ws.find(name)
	if w == nil || local == "" || local[0] == '$' || topic.ValidName(local) != nil {
		return nil, ""
	}
	return w, local
}

// RecipientName is the publisher's name that messages of an uplink carry, and the name
// under which the broker knows it; "$" keeps it apart from client ids.
func RecipientName(name string) string { return recipientPrefix + name }

const recipientPrefix = "$uplink/"

// loops says that m came from this uplink, or has been through too many: it must
// not go there.
func (u *Uplink) loops(m *message.Message) bool {
	if m.From == u.from {
		return true
	}
	n, _ := hops(m)
	return n >= maxHops
}
