package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"holdfast/adapters"
	"holdfast/adapters/health"
	"holdfast/adapters/port"
	"holdfast/adapters/reading"
	"holdfast/adapters/serial"
	"holdfast/broker/message"
	"holdfast/cmd/holdfast/config"
)

// replayOptions are the flags of serial replay.
type replayOptions struct {
	speed  float64
	wait   bool
	settle time.Duration
}

func serialReplay() *cobra.Command {
	var p portFlags
	var limit time.Duration
	var o replayOptions
	var device string
	c := &cobra.Command{
		Use:   "replay FILE [PORT]",
		Short: "Say again what was captured, on a port, to a program, or to an adapter",
		Long: `Say again what was captured, with its pauses, as the device did.

With a PORT it is sent there; a path is set as the file says, unless flags say
otherwise. Without one a pseudo terminal is made and its path printed, and the
replay begins when a program has opened that.

With --decode nothing is sent: what a serial device of the configuration would have
published of the capture is printed, as topic and payload. Silences and timeouts are
taken from the file, and nothing is waited for.`,
		Example: `  holdfast serial replay scale.capture --decode scale
  holdfast serial replay scale.capture --speed 10
  holdfast serial replay meter.capture /dev/ttyUSB1 --wait`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(c *cobra.Command, args []string) (err error) {
			switch {
			case o.speed < 0 || o.speed != o.speed:
				return &exitError{exitUsage, fmt.Errorf("--speed: %v is less than 0", o.speed)}
			case device != "" && len(args) > 1:
				return &exitError{exitUsage, errors.New("--decode sends nothing: it goes without a port")}
			}
			in := c.InOrStdin()
			if args[0] != orStdout {
				f, err := os.Open(args[0])
				if err != nil {
					return err
				}
				defer f.Close() //nolint:errcheck // it was only read
				in = f
			}
			captured, err := port.ReadCapture(in)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			ctx, cancel := forAWhile(c.Context(), limit)
			defer cancel()
			switch {
			case device != "":
				err = decodeCapture(ctx, captured, p.file, device, c.OutOrStdout(), c.ErrOrStderr())
			case len(args) > 1:
				err = replayToPort(ctx, c, captured, &p, args[1], o)
			default:
				err = replayToTerminal(ctx, captured, c.OutOrStdout(), o)
			}
			if line, ok := errors.AsType[*captureError](err); ok {
				return fmt.Errorf("%s: %w", args[0], line)
			}
			return err
		},
	}
	p.flags(c)
	f := c.Flags()
	f.DurationVar(&limit, "for", 0, "end after that long; 0: with the file")
	f.Float64Var(&o.speed, "speed", 1, "how many times as fast; 0: without pauses")
	f.BoolVar(&o.wait, "wait", false, `where the file has what was sent (">"), wait until that has come`)
	f.DurationVar(&o.settle, "settle", time.Second, "without a port: how long after a program has opened the terminal, and after the last byte")
	f.StringVar(&device, "decode", "", "print the readings that this device of the configuration makes of it")
	return c
}

// captureError is about the file with the capture.
type captureError struct{ err error }

func (e *captureError) Error() string { return e.err.Error() }
func (e *captureError) Unwrap() error { return e.err }

// eachChunk calls fn with the chunks of a capture.
func eachChunk(c *port.Capture, fn func(port.Chunk) error) error {
	for {
		chunk, err := c.Next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return &captureError{err}
		}
		if err := fn(chunk); err != nil {
			return err
		}
	}
}

func replayToPort(ctx context.Context, c *cobra.Command, captured *port.Capture, p *portFlags, name string, o replayOptions) error {
	opts, err := p.optionsOver(c, name, captured.Options)
	if err != nil {
		return err
	}
	line, err := openPort(ctx, opts)
	if err != nil {
		return err
	}
	err = sayAgain(ctx, captured, line, o)
	if err == nil && ctx.Err() == nil {
		err = line.Drain()
	}
	return errors.Join(err, line.Close())
}

