package port

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Port is one opening of a line. It reads and writes like a net.Conn. Read and
// Write may be called at the same time, and Close, SetReadDeadline and Discard
// at any time.
//
// Once it is closed or unplugged every method returns the reason, and none of
// them reaches the descriptor any more.
type Port struct {
	line *Line
	path string

	// own is our descriptor of the device, non-blocking and known to the
	// runtime's poller; ownRC gives access to its number.
	own   *os.File
	ownRC syscall.RawConn
	// hup is a duplicate of it, so that waiting for the device to vanish does
	// not get in the way of reading.
	hup *os.File

	modem    func(fd int) modem // nil unless rs485 = "rts"
	undirect func()             // nil unless rs485 = "kernel"

	writing sync.Mutex // one Write at a time, so that frames do not mix

	// use is read-locked around calls of the driver, none of which waits, and
	// locked to close it.
	use sync.RWMutex
	drv driver // guarded by use; nil once closed

	mu       sync.Mutex
	err      error // guarded by mu; why the port ended, nil while it is open
	closeErr error // guarded by mu; of the driver's close

	opened time.Time
	done   chan struct{} // closed when everything has been let go
	wg     sync.WaitGroup
}

// open opens the device at path. Nothing stays open after an error.
func open(l *Line, path string) (_ *Port, err error) {
	fd, err := openOwn(path)
	if err != nil {
		return nil, err
	}
	p := &Port{line: l, path: path, opened: time.Now(), done: make(chan struct{})}
	p.own = os.NewFile(uintptr(fd), path)
	defer func() {
		if err != nil {
			err = errors.Join(err, p.own.Close())
		}
	}()
	if err := p.own.SetDeadline(time.Time{}); err != nil {
		return nil, fmt.Errorf("wait for %s: %w", path, err)
	}
	if p.ownRC, err = p.own.SyscallConn(); err != nil {
		return nil, err
	}
	hup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate descriptor: %w", err)
	}
	p.hup = os.NewFile(uintptr(hup), path)
	defer func() {
		if err != nil {
			err = errors.Join(err, p.hup.Close())
		}
	}()
	if l.opts.Driver == DriverTarm {
		p.drv, err = openTarm(path, l.opts)
	} else {
		p.drv, err = openBugst(path, l.opts)
	}
	if err != nil {
		if vanished(err) {
			err = fmt.Errorf("%w: %w", ErrUnplugged, err)
		}
		return nil, fmt.Errorf("driver %s: %w", l.opts.Driver, err)
	}
	err = claim(fd, p.drv.fd(), l.opts)
	if err == nil {
		err = p.direct(fd)
	}
	if err != nil {
		return nil, errors.Join(err, p.drv.close())
	}
	l.setState("open", nil) // before watch may say otherwise
	p.wg.Go(p.watch)
	return p, nil
}

// direct sets up who switches a half-duplex line.
func (p *Port) direct(fd int) error {
	r := p.line.opts.RS485
	switch r.Mode {
	case RS485Kernel:
		call := p.line.rs485(fd)
		before, err := setKernelRS485(call, r)
		// Whoever has the port next finds it as it was: the kernel keeps
		// this beyond the last close. An error: the device is gone.
		p.undirect = func() { _ = call(unix.TIOCSRS485, &before) }
		return err
	case RS485RTS:
		p.modem = p.line.modem
		if err := p.modem(fd).setRTS(r.RTSAfterSend); err != nil {
			return fmt.Errorf("rs485: the port has no RTS line: %w", err)
		}
	default:
	}
	return nil
}

// tryRead returns what is there without waiting. An error means that the port
// is finished.
func (p *Port) tryRead(fd int, b []byte) (int, error) {
	p.use.RLock()
	defer p.use.RUnlock()
	if p.drv == nil {
		return 0, p.Err()
	}
	waiting, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
	if err != nil {
		return 0, p.lost(err)
	}
	if waiting == 0 {
		return 0, nil
	}
	n, err := p.drv.read(b)
	switch {
	case n > 0:
		return n, nil // an error, if any, comes again
	case err != nil:
		return 0, p.lost(err)
	}
	// Both "nothing after all" and "unplugged" look like this; the device is
	// gone if it does not answer.
	if _, err := unix.IoctlGetInt(fd, unix.TIOCINQ); err != nil {
		return 0, p.lost(err)
	}
	return 0, nil
}

// lost turns an error of the system or of a driver into ours.
func (p *Port) lost(err error) error {
	if vanished(err) || errors.Is(err, ErrUnplugged) {
		return fmt.Errorf("port %s: %w (%w)", p.line.name, ErrUnplugged, err)
	}
	return fmt.Errorf("port %s: %w", p.line.name, err)
}

