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
// which checkpoints beside it; one thinner, which chooses what queues under the
// policy thin can do without. They are started by [Open] and end in
// [Store.Close] after everything appended is committed. While a stream is read
// ahead of its recipient there is one more for the query, which Close waits for.
// Callbacks (done functions) run on the committer's goroutine or on that of the
// caller.
//
// Locks: one append lock guards all memory state. Methods of the store must be
// called without holding a lock that a [durable.Recipient] method takes, since
// these run under the append lock (lock order: store, then recipient). No
// callback runs under the append lock.
//
// Errors to test for: [durable.ErrFull], [durable.ErrClosed],
// [durable.ErrNoQueue] and [ErrNewerVersion].
//
// # Where the promises needed a closer word
//
// A recipient that ends counts as safe only when its end is durable: a power cut
// in between brings the session back, without the message that was acknowledged
// (see TestEndMakesSafeOnlyWhenDurable). The same holds for messages appended
// after the end and before it is durable.
//
// A failed commit withdraws an inbound QoS 2 id only after the log has been
// emptied and the database asked. A commit that reports an error may be on disk;
// recovery would bring the id back after the publisher has given it to another
// message, which would be taken for a resend and lost (TestWithdrawnStaysWithdrawn).
//
// A recipient that attaches while changes by its predecessor are on their way to
// the disk reads its QoS 2 deliveries only after them: else a PUBREC would be
// forgotten or a delivery given two packet ids (TestReadWaitsForTheRecipientBefore).
//
// While the disk fails and everything that waited has been acknowledged, nothing
// would try the disk again, and whoever needs it would be refused for ever. So a
// failing store always has a commit to try (TestHealingWithoutWork).
//
// A refused delivery (code 0x80 or above) is finished, and makes its message safe
// with the commit that keeps its dead letter (TestRefusalMakesNothingSafe).
//
// A recipient that has no room at the moment has not been sent the message, and yet
// its link is well. When only the tail is before it, and nothing on disk, it gets
// half a commit window to come and read: else every burst above the window of a
// healthy uplink would be written, with all that waits
// (TestFullWindowForAMomentCostsNoFlash).
//
// Numbers are reserved ahead also when nothing is written: a healthy link alone
// would outrun the mark (TestMarkStaysAhead).
//
// A commit into a file that has been removed or replaced under its name is not
// one: the names are looked up after each commit, and what is open is copied back
// to where it belongs before anything is acknowledged (TestDatabaseRemovedWhileOpen).
//
// A log whose database is missing or empty, or whose header cannot be read, is set
// aside before SQLite deletes it or writes over it (TestLogWithoutItsDatabase).
//
// A state that was replaced, or finished a moment ago, may come back with the power,
// and would then be the last word on its topic. Newer ones of a latest-only lane are
// written while that is so, also when the peer has acknowledged them
// (TestOlderStateDoesNotComeBack).
//
// A route's lane may change while messages wait. Which lane a message takes is
// decided under the lock that numbers it, and what waits stays where it is;
// [Store.SetLanes] tells the uplink what must go before what, also after a restart
// (TestChangeOfLanesKeepsWhatWaits).
//
// On a disk that takes nothing the store opens all the same and is failing; the
// start is noted by the first commit that works
// (TestOpensOnAFullDiskWithoutAReserve).
// Where there is no database yet, a migration is due, or SQLite cannot read the file
// without writing beside it, a spare in memory stands for the file until then
// (TestOpensWithoutADisk, TestReadOnlyFileSystemAtStart).
//
// A salvage has an end that is durable: a start that finds one cut short begins it
// anew, or what was set aside would be taken for done with
// (TestPowerCutInMigrationAndSalvage).
//
// A row is quarantined for being in hand at crashes, not at the end of the process
// for another reason: a power cut or a kill would make the head of a queue look
// guilty (TestKillsQuarantineNothing).
//
// Damage in the columns of a row is nothing that SQLite can see. A message that nobody
// can have published is put aside when it is read, not sent: it would end the
// connection of whoever gets it, for ever. Numbers that were never given are not
// counted on from (TestDamagedMessagesAreSetAside, TestImpossibleNumbers).
//
// A lock file that is removed keeps nobody out. It is looked for now and then and
// locked again; when somebody has come in between, nothing is committed any more, as
// both would give the same numbers (TestIntruderEndsCommits).
//
// # Lifetimes
//
// The store keeps a clock of its own that continues across restarts: within a
// run it follows the monotonic clock, so that a step of the wall clock disturbs
// nothing. Time while the gateway was off is counted only when
// [Options.ClockSynchronised] says that the wall clock was right at the end of
// the last run and is right at the start of this one; otherwise a message
// becomes no older while the power is off. The end of a run is known to within
// a minute after a power cut while messages are kept (ten minutes when only
// sessions are), and is never before the newest of them. Times of arrival are kept as wall time for
// people; they are not corrected when the clock is set later in the same run.
package storeforward
