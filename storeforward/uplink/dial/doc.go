// Package dial finds the way to a cloud's broker and opens a stream of bytes
// there: names looked up anew, IPv4 and IPv6 raced, interfaces and source
// addresses, proxies, TLS and WebSocket. It knows no MQTT.
//
// A [Dialer] holds the ways there are, as [Path] values in the order of
// preference: every address through every interface. It opens one when asked
// and never chooses, never tries again and never waits for anything but the
// attempt it was asked for; all of that is its user's.
//
//	Path -> interface -> DNS -> race of addresses -> [proxy] -> [TLS] -> [WebSocket] -> Conn
//
// A lookup has its own time and its own goroutine for each family. When it
// gives nothing in time, the addresses that worked the last time are tried: a
// name server that is silent need not stop a gateway whose cloud is where it
// was.
//
// It starts no goroutine that outlives the call, and reads no proxy settings
// from the environment: what is not in the configuration does not happen.
//
// Errors to test for: [ErrProxyLogin]; certificate errors are those of
// crypto/tls and crypto/x509, errors of the network those of net.
package dial
