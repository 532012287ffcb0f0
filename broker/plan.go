package broker

import (
	"slices"
	"sync"

	"holdfast/broker/durable"
	"holdfast/broker/message"
)

// How much is remembered. Topics and subscriptions are what clients make of
// them; beyond a bound all plans are forgotten and begin anew.
const (
	// maxPlans is how many topics. A gateway's are its points, a few thousand.
	maxPlans = 8192
	// maxPlanned is how many recipients in all plans, about 10 MB of them:
	// a thousand topics that a hundred clients want.
	maxPlanned = 100_000
	// maxPlanName is the longest topic, in bytes; others are looked up each
	// time.
	maxPlanName = 512
	// planSlots is how many a loop has at hand, and maxAtHand the most sessions
	// such a plan may have: finding it is little beside serving more, and what is
	// at hand may be of the past.
	planSlots = 64
	maxAtHand = 64
)

// plan is who gets messages of one topic. It does not change: it is good as
// long as the trie stays what it was.
type plan struct {
	topic      string
	generation uint64
	reserved   bool // clients may not publish there
	// passing says that nobody keeps its messages but who is connected: they go
	// to sockets only.
	passing    bool
	sessions   []target
	groups     []*group
	recipients []recipientTarget
	watches    []*watch
	inbox      bool // one of watches is
}

// target is one session and its subscriptions that match; usually one.
type target struct {
	s    *session
	subs []*subscription
	grant
	noLocal bool // some of subs are
}

// grant is what several subscriptions of one session come to: one delivery at
// the highest QoS, with all their identifiers (MQTT 5.0 §3.3.4 [MQTT-3.3.4-2]).
type grant struct {
	qos       byte
	asWritten bool // retain as published
	ids       []uint32
}

type recipientTarget struct {
	r   *recipient
	qos byte
}

// plans remembers them.
type plans struct {
	mu sync.RWMutex
	m  map[string]*plan // guarded by mu
	// planned is how many recipients there are in m; guarded by mu.
	planned int
}

// generation changes when plans may have. Both parts only grow.
func (b *Broker) generation() uint64 { return b.trie.Generation() + b.reauthorized.Load() }

// lookup returns the plan of a topic, if there is one that is still good. The
// name may be bytes of a packet: nothing is allocated.
func (b *Broker) lookup(name []byte) *plan {
	b.plans.mu.RLock()
	p := b.plans.m[string(name)]
	b.plans.mu.RUnlock()
	if p == nil || p.generation != b.generation() {
		return nil
	}
	return p
}

// lookupAt is lookup for a goroutine that has the plans of late at hand.
func (b *Broker) lookupAt(plans *[planSlots]*plan, name []byte) *plan {
	if plans == nil || len(name) == 0 {
		return b.lookup(name)
	}
	// The ends of names differ most.
	n := len(name)
	slot := &plans[(int(name[n-1])^int(name[n/2])<<2^n<<3)%planSlots]
	if p := *slot; p != nil && p.topic == string(name) && p.generation == b.generation() {
		return p
	}
	p := b.lookup(name)
	if *slot = p; p != nil && len(p.sessions) > maxAtHand {
		*slot = nil
	}
	return p
}

// planFor returns the plan of a topic, made anew if need be.
func (b *Broker) planFor(name string) *plan {
	b.plans.mu.RLock()
	p := b.plans.m[name]
	b.plans.mu.RUnlock()
	if p != nil && p.generation == b.generation() {
		return p
	}
	p = b.makePlan(name)
	n := p.recipientCount()
	if len(name) > maxPlanName || n > maxPlanned/16 {
		return p
	}
	b.plans.mu.Lock()
	defer b.plans.mu.Unlock()
	if old := b.plans.m[name]; old != nil {
		b.plans.planned -= old.recipientCount()
	}
	if b.plans.m == nil || len(b.plans.m) >= maxPlans || b.plans.planned+n > maxPlanned {
		b.plans.m, b.plans.planned = make(map[string]*plan), 0
	}
	b.plans.m[name] = p
	b.plans.planned += n
	return p
}

// recipientCount is how much a plan takes, in subscriptions and the like.
func (p *plan) recipientCount() int {
	n := len(p.groups) + len(p.recipients) + len(p.watches)
	for i := range p.sessions {
		n += len(p.sessions[i].subs)
	}
	return n
}

func (b *Broker) makePlan(name string) *plan {
	p := &plan{topic: name, generation: b.generation(), reserved: reserved(name)}
	var subs []*subscription
	b.trie.Match(name, func(sub *subscription) {
		switch {
		case sub.session != nil:
			subs = append(subs, sub)
		case sub.group != nil:
			p.groups = append(p.groups, sub.group)
		case sub.recipient != nil:
			p.addRecipient(sub)
		case sub.watch != nil && !slices.Contains(p.watches, sub.watch):
			p.watches = append(p.watches, sub.watch)
			p.inbox = p.inbox || sub.watch.inbox
		}
	})
	at := make(map[*session]int, len(subs))
	for _, sub := range subs {
		i, known := at[sub.session]
		if !known {
			if !b.mayReceive(sub.session, name) {
				i = -1
			} else {
				i = len(p.sessions)
				p.sessions = append(p.sessions, target{s: sub.session})
			}
			at[sub.session] = i
		}
		if i < 0 {
			continue
		}
		t := &p.sessions[i]
		t.subs = append(t.subs, sub)
		t.noLocal = t.noLocal || sub.NoLocal
	}
	p.passing = len(p.groups)+len(p.recipients)+len(p.watches) == 0
	for i := range p.sessions {
		t := &p.sessions[i]
		t.grant, _ = t.granted("")
		p.passing = p.passing && t.s.queue == 0
	}
	return p
}

