//go:build integration

package uplink

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/broker/client"
	"holdfast/broker/message"
	"holdfast/broker/packet"
)

// mosquitto is Debian's broker as a process of the test.
type mosquitto struct {
	t       *testing.T
	path    string
	config  string
	address string
	cmd     *exec.Cmd
}

func newMosquitto(t *testing.T, config string) *mosquitto {
	t.Helper()
	path, err := exec.LookPath("mosquitto")
	if err != nil {
		if path, err = exec.LookPath("/usr/sbin/mosquitto"); err != nil {
			t.Fatal("mosquitto is not installed: apt-get install mosquitto")
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m := &mosquitto{t: t, path: path, address: l.Addr().String(), config: filepath.Join(t.TempDir(), "mosquitto.conf")}
	l.Close()
	_, port, _ := net.SplitHostPort(m.address)
	text := fmt.Sprintf("listener %s 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\n%s\n", port, config)
	if err := os.WriteFile(m.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	m.start()
	t.Cleanup(m.kill)
	return m
}

func (m *mosquitto) start() {
	m.t.Helper()
	m.cmd = exec.Command(m.path, "-c", m.config)
	if err := m.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	eventually(m.t, "mosquitto to answer", func() bool {
		nc, err := net.Dial("tcp", m.address)
		if err == nil {
			nc.Close()
		}
		return err == nil
	})
}

func (m *mosquitto) kill() {
	m.cmd.Process.Kill()
	m.cmd.Wait()
}

// eventually waits for something to become true.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); pass(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited too long for %s", what)
		}
	}
}

// brittle dials connections that break after a random number of bytes, while
// there are cuts left. Each lets mosquitto finish what it sends first: 2.0.11
// forgets that it was about to send PUBREL again when that connection breaks
// too, and sends the PUBLISH of a message that is finished.
type brittle struct {
	mu   sync.Mutex
	rnd  *rand.Rand
	cuts int
}

func (b *brittle) dial(ctx context.Context, network, address string) (net.Conn, error) {
	nc, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cuts == 0 {
		return nc, nil
	}
	b.cuts--
	return &breaking{Conn: nc, left: 500 + b.rnd.IntN(5000)}, nil
}

func (b *brittle) over() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.cuts == 0
}

type breaking struct {
	net.Conn
	mu   sync.Mutex
	left int // to the cut
	read int
}

func (b *breaking) count(n, read int) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.read += read
	if b.left -= n; b.left < 0 && b.read > 1500 {
		b.Conn.Close()
		return errors.New("the link is cut")
	}
	return nil
}

func (b *breaking) Read(p []byte) (int, error) {
	n, err := b.Conn.Read(p)
	if cut := b.count(n, n); cut != nil {
		return 0, cut
	}
	return n, err
}

func (b *breaking) Write(p []byte) (int, error) {
	if cut := b.count(len(p), 0); cut != nil {
		n, _ := b.Conn.Write(p[:len(p)/2]) // inside a packet
		return n, cut
	}
	return b.Conn.Write(p)
}

func TestMosquittoAsTheCloud(t *testing.T) {
	for _, protocol := range []string{ProtocolAuto, Protocol311} {
		t.Run(protocol, func(t *testing.T) { mosquittoAsTheCloud(t, protocol) })
	}
}

