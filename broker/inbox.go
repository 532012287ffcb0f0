package broker

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"holdfast/broker/message"
	"holdfast/broker/topic"
)

// Incoming is a message for the process itself.
type Incoming struct {
	*message.Message
	// User is the user of the client that sent it: empty for one without, for
	// an uplink and for the gateway.
	User string
}

// Inbox is a subscriber within the process. It takes part in route as any other,
// but keeps nothing on disk and is given no retained messages: what nobody reads
// in time is dropped and counted. The RETAIN flag of its messages is the
// publisher's.
//
//	route --> [queue] --inbox goroutine--> fn
//	             | full, or too large: dropped
type Inbox struct {
	b       *Broker
	opts    InboxOptions
	fn      func(Incoming)
	unwatch func()
	queue   chan Incoming // capacity Queue; full means dropped
	end     chan struct{}
	wg      sync.WaitGroup
	dropped atomic.Uint64
	told    atomic.Int64 // when a drop was last logged, in ns since 1970
}

// InboxOptions bound an inbox: it holds at most Queue messages of MaxSize bytes.
type InboxOptions struct {
	// Name is what it is called in the log.
	Name string
	// Queue is how many messages wait at most.
	Queue int
	// MaxSize is how much a message may weigh ([message.Message.Size]).
	MaxSize int
}

// inboxTell is how often a drop is logged; all are counted.
const inboxTell = time.Minute

// OpenInbox has fn called for each message that matches one of the filters, once
// and in the order of their routing, from one goroutine. Routing never waits for
// fn. The caller ends it with Close. The error wraps [topic.ErrInvalid].
func (b *Broker) OpenInbox(opts InboxOptions, filters []string, fn func(Incoming)) (*Inbox, error) {
	for _, f := range filters {
		if err := topic.ValidFilter(f); err != nil {
			return nil, fmt.Errorf("inbox %s: filter %q: %w", opts.Name, f, err)
		}
	}
	x := &Inbox{b: b, opts: opts, fn: fn, queue: make(chan Incoming, opts.Queue), end: make(chan struct{})}
	x.unwatch = b.watch(&watch{fn: x.put, inbox: true}, filters)
	x.wg.Go(x.run)
	return x, nil
}

// Close ends the subscription and returns when fn is not called any more; what
// is still queued is dropped. It must not be called by fn, and only once.
func (x *Inbox) Close() {
	x.unwatch()
	close(x.end)
	x.wg.Wait()
}

// Dropped is how many messages were.
func (x *Inbox) Dropped() uint64 { return x.dropped.Load() }

// put is called by whoever routes.
func (x *Inbox) put(m *message.Message) {
	if m.Size() <= x.opts.MaxSize {
		in := Incoming{m, x.b.userOf(m.From)}
		select {
		case x.queue <- in:
			x.b.count.inboxTaken.Add(1)
			return
		default:
		}
	}
	x.dropped.Add(1)
	x.b.count.inboxDropped.Add(1)
	now := time.Now().UnixNano()
	if told := x.told.Load(); now-told >= int64(inboxTell) && x.told.CompareAndSwap(told, now) {
		x.b.log.Warn("message for the gateway dropped", "inbox", x.opts.Name, "topic", m.Topic, "client_id", m.From,
			"bytes", m.Size(), "queued", len(x.queue), "dropped", x.dropped.Load())
	}
}

func (x *Inbox) run() {
	for {
		select {
		case <-x.end:
			n := uint64(len(x.queue))
			x.dropped.Add(n)
			x.b.count.inboxDropped.Add(n)
			return
		case in := <-x.queue:
			x.fn(in)
		}
	}
}

// userOf is the user of a client that has a session.
func (b *Broker) userOf(clientID string) string {
	if clientID == "" {
		return ""
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if s := b.sessions[clientID]; s != nil {
		return s.holder.Name
	}
	return ""
}

// MayReceive says whether the publisher that messages name as their From may be
// sent messages of the topic: a client that has a session and the right to it, an
// uplink, whose routes decide, or the gateway itself (""). It must not be called
// while a message is routed.
func (b *Broker) MayReceive(from, name string) bool {
	b.mu.Lock()
	s, recipient := b.sessions[from], b.recipients[from]
	b.mu.Unlock()
	return from == "" || recipient != nil || s != nil && b.mayReceive(s, name)
}

// isRecipient says whether that is the name of an uplink.
func (b *Broker) isRecipient(name string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.recipients[name] != nil
}
