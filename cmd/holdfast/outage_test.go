package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/broker/client"
	"holdfast/broker/message"
	"holdfast/broker/packet"
	"holdfast/cmd/holdfast/console"
	"holdfast/storeforward/uplink"
	"holdfast/storeforward/uplink/relaytest"
)

// outageCloud is a broker as the cloud of the campaign.
type outageCloud struct {
	address            string
	username, password string
	// once says that it keeps QoS 2 exactly once across connections.
	once bool
	// commands says that it keeps what is for a session while that is away.
	commands bool
	// shuffles says that it sends again in another order, while a first coming
	// is still under way: order down is not what the gateway can keep.
	shuffles bool
	// noQoS0 leaves QoS 0 out: nats-server 2.11 and 2.12 send broken packets
	// to a subscriber of QoS 0 and others on one connection.
	noQoS0 bool
}

// TestOutages is a short campaign, with a second Holdfast as the cloud.
func TestOutages(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("takes a quarter of a minute")
	}
	outages(t, holdfastCloud(t), number("HOLDFAST_OUTAGES", 10))
}

// holdfastCloud is a second Holdfast.
func holdfastCloud(t *testing.T) outageCloud {
	t.Helper()
	c := outageCloud{address: freeAddress(t), once: true, commands: true}
	dir := t.TempDir()
	startDaemon(t, daemonBinary(), "run", "--listen", "tcp://"+c.address, "--data", dir)
	waitUntil(t, "the cloud", func() bool { return answers(c.address) })
	return c
}

// outages is the campaign: messages of every QoS go both ways between clients
// of a gateway and clients of its cloud, the link between the two has one
// accident after the other, and in the end nothing acknowledged is lost, QoS 2
// came once, and every topic and QoS in order. The gateway's memory stays what
// it was.
func outages(t *testing.T, cloud outageCloud, count int) {
	t.Helper()
	link, err := relaytest.New(t.Context(), cloud.address, relaytest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(link.Close)
	address := freeAddress(t)
	gateway, socket := startGateway(t, "tcp://"+address, fmt.Sprintf(`url = "mqtt://%s"
username = %q
password = %q
keep_alive = "5s"
connect_timeout = "2s"
ack_timeout = "3s"
reconnect_min = "20ms"
reconnect_max = "200ms"
[[uplink.cloud.route]]
direction = "out"
filter = "up/#"
[[uplink.cloud.route]]
direction = "in"
filter = "down/#"
`, link.Address(), cloud.username, cloud.password))
	waitUntil(t, "the gateway", func() bool { return answers(address) })

	var lanes []*outageLane
	for _, way := range []string{"up", "down"} {
		for qos := byte(0); qos <= 2; qos++ {
			if qos == 0 && cloud.noQoS0 {
				continue
			}
			for _, name := range []string{"a", "b"} {
				lanes = append(lanes, &outageLane{topic: fmt.Sprintf("%s/%s/%d", way, name, qos), qos: qos})
			}
		}
	}
	here, there := client.Options{URL: "mqtt://" + address}, client.Options{URL: "mqtt://" + cloud.address, Username: cloud.username, Password: cloud.password}
	up := outageClient(t, here, "publisher", nil, "")
	outageClient(t, there, "backend", lanes, "up/#")
	down := outageClient(t, there, "operator", nil, "")
	outageClient(t, here, "plant", lanes, "down/#")
	waitUntil(t, "the link", func() bool {
		st := outageStatus(t, socket)
		return st.State == uplink.StateUp && (st.MessagesOut > 0 || st.Connects > 0)
	})
	// Commands are for a subscription that is there.
	probe := &outageLane{topic: "down/probe/1", qos: 1}
	outageClient(t, here, "probe", []*outageLane{probe}, "down/probe/#")
	waitUntil(t, "the subscription at the cloud", func() bool {
		probe.publish(down)
		return probe.count() > 0
	})

	ctx, stop := context.WithCancel(t.Context())
	var publishing sync.WaitGroup
	for _, l := range lanes {
		publishing.Go(func() {
			c := up
			if strings.HasPrefix(l.topic, "down/") {
				c = down
			}
			tick := time.NewTicker(25 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-tick.C:
					l.publish(c)
				case <-ctx.Done():
					return
				}
			}
		})
	}
	defer func() { stop(); publishing.Wait() }()

	seed := uint64(number("HOLDFAST_SEED", int(time.Now().UnixNano()&0xffffff)))
	t.Logf("HOLDFAST_SEED=%d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	kinds := map[string]int{}
	var memory []int
	for i := range count {
		outagePause(rnd.IntN(400))
		kind, err := oneOutage(link, rnd)
		if err != nil {
			t.Fatal(err)
		}
		kinds[kind]++
		memory = append(memory, gateway.rss(t))
		if testing.Verbose() && i%20 == 19 {
			st := outageStatus(t, socket)
			t.Logf("outage %d: RSS %d MB, %d connects, %d resends, backlog %d", i+1, memory[i]>>20, st.Connects, st.Resends, st.Backlog)
		}
	}
	stop()
	publishing.Wait()
	waitUpTo(t, 2*time.Minute, "the rest to arrive", func() bool {
		for _, l := range lanes {
			if len(l.missing()) > 0 && (cloud.commands || !strings.HasPrefix(l.topic, "down/")) {
				return time.Since(l.moved()) > 30*time.Second // said below
			}
		}
		return true
	})
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); outagePause(50) {
		if st := outageStatus(t, socket); st.Backlog == 0 && st.InFlight == 0 {
			break
		}
	}
	sum := 0
	for _, l := range lanes {
		sum += l.count()
		l.check(t, cloud)
	}
	st := outageStatus(t, socket)
	t.Logf("%d outages %v: %d messages arrived, %d connects, %d resends, %d possible duplicates, dropped %v", count, kinds, sum, st.Connects, st.Resends, st.Duplicates, st.Dropped)
	for reason, n := range st.Dropped {
		if !strings.HasPrefix(reason, "qos0_") {
			t.Errorf("%d messages dropped: %s", n, reason)
		}
	}
	if st.Backlog != 0 || st.InFlight != 0 {
		t.Errorf("in the end backlog %d, in flight %d", st.Backlog, st.InFlight)
	}
	// What it needed at first it may need at last, and the allocator's slack.
	half := len(memory) / 2
	first, last := slices.Max(memory[:half]), slices.Max(memory[half:])
	t.Logf("RSS at most %d MB in the first half, %d MB in the second", first>>20, last>>20)
	if last > first+16<<20 {
		t.Errorf("RSS grew from %d to %d bytes", first, last)
	}
	if os.Getenv("HOLDFAST_BINARY") != "" && last > 64<<20 {
		t.Errorf("RSS is %d bytes, want at most 64 MB", last)
	}
	if t.Failed() {
		t.Logf("status %+v\n%s", st, gateway.out.String())
	}
}

