package sparkplug

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker/brokertest"
	"holdfast/broker/durable"
	"holdfast/broker/message"
	"holdfast/broker/packet"
	"holdfast/storeforward"
)

// site reads messages whose topic is sensors/DEVICE/METRIC and whose payload is
// a number or "bad".
type site struct {
	mu       sync.Mutex
	commands []string
	about    []Metric
	write    func() // called by Command
}

func (s *site) About() []Metric { return s.about }

func (*site) Readings(m *message.Message) []Reading {
	parts := strings.Split(m.Topic, "/")
	if len(parts) == 2 && parts[0] == "sensors" { // a whole device: NAME=NUMBER ...
		var rs []Reading
		for field := range strings.FieldsSeq(string(m.Payload)) {
			var f float64
			name, number, _ := strings.Cut(field, "=")
			if _, err := fmt.Sscan(number, &f); err == nil {
				rs = append(rs, Reading{Device: parts[1], Metric: name, Value: f, Good: true, Time: m.Received})
			}
		}
		return rs
	}
	if len(parts) != 3 {
		return nil
	}
	r := Reading{Device: parts[1], Metric: parts[2], Time: m.Received}
	var f float64
	if at, number, ok := strings.Cut(string(m.Payload), ":"); ok { // MILLISECONDS:NUMBER
		var ms int64
		if _, err := fmt.Sscan(at, &ms); err == nil {
			_, err = fmt.Sscan(number, &f)
			r.Value, r.Good, r.Time = f, err == nil, time.UnixMilli(ms)
		}
	} else if _, err := fmt.Sscan(string(m.Payload), &f); err == nil {
		r.Value, r.Good, r.Unit = f, true, "W"
	} else if strings.HasPrefix(string(m.Payload), `"`) {
		r.Value, r.Good = string(m.Payload), true
	}
	return []Reading{r}
}

func (s *site) Command(device, metric string, value any) error {
	if s.write != nil {
		s.write()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.commands = append(s.commands, fmt.Sprintf("%s %s=%v", device, metric, value))
	return nil
}

// gateway is a node, its store, and the broker and recorder of a host.
type gateway struct {
	t     *testing.T
	dir   string
	opts  Options
	store *storeforward.Store
	node  *Node
	site  *site
	stop  func()

	host    *brokertest.Broker
	watcher *brokertest.Client

	mu   sync.Mutex
	down bool
	last net.Conn
}

func newGateway(t *testing.T, change func(*Options)) *gateway {
	t.Helper()
	return newGatewayAt(t, brokertest.New(t, nil), change)
}

// newGatewayAt is one whose host has that broker.
func newGatewayAt(t *testing.T, host *brokertest.Broker, change func(*Options)) *gateway {
	t.Helper()
	g := &gateway{t: t, dir: t.TempDir(), host: host, site: new(site)}
	g.watcher = brokertest.Connect(t, g.host.Pipe(), brokertest.V5("host"))
	g.watcher.Subscribe(1, "spBv1.0/+/+/+/#")
	g.opts = DefaultOptions()
	g.opts.URL, g.opts.Group, g.opts.Gateway, g.opts.Topics = "mqtt://host", "plant", "gw", []string{"sensors/#"}
	g.opts.Dial = func(context.Context, string, string) (net.Conn, error) {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.down {
			return nil, errors.New("no way there")
		}
		g.last = g.host.Pipe()
		return g.last, nil
	}
	if change != nil {
		change(&g.opts)
	}
	g.open()
	return g
}

func (g *gateway) open() {
	g.t.Helper()
	o := storeforward.DefaultOptions()
	o.Path = filepath.Join(g.dir, "store.db")
	var err error
	if g.store, err = storeforward.Open(g.t.Context(), o, slog.New(slog.DiscardHandler)); err != nil {
		g.t.Fatal(err)
	}
	if g.node, err = New("scada", g.opts, g.store, g.site, slog.New(slog.DiscardHandler)); err != nil {
		g.t.Fatal(err)
	}
	g.stop = func() {}
}

// run connects the node until close.
func (g *gateway) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.node.Run(ctx) }()
	g.stop = func() {
		cancel()
		if err := <-done; err != nil {
			g.t.Error(err)
		}
	}
}

func (g *gateway) close() {
	g.stop()
	if err := g.store.Close(); err != nil {
		g.t.Error(err)
	}
}

