package topic_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"holdfast/broker/topic"
)

// naive matches as the specification reads, level by level.
func naive(filter, name string) bool {
	f, n := strings.Split(filter, "/"), strings.Split(name, "/")
	if strings.HasPrefix(name, "$") && (f[0] == "+" || f[0] == "#") {
		return false
	}
	for i, level := range f {
		if level == "#" {
			return true
		}
		if i >= len(n) || level != "+" && level != n[i] {
			return false
		}
	}
	return len(f) == len(n)
}

// naiveWithParent adds the rule that '#' stands for its parent too.
func naiveWithParent(filter, name string) bool {
	if naive(filter, name) {
		return true
	}
	parent, ok := strings.CutSuffix(filter, "/#")
	return ok && naive(parent, name)
}

func found[V comparable](t *topic.Trie[V], name string) []V {
	var got []V
	t.Match(name, func(v V) { got = append(got, v) })
	return got
}

func TestTrieMatch(t *testing.T) {
	for name, tt := range matches {
		t.Run(name, func(t *testing.T) {
			var trie topic.Trie[string]
			trie.Add(tt.filter, "v")
			if got := len(found(&trie, tt.name)) == 1; got != tt.want {
				t.Errorf("Trie with %q finds something for %q = %v, want %v", tt.filter, tt.name, got, tt.want)
			}
		})
	}
}

func TestIndexMatchFilter(t *testing.T) {
	for name, tt := range matches {
		t.Run(name, func(t *testing.T) {
			var index topic.Index[int]
			index.Set(tt.name, 1)
			got := false
			index.MatchFilter(tt.filter, func(name string, v int) bool {
				got = name == tt.name && v == 1
				return true
			})
			if got != tt.want {
				t.Errorf("Index with %q finds it for %q = %v, want %v", tt.name, tt.filter, got, tt.want)
			}
		})
	}
}

func TestTrieAddAndRemoveTellWhatChanged(t *testing.T) {
	var trie topic.Trie[int]
	steps := []struct {
		what   string
		do     func() bool
		want   bool
		length int
	}{
		{"add", func() bool { return trie.Add("a/+", 1) }, true, 1},
		{"add again", func() bool { return trie.Add("a/+", 1) }, false, 1},
		{"add another value", func() bool { return trie.Add("a/+", 2) }, true, 2},
		{"remove under another filter", func() bool { return trie.Remove("a/b", 1) }, false, 2},
		{"remove below", func() bool { return trie.Remove("a/+/c", 1) }, false, 2},
		{"remove parent", func() bool { return trie.Remove("a", 1) }, false, 2},
		{"remove hash", func() bool { return trie.Remove("a/+/#", 1) }, false, 2},
		{"remove", func() bool { return trie.Remove("a/+", 1) }, true, 1},
		{"remove again", func() bool { return trie.Remove("a/+", 1) }, false, 1},
		{"remove the last", func() bool { return trie.Remove("a/+", 2) }, true, 0},
	}
	for _, s := range steps {
		before := trie.Generation()
		if got := s.do(); got != s.want {
			t.Errorf("%s = %v, want %v", s.what, got, s.want)
		}
		if changed := trie.Generation() != before; changed != s.want {
			t.Errorf("%s changed the generation = %v, want %v", s.what, changed, s.want)
		}
		if got := trie.Len(); got != s.length {
			t.Errorf("after %s Len() = %d, want %d", s.what, got, s.length)
		}
	}
}

// levels and filters from a small alphabet, so that they meet often.
func genName(t *rapid.T) string {
	level := rapid.SampledFrom([]string{"a", "b", "", "$s", "温", "cc"})
	return strings.Join(rapid.SliceOfN(level, 1, 5).Draw(t, "name"), "/")
}

func genFilter(t *rapid.T) string {
	level := rapid.SampledFrom([]string{"a", "b", "", "$s", "温", "cc", "+", "+"})
	levels := rapid.SliceOfN(level, 0, 5).Draw(t, "filter")
	if len(levels) == 0 || rapid.Bool().Draw(t, "hash") {
		levels = append(levels, "#")
	}
	return strings.Join(levels, "/")
}

