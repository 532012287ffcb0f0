// Package topic knows topic names and topic filters: it validates them, tells
// whether a name matches a filter, and keeps the two indexes a broker needs:
// [Trie] finds the subscriptions that match a name, [Index] finds the names
// (of retained messages) that match a filter (MQTT 5.0 §4.7, MQTT 3.1.1 §4.7).
// [Aliases] gives names the numbers that stand for them on one connection.
//
// It never parses packets, opens anything, reads a clock or starts a
// goroutine. Trie and Index are safe for use from many goroutines; both guard
// themselves with one read-write lock held for the length of a call. Aliases are
// guarded by whoever has them.
//
// What is not valid is refused with an error that wraps [ErrInvalid]. Trie,
// Index and [Match] expect names and filters that have been validated; on
// others they answer something harmless, without a panic.
package topic
