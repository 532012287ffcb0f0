package main

import (
	"context"
	"sync"
)

// credit is how many more messages may be under way. It is taken and given back
// in batches, as packets come and go.
type credit struct {
	mu    sync.Mutex
	more  sync.Cond
	free  int  // guarded by mu
	ended bool // guarded by mu
}

func newCredit(n int) *credit {
	c := &credit{free: n}
	c.more.L = &c.mu
	return c
}

// take waits until there is some and takes up to limit of it; 0 when ctx has
// ended, of which [credit.end] tells.
func (c *credit) take(ctx context.Context, limit int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.free <= 0 && !c.ended && ctx.Err() == nil {
		c.more.Wait()
	}
	if c.ended || ctx.Err() != nil {
		return 0
	}
	n := min(c.free, limit)
	c.free -= n
	return n
}

// give gives back.
func (c *credit) give(n int) {
	if n == 0 {
		return
	}
	c.mu.Lock()
	waited := c.free <= 0
	c.free += n
	c.mu.Unlock()
	if waited {
		c.more.Broadcast()
	}
}

// wake has those who wait look at their context.
func (c *credit) wake() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.more.Broadcast()
}

// end lets nobody wait any more: the connection behind it is gone.
func (c *credit) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	c.more.Broadcast()
}