func TestMatchAgreesWithNaive(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		filter, name := genFilter(t), genName(t)
		if filter != "" && topic.ValidFilter(filter) != nil {
			t.Fatalf("ValidFilter(%q) = %v", filter, topic.ValidFilter(filter))
		}
		if filter == "" || name == "" {
			return
		}
		if got, want := topic.Match(filter, name), naiveWithParent(filter, name); got != want {
			t.Errorf("Match(%q, %q) = %v, want %v", filter, name, got, want)
		}
	})
}

type entry struct {
	filter string
	value  int
}

func TestTrieAgreesWithNaive(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var trie topic.Trie[int]
		model := map[entry]bool{}
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				e := entry{genFilter(t), rapid.IntRange(0, 40).Draw(t, "value")}
				if got, want := trie.Add(e.filter, e.value), !model[e]; got != want {
					t.Fatalf("Add(%q, %d) = %v, want %v", e.filter, e.value, got, want)
				}
				model[e] = true
			},
			"add many": func(t *rapid.T) { // beyond the short lists
				f := genFilter(t)
				for v := range rapid.IntRange(1, 40).Draw(t, "values") {
					trie.Add(f, v)
					model[entry{f, v}] = true
				}
			},
			"remove": func(t *rapid.T) {
				e := entry{genFilter(t), rapid.IntRange(0, 40).Draw(t, "value")}
				if len(model) > 0 && rapid.Bool().Draw(t, "one that is there") {
					keys := make([]entry, 0, len(model))
					for k := range model {
						keys = append(keys, k)
					}
					slices.SortFunc(keys, func(a, b entry) int {
						return strings.Compare(fmt.Sprint(a), fmt.Sprint(b))
					})
					e = rapid.SampledFrom(keys).Draw(t, "entry")
				}
				if got, want := trie.Remove(e.filter, e.value), model[e]; got != want {
					t.Fatalf("Remove(%q, %d) = %v, want %v", e.filter, e.value, got, want)
				}
				delete(model, e)
			},
			"": func(t *rapid.T) {
				if trie.Len() != len(model) {
					t.Fatalf("Len() = %d, want %d", trie.Len(), len(model))
				}
				name := genName(t)
				got := found(&trie, name)
				var want []int
				for e := range model {
					if name != "" && e.filter != "" && naiveWithParent(e.filter, name) {
						want = append(want, e.value)
					}
				}
				slices.Sort(got)
				slices.Sort(want)
				if !slices.Equal(got, want) {
					t.Fatalf("Match(%q) found %v, want %v", name, got, want)
				}
			},
		})
	})
}

func TestIndexAgreesWithNaive(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var index topic.Index[int]
		model := map[string]int{}
		t.Repeat(map[string]func(*rapid.T){
			"set": func(t *rapid.T) {
				name, v := genName(t), rapid.Int().Draw(t, "value")
				index.Set(name, v)
				model[name] = v
			},
			"delete": func(t *rapid.T) {
				name := genName(t)
				_, want := model[name]
				if got := index.Delete(name); got != want {
					t.Fatalf("Delete(%q) = %v, want %v", name, got, want)
				}
				delete(model, name)
			},
			"get": func(t *rapid.T) {
				name := genName(t)
				want, there := model[name]
				if got, ok := index.Get(name); got != want || ok != there {
					t.Fatalf("Get(%q) = %d, %v, want %d, %v", name, got, ok, want, there)
				}
			},
			"": func(t *rapid.T) {
				if index.Len() != len(model) {
					t.Fatalf("Len() = %d, want %d", index.Len(), len(model))
				}
				filter := genFilter(t)
				seen := map[string]bool{}
				index.MatchFilter(filter, func(name string, v int) bool {
					if want, ok := model[name]; !ok || v != want || seen[name] {
						t.Fatalf("MatchFilter(%q) gave %q = %d, want %d once", filter, name, v, want)
					}
					seen[name] = true
					return true
				})
				for name := range model {
					if want := naiveWithParent(filter, name); want != seen[name] {
						t.Fatalf("MatchFilter(%q) gave %q = %v, want %v", filter, name, seen[name], want)
					}
				}
			},
		})
	})
}