// Read reads what has been received, at least one byte unless len(b) is 0. It
// waits until the deadline of SetReadDeadline and then returns [ErrTimeout].
// What does not fit into b stays for the next Read.
func (p *Port) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, p.Err()
	}
	var n int
	var err error
	werr := p.ownRC.Read(func(fd uintptr) bool {
		n, err = p.tryRead(int(fd), b)
		return n > 0 || err != nil
	})
	switch {
	case n > 0:
		p.line.count.bytesIn.Add(uint64(n))
		return n, nil
	case err != nil:
		return 0, p.end(err)
	case werr == nil:
		return 0, nil
	}
	if err := p.Err(); err != nil {
		return 0, err
	}
	if errors.Is(werr, os.ErrDeadlineExceeded) {
		p.line.count.readTimeouts.Add(1)
		return 0, ErrTimeout
	}
	return 0, p.end(p.lost(werr))
}

// SetReadDeadline sets until when Read waits, also one that waits already;
// zero means for good. It is not an error on a closed port.
func (p *Port) SetReadDeadline(t time.Time) error {
	p.mu.Lock() // shutdown must have the last word
	defer p.mu.Unlock()
	if p.err != nil {
		return nil
	}
	return p.own.SetReadDeadline(t)
}

// tryWrite writes what there is room for without waiting.
func (p *Port) tryWrite(b []byte) (int, error) {
	p.use.RLock()
	defer p.use.RUnlock()
	if p.drv == nil {
		return 0, p.Err()
	}
	n, err := p.drv.write(b)
	if err != nil {
		err = p.lost(err)
	}
	return n, err
}

// writeRecheck is how often a waiting Write looks for room by itself: not
// every driver reports room as soon as there is some.
const writeRecheck = 50 * time.Millisecond

// Write writes all of b to the kernel, which sends it at the line's pace. If
// that takes longer than Options.WriteTimeout the port is stuck (a full
// adapter, flow control, a device that reads no more): it is closed, and the
// error is both [ErrTimeout] and [ErrClosed]. n is what the kernel took. With
// rs485 = "rts" it returns when all is on the line and that is given back.
func (p *Port) Write(b []byte) (n int, err error) {
	p.writing.Lock()
	defer p.writing.Unlock()
	if err := p.Err(); err != nil {
		return 0, err
	}
	if p.modem != nil && len(b) > 0 {
		return p.transmit(b)
	}
	return p.write(b)
}

// write is Write without the lock, and without a look at the direction.
func (p *Port) write(b []byte) (n int, err error) {
	deadline := time.Now().Add(p.line.opts.WriteTimeout)
	for n < len(b) {
		if err := p.setWriteDeadline(earlier(deadline, time.Now().Add(writeRecheck))); err != nil {
			return n, p.end(p.lost(err))
		}
		werr := p.ownRC.Write(func(uintptr) bool {
			var m int
			m, err = p.tryWrite(b[n:])
			n += m
			p.line.count.bytesOut.Add(uint64(m))
			return err != nil || n == len(b)
		})
		switch {
		case err != nil:
			return n, p.end(err)
		case werr == nil:
			continue // all of it, or closed meanwhile
		}
		if err := p.Err(); err != nil {
			return n, err
		}
		if !errors.Is(werr, os.ErrDeadlineExceeded) {
			return n, p.end(p.lost(werr))
		}
		if !time.Now().Before(deadline) {
			return n, p.stuck(n, len(b))
		}
	}
	return n, nil
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func (p *Port) setWriteDeadline(t time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return nil
	}
	return p.own.SetWriteDeadline(t)
}

// stuck closes a port whose Write made no end.
func (p *Port) stuck(n, of int) error {
	p.shutdown(fmt.Errorf("port %s: %w after a write was stuck", p.line.name, ErrClosed), &p.line.count.stuckWrites)
	return fmt.Errorf("port %s: write stuck for %v at byte %d of %d: %w, %w",
		p.line.name, p.line.opts.WriteTimeout, n, of, ErrTimeout, ErrClosed)
}

// Drain waits until the kernel has sent all that was written, at most for
// Options.WriteTimeout; then the port is stuck and closed as by [Port.Write].
// An adapter on USB may still hold some characters.
func (p *Port) Drain() error {
	p.writing.Lock()
	defer p.writing.Unlock()
	deadline := time.Now().Add(p.line.opts.WriteTimeout)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		left, err := p.ioctl(unix.TIOCOUTQ)
		if err != nil {
			return err
		}
		if left == 0 {
			break
		}
		if !time.Now().Before(deadline) {
			return p.stuck(0, left)
		}
		// The kernel has no way to wait for this with a deadline. Half of the
		// time that the rest takes at least, within 1 to 20 ms, keeps both
		// the delay and the number of looks small.
		timer.Reset(min(max(time.Duration(left)*p.line.opts.CharTime()/2, time.Millisecond), 20*time.Millisecond))
		select {
		case <-timer.C:
		case <-p.done:
			return p.Err()
		}
	}
	return nil
}

// SetBaud changes the rate, as in Options.Baud, until the port is closed. What has
// been written and not been sent yet would go at the new one: see [Port.Drain]. An
// error leaves the port open as it was, unless the device is gone.
func (p *Port) SetBaud(baud int) error {
	p.writing.Lock()
	defer p.writing.Unlock()
	o := p.line.opts
	o.Baud = baud
	if err := o.Validate(); err != nil {
		return err
	}
	err := p.setBaud(baud)
	if errors.Is(err, ErrUnplugged) {
		return p.end(err)
	}
	return err
}

