package topic

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

func TestNothingStaysAfterTheLastLeaves(t *testing.T) {
	var trie Trie[int]
	var index Index[int]
	filters := make([]string, 0, 3000)
	for i := range 1000 {
		filters = append(filters,
			fmt.Sprintf("a/%d/+/b", i), fmt.Sprintf("+/%d/#", i%30), fmt.Sprintf("a/b/c/%d", i%100))
	}
	for i, f := range filters {
		trie.Add(f, i)
		index.Set(f, i)
	}
	for _, i := range rand.Perm(len(filters)) {
		if !trie.Remove(filters[i], i) {
			t.Fatalf("Remove(%q, %d) = false", filters[i], i)
		}
		index.Delete(filters[i])
	}
	if !trie.root.empty() || trie.size != 0 {
		t.Errorf("trie of size %d keeps nodes: %+v", trie.size, trie.root)
	}
	if index.root.below.len() != 0 || index.size != 0 {
		t.Errorf("index of size %d keeps nodes: %+v", index.size, index.root)
	}
}

// A removed long filter must not be kept alive by the node of a short one that
// shared its first level.
func TestNodesDoNotPinTheirFilter(t *testing.T) {
	var trie Trie[int]
	long := "a/" + strings.Repeat("x", 60000)
	trie.Add(long, 1)
	trie.Add("a", 1)
	trie.Remove(long, 1)
	a := trie.root.below.list[0]
	if a.node.below.len() != 0 || len(a.level) != 1 {
		t.Errorf("node %q keeps %d children", a.level, a.node.below.len())
	}
}

func TestChildrenChangeShape(t *testing.T) {
	var c children[int]
	nodes := map[string]*int{}
	for i := range 3 * fewChildren {
		level := fmt.Sprint(i)
		nodes[level] = c.add(level)
	}
	for i := range 3 * fewChildren {
		level := fmt.Sprint(i)
		if got := c.get(level); got != nodes[level] {
			t.Errorf("get(%q) = %p, want %p", level, got, nodes[level])
		}
		c.remove(level)
		if c.get(level) != nil {
			t.Errorf("get(%q) finds it after remove", level)
		}
		if want := 3*fewChildren - i - 1; c.len() != want {
			t.Errorf("len() = %d after removing %q, want %d", c.len(), level, want)
		}
	}
	if c.list != nil || c.index != nil {
		t.Errorf("empty children keep %v %v", c.list, c.index)
	}
}
