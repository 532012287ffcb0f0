package durable

import "strconv"

// Lanes is how many lanes an uplink has, 0 to 7. What waits in a higher one goes
// first; each gets a minimum share.
const Lanes = 8

// DefaultLane is the lane of what no route gives another.
const DefaultLane = 3

// Lane is one of the ways that messages take to the peer of an uplink. Each has a
// queue of its own.
type Lane struct {
	Number byte `json:"lane"` // 0 to 7
	// Latest: of each topic the newest message is kept, and what has been
	// sent. Its deliveries are QoS 1.
	Latest bool `json:"latest,omitempty"`
}

// String is the lane's name for people: "3", or "7-latest".
func (l Lane) String() string {
	s := strconv.Itoa(int(l.Number))
	if l.Latest {
		s += "-latest"
	}
	return s
}

// LaneRoute gives the topics that match a filter their lane, the first that
// matches; what matches none goes by [DefaultLane].
type LaneRoute struct {
	Filter string `json:"filter"`
	Lane
}

// LaneQueue is the queue of one lane.
type LaneQueue struct {
	Queue QueueID
	Lane
}

// LaneChange says that messages up to a sequence number took other lanes, and
// may wait there: to keep the order of a topic, what it has in its new lane goes
// after what it has in its old one.
type LaneChange struct {
	Upto   Seq
	Routes []LaneRoute
}
