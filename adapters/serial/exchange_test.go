package serial_test

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/adapters"
	"holdfast/adapters/health"
	"holdfast/adapters/serial"
	"holdfast/broker/message"
)

// answerer is a device that is asked lines ending in "\r" and answers as told.
type answerer struct {
	r     *rig
	mu    sync.Mutex
	asked []string // guarded by mu
}

// answer serves the rig's device until the test ends. say returns the answer,
// empty for none; it may wait.
func (r *rig) answer(say func(request string) string) *answerer {
	r.t.Helper()
	r.open(1) // a master without a slave has an error to tell
	a := &answerer{r: r}
	// Of its own, so that closing it wakes the Read.
	fd, err := unix.Dup(int(r.master.Fd()))
	if err != nil {
		r.t.Fatal(err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		r.t.Fatal(err)
	}
	master := os.NewFile(uintptr(fd), "ptmx")
	done := make(chan struct{})
	go func() {
		defer close(done)
		var got []byte
		buf := make([]byte, 256)
		for {
			n, err := master.Read(buf)
			if err != nil {
				return
			}
			got = append(got, buf[:n]...)
			for {
				request, rest, ok := bytes.Cut(got, []byte("\r"))
				if !ok {
					break
				}
				got = rest
				a.mu.Lock()
				a.asked = append(a.asked, string(request))
				a.mu.Unlock()
				if s := say(string(request)); s != "" {
					if _, err := master.WriteString(s); err != nil {
						return
					}
				}
			}
		}
	}()
	r.t.Cleanup(func() { master.Close(); <-done })
	return a
}

func (a *answerer) requests() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]string(nil), a.asked...)
}

// polledOptions are of a device that answers "T?" and "H?" with bare numbers.
func polledOptions() serial.Options {
	o := serial.DefaultOptions()
	o.Pattern = `^(?P<v>[-0-9.]+)$`
	o.Polls = []serial.Poll{
		{Name: "t", Request: "T?${hex:0D}", Every: 50 * time.Millisecond, Timeout: 2 * time.Second},
		{Name: "h", Request: "H?${hex:0D}", Every: 50 * time.Millisecond, Timeout: 2 * time.Second},
	}
	o.Points = []serial.Point{
		{Name: "temperature", Field: "v", Poll: "t"},
		{Name: "humidity", Field: "v", Poll: "h"},
	}
	return o
}

func TestPolledDevice(t *testing.T) {
	eachDriver(t, polledOptions(), func(r *rig) {
		r.answer(func(request string) string {
			return map[string]string{"T?": "21.5\r\n", "H?": "48\r\n"}[request]
		})
		r.await("sensors/scale/temperature", `{"value":21.5,`)
		r.await("sensors/scale/humidity", `{"value":48,`)
		r.await("sensors/scale/temperature", `{"value":21.5,`)
		r.expectState(health.Online)
		if s := r.adapter.Status(); s.Polls < 3 || s.NoAnswers != 0 {
			r.t.Errorf("Status %+v", s)
		}
		if d := r.adapter.Devices()[0]; d.Interval != 50*time.Millisecond {
			r.t.Errorf("Interval = %v", d.Interval)
		}
	})
}

// An answer that comes after its time never becomes that of another question:
// here temperatures are below 100 and humidities above, whatever comes late.
func TestLateAnswerIsThrownAway(t *testing.T) {
	o := polledOptions()
	for i := range o.Polls {
		o.Polls[i].Timeout = 200 * time.Millisecond
	}
	eachDriver(t, o, func(r *rig) {
		var n atomic.Int64
		r.answer(func(request string) string {
			if n.Add(1)%3 == 1 { // later than the timeout, and within twice of it
				<-time.After(250 * time.Millisecond)
			}
			if request == "T?" {
				return "21\r\n"
			}
			return "148\r\n"
		})
		deadline := time.After(patience)
		for good := 0; good < 12; {
			select {
			case m := <-r.out:
				var v struct{ Value float64 }
				if err := json.Unmarshal(m.Payload, &v); err != nil {
					r.t.Fatal(err)
				}
				if wet := strings.HasSuffix(m.Topic, "humidity"); wet != (v.Value == 148) {
					r.t.Fatalf("%s is %s", m.Topic, m.Payload)
				}
				good++
			case <-deadline:
				r.t.Fatalf("Status %+v", r.adapter.Status())
			}
		}
		if s := r.adapter.Status(); s.NoAnswers == 0 || s.Late == 0 {
			r.t.Errorf("no answer %d, late %d: the device was late each third time", s.NoAnswers, s.Late)
		}
	})
}

