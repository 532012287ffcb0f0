// Package relaytest is the link between a gateway and its cloud as tests and
// the demo want it: a TCP relay on a loopback port that delays, limits, stalls,
// loses (as TCP shows it: everything behind waits), resets, leaves one side
// with half a connection, swallows, and cuts inside a packet. It counts the
// bytes both ways, knows nothing of MQTT, and never reorders or changes a byte.
//
// Goroutines: one accepts, and up to five serve each connection. All have ended
// when [Relay.Close] returns.
package relaytest
