// Package adapters is what all field adapters share: the interfaces between
// them and the gateway ([Adapter], [Publisher]), [Supervisor] which restarts
// an adapter with back-off, and [Outbox], the bounded memory queue between a
// bus and a publisher that may be full, which [Readings] fills. The other way
// round [Commands] brings what devices are told, and [Receiver] does about it what
// all adapters have in common. It knows no protocol, opens no port and does not
// know where messages go.
//
// It owns one goroutine per Outbox, which ends with [Outbox.Close].
// Supervisor.Run is the caller's goroutine. It has no errors that callers
// test for.
package adapters