func TestSilentPolledDeviceIsOffline(t *testing.T) {
	o := polledOptions()
	for i := range o.Polls {
		o.Polls[i].Timeout = 20 * time.Millisecond
	}
	eachDriver(t, o, func(r *rig) {
		if c := r.expectState(health.Offline); !strings.Contains(c.Reason, "no answer") {
			r.t.Errorf("offline because of %q", c.Reason)
		}
	})
}

// A line that gives back what is sent, and a device that says something else
// before its answer.
func TestEchoAndChatterAreNoAnswers(t *testing.T) {
	o := polledOptions()
	o.Delimiter = "\r"
	for i := range o.Polls {
		o.Polls[i].Answer = `^[0-9.]+$`
	}
	eachDriver(t, o, func(r *rig) {
		r.answer(func(request string) string {
			return request + "\rhello\r" + map[string]string{"T?": "21.5\r", "H?": "48\r"}[request]
		})
		r.await("sensors/scale/temperature", `{"value":21.5,`)
		r.await("sensors/scale/humidity", `{"value":48,`)
		if s := r.adapter.Status(); s.Rejected != 0 || s.Ignored == 0 || s.Late == 0 {
			r.t.Errorf("Status %+v", s)
		}
	})
}

// commander is adapters.Commands for a test.
type commander struct {
	filters []string
	handler func(adapters.Command)
}

func (c *commander) Subscribe(filters []string, handler func(adapters.Command)) (cancel func(), err error) {
	c.filters, c.handler = filters, handler
	return func() {}, nil
}

func (r *rig) commands() *commander {
	r.t.Helper()
	c := &commander{}
	stop, err := r.adapter.TakeCommands(c)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(stop)
	return c
}

// outcome is what comes of a command.
type outcome struct {
	Result                        adapters.Outcome
	Point, Reason, Answer, Device string
}

// tell sends a command and returns its outcome.
func (r *rig) tell(c *commander, name, payload string, change func(*adapters.Command)) outcome {
	r.t.Helper()
	topic := "sensors/scale/" + name + "/set"
	in := adapters.Command{Topic: topic, Payload: []byte(payload), Received: time.Now(), AnswerTopic: topic + "/result", AnswerProperties: []byte{1}}
	if change != nil {
		change(&in)
	}
	c.handler(in)
	deadline := time.After(patience)
	for {
		var m *message.Message
		select {
		case m = <-r.out:
		case <-deadline:
			r.t.Fatalf("no result of %s %q: %+v", name, payload, r.adapter.Status())
		}
		if m.Topic != in.AnswerTopic {
			continue
		}
		var out outcome
		if err := json.Unmarshal(m.Payload, &out); err != nil {
			r.t.Fatalf("%s: %v", m.Payload, err)
		}
		if m.Retain || out.Point != name || out.Device != "scale" || !bytes.Equal(m.Properties, in.AnswerProperties) {
			r.t.Errorf("result %+v", m)
		}
		return out
	}
}

func commandOptions() []serial.Command {
	return []serial.Command{
		{Name: "limit", Request: "W${value:hex4}${hex:0D}", Min: new(0.0), Max: new(100.0), Answer: `^OK`, Refused: `^ERR`, Timeout: 200 * time.Millisecond},
		{Name: "text", Request: "D=${value}${hex:0D}", Answer: `^OK`},
		{Name: "tare", Request: "Z${hex:0D}", Timeout: 50 * time.Millisecond},
		{Name: "mute", Request: "M${hex:0D}", Answer: `^OK`, Timeout: 20 * time.Millisecond},
	}
}

