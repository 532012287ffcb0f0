package sparkplug

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker/brokertest"
	"holdfast/broker/durable"
	"holdfast/broker/message"
)

// The broker routes a command while the store offers readings to the node: neither
// may wait for the other.
func TestCommandsAndReadingsDoNotWaitForEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, func(o *Options) { o.Commands = true })
		g.site.write = func() { // what a command does to the topic that the node also takes
			m := &message.Message{Topic: "sensors/pump/speed", Payload: []byte("7"), QoS: 1, Received: time.Now()}
			if err := g.store.Append(m, []durable.Claim{{Queue: g.node.Queue(), QoS: 1}}, durable.Origin{}, func(error) {}); err != nil {
				t.Error(err)
			}
			g.node.Observe(m)
		}
		g.run()
		g.publish("sensors/pump/speed", "1")
		g.got()
		g.command("spBv1.0/plant/DCMD/gw/pump", false, Metric{Name: "speed", Timestamp: time.Now(), Type: Double, Value: 7.0})
		got := g.got()
		if !slices.Contains(got, "DDATA pump seq=2 #1=7") {
			t.Errorf("the host has %q", got)
		}
		g.emptied()
		g.close()
	})
}

// Clocks of devices often have whole seconds only.
func TestEqualTimesAreNotTheSameValue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, nil)
		g.run()
		at := time.Now().UnixMilli()
		g.publish("sensors/meter/power", fmt.Sprintf("%d:1", at))
		g.expect("NBIRTH seq=0 bdSeq:Int64=0 Node Control/Rebirth:Boolean=false", "DBIRTH meter seq=1 power#1:Double=1")
		at += 1000
		for i := range 3 {
			g.publish("sensors/meter/power", fmt.Sprintf("%d:%d", at, i+2))
		}
		g.expect("DDATA meter seq=2 #1=2", "DDATA meter seq=3 #1=3", "DDATA meter seq=4 #1=4")
		g.emptied()
		g.close()
	})
}

// The queue's message of a value that went ahead is done when that value has gone
// out, not when the queue comes to it.
func TestShownValueIsDoneOnlyWhenItIsSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, nil)
		defer g.close()
		n := g.node
		now := time.Now()
		r := Reading{Device: "meter", Metric: "power", Value: 1.0, Good: true, Time: now}
		n.model.note(&r, now)
		m := n.model.devices["meter"].metrics["power"]
		m.born, m.device.born = true, true
		m.tell(r.Time, r.Value, r.Good)
		s := &session{n: n, born: true, full: true}
		r.Value, r.Time = 2.0, now.Add(time.Second)
		s.observeLocked(r, true, now)
		payload := fmt.Sprintf("%d:2", r.Time.UnixMilli())
		s.takeLocked(durable.Delivery{Seq: 7, Message: &message.Message{Topic: "sensors/meter/power", Payload: []byte(payload)}}, false)
		if err := s.flushLocked(now); err != nil {
			t.Error(err)
		}
		if len(s.unconfirmed) != 0 || len(s.out) != 2 {
			t.Errorf("%d to be confirmed, %d in line; want 0 and 2", len(s.unconfirmed), len(s.out))
		}
	})
}

// What is measured after the clock has gone back is as current as before.
func TestClockGoesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, nil)
		g.run()
		ms := func(ahead time.Duration) int64 { return time.Now().Add(ahead).UnixMilli() }
		g.publish("sensors/meter/power", fmt.Sprintf("%d:1", ms(time.Hour)))
		g.got()
		g.publish("sensors/meter/power", fmt.Sprintf("%d:2", ms(0)))
		g.publish("sensors/meter/power", fmt.Sprintf("%d:3", ms(0)))
		g.expect("DDATA meter seq=2 #1=2", "DDATA meter seq=3 #1=3")
		g.command("spBv1.0/plant/NCMD/gw", false, Metric{Name: "Node Control/Rebirth", Timestamp: time.Now(), Type: Boolean, Value: true})
		if got := g.got(); !slices.Contains(got, "DBIRTH meter seq=1 power#1:Double=3") {
			t.Errorf("born again as %q", got)
		}
		g.emptied()
		g.close()
	})
}