// replayToTerminal replays to whoever opens the pseudo terminal that it makes.
func replayToTerminal(ctx context.Context, captured *port.Capture, out io.Writer, o replayOptions) (err error) {
	master, path, err := openTerminal()
	if err != nil {
		return fmt.Errorf("make a pseudo terminal: %w", err)
	}
	defer func() { err = errors.Join(err, master.Close()) }()
	tell(out, "%s\n", path)
	if !opened(ctx, master) || !pause(ctx, o.settle) {
		return nil
	}
	if err := sayAgain(ctx, captured, master, o); err != nil {
		return err
	}
	pause(ctx, o.settle) // or what nobody has read yet would be lost
	return nil
}

// pause waits; false if ctx has ended.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
	return ctx.Err() == nil
}

// openTerminal makes a pseudo terminal that hands on bytes as they are. The other
// end is not open.
func openTerminal() (master *os.File, path string, err error) {
	if master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		return nil, "", err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, master.Close())
		}
	}()
	var number int
	err = descriptor(master, func(fd int) (err error) {
		if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
			return err
		}
		number, err = unix.IoctlGetInt(fd, unix.TIOCGPTN)
		return err
	})
	if err != nil {
		return nil, "", err
	}
	path = fmt.Sprintf("/dev/pts/%d", number)
	// What the other end is set to stays with the pair. Opening it once also
	// makes the kernel say from then on whether it is open.
	slave, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, "", err
	}
	err = descriptor(slave, func(fd int) error {
		t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		if err != nil {
			return err
		}
		t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
		return unix.IoctlSetTermios(fd, unix.TCSETS, t)
	})
	return master, path, errors.Join(err, slave.Close())
}

// descriptor calls fn with the descriptor of f, which stays as it is.
func descriptor(f *os.File, fn func(fd int) error) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	err = rc.Control(func(fd uintptr) { ferr = fn(int(fd)) })
	return errors.Join(err, ferr)
}

// opened waits until the other end of a pseudo terminal is open; false if ctx
// ends. The kernel tells of it only when it is asked.
func opened(ctx context.Context, master *os.File) bool {
	for {
		var events int16
		err := descriptor(master, func(fd int) error {
			set := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
			_, err := unix.Poll(set, 0)
			events = set[0].Revents
			return err
		})
		if err == nil && events&unix.POLLHUP == 0 {
			return true
		}
		if !pause(ctx, 50*time.Millisecond) {
			return false
		}
	}
}

// stream is what a capture is replayed to.
type stream interface {
	io.ReadWriter
	SetReadDeadline(time.Time) error
}

// errOtherEnd says that what is waited for will not come.
var errOtherEnd = errors.New("the other end has closed the line before it said what is waited for")

// maxWaiting is how much that came and was not waited for is kept, in bytes.
const maxWaiting = 64 << 10

