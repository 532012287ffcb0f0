package broker

import (
	"sync"
	"time"

	"holdfast/broker/message"
	"holdfast/broker/topic"
)

// retained is the retained messages: an index in RAM in front of the store.
// route appends and sets under mu, so that RAM and disk agree on which of two
// concurrent publishers was last.
type retained struct {
	index topic.Index[*message.Message]

	mu    sync.Mutex // outermost lock, see doc.go
	bytes int        // guarded by mu
	// expiring is how many of them have an expiry; guarded by mu.
	expiring int
	// owned is how many each client has; guarded by mu. Those from before the
	// start and those of the process itself are nobody's.
	owned map[string]int
}

// set puts a message into the index only.
func (r *retained) set(m *message.Message) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.setLocked(m)
}

// fitsLocked applies MaxRetained, MaxRetainedPerClient and MaxRetainedBytes.
func (r *retained) fitsLocked(m *message.Message, o Options) bool {
	if len(m.Payload) == 0 {
		return true
	}
	count, bytes := r.index.Len(), r.bytes+m.Size()
	if old, ok := r.index.Get(m.Topic); ok {
		bytes -= old.Size()
	} else {
		count++
		if m.From != "" && r.owned[m.From] >= o.MaxRetainedPerClient {
			return false
		}
	}
	return count <= o.MaxRetained && bytes <= o.MaxRetainedBytes
}

func (r *retained) setLocked(m *message.Message) {
	if old, ok := r.index.Get(m.Topic); ok {
		r.forgetLocked(old)
	}
	if len(m.Payload) == 0 {
		// Clears the topic (MQTT 5.0 §3.3.1.3 [MQTT-3.3.1-6]).
		r.index.Delete(m.Topic)
		return
	}
	r.index.Set(m.Topic, m)
	r.bytes += m.Size()
	if m.From != "" {
		if r.owned == nil {
			r.owned = make(map[string]int)
		}
		r.owned[m.From]++
	}
	if m.HasExpiry {
		r.expiring++
	}
}

func (r *retained) forgetLocked(old *message.Message) {
	r.bytes -= old.Size()
	if old.From != "" {
		if r.owned[old.From]--; r.owned[old.From] <= 0 {
			delete(r.owned, old.From)
		}
	}
	if old.HasExpiry {
		r.expiring--
	}
}

// matchingLocked returns the retained messages for a filter that are not
// expired.
func (r *retained) matchingLocked(filter string) []*message.Message {
	now := time.Now()
	var ms []*message.Message
	r.index.MatchFilter(filter, func(_ string, m *message.Message) bool {
		if _, alive := m.Remaining(now); alive {
			ms = append(ms, m)
		}
		return true
	})
	return ms
}

// Retained returns the retained messages for a filter, in no order.
func (b *Broker) Retained(filter string) []*message.Message {
	b.retained.mu.Lock()
	defer b.retained.mu.Unlock()
	return b.retained.matchingLocked(filter)
}

// sweep forgets those that have expired (MQTT 5.0 §3.3.2.3.3 [MQTT-3.3.2-5]).
// The store leaves them out by itself.
func (r *retained) sweep(now time.Time) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.expiring == 0 {
		return 0
	}
	var dead []*message.Message
	r.index.MatchFilter("#", func(_ string, m *message.Message) bool {
		if _, alive := m.Remaining(now); !alive {
			dead = append(dead, m)
		}
		return true
	})
	for _, m := range dead {
		r.forgetLocked(m)
		r.index.Delete(m.Topic)
	}
	return len(dead)
}

func (r *retained) size() (count, bytes int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.index.Len(), r.bytes
}

// sweepInterval is how often expired retained messages give their RAM back;
// they are never handed out after their time in any case.
const sweepInterval = time.Minute

func (b *Broker) sweepRetained() {
	b.count.retainedExpired.Add(uint64(b.retained.sweep(time.Now())))
	b.clock.after(sweepInterval, b.sweepRetained)
}
