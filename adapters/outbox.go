package adapters

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"holdfast/broker/message"
)

// The way of a message through an outbox:
//
//	bus goroutine          outbox goroutine                whoever
//	     |                        |                           |
//	    Put --> [queue] --> Publisher.Publish --> in flight --done(nil)--> acknowledged
//	               ^              | refused           |
//	               |              | (wait, again)     done(err)
//	               +--------------+-------------------+
//	             back to the head, in the old order, if Retry(err)

// OutboxPolicy is what a full outbox does. All of them drop, and count it for the
// device.
type OutboxPolicy string

// The policies. The first and the last take from the device that has most waiting:
// one that talks too much harms itself.
const (
	// DropOldest drops the oldest message.
	DropOldest OutboxPolicy = "drop_oldest"
	// DropNewest drops the message that comes.
	DropNewest OutboxPolicy = "drop_newest"
	// Thin drops every other message of each topic: the older, the fewer are
	// left, and the first and the last stay.
	Thin OutboxPolicy = "thin"
)

var outboxPolicies = []OutboxPolicy{DropOldest, DropNewest, Thin}

// OutboxOptions bound an outbox.
type OutboxOptions struct {
	// MaxMessages is how many messages wait at most, 1 to 1000000.
	MaxMessages int `toml:"max_messages"`
	// MaxBytes is how much their topics and payloads weigh at most, in
	// bytes, 1024 to 1 GiB.
	MaxBytes int `toml:"max_bytes"`
	// Policy is what happens when there is no room. What the publisher has taken
	// and given back, and finds none, is as with "drop_oldest".
	Policy OutboxPolicy `toml:"policy"`
	// Window is how many messages may be published and not yet safe, 1 to
	// 100000. They count neither for MaxMessages nor for MaxBytes.
	Window int `toml:"window"`
	// RetryMin and RetryMax bound the pause after a refusal, which doubles
	// from one to the other. 1ms to 1h.
	RetryMin time.Duration `toml:"retry_min"`
	RetryMax time.Duration `toml:"retry_max"`
	// Retry says that a message refused with this error may be taken later
	// (the store is full). Nil means every error. It is called from the
	// outbox's goroutine.
	Retry func(error) bool `toml:"-"`
}

// DefaultOutboxOptions hold about a quarter of an hour of ten readings per
// second, within 4 MiB.
func DefaultOutboxOptions() OutboxOptions {
	return OutboxOptions{
		MaxMessages: 10_000, MaxBytes: 4 << 20, Policy: DropOldest,
		Window:   1000, // some seconds of a busy bus; the store commits twice a second
		RetryMin: 100 * time.Millisecond, RetryMax: 5 * time.Second,
	}
}

// Validate reports the first value out of range, naming its key.
func (o OutboxOptions) Validate() error {
	if o.MaxMessages < 1 || o.MaxMessages > 1_000_000 {
		return fmt.Errorf("max_messages: %d is outside 1..1000000", o.MaxMessages)
	}
	if o.MaxBytes < 1024 || o.MaxBytes > 1<<30 {
		return fmt.Errorf("max_bytes: %d is outside 1024..%d", o.MaxBytes, 1<<30)
	}
	if !slices.Contains(outboxPolicies, o.Policy) {
		return fmt.Errorf("policy: %q is not one of %q", o.Policy, outboxPolicies)
	}
	if o.Window < 1 || o.Window > 100_000 {
		return fmt.Errorf("window: %d is outside 1..100000", o.Window)
	}
	if o.RetryMin < time.Millisecond || o.RetryMin > time.Hour {
		return fmt.Errorf("retry_min: %v is outside 1ms..1h", o.RetryMin)
	}
	if o.RetryMax < o.RetryMin || o.RetryMax > time.Hour {
		return fmt.Errorf("retry_max: %v is outside %v..1h", o.RetryMax, o.RetryMin)
	}
	return nil
}

// OutboxCounters count the messages of one device. Once nothing is under way
// any more, Put = Acknowledged + Dropped + Failed.
type OutboxCounters struct {
	// Put were handed in by the bus.
	Put uint64 `json:"put"`
	// Published were taken by the publisher (one that failed and was
	// published again counts twice).
	Published uint64 `json:"published"`
	// Acknowledged are safe.
	Acknowledged uint64 `json:"acknowledged"`
	// Dropped were lost because the outbox was full, or closed.
	Dropped uint64 `json:"dropped"`
	// Failed were lost because the publisher refused them for good.
	Failed uint64 `json:"failed"`
	// Queued and InFlight are here now.
	Queued   int `json:"queued"`
	InFlight int `json:"in_flight"`
}

