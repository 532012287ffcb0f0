package modbus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"holdfast/adapters/health"
	"holdfast/adapters/modbus/modbustest"
	"holdfast/adapters/port"
	"holdfast/adapters/reading"
	"holdfast/broker/message"
)

// patience only ends a test that would hang.
const patience = 20 * time.Second

// openPty returns the master of a raw pty and the path of its other side.
func openPty(tb testing.TB) (master *os.File, path string) {
	tb.Helper()
	master, slave, err := pty.Open()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { master.Close() })
	path = slave.Name()
	rc, err := slave.SyscallConn()
	if err != nil {
		tb.Fatal(err)
	}
	var ioctlErr error
	err = rc.Control(func(fd uintptr) {
		var t *unix.Termios
		if t, ioctlErr = unix.IoctlGetTermios(int(fd), unix.TCGETS); ioctlErr != nil {
			return
		}
		t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
		t.Cflag = t.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
		ioctlErr = unix.IoctlSetTermios(int(fd), unix.TCSETS, t)
	})
	if err := errors.Join(err, ioctlErr, slave.Close()); err != nil {
		tb.Fatal(err)
	}
	return master, path
}

// collector is a sink that tests wait on.
type collector struct {
	mu  sync.Mutex
	all []string      // guarded by mu; "topic payload"
	new chan struct{} // capacity 1: something came
}

func newCollector() *collector { return &collector{new: make(chan struct{}, 1)} }

// PutMessage keeps the answer to a command.
func (c *collector) PutMessage(_ string, m *message.Message) {
	c.mu.Lock()
	c.all = append(c.all, m.Topic+" "+string(m.Payload))
	c.mu.Unlock()
	select {
	case c.new <- struct{}{}:
	default:
	}
}

// Put keeps readings as messages.
func (c *collector) Put(prefix string, _ byte, rs ...reading.Reading) {
	c.mu.Lock()
	for i := range rs {
		c.all = append(c.all, prefix+"/"+rs[i].Device+"/"+rs[i].Point+" "+string(rs[i].AppendJSON(nil)))
	}
	c.mu.Unlock()
	select {
	case c.new <- struct{}{}:
	default:
	}
}

// wait returns when there are n messages for which ok is true.
func (c *collector) wait(tb testing.TB, n int, ok func(string) bool) []string {
	tb.Helper()
	deadline := time.After(patience)
	for {
		c.mu.Lock()
		var found []string
		for _, m := range c.all {
			if ok(m) {
				found = append(found, m)
			}
		}
		last := c.all[max(0, len(c.all)-10):]
		c.mu.Unlock()
		if len(found) >= n {
			return found
		}
		select {
		case <-c.new:
		case <-deadline:
			tb.Fatalf("%d messages, want %d; the last: %v", len(found), n, last)
		}
	}
}

// runBus runs a bus of devices over the port until the test ends.
func runBus(tb testing.TB, po port.Options, o Options) (*Bus, *collector) {
	tb.Helper()
	log := slog.New(slog.DiscardHandler)
	line, err := port.NewLine("rs485", po, log)
	if err != nil {
		tb.Fatal(err)
	}
	o.CharTime = po.CharTime()
	sink := newCollector()
	bus, err := New("rs485", o, PortLine(line), sink, health.NewMonitor(func(health.Change) {}), log)
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- bus.Run(ctx) }()
	tb.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if !errors.Is(err, context.Canceled) {
				tb.Errorf("Run = %v, want context.Canceled", err)
			}
		case <-time.After(patience):
			tb.Error("Run goes on after its context")
		}
	})
	return bus, sink
}

func portOptions(driver, path string) port.Options {
	o := port.DefaultOptions()
	o.Driver, o.Device, o.Baud = driver, path, 19200
	return o
}

