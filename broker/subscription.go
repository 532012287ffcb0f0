package broker

import (
	"slices"
	"sync"
	"sync/atomic"

	"holdfast/broker/durable"
	"holdfast/broker/message"
	"holdfast/broker/topic"
)

// subscription is one entry of the trie. It does not change; subscribing again
// puts another one in its place. Exactly one of session, group, recipient and
// watch is set.
type subscription struct {
	durable.Subscription

	session   *session // also set in the members of a group
	group     *group   // the group's entry in the trie
	recipient *recipient
	watch     *watch

	share string // of a member: the share name; Filter has it in front
	inner string // the filter in the trie
}

// recipient is an uplink while it is added.
type recipient struct {
	Recipient

	subs []*subscription
}

// watch is one in-process onlooker.
type watch struct {
	fn func(*message.Message)
	// inbox says that it does something about a message, which then has a
	// subscriber.
	inbox bool
}

// group is all members of one shared subscription: same share name, same
// filter (MQTT 5.0 §4.8.2).
type group struct {
	entry *subscription // in the trie

	mu      sync.Mutex
	queue   *groupQueue     // guarded by mu; nil while no member has been persistent
	members []*subscription // guarded by mu
	next    int             // guarded by mu
}

// groupKey names a group.
type groupKey struct{ share, filter string }

// groups finds them.
type groups struct {
	mu sync.Mutex
	m  map[groupKey]*group // guarded by mu
	// kept are the queues from before the start that no group has yet taken;
	// guarded by mu.
	kept   map[groupKey]durable.QueueID
	queues atomic.Pointer[[]*groupQueue] // changed with mu
	hungry atomic.Int32                  // how many of them have something to hand out
}

// addSubscription puts a session's subscription into the trie, or into its
// shared group.
func (b *Broker) addSubscription(sub *subscription) {
	b.count.subscriptions.Add(1)
	b.count.subscriptionBytes.Add(int64(len(sub.Filter)))
	if sub.share == "" {
		b.trie.Add(sub.inner, sub)
		return
	}
	b.count.sharedSubscriptions.Add(1)
	b.groups.mu.Lock()
	defer b.groups.mu.Unlock()
	key := groupKey{sub.share, sub.inner}
	g := b.groups.m[key]
	if g == nil {
		g = &group{entry: &subscription{inner: sub.inner}}
		g.entry.group = g
		if b.groups.m == nil {
			b.groups.m = make(map[groupKey]*group)
		}
		b.groups.m[key] = g
		b.trie.Add(sub.inner, g.entry)
	}
	g.mu.Lock()
	g.members = append(g.members, sub)
	kept := g.queue != nil
	g.mu.Unlock()
	if !kept && sub.persistent() {
		b.keepGroupLocked(key, g)
	}
	b.feedGroups()
}

// dropSubscription takes it out again.
func (b *Broker) dropSubscription(sub *subscription) {
	b.count.subscriptions.Add(-1)
	b.count.subscriptionBytes.Add(-int64(len(sub.Filter)))
	if sub.share == "" {
		b.trie.Remove(sub.inner, sub)
		return
	}
	b.count.sharedSubscriptions.Add(-1)
	b.groups.mu.Lock()
	defer b.groups.mu.Unlock()
	key := groupKey{sub.share, sub.inner}
	g := b.groups.m[key]
	if g == nil {
		return
	}
	g.mu.Lock()
	if i := slices.Index(g.members, sub); i >= 0 {
		g.members = slices.Delete(g.members, i, i+1)
	}
	empty := len(g.members) == 0
	over := !slices.ContainsFunc(g.members, func(sub *subscription) bool { return sub.QoS > 0 })
	g.mu.Unlock()
	if over {
		b.endGroupLocked(g)
	}
	if empty {
		delete(b.groups.m, key)
		b.trie.Remove(sub.inner, g.entry)
	}
}

// pick chooses the member that gets a message of that QoS: in turn, one with
// room before one without, an online one before an offline one, and an offline
// one only if its session keeps the message, so that a group whose persistent
// members are all away loses nothing. Nil: there is nobody
// (MQTT 5.0 §4.8.2 [MQTT-4.8.2-4]).
func (g *group) pick(qos byte, allowed func(*session) bool) *subscription {
	g.mu.Lock()
	defer g.mu.Unlock()
	var chosen *subscription
	var at int
	best := 0
	for i := range g.members {
		n := (g.next + i) % len(g.members)
		sub := g.members[n]
		if rank := sub.session.rank(min(qos, sub.QoS)); rank > best && allowed(sub.session) {
			best, chosen, at = rank, sub, n
			if rank == 3 {
				break
			}
		}
	}
	if chosen != nil {
		g.next = (at + 1) % len(g.members)
	}
	return chosen
}

// rank says how well a session can take a message now: 3 at once, 2 later, 1
// when it comes back, 0 not at all.
func (s *session) rank(qos byte) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	away := s.conn == nil || s.conn.cause.Load() != nil
	switch {
	case away && s.queue != 0 && qos > 0:
		return 1
	case away:
		return 0
	case qos > 0 && (s.pending.len() > 0 || s.roomLocked() <= 0):
		return 2
	}
	return 3
}

// AddRecipient makes an uplink a recipient of everything its routes match. Its
// QoS 1 and 2 messages go through the store to whatever is attached to its
// queue there; it is never sent what it published itself. A recipient of the
// same name is replaced.
func (b *Broker) AddRecipient(r Recipient) error {
	added := &recipient{Recipient: r}
	for _, route := range r.Routes {
		if err := topic.ValidFilter(route.Filter); err != nil {
			return err
		}
		if route.QoS > 2 || route.QoS > 0 && r.Queue == 0 {
			return errRoute
		}
		sub := &subscription{recipient: added, inner: route.Filter}
		sub.QoS = route.QoS
		added.subs = append(added.subs, sub)
	}
	b.mu.Lock()
	old := b.recipients[r.Name]
	b.recipients[r.Name] = added
	b.mu.Unlock()
	// The new routes first: a message between the two goes to both, and the
	// plan merges them into one claim, where a gap would lose it.
	for _, sub := range added.subs {
		b.trie.Add(sub.inner, sub)
	}
	b.dropRecipient(old)
	return nil
}

// RemoveRecipient ends that; what is queued for it stays in the store.
func (b *Broker) RemoveRecipient(name string) {
	b.mu.Lock()
	old := b.recipients[name]
	delete(b.recipients, name)
	b.mu.Unlock()
	b.dropRecipient(old)
}

func (b *Broker) dropRecipient(r *recipient) {
	if r == nil {
		return
	}
	for _, sub := range r.subs {
		b.trie.Remove(sub.inner, sub)
	}
}

// Watch calls fn for every message that matches one of the filters, best
// effort, from the goroutine that routes it; fn must return at once and not
// call the broker. Filters that are not valid match nothing.
func (b *Broker) Watch(filters []string, fn func(*message.Message)) (stop func()) {
	valid := slices.DeleteFunc(slices.Clone(filters), func(f string) bool { return topic.ValidFilter(f) != nil })
	return b.watch(&watch{fn: fn}, valid)
}

func (b *Broker) watch(w *watch, filters []string) (stop func()) {
	var subs []*subscription
	for _, f := range filters {
		sub := &subscription{watch: w, inner: f}
		subs = append(subs, sub)
		b.trie.Add(f, sub)
	}
	return sync.OnceFunc(func() {
		for _, sub := range subs {
			b.trie.Remove(sub.inner, sub)
		}
	})
}
