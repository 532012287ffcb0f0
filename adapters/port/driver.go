package port

import (
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"syscall"
	"time"

	tarm "github.com/tarm/goserial"
	bugst "go.bug.st/serial"
	"golang.org/x/sys/unix"
)

// driver is an open port of one of the two libraries, tamed: no method waits.
// Port calls them under its lock and never after close.
type driver interface {
	// read returns what is there, at most len(b); 0 and nil for nothing.
	read(b []byte) (int, error)
	// write returns how much there was room for, perhaps 0.
	write(b []byte) (int, error)
	// setBaud changes the rate; the other settings stay those of o.
	setBaud(o Options, baud int) error
	// fd is the driver's descriptor.
	fd() int
	close() error
}

// maxSelect is one more than the highest descriptor that select(2) can watch.
// bugst panics with one above (x/sys/unix.FdSet indexes out of its range).
const maxSelect = unix.FD_SETSIZE

// bugstPort is a port of go.bug.st/serial. Its Write is a bare write(2) on a
// remembered descriptor number, closed or not, and may block for good; its
// Read panics when the number is beyond select; its descriptor is inherited by
// child processes. All of that is cured by knowing the number.
type bugstPort struct {
	p      bugst.Port
	handle int
	high   bool // its Read would panic
}

// bugstMode is how the library says what o says.
func bugstMode(o Options) *bugst.Mode {
	mode := &bugst.Mode{BaudRate: o.Baud, DataBits: o.DataBits, StopBits: bugst.OneStopBit}
	if o.StopBits == 2 {
		mode.StopBits = bugst.TwoStopBits
	}
	switch o.Parity {
	case ParityOdd:
		mode.Parity = bugst.OddParity
	case ParityEven:
		mode.Parity = bugst.EvenParity
	case ParityMark:
		mode.Parity = bugst.MarkParity
	case ParitySpace:
		mode.Parity = bugst.SpaceParity
	default:
		mode.Parity = bugst.NoParity
	}
	return mode
}

func openBugst(path string, o Options) (driver, error) {
	// The library opens without O_CLOEXEC; the lock keeps a child from being
	// started before that is put right, as the os package does.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	p, err := bugst.Open(path, bugstMode(o))
	if err != nil {
		return nil, plainBugst(err)
	}
	handle, pipe, err := bugstDescriptors(p)
	if err != nil {
		return nil, errors.Join(err, p.Close())
	}
	unix.CloseOnExec(handle)
	for _, fd := range pipe {
		unix.CloseOnExec(fd)
	}
	b := &bugstPort{p: p, handle: handle, high: handle >= maxSelect || slicesMax(pipe) >= maxSelect}
	if err := unix.SetNonblock(handle, true); err != nil {
		return nil, errors.Join(fmt.Errorf("set non-blocking: %w", err), p.Close())
	}
	if err := p.SetReadTimeout(0); err != nil {
		return nil, errors.Join(plainBugst(err), p.Close())
	}
	return b, nil
}

func slicesMax(fds []int) int {
	m := -1
	for _, fd := range fds {
		m = max(m, fd)
	}
	return m
}

// bugstDescriptors reads the descriptor numbers that the library keeps to
// itself. The version is pinned and a test opens a port, so a change of its
// insides is noticed when the version is raised.
func bugstDescriptors(p bugst.Port) (handle int, pipe []int, err error) {
	v := reflect.Indirect(reflect.ValueOf(p))
	if v.Kind() != reflect.Struct {
		return 0, nil, fmt.Errorf("driver bugst: port is a %v", v.Kind())
	}
	h := v.FieldByName("handle")
	signal := reflect.Indirect(v.FieldByName("closeSignal"))
	if !h.IsValid() || !h.CanInt() || !signal.IsValid() || signal.Kind() != reflect.Struct {
		return 0, nil, errors.New("driver bugst: unknown version, its descriptor cannot be found")
	}
	for _, name := range []string{"rd", "wr"} {
		f := signal.FieldByName(name)
		if !f.IsValid() || !f.CanInt() {
			return 0, nil, errors.New("driver bugst: unknown version, its pipe cannot be found")
		}
		pipe = append(pipe, int(f.Int()))
	}
	return int(h.Int()), pipe, nil
}

