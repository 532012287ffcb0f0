package storeforward

import (
	"context"
	"encoding/binary"
	"math"
	"os"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker/durable"
	"holdfast/broker/message"
)

// month is what happens to a gateway: devices that say something each step, a
// link that is down for days, a queue that is bounded and thinned.
type month struct {
	devices int
	step    time.Duration
	days    int
	perDev  int64 // messages that the queue may hold of each device
}

// outages of the link, in hours from the start; besides these it breaks for five
// minutes every day.
func (m month) outages() [][2]int {
	if m.days < 30 {
		return [][2]int{{6, 30}}
	}
	return [][2]int{{3 * 24, 5 * 24}, {10 * 24, 13 * 24}, {20 * 24, 20*24 + 12}}
}

func (m month) down(at time.Duration) bool {
	for _, o := range m.outages() {
		if at >= time.Duration(o[0])*time.Hour && at < time.Duration(o[1])*time.Hour {
			return true
		}
	}
	return at%(24*time.Hour) >= 12*time.Hour && at%(24*time.Hour) < 12*time.Hour+5*time.Minute
}

// A month in minutes: two days of two devices each 20 seconds, or 30 days of
// HOLDFAST_MONTH devices each second (make month).
func TestMonth(t *testing.T) {
	m := month{devices: 2, step: 20 * time.Second, days: 2, perDev: 1000}
	if n, err := strconv.Atoi(os.Getenv("HOLDFAST_MONTH")); err == nil {
		m = month{devices: n, step: time.Second, days: 30, perDev: 20_000}
	}
	synctest.Test(t, func(t *testing.T) { m.live(t) })
}

// life is a month under way.
type life struct {
	month
	t      *testing.T
	s      *Store
	q      durable.QueueID
	r      *taker
	failed int

	appended  int64
	offline   int64 // appended while the link was down
	delivered int64
	events    map[int64]bool // of device 0, by step: delivered
	last      []int64        // step last delivered of each device; -1 is none
	gaps      []gap          // since the link came back
}

// gap is a hole between two deliveries of a device.
type gap struct{ from, to int64 }

func (m month) live(t *testing.T) {
	t.Helper()
	o, _ := onDisk(t)
	l := &life{month: m, t: t, s: open(t, o), last: make([]int64, m.devices), events: map[int64]bool{}}
	defer closeStore(t, l.s)
	l.q = uplink(t, l.s)
	for i := range l.last {
		l.last[i] = -1
	}
	bound := int64(m.devices) * m.perDev
	if err := l.s.SetPolicy(l.q, durable.QueuePolicy{Policy: durable.PolicyThin, MaxMessages: bound}); err != nil {
		t.Fatal(err)
	}
	l.attach()
	var largest, downSince int64
	steps := int64(time.Duration(m.days) * 24 * time.Hour / m.step)
	for n := range steps {
		down := m.down(time.Duration(n) * m.step)
		switch {
		case down && l.r != nil:
			l.s.Detach(l.q, l.r)
			l.r, downSince = nil, n
		case !down && l.r == nil:
			largest = max(largest, l.fileSize())
			l.checkHeld(n-downSince, bound)
			l.attach()
			l.checkOutage(downSince, n)
		}
		l.say(n)
		l.acknowledge()
		time.Sleep(m.step) //nolint:forbidigo // the bubble's time
	}
	l.checkEnd(largest, bound)
}

// event is the mark of a message that is not thinned: a user property.
var event = append(append([]byte{0x26, 0, byte(len(durable.EventProperty))}, durable.EventProperty...), 0, 1, '1')

// checkHeld looks at how much waits at the end of an outage of so many steps.
func (l *life) checkHeld(steps, bound int64) {
	n, _ := l.s.Backlog(l.q)
	most := min(steps*int64(l.devices), bound)
	least := min(most, int64(float64(bound)*thinKeep/2)) // slots are of powers of two
	if n > most || n < least {
		l.t.Errorf("%d messages wait after an outage of %d steps, wanted %d to %d", n, steps, least, most)
	}
}

// say has every device say the number of the step.
func (l *life) say(n int64) {
	for i := range l.devices {
		payload := binary.BigEndian.AppendUint64(make([]byte, 0, 8), uint64(n))
		msg := &message.Message{Topic: "sensors/" + strconv.Itoa(i) + "/value", Payload: payload, QoS: 1}
		if i == 0 && n%int64(time.Hour/l.step) == 7 { // something happens once an hour
			msg.Properties, l.events[n] = event, false
		}
		if err := l.s.Append(msg, claimFor(l.q, 1), durable.Origin{}, nil); err != nil {
			l.t.Fatalf("step %d: %v", n, err)
		}
		l.appended++
		if l.r == nil {
			l.offline++
		}
	}
}