func outagePause(millis int) { <-time.After(time.Duration(millis) * time.Millisecond) }

// oneOutage is one accident of the link, and its end.
func oneOutage(link *relaytest.Relay, rnd *rand.Rand) (kind string, err error) {
	direction := relaytest.Direction(rnd.IntN(2))
	span := rnd.IntN(1500)
	if rnd.IntN(8) == 0 {
		span = 3000 + rnd.IntN(3000) // long enough for it to be found out
	}
	switch rnd.IntN(8) {
	case 0:
		kind, span = "reset", 0
		link.Reset()
	case 1:
		kind = "refuse"
		link.Refuse()
	case 2:
		kind = "freeze"
		link.Freeze()
	case 3:
		kind = "swallow"
		link.Swallow(direction)
	case 4:
		kind = "half-open"
		link.HalfOpen(direction)
	case 5:
		kind = "stall"
		link.Stall(time.Duration(span) * time.Millisecond)
	case 6:
		kind = "cut"
		link.CutAfter(direction, rnd.IntN(3000))
	case 7:
		kind = "slow and lossy"
		p := relaytest.Path{Delay: time.Duration(rnd.IntN(300)) * time.Millisecond, Rate: 2000 + rnd.IntN(20_000), Loss: 0.02}
		link.SetPath(relaytest.Up, p)
		link.SetPath(relaytest.Down, p)
	}
	outagePause(span)
	link.SetPath(relaytest.Up, relaytest.Path{})
	link.SetPath(relaytest.Down, relaytest.Path{})
	return kind, link.Restore()
}

// outageLane is what is published and what came of one topic and QoS.
type outageLane struct {
	topic string
	qos   byte

	mu    sync.Mutex
	next  int       // guarded by mu
	acked []bool    // guarded by mu; to the publisher
	got   []int     // guarded by mu; in order of arrival
	last  time.Time // guarded by mu; when the latest came
}

func (l *outageLane) publish(c *client.Client) {
	l.mu.Lock()
	i := l.next
	l.next++
	l.acked = append(l.acked, false)
	l.mu.Unlock()
	m := &message.Message{Topic: l.topic, Payload: strconv.AppendInt(nil, int64(i), 10), QoS: l.qos, Received: time.Now()}
	c.PublishAsync(m, func(err error) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.acked[i] = err == nil
	})
}

