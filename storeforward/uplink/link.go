package uplink

import (
	"context"
	"time"

	"holdfast/broker/message"
)

type counter interface {
	BytesIn() uint64
	BytesOut() uint64
}

type link struct {
	conn     counter
	quota    int
	progress time.Time
}

func (l *link) oldestLocked() (time.Time, bool) { return time.Time{}, false }

type receiptState byte

const receiptTaken receiptState = iota

type receipt struct {
	id    uint16
	qos   byte
	state receiptState
}

// Run keeps the uplink connected until ctx ends.
func (u *Uplink) Run(ctx context.Context) error {
	u.setState(StateConnecting, "")
	<-ctx.Done()
	u.setState(StateStopped, context.Cause(ctx).Error())
	return nil
}

// Offer0 takes a QoS 0 message.
func (u *Uplink) Offer0(m *message.Message) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.dropLocked(dropQoS0Down)
}
