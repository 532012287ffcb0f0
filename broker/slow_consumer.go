package broker

import (
	"time"

	"holdfast/broker/packet"
)

// A slow subscriber harms nobody but itself. QoS 0 is dropped once its socket
// takes no more. QoS 1 and 2 wait for it, in RAM (MaxQueued) or in the store, up
// to a bound; then
//
//   - a session that ends with its connection is disconnected with 0x97, and what
//     waited for it is lost and counted;
//   - a persistent session keeps what it has, and the policy of its queue decides
//     about more. Under refuse its publishers are told so, and a client that has
//     acknowledged nothing meanwhile is disconnected with 0x97: it hears of its
//     trouble, and comes back to all of it.

// stuckAfter is how long a client may acknowledge nothing while messages for it are
// refused. One that is back after a night and catching up acknowledges.
const stuckAfter = 10 * time.Second

// stuck is what a session knows of that. Guarded by session.mu.
type stuck struct {
	since    time.Time // the first refusal after the latest acknowledgement
	finished uint64    // how many deliveries were finished then
}

// Full implements [durable.Crowded].
func (s *session) Full() {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, now := s.conn, time.Now()
	switch {
	case c == nil || s.inflight == 0:
		s.stuck = stuck{}
	case !s.stuckLocked():
		s.stuck = stuck{now, s.finished}
	case now.Sub(s.stuck.since) >= stuckAfter:
		s.stuck = stuck{}
		s.b.tooSlow(c, "its queue is full and it acknowledges nothing")
	}
}

// stuckLocked says whether nothing was acknowledged since messages are refused.
func (s *session) stuckLocked() bool {
	return !s.stuck.since.IsZero() && s.stuck.finished == s.finished
}

// tooSlow disconnects a client for not taking what is sent to it.
func (b *Broker) tooSlow(c *conn, detail string) {
	b.count.tooSlow.Add(1)
	c.end(packet.ReasonQuotaExceeded, detail, false)
}
