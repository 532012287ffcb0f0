package durable

import "time"

// Policy says what becomes of a message for a queue that is full.
type Policy string

// The policies. Under PolicyRefuse and PolicyWait nothing acknowledged is ever
// dropped; the others are the operator's licence to do so. What has been sent is
// never dropped.
const (
	// PolicyRefuse takes nothing: the publisher is told ErrFull.
	PolicyRefuse Policy = "refuse"
	// PolicyWait takes the message and withholds its acknowledgement until
	// there is room.
	PolicyWait Policy = "wait"
	// PolicyDropOldest drops the oldest messages under the same policy.
	PolicyDropOldest Policy = "drop_oldest"
	// PolicyDropNewest leaves the new message out of the queue.
	PolicyDropNewest Policy = "drop_newest"
	// PolicyThin drops messages between others of the same topic, the more the
	// older they are, before the queue is full.
	PolicyThin Policy = "thin"
)

// Policies are all of them.
var Policies = []Policy{PolicyRefuse, PolicyWait, PolicyDropOldest, PolicyDropNewest, PolicyThin}

// EventProperty is the name of a user property (MQTT 5.0 §3.3.2.3.7) that marks a
// message as an event, which thinning leaves alone.
const EventProperty = "holdfast-event"

// QueuePolicy are the bounds of one queue. The zero value is PolicyRefuse with the
// bounds of the store.
type QueuePolicy struct {
	// Routes give messages their policy by topic, the first that matches.
	Routes []RoutePolicy
	// Policy is that of all others; empty means PolicyRefuse.
	Policy Policy
	// MaxMessages, MaxBytes and MaxAge bound the queue; 0 means the bound of
	// the store.
	MaxMessages, MaxBytes int64
	MaxAge                time.Duration
}

// RoutePolicy is the policy for the topics that match a filter.
type RoutePolicy struct {
	Filter string
	Policy Policy
}
