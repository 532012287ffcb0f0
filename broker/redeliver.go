package broker

import (
	"slices"
	"time"

	"holdfast/broker/durable"
	"holdfast/broker/message"
)

// owed is a message a shared group still owes, because the member it went to
// ended before acknowledging it.
type owed struct {
	m     *message.Message
	group *group
}

// orphanPendingLocked gives up what waits in RAM, and says how much of it is
// lost.
func (s *session) orphanPendingLocked() (lost uint64) {
	for _, w := range s.pending.items[s.pending.head:] {
		switch {
		case w.group != nil && w.qos > 0:
			s.orphans = append(s.orphans, owed{w.m, w.group})
		case w.counts():
			lost++
		}
	}
	s.pending = fifo{}
	return lost
}

// takeOrphans returns what a session that has ended leaves to the other members
// of its groups, in the order it was sent: QoS 1 without an acknowledgement,
// and what was not sent yet. QoS 2 that was sent is nobody else's
// (MQTT 5.0 §4.8.2 [MQTT-4.8.2-5]).
func (s *session) takeOrphans() []owed {
	s.mu.Lock()
	defer s.mu.Unlock()
	var sent []uint16
	for id, o := range s.out.all() {
		if o.owed != nil {
			sent = append(sent, id)
		}
	}
	// Identifiers are given in a circle, the latest is s.ids.last.
	slices.SortFunc(sent, func(x, y uint16) int {
		return int(x-s.ids.last-1) - int(y-s.ids.last-1)
	})
	var all []owed
	for _, id := range sent {
		all = append(all, *s.out.get(id).owed)
	}
	all = append(all, s.orphans...)
	s.orphans, s.out = nil, idTable[outbound]{}
	return all
}

// redeliver gives what is owed to other members, if there are any. The caller
// holds no lock.
func (b *Broker) redeliver(all []owed) {
	for _, o := range all {
		for !b.redeliverOne(o) {
		}
	}
}

// redeliverOne returns false if the member it chose is gone meanwhile.
func (b *Broker) redeliverOne(o owed) (done bool) {
	if q := o.group.durableQueue(o.m.QoS, func(s *session) bool { return b.mayReceive(s, o.m.Topic) }); q != 0 {
		b.redeliverTo(durable.Claim{Queue: q, QoS: 1, Retain: o.m.Retain}, o.m)
		return true
	}
	sub := o.group.pick(o.m.QoS, func(s *session) bool { return b.mayReceive(s, o.m.Topic) })
	f, alive := framesOf(o.m, time.Now())
	switch {
	case sub == nil || !b.open():
		return true // the group had no other, and ended with its last session
	case !alive:
		b.count.droppedExpired.Add(1)
		return true
	}
	s, g := sub.session, sub.alone()
	qos, retain := min(g.qos, o.m.QoS), o.m.Retain && g.asWritten
	if qos == 0 || s.queue == 0 {
		how := form{qos: qos, retain: retain, subIDs: g.ids, group: o.group, left: true}
		return s.deliver(&f, &how, nil) || qos == 0
	}
	b.redeliverTo(durable.Claim{Queue: s.queue, QoS: qos, Retain: retain, SubscriptionIDs: g.ids}, o.m)
	return true
}

func (b *Broker) redeliverTo(claim durable.Claim, m *message.Message) {
	again := *m
	again.Retain = false // it is the retained message already
	if err := b.store.Append(&again, []durable.Claim{claim}, durable.Origin{}, nil); err != nil {
		b.count.droppedQueueFull.Add(1)
		b.log.Warn("message of a shared group not queued", "topic", again.Topic, "err", err)
	}
}
