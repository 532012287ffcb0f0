package serial_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"holdfast/adapters"
	"holdfast/adapters/health"
	"holdfast/adapters/port"
	"holdfast/adapters/reading"
	"holdfast/adapters/serial"
	"holdfast/broker/message"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 10 * time.Second

// publisher hands messages to the test and acknowledges them.
type publisher chan *message.Message

func (p publisher) Publish(m *message.Message, done func(error)) error {
	p <- m
	done(nil)
	return nil
}

// rig is a running adapter on a pty that can be unplugged and plugged in.
type rig struct {
	t       *testing.T
	link    string // the port's device: a link to the slave, as udev makes them
	master  *os.File
	out     publisher
	changes chan health.Change
	adapter *serial.Adapter
	outbox  *adapters.Outbox
	stop    func() error // cancels Run and returns its error
}

func start(t *testing.T, driver string, o serial.Options) *rig {
	t.Helper()
	return startAt(t, driver, port.DefaultOptions().Baud, o)
}

func startAt(t *testing.T, driver string, baud int, o serial.Options) *rig {
	t.Helper()
	r := &rig{
		t: t, link: filepath.Join(t.TempDir(), "scale"),
		out: make(publisher, 1000), changes: make(chan health.Change, 1000),
	}
	log := slog.New(slog.DiscardHandler)
	po := port.DefaultOptions()
	po.Device, po.Driver, po.Baud = r.link, driver, baud
	line, err := port.NewLine("tty", po, log)
	if err != nil {
		t.Fatal(err)
	}
	monitor := health.NewMonitor(func(c health.Change) { r.changes <- c })
	tracker, err := monitor.Add("scale", health.DefaultOptions())
	if err != nil {
		t.Fatal(err)
	}
	if r.outbox, err = adapters.NewOutbox("scale", r.out, adapters.DefaultOutboxOptions(), log); err != nil {
		t.Fatal(err)
	}
	readings, err := adapters.NewReadings(r.outbox, "gw", 0, adapters.DefaultReadingsOptions())
	if err != nil {
		t.Fatal(err)
	}
	if r.adapter, err = serial.New("scale", o, line, readings, tracker, reading.NewClock(), log); err != nil {
		t.Fatal(err)
	}
	r.plug()
	r.run()
	t.Cleanup(func() {
		r.stop()
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := r.outbox.Close(ctx); err != nil {
			t.Error(err)
		}
		r.master.Close()
	})
	r.expectState(health.Unknown)
	return r
}

func (r *rig) run() {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.adapter.Run(ctx) }()
	r.stop = func() error {
		cancel()
		select {
		case err := <-ended:
			ended <- err
			return err
		case <-time.After(patience):
			r.t.Fatal("Run did not end")
			return nil
		}
	}
}

// plug makes a new pty pair and links to it.
func (r *rig) plug() {
	r.t.Helper()
	master, slave, err := pty.Open()
	if err != nil {
		r.t.Fatal(err)
	}
	tio, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
	if err != nil {
		r.t.Fatal(err)
	}
	tio.Lflag &^= unix.ECHO | unix.ICANON // until the port is opened
	if err := unix.IoctlSetTermios(int(slave.Fd()), unix.TCSETS, tio); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Symlink(slave.Name(), r.link); err != nil {
		r.t.Fatal(err)
	}
	slave.Close()
	r.master = master
}

func (r *rig) unplug() {
	r.t.Helper()
	os.Remove(r.link)
	r.master.Close()
}

// open waits until the port has been opened that many times: what is sent
// before is stale and thrown away.
func (r *rig) open(times uint64) {
	r.t.Helper()
	deadline := time.After(patience)
	for r.adapter.Status().Port.Opens < times {
		select {
		case <-time.After(time.Millisecond):
		case <-deadline:
			r.t.Fatalf("port was not opened: %+v", r.adapter.Status().Port)
		}
	}
}

// say sends a line until a reading comes of it that begins with prefix: what
// the adapter finds in the kernel when it opens the port is thrown away.
func (r *rig) say(line, prefix string) *message.Message {
	r.t.Helper()
	deadline := time.After(patience)
	for {
		r.master.WriteString(line)
		again := time.After(100 * time.Millisecond)
		for waiting := true; waiting; {
			select {
			case m := <-r.out:
				if strings.HasPrefix(string(m.Payload), prefix) {
					return m
				}
			case <-again:
				waiting = false
			case <-deadline:
				r.t.Fatalf("no reading of %q: %+v", line, r.adapter.Status())
			}
		}
	}
}

// await returns the next message on a topic whose payload begins with prefix;
// what say had to repeat is skipped.
func (r *rig) await(topic, prefix string) *message.Message {
	r.t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case m := <-r.out:
			if m.Topic == topic && strings.HasPrefix(string(m.Payload), prefix) {
				return m
			}
		case <-deadline:
			r.t.Fatalf("no reading %s %s...: %+v", topic, prefix, r.adapter.Status())
		}
	}
}

