package topic_test

import (
	"fmt"
	"strings"
	"testing"

	"holdfast/broker/topic"
)

// sites is a plant of 100 sites with 1000 points each.
func sites(add func(filter string, v int)) {
	for i := range 100_000 {
		add(fmt.Sprintf("site/%d/device/%d/temperature", i%100, i/100), i)
	}
}

func BenchmarkTrieMatch(b *testing.B) {
	shapes := map[string]func(*topic.Trie[int]){
		"100k_exact": func(t *topic.Trie[int]) { sites(func(f string, v int) { t.Add(f, v) }) },
		"100k_exact_100_wild": func(t *topic.Trie[int]) {
			sites(func(f string, v int) { t.Add(f, v) })
			for i := range 100 {
				t.Add(fmt.Sprintf("site/%d/+/+/temperature", i), i)
				t.Add(fmt.Sprintf("site/%d/#", i), i)
			}
		},
		"100k_hostile": func(t *topic.Trie[int]) { // every one looks as if it might match
			for i := range 100_000 {
				levels := make([]string, 17)
				for j := range levels {
					levels[j] = "a"
					if i>>j&1 == 1 {
						levels[j] = "+"
					}
				}
				t.Add(strings.Join(levels, "/")+"/never", i)
			}
		},
	}
	names := map[string]string{"100k_hostile": strings.Repeat("a/", 17) + "x"}
	for shape, fill := range shapes {
		b.Run(shape, func(b *testing.B) {
			var trie topic.Trie[int]
			fill(&trie)
			name := names[shape]
			if name == "" {
				name = "site/42/device/567/temperature"
			}
			n := 0
			b.ReportAllocs()
			for b.Loop() {
				trie.Match(name, func(int) { n++ })
			}
		})
	}
}

func BenchmarkTrieAddRemove(b *testing.B) {
	b.Run("100k_exact", func(b *testing.B) {
		var trie topic.Trie[int]
		sites(func(f string, v int) { trie.Add(f, v) })
		b.ReportAllocs()
		for b.Loop() {
			trie.Add("site/42/device/new/temperature", 1)
			trie.Remove("site/42/device/new/temperature", 1)
		}
	})
	b.Run("100k_same_filter", func(b *testing.B) {
		var trie topic.Trie[int]
		for i := range 100_000 {
			trie.Add("#", i)
		}
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			trie.Remove("#", i%100_000)
			trie.Add("#", i%100_000)
		}
	})
}

func BenchmarkIndexMatchFilter(b *testing.B) {
	var index topic.Index[int]
	sites(func(f string, v int) { index.Set(f, v) })
	for name, filter := range map[string]string{
		"100k_one": "site/42/device/567/temperature", "100k_site": "site/42/#", "100k_plus": "site/+/device/567/+",
	} {
		b.Run(name, func(b *testing.B) {
			n := 0
			b.ReportAllocs()
			for b.Loop() {
				index.MatchFilter(filter, func(string, int) bool { n++; return true })
			}
		})
	}
}

func BenchmarkValidName(b *testing.B) {
	name := []byte("site/42/device/567/temperature")
	b.ReportAllocs()
	b.SetBytes(int64(len(name)))
	for b.Loop() {
		if err := topic.ValidName(name); err != nil {
			b.Fatal(err)
		}
	}
}