func (p *Port) setBaud(baud int) error {
	p.use.RLock()
	defer p.use.RUnlock()
	if p.drv == nil {
		return p.Err()
	}
	if err := p.drv.setBaud(p.line.opts, baud); err != nil {
		return p.lost(err)
	}
	return nil
}

// Discard throws away what has been received and not read, and returns how
// many bytes that was.
func (p *Port) Discard() (int, error) {
	n, err := p.ioctl(unix.TIOCINQ)
	if err != nil {
		return 0, err
	}
	err = p.control(func(fd int) error { return unix.IoctlSetInt(fd, unix.TCFLSH, unix.TCIFLUSH) })
	if err != nil {
		return 0, err
	}
	p.line.count.discarded.Add(uint64(n))
	return n, nil
}

// ioctl asks the device for a number.
func (p *Port) ioctl(req uint) (n int, err error) {
	err = p.control(func(fd int) (err error) { n, err = unix.IoctlGetInt(fd, req); return err })
	return n, err
}

// control calls f with our descriptor and ends the port if it fails.
func (p *Port) control(f func(fd int) error) error {
	if err := p.Err(); err != nil {
		return err
	}
	var err error
	if cerr := p.ownRC.Control(func(fd uintptr) { err = f(int(fd)) }); cerr != nil {
		if err := p.Err(); err != nil {
			return err
		}
		return p.end(p.lost(cerr))
	}
	if err != nil {
		return p.end(p.lost(err))
	}
	return nil
}

// watch waits for the device to vanish. A port that nobody is reading must
// let go of it as well, or it gets another name when it comes back.
func (p *Port) watch() {
	rc, err := p.hup.SyscallConn()
	if err == nil {
		var gone error
		err = rc.Read(func(fd uintptr) bool {
			_, gone = unix.IoctlGetInt(int(fd), unix.TIOCINQ)
			return gone != nil
		})
		if err == nil {
			err = gone
		}
	}
	p.end(p.lost(err)) //nolint:errcheck // the first reason counts, and this may be a Close
}

// end closes the port for the reason given, unless it has ended already, and
// returns the reason that counts.
func (p *Port) end(cause error) error {
	count := &p.line.count.errors
	if errors.Is(cause, ErrUnplugged) {
		count = &p.line.count.unplugged
	}
	if p.shutdown(cause, count) {
		p.line.say(slog.LevelWarn, "port lost", "device", p.path, "err", cause)
	}
	return p.Err()
}

// shutdown lets go of the device, counts that, and says whether this call was
// the first. The order matters: first nobody starts anything new, then those who wait
// wake up, then nobody is inside the driver, then the descriptors go.
func (p *Port) shutdown(cause error, count *atomic.Uint64) bool {
	p.mu.Lock()
	if p.err != nil {
		p.mu.Unlock()
		return false
	}
	p.err = cause
	count.Add(1)
	// A deadline in the past; an error means it is closed, which is as good.
	_ = p.own.SetDeadline(time.Unix(1, 0))
	p.mu.Unlock()

	p.use.Lock()
	drv := p.drv
	p.drv = nil
	p.use.Unlock()
	err := p.ownRC.Control(func(fd uintptr) {
		// The kernel would otherwise wait up to 30 s in close(2) for output
		// that a stuck device does not take. Errors: it is unplugged.
		_ = unix.IoctlSetInt(int(fd), unix.TCFLSH, unix.TCIOFLUSH)
		if p.undirect != nil {
			p.undirect()
		}
		_ = unix.IoctlSetInt(int(fd), unix.TIOCNXCL, 0)
	})
	err = errors.Join(err, drv.close(), p.hup.Close(), p.own.Close())
	state := "closed"
	if errors.Is(cause, ErrUnplugged) {
		state = "absent"
	}
	if errors.Is(cause, ErrClosed) {
		cause = nil
	}
	p.line.setState(state, cause)
	if time.Since(p.opened) >= settled {
		p.line.forgive()
	}
	p.mu.Lock()
	p.closeErr = err
	p.mu.Unlock()
	close(p.done)
	return true
}

// Close closes the port and wakes a Read or Write that waits, which return
// [ErrClosed]. Output that has not been sent is thrown away; see [Port.Drain].
// It returns when everything has been let go. Closing again is no error.
func (p *Port) Close() error {
	first := p.shutdown(fmt.Errorf("port %s: %w", p.line.name, ErrClosed), &p.line.count.closes)
	<-p.done
	p.wg.Wait()
	if !first {
		return nil
	}
	p.line.say(slog.LevelInfo, "port closed", "device", p.path)
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closeErr
}

// Done is closed when the port has ended, for whatever reason.
func (p *Port) Done() <-chan struct{} { return p.done }

// Err returns why the port ended; nil while it is open.
func (p *Port) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// Path returns the device file that is open.
func (p *Port) Path() string { return p.path }

// Options returns how the port is configured.
func (p *Port) Options() Options { return p.line.opts }