func (r *rig) expectState(want health.State) health.Change {
	r.t.Helper()
	select {
	case c := <-r.changes:
		if c.State != want {
			r.t.Fatalf("device became %v (%s), want %v", c.State, c.Reason, want)
		}
		return c
	case <-time.After(patience):
		r.t.Fatalf("device did not become %v", want)
		return health.Change{}
	}
}

func weightOptions() serial.Options {
	o := serial.DefaultOptions()
	o.Pattern = `^W=(?P<weight>[-0-9.]+)kg S=(?P<stable>\w+)$`
	o.Ignore = `^#`
	o.Points = []serial.Point{
		{Name: "weight", Unit: "kg", Scale: 0.1},
		{Name: "stable", Type: serial.TypeBool},
	}
	return o
}

func eachDriver(t *testing.T, o serial.Options, f func(r *rig)) {
	t.Helper()
	for _, d := range []string{port.DriverBugst, port.DriverTarm} {
		t.Run(d, func(t *testing.T) { f(start(t, d, o)) })
	}
}

func TestLinesBecomeReadings(t *testing.T) {
	eachDriver(t, weightOptions(), func(r *rig) {
		t := r.t
		r.open(1)
		m := r.say("W=125kg S=yes\r\n", `{"value":12.5,`)
		r.expectState(health.Online)
		if m.Topic != "sensors/scale/weight" || m.QoS != 1 || m.Retain {
			t.Errorf("message %+v", m)
		}
		var got struct {
			Value         float64
			Unit, Quality string
			Time          time.Time
		}
		if err := json.Unmarshal(m.Payload, &got); err != nil {
			t.Fatalf("%s: %v", m.Payload, err)
		}
		if got.Value != 12.5 || got.Unit != "kg" || got.Quality != "good" || time.Since(got.Time) > time.Minute {
			t.Errorf("payload %s", m.Payload)
		}
		r.await("sensors/scale/stable", `{"value":true,`)
		before := r.adapter.Status()
		r.master.WriteString("# banner\r\n\r\nW=1x\r\n" + string(make([]byte, 3000)) + "\nW=3kg S=no\n")
		r.await("sensors/scale/weight", `{"value":0.3,`)
		r.await("sensors/scale/stable", `{"value":false,`)
		after := r.adapter.Status()
		if d := after.Rejected - before.Rejected; d != 1 {
			t.Errorf("%d frames rejected, want 1", d)
		}
		if d := after.Ignored - before.Ignored; d != 2 {
			t.Errorf("%d frames ignored, want 2 (banner and empty line)", d)
		}
		if d := after.Oversized - before.Oversized; d != 1 {
			t.Errorf("%d frames oversized, want 1", d)
		}
	})
}

func TestUnplugMakesOfflineAndReplugOnline(t *testing.T) {
	eachDriver(t, weightOptions(), func(r *rig) {
		t := r.t
		r.open(1)
		r.say("W=1kg S=yes\n", `{"value":0.1,`)
		r.expectState(health.Online)
		r.unplug()
		if c := r.expectState(health.Offline); c.Reason == "" {
			t.Error("offline without a reason")
		}
		r.plug() // Run goes on by itself
		r.open(2)
		r.say("W=2kg S=yes\n", `{"value":0.2,`)
		r.expectState(health.Online)
	})
}

func TestStopEndsRunAndIsNoFailure(t *testing.T) {
	eachDriver(t, weightOptions(), func(r *rig) {
		r.open(1)
		if err := r.stop(); !errors.Is(err, context.Canceled) {
			r.t.Errorf("Run = %v, want context.Canceled", err)
		}
		if len(r.changes) != 0 {
			r.t.Errorf("stopping changed the device's state: %v", <-r.changes)
		}
	})
}

func TestNoiseMakesOffline(t *testing.T) {
	eachDriver(t, weightOptions(), func(r *rig) {
		r.open(1)
		r.say("W=1kg S=yes\n", `{"value":0.1,`)
		r.expectState(health.Online)
		r.master.WriteString("\xff\xfe\n\xff\n?\n")
		if c := r.expectState(health.Offline); c.Reason == "" {
			r.t.Error("offline without a reason")
		}
		if s := r.adapter.Status(); s.Rejected < 3 || s.LastReject == "" {
			r.t.Errorf("Status %+v", s)
		}
	})
}

func TestPausedFrameIsDropped(t *testing.T) {
	o := weightOptions()
	o.FrameTimeout = 50 * time.Millisecond
	eachDriver(t, o, func(r *rig) {
		r.open(1)
		r.say("W=1kg S=yes\n", `{"value":0.1,`)
		r.master.WriteString("W=99")
		deadline := time.After(patience)
		for r.adapter.Status().Partial == 0 {
			select {
			case <-time.After(time.Millisecond):
			case <-deadline:
				r.t.Fatal("the paused frame was kept")
			}
		}
		r.master.WriteString("W=2kg S=yes\n")
		r.await("sensors/scale/weight", `{"value":0.2,`)
	})
}
