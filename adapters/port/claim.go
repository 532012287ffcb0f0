package port

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// openOwn opens the device for ourselves and makes sure that nobody else has
// it: the driver's own means are not enough (root may ignore TIOCEXCL, and
// goserial does nothing).
func openOwn(path string) (fd int, err error) {
	fd, err = unix.Open(path, unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.EBUSY):
		return -1, fmt.Errorf("%s: %w (TIOCEXCL)", path, ErrBusy)
	case err != nil && vanished(err):
		return -1, fmt.Errorf("%s: %w: %w", path, ErrUnplugged, err)
	case err != nil:
		return -1, fmt.Errorf("%s: %w", path, err)
	}
	if err := ownable(fd); err != nil {
		return -1, errors.Join(fmt.Errorf("%s: %w", path, err), unix.Close(fd))
	}
	return fd, nil
}

// ownable checks that fd is a serial port and locks it.
func ownable(fd int) error {
	if _, err := unix.IoctlGetTermios(fd, unix.TCGETS); err != nil {
		if vanished(err) {
			// A ttyS without hardware behind it says EIO as well.
			return fmt.Errorf("%w: %w", ErrUnplugged, err)
		}
		return fmt.Errorf("not a serial port: %w", err)
	}
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("%w (locked)", ErrBusy)
		}
		return fmt.Errorf("lock: %w", err)
	}
	// Root may open a port that another has claimed; that does not make it
	// ours.
	if excl, err := unix.IoctlGetInt(fd, unix.TIOCGEXCL); err == nil && excl != 0 {
		return fmt.Errorf("%w (TIOCEXCL)", ErrBusy)
	}
	return nil
}

// claim finishes what a driver has opened at drv: nobody else gets the port,
// and it really is set as the options say. fd is our own descriptor.
func claim(fd, drv int, o Options) error {
	var ours, theirs unix.Stat_t
	if err := errors.Join(unix.Fstat(fd, &ours), unix.Fstat(drv, &theirs)); err != nil {
		return fmt.Errorf("look at descriptor: %w", err)
	}
	if ours.Rdev != theirs.Rdev || ours.Ino != theirs.Ino || ours.Dev != theirs.Dev {
		return fmt.Errorf("%w: the device changed while it was opened", ErrUnplugged)
	}
	pty := isPTY(&ours)
	excl := uint(unix.TIOCEXCL)
	if pty {
		// A pty keeps TIOCEXCL after its last close for as long as its
		// master is open: a gateway that was killed could never come back.
		// The lock is enough here.
		excl = unix.TIOCNXCL
	}
	if err := unix.IoctlSetInt(fd, excl, 0); err != nil {
		return fmt.Errorf("claim: %w", err)
	}
	return settle(fd, o, pty)
}

// isPTY tells a pseudo terminal's slave by its major number (Linux,
// Documentation/admin-guide/devices.txt: 136 to 143).
func isPTY(st *unix.Stat_t) bool {
	major := unix.Major(uint64(st.Rdev)) //nolint:unconvert // Rdev is 32 bits wide on some architectures
	return major >= 136 && major <= 143
}

// settle puts right what the drivers leave as the last user of the port had
// it, and checks that the port has taken the settings: many an adapter cannot
// do mark parity or five bits and does something else without a word.
func settle(fd int, o Options, pty bool) error {
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS2)
	if err != nil {
		return fmt.Errorf("read settings: %w", err)
	}
	// goserial leaves these alone, among them two stop bits and RTS/CTS.
	t.Iflag &^= unix.IXON | unix.IXOFF | unix.IXANY | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IUCLC |
		unix.ISTRIP | unix.BRKINT | unix.PARMRK
	// A character with a wrong parity becomes a zero byte, which no protocol
	// takes for data, instead of passing as it came.
	t.Iflag &^= unix.IGNPAR
	t.Oflag &^= unix.OPOST
	t.Lflag &^= unix.ICANON | unix.ECHO | unix.ECHOE | unix.ECHOK | unix.ECHONL | unix.ISIG | unix.IEXTEN
	t.Cflag &^= unix.CRTSCTS | unix.CSTOPB
	t.Cflag |= unix.CREAD | unix.CLOCAL
	if o.StopBits == 2 {
		t.Cflag |= unix.CSTOPB
	}
	if err := unix.IoctlSetTermios(fd, unix.TCSETS2, t); err != nil {
		return fmt.Errorf("set: %w", err)
	}
	if pty {
		return nil // a pty says 8N1 whatever it is told
	}
	if t, err = unix.IoctlGetTermios(fd, unix.TCGETS2); err != nil {
		return fmt.Errorf("read settings back: %w", err)
	}
	if bad := mismatches(t, o); bad != "" {
		return fmt.Errorf("the device cannot do %s", bad)
	}
	return nil
}

// mismatches names the keys that t does not fulfil; empty when it is as
// configured.
func mismatches(t *unix.Termios, o Options) string {
	var bad []string
	if got := dataBits(t); got != o.DataBits {
		bad = append(bad, fmt.Sprintf("data_bits = %d (it uses %d)", o.DataBits, got))
	}
	if got := parity(t); got != o.Parity {
		bad = append(bad, fmt.Sprintf("parity = %q (it uses %q)", o.Parity, got))
	}
	stop := 1
	if t.Cflag&unix.CSTOPB != 0 {
		stop = 2
	}
	if stop != o.StopBits {
		bad = append(bad, fmt.Sprintf("stop_bits = %d (it uses %d)", o.StopBits, stop))
	}
	// A UART tolerates some 4 % between both ends together; dividers of real
	// chips are off by up to 3 %. Some drivers report 0.
	if got := int(t.Ospeed); got != 0 && abs(got-o.Baud)*100 > 3*o.Baud {
		bad = append(bad, fmt.Sprintf("baud = %d (it uses %d)", o.Baud, got))
	}
	return strings.Join(bad, ", ")
}

func dataBits(t *unix.Termios) int {
	switch t.Cflag & unix.CSIZE {
	case unix.CS5:
		return 5
	case unix.CS6:
		return 6
	case unix.CS7:
		return 7
	default:
		return 8
	}
}

func parity(t *unix.Termios) string {
	switch t.Cflag & (unix.PARENB | unix.PARODD | unix.CMSPAR) {
	case unix.PARENB:
		return ParityEven
	case unix.PARENB | unix.PARODD:
		return ParityOdd
	case unix.PARENB | unix.CMSPAR:
		return ParitySpace
	case unix.PARENB | unix.PARODD | unix.CMSPAR:
		return ParityMark
	default:
		return ParityNone // PARODD without PARENB means nothing
	}
}

func abs(n int) int {
	if n < 0 {
		return -n
	}
	return n
}
