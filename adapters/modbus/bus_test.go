package modbus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/adapters/health"
	"holdfast/adapters/modbus/modbustest"
	"holdfast/adapters/port"
	"holdfast/adapters/reading"
	"holdfast/broker/message"
)

// char9600 is a character of 8E1 at 9600 baud.
const char9600 = 11 * time.Second / 9600

// got is one published reading.
type got struct {
	at      time.Time
	Device  string
	Point   string
	Value   any    `json:"value"`
	Quality string `json:"quality"`
	Reason  string `json:"reason"`
	Time    string `json:"time"`
}

// rig is a bus and a slave on a line in memory, inside a synctest bubble.
type rig struct {
	tb    testing.TB
	bus   *Bus
	slave *modbustest.Slave

	mu        sync.Mutex
	got       []got                  // guarded by mu
	onPut     func(got)              // set before start; called with mu held, in place of got
	onMessage func(*message.Message) // set before start
	onSend    func(adu []byte)       // set before start; called when the master writes
	wire      *modbustest.Line       // guarded by mu; the master's end, of the latest opening
	far       *modbustest.Line       // guarded by mu; the slave's end
	broken    error                  // guarded by mu; Open fails with it
	repair    chan struct{}          // Wait returns when it is closed
	changes   []health.Change        // guarded by mu
	opened    int                    // guarded by mu
	cancel    context.CancelFunc
	ended     chan error
}

func newRig(tb testing.TB, o Options) *rig {
	tb.Helper()
	slave := modbustest.Options{}
	if o.Framing == FramingASCII {
		slave.Framing = modbustest.ASCII
	}
	r := &rig{tb: tb, slave: modbustest.New(slave), repair: make(chan struct{}), ended: make(chan error, 1)}
	monitor := health.NewMonitor(func(c health.Change) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.changes = append(r.changes, c)
	})
	bus, err := New("rs485", o, r, r, monitor, slog.New(slog.DiscardHandler))
	if err != nil {
		tb.Fatal(err)
	}
	r.bus = bus
	return r
}

// spyWire is the master's end of the line.
type spyWire struct {
	*modbustest.Line
	rig  *rig
	stop func()
}

func (w spyWire) Write(p []byte) (int, error) {
	if w.rig.onSend != nil {
		w.rig.onSend(p)
	}
	return w.Line.Write(p)
}

func (w spyWire) Close() error {
	err := w.Line.Close()
	w.stop()
	return err
}

// Open is the line of the bus: a new wire with the slave at its other end.
func (r *rig) Open(ctx context.Context) (Wire, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.broken != nil {
		return nil, r.broken
	}
	r.opened++
	master, far := modbustest.NewLine(char9600)
	r.wire, r.far = master, far
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = r.slave.Serve(ctx, far)
	}()
	return spyWire{Line: master, rig: r, stop: func() { cancel(); <-done }}, nil
}

// Wait is the line's.
func (r *rig) Wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-r.repair:
		return nil
	}
}

// Put is the sink.
func (r *rig) Put(prefix string, qos byte, rs ...reading.Reading) {
	for i := range rs {
		topic := prefix + "/" + rs[i].Device + "/" + rs[i].Point
		r.put(&message.Message{Topic: topic, Payload: rs[i].AppendJSON(nil), QoS: qos})
	}
}

// PutMessage is the sink's for answers to commands.
func (r *rig) PutMessage(_ string, m *message.Message) { r.put(m) }

