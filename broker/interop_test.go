//go:build integration

package broker_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"
	mqtt "github.com/eclipse/paho.mqtt.golang"

	"holdfast/broker/brokertest"
	"holdfast/broker/packet"
)

// interopPatience is how long another program may take.
const interopPatience = 20 * time.Second

// mosquitto runs one of Mosquitto's clients against the broker and returns what
// it printed, once the broker has seen it leave: its subscriptions must not be
// taken for those of the next.
func mosquitto(t *testing.T, b *brokertest.Broker, name string, args ...string) string {
	t.Helper()
	before := b.Status().Clients
	cmd := mosquittoCommand(t, b, name, args...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	await(t, name+" to leave", func() bool { return b.Status().Clients <= before })
	return string(out)
}

// await waits until something about the broker holds.
func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	late := time.After(interopPatience)
	for !holds() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func mosquittoCommand(t *testing.T, b *brokertest.Broker, name string, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), interopPatience)
	t.Cleanup(cancel)
	host, port, err := net.SplitHostPort(b.Addr)
	if err != nil {
		t.Fatal(err)
	}
	return exec.CommandContext(ctx, name, append([]string{"-h", host, "-p", port}, args...)...)
}

// mosquittoSub starts mosquitto_sub, waits until it has subscribed, and returns
// its lines.
func mosquittoSub(t *testing.T, b *brokertest.Broker, args ...string) func() string {
	t.Helper()
	before := b.Status().Subscriptions
	cmd := mosquittoCommand(t, b, "mosquitto_sub", args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	await(t, "mosquitto_sub to subscribe", func() bool { return b.Status().Subscriptions > before })
	lines := bufio.NewScanner(stdout)
	return func() string {
		t.Helper()
		if !lines.Scan() {
			t.Fatalf("mosquitto_sub ended: %v %s", lines.Err(), &stderr)
		}
		return lines.Text()
	}
}

func TestMosquittoClients(t *testing.T) {
	for _, version := range []string{"mqttv31", "mqttv311", "mqttv5"} {
		t.Run(version, func(t *testing.T) {
			b := brokertest.Start(t, nil)
			line := mosquittoSub(t, b, "-V", version, "-q", "2", "-t", "in/#", "-F", "%t %q %r %p")
			for qos := range 3 {
				q := fmt.Sprint(qos)
				mosquitto(t, b, "mosquitto_pub", "-V", version, "-q", q, "-t", "in/"+q, "-m", "hello")
				if got, want := line(), fmt.Sprintf("in/%d %d 0 hello", qos, qos); got != want {
					t.Errorf("got %q, want %q", got, want)
				}
				mosquitto(t, b, "mosquitto_pub", "-V", version, "-q", q, "-t", "kept", "-r", "-m", "retained "+q)
				got := mosquitto(t, b, "mosquitto_sub", "-V", version, "-q", "2", "-t", "kept", "-C", "1", "-F", "%q %r %p")
				if want := fmt.Sprintf("%d 1 retained %d\n", qos, qos); got != want {
					t.Errorf("retained: got %q, want %q", got, want)
				}
			}
			// A will: mosquitto_sub is killed.
			dying := mosquittoCommand(t, b, "mosquitto_sub", "-V", version, "-t", "nothing", "-i", "dying",
				"--will-topic", "in/will", "--will-payload", "dead", "--will-qos", "2")
			await(t, "the others' subscriptions to go", func() bool { return b.Status().Subscriptions == 1 })
			before := b.Status().Subscriptions
			if err := dying.Start(); err != nil {
				t.Fatal(err)
			}
			await(t, "mosquitto_sub to subscribe", func() bool { return b.Status().Subscriptions > before })
			_ = dying.Process.Kill()
			_ = dying.Wait()
			if got := line(); got != "in/will 2 0 dead" {
				t.Errorf("will: %q", got)
			}
		})
	}
}

func TestMosquittoPersistentSession(t *testing.T) {
	for _, version := range []string{"mqttv311", "mqttv5"} {
		t.Run(version, func(t *testing.T) {
			b := brokertest.Start(t, nil)
			args := []string{"-V", version, "-i", "keeper", "-c", "-q", "2", "-t", "a"}
			if version == "mqttv5" {
				args = append(args, "-x", "600")
			}
			mosquitto(t, b, "mosquitto_sub", append(args, "-E")...)
			var want strings.Builder
			for i := range 50 {
				mosquitto(t, b, "mosquitto_pub", "-V", version, "-q", fmt.Sprint(2), "-t", "a", "-m", fmt.Sprint(i))
				fmt.Fprintln(&want, i)
			}
			if got := mosquitto(t, b, "mosquitto_sub", append(args, "-C", "50")...); got != want.String() {
				t.Errorf("got %q", got)
			}
		})
	}
}

func TestMosquittoProperties(t *testing.T) {
	b := brokertest.Start(t, nil)
	line := mosquittoSub(t, b, "-V", "mqttv5", "-q", "1", "-t", "a", "-F", "%P|%C|%R|%D|%E|%p")
	mosquitto(t, b, "mosquitto_pub", "-V", "mqttv5", "-q", "1", "-t", "a", "-m", "x",
		"-D", "publish", "user-property", "k", "v", "-D", "publish", "content-type", "text/plain",
		"-D", "publish", "response-topic", "reply", "-D", "publish", "correlation-data", "id",
		"-D", "publish", "message-expiry-interval", "60")
	if got := line(); got != "k:v|text/plain|reply|id|60|x" {
		t.Errorf("got %q", got)
	}
}

func TestPaho3(t *testing.T) {
	for _, version := range []uint{3, 4} {
		t.Run(fmt.Sprint("level ", version), func(t *testing.T) {
			b := brokertest.Start(t, nil)
			connect := func(id string, clean bool) mqtt.Client {
				o := mqtt.NewClientOptions().AddBroker("tcp://"+b.Addr).SetClientID(id).SetProtocolVersion(version).
					SetCleanSession(clean).SetAutoReconnect(false).SetBinaryWill("will", []byte("dead"), 1, false)
				c := mqtt.NewClient(o)
				waitToken(t, c.Connect())
				t.Cleanup(func() { c.Disconnect(100) })
				return c
			}
			got := make(chan string, 1000)
			sub := connect("sub", false)
			waitToken(t, sub.Subscribe("a/#", 2, func(_ mqtt.Client, m mqtt.Message) {
				got <- fmt.Sprintf("%d %s", m.Qos(), m.Payload())
			}))
			pub := connect("pub", true)
			for qos := range 3 {
				for i := range 100 {
					waitToken(t, pub.Publish("a/b", byte(qos), false, fmt.Sprint(i)))
					if s, want := receive(t, got), fmt.Sprintf("%d %d", qos, i); s != want {
						t.Fatalf("got %q, want %q", s, want)
					}
				}
			}
		})
	}
}

func waitToken(t *testing.T, token mqtt.Token) {
	t.Helper()
	if !token.WaitTimeout(interopPatience) {
		t.Fatal("no answer")
	}
	if err := token.Error(); err != nil {
		t.Fatal(err)
	}
}

func receive(t *testing.T, from <-chan string) string {
	t.Helper()
	select {
	case s := <-from:
		return s
	case <-time.After(interopPatience):
		t.Fatal("nothing came")
		return ""
	}
}

func TestPaho5(t *testing.T) {
	b := brokertest.Start(t, nil)
	ctx := t.Context()
	got := make(chan string, 1000)
	connect := func(id string, will *paho.WillMessage) *paho.Client {
		c := paho.NewClient(paho.ClientConfig{
			Conn: b.Dial(t),
			OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(r paho.PublishReceived) (bool, error) {
				got <- fmt.Sprintf("%d %s %s", r.Packet.QoS, r.Packet.Payload, r.Packet.Properties.User.Get("k"))
				return true, nil
			}},
		})
		p := &paho.Connect{ClientID: id, CleanStart: true, KeepAlive: 30, WillMessage: will, Properties: &paho.ConnectProperties{SessionExpiryInterval: new(uint32)}}
		*p.Properties.SessionExpiryInterval = 60
		if _, err := c.Connect(ctx, p); err != nil {
			t.Fatal(err)
		}
		return c
	}
	sub := connect("sub", nil)
	if _, err := sub.Subscribe(ctx, &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: "a", QoS: 2}, {Topic: "will", QoS: 1}}}); err != nil {
		t.Fatal(err)
	}
	pub := connect("pub", &paho.WillMessage{Topic: "will", Payload: []byte("dead"), QoS: 1})
	for qos := range 3 {
		for i := range 100 {
			p := &paho.Publish{Topic: "a", QoS: byte(qos), Payload: fmt.Append(nil, i), Properties: &paho.PublishProperties{}}
			p.Properties.User.Add("k", fmt.Sprint("v", i))
			if _, err := pub.Publish(ctx, p); err != nil {
				t.Fatal(err)
			}
			if s, want := receive(t, got), fmt.Sprintf("%d %d v%d", qos, i, i); s != want {
				t.Fatalf("got %q, want %q", s, want)
			}
		}
	}
	if err := pub.Disconnect(&paho.Disconnect{ReasonCode: byte(packet.ReasonDisconnectWithWill)}); err != nil {
		t.Fatal(err)
	}
	if s := receive(t, got); s != "1 dead " {
		t.Errorf("will: %q", s)
	}
	if err := sub.Disconnect(&paho.Disconnect{}); err != nil {
		t.Fatal(err)
	}
}
