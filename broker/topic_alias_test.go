package broker

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"holdfast/broker/packet"
	"holdfast/broker/topic"
)

// TestGivenAliases: a client that follows the aliases always finds the topic
// that was meant, of few or many topics.
func TestGivenAliases(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := &conn{version: packet.V5, maxPacket: rapid.SampledFrom([]int{0, 15, 18}).Draw(t, "maximum packet size")}
		limit := rapid.IntRange(1, 5).Draw(t, "limit")
		c.given = topic.NewAliases(limit)
		known := make(map[uint16]string) // by the client
		topics := rapid.SliceOfN(rapid.IntRange(0, 30), 1, 300).Draw(t, "topics")
		for _, n := range topics {
			name := fmt.Sprintf("%0*d", 1+n%10, n)
			p := packet.Publish{Topic: []byte(name)}
			c.alias(&p, name)
			switch {
			case int(p.TopicAlias) > limit:
				t.Fatalf("alias %d", p.TopicAlias)
			case len(p.Topic) == 0 && known[p.TopicAlias] != name:
				t.Fatalf("alias %d for %q is %q to the client", p.TopicAlias, name, known[p.TopicAlias])
			case len(p.Topic) > 0 && p.TopicAlias > 0:
				if known[p.TopicAlias] = name; c.maxPacket > 0 && p.Size(packet.V5) > c.maxPacket {
					t.Fatalf("%d bytes with an alias", p.Size(packet.V5))
				}
			}
		}
	})
}