func (r *rig) put(m *message.Message) {
	if r.onMessage != nil {
		r.onMessage(m)
	}
	parts := strings.Split(m.Topic, "/")
	g := got{at: time.Now(), Device: parts[len(parts)-2], Point: parts[len(parts)-1]}
	dec := json.NewDecoder(strings.NewReader(string(m.Payload)))
	dec.UseNumber()
	if err := dec.Decode(&g); err != nil {
		r.tb.Errorf("payload %s: %v", m.Payload, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.onPut != nil {
		r.onPut(g)
		return
	}
	r.got = append(r.got, g)
}

// start runs the bus until stop or the end of the test.
func (r *rig) start() {
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	go func() { r.ended <- r.bus.Run(ctx) }()
}

func (r *rig) stop() error {
	r.cancel()
	return <-r.ended
}

// after lets the clock run on.
func (r *rig) after(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func (r *rig) readings() []got {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.got)
}

// of returns the readings of a point of device m as "value quality", the clock
// left out.
func (r *rig) of(point string) (out []string) {
	for _, g := range r.readings() {
		if g.Device == "m" && g.Point == point {
			out = append(out, fmt.Sprintf("%v %s", g.Value, g.Quality))
		}
	}
	return out
}

func (r *rig) count(device string) (good, bad int) {
	for _, g := range r.readings() {
		switch {
		case g.Device != device:
		case g.Quality == "good":
			good++
		default:
			bad++
		}
	}
	return good, bad
}

// unit is the status of the first unit.
func (r *rig) unit() UnitStatus { return r.bus.Status().Units[0] }

// states are the health states that device m went through.
func (r *rig) states() (out []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.changes {
		if c.Device == "m" {
			out = append(out, c.State.String())
		}
	}
	return out
}

// options are those of a bus at 9600 baud.
func options(devices ...Device) Options {
	o := DefaultOptions()
	o.CharTime = char9600
	o.Devices = devices
	return o
}

// meter is a device with points p0.. of 16 bits at the addresses.
func meter(name string, unit int, every time.Duration, addrs ...int) Device {
	d := DefaultDevice()
	d.Name, d.Unit, d.Every = name, unit, every
	for i, a := range addrs {
		d.Points = append(d.Points, Point{Name: fmt.Sprint("p", i), Register: fmt.Sprint("holding:", a)})
	}
	return d
}

func TestBusPollsInRhythm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := meter("m", 1, 5*time.Second, 10, 11, 30)
		d.Points[0].Scale, d.Points[0].Unit = 0.1, "°C"
		r := newRig(t, options(d))
		u := r.slave.Unit(1)
		u.SetHolding(10, 213, 2)
		u.SetHolding(30, 3)
		var seq uint16
		u.OnRead(func(q modbustest.Request) {
			if q.Addr == 30 {
				seq++
				u.SetHolding(30, seq)
			}
		})
		begin := time.Now()
		r.start()
		r.after(time.Minute - time.Second)
		if err := r.stop(); !errors.Is(err, context.Canceled) {
			t.Errorf("Run = %v, want context.Canceled", err)
		}
		want := []string{"1 good", "2 good", "3 good", "4 good", "5 good", "6 good", "7 good", "8 good", "9 good", "10 good", "11 good", "12 good"}
		if got := r.of("p2"); !slices.Equal(got, want) {
			t.Errorf("p2 = %v, want %v", got, want)
		}
		for i, g := range r.readings() {
			if g.Point == "p0" && fmt.Sprint(g.Value) != "21.3" {
				t.Errorf("p0 = %v, want 21.3", g.Value)
			}
			// Warm-up, silence, request and answer: within 200 ms of the rhythm.
			due := begin.Add(time.Duration(i/3) * 5 * time.Second)
			at, err := time.Parse(time.RFC3339, g.Time)
			if err != nil || at.Before(due) || at.After(due.Add(200*time.Millisecond)) || g.at.Sub(at) > time.Millisecond {
				t.Errorf("reading %d at %v says %v (%v), want within 200ms of %v", i, g.at, at, err, due)
			}
		}
		st := r.bus.Status()
		if st.Open || st.StrayBytes != 0 || st.Echo || st.Units[0].State != UnitUp || st.Units[0].Requests != 24 || st.Units[0].Answers != 24 {
			t.Errorf("Status() = %+v, want closed, 24 of 24 requests answered", st)
		}
		if got := r.states(); !slices.Equal(got, []string{"unknown", "online"}) {
			t.Errorf("health = %v, want unknown, online", got)
		}
	})
}

func TestBusStripsEchoAndSlidesOverNoise(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, options(meter("m", 1, time.Second, 0)))
		u := r.slave.Unit(1)
		u.SetHolding(0, 7)
		u.Fault(modbustest.Fault{NoiseBefore: []byte{0x00, 0xff, 0x01}, NoiseAfter: []byte{0x55}}, -1)
		r.slave.SetEcho(true)
		r.start()
		r.after(time.Minute - 500*time.Millisecond)
		r.stop()
		good, bad := r.count("m")
		if good != 60 || bad != 0 {
			t.Errorf("%d good and %d bad readings, want 60 and 0", good, bad)
		}
		if st := r.bus.Status(); !st.Echo || st.StrayBytes != 4*60 {
			t.Errorf("echo %v, stray bytes %d, want true and 240", st.Echo, st.StrayBytes)
		}
	})
}

