// Package health decides for each field device whether it is online,
// degraded, stale or offline, and why, from the outcomes that the adapters
// report. "The port is open" is no outcome: only an answer, or its absence,
// is. It never asks a device anything and publishes nothing itself; changes go
// to a callback. [Monitor.Run] is its only goroutine and belongs to the
// caller. It has no errors that callers test for.
package health
