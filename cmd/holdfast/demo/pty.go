package demo

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// plug is the device's end of a serial line: the master of a pty whose other
// end the gateway opens by a name that stays, as /dev/serial/by-id does. It can
// be unplugged and plugged in again.
//
// The other end is not kept open here: the gateway asks for exclusive use, and
// after a kill it would find its own old claim there.
type plug struct {
	name string // path of the symbolic link to the other end

	mu     sync.Mutex
	master *os.File // guarded by mu; nil while unplugged
}

// plugIn makes a new line, and the link lead to it.
func (p *plug) plugIn() error {
	master, path, err := openPTY()
	if err != nil {
		return fmt.Errorf("open a pty: %w", err)
	}
	fresh := p.name + ".new"
	if err := errors.Join(os.Symlink(path, fresh), os.Rename(fresh, p.name)); err != nil {
		return errors.Join(fmt.Errorf("name the pty: %w", err), master.Close())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.master = master
	return nil
}

// unplug makes the line vanish; it may be called again.
func (p *plug) unplug() error {
	p.mu.Lock()
	master := p.master
	p.master = nil
	p.mu.Unlock()
	if master == nil {
		return nil
	}
	err := os.Remove(p.name)
	return errors.Join(err, master.Close())
}

func (p *plug) file() *os.File {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.master
}

// openPTY opens a pty in raw mode and returns its master, which has deadlines,
// and the path of its other end.
func openPTY() (master *os.File, path string, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, "", err
	}
	master = os.NewFile(uintptr(fd), "/dev/ptmx")
	defer func() {
		if err != nil {
			err = errors.Join(err, master.Close())
			master = nil
		}
	}()
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return master, "", fmt.Errorf("unlock: %w", err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		return master, "", fmt.Errorf("number: %w", err)
	}
	// Until the gateway has opened the other end and set it, an echo would
	// answer every line. On Linux the two ends share these settings.
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return master, "", fmt.Errorf("settings: %w", err)
	}
	t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
	t.Cflag = unix.CS8 | unix.CREAD | unix.CLOCAL | unix.B9600
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, t); err != nil {
		return master, "", fmt.Errorf("raw mode: %w", err)
	}
	return master, fmt.Sprintf("/dev/pts/%d", n), nil
}

// patient is a master on which reading waits while nobody has the other end
// open, where a pty reports an error.
type patient struct{ *os.File }

// Read reads as the file does, until its deadline.
func (p patient) Read(b []byte) (int, error) {
	for {
		n, err := p.File.Read(b)
		if n > 0 || !errors.Is(err, syscall.EIO) {
			return n, err
		}
		<-time.After(20 * time.Millisecond) // nothing tells of an opening
	}
}

var _ io.ReadWriter = patient{}
