package port_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"holdfast/adapters/port"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is far longer than anything here takes; it only ends a test that
// would hang.
const patience = 10 * time.Second

var drivers = []string{port.DriverBugst, port.DriverTarm}

// pair is a test with a pty pair: master is the device's side, the options
// lead to the other.
type pair struct {
	*testing.T
	master *os.File
	o      port.Options
}

// eachDriver runs f once per driver with a fresh pair.
func eachDriver(t *testing.T, f func(t pair)) {
	t.Helper()
	for _, d := range drivers {
		t.Run(d, func(t *testing.T) {
			master, o := device(t)
			o.Driver = d
			f(pair{t, master, o})
		})
	}
}

// device makes a pty pair and options for its slave side.
func device(tb testing.TB) (*os.File, port.Options) {
	tb.Helper()
	master, slave, err := pty.Open()
	if err != nil {
		tb.Fatalf("open a pty: %v", err)
	}
	tb.Cleanup(func() { master.Close() })
	name := slave.Name()
	raw(tb, slave)
	if err := slave.Close(); err != nil {
		tb.Fatal(err)
	}
	o := port.DefaultOptions()
	o.Device = name
	return master, o
}

// raw turns off echo, which would send back what the master writes before the
// port is opened.
func raw(tb testing.TB, f *os.File) {
	tb.Helper()
	tio, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		tb.Fatal(err)
	}
	tio.Lflag &^= unix.ECHO | unix.ICANON
	if err := unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, tio); err != nil {
		tb.Fatal(err)
	}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func open(tb testing.TB, o port.Options) *port.Port {
	tb.Helper()
	p, err := port.Open(tb.Context(), o, quiet())
	if err != nil {
		tb.Fatalf("Open(%s): %v", o.Device, err)
	}
	tb.Cleanup(func() { p.Close() })
	return p
}

func readAll(tb testing.TB, r io.Reader, n int) []byte {
	tb.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		tb.Fatalf("read %d bytes: %v", n, err)
	}
	return b
}

func deadline(tb testing.TB, p *port.Port, d time.Duration) {
	tb.Helper()
	if err := p.SetReadDeadline(time.Now().Add(d)); err != nil {
		tb.Fatal(err)
	}
}

// within fails the test if f does not return soon.
func within(tb testing.TB, what string, f func()) {
	tb.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(patience):
		tb.Fatalf("%s did not return within %v", what, patience)
	}
}

func TestBytesPassBothWaysUnchanged(t *testing.T) {
	eachDriver(t, func(t pair) {
		master, o := t.master, t.o
		p := open(t, o)
		deadline(t, p, patience)
		// Every byte value, control characters included, more than a tty
		// buffers.
		want := bytes.Repeat(everyByte(), 64)
		var wg sync.WaitGroup
		wg.Go(func() { master.Write(want) })
		if got := readAll(t, p, len(want)); !bytes.Equal(got, want) {
			t.Error("what was read differs from what the device sent")
		}
		wg.Wait()
		wg.Go(func() {
			if n, err := p.Write(want); n != len(want) || err != nil {
				t.Errorf("Write = %d, %v, want %d, nil", n, err, len(want))
			}
		})
		if got := readAll(t, master, len(want)); !bytes.Equal(got, want) {
			t.Error("what the device got differs from what was written")
		}
		wg.Wait()
		if err := p.Drain(); err != nil {
			t.Errorf("Drain: %v", err)
		}
	})
}

func everyByte() []byte {
	b := make([]byte, 256)
	for i := range b {
		b[i] = byte(i)
	}
	return b
}

func TestWhatDoesNotFitStaysForTheNextRead(t *testing.T) {
	eachDriver(t, func(t pair) {
		master, o := t.master, t.o
		p := open(t, o)
		deadline(t, p, patience)
		master.WriteString("abcdef")
		var got []byte
		for len(got) < 6 {
			b := make([]byte, 1)
			n, err := p.Read(b)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, b[:n]...)
		}
		if string(got) != "abcdef" {
			t.Errorf("read %q byte by byte, want %q", got, "abcdef")
		}
	})
}

