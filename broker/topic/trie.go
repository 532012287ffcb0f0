package topic

import (
	"strings"
	"sync"
	"sync/atomic"
)

// Trie keeps values by topic filter and finds all whose filter matches a topic
// name. The zero value is empty and ready. It is safe for use from many
// goroutines; calls of Match do not wait for one another. Nodes that hold
// nothing are removed, so a trie is as large as what is in it.
//
// Filters come validated and without $share/NAME/ (see [ParseShared]); how a
// shared group is one value, or several, is the caller's affair.
type Trie[V comparable] struct {
	mu         sync.RWMutex
	root       trieNode[V] // guarded by mu
	size       int         // guarded by mu
	generation atomic.Uint64
}

// trieNode is one level of the filters that share the levels above it.
type trieNode[V comparable] struct {
	below children[trieNode[V]]
	plus  *trieNode[V] // the level '+'
	here  set[V]       // filters that end at this level
	hash  set[V]       // filters that go on with '#' and end
}

func (n *trieNode[V]) empty() bool {
	return n.plus == nil && n.below.len() == 0 && n.here.len() == 0 && n.hash.len() == 0
}

// Add puts v under filter. It returns false when it was there already.
func (t *Trie[V]) Add(filter string, v V) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := &t.root
	for rest, more := filter, true; more; {
		var level string
		level, rest, more = strings.Cut(rest, "/")
		if level == "#" && !more {
			return t.addedLocked(n.hash.add(v))
		}
		next := n.child(level)
		if next == nil && level == "+" {
			next = new(trieNode[V])
			n.plus = next
		} else if next == nil {
			next = n.below.add(level)
		}
		n = next
	}
	return t.addedLocked(n.here.add(v))
}

func (t *Trie[V]) addedLocked(added bool) bool {
	if added {
		t.size++
		t.generation.Add(1)
	}
	return added
}

func (n *trieNode[V]) child(level string) *trieNode[V] {
	if level == "+" {
		return n.plus
	}
	return n.below.get(level)
}

// Remove takes v from under filter, and the nodes that held nothing else. It
// returns false when it was not there.
func (t *Trie[V]) Remove(filter string, v V) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.root.remove(filter, v) {
		return false
	}
	t.size--
	t.generation.Add(1)
	return true
}

// remove goes down and prunes on the way back; its depth is bounded by
// MaxLevels.
func (n *trieNode[V]) remove(filter string, v V) bool {
	level, rest, more := strings.Cut(filter, "/")
	if level == "#" && !more {
		return n.hash.remove(v)
	}
	next := n.child(level)
	if next == nil {
		return false
	}
	if more {
		if !next.remove(rest, v) {
			return false
		}
	} else if !next.here.remove(v) {
		return false
	}
	if next.empty() {
		if level == "+" {
			n.plus = nil
		} else {
			n.below.remove(level)
		}
	}
	return true
}

// Match calls fn with every value whose filter matches name, in no particular
// order; a value that is there under several matching filters comes several
// times. fn is called under the read lock: it must be brief and must not call
// Add, Remove or Match. Match does not allocate.
func (t *Trie[V]) Match(name string, fn func(V)) {
	if name == "" {
		return
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	// A wildcard in the first level does not match names that begin with '$'
	// (MQTT 5.0 §4.7.2 [MQTT-4.7.2-1]).
	t.root.match(name, true, name[0] != '$', fn)
}

// match visits the nodes that stand for the beginning of name: never more than
// there are, each once.
func (n *trieNode[V]) match(rest string, more, wildcards bool, fn func(V)) {
	if wildcards {
		n.hash.each(fn) // 'a/#' matches 'a' too (MQTT 5.0 §4.7.1.2)
	}
	if !more {
		n.here.each(fn)
		return
	}
	level, rest, more := strings.Cut(rest, "/")
	if next := n.below.get(level); next != nil {
		next.match(rest, more, true, fn)
	}
	if wildcards && n.plus != nil {
		n.plus.match(rest, more, true, fn)
	}
}

// Len returns how many values the trie holds.
func (t *Trie[V]) Len() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.size
}

// Generation returns a number that changes with every Add and Remove that
// changed something. Whoever remembers the outcome of a Match and the
// generation read before it may use the outcome as long as the number stays.
func (t *Trie[V]) Generation() uint64 { return t.generation.Load() }
