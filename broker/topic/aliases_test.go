package topic

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"
)

// fataler is a test of package testing or of rapid.
type fataler interface {
	Helper()
	Fatalf(format string, args ...any)
}

// wireTopics is what the topics of so many packets take with aliases, in bytes;
// it plays the peer, and fails when that would name another topic.
func wireTopics(t fataler, most, packets int, next func(i int) string) (bytes, plain int) {
	t.Helper()
	a, peer := NewAliases(most), map[uint16]string{}
	for i := range packets {
		topic := next(i)
		plain += len(topic)
		id, known := a.Choose(topic)
		switch {
		case int(id) > most:
			t.Fatalf("alias %d of %d", id, most)
		case known:
			if peer[id] != topic {
				t.Fatalf("alias %d stands for %q, want %q", id, peer[id], topic)
			}
			bytes += aliasCost
		case id != 0:
			peer[id] = topic
			bytes += len(topic) + aliasCost
		default:
			bytes += len(topic)
		}
		a.Used(topic, id)
		if n := len(a.topics) + len(a.sought); n > 5*most {
			t.Fatalf("%d topics are remembered with %d aliases", n, most)
		}
	}
	return bytes, plain
}

func TestAliasesSave(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	zipf := rand.NewZipf(rnd, 1.2, 1, 5000)
	name := func(i uint64) string { return fmt.Sprintf("sites/north/line-%06d/temperature", i) }
	const packets = 50_000
	tests := map[string]struct {
		most int
		next func(i int) string
		want float64 // at most this share of the topics' bytes
	}{
		"few topics":                      {16, func(i int) string { return name(uint64(i % 16)) }, 0.11},
		"twice the topics in turn":        {64, func(i int) string { return name(uint64(i % 128)) }, 0.57},
		"each topic once":                 {64, func(i int) string { return name(uint64(i)) }, 1.001},
		"some often, many seldom":         {64, func(int) string { return name(zipf.Uint64()) }, 0.52},
		"others after half of the time":   {64, func(i int) string { return name(uint64(i/(packets/2)*1000 + i%64)) }, 0.12},
		"topics no longer than the alias": {64, func(i int) string { return fmt.Sprint("t/", i%64) }, 1},
		"none allowed":                    {0, func(i int) string { return name(uint64(i % 4)) }, 1},
	}
	for what, test := range tests {
		t.Run(what, func(t *testing.T) {
			bytes, plain := wireTopics(t, test.most, packets, test.next)
			share := float64(bytes) / float64(plain)
			t.Logf("%.3f", share)
			if share > test.want {
				t.Errorf("topics take %.3f of their bytes, want at most %.3f", share, test.want)
			}
		})
	}
}

// Whatever is sent, an alias stands for what the peer was told.
func TestAliasesStandForOneTopic(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		most := rapid.IntRange(0, 5).Draw(t, "most")
		topics := rapid.SliceOfN(rapid.IntRange(0, 12), 1, 300).Draw(t, "topics")
		wireTopics(t, most, len(topics), func(i int) string { return fmt.Sprintf("some/topic/%d", topics[i]) })
	})
}