// OutboxStatus is a snapshot of an outbox.
type OutboxStatus struct {
	Name        string `json:"name"`
	Queued      int    `json:"queued"`
	QueuedBytes int    `json:"queued_bytes"`
	InFlight    int    `json:"in_flight"`
	// Dropping says that something was dropped since the queue was last empty.
	Dropping bool `json:"dropping"`
	// Refusals counts how often the publisher said no for now, Returned the
	// messages it took and later gave back.
	Refusals  uint64 `json:"refusals"`
	Returned  uint64 `json:"returned"`
	LastError string `json:"last_error,omitempty"`
	// Devices are the counters of each device.
	Devices map[string]OutboxCounters `json:"devices"`
}

// Outbox keeps messages in memory between a bus, which must not wait, and a
// publisher, which may refuse. It hands them over in the order of Put, refusals
// included. Only a message that the publisher took and gave back after a later
// one was safe goes out after it: late beats lost, and its time says so. When
// it is full, its policy says what is dropped.
type Outbox struct {
	name string
	pub  Publisher
	opts OutboxOptions
	log  *slog.Logger

	wake chan struct{} // capacity 1: there is something to look at; full means it will be looked at anyway
	stop chan struct{} // closed: the goroutine ends
	idle chan struct{} // closed: closed and nothing left
	wg   sync.WaitGroup

	mu       sync.Mutex
	devices  map[string]*outboxDevice // guarded by mu
	head     *outboxEntry             // guarded by mu; oldest of all, doubly linked
	tail     *outboxEntry             // guarded by mu
	queued   int                      // guarded by mu
	bytes    int                      // guarded by mu; of what is queued
	inFlight int                      // guarded by mu
	returned []*outboxEntry           // guarded by mu; given back, waiting for the rest in flight
	nextSeq  uint64                   // guarded by mu
	closed   bool                     // guarded by mu
	settled  bool                     // guarded by mu; idle is closed
	progress bool                     // guarded by mu; something became safe since the last refusal
	refusals uint64                   // guarded by mu
	returns  uint64                   // guarded by mu
	lastErr  string                   // guarded by mu
	complain bool                     // guarded by mu; a drop has been logged since the queue was last empty
}

// outboxDevice is one device's share. Its entries are in the common list; the
// first of them is found through first and outboxEntry.younger.
type outboxDevice struct {
	name  string
	first *outboxEntry
	last  *outboxEntry
	bytes int
	count OutboxCounters
}

type outboxEntry struct {
	m          *message.Message
	dev        *outboxDevice
	seq        uint64
	prev, next *outboxEntry // in the queue of all
	younger    *outboxEntry // the same device's next one
}

// NewOutbox returns an outbox that hands over to pub, and starts its
// goroutine. Close ends it.
func NewOutbox(name string, pub Publisher, opts OutboxOptions, log *slog.Logger) (*Outbox, error) {
	if err := opts.Validate(); err != nil {
		return nil, fmt.Errorf("outbox: %w", err)
	}
	o := &Outbox{
		name: name, pub: pub, opts: opts,
		log:     log.With("component", "outbox", "adapter", name),
		wake:    make(chan struct{}, 1),
		stop:    make(chan struct{}),
		idle:    make(chan struct{}),
		devices: make(map[string]*outboxDevice),
	}
	o.wg.Go(o.run)
	return o, nil
}

// Put hands over a message of a device. It never blocks.
func (o *Outbox) Put(device string, m *message.Message) {
	o.mu.Lock()
	defer o.mu.Unlock()
	d := o.deviceLocked(device)
	d.count.Put++
	full := o.queued >= o.opts.MaxMessages || o.bytes+m.Size() > o.opts.MaxBytes
	if o.closed || m.Size() > o.opts.MaxBytes || full && o.opts.Policy == DropNewest {
		d.count.Dropped++
		if full && !o.closed {
			o.complainLocked(d)
		}
		return
	}
	e := &outboxEntry{m: m, dev: d, seq: o.nextSeq}
	o.nextSeq++
	o.pushBackLocked(e)
	if o.opts.Policy == Thin && (o.queued > o.opts.MaxMessages || o.bytes > o.opts.MaxBytes) {
		o.thinLocked(o.worstLocked())
	}
	o.trimLocked()
	o.poke()
}

// complainLocked logs once in an episode that something is dropped; the counters
// have the rest.
func (o *Outbox) complainLocked(d *outboxDevice) {
	if !o.complain {
		o.complain = true
		o.log.Warn("outbox full, readings are dropped", "device", d.name, "policy", o.opts.Policy, "queued", o.queued, "bytes", o.bytes)
	}
}