// The bus over a real port, with either driver: many values, an echo, noise, a
// split answer and a garbled one, and a register that is refused.
func TestBusOverAPty(t *testing.T) {
	for _, driver := range []string{port.DriverBugst, port.DriverTarm} {
		t.Run(driver, func(t *testing.T) {
			master, path := openPty(t)
			slave := modbustest.New(modbustest.Options{})
			u := slave.Unit(1)
			u.SetHolding(100, modbustest.Float32(21.3, "CDAB")...)
			u.SetHolding(102, 0x8000)
			u.SetInput(30, 0xfffe)
			u.SetCoil(7, true)
			var seq uint16
			u.OnRead(func(r modbustest.Request) {
				if r.Function == 3 {
					seq++
					u.SetHolding(103, seq)
				}
			})
			n := 0
			u.FaultFunc(func(modbustest.Request) modbustest.Fault {
				n++
				switch n % 7 {
				case 1:
					return modbustest.Fault{NoiseBefore: []byte{0xff, 0x00}}
				case 3:
					return modbustest.Fault{SplitAfter: 4, SplitPause: 20 * time.Millisecond}
				case 5:
					return modbustest.Fault{CorruptCRC: true}
				}
				return modbustest.Fault{}
			})
			ctx, cancel := context.WithCancel(context.Background())
			served := make(chan error, 1)
			go func() { served <- slave.Serve(ctx, master) }()
			t.Cleanup(func() {
				cancel()
				if err := <-served; err != nil {
					t.Errorf("Serve = %v", err)
				}
			})

			d := DefaultDevice()
			d.Name, d.Unit, d.Every, d.Timeout = "boiler", 1, 20*time.Millisecond, 2*time.Second
			d.Points = []Point{
				{Name: "flow", Register: "holding:100", Type: "float32", Order: "CDAB", Unit: "l/s"},
				{Name: "broken", Register: "holding:102", Type: "int16", Invalid: []int64{0x8000}},
				{Name: "seq", Register: "holding:103"},
				{Name: "missing", Register: "holding:104"},
				{Name: "level", Register: "input:30", Type: "int16", Scale: 0.5},
				{Name: "pump", Register: "coil:7"},
			}
			o := DefaultOptions()
			o.Devices = []Device{d}
			bus, sink := runBus(t, portOptions(driver, path), o)

			for point, want := range map[string]string{
				"flow":    `{"value":21.3,"unit":"l/s","quality":"good",`,
				"broken":  `{"value":null,"quality":"bad","reason":"invalid value",`,
				"missing": `{"value":null,"quality":"bad","reason":"exception 2 (illegal data address)",`,
				"level":   `{"value":-1,"quality":"good",`,
				"pump":    `{"value":true,"quality":"good",`,
			} {
				sink.wait(t, 1, func(m string) bool { return strings.HasPrefix(m, "sensors/boiler/"+point+" "+want) })
			}
			good := sink.wait(t, 25, func(m string) bool { return strings.HasPrefix(m, "sensors/boiler/seq {") })
			last := 0
			for _, m := range good {
				var v int
				if _, err := fmt.Sscanf(m, `sensors/boiler/seq {"value":%d,"quality":"good",`, &v); err != nil || v <= last {
					t.Fatalf("%s after %d: %v", m, last, err)
				}
				last = v
			}
			slave.SetEcho(true)
			sink.wait(t, len(good)+10, func(m string) bool { return strings.HasPrefix(m, "sensors/boiler/seq {") })
			st := bus.Status()
			if !st.Open || !st.Echo || st.Units[0].State != UnitUp || st.Units[0].Garbled == 0 || st.Units[0].Timeouts != 0 {
				t.Errorf("Status() = %+v, want open, echo, up, garbled answers and no timeouts", st)
			}
		})
	}
}

func TestBusOverAPortThatIsNotThere(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	path := t.TempDir() + "/ttyUSB0"
	line, err := port.NewLine("rs485", portOptions(port.DriverBugst, path), log)
	if err != nil {
		t.Fatal(err)
	}
	o := DefaultOptions()
	o.Devices = []Device{boiler()}
	sink := newCollector()
	bus, err := New("rs485", o, PortLine(line), sink, health.NewMonitor(func(health.Change) {}), log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- bus.Run(ctx) }()
	got := sink.wait(t, 2, func(string) bool { return true })
	want := `{"value":null,"quality":"bad","reason":"port unavailable",`
	if !strings.HasPrefix(got[0], "sensors/boiler/flow "+want) || !strings.HasPrefix(got[1], "sensors/boiler/level "+want) {
		t.Errorf("readings = %v, want both points bad", got)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Run = %v, want context.Canceled", err)
	}
	if st := bus.Status(); st.Open || st.LastError == "" {
		t.Errorf("Status() = %+v, want closed and why", st)
	}
}
