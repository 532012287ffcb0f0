package broker

import (
	"time"

	"holdfast/broker/packet"
)

// Acknowledgements may be withheld for long: the disk is in trouble, or a queue
// is full whose policy is to wait. A client that goes on publishing is read until
// it has MaxUnacknowledgedBytes waiting. Then it is read no more, its keep alive
// does not run, and TCP tells it to stop.
//
// That must not be for ever where the client's own acknowledgements are what makes
// room: two clients that wait for each other's queue would never be read again. So
// one that has, or may get, something to acknowledge is read on after
// linePatience, and what it publishes is refused until there is room.

// linePatience is how long the acknowledgement line of such a client may stand
// still: longer than a slow disk takes for a commit.
const linePatience = 5 * time.Second

// ackOverhead is what a message that waits for its acknowledgement takes in RAM
// beside its bytes.
const ackOverhead = 256

func (a *ack) weight() int32 { return a.size + ackOverhead }

// stall is a line that is full.
type stall struct {
	since time.Time // it has not moved
	left  uint32    // how many had left it then
}

// overdue says that as many bytes wait for their acknowledgement as may.
func (c *conn) overdue() bool { return int(c.line.bytes.Load()) >= c.b.opts.MaxUnacknowledgedBytes }

// mayRead says whether the next packet may be read. If not, there is something to
// do when the line has moved, or after wait. For the connection's reader or loop.
func (c *conn) mayRead() (wait time.Duration, ok bool) {
	if !c.overdue() {
		c.stall = nil
		return 0, true
	}
	now, left := time.Now(), c.line.left.Load()
	if c.stall == nil {
		c.b.count.withheld.Add(1)
		c.stall = &stall{now, left}
	}
	if c.stall.left != left {
		*c.stall = stall{now, left}
	}
	wait = linePatience - now.Sub(c.stall.since)
	if wait > 0 {
		return wait, false
	}
	return linePatience, c.session.acknowledges()
}

// acknowledges says whether the client has, or may get, something to acknowledge.
func (s *session) acknowledges() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	cu := &s.catchUp
	return len(s.subs) > 0 || s.inflight > 0 || s.pending.len() > 0 ||
		cu.running || len(cu.stored) > 0 || cu.attached && (cu.readable[0] || cu.readable[1])
}

// awaitLine waits until reading may go on. Its keep alive does not run meanwhile.
func (c *conn) awaitLine() error {
	for {
		wait, ok := c.mayRead()
		if ok {
			return nil
		}
		timer := time.NewTimer(wait)
		select {
		case <-c.moved:
		case <-timer.C:
		case <-c.quitting():
			timer.Stop()
			return errEnded
		}
		timer.Stop()
	}
}

// overfull refuses a message above MaxUnacknowledgedBytes, of a client that is read
// all the same. 3.x has no word for it, and a refusal in line would wait with the
// others.
func (c *conn) overfull(p *packet.Publish) error {
	if c.version >= packet.V5 {
		return c.answer(p, packet.ReasonQuotaExceeded)
	}
	c.b.count.refused.Add(1)
	c.end(packet.ReasonQuotaExceeded, "message not taken", true)
	return errEnded
}
