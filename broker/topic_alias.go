package broker

import "holdfast/broker/packet"

// minAliased is the shortest topic name that an alias is given: it takes three
// bytes itself.
const minAliased = 4

// candidates is how many topics are remembered for each alias.
const candidates = 4

// givenAliases are the topic aliases of what one client is sent
// (MQTT 5.0 §3.3.2.3.4): they go to the topics used most. Which these are it
// learns from a few times as many topics as there are aliases.
type givenAliases struct {
	limit  int
	topics map[string]*aliasedTopic
	last   uint16 // the aliases up to here are given
	lowest uint32 // no topic that has an alias is used less
}

// aliasedTopic is a topic that has an alias, or is on its way to one.
type aliasedTopic struct {
	alias uint16 // 0 for none yet
	told  bool   // the client knows it
	uses  uint32
}

// alias puts an alias into a PUBLISH, in place of the topic if the client knows
// it. The caller holds the session's lock.
func (c *conn) alias(p *packet.Publish, topic string) {
	t := c.given.use(topic)
	switch {
	case t == nil || t.alias == 0:
		return
	case t.told:
		p.Topic = nil
	}
	p.TopicAlias = t.alias
	if !t.told && c.maxPacket > 0 && p.Size(c.version) > c.maxPacket {
		p.TopicAlias = 0 // only the first time it makes the packet longer
		return
	}
	t.told = true
}

// use counts a use of a topic and gives it an alias if it has earned one; nil
// for topics that need none.
func (g *givenAliases) use(topic string) *aliasedTopic {
	if len(topic) < minAliased {
		return nil
	}
	t := g.topics[topic]
	if t == nil {
		t = g.add(topic)
	}
	t.uses++
	switch {
	case t.alias > 0:
	case int(g.last) < g.limit:
		g.last++
		t.alias = g.last
	case t.uses > g.lowest:
		g.takeFromLeastUsed(t)
	}
	return t
}

func (g *givenAliases) add(topic string) *aliasedTopic {
	if g.topics == nil {
		g.topics = make(map[string]*aliasedTopic)
	}
	for len(g.topics) >= candidates*g.limit {
		g.age()
	}
	t := new(aliasedTopic)
	g.topics[topic] = t
	return t
}

// age halves all uses and forgets the topics without an alias that have none
// left, after some turns all of them.
func (g *givenAliases) age() {
	g.lowest /= 2
	for name, t := range g.topics {
		if t.uses /= 2; t.uses == 0 && t.alias == 0 {
			delete(g.topics, name)
		}
	}
}

// takeFromLeastUsed moves an alias to t, if t is used more than its owner.
func (g *givenAliases) takeFromLeastUsed(t *aliasedTopic) {
	var least *aliasedTopic
	for _, x := range g.topics {
		if x.alias > 0 && (least == nil || x.uses < least.uses) {
			least = x
		}
	}
	g.lowest = least.uses
	if t.uses > least.uses {
		t.alias, t.told = least.alias, false
		least.alias, least.told = 0, false
	}
}