func (l *outageLane) came(m client.Message) {
	i, err := strconv.Atoi(string(m.Payload))
	if err != nil {
		i = -1
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.got, l.last = append(l.got, i), time.Now()
}

func (l *outageLane) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.got)
}

// unanswered are those without a success.
func (l *outageLane) unanswered() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, ok := range l.acked {
		if !ok {
			n++
		}
	}
	return n
}

func (l *outageLane) moved() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}

// missing are those acknowledged that did not come; QoS 0 promises nothing.
func (l *outageLane) missing() (is []int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.qos == 0 {
		return nil
	}
	came := make([]bool, l.next)
	for _, i := range l.got {
		came[i] = true
	}
	for i, ok := range l.acked {
		if ok && !came[i] {
			is = append(is, i)
		}
	}
	return is
}

func (l *outageLane) check(t *testing.T, cloud outageCloud) {
	t.Helper()
	down := strings.HasPrefix(l.topic, "down/")
	if is := l.missing(); len(is) > 0 && (cloud.commands || !down) {
		t.Errorf("%s: %d acknowledged and not arrived: %v", l.topic, len(is), is[:min(len(is), 10)])
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	once := l.qos == 0 || l.qos == 2 && cloud.once
	seen := make([]bool, l.next)
	most := -1
	for at, i := range l.got {
		switch {
		case seen[i] && once:
			t.Errorf("%s: %d came twice, the second time after %v", l.topic, i, l.got[max(0, at-3):at])
		case !seen[i] && i < most && !(down && cloud.shuffles):
			t.Errorf("%s: %d came for the first time after %v", l.topic, i, l.got[max(0, at-3):at])
		}
		seen[i] = true
		most = max(most, i)
	}
	if len(l.got) == 0 {
		t.Errorf("%s: nothing came", l.topic)
	}
}

// noted returns what notes messages in their lanes.
func noted(lanes []*outageLane) func(client.Message) {
	byTopic := map[string]*outageLane{}
	for _, l := range lanes {
		byTopic[l.topic] = l
	}
	return func(m client.Message) {
		if l := byTopic[m.Topic]; l != nil {
			l.came(m)
		}
	}
}

// outageClient is connected until the end of the test; what comes is noted in
// the lanes.
func outageClient(t *testing.T, o client.Options, id string, lanes []*outageLane, filter string) *client.Client {
	t.Helper()
	o.ClientID, o.CleanStart, o.KeepAlive = id, true, time.Minute
	c, err := client.Connect(t.Context(), o, noted(lanes))
	if err != nil {
		t.Fatalf("%s: %v", id, err)
	}
	t.Cleanup(func() {
		select {
		case <-c.Done():
			t.Errorf("%s lost its connection: %v", id, c.Err())
		default:
			c.Abort()
		}
	})
	if filter == "" {
		return c
	}
	reasons, err := c.Subscribe(t.Context(), []packet.Filter{{Filter: filter, QoS: 2}})
	if err != nil || reasons[0].Failed() {
		t.Fatalf("%s: subscribe: %v, %v", id, reasons, err)
	}
	return c
}

// startGateway starts a gateway with one listener and one uplink, which has the keys
// and routes of text; before is what its command runs under. It returns the control
// socket too.
func startGateway(t *testing.T, listener, text string, before ...string) (gateway *subprocess, socket string) {
	t.Helper()
	dir := t.TempDir()
	socket = filepath.Join(dir, "s") // short: the path of a Unix socket is limited to 107 bytes
	config := filepath.Join(dir, "gateway.toml")
	text = fmt.Sprintf("[gateway]\nid = \"gw\"\ndata = %q\n[control]\nsocket = %q\n[[listener]]\naddress = %q\n[uplink.cloud]\nreconnect_spread = \"0s\"\n",
		filepath.Join(dir, "data"), socket, listener) + text
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	command := append(before, daemonBinary(), "run", "--config", config)
	return startDaemon(t, command[0], command[1:]...), socket
}

// outageStatus is the status of the gateway's only uplink.
func outageStatus(t *testing.T, socket string) uplink.Status {
	t.Helper()
	body, code, err := console.Get(t.Context(), socket, "/api/v1/status")
	if err != nil || code != http.StatusOK {
		t.Fatalf("status %d: %v", code, err)
	}
	var s struct {
		Uplinks []uplink.Status `json:"uplinks"`
	}
	if err := json.Unmarshal(body, &s); err != nil || len(s.Uplinks) != 1 {
		t.Fatalf("status: %v, %d uplinks", err, len(s.Uplinks))
	}
	return s.Uplinks[0]
}
