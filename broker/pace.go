package broker

import (
	"time"

	"holdfast/broker/packet"
)

// RatePolicy is what becomes of a client that publishes too fast.
type RatePolicy string

// The policies for clients that publish too fast.
const (
	// RateSlow reads no more from the client until it is within its rate; its
	// keep alive does not run meanwhile. It loses nothing, and a device that
	// sends what it has gathered during an outage gets through.
	RateSlow RatePolicy = "slow"
	// RateDisconnect ends the connection, in 5.0 with 0x96 (MQTT 5.0 §4.13.2).
	RateDisconnect RatePolicy = "disconnect"
)

// pace is how fast a client publishes.
type pace struct {
	bucket

	paid time.Time // when it may go on; zero for now
}

// pay counts n messages, or filters to find them by, against the client's rate.
// A second's worth may come at once.
func (c *conn) pay(t packet.Type, n int) error {
	rate := c.b.opts.MaxPublishRate
	if rate == 0 {
		return nil
	}
	now := time.Now()
	if c.pace == nil {
		c.pace = new(pace)
	}
	wait := c.pace.owe(now, float64(rate), float64(rate), n)
	if wait == 0 {
		return nil
	}
	c.pace.paid = now.Add(wait)
	c.b.count.publishesTooFast.Add(1)
	if c.b.opts.PublishRatePolicy == RateDisconnect {
		return &packet.Error{
			Reason: packet.ReasonMessageRateTooHigh, Type: t, Field: "publish rate",
			Detail: "more messages a second than this server takes from one client",
		}
	}
	return nil
}

// debt is how long it takes until the client is within its rate again.
func (c *conn) debt() time.Duration {
	if c.pace == nil || c.pace.paid.IsZero() {
		return 0
	}
	if d := time.Until(c.pace.paid); d > 0 {
		return d
	}
	c.pace.paid = time.Time{}
	return 0
}

// slowDown waits for that; on a loop the connection is parked instead.
func (c *conn) slowDown() error {
	d := c.debt()
	if d == 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-c.quitting():
		return errEnded
	}
}
