package uplink

import (
	"fmt"
	"slices"
	"strings"

	"holdfast/broker/durable"
	"holdfast/broker/message"
	"holdfast/broker/topic"
)

// Values of Route.Direction and Route.Retain.
const (
	DirectionOut  = "out"  // to the cloud
	DirectionIn   = "in"   // from the cloud
	DirectionBoth = "both" // either way

	RetainKeep  = "keep"  // as the publisher set it
	RetainStrip = "strip" // never
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
	// Prefix is what the topic has in front at the cloud.
	Prefix string `toml:"prefix"`
	// LocalPrefix is what the topic has in front here.
	LocalPrefix string `toml:"local_prefix"`
	// QoS is the highest QoS the route carries, 0 to 2; nil means 2, that is,
	// the publisher's.
	QoS *int `toml:"qos"`
	// Retain is "keep" or "strip"; empty means keep.
	Retain string `toml:"retain"`
	// Policy is what happens to a message for the cloud when the queue is
	// full: "refuse" (the publisher is told), "wait" (its acknowledgement is
	// withheld), "drop_oldest", "drop_newest", or "thin" (of each topic ever
	// fewer messages are kept the older they are, from before the queue is
	// full). Empty means refuse. What has been sent is never dropped.
	Policy durable.Policy `toml:"policy"`
}

// OutRoute is what the broker must know of a route to the cloud: which local
// messages it takes and the highest QoS they are delivered with.
type OutRoute struct {
	Filter string
	QoS    byte
}

func (r *Route) validate() error {
	switch r.Direction {
	case DirectionOut, DirectionIn, DirectionBoth:
	case "":
		return fmt.Errorf("direction: is missing; expected \"out\", \"in\" or \"both\"")
	default:
		return fmt.Errorf("direction: %q is not one of \"out\", \"in\", \"both\"", r.Direction)
	}
	if r.Filter == "" {
		return fmt.Errorf("filter: is missing; expected something like \"sensors/#\"")
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
		if err := topic.ValidFilter(prefix + r.Filter); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
	}
	// "a" in front of "#" would make "a#"; ValidFilter refuses it, and "a" in
	// front of "+/b" likewise: a prefix before a wildcard ends in a slash.
	if r.QoS != nil && (*r.QoS < 0 || *r.QoS > 2) {
		return fmt.Errorf("qos: %d is outside 0..2", *r.QoS)
	}
	if r.Policy != "" && !slices.Contains(durable.Policies, r.Policy) {
		return fmt.Errorf("policy: %q is not one of %q", r.Policy, durable.Policies)
	}
	switch r.Retain {
	case "", RetainKeep, RetainStrip:
	default:
		return fmt.Errorf("retain: %q is not one of \"keep\", \"strip\"", r.Retain)
	}
	return nil
}

// way is one direction of a route, ready for use.
type way struct {
	filter string // whole filter on the side the message comes from
	from   string // prefix on that side
	to     string // prefix on the other side
	qos    byte
	strip  bool // RETAIN is cleared
}

// ways are the routes of one direction in the order of the file.
type ways []way

func compile(routes []Route) (out, in ways) {
	for i := range routes {
		r := &routes[i]
		qos := byte(2)
		if r.QoS != nil {
			qos = byte(*r.QoS)
		}
		w := way{qos: qos, strip: r.Retain == RetainStrip}
		if r.Direction != DirectionIn {
			w.filter, w.from, w.to = r.LocalPrefix+r.Filter, r.LocalPrefix, r.Prefix
			out = append(out, w)
		}
		if r.Direction != DirectionOut {
			w.filter, w.from, w.to = r.Prefix+r.Filter, r.Prefix, r.LocalPrefix
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

// find returns the way that carries name and what name becomes; nil when none
// does.
func (ws ways) find(name string) (*way, string) {
	for i := range ws {
		w := &ws[i]
		if !topic.Match(w.filter, name) || !strings.HasPrefix(name, w.from) {
			continue
		}
		if w.from == w.to {
			return w, name
		}
		return w, w.to + name[len(w.from):]
	}
	return nil, ""
}

// inbound maps a message of the cloud to the local topic. What would land on
// a topic of the broker's own ($SYS and the like) or on none is not carried.
func (ws ways) inbound(name string) (*way, string) {
	w, local := ws.find(name)
	if w == nil || local[0] == '$' || topic.ValidName(local) != nil {
		return nil, ""
	}
	return w, local
}

// RecipientName is the publisher's name that messages of an uplink carry, and the name
// under which the broker knows it; "$" keeps it apart from client ids.
func RecipientName(name string) string { return "$uplink/" + name }

// loops says that m came from this uplink; it must not go back there.
func (u *Uplink) loops(m *message.Message) bool { return m.From == u.from }