// worstLocked is the device with most bytes waiting; of two, the one with the oldest.
func (o *Outbox) worstLocked() (worst *outboxDevice) {
	for _, d := range o.devices {
		if d.first == nil {
			continue
		}
		if worst == nil || d.bytes > worst.bytes || d.bytes == worst.bytes && d.first.seq < worst.first.seq {
			worst = d
		}
	}
	return worst
}

// thinLocked drops every other message of each topic of d, but not the last.
func (o *Outbox) thinLocked(d *outboxDevice) {
	left := make(map[string]int) // by topic
	for e := d.first; e != nil; e = e.younger {
		left[e.m.Topic]++
	}
	odd := make(map[string]bool, len(left))
	var before *outboxEntry // the device's one before
	for e := d.first; e != nil; {
		next, topic := e.younger, e.m.Topic
		left[topic]--
		if odd[topic] && left[topic] > 0 {
			o.removeLocked(e, before)
			d.count.Dropped++
			o.complainLocked(d)
		} else {
			before = e
		}
		odd[topic] = !odd[topic]
		e = next
	}
}

func (o *Outbox) deviceLocked(name string) *outboxDevice {
	d := o.devices[name]
	if d == nil {
		d = &outboxDevice{name: name}
		o.devices[name] = d
	}
	return d
}

func (o *Outbox) poke() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// trimLocked drops until the queue is within its bounds.
func (o *Outbox) trimLocked() {
	for o.queued > o.opts.MaxMessages || o.bytes > o.opts.MaxBytes {
		worst := o.worstLocked()
		o.removeFirstLocked(worst)
		worst.count.Dropped++
		o.complainLocked(worst)
	}
}

func (o *Outbox) pushBackLocked(e *outboxEntry) {
	e.prev, e.next, e.younger = o.tail, nil, nil
	if o.tail != nil {
		o.tail.next = e
	} else {
		o.head = e
	}
	o.tail = e
	if e.dev.last != nil {
		e.dev.last.younger = e
	} else {
		e.dev.first = e
	}
	e.dev.last = e
	o.weighLocked(e, 1)
}

func (o *Outbox) pushFrontLocked(e *outboxEntry) {
	e.prev, e.next, e.younger = nil, o.head, e.dev.first
	if o.head != nil {
		o.head.prev = e
	} else {
		o.tail = e
	}
	o.head = e
	if e.dev.first == nil {
		e.dev.last = e
	}
	e.dev.first = e
	o.weighLocked(e, 1)
}

// removeFirstLocked takes the oldest entry of d out of the queue.
func (o *Outbox) removeFirstLocked(d *outboxDevice) *outboxEntry {
	e := d.first
	o.removeLocked(e, nil)
	return e
}

// removeLocked takes e out of the queue; before is its device's one before it, nil
// for none.
func (o *Outbox) removeLocked(e, before *outboxEntry) {
	d := e.dev
	if before == nil {
		d.first = e.younger
	} else {
		before.younger = e.younger
	}
	if d.last == e {
		d.last = before
	}
	if e.prev != nil {
		e.prev.next = e.next
	} else {
		o.head = e.next
	}
	if e.next != nil {
		e.next.prev = e.prev
	} else {
		o.tail = e.prev
	}
	e.prev, e.next, e.younger = nil, nil, nil
	o.weighLocked(e, -1)
}

func (o *Outbox) weighLocked(e *outboxEntry, sign int) {
	size := sign * e.m.Size()
	o.queued += sign
	o.bytes += size
	e.dev.bytes += size
	e.dev.count.Queued += sign
}

// run hands over what is queued until stop.
func (o *Outbox) run() {
	pause := o.opts.RetryMin
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		err := o.publishAll()
		var again <-chan time.Time
		if err != nil {
			if o.takeProgress() {
				pause = o.opts.RetryMin
			}
			timer.Reset(jitter(pause))
			again = timer.C
			pause = min(2*pause, o.opts.RetryMax)
		}
		for waiting := true; waiting; {
			select {
			case <-o.stop:
				return
			case <-again:
				waiting = false
			case <-o.wake:
				// During a pause new messages wait like the others.
				waiting = again != nil
			}
		}
	}
}

func (o *Outbox) takeProgress() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	progress := o.progress
	o.progress = false
	return progress
}

// errGivenBack says that messages came back after they had been taken.
var errGivenBack = errors.New("messages were given back")

// publishAll hands over the queue until it is empty, the window is full, or
// the publisher says no for now or has given something back, which it returns.
func (o *Outbox) publishAll() error {
	if wait, back := o.collect(); wait {
		return nil
	} else if back {
		return errGivenBack
	}
	for {
		e := o.take()
		if e == nil {
			return nil
		}
		err := o.pub.Publish(e.m, func(err error) { o.done(e, err) })
		if err == nil {
			o.mu.Lock()
			e.dev.count.Published++
			o.mu.Unlock()
			continue
		}
		if o.refused(e, err) {
			return err
		}
	}
}