func TestReadTimesOutAndGoesOn(t *testing.T) {
	eachDriver(t, func(t pair) {
		master, o := t.master, t.o
		p := open(t, o)
		deadline(t, p, 30*time.Millisecond)
		start := time.Now()
		n, err := p.Read(make([]byte, 8))
		if n != 0 || !errors.Is(err, port.ErrTimeout) || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Read on a silent line = %d, %v, want 0, ErrTimeout", n, err)
		}
		if d := time.Since(start); d < 30*time.Millisecond {
			t.Errorf("Read timed out after %v, want 30ms at least", d)
		}
		master.WriteString("x")
		deadline(t, p, patience)
		if got := readAll(t, p, 1); got[0] != 'x' {
			t.Errorf("read %q after a timeout, want x", got)
		}
	})
}

func TestDeadlineInThePastWakesAWaitingRead(t *testing.T) {
	eachDriver(t, func(t pair) {
		o := t.o
		p := open(t, o)
		started := make(chan struct{})
		result := make(chan error, 1)
		go func() {
			close(started)
			_, err := p.Read(make([]byte, 1))
			result <- err
		}()
		<-started
		if err := p.SetReadDeadline(time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
		within(t, "the waiting Read", func() {
			if err := <-result; !errors.Is(err, port.ErrTimeout) {
				t.Errorf("Read = %v, want ErrTimeout", err)
			}
		})
	})
}

func TestCloseWakesAWaitingRead(t *testing.T) {
	eachDriver(t, func(t pair) {
		o := t.o
		p := open(t, o)
		const readers = 4
		started := make(chan struct{}, readers)
		result := make(chan error, readers)
		for range readers {
			go func() {
				started <- struct{}{}
				_, err := p.Read(make([]byte, 1))
				result <- err
			}()
		}
		for range readers {
			<-started
		}
		within(t, "Close", func() {
			if err := p.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		})
		for range readers {
			if err := <-result; !errors.Is(err, port.ErrClosed) || !errors.Is(err, os.ErrClosed) {
				t.Errorf("Read = %v, want ErrClosed", err)
			}
		}
		if err := p.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
	})
}

func TestUnplugWakesAWaitingReadAndLetsGo(t *testing.T) {
	eachDriver(t, func(t pair) {
		master, o := t.master, t.o
		before := descriptors(t, o.Device)
		p := open(t, o)
		result := make(chan error, 1)
		go func() { _, err := p.Read(make([]byte, 1)); result <- err }()
		master.Close()
		within(t, "Read on an unplugged port", func() {
			if err := <-result; !errors.Is(err, port.ErrUnplugged) {
				t.Errorf("Read = %v, want ErrUnplugged", err)
			}
			<-p.Done()
		})
		if n := descriptors(t, o.Device); n != before {
			t.Errorf("%d descriptors of the unplugged device are still open", n-before)
		}
		if _, err := p.Write([]byte("x")); !errors.Is(err, port.ErrUnplugged) {
			t.Errorf("Write = %v, want ErrUnplugged", err)
		}
		if _, err := p.Discard(); !errors.Is(err, port.ErrUnplugged) {
			t.Errorf("Discard = %v, want ErrUnplugged", err)
		}
		if err := p.Drain(); !errors.Is(err, port.ErrUnplugged) {
			t.Errorf("Drain = %v, want ErrUnplugged", err)
		}
	})
}

func TestUnplugOfAnIdlePortLetsGo(t *testing.T) {
	eachDriver(t, func(t pair) {
		master, o := t.master, t.o
		before := descriptors(t, o.Device)
		p := open(t, o)
		master.Close()
		within(t, "Done", func() { <-p.Done() })
		if n := descriptors(t, o.Device); n != before {
			t.Errorf("%d descriptors of the unplugged device are still open", n-before)
		}
		if !errors.Is(p.Err(), port.ErrUnplugged) {
			t.Errorf("Err = %v, want ErrUnplugged", p.Err())
		}
	})
}

// descriptors counts this process's descriptors of a device file.
func descriptors(tb testing.TB, path string) int {
	tb.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		tb.Fatal(err)
	}
	n := 0
	for _, e := range entries {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.HasPrefix(to, path) {
			n++
		}
	}
	return n
}

