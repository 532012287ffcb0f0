package client

import (
	"fmt"
	"sync"
	"time"

	"holdfast/broker/packet"
)

// keepAlive sends a PINGREQ before there has been silence in either direction
// for the keep alive, and ends the connection when nothing comes in answer
// (MQTT 5.0 §3.1.2.10 [MQTT-3.1.2-20]).
func (c *Conn) keepAlive() {
	timer := time.NewTimer(c.nextPing(time.Now()))
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			timer.Reset(c.nextPing(time.Now()))
		case <-c.ended:
			return
		}
	}
}

// nextPing does what is due at now and returns when to call it again.
func (c *Conn) nextPing(now time.Time) time.Duration {
	wait, due, dead := c.out.pingState(now, c.pingEvery(), c.pingTimeout(), c.meter.heard())
	switch {
	case dead > 0:
		c.fail(fmt.Errorf("%w for %v", ErrKeepAlive, dead))
	case due:
		if c.ping(now, nil) == nil {
			c.Flush()
		}
		wait = c.pingTimeout()
	}
	return wait
}

// Ping queues a PINGREQ; done is called when its own PINGRESP has come, from the
// goroutine of [Conn.Run], and must not block: by then the server has read all
// that was queued before. done is not called when the connection ends first. The
// errors are those of Queue.
func (c *Conn) Ping(done func()) error { return c.ping(time.Now(), done) }

func (c *Conn) ping(now time.Time, done func()) error {
	// PINGRESPs come in the order of their PINGREQs, so both must be queued in
	// one.
	c.pings.mu.Lock()
	defer c.pings.mu.Unlock()
	if err := c.Queue(&packet.Pingreq{}); err != nil {
		return err
	}
	c.pings.done = append(c.pings.done, done)
	c.out.pinged(now)
	return nil
}

// ponged takes a PINGRESP.
func (c *Conn) ponged() {
	c.pings.mu.Lock()
	var done func()
	if len(c.pings.done) > 0 {
		done = c.pings.done[0]
		c.pings.done = c.pings.done[1:]
	}
	c.pings.mu.Unlock()
	if done != nil {
		done()
	}
}

// pings are the PINGREQs without an answer, oldest first.
type pings struct {
	mu   sync.Mutex
	done []func() // guarded by mu; nil for one of the keep alive
}

// pingEvery is a little less than the keep alive: a PINGREQ must have begun
// when that is over, and timers are late, never early.
func (c *Conn) pingEvery() time.Duration {
	return c.limits.KeepAlive - min(time.Second, c.limits.KeepAlive/4)
}

func (c *Conn) pingTimeout() time.Duration {
	if c.opts.PingTimeout > 0 {
		return c.opts.PingTimeout
	}
	return min(max(c.limits.KeepAlive/2, 5*time.Second), 30*time.Second)
}

// pingState tells whether a PINGREQ is due, or for how long the last one has
// been without an answer when that is too long, or how long to wait.
//
// Anything that comes after the PINGREQ is an answer: behind a long backlog on
// a slow link the PINGRESP itself may be late. The time runs from when the
// PINGREQ was written; a write that is stuck has its own timeout. Silence in
// one direction is enough for a PINGREQ: who sends QoS 0 all the time would
// otherwise never notice that nobody listens.
func (o *output) pingState(now time.Time, every, timeout time.Duration, heard time.Time) (wait time.Duration, due bool, dead time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ping.end != 0 && !heard.Before(o.ping.asked) {
		o.ping = ping{}
	}
	if o.ping.end != 0 {
		if o.ping.written.IsZero() {
			return timeout, false, 0
		}
		silent := now.Sub(o.ping.written)
		if silent >= timeout {
			return 0, false, silent
		}
		return timeout - silent, false, 0
	}
	since := o.lastWrite
	if heard.Before(since) {
		since = heard
	}
	if idle := now.Sub(since); idle < every {
		return every - idle, false, 0
	}
	return 0, true, 0
}

// pinged takes note of a PINGREQ that is the last packet queued, or close to it.
func (o *output) pinged(now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ping = ping{end: o.queued, asked: now}
	if o.written >= o.queued { // a Flush was on its way
		o.ping.written = now
	}
}

// answered returns how long the PINGRESP that has come took, 0 when that is not
// known: its PINGREQ may be forgotten, since anything counts as its answer.
func (o *output) answered(now time.Time) time.Duration {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ping.end == 0 || o.ping.written.IsZero() {
		return 0
	}
	trip := now.Sub(o.ping.written)
	o.ping = ping{}
	return trip
}
