//go:build integration

package listen

import (
	"context"
	"crypto/tls"
	"net"
	"net/url"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/paho"
	mqtt "github.com/eclipse/paho.mqtt.golang"

	"holdfast/broker/brokertest"
	"holdfast/broker/packet"
)

// Mosquitto's clients over TLS. Those of 2.0 know no WebSocket.
func TestMosquittoOverTLS(t *testing.T) {
	ca, other := newAuthority(t, "plant CA"), newAuthority(t, "another CA")
	e := openEndpoint(t, "tls://127.0.0.1:0", ca.secured(t, func(o *Options) {
		o.ClientCert, o.ClientCAFile = ClientCertRequired, ca.file
	}))
	b := serve(t, e)
	watch := brokertest.Connect(t, b.Pipe(), brokertest.V5("watch"))
	watch.Subscribe(2, "a")
	_, port, err := net.SplitHostPort(e.addr().String())
	if err != nil {
		t.Fatal(err)
	}
	good, bad := ca.issue(t, clientTemplate("pump-7")), other.issue(t, clientTemplate("pump-7"))
	tests := map[string]struct {
		args []string
		ok   bool
	}{
		"1.2":                {[]string{"--cafile", ca.file, "--tls-version", "tlsv1.2", "--cert", good.cert, "--key", good.key}, true},
		"1.3":                {[]string{"--cafile", ca.file, "--tls-version", "tlsv1.3", "--cert", good.cert, "--key", good.key}, true},
		"no certificate":     {[]string{"--cafile", ca.file}, false},
		"wrong certificate":  {[]string{"--cafile", ca.file, "--cert", bad.cert, "--key", bad.key}, false},
		"does not trust us":  {[]string{"--cafile", other.file, "--cert", good.cert, "--key", good.key}, false},
		"not even encrypted": {nil, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
			defer cancel()
			args := append([]string{"-h", "localhost", "-p", port, "-V", "mqttv5", "-q", "2", "-t", "a", "-m", name}, tt.args...)
			out, err := exec.CommandContext(ctx, "mosquitto_pub", args...).CombinedOutput()
			if tt.ok != (err == nil && len(out) == 0) {
				t.Errorf("mosquitto_pub: %v %s", err, out)
			}
			if tt.ok {
				if got := watch.Message(); string(got.Payload) != name {
					t.Errorf("payload %q", got.Payload)
				}
			}
		})
	}
	if silent := watch.Silent(); len(silent) > 0 {
		t.Errorf("refused clients published: %v", silent)
	}
}

// Other people's clients with all versions they speak over all transports they
// know: each publishes to itself with QoS 0, 1 and 2.
func TestPeers(t *testing.T) {
	ca := newAuthority(t, "plant CA")
	for _, scheme := range []string{"tcp", "tls", "ws", "wss"} {
		t.Run(scheme, func(t *testing.T) {
			o := DefaultOptions()
			if scheme == "tls" || scheme == "wss" {
				o = ca.secured(t)
			}
			e := openEndpoint(t, scheme+"://127.0.0.1:0", o)
			serve(t, e)
			where := scheme + "://" + e.addr().String() + "/mqtt"
			config := &tls.Config{RootCAs: ca.pool, ServerName: "localhost"}
			payload := strings.Repeat("paho ", 20_000)
			for _, v := range []packet.Version{packet.V31, packet.V311} {
				t.Run("paho.mqtt.golang "+v.String(), func(t *testing.T) { pahoV3(t, where, config, v, payload) })
			}
			t.Run("paho.golang", func(t *testing.T) { pahoV5(t, strings.Replace(where, "tcp", "mqtt", 1), config, payload) })
			for _, v := range []packet.Version{packet.V31, packet.V311, packet.V5} {
				t.Run("Python paho "+v.String(), func(t *testing.T) { pahoPython(t, e, scheme, ca.file, v) })
				if scheme == "tcp" || scheme == "tls" { // Mosquitto's of 2.0 know no WebSocket
					t.Run("Mosquitto "+v.String(), func(t *testing.T) { mosquittoPair(t, e, scheme, ca.file, v) })
				}
			}
			if st := e.Status(); st.FrameErrors+st.TextFrames+st.UpgradesRefused != 0 {
				t.Errorf("status %+v", st)
			}
		})
	}
}