// With bugst alone, 29 bytes of a late Write landed in a database file that
// had got the descriptor's number.
func TestWriteAfterCloseNeverReachesAnotherFile(t *testing.T) {
	eachDriver(t, func(t pair) {
		master, o := t.master, t.o
		p := open(t, o)
		go io.Copy(io.Discard, master)
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						p.Write([]byte("these 29 bytes are for a meter")[:29])
					}
				}
			})
		}
		if err := p.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		// Take over every number the port had, while the writers go on.
		var files []*os.File
		for i := range 64 {
			f, err := os.Create(filepath.Join(t.TempDir(), "database"))
			if err != nil {
				t.Fatal(i, err)
			}
			files = append(files, f)
		}
		for range 100 {
			if n, err := p.Write([]byte("for a meter")); n != 0 || !errors.Is(err, port.ErrClosed) {
				t.Fatalf("Write after Close = %d, %v, want 0, ErrClosed", n, err)
			}
		}
		close(stop)
		wg.Wait()
		for _, f := range files {
			if info, err := f.Stat(); err != nil || info.Size() != 0 {
				t.Errorf("%d bytes of a late Write landed in another file (%v)", info.Size(), err)
			}
			f.Close()
		}
	})
}

func TestReadAfterCloseNeverReachesAnotherFile(t *testing.T) {
	eachDriver(t, func(t pair) {
		o := t.o
		p := open(t, o)
		p.Close()
		name := filepath.Join(t.TempDir(), "database")
		if err := os.WriteFile(name, everyByte(), 0o600); err != nil {
			t.Fatal(err)
		}
		for range 64 {
			f, err := os.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
		}
		if n, err := p.Read(make([]byte, 8)); n != 0 || !errors.Is(err, port.ErrClosed) {
			t.Errorf("Read after Close = %d, %v, want 0, ErrClosed", n, err)
		}
		if n, err := p.Discard(); n != 0 || !errors.Is(err, port.ErrClosed) {
			t.Errorf("Discard after Close = %d, %v, want 0, ErrClosed", n, err)
		}
	})
}

func TestStuckWriteClosesThePort(t *testing.T) {
	eachDriver(t, func(t pair) {
		o := t.o
		o.WriteTimeout = 100 * time.Millisecond
		l := line(t, o)
		p, err := l.Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		// Nobody reads the other side; it takes some kilobytes, not a
		// megabyte.
		within(t, "a stuck Write", func() {
			n, err := p.Write(make([]byte, 1<<20))
			if n == 1<<20 || !errors.Is(err, port.ErrTimeout) || !errors.Is(err, port.ErrClosed) {
				t.Errorf("Write = %d, %v, want fewer and ErrTimeout and ErrClosed", n, err)
			}
		})
		_, err = p.Read(make([]byte, 1))
		if !errors.Is(err, port.ErrClosed) || errors.Is(err, port.ErrTimeout) {
			t.Errorf("Read = %v, want ErrClosed and no ErrTimeout, which would mean: go on", err)
		}
		if s := l.Status(); s.StuckWrites != 1 || s.State != "closed" {
			t.Errorf("Status says %d stuck writes, state %s, want 1, closed", s.StuckWrites, s.State)
		}
	})
}

func TestCloseFreesAStuckWrite(t *testing.T) {
	eachDriver(t, func(t pair) {
		o := t.o
		o.WriteTimeout = 10 * time.Minute
		l := line(t, o)
		p, err := l.Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		result := make(chan error, 1)
		go func() { _, err := p.Write(make([]byte, 1<<20)); result <- err }()
		for last := uint64(0); ; { // until it makes no progress
			n := l.Status().BytesOut
			if n > 0 && n == last {
				break
			}
			last = n
			<-time.After(20 * time.Millisecond)
		}
		within(t, "Close", func() { p.Close() })
		within(t, "the stuck Write", func() {
			if err := <-result; !errors.Is(err, port.ErrClosed) {
				t.Errorf("Write = %v, want ErrClosed", err)
			}
		})
	})
}

func TestSlowDeviceGetsEverything(t *testing.T) {
	eachDriver(t, func(t pair) {
		master, o := t.master, t.o
		p := open(t, o)
		want := bytes.Repeat(everyByte(), 256) // 64 KiB through a buffer of 4
		result := make(chan error, 1)
		go func() { _, err := p.Write(want); result <- err }()
		got := make([]byte, 0, len(want))
		b := make([]byte, 777)
		for len(got) < len(want) {
			n, err := master.Read(b)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, b[:n]...)
		}
		if err := <-result; err != nil {
			t.Errorf("Write: %v", err)
		}
		if !bytes.Equal(got, want) {
			t.Error("the device got something else")
		}
	})
}