// A message may carry all values of a device, new ones among them.
func TestMessageOfAWholeDevice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, nil)
		g.run()
		g.publish("sensors/tank", "level=1 flow=2")
		g.expect("NBIRTH seq=0 bdSeq:Int64=0 Node Control/Rebirth:Boolean=false", "DBIRTH tank seq=1 level#1:Double=1 flow#2:Double=2")
		g.publish("sensors/tank", "level=3 flow=4")
		g.expect("DDATA tank seq=2 #1=3 #2=4")
		g.publish("sensors/tank", "level=5 flow=6 heat=7")
		got := strings.Join(g.got(), "\n")
		for _, want := range []string{"#1=5", "#2=6", "DBIRTH tank seq=4 level#1:Double=5 flow#2:Double=6 heat#3:Double=7"} {
			if !strings.Contains(got, want) {
				t.Errorf("%s is missing in\n%s", want, got)
			}
		}
		g.emptied()
		g.close()
	})
}

// A whole number is a Double like its neighbours, unless Double cannot hold it.
func TestTypesOfNumbers(t *testing.T) {
	var m metric
	for _, c := range []struct {
		typ  DataType
		v    any
		want any
	}{
		{Double, int64(23), 23.0},
		{Double, uint64(23), 23.0},
		{Double, -23.5, -23.5},
		{Double, int64(-1 << 60), int64(-1 << 60)},
		{Double, uint64(1 << 63), uint64(1 << 63)},
		{Int64, int64(-5), int64(-5)},
		{Int64, 5.0, int64(5)},
		{Int64, 5.5, 5.5},
		{UInt64, int64(5), uint64(5)},
		{UInt64, int64(-5), -5.0},
		{Double, "5", "5"},
		{Double, true, true},
		{Double, nil, nil},
	} {
		m.typ = c.typ
		if got := m.fit(c.v); got != c.want {
			t.Errorf("%v(%T) in %v is %v(%T), want %v(%T)", c.v, c.v, c.typ, got, got, c.want, c.want)
		}
	}
}

// A birth that the host's broker does not take would be tried for ever.
func TestBirthLargerThanTheServerTakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGatewayAt(t, brokertest.New(t, nil, brokertest.MaxPacketSize(2048)), nil)
		g.run()
		g.got()
		for i := range 100 {
			g.publish(fmt.Sprintf("sensors/large/a point with a long name %03d", i), "1")
		}
		g.publish("sensors/small/x", "1")
		births := strings.Join(g.got(), "\n")
		if !strings.Contains(births, "DBIRTH small") || !strings.Contains(births, "DBIRTH large") {
			t.Errorf("born: %s", births)
		}
		g.publish("sensors/large/a point with a long name 000", "2")
		g.publish("sensors/large/a point with a long name 099", "2")
		g.publish("sensors/small/x", `"`+strings.Repeat("x", 3000)+`"`) // another type, and no room for its birth
		if got := strings.Join(g.got(), "\n"); strings.Count(got, "=2") != 1 {
			t.Errorf("the host has %s", got)
		}
		if s := g.node.Status(); s.Connects != 1 || s.Refused == 0 || s.State != StateUp {
			t.Errorf("%d connections, %d refused, %s", s.Connects, s.Refused, s.State)
		}
		g.emptied()
		g.close()
	})
}

// One value that is too large takes none with it.
func TestValueLargerThanTheServerTakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGatewayAt(t, brokertest.New(t, nil, brokertest.MaxPacketSize(2048)), nil)
		g.run()
		g.publish("sensors/door/state", `"open"`)
		g.got()
		g.setDown(true)
		g.got()
		for i := range 50 {
			text := fmt.Sprintf(`"v%d."`, i)
			if i == 25 {
				text = `"` + strings.Repeat("x", 3000) + `"`
			}
			g.publish("sensors/door/state", text)
		}
		g.setDown(false)
		got := strings.Join(g.got(), "\n")
		for i := range 50 {
			if i != 25 && !strings.Contains(got, fmt.Sprintf("v%d.", i)) {
				t.Errorf("value %d is missing", i)
			}
		}
		if s := g.node.Status(); s.Refused != 1 {
			t.Errorf("%d refused", s.Refused)
		}
		g.emptied()
		g.close()
	})
}

func TestTwentyThousandMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGatewayAt(t, brokertest.New(t, nil, brokertest.MaxPacketSize(16<<20)), nil)
		g.run()
		for i := range maxMetrics + 10 {
			topic := fmt.Sprintf("sensors/d%d/p%d", i%7, i)
			g.node.Observe(&message.Message{Topic: topic, Payload: []byte("1"), QoS: 1, Received: time.Now()})
		}
		g.got()
		born := 0
		g.node.mu.Lock()
		for _, m := range g.node.model.byAlias {
			if m.born {
				born++
			}
		}
		g.node.mu.Unlock()
		if born != maxMetrics {
			t.Errorf("%d metrics were born", born)
		}
		before := g.node.Status()
		for range 3 { // one after the other, faster than the host takes them
			g.command("spBv1.0/plant/NCMD/gw", false, Metric{Name: "Node Control/Rebirth", Timestamp: time.Now(), Type: Boolean, Value: true})
			pass(3 * time.Second)
		}
		s := g.node.Status()
		if s.NodeBirths-before.NodeBirths != 3 || s.Births-before.Births != 3*7 || s.Connects != 1 {
			t.Errorf("%d births of the node, %d of devices, %d connections", s.NodeBirths-before.NodeBirths, s.Births-before.Births, s.Connects)
		}
		g.close()
	})
}

// Names and texts of strangers are bounded.
func TestNamesAreBounded(t *testing.T) {
	x := newModel()
	long := strings.Repeat("x", 60<<10)
	now := time.Now()
	for i := range 1000 {
		x.note(&Reading{Device: "d", Metric: fmt.Sprint(i, long), Value: long, Time: now}, now)
	}
	if x.bytes > maxNames || x.metrics > maxNames/len(long) {
		t.Errorf("%d bytes of %d metrics", x.bytes, x.metrics)
	}
	x.forget(x.devices["d"])
	if x.bytes != 0 || x.metrics != 0 {
		t.Errorf("%d bytes of %d metrics are left", x.bytes, x.metrics)
	}
}

func TestDevicesWithStrangeNames(t *testing.T) {
	x := newModel()
	for device, ok := range map[string]bool{"a": true, "ü b": true, "": false, "a/b": false, "+": false, "#": false, "a\x00": false} {
		if got := x.note(&Reading{Device: device, Metric: "m", Value: 1.0, Time: time.Now()}, time.Now()); (got != nil) != ok {
			t.Errorf("%q: %v", device, got)
		}
	}
}

// QoS 0 is live only, and bounded while the link takes nothing.
func TestQoS0IsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, nil)
		defer g.close()
		s := &session{n: g.node, born: true, full: true}
		for i := range 3 * maxAhead {
			now := time.Now()
			s.observeLocked(Reading{Device: "meter", Metric: "power", Value: float64(i), Good: true, Time: now}, false, now)
			if i == 0 {
				d := g.node.model.devices["meter"]
				d.born, d.metrics["power"].born, d.waiting = true, true, nil
			}
			pass(time.Millisecond)
		}
		if len(s.out) != maxAhead || g.node.status.Dropped == 0 {
			t.Errorf("%d in line, %d dropped", len(s.out), g.node.status.Dropped)
		}
	})
}

// An attempt that reaches no server uses no number and writes nothing.
func TestNumbersAreOfConnects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, nil)
		g.setDown(true)
		g.run()
		pass(time.Hour)
		if n := g.store.Number("sparkplug/scada/next_bdSeq"); n != 1 {
			t.Errorf("the next number is %d, want 1", n)
		}
		g.setDown(false)
		g.expect("NBIRTH seq=0 bdSeq:Int64=0 Node Control/Rebirth:Boolean=false")
		for i := 1; i <= 256; i++ {
			g.setDown(true)
			g.setDown(false)
			got := g.got()
			want := fmt.Sprintf("NBIRTH seq=0 bdSeq:Int64=%d Node Control/Rebirth:Boolean=false", i%256)
			if got[len(got)-1] != want || got[0] != fmt.Sprintf("NDEATH bdSeq:Int64=%d", i-1) {
				t.Fatalf("connection %d: %q", i, got)
			}
		}
		g.close()
	})
}

