package broker

import "holdfast/broker/packet"

// handleUnsubscribe removes subscriptions; what is already on its way for them
// still goes out (MQTT 5.0 §3.10.4). On a persistent session the UNSUBACK waits
// until that is durable.
func (c *conn) handleUnsubscribe(p *packet.Unsubscribe) error {
	if err := c.pay(p.Type(), len(p.Filters)); err != nil {
		return err
	}
	s := c.session
	reasons := make([]packet.ReasonCode, len(p.Filters))
	var gone []string
	for i, filter := range p.Filters {
		s.mu.Lock()
		sub := s.subs[filter]
		delete(s.subs, filter)
		s.mu.Unlock()
		if sub == nil {
			reasons[i] = packet.ReasonNoSubscriptionExisted
			continue
		}
		c.b.dropSubscription(sub)
		gone = append(gone, filter)
	}
	unsuback := &packet.Unsuback{PacketID: p.PacketID, Reasons: reasons}
	if s.queue == 0 || len(gone) == 0 {
		return c.reply(unsuback)
	}
	c.b.store.Unsubscribe(s.queue, gone, func(err error) {
		if err != nil {
			c.storeFailed(err)
			return
		}
		c.tell(unsuback)
	})
	return nil
}
