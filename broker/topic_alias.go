package broker

import "holdfast/broker/packet"

// alias puts an alias into a PUBLISH, in place of the topic if the client knows
// it. The caller holds the session's lock.
func (c *conn) alias(p *packet.Publish, topic string) {
	id, known := c.given.Choose(topic)
	p.TopicAlias = id
	switch {
	case known:
		p.Topic = nil
	case id != 0 && c.maxPacket > 0 && p.Size(c.version) > c.maxPacket:
		p.TopicAlias = 0 // only the first time it makes the packet longer
	}
	c.given.Used(topic, p.TopicAlias)
}
