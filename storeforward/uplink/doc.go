// Package uplink is the gateway's MQTT session with the cloud's broker. It
// keeps one connection up over links that come and go, sends what the routes
// out select from the durable store, and brings in what the routes in ask for.
// To the store it is one more durable recipient with a queue of its own, so a
// dead link slows nobody.
//
// It never acknowledges to the cloud what is not safe here, never finishes a
// delivery the cloud has not acknowledged (unless it expired or can never pass,
// and then it is counted), never sends a QoS 2 message under an id that is not
// durable, and never waits for the cloud while it holds a lock.
//
// Goroutines: [Uplink.Run] is the writer of the connection and the only one
// that reads from the store; while a connection lasts it has one reader beside
// it, and one that watches the better ways when there are any; with TLS another
// looks at the certificates. All end before Run returns. The store and the
// broker call in from theirs:
//
//	store, under its append lock            cloud
//	   | Offer, Reserve, Wake                 | PUBLISH, PUBACK, PUBREC ...
//	   v                                      v
//	flights of the session <------- reader (receive.go) --> Local.Publish
//	   |                                      |                 | done
//	   |        Uplink.mu guards all          |                 v
//	   v                                      |            line of acknowledgements
//	writer (send.go) <------ wake ------------+-----------------+
//	   | Queue, Flush                         | Acked, Received, Completed ...
//	   v                                      v
//	cloud                                   store
//
// Lock order: the store's append lock, then Uplink.mu, then the connection's.
// The store and Local are never called with Uplink.mu held.
//
// # Rules
//
// A session is taken up when the store is done with what the last connection
// asked of it, and after it has handed over again what is in flight: it takes
// acknowledgements only for that.
//
// A session is remembered as address, client id and epoch. Without a matching
// memory the connection is a Clean Start; when the cloud has no session the
// store forgets ids and counts possible duplicates before any other packet. So
// failover, and the way back, begin a new session each, unless the addresses
// are said to share theirs: then they are one in the memory.
//
// A round tries every way once (package dial), the best first, and then pauses.
// A way whose cloud refuses us is spared for as long as if it were the only one.
// A connection by another way than the best moves to a better one when that has
// been reachable, up to TLS, for ReturnAfter without a break. A Server Reference
// is followed once, in the same manner (TLS stays TLS); the next attempt is home.
//
// The pause depends on what happened: decorrelated jitter from ReconnectMin;
// from the upper half of ReconnectMax on when the cloud is busy or only a person
// can help; up to ReconnectSpread when the cloud itself ended a link that had
// held, since it has done so to all; growing to a quarter of an hour between
// twins, gateways with one client id that take each other's session over.
//
// A link is dead when TCP gets no confirmation for TCPUserTimeout, when nothing
// comes for the keep alive and half of it again, also while much is sent (the
// PINGREQ goes by what was heard), or when the cloud owes acknowledgements for
// AckTimeout.
//
// The birth message goes first. When the cloud has kept the session, the PUBRELs
// follow (in the order of their PUBRECs, exempt from Receive Maximum: they make
// room), then the PUBLISHes not acknowledged, in the order of their first send,
// under their ids and with DUP set, then new ones (MQTT 5.0 §4.4, §4.6). A birth
// message of an earlier connection is not sent again, since the new one says
// more (! MQTT 5.0 [MQTT-4.4.0-1]: it is QoS 1, for which the receiver keeps
// nothing). After a restart of the process QoS 1
// is sent again under new ids.
//
// Messages wait in lanes, each a queue of its own in the store. They take a place in
// the window when it is their turn, so that an alarm waits for what is on its way
// and for nothing else; a scheduler over bytes lets the highest lane go first and
// gives each other one that waits a 64th. Packet ids, window and the order of what
// is sent again are the session's. When a topic gets another lane, its messages
// there wait until those in the old lane are acknowledged, and lend that their
// turn.
//
// A refusal with 0x80, 0x83 or 0x97 keeps the message and everything of its
// topic and QoS behind it, and tries the first of them again with back-off.
// Messages of the same topic that were already on their way when the refusal
// came may have been accepted: they overtake the refused one. Only a window of
// one would prevent that. The id stays with the refused message, and the next
// try carries DUP 0: the exchange is over for both sides (MQTT 5.0 §4.3.2,
// §4.3.3).
//
// A QoS 2 message goes to a cloud whose Maximum QoS is 1 as QoS 1, counted.
//
// What is refused here (the store is full) is answered with 0x97 in 5.0; in
// 3.1.1, which cannot refuse, it stays without answer, nothing further with an
// acknowledgement is taken, so that order holds, and the connection is
// replaced after a pause so that the cloud sends it again.
//
// A message whose expiry passed after its first send is resent with an expiry
// of one second: once sent, only an acknowledgement ends it, and brokers take
// an expiry of zero for none.
//
// # How much is on its way
//
// The window (see window.go) is what the link was found to hold, and a quarter
// more: what waits in the network cannot be overtaken, what waits here can. It is
// counted from PUBLISH to acknowledgement, within Receive Maximum and the keys
// window and window_bytes; a link with little to carry keeps the window it had.
// What has just been published may wait for it in memory, up to 64 KiB. A packet's
// worth of a higher lane does not wait for room in it: it waits behind what is in the
// network and nothing else.
//
// # Trials
//
// A configuration on trial may be taken back: what has no route in it is not dropped
// until [Uplink.Proven], and what is behind that waits with it, some seconds.
//
// # Batches
//
// A batch is one QoS 1 message to the cloud and many here: all its members are
// finished by its PUBACK, and all are dead letters when it is refused for good.
// While the connection or the session lasts it is sent again as it was, with DUP;
// when the session is lost, the gateway has restarted, or the cloud of this
// connection takes smaller packets, its members are read again and put together
// anew, and may come twice. QoS 2 is never in a batch; what is retained goes alone,
// at its place in the order of its route.
//
// # Loops
//
// What came from a cloud does not go back there, and no-local keeps the cloud from
// sending us what is ours. What goes on from one cloud to another carries its hops
// in a user property and ends after eight. 3.1.1 has neither: Loops warns.
//
// # Data budget
//
// Counted are the bytes of the connections with TLS, 78 for each TCP segment with
// data and 364 for each attempt to connect. A day or month ends only by a clock
// that is right. The count is kept in the store, at most once a minute and then only
// while nothing is in flight, else every ten minutes and at the stop; a power cut
// forgets what came since.
package uplink