// A garbled answer was one: it is asked for again at once, nothing is lost and
// nobody waits.
func TestBusRetriesGarbledAnswersAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, options(meter("m", 1, time.Second, 0)))
		u := r.slave.Unit(1)
		u.SetHolding(0, 7)
		n := 0
		u.FaultFunc(func(modbustest.Request) modbustest.Fault {
			n++
			return modbustest.Fault{CorruptCRC: n%3 != 0} // two of three
		})
		r.start()
		r.after(30*time.Second - 500*time.Millisecond)
		r.stop()
		if good, bad := r.count("m"); good != 30 || bad != 0 {
			t.Errorf("%d good and %d bad readings, want 30 and 0", good, bad)
		}
		if st := r.unit(); st.Garbled != 60 || st.Retries != 60 || st.Timeouts != 0 || st.State != UnitUp {
			t.Errorf("status = %+v, want 60 garbled, 60 retries, no timeouts, up", st)
		}
	})
}

// One register of forty is refused. It costs itself: the others are read, in
// few requests, and the culprit is asked now and then until it is there.
func TestBusFindsTheRefusedRegister(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var addrs []int
		for i := range 40 {
			addrs = append(addrs, i)
		}
		r := newRig(t, options(meter("m", 1, time.Second, addrs...)))
		u := r.slave.Unit(1)
		for i := range 40 {
			u.SetHolding(uint16(i), uint16(100+i))
		}
		u.Deny(modbustest.Holding, 13, modbustest.IllegalDataAddress)
		r.start()
		r.after(20 * time.Second)
		for i := range 40 {
			got := r.of(fmt.Sprint("p", i))
			if i == 13 {
				if !slices.Equal(got, []string{"<nil> bad"}) {
					t.Errorf("the refused point = %v, want said once to be bad", got)
				}
				continue
			}
			if len(got) < 18 || slices.Contains(got, "<nil> bad") || got[0] != fmt.Sprintf("%d good", 100+i) {
				t.Errorf("p%d = %v, want about 20 good readings of %d", i, got, 100+i)
			}
		}
		st := r.unit()
		if len(st.Reads) > 8 { // 40 halves to 1 in 6 steps
			t.Errorf("%d requests after the search, want at most 8: %+v", len(st.Reads), st.Reads)
		}
		if st.Exceptions != 6+1 && st.Exceptions != 6 { // the whole, 20, 10, 5, 2 or 3, (2,) 1
			t.Errorf("%d exceptions in 20 s, want 6 or 7", st.Exceptions)
		}
		reason := ""
		for _, g := range r.readings() {
			if g.Point == "p13" {
				reason = g.Reason
			}
		}
		if reason != "exception 2 (illegal data address)" {
			t.Errorf("reason = %q, want the exception", reason)
		}

		// The register appears: it is read, and all is one request again.
		u.Deny(modbustest.Holding, 13, 0)
		r.after(time.Minute)
		r.stop()
		if got := r.of("p13"); len(got) < 15 || got[len(got)-1] != "113 good" {
			t.Errorf("p13 after it appeared = %v, want good readings", got)
		}
		if st := r.unit(); len(st.Reads) != 1 || st.Reads[0].Count != 40 {
			t.Errorf("requests after it appeared = %+v, want one of 40", st.Reads)
		}
	})
}

// The culprit may be a register nobody asked for, read along to join two
// points: then both points are good for ever after.
func TestBusRemembersACulpritInAGap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, options(meter("m", 1, time.Second, 0, 5)))
		u := r.slave.Unit(1)
		u.SetHolding(0, 1)
		u.SetHolding(5, 2) // 1 to 4 do not exist
		r.start()
		r.after(10*time.Second - 500*time.Millisecond)
		r.stop()
		for _, p := range []string{"p0", "p1"} {
			if got := r.of(p); len(got) != 10 || slices.Contains(got, "<nil> bad") {
				t.Errorf("%s = %v, want 10 good readings", p, got)
			}
		}
		if st := r.unit(); st.Exceptions != 1 {
			t.Errorf("%d exceptions, want 1", st.Exceptions)
		}
	})
}

