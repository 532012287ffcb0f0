//go:build integration

package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/broker/client"
	"holdfast/broker/packet"
	"holdfast/storeforward/uplink/relaytest"
)

// installed finds a program, also where only root looks.
func installed(t *testing.T, name, from string) string {
	t.Helper()
	for _, path := range []string{name, "/usr/sbin/" + name} {
		if found, err := exec.LookPath(path); err == nil {
			return found
		}
	}
	t.Fatalf("%s is not installed: %s", name, from)
	return ""
}

// mosquittoCloud is Debian's broker.
func mosquittoCloud(t *testing.T) outageCloud {
	t.Helper()
	path := installed(t, "mosquitto", "apt-get install mosquitto")
	c := outageCloud{address: freeAddress(t), commands: true}
	_, port, _ := net.SplitHostPort(c.address)
	config := filepath.Join(t.TempDir(), "mosquitto.conf")
	// With more waiting than in flight 2.0.11 lets new ones overtake.
	text := fmt.Sprintf("listener %s 127.0.0.1\nallow_anonymous true\nuser root\nmax_queued_messages 0\nmax_inflight_messages 20000\n", port)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	startDaemon(t, path, "-c", config)
	waitUntil(t, "mosquitto", func() bool { return answers(c.address) })
	return c
}

// rabbitCloud is RabbitMQ with its MQTT plugin, which speaks 3.1.1.
func rabbitCloud(t *testing.T) outageCloud {
	t.Helper()
	// What is in the path is a wrapper that changes the user.
	const path = "/usr/lib/rabbitmq/bin/rabbitmq-server"
	installed(t, path, "apt-get install rabbitmq-server")
	dir := t.TempDir()
	c := outageCloud{address: freeAddress(t), username: "guest", password: "guest", commands: true}
	_, port, _ := net.SplitHostPort(c.address)
	_, amqp, _ := net.SplitHostPort(freeAddress(t))
	_, distribution, _ := net.SplitHostPort(freeAddress(t))
	for name, text := range map[string]string{
		"rabbitmq.conf":   "listeners.tcp.default = 127.0.0.1:" + amqp + "\nmqtt.listeners.tcp.default = 127.0.0.1:" + port + "\nmqtt.prefetch = 1000\n",
		"enabled_plugins": "[rabbitmq_mqtt].\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for key, value := range map[string]string{
		"HOME": dir, "RABBITMQ_NODENAME": "holdfast" + port + "@localhost", "RABBITMQ_DIST_PORT": distribution,
		"RABBITMQ_CONFIG_FILE": filepath.Join(dir, "rabbitmq.conf"), "RABBITMQ_ENABLED_PLUGINS_FILE": filepath.Join(dir, "enabled_plugins"),
		"RABBITMQ_MNESIA_BASE": dir, "RABBITMQ_LOG_BASE": dir, "RABBITMQ_PID_FILE": filepath.Join(dir, "pid"),
		"ERL_EPMD_ADDRESS": "127.0.0.1",
	} {
		t.Setenv(key, value)
	}
	_, ports, _ := net.SplitHostPort(freeAddress(t))
	t.Setenv("ERL_EPMD_PORT", ports)
	// Erlang would leave its port mapper behind.
	startDaemon(t, installed(t, "epmd", "apt-get install erlang-base"), "-port", ports)
	d := startDaemon(t, path)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(d.out.String())
		}
	})
	waitUpTo(t, time.Minute, "RabbitMQ", func() bool { return answers(c.address) })
	return c
}

func TestMosquittoOutages(t *testing.T) {
	outages(t, mosquittoCloud(t), number("HOLDFAST_OUTAGES", 10))
}

func TestRabbitMQOutages(t *testing.T) {
	outages(t, rabbitCloud(t), number("HOLDFAST_OUTAGES", 10))
}

// natsCluster are three nodes of NATS with JetStream and MQTT, which is 3.1.1.
type natsCluster struct {
	nodes     [3]*subprocess
	addresses [3]string // of MQTT
}

func newNATSCluster(t *testing.T) *natsCluster {
	t.Helper()
	path, err := filepath.Abs("../../.bin/nats-server")
	if err != nil {
		t.Fatal(err)
	}
	installed(t, path, "make nats-server")
	c := &natsCluster{}
	var routes [3]string
	for i := range routes {
		routes[i], c.addresses[i] = freeAddress(t), freeAddress(t)
	}
	for i := range c.nodes {
		dir := t.TempDir()
		config := filepath.Join(dir, "nats.conf")
		text := fmt.Sprintf(`server_name: n%d
listen: %q
jetstream { store_dir: %q, max_memory_store: 64MB, max_file_store: 2GB }
cluster { name: cloud, listen: %q, routes: ["nats-route://%s", "nats-route://%s", "nats-route://%s"] }
mqtt { listen: %q, ack_wait: "5s", max_ack_pending: 10000 }
`, i, freeAddress(t), dir, routes[i], routes[0], routes[1], routes[2], c.addresses[i])
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c.nodes[i] = startDaemon(t, path, "-c", config)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for i, n := range c.nodes {
				t.Logf("node %d: %s", i, n.out.String())
			}
		}
	})
	for i := range c.nodes {
		waitUpTo(t, time.Minute, "the cluster to take a session", func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			k, err := client.Connect(ctx, client.Options{URL: "mqtt://" + c.addresses[i], ClientID: fmt.Sprintf("probe%d", i), CleanStart: true, Version: packet.V311}, nil)
			if err != nil {
				return false
			}
			k.Abort()
			return true
		})
	}
	return c
}

