package modbus

import (
	"context"
	"time"
)

// transport carries requests to the units of a bus and brings what becomes of
// them. It is owned by the bus goroutine, which calls all its methods but
// interrupt.
type transport interface {
	// room is how many requests may be under way at once, at least 1.
	room() int
	// send puts x.req on its way and notes in x.sent when it had left. An
	// error that is not fatal is the outcome of x alone; after a fatal one
	// the transport is of no use.
	send(ctx context.Context, x *exchange) error
	// receive waits until the outcome of a request under way is known, notes
	// it in the exchange and returns that; nil when none was at the time
	// given (zero: no such time). Errors are fatal.
	receive(ctx context.Context, until time.Time) (*exchange, error)
	// alone is until when a unit with this timeout must be left alone after
	// x brought no answer, or one to something else: what it says meanwhile
	// could pass for the answer to a later question. Zero where answers carry
	// the number of their question.
	alone(x *exchange, timeout time.Duration) time.Time
	// counters returns what came besides answers since the last call.
	counters() linkCounters
	// echoes says that what is sent comes back.
	echoes() bool
	// gone is closed when the transport is of no use any more, and lost then
	// says why.
	gone() <-chan struct{}
	lost() error
	// interrupt ends a send or receive that waits, after its ctx has ended.
	interrupt()
	close() error
}