// The store may be gone before the node.
func TestStoreIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, nil)
		g.run()
		g.publish("sensors/meter/power", "1")
		g.got()
		if err := g.store.Close(); err != nil {
			t.Error(err)
		}
		g.node.Observe(&message.Message{Topic: "sensors/meter/power", Payload: []byte("2"), Received: time.Now()})
		g.expect("DDATA meter seq=2 #1=2") // live values still go
		g.setDown(true)
		g.setDown(false)
		g.got()
		g.stop()
	})
}

// Connections end at any moment, hosts ask for births, the gateway restarts: every
// value comes, each session's numbers follow each other, and its births come before
// its data.
func TestNothingIsLostOverBadConnections(t *testing.T) {
	for seed := range uint64(20) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { badConnections(t, rand.New(rand.NewPCG(seed, 1))) })
		})
	}
}

func badConnections(t *testing.T, rnd *rand.Rand) {
	t.Helper()
	g := newGateway(t, func(o *Options) { o.Aliases = rnd.IntN(2) == 0 })
	g.run()
	want := map[string]bool{}
	h := newHostView(t)
	for i := range 600 {
		topic := fmt.Sprintf("sensors/d%d/m%d", rnd.IntN(4), rnd.IntN(3+i/100))
		g.publish(topic, fmt.Sprint(i))
		want[fmt.Sprintf("%s=%d", strings.TrimPrefix(topic, "sensors/"), i)] = true
		switch rnd.IntN(60) {
		case 0:
			g.setDown(true)
			pass(time.Duration(rnd.Int64N(5e9)))
			g.setDown(false)
		case 1:
			pass(time.Duration(rnd.Int64N(2e9)))
		case 2:
			g.command("spBv1.0/plant/NCMD/gw", false, Metric{Name: "Node Control/Rebirth", Timestamp: time.Now(), Type: Boolean, Value: true})
		case 3:
			g.node.SetDevice("d1", rnd.IntN(2) == 0)
		case 4:
			g.close()
			g.open()
			g.run()
		case 5:
			g.node.RemoveDevice("d2")
		}
		h.take(g)
	}
	g.node.SetDevice("d1", true)
	pass(5 * time.Minute)
	synctest.Wait()
	h.take(g)
	for v := range want {
		if !h.values[v] {
			t.Errorf("%s has not come", v)
		}
	}
	g.emptied()
	g.close()
}

// hostView is what a host knows.
type hostView struct {
	t       *testing.T
	seq     uint64
	alive   bool
	born    map[string]bool
	aliases map[uint64]string
	values  map[string]bool
}

func newHostView(t *testing.T) *hostView {
	t.Helper()
	return &hostView{t: t, values: map[string]bool{}}
}

func (h *hostView) take(g *gateway) {
	h.t.Helper()
	for _, p := range g.watcher.Rest() {
		parts := strings.Split(string(p.Topic), "/")
		if parts[2] == "NCMD" {
			continue
		}
		d, err := Parse(p.Payload)
		if err != nil {
			h.t.Fatal(err)
		}
		if parts[2] == "NDEATH" {
			h.alive = false
			continue
		}
		if parts[2] == "NBIRTH" {
			h.alive, h.seq, h.born, h.aliases = true, 0, map[string]bool{}, map[uint64]string{}
		}
		if !h.alive {
			continue // what a dead session had on its way
		}
		if d.Seq != h.seq {
			h.t.Errorf("%s has seq %d, want %d", p.Topic, d.Seq, h.seq)
		}
		h.seq = (h.seq + 1) % 256
		if len(parts) < 5 {
			continue
		}
		device := parts[4]
		switch parts[2] {
		case "DBIRTH":
			h.born[device] = true
		case "DDEATH":
			h.born[device] = false
		default:
			if !h.born[device] {
				h.t.Errorf("%s of a device that is not born", p.Topic)
			}
		}
		for _, m := range d.Metrics {
			name := m.Name
			switch {
			case parts[2] == "DBIRTH":
				h.aliases[m.Alias] = device + "/" + name
			case name == "":
				if owner, rest, _ := strings.Cut(h.aliases[m.Alias], "/"); owner == device {
					name = rest
				} else {
					h.t.Errorf("%s: alias %d is of %q", p.Topic, m.Alias, h.aliases[m.Alias])
				}
			}
			h.values[fmt.Sprintf("%s/%s=%v", device, name, m.Value)] = true
		}
	}
}
