package broker

import "time"

// wheel is the coarse clock of a loop: one slot for each tick, and a list of
// connections in each. Nothing is moved when a client sends something; a timer
// that comes up looks how long its client has been silent and goes back in.
type wheel struct {
	start time.Time
	now   int64 // ticks since start, as far as timers have come up
	count int
	slots [wheelSlots]*timer
}

// wheelSlots is a power of two. Timers of more than four minutes come up in
// between and are put back.
const wheelSlots = 512

// timer is a connection's place in a wheel.
type timer struct {
	sock       *sock
	due        int64
	next, prev *timer
	in         bool
}

// tickAt is how many whole ticks have passed.
func (w *wheel) tickAt(now time.Time) int64 { return int64(now.Sub(w.start) / tick) }

func (w *wheel) add(t *timer, due int64) {
	t.due, t.in = max(due, w.now+1), true
	slot := &w.slots[t.due%wheelSlots]
	t.prev, t.next = nil, *slot
	if *slot != nil {
		(*slot).prev = t
	}
	*slot = t
	w.count++
}

func (w *wheel) remove(t *timer) {
	if !t.in {
		return
	}
	t.in = false
	w.count--
	if t.next != nil {
		t.next.prev = t.prev
	}
	if t.prev != nil {
		t.prev.next = t.next
	} else {
		w.slots[t.due%wheelSlots] = t.next
	}
	t.next, t.prev = nil, nil
}

// next is when the next slot with a timer comes up; false without any timer.
func (w *wheel) next() (at time.Time, ok bool) {
	if w.count == 0 {
		return time.Time{}, false
	}
	ticks := int64(1)
	for ticks < wheelSlots && w.slots[(w.now+ticks)%wheelSlots] == nil {
		ticks++
	}
	return w.start.Add(time.Duration(w.now+ticks) * tick), true
}

// advance lets time pass and calls due for each timer whose time has come; it is
// out of the wheel then.
func (w *wheel) advance(until int64, due func(*timer)) {
	if w.count == 0 || until-w.now > wheelSlots {
		w.now = max(w.now, until-wheelSlots) // once around each slot is looked at
	}
	for w.now < until {
		w.now++
		for t := w.slots[w.now%wheelSlots]; t != nil; {
			next := t.next
			if t.due <= w.now {
				w.remove(t)
				due(t)
			}
			t = next
		}
	}
}