func mosquittoAsTheCloud(t *testing.T, protocol string) {
	t.Helper()
	const each = 300
	// With more waiting than in flight 2.0.11 lets new ones overtake.
	server := newMosquitto(t, "max_inflight_messages 1000")
	var mu sync.Mutex
	var got, statuses []string
	sub, err := client.Connect(t.Context(), client.Options{URL: "mqtt://" + server.address, ClientID: "cloud", CleanStart: true}, func(m client.Message) {
		mu.Lock()
		defer mu.Unlock()
		if strings.HasPrefix(m.Topic, "holdfast/") {
			var st gatewayStatus
			if err := json.Unmarshal(m.Payload, &st); err != nil {
				t.Errorf("status %s: %v", m.Payload, err)
			}
			statuses = append(statuses, st.State+": "+st.Reason)
			return
		}
		got = append(got, fmt.Sprintf("%s/%s", m.Topic, m.Payload))
	})
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Disconnect(context.Background())
	if _, err := sub.Subscribe(t.Context(), []packet.Filter{{Filter: "site/s/#", QoS: 2}, {Filter: "holdfast/#", QoS: 1}}); err != nil {
		t.Fatal(err)
	}
	link := &brittle{rnd: rand.New(rand.NewPCG(3, 3)), cuts: 8}
	r := newRigWith(t, func(o *Options) {
		o.URL, o.Protocol, o.Dial, o.ReceiveMaximum = "mqtt://"+server.address, protocol, link.dial, 1000
		o.ReconnectMin, o.ReconnectMax = 20*time.Millisecond, 100*time.Millisecond
	})
	// Commands are for a subscription that is there.
	eventually(t, "the subscription", func() bool {
		r.up.mu.Lock()
		defer r.up.mu.Unlock()
		return r.up.sess.subscribed
	})
	for i := range each {
		for qos := byte(1); qos <= 2; qos++ {
			r.put("s/"+strconv.Itoa(int(qos)), strconv.Itoa(i), qos)
			m := &message.Message{Topic: fmt.Sprintf("site/cmd/%d", qos), Payload: fmt.Append(nil, i), QoS: qos}
			if err := sub.Publish(t.Context(), m); err != nil {
				t.Fatal(err)
			}
		}
	}
	eventually(t, "everything to arrive", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return r.backlog() == 0 && len(got) >= 2*each && len(r.local.messages()) >= 2*each && link.over()
	})
	mu.Lock()
	lanes := inLanes(got)
	mu.Unlock()
	checkLane(t, "QoS 1", lanes["site/s/1"], each, false)
	checkLane(t, "QoS 2", lanes["site/s/2"], each, true)
	down := make(map[string][]string)
	for _, m := range r.local.messages() {
		down[m.Topic] = append(down[m.Topic], string(m.Payload))
	}
	checkLane(t, "commands QoS 1", down["cmd/1"], each, false)
	checkLane(t, "commands QoS 2", down["cmd/2"], each, true)
	want := map[string]string{ProtocolAuto: "5.0", Protocol311: "3.1.1"}[protocol]
	if st := r.up.Status(); st.Connects < 5 || st.SessionsLost != 0 || st.Protocol != want || st.UnknownAcks != 0 {
		t.Errorf("status is %+v", st)
	}
	r.stop(errors.New("SIGTERM"))
	eventually(t, "the last word", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return statuses[len(statuses)-1] == "offline: SIGTERM"
	})
	mu.Lock()
	defer mu.Unlock()
	for _, st := range statuses {
		if protocol != Protocol311 && st == "offline: connection lost" {
			t.Errorf("the will came though its delay was not over: %q", statuses)
		}
	}
}

// A broker that loses everything is a cloud that lost the session.
func TestMosquittoKilled(t *testing.T) {
	server := newMosquitto(t, "")
	r := newRigWith(t, func(o *Options) {
		o.URL = "mqtt://" + server.address
		o.ReconnectMin, o.ReconnectMax = 20*time.Millisecond, 100*time.Millisecond
	})
	for round := range 3 {
		for i := range 200 {
			r.put("s/a", strconv.Itoa(i), byte(1+i%2))
			if i == 100 && round > 0 {
				server.kill()
			}
		}
		if round > 0 {
			eventually(t, "the link to be lost", func() bool { return r.up.Status().State != StateUp })
			server.start()
		}
		eventually(t, "the backlog to drain", func() bool { return r.backlog() == 0 })
	}
	if st := r.up.Status(); st.SessionsLost != 2 || st.State != StateUp {
		t.Errorf("sessions lost %d state %s", st.SessionsLost, st.State)
	}
}

// mosquitto takes over what has not been said otherwise: the will.
func TestMosquittoPublishesTheWill(t *testing.T) {
	server := newMosquitto(t, "")
	came := make(chan string, 10)
	sub, err := client.Connect(t.Context(), client.Options{URL: "mqtt://" + server.address, ClientID: "cloud", CleanStart: true}, func(m client.Message) {
		var st gatewayStatus
		if err := json.Unmarshal(m.Payload, &st); err != nil {
			t.Errorf("status %s: %v", m.Payload, err)
		}
		came <- st.State
	})
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Disconnect(context.Background())
	if _, err := sub.Subscribe(t.Context(), []packet.Filter{{Filter: "holdfast/#", QoS: 1}}); err != nil {
		t.Fatal(err)
	}
	link := &brittle{}
	var down sync.Once
	r := newRigWith(t, func(o *Options) {
		o.URL, o.WillDelay = "mqtt://"+server.address, time.Second
		o.ReconnectMin, o.ReconnectMax = 20*time.Second, 20*time.Second
		o.Dial = link.dial
	})
	for _, want := range []string{"online", "offline"} {
		select {
		case got := <-came:
			if got != want {
				t.Errorf("gateway is %q, want %q", got, want)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("no status %q", want)
		}
		down.Do(func() { // as a link does that breaks
			r.up.mu.Lock()
			defer r.up.mu.Unlock()
			r.up.link.conn.Abort()
		})
	}
}