func portOf(t *testing.T, e *Endpoint) string {
	t.Helper()
	_, port, err := net.SplitHostPort(e.addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func pahoPython(t *testing.T, e *Endpoint, scheme, ca string, v packet.Version) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	defer cancel()
	args := []string{"testdata/paho_peer.py", "--port", portOf(t, e), "--version", v.String(), "--transport", "tcp"}
	if scheme == "ws" || scheme == "wss" {
		args[len(args)-1] = "websockets"
	}
	if scheme == "tls" || scheme == "wss" {
		args = append(args, "--ca", ca)
	}
	// Debian's, which has Debian's package.
	if out, err := exec.CommandContext(ctx, "/usr/bin/python3", args...).CombinedOutput(); err != nil {
		t.Errorf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// mosquittoPair retains messages with mosquitto_pub and fetches them with
// mosquitto_sub.
func mosquittoPair(t *testing.T, e *Endpoint, scheme, ca string, v packet.Version) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	defer cancel()
	names := map[packet.Version]string{packet.V31: "mqttv31", packet.V311: "mqttv311", packet.V5: "mqttv5"}
	run := func(name string, args ...string) string {
		args = append([]string{"-h", "localhost", "-p", portOf(t, e), "-V", names[v]}, args...)
		if scheme == "tls" {
			args = append(args, "--cafile", ca)
		}
		out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	for _, qos := range []string{"0", "1", "2"} {
		topic := "mosquitto/" + names[v] + "/" + qos
		run("mosquitto_pub", "-q", qos, "-r", "-t", topic, "-m", "hello")
		if got, want := run("mosquitto_sub", "-q", "2", "-t", topic, "-C", "1", "-F", "%q %r %p"), qos+" 1 hello\n"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func pahoV3(t *testing.T, where string, config *tls.Config, v packet.Version, payload string) {
	t.Helper()
	c := mqtt.NewClient(mqtt.NewClientOptions().AddBroker(where).SetTLSConfig(config).SetClientID("three").
		SetProtocolVersion(uint(v)).SetConnectTimeout(patience).SetAutoReconnect(false))
	wait := func(token mqtt.Token) {
		t.Helper()
		if !token.WaitTimeout(patience) || token.Error() != nil {
			t.Fatalf("not in time, or %v", token.Error())
		}
	}
	wait(c.Connect())
	defer c.Disconnect(100)
	got := make(chan string, 3)
	wait(c.Subscribe("three/#", 2, func(_ mqtt.Client, m mqtt.Message) { got <- string(m.Payload()) }))
	for qos := range byte(3) {
		wait(c.Publish("three/x", qos, false, payload))
		expect(t, got, payload)
	}
}

func pahoV5(t *testing.T, where string, config *tls.Config, payload string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	u, err := url.Parse(where)
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan string, 3)
	c, err := autopaho.NewConnection(ctx, autopaho.ClientConfig{
		ServerUrls: []*url.URL{u}, TlsCfg: config, KeepAlive: 30, CleanStartOnInitialConnection: true,
		ClientConfig: paho.ClientConfig{
			ClientID: "five",
			OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(m paho.PublishReceived) (bool, error) {
				got <- string(m.Packet.Payload)
				return true, nil
			}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.AwaitConnection(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Subscribe(ctx, &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: "five/#", QoS: 2}}}); err != nil {
		t.Fatal(err)
	}
	for qos := range byte(3) {
		if _, err := c.Publish(ctx, &paho.Publish{Topic: "five/x", QoS: qos, Payload: []byte(payload)}); err != nil {
			t.Fatal(err)
		}
		expect(t, got, payload)
	}
	if err := c.Disconnect(ctx); err != nil {
		t.Error(err)
	}
	<-c.Done()
}

func expect(t *testing.T, got <-chan string, want string) {
	t.Helper()
	select {
	case s := <-got:
		if s != want {
			t.Errorf("%d bytes came back, want %d", len(s), len(want))
		}
	case <-time.After(patience):
		t.Fatal("nothing came back")
	}
}
