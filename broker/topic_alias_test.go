package broker

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"holdfast/broker/packet"
)

// TestGivenAliases: a client that follows the aliases always finds the topic
// that was meant, of few or many topics, and what is remembered is bounded.
func TestGivenAliases(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := &conn{version: packet.V5, maxPacket: rapid.SampledFrom([]int{0, 15, 18}).Draw(t, "maximum packet size")}
		c.given.limit = rapid.IntRange(1, 5).Draw(t, "limit")
		known := make(map[uint16]string) // by the client
		topics := rapid.SliceOfN(rapid.IntRange(0, 30), 1, 300).Draw(t, "topics")
		for _, n := range topics {
			topic := fmt.Sprintf("%0*d", 1+n%10, n)
			p := packet.Publish{Topic: []byte(topic)}
			c.alias(&p, topic)
			switch {
			case int(p.TopicAlias) > c.given.limit:
				t.Fatalf("alias %d", p.TopicAlias)
			case len(p.Topic) == 0 && known[p.TopicAlias] != topic:
				t.Fatalf("alias %d for %q is %q to the client", p.TopicAlias, topic, known[p.TopicAlias])
			case len(p.Topic) > 0 && p.TopicAlias > 0:
				if known[p.TopicAlias] = topic; c.maxPacket > 0 && p.Size(packet.V5) > c.maxPacket {
					t.Fatalf("%d bytes with an alias", p.Size(packet.V5))
				}
			}
			if n := len(c.given.topics); n > candidates*c.given.limit {
				t.Fatalf("%d topics are remembered", n)
			}
		}
	})
}

// TestAliasesFollowUse: a topic that is used more takes an alias from one used
// less, and that only once it is.
func TestAliasesFollowUse(t *testing.T) {
	g := givenAliases{limit: 2}
	for range 3 {
		g.use("three times")
		g.use("thrice too")
	}
	for range 3 {
		if got := g.use("newcomer"); got.alias != 0 {
			t.Fatalf("alias %d after %d uses", got.alias, got.uses)
		}
	}
	if got := g.use("newcomer"); got.alias == 0 {
		t.Error("no alias after 4 uses")
	}
	if got := g.use("a/b"); got != nil {
		t.Error("an alias makes that longer")
	}
}