func TestBusAndExceptions(t *testing.T) {
	tests := map[string]struct {
		code       byte
		times      int
		good, bad  int // readings of the first 10 s, at 1 s
		exceptions uint64
	}{
		"busy for a moment":         {modbustest.Busy, 2, 10, 0, 2},
		"busy on and on":            {modbustest.Busy, -1, 0, 1, 30},
		"acknowledge":               {modbustest.Acknowledge, 1, 10, 0, 1},
		"device failure, once":      {modbustest.DeviceFailure, 1, 9, 1, 1},
		"device failure for ever":   {modbustest.DeviceFailure, -1, 0, 1, 10},
		"illegal function":          {modbustest.IllegalFunction, -1, 0, 1, 1},
		"an exception nobody knows": {0x77, 1, 9, 1, 1},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, options(meter("m", 1, time.Second, 0)))
				u := r.slave.Unit(1)
				u.SetHolding(0, 1)
				u.Fault(modbustest.Fault{Exception: tt.code}, tt.times)
				r.start()
				r.after(10*time.Second - 200*time.Millisecond)
				r.stop()
				good, bad := r.count("m")
				if good != tt.good || bad != tt.bad {
					t.Errorf("%d good and %d bad readings, want %d and %d", good, bad, tt.good, tt.bad)
				}
				if st := r.unit(); st.Exceptions != tt.exceptions || st.State != UnitUp || st.Timeouts != 0 {
					t.Errorf("status = %+v, want %d exceptions, up", st, tt.exceptions)
				}
			})
		})
	}
}

// An adapter is pulled in the middle of a read: all points are bad once, the
// devices offline; when it is back the polls go on.
func TestBusSurvivesAnUnpluggedLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, options(meter("m", 1, time.Second, 0)))
		u := r.slave.Unit(1)
		u.SetHolding(0, 1)
		u.FaultFunc(func(modbustest.Request) modbustest.Fault { return modbustest.Fault{Delay: 500 * time.Millisecond} })
		r.start()
		r.after(3300 * time.Millisecond)
		r.mu.Lock()
		r.broken = fmt.Errorf("no such device: %w", port.ErrUnplugged)
		r.wire.Close()
		r.mu.Unlock()
		if err := <-r.ended; err == nil || errors.Is(err, context.Canceled) {
			t.Errorf("Run = %v, want the line's error", err)
		}
		if got := r.of("p0"); len(got) != 4 || got[3] != "<nil> bad" {
			t.Errorf("p0 = %v, want three good and then one bad", got)
		}

		r.start() // as the supervisor does
		r.after(10 * time.Second)
		r.mu.Lock()
		r.broken = nil
		close(r.repair)
		r.mu.Unlock()
		r.after(20 * time.Second) // it goes on by itself
		r.stop()
		got := r.of("p0")
		if len(got) < 15 || slices.Contains(got[4:], "<nil> bad") {
			t.Errorf("p0 = %v, want good readings again", got)
		}
		if got := r.states(); !slices.Equal(got, []string{"unknown", "online", "offline", "online"}) {
			t.Errorf("health = %v", got)
		}
	})
}

func TestBusEndsWhileItWaitsForAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, options(meter("m", 1, time.Second, 0)))
		r.start()
		r.after(300 * time.Millisecond) // the request is out, the answer never comes
		begin := time.Now()
		if err := r.stop(); !errors.Is(err, context.Canceled) {
			t.Errorf("Run = %v, want context.Canceled", err)
		}
		if d := time.Since(begin); d != 0 {
			t.Errorf("Run ended %v after its context", d)
		}
	})
}

func TestBusListsItsDevices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, options(meter("a", 1, time.Second, 0, 1), meter("b", 2, time.Minute, 0)))
		ds := r.bus.Devices()
		if len(ds) != 2 || ds[0].Name != "a" || ds[0].Port != "rs485" || ds[0].Interval != time.Second || len(ds[0].Points) != 2 {
			t.Errorf("Devices() = %+v", ds)
		}
		if r.bus.Name() != "rs485" {
			t.Errorf("Name() = %q", r.bus.Name())
		}
	})
}

