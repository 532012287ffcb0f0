// Package pack puts many MQTT messages into the payload of one, and takes them
// apart again. It opens nothing, starts no goroutines and reads no clock. What
// cannot be read is an error that wraps [ErrFormat].
//
// # The format
//
// A batch is a list of records in one of three forms (or in a foreign one, SenML,
// which others write: see [NewPackerOf]), compressed as a whole with
// zstd (RFC 8878), with gzip (RFC 1952), or not. The first bytes tell which; in
// MQTT 5.0 the content type and the user property "content-encoding" do too, in
// 3.1.1 the last level of the topic, such as "jsonl.zst".
//
// A record is one message. Topic is the one at the cloud, as if it had come alone;
// time is when the gateway accepted the message.
//
// jsonl (application/x-ndjson) has one object a line, json (application/json) the
// same objects in an array:
//
//	{"topic":"s/a","time":"2026-05-01T10:00:00.123Z","payload":{"value":21.5}}
//
// The payload is in one of three members: "payload" when it is JSON on one line, at
// most 32 levels deep, unaltered; "text" when it is other UTF-8; "base64" for the rest. An empty one has
// none of them. Where they differ from 0 and none there are "qos", "expiry"
// (seconds left when it was sent) and "properties" (MQTT 5.0 properties in wire
// form, base64).
//
// cbor (application/cbor, RFC 8949) is smaller, compressed too: the tag 55799, then
// an array of records, each an array of
//
//	topic    text, or an unsigned number: the n-th topic of this batch, from 0
//	time     milliseconds since 1970 in the first record, after that since the
//	         record before; may be negative
//	payload  text when it is UTF-8, else bytes
//	qos, expiry, properties   as above, 0 or null for none; left out from the end
//
// Lengths are definite, and of each number the shortest form is written.
package pack
