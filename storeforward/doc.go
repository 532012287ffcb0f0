// Package storeforward is the durable store of the gateway: what has been
// acknowledged to a publisher is either committed to SQLite with an fsync or
// has been acknowledged by everyone who must get it. It keeps the queues of
// uplinks and persistent sessions, QoS 2 packet ids in both directions,
// subscriptions, wills and retained messages.
//
// It never acknowledges before a message is safe, never deletes a database it
// cannot read (it is set aside), never drops a message without counting it,
// and opens no sockets.
//
// Goroutines: one committer, which owns the writing connection; one keeper,
// which checkpoints beside it. Both are started by [Open] and end in
// [Store.Close] after everything appended is committed. Callbacks (done
// functions) run on the committer's goroutine or on that of the caller.
//
// Locks: one append lock guards all memory state. Methods of the store must be
// called without holding a lock that a [durable.Recipient] method takes, since
// these run under the append lock (lock order: store, then recipient). No
// callback runs under the append lock.
//
// Errors to test for: [durable.ErrFull], [durable.ErrClosed],
// [durable.ErrNoQueue] and [ErrNewerVersion].
//
// # Lifetimes
//
// The store keeps a clock of its own that continues across restarts: within a
// run it follows the monotonic clock, so that a step of the wall clock disturbs
// nothing. Time while the gateway was off is counted only when
// [Options.ClockSynchronised] says that the wall clock was right at the end of
// the last run and is right at the start of this one; otherwise a message
// becomes no older while the power is off. The end of a run is known to within
// a minute after a power cut. Times of arrival are kept as wall time for
// people; they are not corrected when the clock is set later in the same run.
package storeforward
