package broker

import (
	"errors"

	"holdfast/broker/durable"
	"holdfast/broker/message"
	"holdfast/broker/packet"
	"holdfast/broker/topic"
)

// handleSubscribe adds subscriptions and hands out retained messages
// (MQTT 5.0 §3.8). On a persistent session the SUBACK waits until the
// subscriptions are durable.
func (c *conn) handleSubscribe(p *packet.Subscribe) error {
	if err := c.pay(p.Type(), len(p.Filters)); err != nil {
		return err
	}
	s := c.session
	reasons := make([]packet.ReasonCode, len(p.Filters))
	var added []*subscription // those granted; the last one wins of equal filters
	var kept []durable.Subscription
	var fresh []bool // whether there was none of that filter before
	for i, f := range p.Filters {
		sub, reason := c.subscription(f, p.Properties.SubscriptionID)
		reasons[i] = reason
		if sub == nil {
			continue
		}
		old, ok := s.putSubscription(sub)
		if !ok {
			reasons[i] = packet.ReasonQuotaExceeded
			continue
		}
		// The new one first: between the two a message finds both, and goes
		// out once (MQTT 5.0 §3.8.4 [MQTT-3.8.4-3]).
		c.b.addSubscription(sub)
		if old != nil {
			c.b.dropSubscription(old)
		}
		added = append(added, sub)
		fresh = append(fresh, old == nil)
		kept = append(kept, sub.Subscription)
	}
	if c.version < packet.V5 {
		for i, r := range reasons {
			if r.Failed() {
				reasons[i] = packet.ReasonUnspecified // the one failure 3.1.1 knows (§3.9.3)
			}
		}
	}
	suback := &packet.Suback{PacketID: p.PacketID, Reasons: reasons}
	if s.queue == 0 || len(kept) == 0 {
		if err := c.reply(suback); err != nil {
			return err
		}
	} else {
		c.b.store.Subscribe(s.queue, kept, func(err error) {
			if err != nil {
				c.storeFailed(err)
				return
			}
			c.tell(suback)
		})
	}
	for i, sub := range added {
		if c.cause.Load() != nil {
			return errEnded // for what waits already
		}
		// ! In a SUBSCRIBE of more filters than there may be, one that is there
		// several times has its retained messages sent once, for the last of
		// them (MQTT 5.0 §3.8.4 [MQTT-3.8.4-5] has them be as many packets): a
		// megabyte holds 200,000.
		if len(p.Filters) > c.b.opts.MaxSubscriptions && !s.holds(sub) {
			continue
		}
		if sub.share == "" && (sub.RetainHandling == 0 || sub.RetainHandling == 1 && fresh[i]) {
			c.handRetained(sub)
		}
	}
	return nil
}

// subscription judges one filter; a nil subscription goes with the reason why.
func (c *conn) subscription(f packet.Filter, id uint32) (*subscription, packet.ReasonCode) {
	// In 3.x $share is left to the server, and other brokers have it mean what
	// it means in 5.0; so do we, or a session would change its meaning when its
	// client is updated.
	group, inner, _, err := topic.ParseShared(f.Filter)
	if err != nil || topic.ValidFilter(f.Filter) != nil || c.b.opts.tooLong(f.Filter) {
		return nil, packet.ReasonTopicFilterInvalid
	}
	sub := &subscription{session: c.session, inner: inner, share: group}
	sub.Subscription = durable.Subscription{
		Filter: f.Filter, QoS: f.QoS, NoLocal: f.NoLocal,
		RetainAsPublished: f.RetainAsPublished, RetainHandling: f.RetainHandling, ID: id,
	}
	if a := c.b.opts.Auth; a != nil && !a.Authorize(*c.identity, ActionSubscribe, sub.inner) {
		c.b.count.denied.Add(1)
		return nil, packet.ReasonNotAuthorized
	}
	return sub, packet.ReasonCode(f.QoS) // granted as asked
}

// putSubscription keeps a subscription in the session; false means that it, or
// all sessions together, hold as many as they may.
func (s *session) putSubscription(sub *subscription) (old *subscription, ok bool) {
	o, n := &s.b.opts, &s.b.count
	s.mu.Lock()
	defer s.mu.Unlock()
	old = s.subs[sub.Filter]
	if old == nil && (len(s.subs) >= o.MaxSubscriptions || int(n.subscriptions.Load()) >= o.MaxSubscriptionsTotal ||
		int(n.subscriptionBytes.Load())+len(sub.Filter) > o.MaxSubscriptionBytes) {
		n.subscriptionsRefused.Add(1)
		return nil, false
	}
	if s.subs == nil {
		s.subs = make(map[string]*subscription)
	}
	s.subs[sub.Filter] = sub
	return old, true
}

// holds says whether the subscription has not been replaced.
func (s *session) holds(sub *subscription) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.subs[sub.Filter] == sub
}

// handRetained gives a new subscription the retained messages it matches, with
// the RETAIN flag set (MQTT 5.0 §3.3.1.3 [MQTT-3.3.1-8]).
//
// The lock keeps them in order with what is published meanwhile: a copy in the
// queue of a persistent session stands before the message that replaces it.
func (c *conn) handRetained(sub *subscription) {
	s := c.session
	var ws []waiting
	var ids []uint32
	if sub.ID != 0 {
		ids = []uint32{sub.ID}
	}
	r := &c.b.retained
	r.mu.Lock()
	for _, m := range r.matchingLocked(sub.inner) {
		if !c.b.mayReceive(s, m.Topic) || sub.NoLocal && m.From == s.clientID {
			continue // MQTT 5.0 §3.8.3.1 [MQTT-3.8.3-3]
		}
		if qos := min(m.QoS, sub.QoS); qos > 0 && s.queue != 0 {
			c.keepRetained(m, durable.Claim{Queue: s.queue, QoS: qos, Retain: true, SubscriptionIDs: ids})
			continue
		}
		ws = append(ws, waiting{m: m, qos: sub.QoS, retain: true, ids: ids, kept: true})
	}
	r.mu.Unlock()
	if len(ws) > 0 {
		s.hand(ws, c.cork)
	}
}

// keepRetained puts a retained message into the queue of a persistent session.
func (c *conn) keepRetained(m *message.Message, claim durable.Claim) {
	again := *m
	again.Retain = false // it is the retained message already
	err := c.b.store.Append(&again, []durable.Claim{claim}, durable.Origin{}, nil)
	if err == nil {
		return
	}
	c.b.count.droppedQueueFull.Add(1)
	if !errors.Is(err, durable.ErrFull) {
		c.b.count.storeErrors.Add(1)
	}
	c.b.log.Warn("retained message not queued", "client_id", c.session.clientID, "topic", m.Topic, "err", err)
}
