// Package port is a serial port that behaves: one wrapper around two drivers,
// go.bug.st/serial ("bugst") and github.com/tarm/goserial ("tarm"), that
// blunts the sharp edges of both. A [Line] is a configured port and lives as
// long as the process; a [Port] is one opening of it and ends for good when it
// is closed or unplugged. Opening again with back-off is the user's business
// (see package adapters); [Line.Wait] waits for the device to be there.
//
// The wrapper opens the device a second time for itself, before the driver
// does. That descriptor holds the lock, tells when there is something to read
// or room to write, keeps deadlines and notices an unplugged device; the
// driver opens, configures, reads, writes and closes, and is never asked to
// wait. So neither driver's way of waiting, timing out or hanging matters.
//
// What it never does: write or read after Close, leave a goroutine in a stuck
// write, keep an unplugged device open (the kernel would hand out ttyUSB1 for
// the next one), share a port, probe ports it was not told to open.
//
// Wait is told of devices by the kernel (inotify), and has no goroutine.
//
// Each open Port owns one goroutine, which waits for the device to vanish and
// ends with the Port. Callers test for [ErrTimeout], [ErrUnplugged],
// [ErrClosed] and [ErrBusy].
package port
