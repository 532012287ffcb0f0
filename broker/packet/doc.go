// Package packet reads and writes MQTT control packets, versions 3.1, 3.1.1
// and 5.0, as values. It opens no sockets, starts no goroutines and reads no
// clock.
//
// [Frame] finds the end of a packet, [Decode] turns a frame into a value,
// [Reader] does both on a stream, and every value has AppendTo. Each rule of
// MQTT that one packet alone can break is checked here, in both directions:
// what decodes is valid, and what is not valid does not encode. Two kinds of
// rules are elsewhere: whether a topic name or filter is well formed is for
// package topic, and who may send what is asked with [FromClient] and
// [FromServer], since a frame does not say where it came from.
//
// Errors are values of type [*Error]. They carry the reason code to answer
// with and wrap [ErrMalformed] or [ErrProtocol] (MQTT 5.0 §4.13). They never
// contain a payload, a password or a name somebody else chose.
package packet