func TestBusyPort(t *testing.T) {
	for _, first := range drivers {
		for _, second := range drivers {
			t.Run(first+" then "+second, func(t *testing.T) {
				_, o := device(t)
				o.Driver = first
				p := open(t, o)
				o.Driver = second
				before := descriptors(t, o.Device)
				if q, err := port.Open(t.Context(), o, quiet()); !errors.Is(err, port.ErrBusy) {
					t.Errorf("second Open = %v, %v, want ErrBusy", q, err)
				}
				if n := descriptors(t, o.Device); n != before {
					t.Errorf("a refused Open left %d descriptors open", n-before)
				}
				p.Close()
				open(t, o)
			})
		}
	}
}

func TestPortClaimedByAnotherProgramIsBusy(t *testing.T) {
	claims := map[string]func(fd int) error{
		"by flock":    func(fd int) error { return unix.Flock(fd, unix.LOCK_EX) },
		"by TIOCEXCL": func(fd int) error { return unix.IoctlSetInt(fd, unix.TIOCEXCL, 0) },
	}
	for how, claim := range claims {
		t.Run(how, func(t *testing.T) {
			eachDriver(t, func(t pair) {
				o := t.o
				other, err := os.OpenFile(o.Device, os.O_RDWR|unix.O_NOCTTY, 0)
				if err != nil {
					t.Fatal(err)
				}
				defer other.Close()
				if err := claim(int(other.Fd())); err != nil {
					t.Fatal(err)
				}
				if p, err := port.Open(t.Context(), o, quiet()); !errors.Is(err, port.ErrBusy) {
					t.Errorf("Open = %v, %v, want ErrBusy", p, err)
				}
			})
		})
	}
}

// A killed process cannot give up TIOCEXCL, and a pty remembers it.
func TestPtyIsNotLeftExclusive(t *testing.T) {
	eachDriver(t, func(t pair) {
		o := t.o
		p := open(t, o)
		f, err := os.OpenFile(o.Device, os.O_RDWR|unix.O_NOCTTY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if excl, err := unix.IoctlGetInt(int(f.Fd()), unix.TIOCGEXCL); err != nil || excl != 0 {
			t.Errorf("TIOCGEXCL = %d, %v, want 0", excl, err)
		}
		p.Close()
	})
}

// bugst panics in select with such a descriptor.
func TestDescriptorBeyondSelect(t *testing.T) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if limit.Cur < 1200 {
		limit.Cur = min(1200, limit.Max)
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			t.Fatal(err)
		}
	}
	var hold []*os.File
	defer func() {
		for _, f := range hold {
			f.Close()
		}
	}()
	for {
		f, err := os.Open("/dev/null")
		if err != nil {
			t.Fatalf("open a thousand files: %v", err)
		}
		hold = append(hold, f)
		if f.Fd() > 1030 {
			break
		}
	}
	eachDriver(t, func(t pair) {
		master, o := t.master, t.o
		p := open(t, o)
		deadline(t, p, patience)
		master.WriteString("ping")
		if got := readAll(t, p, 4); string(got) != "ping" {
			t.Errorf("read %q, want ping", got)
		}
		if _, err := p.Write([]byte("pong")); err != nil {
			t.Fatal(err)
		}
		if got := readAll(t, master, 4); string(got) != "pong" {
			t.Errorf("device got %q, want pong", got)
		}
		result := make(chan error, 1)
		go func() { _, err := p.Read(make([]byte, 1)); result <- err }()
		master.Close()
		within(t, "Read on an unplugged port", func() {
			if err := <-result; !errors.Is(err, port.ErrUnplugged) {
				t.Errorf("Read = %v, want ErrUnplugged", err)
			}
		})
	})
}