func TestIndexStopsWhenTold(t *testing.T) {
	var index topic.Index[int]
	for i := range 50 {
		index.Set(fmt.Sprintf("a/%d/b", i), i)
	}
	for _, filter := range []string{"#", "+/+/b", "a/+/#"} {
		calls := 0
		index.MatchFilter(filter, func(string, int) bool { calls++; return calls < 3 })
		if calls != 3 {
			t.Errorf("MatchFilter(%q) called %d times after being told to stop at 3", filter, calls)
		}
	}
}

func TestTrieConcurrently(t *testing.T) {
	var trie topic.Trie[int]
	trie.Add("stay/+", -1)
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			for i := range 500 {
				filter := fmt.Sprintf("go/%d/%d", worker, i%20)
				trie.Add(filter, i)
				if got := found(&trie, "stay/x"); len(got) != 1 {
					t.Errorf("Match while others add found %v, want one", got)
				}
				trie.Remove(filter, i)
			}
		})
	}
	wg.Wait()
	if trie.Len() != 1 {
		t.Errorf("Len() = %d after all were removed, want 1", trie.Len())
	}
}

func TestTrieMatchDoesNotAllocate(t *testing.T) {
	var trie topic.Trie[int]
	for i := range 100 {
		trie.Add(fmt.Sprintf("a/%d/+", i), i)
		trie.Add("a/+/c", i)
		trie.Add("#", i)
	}
	sum := 0
	got := testing.AllocsPerRun(100, func() {
		trie.Match("a/7/c", func(v int) { sum += v })
	})
	if got != 0 {
		t.Errorf("Match allocated %v times, want 0", got)
	}
}

func FuzzTopic(f *testing.F) {
	for _, tt := range matches {
		f.Add(tt.filter, tt.name)
	}
	f.Add("$share/g/a/#", "a\x00")
	f.Add(strings.Repeat("+/", 199)+"#", strings.Repeat("/", 199))
	f.Fuzz(func(t *testing.T, filter, name string) {
		if (topic.ValidName(name) == nil) != (topic.ValidName([]byte(name)) == nil) {
			t.Errorf("ValidName(%q) differs between string and bytes", name)
		}
		group, inner, shared, err := topic.ParseShared(filter)
		if shared && err == nil && "$share/"+group+"/"+inner != filter {
			t.Errorf("ParseShared(%q) = %q, %q", filter, group, inner)
		}
		var trie topic.Trie[int] // neither may panic, whatever comes
		trie.Add(filter, 1)
		trie.Match(name, func(int) {})
		var index topic.Index[int]
		index.Set(name, 1)
		got := false
		index.MatchFilter(filter, func(string, int) bool { got = true; return true })
		if topic.ValidFilter(filter) == nil && topic.ValidName(name) == nil && !shared {
			want := naiveWithParent(filter, name)
			if m := topic.Match(filter, name); m != want {
				t.Errorf("Match(%q, %q) = %v, want %v", filter, name, m, want)
			}
			if in := len(found(&trie, name)) == 1; in != want {
				t.Errorf("Trie with %q finds %q = %v, want %v", filter, name, in, want)
			}
			if got != want {
				t.Errorf("Index with %q finds it for %q = %v, want %v", name, filter, got, want)
			}
		}
		if !trie.Remove(filter, 1) || trie.Len() != 0 {
			t.Errorf("Remove(%q) did not find what was added", filter)
		}
		if !index.Delete(name) || index.Len() != 0 {
			t.Errorf("Delete(%q) did not find what was set", name)
		}
	})
}