// plainBugst turns the library's errors into ours where there is one.
func plainBugst(err error) error {
	if pe, ok := errors.AsType[*bugst.PortError](err); ok {
		switch pe.Code() {
		case bugst.PortBusy:
			return fmt.Errorf("%w: %w", ErrBusy, err)
		case bugst.PortNotFound, bugst.PortClosed:
			return fmt.Errorf("%w: %w", ErrUnplugged, err)
		case bugst.PermissionDenied:
			return fmt.Errorf("%w: %w", os.ErrPermission, err)
		default:
		}
	}
	return err
}

func (b *bugstPort) read(p []byte) (int, error) {
	if b.high {
		// What the library does once select has said yes. A gateway with a
		// thousand clients must still be able to open its ports again.
		return plainIO(unix.Read(b.handle, p))
	}
	n, err := b.p.Read(p)
	if err != nil {
		err = plainBugst(err)
	}
	return plainIO(n, err)
}

func (b *bugstPort) write(p []byte) (int, error) { return plainIO(b.p.Write(p)) }
func (b *bugstPort) setBaud(o Options, baud int) error {
	o.Baud = baud
	if err := b.p.SetMode(bugstMode(o)); err != nil {
		return plainBugst(err)
	}
	return nil
}

func (b *bugstPort) fd() int      { return b.handle }
func (b *bugstPort) close() error { return b.p.Close() }

// errNoBaud is of driver tarm; who needs a change asks for another driver.
var errNoBaud = errors.New(`driver "tarm" cannot change the baud rate of an open port; driver "bugst" can`)

// plainIO makes "not now" a count without an error.
func plainIO(n int, err error) (int, error) {
	n = max(n, 0)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		err = nil
	}
	return n, err
}

// tarmPort is a port of github.com/tarm/goserial, which is the os.File it
// opened. Its EOF means "nothing for a while" as well as "unplugged"; Port
// tells them apart by asking the device.
type tarmPort struct {
	f   *os.File
	rc  syscall.RawConn
	num int
}

// tarmReadTimeout is the shortest goserial can do. Without one, its Close
// waits for a Read to end, and that for a byte that may never come.
const tarmReadTimeout = 100 * time.Millisecond

func openTarm(path string, o Options) (driver, error) {
	rwc, err := tarm.OpenPort(&tarm.Config{Name: path, Baud: o.Baud, ReadTimeout: tarmReadTimeout})
	if err != nil {
		if errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("%w: %w", ErrBusy, err)
		}
		return nil, err
	}
	f, ok := rwc.(*os.File)
	if !ok || f == nil {
		return nil, errors.Join(fmt.Errorf("driver tarm: unknown version, its port is a %T", rwc), closeIfAny(rwc))
	}
	t := &tarmPort{f: f}
	if t.rc, err = f.SyscallConn(); err == nil {
		var ferr error
		err = t.rc.Control(func(fd uintptr) {
			t.num = int(fd)
			// goserial made it blocking; a write could then wait for good.
			ferr = unix.SetNonblock(t.num, true)
		})
		err = errors.Join(err, ferr)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("set non-blocking: %w", err), f.Close())
	}
	return t, nil
}

func closeIfAny(c io.Closer) error {
	if c == nil || reflect.ValueOf(c).IsZero() {
		return nil
	}
	return c.Close()
}

func (t *tarmPort) read(p []byte) (n int, err error) {
	if cerr := t.rc.Read(func(fd uintptr) bool { n, err = unix.Read(int(fd), p); return true }); cerr != nil {
		return 0, cerr
	}
	return plainIO(n, err)
}

func (t *tarmPort) write(p []byte) (n int, err error) {
	if cerr := t.rc.Write(func(fd uintptr) bool { n, err = unix.Write(int(fd), p); return true }); cerr != nil {
		return 0, cerr
	}
	return plainIO(n, err)
}

// setBaud is what goserial cannot do.
func (*tarmPort) setBaud(Options, int) error { return errNoBaud }

func (t *tarmPort) fd() int      { return t.num }
func (t *tarmPort) close() error { return t.f.Close() }
