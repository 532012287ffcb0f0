package port

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

// Conditions that callers test for with errors.Is.
var (
	// ErrTimeout: a deadline passed. It is also an os.ErrDeadlineExceeded and
	// has a Timeout method, like a net.Error. After a read timeout the port
	// goes on; a write that times out closes it.
	ErrTimeout error = timeoutError{}
	// ErrUnplugged: the device is not there, or not any more. A Port is closed
	// by then.
	ErrUnplugged = errors.New("device is unplugged")
	// ErrClosed: the port was closed, by Close or after a stuck write. It is
	// also an os.ErrClosed.
	ErrClosed error = closedError{}
	// ErrBusy: somebody else has the port open.
	ErrBusy = errors.New("port is in use by another")
)

type timeoutError struct{}

func (timeoutError) Error() string { return "timeout" }

// Timeout is true, as in net.Error.
func (timeoutError) Timeout() bool { return true }

// Temporary is true: the port goes on.
func (timeoutError) Temporary() bool { return true }

// Is makes the error equal to os.ErrDeadlineExceeded for errors.Is.
func (timeoutError) Is(target error) bool { return target == os.ErrDeadlineExceeded }

type closedError struct{}

func (closedError) Error() string { return "port is closed" }

// Is makes the error equal to os.ErrClosed for errors.Is.
func (closedError) Is(target error) bool { return target == os.ErrClosed }

// vanished says that err of a system call means that the device is gone.
func vanished(err error) bool {
	return errors.Is(err, syscall.EIO) || errors.Is(err, syscall.ENXIO) || errors.Is(err, syscall.ENODEV) ||
		errors.Is(err, fs.ErrNotExist)
}
