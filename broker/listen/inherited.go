package listen

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/coreos/go-systemd/v22/activation"
)

// Inherited are the sockets that systemd handed over. They stay open for as
// long as the process: a listener that is closed and opened again by a new
// configuration finds its clients waiting in the socket's queue.
type Inherited struct{ files []*os.File }

// FromSystemd collects the sockets of sd_listen_fds(3) and takes the variables
// that describe them out of the environment. Call it once, at the start.
func FromSystemd() *Inherited { return &Inherited{activation.Files(true)} }

// Names are the names of the sockets, each once.
func (in *Inherited) Names() []string {
	if in == nil {
		return nil
	}
	var names []string
	for _, f := range in.files {
		names = append(names, f.Name())
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Close closes the sockets.
func (in *Inherited) Close() error {
	if in == nil {
		return nil
	}
	var errs []error
	for _, f := range in.files {
		errs = append(errs, f.Close())
	}
	in.files = nil
	return errors.Join(errs...)
}

// listeners returns a listener for each socket of that name.
func (in *Inherited) listeners(name string) (ls []net.Listener, err error) {
	defer func() {
		if err != nil {
			for _, l := range ls {
				err = errors.Join(err, l.Close())
			}
			ls = nil
		}
	}()
	if in != nil {
		for _, f := range in.files {
			if f.Name() != name {
				continue
			}
			if err := listening(f); err != nil {
				return ls, fmt.Errorf("socket %s from systemd: %w", name, err)
			}
			l, err := net.FileListener(f)
			if err != nil {
				return ls, fmt.Errorf("socket %s from systemd: %w", name, err)
			}
			ls = append(ls, l)
		}
	}
	if len(ls) > 0 {
		return ls, nil
	}
	given := "none"
	if names := in.Names(); len(names) > 0 {
		given = strings.Join(names, ", ")
	}
	return nil, fmt.Errorf("systemd handed over no socket called %s (handed over: %s)", name, given)
}

// listening refuses what a unit with Accept=yes or ListenDatagram= hands over.
func listening(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var kind, accepts int
	if controlErr := raw.Control(func(fd uintptr) {
		if kind, err = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_TYPE); err == nil {
			accepts, err = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_ACCEPTCONN)
		}
	}); controlErr != nil {
		return controlErr
	}
	switch {
	case err != nil:
		return fmt.Errorf("it is no socket: %w", err)
	case kind != syscall.SOCK_STREAM:
		return errors.New("it is no stream socket; use ListenStream=")
	case accepts == 0:
		return errors.New("it does not listen; use Accept=no")
	}
	return nil
}
