package broker

import (
	"sync"
	"sync/atomic"

	"holdfast/broker/packet"
)

// ackLine is one connection's acknowledgement line: PUBACK and PUBREC leave in
// the order in which the PUBLISH packets came (MQTT 5.0 §4.6 [MQTT-4.6.0-2]
// [MQTT-4.6.0-3]), each when its message is safe. Once its connection ends
// nothing is sent any more, but what waits for its turn (onward delivery of
// QoS 2) still gets it.
type ackLine struct {
	to acknowledger

	// unacked is how many QoS 1 and 2 PUBLISH packets are not yet finished
	// towards the client.
	unacked atomic.Int32
	// waits is how many acknowledgements wait; only the reader makes it grow.
	waits atomic.Int32
	bytes atomic.Int32  // of the messages in line, see ackOverhead
	left  atomic.Uint32 // how many have left it

	mu      sync.Mutex
	waiting []*ack // guarded by mu
	dead    bool   // guarded by mu
}

// acknowledger is whose line it is; mu is held when it is called.
type acknowledger interface {
	acknowledge(a *ack, k *cork) // queues the acknowledgement
	// hold and release enclose the acknowledgement that somebody waits for and
	// does nothing else: it goes with release.
	hold()
	release()
	lineMoved() // something has left the line
}

// ack is one acknowledgement in the line.
type ack struct {
	packetID uint16
	qos      byte
	// counted says that this PUBLISH takes a place of the receive maximum
	// (a resent QoS 2 PUBLISH on the same connection does not again).
	counted bool
	// size is how many bytes the message has; 0 for one that has been refused.
	size int32

	// The rest is guarded by ackLine.mu.
	done   bool
	reason packet.ReasonCode
	onward func(k *cork) // runs before the acknowledgement is sent, if reason is no failure
}

// push gives a PUBLISH its place. It returns false when the client exceeds the
// receive maximum (MQTT 5.0 §3.3.4 [MQTT-3.3.4-9]).
func (l *ackLine) push(a *ack, limit int) bool {
	if a.counted && int(l.unacked.Add(1)) > limit {
		return false
	}
	l.bytes.Add(a.weight())
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting = append(l.waiting, a)
	l.waits.Store(int32(len(l.waiting)))
	return true
}

// finish says what became of a PUBLISH and lets everything leave whose turn
// has come. k is the reader's cork if the reader calls, else nil.
// left says that a itself has left the line.
func (l *ackLine) finish(a *ack, reason packet.ReasonCode, k *cork) (left bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	a.done, a.reason = true, reason
	if k == nil && len(l.waiting) == 1 { // one in flight: it is as fast as its answer
		l.to.hold()
		defer l.to.release()
	}
	n := 0
	for ; n < len(l.waiting) && l.waiting[n].done; n++ {
		head := l.waiting[n]
		left = left || head == a
		if head.onward != nil && !head.reason.Failed() {
			head.onward(k)
		}
		head.onward = nil
		l.bytes.Add(-head.weight())
		if head.counted && (head.qos == 1 || head.reason.Failed()) {
			l.unacked.Add(-1)
		}
		if !l.dead {
			l.to.acknowledge(head, k)
		}
	}
	if n == 0 {
		return left
	}
	l.left.Add(uint32(n))
	rest := copy(l.waiting, l.waiting[n:])
	clear(l.waiting[rest:])
	l.waiting = l.waiting[:rest]
	l.waits.Store(int32(rest)) // after what has left is queued
	l.to.lineMoved()
	return left
}

// released gives back the place of a QoS 2 PUBLISH whose PUBCOMP is sent.
func (l *ackLine) released() { l.unacked.Add(-1) }

// length is how many acknowledgements wait.
func (l *ackLine) length() int { return int(l.waits.Load()) }

// kill ends the line with its connection.
func (l *ackLine) kill() {
	l.mu.Lock()
	l.dead = true
	l.mu.Unlock()
}