func (g *gateway) setDown(down bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.down = down
	if down && g.last != nil {
		g.last.Close()
	}
}

// publish has the gateway publish a reading, as the broker would: into the queue,
// and at the same time to Observe.
func (g *gateway) publish(topic, payload string) {
	g.t.Helper()
	m := &message.Message{Topic: topic, Payload: []byte(payload), QoS: 1, Received: time.Now()}
	g.node.Observe(m)
	if err := g.store.Append(m, []durable.Claim{{Queue: g.node.Queue(), QoS: 1}}, durable.Origin{}, func(error) {}); err != nil {
		g.t.Fatal(err)
	}
	pass(10 * time.Millisecond) // fake: the next has another time
}

// got returns what the host has had since the last call, one line a message.
func (g *gateway) got() []string {
	g.t.Helper()
	pass(time.Minute)
	synctest.Wait()
	var lines []string
	for _, p := range g.watcher.Rest() {
		lines = append(lines, g.line(p))
	}
	return lines
}

// line is a message for people: kind/device, seq, metrics.
func (g *gateway) line(p *packet.Publish) string {
	g.t.Helper()
	if p.Retain {
		g.t.Errorf("%s is retained", p.Topic)
	}
	parts := strings.SplitN(string(p.Topic), "/", 4)
	if parts[0] != "spBv1.0" || parts[1] != "plant" || !strings.HasPrefix(parts[3], "gw") {
		g.t.Errorf("topic %s", p.Topic)
	}
	d, err := Parse(p.Payload)
	if err != nil {
		g.t.Fatal(err)
	}
	line := parts[2]
	if _, device, ok := strings.Cut(parts[3], "/"); ok {
		line += " " + device
	}
	if d.HasSeq {
		line += fmt.Sprintf(" seq=%d", d.Seq)
	}
	if d.Timestamp.IsZero() {
		g.t.Errorf("%s has no timestamp", line)
	}
	for _, m := range d.Metrics {
		line += " " + m.Name
		if m.HasAlias {
			line += fmt.Sprintf("#%d", m.Alias)
		}
		if m.Type != Unknown {
			line += ":" + m.Type.String()
		}
		line += fmt.Sprintf("=%v", m.Value)
		if m.Historical {
			line += "(historical)"
		}
		if m.Timestamp.IsZero() {
			g.t.Errorf("%s: metric without timestamp", line)
		}
		if m.Properties != nil {
			if i := slices.Index(m.Properties.Keys, "Quality"); i >= 0 && m.Properties.Values[i].Value != uint32(qualityGood) {
				line += "(bad)"
			}
		}
	}
	return line
}

// pass lets fake time go by.
func pass(d time.Duration) { <-time.After(d) }

func (g *gateway) expect(want ...string) {
	g.t.Helper()
	got := g.got()
	if !slices.Equal(got, want) {
		g.t.Errorf("the host has\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

func (g *gateway) emptied() {
	g.t.Helper()
	if n, _ := g.store.Backlog(g.node.Queue()); n != 0 {
		g.t.Errorf("%d messages are left in the queue", n)
	}
}

func TestBirthDataDeath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, nil)
		g.run()
		g.expect("NBIRTH seq=0 bdSeq:Int64=0 Node Control/Rebirth:Boolean=false")
		g.publish("sensors/meter/power", "1.5")
		g.publish("sensors/meter/energy", "7")
		g.expect("DBIRTH meter seq=1 power#1:Double=1.5 energy#2:Double=7")
		g.publish("sensors/meter/power", "2.5")
		g.publish("sensors/meter/power", "bad")
		g.publish("sensors/meter/power", "3")
		g.expect("DDATA meter seq=2 #1=2.5", "DDATA meter seq=3 #1=<nil>(bad)", "DDATA meter seq=4 #1=3")
		g.emptied()
		g.publish("sensors/meter/state", `"on"`) // a metric that is new
		g.expect(`DBIRTH meter seq=5 energy#2:Double=7 power#1:Double=3 state#3:String="on"`)
		g.publish("sensors/meter/state", "1") // of another type now
		g.expect("DBIRTH meter seq=6 energy#2:Double=7 power#1:Double=3 state#3:Double=1")
		g.publish("other", "1") // no reading
		g.node.SetDevice("meter", false)
		g.expect("DDEATH meter seq=7")
		g.publish("sensors/meter/power", "bad") // what the death has said
		g.expect()
		g.node.SetDevice("meter", true)
		g.expect("DBIRTH meter seq=8 energy#2:Double=7 state#3:Double=1 power#1:Double=<nil>(bad)")
		g.node.RemoveDevice("meter")
		g.expect("DDEATH meter seq=9")
		g.emptied()
		g.close()
		g.expect("NDEATH bdSeq:Int64=0")
		g.open() // a restart
		g.run()
		g.expect("NBIRTH seq=0 bdSeq:Int64=1 Node Control/Rebirth:Boolean=false")
		g.close()
	})
}