func (p *plan) addRecipient(sub *subscription) {
	for i := range p.recipients {
		// Compared by queue as well: while one replaces another of its name
		// both are here, and the queue gets one claim.
		if t := &p.recipients[i]; t.r == sub.recipient || t.r.Queue != 0 && t.r.Queue == sub.recipient.Queue {
			t.qos = max(t.qos, sub.QoS)
			return
		}
	}
	p.recipients = append(p.recipients, recipientTarget{sub.recipient, sub.QoS})
}

// granted merges the subscriptions for a message from that client; false when
// none is left.
func (t *target) granted(from string) (g grant, ok bool) {
	for _, sub := range t.subs {
		if sub.NoLocal && from != "" && from == t.s.clientID {
			continue // MQTT 5.0 §3.8.3.1 [MQTT-3.8.3-3]
		}
		ok = true
		g.qos = max(g.qos, sub.QoS)
		g.asWritten = g.asWritten || sub.RetainAsPublished
		if sub.ID != 0 {
			g.ids = append(g.ids, sub.ID)
		}
	}
	slices.Sort(g.ids)
	return g, ok
}

// grantFor is granted, without work where it does not depend on the publisher.
func (t *target) grantFor(m *message.Message) (g grant, ok bool) {
	if t.noLocal && m.From == t.s.clientID {
		return t.granted(m.From)
	}
	return t.grant, true
}

// delivery is one message for one session outside of the store.
type delivery struct {
	s *session
	grant
	group *group          // that chose the session
	queue durable.QueueID // the session's, or, without one, the group's
}

// sharing is the outcome of the plan's groups for one message.
func (b *Broker) sharing(p *plan, m *message.Message) []delivery {
	if len(p.groups) == 0 {
		return nil
	}
	ds := make([]delivery, 0, len(p.groups))
	for _, g := range p.groups {
		allowed := func(s *session) bool { return b.mayReceive(s, p.topic) }
		queue := g.durableQueue(m.QoS, allowed)
		ofGroup := delivery{grant: grant{qos: 1, asWritten: true}, group: g, queue: queue}
		if queue != 0 && m.QoS == 1 {
			ds = append(ds, ofGroup)
			continue
		}
		sub := g.pick(m.QoS, allowed)
		switch {
		case sub == nil:
		case queue != 0 && sub.QoS == 1:
			ds = append(ds, ofGroup)
		default:
			ds = append(ds, delivery{s: sub.session, grant: sub.alone(), group: g, queue: sub.session.queue})
		}
	}
	return ds
}

// alone is what one subscription comes to.
func (sub *subscription) alone() grant {
	g := grant{qos: sub.QoS, asWritten: sub.RetainAsPublished}
	if sub.ID != 0 {
		g.ids = []uint32{sub.ID}
	}
	return g
}

// claims lists the durable recipients of a message, each queue once: a session
// that has a matching subscription and is its shared group's choice as well
// gets one delivery (MQTT 5.0 §4.8.2 allows one or two).
func (p *plan) claims(m *message.Message, shared []delivery, from durable.QueueID) []durable.Claim {
	if m.QoS == 0 {
		return nil
	}
	var cs []durable.Claim
	merge := 0 // up to where a queue of cs may come again
	add := func(q durable.QueueID, g grant) {
		qos := min(g.qos, m.QoS)
		if q == 0 || qos == 0 {
			return
		}
		i := slices.IndexFunc(cs[:merge], func(c durable.Claim) bool { return c.Queue == q })
		if i >= 0 {
			cs[i].QoS = max(cs[i].QoS, qos)
			cs[i].Retain = cs[i].Retain || m.Retain && g.asWritten
			cs[i].SubscriptionIDs = slices.Concat(cs[i].SubscriptionIDs, g.ids)
			slices.Sort(cs[i].SubscriptionIDs)
		} else {
			cs = append(cs, durable.Claim{Queue: q, QoS: qos, Retain: m.Retain && g.asWritten, SubscriptionIDs: g.ids})
		}
	}
	for i := range p.sessions {
		t := &p.sessions[i]
		if t.s.queue == 0 {
			continue
		}
		if g, ok := t.grantFor(m); ok {
			add(t.s.queue, g)
		}
	}
	for _, d := range shared {
		merge = len(cs)
		add(d.queue, d.grant)
	}
	merge = 0 // uplinks have queues of their own
	for _, r := range p.recipients {
		if r.r.Queue != from {
			// The retain flag goes along: the other side keeps it too.
			add(r.r.Queue, grant{qos: r.qos, asWritten: true})
		}
	}
	return cs
}
