package topic

import (
	"strings"
	"sync"
)

// Index keeps one value for each topic name and finds the names that match a
// topic filter: the retained messages of a broker. The zero value is empty and
// ready. It is safe for use from many goroutines. Names and filters come
// validated.
type Index[V any] struct {
	mu   sync.RWMutex
	root indexNode[V] // guarded by mu
	size int          // guarded by mu
}

// indexNode is one level of the names that share the levels above it.
type indexNode[V any] struct {
	below children[indexNode[V]]
	entry *indexEntry[V] // of the name that ends here; nil when there is none
}

type indexEntry[V any] struct {
	name  string
	value V
}

// Set puts v under name in place of what was there.
func (x *Index[V]) Set(name string, v V) {
	x.mu.Lock()
	defer x.mu.Unlock()
	n := &x.root
	for rest, more := name, true; more; {
		var level string
		level, rest, more = strings.Cut(rest, "/")
		next := n.below.get(level)
		if next == nil {
			next = n.below.add(level)
		}
		n = next
	}
	if n.entry == nil {
		x.size++
	}
	n.entry = &indexEntry[V]{name, v}
}

// Get returns what is kept under name.
func (x *Index[V]) Get(name string) (v V, ok bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	n := &x.root
	for rest, more := name, true; more; {
		var level string
		level, rest, more = strings.Cut(rest, "/")
		if n = n.below.get(level); n == nil {
			return v, false
		}
	}
	if n.entry == nil {
		return v, false
	}
	return n.entry.value, true
}

// Delete removes name and the nodes that held nothing else. It returns false
// when there was none.
func (x *Index[V]) Delete(name string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.root.remove(name) {
		return false
	}
	x.size--
	return true
}

func (n *indexNode[V]) remove(name string) bool {
	level, rest, more := strings.Cut(name, "/")
	next := n.below.get(level)
	if next == nil {
		return false
	}
	if more {
		if !next.remove(rest) {
			return false
		}
	} else if next.entry == nil {
		return false
	} else {
		next.entry = nil
	}
	if next.entry == nil && next.below.len() == 0 {
		n.below.remove(level)
	}
	return true
}

// MatchFilter calls fn for every name that matches filter (see [Match]), each
// once and in no particular order, until fn returns false. fn is called under
// the read lock: it must be brief and must not change the index. The filter
// comes without $share/NAME/.
func (x *Index[V]) MatchFilter(filter string, fn func(name string, v V) bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	x.root.match(filter, true, fn)
}

// match visits each node at most once: at every level of the filter either one
// child or all of them are looked at. It returns false when fn did.
func (n *indexNode[V]) match(filter string, root bool, fn func(string, V) bool) bool {
	level, rest, more := strings.Cut(filter, "/")
	if level == "#" && !more {
		return n.all(root, fn)
	}
	next := func(n *indexNode[V]) bool {
		if more {
			return n.match(rest, false, fn)
		}
		return n.entry == nil || fn(n.entry.name, n.entry.value)
	}
	if level != "+" {
		if child := n.below.get(level); child != nil {
			return next(child)
		}
		return true
	}
	return n.below.each(func(level string, child *indexNode[V]) bool {
		return hidden(root, level) || next(child)
	})
}

// all calls fn for the node and everything below it; 'a/#' matches 'a' too.
func (n *indexNode[V]) all(root bool, fn func(string, V) bool) bool {
	if n.entry != nil && !fn(n.entry.name, n.entry.value) {
		return false
	}
	return n.below.each(func(level string, child *indexNode[V]) bool {
		return hidden(root, level) || child.all(false, fn)
	})
}

// hidden says that a wildcard does not match this first level (MQTT 5.0 §4.7.2
// [MQTT-4.7.2-1]).
func hidden(root bool, level string) bool {
	return root && level != "" && level[0] == '$'
}

// Len returns how many names there are.
func (x *Index[V]) Len() int {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.size
}
