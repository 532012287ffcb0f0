// Package durable holds the records that cross between the broker, the uplink
// and the store: who must get a message (Claim), what a recipient is handed
// (Delivery), how the store calls a running recipient (Recipient), and what is
// kept of a session. It contains no behaviour beyond small methods; it imports
// broker/message and the standard library only.
//
// The terms: a durable recipient (a persistent session or an uplink) owns one
// queue. A queue has two streams, one per delivery QoS; order is kept within a
// stream. A stream is live (new messages are offered to the recipient as they
// are appended) or catching up (the recipient reads what is kept).
package durable

import (
	"errors"
	"time"

	"holdfast/broker/message"
)

// Errors of the store that callers test for.
var (
	// ErrFull means that the store or one of the queues has no room; nothing
	// was kept (MQTT 5.0 reason 0x97).
	ErrFull = errors.New("store is full")
	// ErrClosed means that the store is shutting down; nothing was kept.
	ErrClosed = errors.New("store is closed")
	// ErrNoQueue means that the queue named does not exist or has ended.
	ErrNoQueue = errors.New("no such queue")
)

// QueueID names the queue of one durable recipient. 0 is no queue. An id is
// never given twice.
type QueueID int64

// Seq is the place of a message in the store. It only grows, across restarts
// too. 0 is no message.
type Seq uint64

// GroupPrefix begins the client id of what is no session, but the queue of a
// shared group; what follows is $share/GROUP/FILTER (MQTT 5.0 §4.8.2). No client
// id begins with it: it is not UTF-8.
const GroupPrefix = "\xff"

// Claim says that one durable recipient must get a message, and how.
type Claim struct {
	Queue QueueID
	// QoS of the delivery, 1 or 2; fixed for good when appended.
	QoS byte
	// Retain is the RETAIN flag the delivery carries.
	Retain bool
	// SubscriptionIDs go with the delivery (MQTT 5.0 §3.3.2.3.8), ascending.
	SubscriptionIDs []uint32
}

// Origin says who published, as far as the store must know it.
type Origin struct {
	// Queue is the publisher's own queue when its session is persistent
	// (or it is an uplink), else 0.
	Queue QueueID
	// PacketID is the inbound QoS 2 packet id that is committed together
	// with the message; 0 when there is none to keep.
	PacketID uint16
	// Will is the client id whose stored will this message is; the stored
	// will is removed in the same transaction. Empty for other messages.
	Will string
}

// Delivery is one message on its way to one durable recipient.
type Delivery struct {
	Seq Seq
	// Message is nil when Released.
	Message *message.Message
	// QoS, Retain and SubscriptionIDs are those of the claim.
	QoS             byte
	Retain          bool
	SubscriptionIDs []uint32
	// PacketID is the durable packet id of a QoS 2 delivery; 0 for QoS 1 and
	// for a QoS 2 delivery that has none yet (see [Store] in package broker:
	// give it one with Sent before it goes out).
	PacketID uint16
	// Resend says that this QoS 2 delivery was, or may have been, sent
	// before under PacketID: DUP is set.
	Resend bool
	// Released says that the recipient's PUBREC is durable: a PUBREL goes
	// out, never the message again.
	Released bool
}

// Sent gives a QoS 2 delivery its packet id, to be made durable before the
// first send.
type Sent struct {
	Seq      Seq
	PacketID uint16
}

// Recipient is the running side of a durable recipient: an online session, a
// connected uplink. The store calls it from any goroutine, one call at a time,
// under its append lock. An implementation must return at once, must not call
// the store back from within, and may take its own lock (lock order: store,
// then recipient).
type Recipient interface {
	// Offer hands over the next delivery of a live stream. QoS 2 deliveries
	// come committed and with their PacketID. False means that it was not
	// taken (no room): the stream is catching up from then on, and the
	// recipient must Read when it has room.
	Offer(d Delivery) bool
	// Reserve gives the packet id for a QoS 2 delivery about to be committed
	// to a live stream. False means no room: the stream is catching up from
	// then on. The id comes back with Offer, or with Unreserve.
	Reserve() (packetID uint16, ok bool)
	// Unreserve gives back an id from Reserve whose commit did not happen.
	Unreserve(packetID uint16)
	// Wake says that the stream of that QoS, which is catching up, has
	// something to Read that was not readable before.
	Wake(qos byte)
}

// Crowded is a [Recipient] that wants to know when a message was refused because
// its own queue is full. Full is called as the methods of Recipient are.
type Crowded interface{ Full() }

// SessionExpiryNever is the session expiry interval of a session that does
// not expire (MQTT 5.0 §3.1.2.11.2).
const SessionExpiryNever uint32 = 0xFFFFFFFF

// Session is what is kept of a persistent session.
type Session struct {
	ClientID string
	Queue    QueueID
	// User is the user name its client last authenticated with, empty for
	// none: it decides what the session may be sent before the client
	// returns.
	User string
	// Expiry is the session expiry interval in seconds, counted from the
	// moment the connection ended; [SessionExpiryNever] never ends.
	Expiry uint32
	// Offline is when its connection ended; zero while connected. After a
	// restart it is when the store was last known to be open.
	Offline       time.Time
	Subscriptions []Subscription
	// Received are the inbound QoS 2 packet ids whose PUBREL has not come.
	Received []uint16
}

// Subscription is one topic filter of a session with its options
// (MQTT 5.0 §3.8.3.1).
type Subscription struct {
	Filter            string // with $share/group/ when shared
	QoS               byte   // maximum QoS, 0 to 2
	NoLocal           bool
	RetainAsPublished bool
	RetainHandling    byte   // 0 to 2
	ID                uint32 // subscription identifier, 0 for none
}

// Will is a will kept for a client: published when it dies, or after a power
// cut unless it returns (MQTT 5.0 §3.1.2.5).
type Will struct {
	ClientID string
	// User is the user name its client authenticated with, empty for none: it
	// decides whether the will may be published after a start.
	User string
	// Delay is the will delay interval in seconds (MQTT 5.0 §3.1.3.2.2).
	Delay   uint32
	Message *message.Message
}
