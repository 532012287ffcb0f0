//go:build integration

package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"holdfast/broker/packet"
)

// mosquitto starts Debian's broker and returns the URL of its listener.
func mosquitto(t *testing.T, config string) string {
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
	address := l.Addr().String()
	l.Close()
	_, port, _ := net.SplitHostPort(address)
	file := filepath.Join(t.TempDir(), "mosquitto.conf")
	text := fmt.Sprintf("listener %s 127.0.0.1\nallow_anonymous true\n%s\n", port, config)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, path, "-c", file)
	if err := cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); _ = cmd.Wait() })
	for deadline := time.Now().Add(10 * time.Second); ; {
		nc, err := net.Dial("tcp", address)
		if err == nil {
			nc.Close()
			return "mqtt://" + address
		}
		if time.Now().After(deadline) {
			t.Fatalf("mosquitto does not answer at %s: %v", address, err)
		}
		<-time.After(20 * time.Millisecond)
	}
}

func TestMosquitto(t *testing.T) {
	url := mosquitto(t, "")
	for _, v := range []packet.Version{packet.V5, packet.V311} {
		for qos := range byte(3) {
			t.Run(fmt.Sprintf("%s/qos%d", v, qos), func(t *testing.T) {
				name := fmt.Sprintf("test/%d/%d", v, qos)
				const n = 500
				got := make(chan Message, 2*n)
				sub, err := Connect(t.Context(), Options{URL: url, ClientID: "sub", Version: v, CleanStart: true, ReceiveMaximum: 10, TopicAliasMaximum: 5, KeepAlive: 5 * time.Second}, func(m Message) { got <- m })
				if err != nil {
					t.Fatal(err)
				}
				if reasons, err := sub.Subscribe(t.Context(), []packet.Filter{{Filter: name, QoS: qos}}); err != nil || reasons[0] != packet.ReasonCode(qos) {
					t.Fatalf("Subscribe = %v, %v", reasons, err)
				}
				pub, err := Connect(t.Context(), Options{URL: url, ClientID: "pub", Version: v, CleanStart: true}, nil)
				if err != nil {
					t.Fatal(err)
				}
				var wg sync.WaitGroup
				for i := range n {
					wg.Add(1)
					m := msg(name, fmt.Sprint(i), qos)
					m.HasExpiry, m.Expiry = true, 60
					pub.PublishAsync(m, func(err error) {
						if err != nil {
							t.Errorf("message %d: %v", i, err)
						}
						wg.Done()
					})
				}
				wg.Wait()
				for i := range n {
					select {
					case m := <-got:
						if string(m.Payload) != fmt.Sprint(i) || m.QoS != qos || m.Topic != name {
							t.Fatalf("message %d = %s %s QoS %d", i, m.Topic, m.Payload, m.QoS)
						}
					case <-time.After(10 * time.Second):
						t.Fatalf("message %d did not come; Err %v", i, sub.Err())
					}
				}
				if reasons, err := sub.Unsubscribe(t.Context(), []string{name}); err != nil || reasons[0] != 0 {
					t.Errorf("Unsubscribe = %v, %v", reasons, err)
				}
				for _, c := range []*Client{sub, pub} {
					if err := c.Disconnect(t.Context()); err != nil {
						t.Errorf("Disconnect = %v", err)
					}
				}
			})
		}
	}
}

// The connection is torn out under a stream of QoS 2 messages, several times;
// each arrives once and in order.
func TestMosquittoExactlyOnce(t *testing.T) {
	url := mosquitto(t, "")
	const n = 3000
	got := make(chan Message, 2*n)
	sub, err := Connect(t.Context(), Options{URL: url, ClientID: "sub", CleanStart: true}, func(m Message) { got <- m })
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Abort()
	if _, err := sub.Subscribe(t.Context(), []packet.Filter{{Filter: "a", QoS: 2}}); err != nil {
		t.Fatal(err)
	}
	session := new(Session)
	o := Options{URL: url, ClientID: "pub", Session: session, SessionExpiry: 60, OutputLimit: 4096}
	pub, err := Connect(t.Context(), o, nil)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range n {
		wg.Add(1)
		pub.PublishAsync(msg("a", fmt.Sprint(i), 2), func(err error) {
			if err != nil {
				t.Errorf("message %d: %v", i, err)
			}
			wg.Done()
		})
	}
	for i := range n {
		if i%500 == 100 {
			pub.Abort()
			if pub, err = Connect(t.Context(), o, nil); err != nil {
				t.Fatal(err)
			}
			if !pub.Conn().SessionPresent() {
				t.Error("the server has lost the session")
			}
		}
		select {
		case m := <-got:
			if string(m.Payload) != fmt.Sprint(i) {
				t.Fatalf("message %d = %s", i, m.Payload)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("message %d did not come", i)
		}
	}
	wg.Wait()
	if err := pub.Disconnect(t.Context()); err != nil {
		t.Error(err)
	}
	select {
	case m := <-got:
		t.Errorf("%s came twice", m.Payload)
	default:
	}
}

func TestMosquittoRefuses(t *testing.T) {
	url := mosquitto(t, "max_packet_size 1000\nmax_keepalive 60")
	c, err := Connect(t.Context(), Options{URL: url, ClientID: "c", CleanStart: true, KeepAlive: time.Hour}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Abort()
	if l := c.Conn().Limits(); l.KeepAlive != time.Minute || l.MaximumPacketSize != 1000 {
		t.Errorf("Limits() = %+v, want keep alive 60s, packets of 1000", l)
	}
	if err := c.Publish(t.Context(), msg("a", string(make([]byte, 1000)), 1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("Publish = %v, want ErrTooLarge", err)
	}
	again, err := Connect(t.Context(), Options{URL: url, ClientID: "c", CleanStart: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Abort()
	<-c.Done() // taken over; this server closes without a word
	if c.Err() == nil {
		t.Error("Err() = nil after the end")
	}
}
