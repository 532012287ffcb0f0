package port

import (
	"errors"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

func TestRS485Settings(t *testing.T) {
	tests := map[string]struct {
		change func(*RS485)
		want   string // empty: valid
	}{
		"off":                    {func(*RS485) {}, ""},
		"in other words":         {func(r *RS485) { r.Mode = "on" }, `rs485: "on" is none of`},
		"a delay without a mode": {func(r *RS485) { r.DelayRTSAfterSend = time.Millisecond }, `rs485: is "off"`},
		"kernel":                 {func(r *RS485) { r.Mode = "kernel" }, ""},
		"kernel, all keys": {func(r *RS485) {
			*r = RS485{"kernel", false, true, time.Millisecond, 100 * time.Millisecond, true, true}
		}, ""},
		"kernel, longer than it can":            {func(r *RS485) { r.Mode, r.DelayRTSBeforeSend = "kernel", 101*time.Millisecond }, "delay_rts_before_send: 101ms is outside"},
		"kernel, finer than it can":             {func(r *RS485) { r.Mode, r.DelayRTSAfterSend = "kernel", 1500*time.Microsecond }, "delay_rts_after_send: 1.5ms is no whole"},
		"the same level before and after":       {func(r *RS485) { r.Mode, r.RTSAfterSend = "kernel", true }, "rts_after_send: is true like rts_on_send"},
		"rts":                                   {func(r *RS485) { r.Mode = "rts" }, ""},
		"rts, finer":                            {func(r *RS485) { r.Mode, r.DelayRTSAfterSend = "rts", 150*time.Microsecond }, ""},
		"rts, below zero":                       {func(r *RS485) { r.Mode, r.DelayRTSAfterSend = "rts", -1 }, "delay_rts_after_send: "},
		"rts, a resistor that no line switches": {func(r *RS485) { r.Mode, r.TerminateBus = "rts", true }, "terminate_bus: "},
	}
	for name, tt := range tests {
		o := DefaultOptions()
		o.Device = "/dev/ttyS0"
		tt.change(&o.RS485)
		err := o.Validate()
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.HasPrefix(err.Error(), tt.want)) {
			t.Errorf("%s: Validate = %v, want %q", name, err, tt.want)
		}
		warned := slices.ContainsFunc(o.Warnings(), func(w string) bool { return strings.HasPrefix(w, "rs485: ") })
		if warned != (o.RS485.Mode == RS485RTS) {
			t.Errorf("%s: Warnings = %q", name, o.Warnings())
		}
	}
}

// fakeKernel is a driver that can do what mask has, as uart_sanitize_serial_rs485
// leaves out the rest.
type fakeKernel struct {
	now  serialRS485
	mask uint32
	err  error
}

func (k *fakeKernel) call(req uint, s *serialRS485) error {
	if k.err != nil {
		return k.err
	}
	if req == unix.TIOCSRS485 {
		k.now = *s
		k.now.flags &= k.mask
		return nil
	}
	*s = k.now
	return nil
}

func TestKernelRS485(t *testing.T) {
	all := RS485{"kernel", true, false, 2 * time.Millisecond, 3 * time.Millisecond, true, true}
	const every = rs485Enabled | rs485RTSOnSend | rs485RTSAfterSend | rs485RXDuringTX | rs485TerminateBus
	tests := map[string]struct {
		kernel fakeKernel
		want   string // empty: done
	}{
		"can do it all":       {fakeKernel{mask: every}, ""},
		"cannot terminate":    {fakeKernel{mask: every &^ rs485TerminateBus}, "cannot do this terminate_bus"},
		"cannot do it at all": {fakeKernel{}, "cannot do this rs485, rts_on_send, rx_during_tx, terminate_bus"},
		"knows nothing of it": {fakeKernel{err: unix.ENOTTY}, `no RS-485 mode: use "off"`},
		"is unplugged":        {fakeKernel{err: unix.EIO}, "rs485: input/output error"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			k := tt.kernel
			_, err := setKernelRS485(k.call, all)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("set = %v, want %q", err, tt.want)
			}
			if want := (serialRS485{flags: every &^ rs485RTSAfterSend, before: 2, after: 3}); tt.want == "" && k.now != want {
				t.Errorf("the kernel was told %+v, want %+v", k.now, want)
			}
			if err != nil && k.now.flags != 0 {
				t.Errorf("a refused setting stays: %+v", k.now)
			}
		})
	}
}