func TestSequenceWrapsAround(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, nil)
		g.run()
		var want uint64
		for i := range 300 {
			g.publish("sensors/meter/power", fmt.Sprint(i))
			pass(3 * time.Second)
		}
		synctest.Wait()
		n := 0
		for _, p := range g.watcher.Rest() {
			d, err := Parse(p.Payload)
			if err != nil || d.Seq != want {
				t.Fatalf("message %d: seq %d, want %d, %v", n, d.Seq, want, err)
			}
			want = (want + 1) % 256
			n++
		}
		if n < 256 {
			t.Errorf("%d messages", n)
		}
		g.close()
	})
}

// What was measured while the host was out of reach comes as historical, in its
// order, and nothing twice; what is measured meanwhile comes first.
func TestOutageBecomesHistory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, nil)
		g.run()
		g.publish("sensors/meter/power", "0")
		g.expect("NBIRTH seq=0 bdSeq:Int64=0 Node Control/Rebirth:Boolean=false", "DBIRTH meter seq=1 power#1:Double=0")
		g.setDown(true)
		if got := g.got(); !slices.Equal(got, []string{"NDEATH bdSeq:Int64=0"}) {
			t.Errorf("the will: %v", got)
		}
		for i := range 5 {
			g.publish("sensors/meter/power", fmt.Sprint(i+1))
		}
		g.setDown(false)
		got := g.got()
		if len(got) != 3 || !strings.HasPrefix(got[0], "NBIRTH seq=0") || got[1] != "DBIRTH meter seq=1 power#1:Double=5" ||
			got[2] != "DDATA meter seq=2 #1=1(historical) #1=2(historical) #1=3(historical) #1=4(historical)" {
			t.Errorf("after the outage:\n  %s", strings.Join(got, "\n  "))
		}
		g.emptied()
		g.publish("sensors/meter/power", "6")
		g.expect("DDATA meter seq=3 #1=6")
		g.close()
	})
}

// A restarted gateway knows no metrics; what it finds in the queue is old.
func TestBacklogOfAnEarlierRunIsHistorical(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, nil)
		for i := range 1500 {
			g.publish("sensors/meter/power", fmt.Sprint(i))
		}
		g.close()
		g.open()
		g.run()
		got := g.got()
		values, historical := 0, 0
		for _, line := range got {
			if strings.HasPrefix(line, "DDATA") {
				values += strings.Count(line, "#1=")
				historical += strings.Count(line, "(historical)")
			}
		}
		if values < 1499 || values > 1500 || historical != values {
			t.Errorf("%d values, %d historical", values, historical)
		}
		g.emptied()
		g.close()
	})
}

// What was sent and not confirmed by the answer to a later PINGREQ is sent again.
func TestUnconfirmedIsSentAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, nil)
		g.run()
		g.publish("sensors/meter/power", "0")
		g.got()
		// The connection ends right behind the data, before PINGRESP.
		for range 20 {
			g.publish("sensors/meter/power", "1")
		}
		before := g.node.Status().Confirmed
		g.setDown(true)
		synctest.Wait()
		left, _ := g.store.Backlog(g.node.Queue())
		g.setDown(false)
		seen := 0
		for _, line := range g.got() {
			seen += strings.Count(line, "=1")
		}
		if left == 0 || g.node.Status().Confirmed-before < uint64(left) {
			t.Errorf("%d were left, %d confirmed", left, g.node.Status().Confirmed-before)
		}
		if seen < 20 {
			t.Errorf("%d of 20 came", seen)
		}
		g.emptied()
		g.close()
	})
}

