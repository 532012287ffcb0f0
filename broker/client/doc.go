// Package client is an MQTT client, 5.0 and 3.1.1, for the uplink, the command
// line, the demo and tests.
//
// [Conn] is the low level: one connection after a successful handshake, with
// keep alive, corked writes and byte counters; its user answers the packets.
// [Client] is the high level: it acknowledges, retries within a [Session] and
// waits for acknowledgements. Neither reconnects and neither keeps anything on
// disk; the uplink builds both on top of Conn.
//
// Goroutines: [Conn.Run] is the read loop in its caller's goroutine; it starts
// a writer, and a keep alive when there is one, and waits for both before it
// returns. [Connect] starts one goroutine that calls Run and ends with the
// connection. Dial and NewConn leave none behind.
//
//	Queue ──> out ──> [writer] ──> socket ──> [Run: read loop] ──> handler
//	             ^                                  |
//	             +---- PINGREQ -- [keep alive] <----+ when something last came
//
// Errors to test for: [*ConnackError] (the server refused the connection),
// [*DisconnectError] (it ended it and said why), [*RefusedError] (it refused
// one message), [*packet.Error] (it broke the protocol), [ErrKeepAlive],
// [ErrOutputFull], [ErrTooLarge], [ErrExpired], [ErrClosed].
package client
