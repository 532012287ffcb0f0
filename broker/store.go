package broker

import (
	"context"

	"holdfast/broker/durable"
	"holdfast/broker/message"
)

// Store is what the broker needs of the durable store: the queues of
// persistent sessions, retained messages and wills.
//
// The broker calls it from any goroutine and never while it holds a lock of a
// session; the store calls [durable.Recipient] under its append lock. So the
// order is: the store's append lock, then a session's lock (see doc.go).
//
// Every done callback is called exactly once for a call that took something,
// from any goroutine, must not block and must not call the store. It may be
// nil where nobody waits.
type Store interface {
	// Sessions returns what is kept of all persistent sessions. Called once,
	// at start.
	Sessions(ctx context.Context) ([]durable.Session, error)
	// Retained calls fn for every kept retained message; expired ones are
	// left out. An error of fn ends the walk and is returned.
	Retained(ctx context.Context, fn func(*message.Message) error) error
	// Wills returns wills kept from before the start: their clients were
	// connected, or within their will delay, when the process ended.
	Wills(ctx context.Context) ([]durable.Will, error)

	// Append takes a message for its durable recipients. A nil error means
	// taken, and done is called exactly once when the message is safe for all
	// of them (nil) or has failed. Any error (durable.ErrFull,
	// durable.ErrClosed) means that nothing was taken and done is never
	// called. When m.Retain is set it also becomes, or with an empty payload
	// clears, the retained message of its topic.
	//
	// QoS 1 claims of live streams are offered to their recipients before
	// Append returns, QoS 2 claims after the commit and before done. A claim
	// on a queue that has ended counts as safe. The store may keep claims;
	// the caller does not change them afterwards.
	Append(m *message.Message, claims []durable.Claim, from durable.Origin, done func(error)) error

	// CreateSession makes the queue of a new persistent session; its id is
	// known at once, the session is durable when done(nil) is called.
	// Changes of one queue take effect in call order. expiry is in seconds.
	CreateSession(clientID string, expiry uint32, done func(error)) durable.QueueID
	// UpdateSession records a connect, a disconnect or a changed expiry.
	UpdateSession(q durable.QueueID, expiry uint32, connected bool, done func(error))
	// SetUser records the user that the session's client has authenticated
	// as. It becomes durable with the changes called before it, such as
	// CreateSession; done is called at once when nothing has changed.
	SetUser(q durable.QueueID, user string, done func(error))
	// End removes a session: queue, subscriptions, packet ids and claims.
	End(q durable.QueueID, done func(error))
	// Subscribe adds subscriptions, or replaces those of the same Filter.
	Subscribe(q durable.QueueID, subs []durable.Subscription, done func(error))
	// Unsubscribe removes subscriptions by filter.
	Unsubscribe(q durable.QueueID, filters []string, done func(error))
	// SetWill keeps the will of a connected client, replacing its former one.
	SetWill(w durable.Will, done func(error))
	// ClearWill forgets the will of a client; no will is no error.
	ClearWill(clientID string, done func(error))

	// Attach makes r the running side of q; both streams start catching up
	// from the oldest delivery that is not yet acknowledged.
	Attach(q durable.QueueID, r durable.Recipient) error
	// Detach takes q offline; claims that are not yet safe get committed at
	// once. It does nothing if r is no longer the one attached.
	Detach(q durable.QueueID, r durable.Recipient)
	// Read returns the next deliveries of a stream that is catching up, in
	// order, at most limit and about maxBytes of them, but at least one. Empty
	// and live means caught up: Offers follow. Empty and not live means that
	// something is on its way: wait for Wake. QoS 2 deliveries with PacketID
	// 0 must be given one with Sent before they go out.
	Read(ctx context.Context, q durable.QueueID, qos byte, limit, maxBytes int) (ds []durable.Delivery, live bool, err error)
	// Acked says that the recipient acknowledged a QoS 1 delivery with
	// success. Acked, Refused and Dropped of a delivery that has not been
	// handed out (by Read or Offer) since the latest Attach do nothing: it is
	// still to come, and answered then. Done is called all the same.
	Acked(q durable.QueueID, seq durable.Seq)
	// Refused finishes a delivery that was answered with 0x80 or above, by
	// PUBACK (QoS 1) or PUBREC (QoS 2). Done when durable; a QoS 2 packet id
	// is free then.
	Refused(q durable.QueueID, seq durable.Seq, code byte, done func(error))
	// Dropped finishes a delivery that can never be sent (expired, larger
	// than the peer takes); counted per recipient by reason.
	Dropped(q durable.QueueID, seq durable.Seq, reason string, done func(error))

	// Sent gives QoS 2 deliveries their packet ids; durable before the first
	// send.
	Sent(q durable.QueueID, ids []durable.Sent, done func(error))
	// Received records a PUBREC; PUBREL goes out on done.
	Received(q durable.QueueID, seq durable.Seq, done func(error))
	// Completed records a PUBCOMP; the packet id is free on done.
	Completed(q durable.QueueID, seq durable.Seq, done func(error))

	// Release removes an inbound QoS 2 packet id (PUBREL); PUBCOMP goes out
	// on done.
	Release(q durable.QueueID, packetID uint16, done func(error))
}