// The line is silent for three and a half characters, or as long as is said,
// before each request; a unit gets its pause, a change of unit its own.
func TestBusKeepsItsPauses(t *testing.T) {
	const t35 = 7 * char9600 / 2
	tests := map[string]struct {
		change     func(o *Options)
		silence    time.Duration // before each request
		other, own time.Duration // before one to another unit; of unit 1 after its answer
	}{
		"as the specification":  {func(*Options) {}, t35, t35, 0},
		"fast line":             {func(o *Options) { o.CharTime = 100 * time.Microsecond }, minSilence, minSilence, 0},
		"as configured":         {func(o *Options) { o.Silence = 20 * time.Millisecond }, 20 * time.Millisecond, 20 * time.Millisecond, 0},
		"between units":         {func(o *Options) { o.Silence = time.Millisecond; o.ChangePause = 30 * time.Millisecond }, time.Millisecond, 31 * time.Millisecond, 0},
		"of a unit":             {func(o *Options) { o.Devices[0].Pause = 50 * time.Millisecond }, t35, t35, 50 * time.Millisecond},
		"the longest of a unit": {func(o *Options) { o.Devices[1].Pause = 70 * time.Millisecond }, t35, t35, 70 * time.Millisecond},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := options(meter("a", 1, time.Second, 0), meter("b", 1, time.Second, 100), meter("c", 2, time.Second, 0))
				tt.change(&o)
				r := newRig(t, o)
				r.slave.Unit(1).SetHolding(0, 1)
				r.slave.Unit(1).SetHolding(100, 1)
				r.slave.Unit(2).SetHolding(0, 1)
				var sent []time.Time
				var to []byte
				r.onSend = func(adu []byte) { sent, to = append(sent, time.Now()), append(to, adu[0]) }
				begin := time.Now()
				r.start()
				r.after(900 * time.Millisecond)
				r.stop()
				if len(sent) != 3 {
					t.Fatalf("%d requests, want 3", len(sent))
				}
				if warm := sent[0].Sub(begin); warm < o.WarmUp {
					t.Errorf("first request %v after opening, want at least %v", warm, o.WarmUp)
				}
				const exchange = (8 + 7) * char9600 // a request and an answer of one register
				for i := 1; i < 3; i++ {
					want := sent[i-1].Add(exchange + tt.silence)
					if to[i] != to[i-1] {
						want = sent[i-1].Add(exchange + tt.other)
					}
					for j := range i {
						// The bus goes on with others while a unit has its pause.
						if to[j] == to[i] && to[i] == 1 {
							want = later(want, sent[j].Add(exchange+tt.own))
						}
					}
					if late := sent[i].Sub(want); late < 0 || late > time.Millisecond {
						t.Errorf("request %d (unit %d) comes %v after the time it may", i, to[i], late)
					}
				}
			})
		})
	}
}

func TestReadingsHaveTheirTopicAndQoS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, e := meter("a", 1, time.Second, 0), meter("b", 1, time.Second, 0)
		e.QoS = new(0)
		o := options(d, e)
		o.Prefix = "site/7"
		r := newRig(t, o)
		r.slave.Unit(1).SetHolding(0, 1)
		r.onMessage = func(m *message.Message) {
			want := map[string]byte{"site/7/a/p0": 1, "site/7/b/p0": 0}
			if qos, ok := want[m.Topic]; !ok || m.QoS != qos || m.Retain {
				t.Errorf("message to %s with QoS %d, retained %v", m.Topic, m.QoS, m.Retain)
			}
		}
		r.start()
		r.after(2500 * time.Millisecond)
		r.stop()
		if n := len(r.readings()); n != 6 {
			t.Errorf("%d readings, want 6", n)
		}
	})
}

// Somebody talks without end. The bus does not hang and keeps no more than its
// buffer; when the line is quiet again it goes on.
func TestBusSurvivesABabblingLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, options(meter("m", 1, time.Second, 0)))
		r.slave.Unit(1).SetHolding(0, 1)
		r.start()
		r.after(5 * time.Second)
		noise, quiet := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			tick := time.NewTicker(10 * char9600)
			defer tick.Stop()
			for i := byte(0); ; i++ {
				select {
				case <-noise.Done():
					return
				case <-tick.C:
					r.far.Write([]byte{i, 1, 3, 2, i, 0, 0, 5, 0x83, i})
				}
			}
		}()
		r.after(10 * time.Minute)
		st := r.bus.Status()
		if st.StrayBytes < 100_000 || st.Units[0].Requests > 5+600 {
			t.Errorf("%d stray bytes and %d requests in ten minutes of noise", st.StrayBytes, st.Units[0].Requests)
		}
		quiet()
		<-done
		before := len(r.of("p0"))
		r.after(3 * time.Minute)
		r.stop()
		if got := len(r.of("p0")) - before; got < 60 {
			t.Errorf("%d readings in the three minutes after the noise, want at least 60", got)
		}
	})
}