func TestDescriptorsAreNotInherited(t *testing.T) {
	eachDriver(t, func(t pair) {
		o := t.o
		open(t, o)
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			to, err := os.Readlink("/proc/self/fd/" + e.Name())
			if err != nil || to != o.Device {
				continue
			}
			info, err := os.ReadFile("/proc/self/fdinfo/" + e.Name())
			if err != nil {
				t.Fatal(err)
			}
			// flags are octal; O_CLOEXEC is 02000000.
			for l := range strings.Lines(string(info)) {
				if flags, ok := strings.CutPrefix(l, "flags:"); ok {
					flags = strings.TrimSpace(flags)
					if len(flags) < 7 || (flags[len(flags)-7]-'0')&2 == 0 {
						t.Errorf("descriptor %s has flags %s, without O_CLOEXEC", e.Name(), flags)
					}
				}
			}
		}
	})
}

// goserial leaves what the last user of the port had set.
func TestSettingsOfTheLastUserDoNotStay(t *testing.T) {
	eachDriver(t, func(t pair) {
		o := t.o
		f, err := os.OpenFile(o.Device, os.O_RDWR|unix.O_NOCTTY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		tio, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
		if err != nil {
			t.Fatal(err)
		}
		tio.Cflag |= unix.CSTOPB | unix.CRTSCTS
		tio.Iflag |= unix.INLCR | unix.IGNCR | unix.IXON | unix.ISTRIP
		tio.Oflag |= unix.OPOST
		if err := unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, tio); err != nil {
			t.Fatal(err)
		}
		open(t, o)
		tio, err = unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
		if err != nil {
			t.Fatal(err)
		}
		if tio.Cflag&(unix.CSTOPB|unix.CRTSCTS) != 0 || tio.Iflag&(unix.INLCR|unix.IGNCR|unix.IXON|unix.ISTRIP) != 0 || tio.Oflag&unix.OPOST != 0 {
			t.Errorf("flags of the last user stay: cflag %#o iflag %#o oflag %#o", tio.Cflag, tio.Iflag, tio.Oflag)
		}
	})
}

func TestDiscardThrowsAwayWhatWasReceived(t *testing.T) {
	eachDriver(t, func(t pair) {
		master, o := t.master, t.o
		l := line(t, o)
		p, err := l.Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		master.WriteString("late answer")
		deadline(t, p, patience)
		readAll(t, p, 1) // all of it has arrived by now
		n, err := p.Discard()
		if n != len("ate answer") || err != nil {
			t.Errorf("Discard = %d, %v, want 10, nil", n, err)
		}
		master.WriteString("new")
		if got := readAll(t, p, 3); string(got) != "new" {
			t.Errorf("read %q after Discard, want new", got)
		}
		if s := l.Status(); s.Discarded != 10 || s.BytesIn != 4 {
			t.Errorf("Status: %d discarded, %d in, want 10, 4", s.Discarded, s.BytesIn)
		}
	})
}

func line(tb testing.TB, o port.Options) *port.Line {
	tb.Helper()
	l, err := port.NewLine("rs485", o, quiet())
	if err != nil {
		tb.Fatal(err)
	}
	return l
}