func TestCommands(t *testing.T) {
	say := func(request string) string {
		switch request {
		case "W0063":
			return "ERR 5\r\n"
		case "M":
			return ""
		case "T?":
			return "21.5\r\n"
		case "H?":
			return "48\r\n"
		default:
			return "OK " + request + "\r\n"
		}
	}
	check := func(r *rig) {
		t := r.t
		r.open(1)
		dev := r.answer(say)
		c := r.commands()
		if len(c.filters) != 4 {
			t.Errorf("subscribed to %q", c.filters)
		}
		tests := []struct {
			name, payload string
			change        func(*adapters.Command)
			want          outcome
		}{
			{name: "limit", payload: "10", want: outcome{Result: adapters.OutcomeOK, Answer: "OK W000A"}},
			{name: "limit", payload: "99", want: outcome{Result: adapters.OutcomeFailed, Reason: "device refused", Answer: "ERR 5"}},
			{name: "limit", payload: "101", want: outcome{Result: adapters.OutcomeRefused, Reason: "101 is outside 0..100"}},
			{name: "limit", payload: "1.5", want: outcome{Result: adapters.OutcomeRefused, Reason: "1.5 is not a whole number"}},
			{name: "limit", payload: "1\rZ", want: outcome{Result: adapters.OutcomeRefused, Reason: `"1\rZ" is not a number`}},
			{name: "text", payload: "hello", want: outcome{Result: adapters.OutcomeOK, Answer: "OK D=hello"}},
			{name: "text", payload: "hello\rW0001", want: outcome{Result: adapters.OutcomeRefused, Reason: `"hello\rW0001" has a character that is not printable ASCII`}},
			{name: "text", payload: strings.Repeat("x", 65), want: outcome{Result: adapters.OutcomeRefused, Reason: "value is too long"}},
			{name: "tare", want: outcome{Result: adapters.OutcomeOK}},
			{name: "mute", want: outcome{Result: adapters.OutcomeNoAnswer, Reason: "no answer"}},
			{name: "limit", payload: "11", change: func(c *adapters.Command) { c.Retain = true }, want: outcome{Result: adapters.OutcomeRefused, Reason: adapters.StaleRetained}},
			{name: "limit", payload: "12", change: func(c *adapters.Command) { c.Received = time.Now().Add(-time.Minute) }, want: outcome{Result: adapters.OutcomeRefused, Reason: adapters.StaleTooOld}},
		}
		for _, tt := range tests {
			tt.want.Point, tt.want.Device = tt.name, "scale"
			if got := r.tell(c, tt.name, tt.payload, tt.change); got != tt.want {
				t.Errorf("%s %q: %+v, want %+v", tt.name, tt.payload, got, tt.want)
			}
		}
		for _, request := range dev.requests() {
			switch request {
			case "W000A", "W0063", "D=hello", "Z", "M", "T?", "H?":
			default:
				t.Errorf("the device was sent %q", request)
			}
		}
		if s := r.adapter.Status(); s.Commands.OK != 3 || s.Commands.Received != 12 || s.Commands.Stale != 2 {
			t.Errorf("Status %+v", s)
		}
	}
	t.Run("between polls", func(t *testing.T) {
		o := polledOptions()
		o.Commands = commandOptions()
		eachDriver(t, o, check)
	})
	t.Run("to a device that talks", func(t *testing.T) {
		o := weightOptions()
		o.Commands = commandOptions()
		eachDriver(t, o, check)
	})
}

// What a device that talks by itself says in answer to a command is no reading,
// even when it is late.
func TestLateAnswerToCommandIsNoReading(t *testing.T) {
	o := weightOptions()
	o.Pattern, o.Ignore, o.Points = `(?P<weight>[0-9.]+)$`, "", []serial.Point{{Name: "weight"}}
	o.Commands = []serial.Command{{Name: "limit", Request: "L${value}${hex:0D}", Type: "number", Answer: `^L=`, Timeout: 50 * time.Millisecond}}
	eachDriver(t, o, func(r *rig) {
		r.answer(func(string) string {
			<-time.After(80 * time.Millisecond)
			return "L=999\r\nW=12.5\r\n"
		})
		c := r.commands()
		if got := r.tell(c, "limit", "999", nil); got.Result != adapters.OutcomeNoAnswer {
			r.t.Errorf("outcome %+v, want no answer", got)
		}
		r.await("sensors/scale/weight", `{"value":12.5,`) // the first reading
		if s := r.adapter.Status(); s.Late != 1 || s.Readings != 1 {
			r.t.Errorf("late %d, readings %d, want 1 each", s.Late, s.Readings)
		}
	})
}

// A device that never falls silent is told all the same.
func TestCommandToDeviceThatNeverPauses(t *testing.T) {
	o := weightOptions()
	o.Commands = commandOptions()
	eachDriver(t, o, func(r *rig) {
		r.answer(func(request string) string { return "OK " + request + "\r\n" })
		end, ended := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(ended)
			tick := time.NewTicker(time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-end:
					return
				case <-tick.C: // a frame that is never over
					if _, err := r.master.WriteString("W"); err != nil {
						r.t.Error(err)
						return
					}
				}
			}
		}()
		defer func() { close(end); <-ended }()
		if got := r.tell(r.commands(), "tare", "", nil); got.Result != adapters.OutcomeOK {
			r.t.Errorf("outcome %+v, want ok", got)
		}
	})
}

func TestCommandToAbsentDeviceIsRefused(t *testing.T) {
	o := weightOptions()
	o.Commands = commandOptions()
	eachDriver(t, o, func(r *rig) {
		r.open(1)
		c := r.commands()
		r.unplug()
		r.expectState(health.Offline)
		deadline := time.After(patience)
		for {
			got := r.tell(c, "tare", "", nil)
			if got.Reason == "device is not connected" {
				return
			}
			select { // the port is being closed at this moment
			case <-deadline:
				r.t.Fatalf("outcome %+v", got)
			default:
			}
		}
	})
}
