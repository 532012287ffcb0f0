package broker

import (
	"container/heap"
	"context"
	"sync"
	"time"
)

// clock runs what is due: will delays, session expiry, retries, the $SYS
// tick. One goroutine and one heap serve all sessions, where a timer each
// would cost RAM for every session that is only waiting.
type clock struct {
	mu     sync.Mutex
	events eventHeap     // guarded by mu
	wake   chan struct{} // capacity 1; full means that a wake is already on its way
}

// event is one thing to do at a time.
type event struct {
	at    time.Time
	run   func()
	index int // place in the heap, -1 when not in it; guarded by clock.mu
}

func newClock() *clock { return &clock{wake: make(chan struct{}, 1)} }

// after has run called by the clock's goroutine once d has passed. run may
// wait for nothing but the store's append.
func (k *clock) after(d time.Duration, run func()) *event {
	e := &event{at: time.Now().Add(d), run: run}
	k.mu.Lock()
	heap.Push(&k.events, e)
	first := e.index == 0
	k.mu.Unlock()
	if first {
		select {
		case k.wake <- struct{}{}:
		default:
		}
	}
	return e
}

// cancel takes an event back if it has not run yet. A nil event is none.
func (k *clock) cancel(e *event) {
	if e == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if e.index >= 0 {
		heap.Remove(&k.events, e.index)
	}
}

// loop is the session clock's goroutine.
func (k *clock) loop(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-k.wake:
		case <-timer.C:
		}
		timer.Reset(k.runDue())
	}
}

// runDue runs what is due and returns how long the next may wait.
func (k *clock) runDue() time.Duration {
	for {
		k.mu.Lock()
		if len(k.events) == 0 {
			k.mu.Unlock()
			return time.Hour // nothing to do; after wakes us
		}
		wait := time.Until(k.events[0].at)
		if wait > 0 {
			k.mu.Unlock()
			return wait
		}
		e, _ := heap.Pop(&k.events).(*event)
		k.mu.Unlock()
		e.run()
	}
}

// eventHeap orders events by time; it implements heap.Interface.
type eventHeap []*event

// Len is called by package heap.
func (h *eventHeap) Len() int { return len(*h) }

// Less is called by package heap.
func (h *eventHeap) Less(i, j int) bool { return (*h)[i].at.Before((*h)[j].at) }

// Swap is called by package heap.
func (h *eventHeap) Swap(i, j int) {
	x := *h
	x[i], x[j] = x[j], x[i]
	x[i].index, x[j].index = i, j
}

// Push is called by package heap.
func (h *eventHeap) Push(x any) {
	e, _ := x.(*event)
	e.index = len(*h)
	*h = append(*h, e)
}

// Pop is called by package heap.
func (h *eventHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	e.index = -1
	return e
}