// collect looks at what was given back after the publisher had taken it. While
// some is still in flight it says wait, so that all of it goes back to the
// head in its old order; then it puts it there.
func (o *Outbox) collect() (wait, back bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.returned) == 0 {
		return false, false
	}
	if o.inFlight > 0 {
		return true, false
	}
	o.requeueLocked()
	return false, true
}

// take moves the oldest entry from the queue into flight; nil if there is none
// or the window is full.
func (o *Outbox) take() *outboxEntry {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.head == nil {
		o.complain = false
		return nil
	}
	if o.inFlight >= o.opts.Window || len(o.returned) > 0 {
		return nil
	}
	e := o.removeFirstLocked(o.head.dev)
	o.inFlight++
	e.dev.count.InFlight++
	return e
}

// refused handles an error of Publish and says whether to try again later.
func (o *Outbox) refused(e *outboxEntry, err error) (again bool) {
	again = o.opts.Retry == nil || o.opts.Retry(err)
	o.mu.Lock()
	o.inFlight--
	e.dev.count.InFlight--
	o.lastErr = err.Error()
	if again {
		o.refusals++
		o.pushFrontLocked(e)
		o.trimLocked()
	} else {
		e.dev.count.Failed++
	}
	o.settleLocked()
	o.mu.Unlock()
	if !again {
		o.log.Error("reading refused for good", "device", e.dev.name, "topic", e.m.Topic, "err", err)
	}
	return again
}

// done is called once per published message, from any goroutine.
func (o *Outbox) done(e *outboxEntry, err error) {
	again := err != nil && (o.opts.Retry == nil || o.opts.Retry(err))
	o.mu.Lock()
	defer o.mu.Unlock()
	o.inFlight--
	e.dev.count.InFlight--
	switch {
	case err == nil:
		e.dev.count.Acknowledged++
		o.progress = true
	case again:
		o.lastErr = err.Error()
		o.returns++
		o.returned = append(o.returned, e)
	default:
		o.lastErr = err.Error()
		e.dev.count.Failed++
	}
	o.settleLocked()
	o.poke()
}

// settleLocked tells Close when nothing is left.
func (o *Outbox) settleLocked() {
	if o.closed && !o.settled && o.queued == 0 && o.inFlight == 0 && len(o.returned) == 0 {
		o.settled = true
		close(o.idle)
	}
}

// requeueLocked puts what was given back at the head, in its old order.
func (o *Outbox) requeueLocked() {
	slices.SortFunc(o.returned, func(a, b *outboxEntry) int {
		if a.seq > b.seq {
			return -1
		}
		return 1
	})
	for _, e := range o.returned {
		o.pushFrontLocked(e)
	}
	o.returned = o.returned[:0]
	o.trimLocked()
}

// errUndelivered is the reason of a Close that had to leave something behind.
var errUndelivered = errors.New("messages were not safe in time")

// Close takes no more messages, waits until all it has are safe or ctx is
// done, and ends the goroutine. What was still queued then counts as dropped
// and makes an error; what is in flight may still be acknowledged.
func (o *Outbox) Close(ctx context.Context) error {
	o.mu.Lock()
	if o.closed {
		o.mu.Unlock()
		return nil
	}
	o.closed = true
	o.settleLocked()
	o.mu.Unlock()
	var err error
	select {
	case <-o.idle:
	case <-ctx.Done():
		err = ctx.Err()
	}
	close(o.stop)
	o.wg.Wait()

	o.mu.Lock()
	defer o.mu.Unlock()
	o.requeueLocked()
	left, flying := o.queued, o.inFlight
	for o.head != nil {
		d := o.head.dev
		o.removeFirstLocked(d)
		d.count.Dropped++
	}
	if left+flying > 0 {
		return fmt.Errorf("close outbox %s: %d queued and %d in flight: %w", o.name, left, flying, errors.Join(errUndelivered, err))
	}
	return nil
}

// Status returns a snapshot.
func (o *Outbox) Status() OutboxStatus {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := OutboxStatus{
		Name: o.name, Queued: o.queued + len(o.returned), QueuedBytes: o.bytes, InFlight: o.inFlight,
		Dropping: o.complain, Refusals: o.refusals, Returned: o.returns, LastError: o.lastErr,
		Devices: make(map[string]OutboxCounters, len(o.devices)),
	}
	for name, d := range o.devices {
		s.Devices[name] = d.count
	}
	return s
}