// sayAgain says what came in, and hears what the other end says, until the end or
// until ctx is done.
func sayAgain(ctx context.Context, captured *port.Capture, s stream, o replayOptions) error {
	in := make(chan []byte) // the reader waits
	ended := make(chan struct{})
	defer func() { _ = s.SetReadDeadline(time.Unix(1, 0)); <-ended }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		defer close(ended)
		for {
			b := make([]byte, 4096)
			n, err := s.Read(b)
			if err != nil {
				return // a Write says what is wrong
			}
			select {
			case in <- b[:n]:
			case <-ctx.Done():
				return
			}
		}
	}()
	if master, ok := s.(*os.File); ok {
		// A program that does not read holds a Write up.
		stop := context.AfterFunc(ctx, func() { _ = master.SetWriteDeadline(time.Unix(1, 0)) })
		defer stop()
	}
	var got []byte
	heard := func(b []byte) {
		got = append(got, b...)
		got = got[max(0, len(got)-maxWaiting):]
	}
	began := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	err := eachChunk(captured, func(c port.Chunk) error {
		at := time.Duration(0)
		if o.speed > 0 {
			at = time.Duration(float64(c.At) / o.speed)
		}
		if c.Sent {
			if !o.wait {
				return nil
			}
			for {
				if i := bytes.Index(got, c.Bytes); i >= 0 {
					got = got[i+len(c.Bytes):]
					break
				}
				select {
				case b := <-in:
					heard(b)
				case <-ended:
					return errOtherEnd
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			began = time.Now().Add(-at) // its answer comes as long after it as it did
			return nil
		}
		timer.Reset(time.Until(began.Add(at)))
		for waiting := true; waiting; {
			select {
			case b := <-in:
				heard(b)
			case <-timer.C:
				waiting = false
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		_, err := s.Write(c.Bytes)
		return err
	})
	if ctx.Err() != nil {
		return nil // it was to end
	}
	return err
}

// printed writes messages instead of publishing them.
type printed struct{ w io.Writer }

func (p printed) Publish(m *message.Message, done func(error)) error {
	payload := string(m.Payload)
	if !utf8.Valid(m.Payload) {
		payload = fmt.Sprintf("0x%x", m.Payload)
	}
	tell(p.w, "%s %s\n", m.Topic, payload)
	done(nil)
	return nil
}

// decodeCapture prints what the device publishes of a capture, and tells how it
// fared.
func decodeCapture(ctx context.Context, captured *port.Capture, file, device string, out, tale io.Writer) (err error) {
	cfg, err := config.Load(orDefault(file))
	if err != nil {
		return &exitError{exitConfig, err}
	}
	settings, ok := cfg.Devices[device]
	switch {
	case !ok:
		return &exitError{exitUsage, fmt.Errorf("there is no [device.%s]", device)}
	case settings.Serial == nil:
		return &exitError{exitUsage, fmt.Errorf("[device.%s] is none of adapter %q: there is nothing to decode by", device, config.AdapterSerial)}
	}
	quiet := slog.New(slog.DiscardHandler)
	line, err := port.NewLine(device, cfg.Ports[settings.Port].Options, quiet)
	if err != nil {
		return err
	}
	ropts := cfg.Readings
	ropts.OutboxOptions = adapters.DefaultOutboxOptions()
	outbox, err := adapters.NewOutbox("replay", printed{out}, ropts.OutboxOptions, quiet)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, outbox.Close(context.WithoutCancel(ctx))) }()
	readings, err := adapters.NewReadings(outbox, cfg.Gateway.ID, 0, ropts)
	if err != nil {
		return err
	}
	tracker, err := health.NewMonitor(func(health.Change) {}).Add(device, settings.Serial.Health)
	if err != nil {
		return err
	}
	opts := settings.Serial.Options
	opts.TopicPrefix = cfg.Gateway.Readings
	a, err := serial.New(device, opts, line, readings, tracker, reading.NewClock(), quiet)
	if err != nil {
		return err
	}
	start := reading.Stamp{Wall: captured.Started, Synchronised: !captured.Started.IsZero()}
	if captured.Started.IsZero() {
		start.Wall = time.Now()
	}
	last := port.Chunk{}
	err = eachChunk(captured, func(c port.Chunk) error {
		a.Replay(c, start)
		last.At = c.At
		for outbox.Status().Queued > 100 { // it must not drop any
			if !pause(ctx, time.Millisecond) {
				return ctx.Err()
			}
		}
		return ctx.Err()
	})
	a.Replay(last, start)
	st := a.Status()
	tell(tale, "%d frames with %d readings; %d rejected, %d ignored, %d with a wrong checksum, %d cut off, %d too long; %d bytes dropped\n",
		st.Frames, st.Readings, st.Rejected, st.Ignored, st.Checksum, st.Partial, st.Oversized, st.Garbage)
	if st.LastReject != "" {
		tell(tale, "last rejected: %s\n", st.LastReject)
	}
	if ctx.Err() != nil {
		return nil // it was to end
	}
	return err
}
