package port

import (
	"errors"
	"fmt"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Who switches an RS-485 transceiver between sending and receiving.
const (
	RS485Off    = "off"    // nobody here: the adapter does, as nearly all on USB do
	RS485Kernel = "kernel" // the port's driver in the kernel (TIOCSRS485)
	RS485RTS    = "rts"    // this program, by the RTS line
)

// RS485 are the settings of a half-duplex line; they are named as in the
// kernel (Documentation/driver-api/serial/serial-rs485.rst).
type RS485 struct {
	// Mode is "off", "kernel" or "rts".
	Mode string `toml:"rs485"`
	// RTSOnSend and RTSAfterSend are the logical level of RTS while sending
	// and after it; they differ.
	RTSOnSend    bool `toml:"rts_on_send"`
	RTSAfterSend bool `toml:"rts_after_send"`
	// DelayRTSBeforeSend is from the switching of RTS to the first character,
	// DelayRTSAfterSend from the last one to the switching back; 0 to 100ms,
	// whole milliseconds in mode "kernel".
	DelayRTSBeforeSend time.Duration `toml:"delay_rts_before_send"`
	DelayRTSAfterSend  time.Duration `toml:"delay_rts_after_send"`
	// RXDuringTX lets one hear what one sends.
	RXDuringTX bool `toml:"rx_during_tx"`
	// TerminateBus switches the terminating resistor on, where there is one
	// that can be; only in mode "kernel".
	TerminateBus bool `toml:"terminate_bus"`
}

// defaultRS485 leaves the port alone: some adapters on USB break on the query.
func defaultRS485() RS485 { return RS485{Mode: RS485Off, RTSOnSend: true} }

// maxRTSDelay is the kernel's own limit; it cuts longer ones short in silence.
const maxRTSDelay = 100 * time.Millisecond

func (r RS485) validate() error {
	switch r.Mode {
	case RS485Off:
		if off := defaultRS485(); r != off {
			return errors.New(`rs485: is "off"; the rts_*, delay_rts_*, rx_during_tx and terminate_bus keys need "kernel" or "rts"`)
		}
		return nil
	case RS485Kernel, RS485RTS:
	default:
		return fmt.Errorf(`rs485: %q is none of "off", "kernel", "rts"`, r.Mode)
	}
	if r.RTSOnSend == r.RTSAfterSend {
		return fmt.Errorf("rts_after_send: is %v like rts_on_send; they differ, or the line is never given back", r.RTSAfterSend)
	}
	for key, d := range map[string]time.Duration{"delay_rts_before_send": r.DelayRTSBeforeSend, "delay_rts_after_send": r.DelayRTSAfterSend} {
		if d < 0 || d > maxRTSDelay {
			return fmt.Errorf("%s: %v is outside 0s..100ms", key, d)
		}
		if r.Mode == RS485Kernel && d%time.Millisecond != 0 {
			return fmt.Errorf(`%s: %v is no whole number of milliseconds, which is all that rs485 = "kernel" can do`, key, d)
		}
	}
	if r.Mode == RS485RTS && r.TerminateBus {
		return errors.New(`terminate_bus: needs rs485 = "kernel"`)
	}
	return nil
}

func (r RS485) warnings() []string {
	if r.Mode != RS485RTS {
		return nil
	}
	return []string{`rs485: "rts" switches the line by software, some 0.1 ms late and much later on a busy machine: ` +
		`a device that answers at once loses its first characters; "kernel" is exact where the port can do it`}
}

// serialRS485 is struct serial_rs485 of linux/serial.h.
type serialRS485 struct {
	flags, before, after uint32 // delays in milliseconds
	_                    [5]uint32
}

// The flags of struct serial_rs485.
const (
	rs485Enabled      = 1 << 0
	rs485RTSOnSend    = 1 << 1
	rs485RTSAfterSend = 1 << 2
	rs485RXDuringTX   = 1 << 4
	rs485TerminateBus = 1 << 5
)

func (r RS485) kernel() serialRS485 {
	s := serialRS485{
		flags:  rs485Enabled,
		before: uint32(r.DelayRTSBeforeSend / time.Millisecond),
		after:  uint32(r.DelayRTSAfterSend / time.Millisecond),
	}
	for bit, on := range map[uint32]bool{
		rs485RTSOnSend: r.RTSOnSend, rs485RTSAfterSend: r.RTSAfterSend,
		rs485RXDuringTX: r.RXDuringTX, rs485TerminateBus: r.TerminateBus,
	} {
		if on {
			s.flags |= bit
		}
	}
	return s
}

// ioctlRS485 is the ioctl on an open port; tests have another.
type ioctlRS485 func(req uint, s *serialRS485) error

func rs485Of(fd int) ioctlRS485 {
	return func(req uint, s *serialRS485) error {
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(req), uintptr(unsafe.Pointer(s))); errno != 0 { //nolint:gosec // as unix.IoctlSetTermios does
			return errno
		}
		return nil
	}
}