func TestNATSOutages(t *testing.T) {
	c := newNATSCluster(t)
	outages(t, outageCloud{address: c.addresses[0], commands: true, shuffles: true, noQoS0: true}, number("HOLDFAST_OUTAGES", 10))
}

// A node of the cluster dies in the middle of a drain, and the gateway goes on
// with another.
func TestNATSNodeKilledInTheMiddleOfADrain(t *testing.T) {
	const each = 2000
	c := newNATSCluster(t)
	address := freeAddress(t)
	var links [3]*relaytest.Relay
	var urls []string
	for i := range links {
		var err error
		// Slow enough that the drain is long.
		path := relaytest.Path{Delay: 20 * time.Millisecond}
		if links[i], err = relaytest.New(t.Context(), c.addresses[i], relaytest.Options{Up: path, Down: path}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(links[i].Close)
		links[i].Refuse()
		urls = append(urls, fmt.Sprintf("%q", "mqtt://"+links[i].Address()))
	}
	gateway, socket := startGateway(t, "tcp://"+address, fmt.Sprintf(`urls = [%s]
shared_session = true
protocol = "3.1.1"
window = 100
connect_timeout = "5s"
ack_timeout = "5s"
reconnect_min = "50ms"
reconnect_max = "500ms"
[[uplink.cloud.route]]
direction = "out"
filter = "up/#"
`, strings.Join(urls, ", ")))
	waitUntil(t, "the gateway", func() bool { return answers(address) })
	lanes := []*outageLane{{topic: "up/a/1", qos: 1}, {topic: "up/a/2", qos: 2}}
	pub := outageClient(t, client.Options{URL: "mqtt://" + address}, "publisher", nil, "")
	// The third node stays, but may end its clients while it looks for a leader.
	stayConnected(t, client.Options{URL: "mqtt://" + c.addresses[2], Version: packet.V311, ConnectTimeout: 10 * time.Second}, "backend", lanes, "up/#")
	for i := range each {
		for _, l := range lanes {
			l.publish(pub)
		}
		if i%500 == 499 {
			waitUntil(t, "the publisher", func() bool { return lanes[0].unanswered()+lanes[1].unanswered() == 0 })
		}
	}
	for _, l := range links {
		if err := l.Restore(); err != nil {
			t.Fatal(err)
		}
	}
	waitUpTo(t, time.Minute, "the drain to be under way", func() bool { return lanes[0].count() > each/10 })
	first := 0
	for i, l := range links[:2] {
		if l.Passed() > 0 {
			first = i
		}
	}
	c.nodes[first].kill()
	st := outageStatus(t, socket)
	t.Logf("node %d killed with %d of %d arrived, backlog %d", first, lanes[0].count()+lanes[1].count(), 2*each, st.Backlog)
	if st.Backlog == 0 {
		t.Error("the drain was over before the node was killed: the test shows nothing")
	}
	waitUpTo(t, 2*time.Minute, "the rest to arrive", func() bool {
		return len(lanes[0].missing())+len(lanes[1].missing()) == 0 && outageStatus(t, socket).Backlog == 0
	})
	for _, l := range lanes {
		// A node that dies may have kept a PUBLISH whose packet id it had not
		// told the others.
		l.check(t, outageCloud{commands: true})
		if n := l.unanswered(); n > 0 {
			t.Errorf("%s: %d never acknowledged", l.topic, n)
		}
	}
	st = outageStatus(t, socket)
	t.Logf("%d connects, %d failovers, %d resends, %d possible duplicates, sessions lost %d, remote %s", st.Connects, st.Failovers, st.Resends, st.Duplicates, st.SessionsLost, st.Remote)
	if links[first].Address() == st.Remote || st.Failovers == 0 {
		t.Errorf("the gateway is at %s after %d failovers", st.Remote, st.Failovers)
	}
	if t.Failed() {
		t.Log(gateway.out.String())
	}
}

// stayConnected is outageClient for a cloud that may end the connection: it comes
// back to its session.
func stayConnected(t *testing.T, o client.Options, id string, lanes []*outageLane, filter string) {
	t.Helper()
	o.ClientID, o.KeepAlive, o.SessionExpiry, o.Session = id, time.Minute, 3600, new(client.Session)
	note := noted(lanes)
	c, err := client.Connect(t.Context(), o, note)
	if err != nil {
		t.Fatalf("%s: %v", id, err)
	}
	if reasons, err := c.Subscribe(t.Context(), []packet.Filter{{Filter: filter, QoS: 2}}); err != nil || reasons[0].Failed() {
		t.Fatalf("%s: subscribe: %v, %v", id, reasons, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				c.Abort()
				<-c.Done()
				return
			case <-c.Done():
				t.Logf("%s lost its connection: %v", id, c.Err())
			}
			for next, err := client.Connect(ctx, o, note); ctx.Err() == nil; next, err = client.Connect(ctx, o, note) {
				if err == nil {
					c = next
					break
				}
				select {
				case <-ctx.Done():
				case <-time.After(200 * time.Millisecond):
				}
			}
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
}