func (g *gateway) command(topic string, retain bool, ms ...Metric) {
	p := &Payload{Timestamp: time.Now(), Metrics: ms}
	g.watcher.Publish(0, retain, topic, string(p.Append(nil)))
}

func TestRebirthIsDebounced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, nil)
		g.run()
		g.publish("sensors/meter/power", "1")
		g.got()
		for range 5 {
			g.command("spBv1.0/plant/NCMD/gw", false, Metric{Name: "Node Control/Rebirth", Timestamp: time.Now(), Type: Boolean, Value: true})
		}
		g.command("spBv1.0/plant/NCMD/gw", false, Metric{Name: "Node Control/Rebirth", Timestamp: time.Now(), Type: Boolean, Value: false})
		var births []string
		for _, line := range g.got() {
			if !strings.HasPrefix(line, "NCMD") {
				births = append(births, line)
			}
		}
		want := []string{
			"NBIRTH seq=0 bdSeq:Int64=0 Node Control/Rebirth:Boolean=false", "DBIRTH meter seq=1 power#1:Double=1",
			"NBIRTH seq=0 bdSeq:Int64=0 Node Control/Rebirth:Boolean=false", "DBIRTH meter seq=1 power#1:Double=1",
		}
		if !slices.Equal(births, want) && !slices.Equal(births, want[:2]) {
			t.Errorf("births:\n  %s", strings.Join(births, "\n  "))
		}
		if n := g.node.Status().Rebirths; n != 5 {
			t.Errorf("%d asked for", n)
		}
		g.close()
	})
}

func TestCommands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, func(o *Options) { o.Commands = true })
		g.run()
		g.publish("sensors/pump/speed", "1")
		g.got()
		at := time.Now()
		g.command("spBv1.0/plant/DCMD/gw/pump", false,
			Metric{Name: "speed", Timestamp: at, Type: Int16, Value: uint32(0xffff)},
			Metric{Alias: 1, HasAlias: true, Timestamp: at, Type: Float, Value: float32(1.5)},
			Metric{Name: "colour", Timestamp: at, Type: String, Value: "red"})
		g.command("spBv1.0/plant/DCMD/gw/tank", false, Metric{Alias: 1, HasAlias: true, Timestamp: at, Type: Double, Value: 2.0})
		g.command("spBv1.0/plant/NCMD/gw", false, Metric{Name: "Node Control/Reboot", Timestamp: at, Type: Boolean, Value: true})
		g.watcher.Publish(0, false, "spBv1.0/plant/NCMD/gw", "\x12")
		pass(time.Second)
		synctest.Wait()
		g.site.mu.Lock()
		if want := []string{"pump speed=-1", "pump speed=1.5"}; !slices.Equal(g.site.commands, want) {
			t.Errorf("commands %v, want %v", g.site.commands, want)
		}
		g.site.mu.Unlock()
		if s := g.node.Status(); s.Commands != 2 || s.BadCommand != 4 {
			t.Errorf("%d commands, %d refused", s.Commands, s.BadCommand)
		}
		g.close()
	})
}

func TestCommandsAreOffUnlessAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, nil)
		g.run()
		g.publish("sensors/pump/speed", "1")
		g.got()
		g.command("spBv1.0/plant/DCMD/gw/pump", false, Metric{Name: "speed", Timestamp: time.Now(), Type: Double, Value: 2.0})
		pass(time.Second)
		synctest.Wait()
		if s := g.node.Status(); s.Commands != 0 || s.BadCommand != 1 || len(g.site.commands) != 0 {
			t.Errorf("%d commands, %d refused: %v", s.Commands, s.BadCommand, g.site.commands)
		}
		g.close()
	})
}

// A command that the broker has kept is not done again at every connection.
func TestRetainedCommandsAreIgnored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, nil)
		g.command("spBv1.0/plant/NCMD/gw", true, Metric{Name: "Node Control/Rebirth", Timestamp: time.Now(), Type: Boolean, Value: true})
		g.run()
		pass(time.Minute)
		synctest.Wait()
		if s := g.node.Status(); s.Rebirths != 0 || s.NodeBirths != 1 || s.BadCommand != 1 {
			t.Errorf("%d births, %d rebirths, %d refused", s.NodeBirths, s.Rebirths, s.BadCommand)
		}
		g.close()
	})
}

