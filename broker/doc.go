// Package broker is the MQTT server of the gateway, versions 3.1, 3.1.1 and
// 5.0: listeners, connections, sessions, routing, retained messages, wills and
// $SYS. It never writes to disk itself (that is the [Store]'s), knows no
// device and no cloud: an uplink is a [Recipient], an adapter calls
// [Broker.Publish].
//
// # The way of a message
//
// route takes every message, whoever sent it. It finds the recipients by the
// subscription trie (kept per topic in a plan until the trie changes), hands
// those that are durable (persistent sessions, uplinks, the retained store) to
// Store.Append, and the others straight to their sockets.
//
//	reader goroutine        route                    store
//	----------------        -----                    -----
//	PUBLISH -> ackLine.push -> Append(claims) ------> offers QoS 1 to live
//	                           |                      recipients; commits; offers
//	                           v                      QoS 2
//	                        online sessions             |
//	PUBACK  <- ackLine.finish <------- done(nil) -------+
//
// Where only connected clients want a message nothing has to be safe, and conn.pass
// takes it the short way: into the buffers of their sockets, or to wait in RAM for
// one whose window is full, and its acknowledgement out, without a line, a job or
// an allocation.
//
// An acknowledgement leaves when the store says that the message is safe, and
// not before the acknowledgements of earlier PUBLISH packets of the same
// connection (the acknowledgement line). A QoS 2 message goes onward when its
// turn in the line comes, so once only and after the commit.
//
// # Goroutines
//
//	accept loop     one per listener     Serve            until the listener closes
//	reader          one per connection   accept loop      until its read fails, or a
//	                                                      loop has taken it over
//	loop            Options.Loops        first connection until Shutdown
//	flusher         while output waits   whoever queued   until the queue is empty
//	authentication  while a client       its AUTH packet      until it is answered
//	                authenticates again
//	pump            while a persistent   acknowledgement, until its streams are live
//	                session catches up   Wake             or its window is full
//	group pump      while a shared group room at a member until it is empty
//	                has messages kept    Wake             or no member has room
//	session clock   one                  Start            until Shutdown
//	inbox           one per inbox        OpenInbox        until Inbox.Close
//
// [Broker.Shutdown] waits for all of them but the inboxes', which are their openers'.
//
// # Lock order
//
// From outermost to innermost; nobody takes one that stands above what it
// holds, and the store is never called with any but the first two held:
//
//	groups.mu         which shared groups there are
//	retained.mu       one step of plan, append and index for retained messages
//	the store's append lock (Offer, Reserve, Wake, and perhaps done, come with it)
//	ackLine.mu        one connection's acknowledgement line
//	group.mu          members of a shared subscription
//	authentication.mu a client that authenticates again
//	session.mu        packet ids, windows and queues of one session
//	output.mu         what waits for one socket
//
// Broker.mu (the maps of sessions and connections) is held for a few lines
// that take no other of these but clock.mu and rates.mu. These, plans.mu and the locks
// inside the trie and the index guard small maps; nothing is called with them
// held.
//
// # Sessions while the disk fails
//
// A session that is to outlive its connection is durable before its CONNACK. While
// the store cannot take one (its disk is full or fails) a 5.0 client is let in with
// a Session Expiry Interval of 0 (MQTT 5.0 §3.2.2.3.2): it has all that needs no
// disk, and knows that it is to connect again for more. 3.x cannot be told, and a
// will that must be durable cannot be promised: these are refused until the disk is
// well. A session that is on the disk already is taken up as ever.
//
// # Errors
//
// [Broker.Publish] returns [durable.ErrFull] when the store refuses a message,
// [ErrTopic] for a topic that cannot be published to and [ErrClosed] after
// Shutdown.
package broker
