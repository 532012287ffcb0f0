package topic

import "strings"

// fewChildren is up to how many children a node searches one by one; a map
// costs 250 bytes even with one entry, and most nodes have one or two.
const fewChildren = 8

// children are the nodes one level below, by the text of their level. The zero
// value has none.
type children[N any] struct {
	list  []child[N]    // while there are at most fewChildren
	index map[string]*N // else; nil before
}

type child[N any] struct {
	level string
	node  *N
}

func (c *children[N]) get(level string) *N {
	if c.index != nil {
		return c.index[level]
	}
	for i := range c.list {
		if c.list[i].level == level {
			return c.list[i].node
		}
	}
	return nil
}

// add puts a new node below; there must be none for level yet. The text is
// copied: a node would else keep the whole filter of 64 KiB alive for the one
// byte of its level.
func (c *children[N]) add(level string) *N {
	level = strings.Clone(level)
	n := new(N)
	switch {
	case c.index != nil:
		c.index[level] = n
	case len(c.list) < fewChildren:
		c.list = append(c.list, child[N]{level, n})
	default:
		c.index = make(map[string]*N, 2*fewChildren)
		for _, k := range c.list {
			c.index[k.level] = k.node
		}
		c.list = nil
		c.index[level] = n
	}
	return n
}

// remove takes the node for level out. Shrinking back to a list waits until
// half of it is free, so that one child coming and going costs no rebuilding.
func (c *children[N]) remove(level string) {
	if c.index != nil {
		delete(c.index, level)
		if len(c.index) > fewChildren/2 {
			return
		}
		c.list = make([]child[N], 0, fewChildren)
		for l, n := range c.index {
			c.list = append(c.list, child[N]{l, n})
		}
		c.index = nil
		return
	}
	for i := range c.list {
		if c.list[i].level == level {
			last := len(c.list) - 1
			c.list[i] = c.list[last]
			c.list[last] = child[N]{}
			c.list = c.list[:last]
			break
		}
	}
	if len(c.list) == 0 {
		c.list = nil
	}
}

func (c *children[N]) len() int { return len(c.list) + len(c.index) }

// each calls fn for the children in no particular order until it returns
// false, and returns false then.
func (c *children[N]) each(fn func(level string, n *N) bool) bool {
	for i := range c.list {
		if !fn(c.list[i].level, c.list[i].node) {
			return false
		}
	}
	for level, n := range c.index {
		if !fn(level, n) {
			return false
		}
	}
	return true
}