// Nothing is sent while the primary host is away; what is measured waits.
func TestPrimaryHost(t *testing.T) {
	for _, form := range []struct {
		name, topic, online, offline string
	}{
		{"3.0", "spBv1.0/STATE/scada", `{"online":true,"timestamp":%d}`, `{"online":false,"timestamp":%d}`},
		{"2.2", "STATE/scada", "ONLINE", "OFFLINE"},
	} {
		t.Run(form.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				say := func(format string, at time.Time) string {
					if !strings.Contains(format, "%d") {
						return format
					}
					return fmt.Sprintf(format, at.UnixMilli())
				}
				g := newGateway(t, func(o *Options) { o.PrimaryHost = "scada" })
				g.run()
				g.publish("sensors/meter/power", "1")
				if got := g.got(); len(got) != 0 {
					t.Errorf("sent without a host: %v", got)
				}
				if s := g.node.Status(); s.State != StateWaiting {
					t.Errorf("state %s", s.State)
				}
				born := time.Now()
				g.watcher.Publish(1, true, form.topic, say(form.online, born))
				g.state(`NBIRTH seq=0 bdSeq:Int64=0 Node Control/Rebirth:Boolean=false`, `DBIRTH meter seq=1 power#1:Double=1`)
				if form.name == "3.0" { // a death of an earlier life
					g.watcher.Publish(1, true, form.topic, say(form.offline, born.Add(-time.Second)))
					g.state()
				}
				g.watcher.Publish(1, true, form.topic, "nonsense")
				g.state()
				g.watcher.Publish(1, true, form.topic, say(form.offline, time.Now()))
				g.state("NDEATH bdSeq:Int64=0")
				g.publish("sensors/meter/power", "2")
				g.publish("sensors/meter/power", "3")
				g.state()
				g.watcher.Publish(1, true, form.topic, say(form.online, time.Now()))
				got := g.states()
				if len(got) != 3 || !strings.HasPrefix(got[0], "NBIRTH") || got[1] != "DBIRTH meter seq=1 power#1:Double=3" ||
					got[2] != "DDATA meter seq=2 #1=2(historical)" {
					t.Errorf("the host is back:\n  %s", strings.Join(got, "\n  "))
				}
				g.close()
			})
		})
	}
}

// state is expect without the STATE messages that the test itself has sent.
func (g *gateway) state(want ...string) {
	g.t.Helper()
	if got := g.states(); !slices.Equal(got, want) {
		g.t.Errorf("the host has\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

func (g *gateway) states() []string {
	g.t.Helper()
	pass(2 * time.Minute)
	synctest.Wait()
	var lines []string
	for _, p := range g.watcher.Rest() {
		if !strings.Contains(string(p.Topic), "STATE/") {
			lines = append(lines, g.line(p))
		}
	}
	return lines
}

func TestOptions(t *testing.T) {
	for _, c := range []struct {
		change func(*Options)
		says   string
	}{
		{func(*Options) {}, ""},
		{func(o *Options) { o.Group = "" }, "group: is missing"},
		{func(o *Options) { o.Group = "a/b" }, `group: "a/b" holds a character that a Sparkplug id cannot: / + #`},
		{func(o *Options) { o.Node = "+" }, `node: "+" holds a character that a Sparkplug id cannot: / + #`},
		{func(o *Options) { o.PrimaryHost = "#" }, `primary_host: "#" holds a character that a Sparkplug id cannot: / + #`},
		{func(o *Options) { o.Protocol = "4" }, `protocol: "4" is not one of "auto", "5.0", "3.1.1"`},
		{func(o *Options) { o.KeepAlive = time.Second }, "keep_alive: 1s is outside 5s..18h0m0s"},
		{func(o *Options) { o.KeepAlive = 5500 * time.Millisecond }, "keep_alive: 5.5s is not in whole seconds"},
		{func(o *Options) { o.ReconnectMax = 1 }, "reconnect_max: 1ns is outside 1s..24h0m0s"},
		{func(o *Options) { o.Topics = nil }, "topics: is empty"},
	} {
		o := DefaultOptions()
		o.URL, o.Group, o.Gateway, o.Topics = "mqtt://host", "plant", "gw", []string{"sensors/#"}
		c.change(&o)
		says := ""
		if err := o.Validate(); err != nil {
			says = err.Error()
		}
		if says != c.says {
			t.Errorf("%q, want %q", says, c.says)
		}
	}
}