func (l *life) acknowledge() {
	if l.r == nil {
		return
	}
	for _, d := range l.r.take() {
		l.arrive(d)
	}
}

func (l *life) arrive(d durable.Delivery) {
	device, err := strconv.Atoi(d.Message.Topic[len("sensors/") : len(d.Message.Topic)-len("/value")])
	if err != nil || len(d.Message.Payload) != 8 {
		l.t.Fatalf("delivered %q %x", d.Message.Topic, d.Message.Payload)
	}
	n := int64(binary.BigEndian.Uint64(d.Message.Payload))
	if n <= l.last[device] {
		l.t.Errorf("device %d: %d after %d", device, n, l.last[device])
	}
	if _, ok := l.events[n]; ok && device == 0 {
		l.events[n] = true
	}
	if n > l.last[device]+1 {
		l.gaps = append(l.gaps, gap{l.last[device], n})
	}
	l.last[device] = n
	l.delivered++
	l.s.Acked(l.q, d.Seq)
}

// attach catches up until the stream is live.
func (l *life) attach() {
	l.gaps = l.gaps[:0]
	l.r = &taker{window: l.devices + 1}
	if err := l.s.Attach(l.q, l.r); err != nil {
		l.t.Fatal(err)
	}
	for qos := byte(1); qos <= 2; qos++ {
		for live := false; !live; {
			var ds []durable.Delivery
			var err error
			if ds, live, err = l.s.Read(context.Background(), l.q, qos, 100, 1<<20); err != nil {
				l.t.Fatal(err)
			}
			for _, d := range ds {
				l.arrive(d)
			}
			if len(ds) == 0 && !live {
				synctest.Wait() // it is being thinned
			}
		}
	}
}

// checkOutage looks at what is left of an outage: its end to the last step, its
// beginning, and between them holes that are in proportion to their age.
func (l *life) checkOutage(from, to int64) {
	for i, last := range l.last {
		if last != to-1 {
			l.t.Errorf("outage from %d to %d: the last of device %d is %d", from, to, i, last)
		}
	}
	kept := float64(l.perDev) * thinKeep / 2 // at least, by slots of powers of two
	for _, g := range l.gaps {
		if g.from < from {
			l.t.Errorf("a hole from %d to %d: the first of the outage at %d is missing", g.from, g.to, from)
		}
		// With slots of age/r there are r*ln(outage) messages.
		age := float64(to - g.from)
		if most := 1 + 4*age*math.Log(float64(to-from))/kept; float64(g.to-g.from) > most {
			l.failed++
			if l.failed < 10 {
				l.t.Errorf("outage from %d to %d: a hole from %d to %d, wanted at most %.0f steps", from, to, g.from, g.to, most)
			}
		}
	}
}

func (l *life) fileSize() int64 {
	st := l.s.Status()
	return st.FileBytes + st.WALBytes
}

func (l *life) checkEnd(largest, bound int64) {
	// Time for the cursors, the vacuum and the checkpoint.
	time.Sleep(time.Hour) //nolint:forbidigo // the bubble's time
	synctest.Wait()
	l.acknowledge()
	st := l.s.Status()
	q := st.Queues[0]
	thinned := int64(q.Dropped[reasonThin])
	if q.Messages != 0 || q.Refused != 0 || l.delivered+thinned != l.appended {
		l.t.Errorf("appended %d, delivered %d, thinned %d, left %d, refused %d", l.appended, l.delivered, thinned, q.Messages, q.Refused)
	}
	for n, ok := range l.events {
		if !ok {
			l.t.Errorf("the event of step %d is missing", n)
		}
	}
	if int64(q.Committed) != l.offline { // the rest costs no flash
		l.t.Errorf("%d written, but %d came while the link was down", q.Committed, l.offline)
	}
	if thinned == 0 {
		l.t.Error("nothing was thinned: the outages were too short to show anything")
	}
	// Rows of about 100 bytes with their keys, and as much for the log and
	// what is being replaced.
	if most := bound*2*100 + 16<<20; largest > most {
		l.t.Errorf("%d bytes on disk for %d messages, wanted at most %d", largest, bound, most)
	}
	if small := int64(2 << 20); st.FileBytes > small {
		l.t.Errorf("%d bytes on disk after the drain, wanted at most %d", st.FileBytes, small)
	}
	l.t.Logf("%d days: %d appended, %d delivered, %d thinned, %d written; %d bytes on disk at most, %d at the end",
		l.days, l.appended, l.delivered, thinned, q.Committed, largest, st.FileBytes)
}
