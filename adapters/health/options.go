package health

import (
	"fmt"
	"time"
)

// Options are the thresholds of one device. Leaving a state takes more than
// entering it, so that a device at the edge does not flap.
type Options struct {
	// Expect is the longest silence that is normal; after it the device is
	// stale. 0 has it learned from the device's own rhythm (see [rhythm]), and
	// until one is known silence says nothing. 0 or 100ms to 720h.
	Expect time.Duration `toml:"expect"`
	// OfflineAfter is how many failures in a row make a device offline,
	// 1 to 100.
	OfflineAfter int `toml:"offline_after"`
	// DegradedAt is how many failures among the last 16 outcomes make a
	// device degraded, 1 to 16.
	DegradedAt int `toml:"degraded_at"`
	// HealthyAt is how many failures among the last 16 outcomes a device may
	// have to be online again, 0 to DegradedAt-1.
	HealthyAt int `toml:"healthy_at"`
	// RecoverAfter is how many successes in a row a device needs to be
	// online again, 1 to 100.
	RecoverAfter int `toml:"recover_after"`
}

// DefaultOptions are right for a device polled every few seconds. A single
// lost frame is nothing; three in a row are a dead device or a broken line.
func DefaultOptions() Options {
	return Options{OfflineAfter: 3, DegradedAt: 4, HealthyAt: 1, RecoverAfter: 3}
}

// Validate reports the first value out of range, naming its key.
func (o Options) Validate() error {
	if o.Expect != 0 && (o.Expect < 100*time.Millisecond || o.Expect > 720*time.Hour) {
		return fmt.Errorf("expect: %v is neither 0 nor within 100ms..720h", o.Expect)
	}
	if o.OfflineAfter < 1 || o.OfflineAfter > 100 {
		return fmt.Errorf("offline_after: %d is outside 1..100", o.OfflineAfter)
	}
	if o.DegradedAt < 1 || o.DegradedAt > outcomes {
		return fmt.Errorf("degraded_at: %d is outside 1..%d", o.DegradedAt, outcomes)
	}
	if o.HealthyAt < 0 || o.HealthyAt >= o.DegradedAt {
		return fmt.Errorf("healthy_at: %d is outside 0..%d (less than degraded_at)", o.HealthyAt, o.DegradedAt-1)
	}
	if o.RecoverAfter < 1 || o.RecoverAfter > 100 {
		return fmt.Errorf("recover_after: %d is outside 1..100", o.RecoverAfter)
	}
	return nil
}
