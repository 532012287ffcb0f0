// Package listen opens the sockets that MQTT clients connect to: TCP, TLS,
// WebSocket, WebSocket over TLS, Unix sockets, and sockets handed over by
// systemd. What it gives are plain [net.Listener] values whose connections
// carry MQTT packets as bytes; it knows no MQTT and imports nothing of ours.
//
// # Handshakes
//
// Accept never waits for a client. A connection does its TLS handshake and its
// WebSocket upgrade inside its first Read, in the goroutine and under the read
// deadline of whoever serves it. Until then [Options.HandshakeTimeout] counts
// from the accept, for both directions, so that a client that sends nothing, or
// reads nothing, is cut off by itself.
//
//	Accept -> conn          broker's reader goroutine
//	                        Read: TLS handshake -> HTTP upgrade -> frames -> bytes
//
// # Certificates
//
// The files are looked at during handshakes, at most once a second, and read
// again when one of them has changed. Files that cannot be used are counted and
// logged, and the certificates of before stay. Connections keep what they have
// agreed on. Resumed sessions are checked against the present client CAs.
//
// # WebSocket
//
// The subprotocol is "mqtt", or "mqttv3.1" for clients that offer no other
// (MQTT 5.0 §6 [MQTT-6.0.0-3], [MQTT-6.0.0-4]). Frames are a stream of bytes:
// packets may span them and share them ([MQTT-6.0.0-2]), each Write is one
// binary frame, and a text frame ends the connection ([MQTT-6.0.0-1]).
//
// There is no compression (RFC 7692). It would cost a connection more RAM than
// everything else of it together (32 kB of window each way and the state of
// the deflater), a frame of a hundred bytes could be made to expand into
// megabytes before anybody has logged in, and under TLS lengths would tell
// about payloads.
//
// Pings of the client are answered while its connection is read. We send none:
// MQTT's own keep alive says more, since it comes from the client's MQTT side.
//
// # What it never does
//
// It starts no goroutines, and takes no client's word for where a connection
// comes from: forwarding headers of a proxy only take away the standing of a
// client of this machine (see [Options.WebSocketOrigins] too).
//
// # Errors
//
// [Open] fails with the key of the listener at fault. Errors of a connection's
// Read wrap [os.ErrDeadlineExceeded], [io.EOF] and [net.ErrClosed] as those of a
// TCP connection do.
package listen
