package uplink

import (
	"fmt"
	"slices"
	"time"

	"holdfast/broker/durable"
)

// Warnings names settings that are allowed and do nothing where they stand.
func (o Options) Warnings() (warnings []string) {
	for i := range o.Routes {
		r := &o.Routes[i]
		for _, w := range r.idle() {
			warnings = append(warnings, fmt.Sprintf("route %d (%s %s): %s", i+1, r.Direction, r.Filter, w))
		}
	}
	for _, b := range []struct {
		key    string
		bytes  int64
		lasts  time.Duration
		period string
	}{{"day_budget", o.DayBudget, 24 * time.Hour, "day"}, {"month_budget", o.MonthBudget, 30 * 24 * time.Hour, "month"}} {
		if pings := o.pings(b.lasts); b.bytes > 0 && b.bytes < pings {
			warnings = append(warnings, fmt.Sprintf("%s: %d bytes are less than the %d that pings alone take in a %s (keep_alive = %q)", b.key, b.bytes, pings, b.period, o.KeepAlive))
		}
	}
	return warnings
}

// pings is what the pings of an idle connection take, in bytes on the wire without
// TLS: a PINGREQ and a PINGRESP of two bytes, each in a segment.
func (o Options) pings(d time.Duration) int64 {
	if o.KeepAlive <= 0 {
		return 0
	}
	return int64(d/o.KeepAlive) * 2 * (segmentBytes + 2)
}

// idle names the keys of a route that nothing comes of.
func (r *Route) idle() (warnings []string) {
	add := func(key, why string) { warnings = append(warnings, key+": "+why) }
	if r.Batch == "" {
		for key, set := range map[string]bool{
			"compression": r.Compression != "", "batch_topic": r.BatchTopic != "", "batch_messages": r.BatchMessages != 0,
			"batch_bytes": r.BatchBytes != 0, "batch_delay": r.BatchDelay != 0,
		} {
			if set {
				add(key, "does nothing without batch")
			}
		}
	}
	if r.Direction == DirectionIn {
		for key, set := range map[string]bool{
			"snapshot": r.Snapshot, "policy": r.Policy != "", "qos0": r.QoS0 != "",
		} {
			if set {
				add(key, "is for what goes to the cloud, and the route is for what comes from there")
			}
		}
	}
	if r.Latest && r.Policy == durable.PolicyThin {
		add("policy", "\"thin\" finds nothing to thin where latest keeps one message of each topic")
	}
	slices.Sort(warnings)
	return warnings
}