// setKernelRS485 has the kernel switch the line, and returns how the port was
// set before. What the driver cannot do it leaves out in silence, so it is
// asked again.
func setKernelRS485(call ioctlRS485, r RS485) (before serialRS485, err error) {
	err = call(unix.TIOCGRS485, &before)
	want, got := r.kernel(), serialRS485{}
	if err == nil {
		set := want
		err = call(unix.TIOCSRS485, &set)
	}
	if err == nil {
		err = call(unix.TIOCGRS485, &got)
	}
	switch {
	case errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP):
		return before, fmt.Errorf(`rs485: the port's driver has no RS-485 mode: use "off" if the adapter switches by itself, else "rts": %w`, err)
	case err != nil:
		return before, fmt.Errorf("rs485: %w", err)
	}
	var bad []string
	for _, c := range []struct {
		key       string
		got, want uint32
	}{
		{"rs485", got.flags & rs485Enabled, want.flags & rs485Enabled},
		{"rts_on_send", got.flags & rs485RTSOnSend, want.flags & rs485RTSOnSend},
		{"rts_after_send", got.flags & rs485RTSAfterSend, want.flags & rs485RTSAfterSend},
		{"rx_during_tx", got.flags & rs485RXDuringTX, want.flags & rs485RXDuringTX},
		{"terminate_bus", got.flags & rs485TerminateBus, want.flags & rs485TerminateBus},
		{"delay_rts_before_send", got.before, want.before},
		{"delay_rts_after_send", got.after, want.after},
	} {
		if c.got != c.want {
			bad = append(bad, c.key)
		}
	}
	if bad != nil {
		return before, errors.Join(fmt.Errorf("the device cannot do this %s: it uses flags %#x, delays %d and %d ms",
			strings.Join(bad, ", "), got.flags, got.before, got.after), call(unix.TIOCSRS485, &before))
	}
	return before, nil
}

// modem is the part of a port that switches the line in mode "rts"; tests have
// another.
type modem interface {
	// setRTS sets the logical level of RTS.
	setRTS(on bool) error
	// empty says whether the last bit has left the port; known is false when
	// the driver cannot tell.
	empty() (is, known bool)
}

type fdModem int

func (fd fdModem) setRTS(on bool) error {
	req := uint(unix.TIOCMBIC)
	if on {
		req = unix.TIOCMBIS
	}
	return unix.IoctlSetPointerInt(int(fd), req, unix.TIOCM_RTS)
}

// lineStatusEmpty is TIOCSER_TEMT of asm-generic/ioctls.h.
const lineStatusEmpty = 1

func (fd fdModem) empty() (is, known bool) {
	status, err := unix.IoctlGetInt(int(fd), unix.TIOCSERGETLSR)
	return err == nil && status&lineStatusEmpty != 0, err == nil
}

// transmit is write in mode "rts": it returns when the line has been given
// back.
func (p *Port) transmit(b []byte) (n int, err error) {
	r := p.line.opts.RS485
	rts := func(on bool) error {
		return p.control(func(fd int) error { return p.modem(fd).setRTS(on) })
	}
	if err := rts(r.RTSOnSend); err != nil {
		return 0, err
	}
	exactly(r.DelayRTSBeforeSend)
	start := time.Now()
	if n, err = p.write(b); err != nil {
		return n, err // the port is closed, and with it RTS falls
	}
	if err := p.sent(start.Add(time.Duration(n) * p.line.opts.CharTime())); err != nil {
		return n, err
	}
	exactly(r.DelayRTSAfterSend)
	if !r.RXDuringTX {
		// No answer can be there: the line is still ours.
		if _, err := p.Discard(); err != nil {
			return n, err
		}
	}
	return n, rts(r.RTSAfterSend)
}

// sent waits until the last bit is on the line: at the earliest at the time
// given, and as long as the port says that it has something left.
func (p *Port) sent(earliest time.Time) error {
	char := p.line.opts.CharTime()
	deadline := time.Now().Add(p.line.opts.WriteTimeout)
	for {
		left, err := p.ioctl(unix.TIOCOUTQ)
		if err != nil {
			return err
		}
		empty, known := true, true
		if err := p.control(func(fd int) error { empty, known = p.modem(fd).empty(); return nil }); err != nil {
			return err
		}
		now := time.Now()
		switch {
		case left == 0 && empty && known:
			return nil
		case left == 0 && !known && !now.Before(earliest):
			return nil
		case !now.Before(deadline):
			return p.stuck(0, left)
		case left == 0 && !known:
			exactly(earliest.Sub(now))
		default:
			exactly(min(max(time.Duration(left)*char/2, char/4, 20*time.Microsecond), 20*time.Millisecond))
		}
	}
}

// exactly sleeps in the kernel: the runtime's timers round to a millisecond,
// which at 115200 baud is eleven characters.
func exactly(d time.Duration) {
	if d <= 0 {
		return
	}
	ts := unix.NsecToTimespec(int64(d))
	for unix.Nanosleep(&ts, &ts) != nil { // a signal; ts is what is left
	}
}