func TestReplugIsNoticedAndCountersGoOn(t *testing.T) {
	eachDriver(t, func(t pair) {
		master, o := t.master, t.o
		link := filepath.Join(t.TempDir(), "meter") // as udev's by-id links
		if err := os.Symlink(o.Device, link); err != nil {
			t.Fatal(err)
		}
		o.Device = link
		l := line(t, o)
		p, err := l.Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		master.Close()
		os.Remove(link)
		<-p.Done()
		if s := l.Status(); s.State != "absent" || s.Unplugged != 1 {
			t.Errorf("unplugged: state %s, count %d, want absent, 1", s.State, s.Unplugged)
		}
		if _, err := l.Open(t.Context()); !errors.Is(err, port.ErrUnplugged) {
			t.Errorf("Open without a device = %v, want ErrUnplugged", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		waited := make(chan error, 1)
		go func() { waited <- l.Wait(ctx) }()
		_, again := device(t)
		if err := os.Symlink(again.Device, link); err != nil {
			t.Fatal(err)
		}
		if err := <-waited; err != nil {
			t.Fatalf("Wait: %v", err)
		}
		p, err = l.Open(ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		if s := l.Status(); s.Opens != 2 || s.OpenFailures != 1 || s.State != "open" || s.Path != link {
			t.Errorf("Status after replug = %+v", s)
		}
	})
}

func TestWaitEndsWithItsContext(t *testing.T) {
	o := port.DefaultOptions()
	o.Device = filepath.Join(t.TempDir(), "absent")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := line(t, o).Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Wait = %v, want context.Canceled", err)
	}
}

func TestOpenWhatIsNoSerialPort(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{file, "/dev/null"} {
		o := port.DefaultOptions()
		o.Device = name
		if p, err := port.Open(t.Context(), o, quiet()); err == nil || !strings.Contains(err.Error(), "not a serial port") {
			t.Errorf("Open(%s) = %v, %v, want: not a serial port", name, p, err)
		}
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "data" {
		t.Errorf("the file holds %q now (%v)", b, err)
	}
}

func TestConcurrentUseAndClose(t *testing.T) {
	eachDriver(t, func(t pair) {
		master, o := t.master, t.o
		go io.Copy(master, master) // an echo
		for range 20 {
			p := open(t, o)
			var wg sync.WaitGroup
			wg.Go(func() {
				b := make([]byte, 16)
				for {
					if _, err := p.Read(b); err != nil {
						return
					}
				}
			})
			for range 2 {
				wg.Go(func() {
					for {
						if _, err := p.Write([]byte("hello")); err != nil {
							return
						}
						p.Discard()
						p.SetReadDeadline(time.Time{})
					}
				})
			}
			wg.Go(func() { p.Drain(); p.Close() })
			wg.Go(func() { p.Close() })
			within(t, "users of a closed port", wg.Wait)
		}
	})
}

// Two hundred times an adapter is pulled out in the middle of something: every
// call returns, nothing lands in a file that got one of its numbers, and no
// descriptor stays.
func TestReplugsLeaveNothingBehind(t *testing.T) {
	const replugs = 200
	for _, d := range drivers {
		t.Run(d, func(t *testing.T) {
			dir := t.TempDir()
			link := filepath.Join(dir, "meter")
			o := port.DefaultOptions()
			o.Device, o.Driver = link, d
			l := line(t, o)
			before := allDescriptors(t)
			for i := range replugs {
				master, slave, err := pty.Open()
				if err != nil {
					t.Fatal(err)
				}
				raw(t, slave)
				if err := errors.Join(os.Symlink(slave.Name(), link), slave.Close()); err != nil {
					t.Fatal(err)
				}
				p, err := l.Open(t.Context())
				if err != nil {
					t.Fatalf("replug %d: %v", i, err)
				}
				var wg sync.WaitGroup
				busy := make(chan struct{}, 2)
				again := func(what string, f func() error) {
					wg.Go(func() {
						busy <- struct{}{}
						for {
							if err := f(); err != nil {
								if !errors.Is(err, port.ErrUnplugged) {
									t.Errorf("replug %d: %s = %v, want ErrUnplugged", i, what, err)
								}
								return
							}
						}
					})
				}
				again("Read", func() error { _, err := p.Read(make([]byte, 16)); return err })
				if i%2 == 0 {
					again("Write", func() error { _, err := p.Write(make([]byte, 3000)); return err }) // fills up
				} else {
					again("Drain", func() error { return errors.Join(p.Drain(), p.SetReadDeadline(time.Time{})) })
				}
				<-busy
				<-busy
				if err := errors.Join(master.Close(), os.Remove(link)); err != nil {
					t.Fatal(err)
				}
				// Files that take over the numbers as they become free.
				var files []*os.File
				for range 8 {
					f, err := os.CreateTemp(dir, "database")
					if err != nil {
						t.Fatal(err)
					}
					files = append(files, f)
				}
				within(t, "users of an unplugged port", wg.Wait)
				within(t, "Close", func() { p.Close() })
				for _, f := range files {
					if info, err := f.Stat(); err != nil || info.Size() != 0 {
						t.Errorf("replug %d: something landed in another file (%v)", i, err)
					}
					if err := errors.Join(f.Close(), os.Remove(f.Name())); err != nil {
						t.Fatal(err)
					}
				}
			}
			if n := allDescriptors(t); n != before {
				t.Errorf("%d descriptors before, %d after", before, n)
			}
			if s := l.Status(); s.Opens != replugs || s.Unplugged != replugs {
				t.Errorf("Status: %d opens, %d unplugged, want %d of each", s.Opens, s.Unplugged, replugs)
			}
		})
	}
}

// allDescriptors counts this process's descriptors.
func allDescriptors(tb testing.TB) int {
	tb.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		tb.Fatal(err)
	}
	return len(entries)
}