// The real ioctl reaches the kernel: a pty says that it has no such thing, and
// without the key it is not asked.
func TestRS485OnAPortWithoutIt(t *testing.T) {
	for _, driver := range []string{DriverBugst, DriverTarm} {
		for mode, want := range map[string]string{RS485Off: "", RS485Kernel: "no RS-485 mode", RS485RTS: "no RTS line"} {
			_, o := ptyPort(t)
			o.Driver, o.RS485.Mode = driver, mode
			asked := false
			l := waitingLine(t, o)
			l.rs485 = func(fd int) ioctlRS485 { asked = true; return rs485Of(fd) }
			p, err := l.Open(t.Context())
			if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
				t.Errorf("%s, rs485 = %q: Open = %v, want %q", driver, mode, err, want)
			}
			if asked != (mode == RS485Kernel) {
				t.Errorf("rs485 = %q: the kernel was asked: %v", mode, asked)
			}
			if p != nil {
				p.Close()
			}
		}
	}
}

func ptyPort(t *testing.T) (*os.File, Options) {
	t.Helper()
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	o := DefaultOptions()
	o.Device = slave.Name()
	if err := slave.Close(); err != nil {
		t.Fatal(err)
	}
	return master, o
}

// The next user of the port finds it as it was.
func TestKernelRS485IsPutBack(t *testing.T) {
	_, o := ptyPort(t)
	o.RS485.Mode = RS485Kernel
	l := waitingLine(t, o)
	before := serialRS485{before: 7}
	k := &fakeKernel{now: before, mask: 0xff}
	l.rs485 = func(int) ioctlRS485 { return k.call }
	p, err := l.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if k.now.flags != rs485Enabled|rs485RTSOnSend {
		t.Errorf("open: %+v", k.now)
	}
	if p.Close(); k.now != before {
		t.Errorf("closed: %+v, want %+v", k.now, before)
	}
}

// recorder is the RTS line of a test.
type recorder struct {
	mu       sync.Mutex
	events   []string
	at       []time.Time
	shifting int // looks that find the last character still under way
	knows    bool
	err      error
}

func (r *recorder) setRTS(on bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	what := "receive"
	if on {
		what = "send"
	}
	r.events, r.at = append(r.events, what), append(r.at, time.Now())
	return r.err
}

func (r *recorder) empty() (is, known bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.shifting--
	return r.shifting < 0, r.knows
}

func TestSoftwareRS485(t *testing.T) {
	for _, knows := range []bool{true, false} {
		master, o := ptyPort(t)
		o.Baud = 1200
		o.RS485 = RS485{Mode: RS485RTS, RTSOnSend: true, DelayRTSBeforeSend: 5 * time.Millisecond, DelayRTSAfterSend: 7 * time.Millisecond}
		l := waitingLine(t, o)
		r := &recorder{knows: knows, shifting: 3}
		l.modem = func(int) modem { return r }
		p, err := l.Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		frame := []byte("12345678")
		if n, err := p.Write(frame); n != len(frame) || err != nil {
			t.Errorf("Write = %d, %v", n, err)
		}
		got := make([]byte, len(frame))
		if _, err := master.Read(got); err != nil || string(got) != string(frame) {
			t.Errorf("the device got %q, %v", got, err)
		}
		if want := []string{"receive", "send", "receive"}; !slices.Equal(r.events, want) {
			t.Fatalf("RTS: %v, want %v", r.events, want)
		}
		least := o.RS485.DelayRTSBeforeSend + o.RS485.DelayRTSAfterSend
		if knows {
			if r.shifting >= 0 {
				t.Error("the line was given back while the last character was under way")
			}
		} else {
			least += time.Duration(len(frame)) * o.CharTime()
		}
		if d := r.at[2].Sub(r.at[1]); d < least {
			t.Errorf("the line was ours for %v, want %v at least", d, least)
		}
		r.mu.Lock()
		r.err = unix.EIO
		r.mu.Unlock()
		if _, err := p.Write(frame); !errors.Is(err, ErrUnplugged) {
			t.Errorf("Write without a line = %v, want ErrUnplugged", err)
		}
		p.Close()
	}
}

// A port whose last character never leaves is stuck, and no bus waits for it
// for good.
func TestSoftwareRS485GivesUp(t *testing.T) {
	_, o := ptyPort(t)
	o.WriteTimeout = 30 * time.Millisecond
	o.RS485.Mode = RS485RTS
	l, err := NewLine("bus", o, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	l.modem = func(int) modem { return &recorder{knows: true, shifting: 1 << 30} }
	p, err := l.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if _, err := p.Write([]byte("x")); !errors.Is(err, ErrTimeout) || !errors.Is(err, ErrClosed) {
		t.Errorf("Write = %v, want ErrTimeout and ErrClosed", err)
	}
}
