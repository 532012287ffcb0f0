package broker_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode"

	"holdfast/broker"
	"holdfast/broker/brokertest"
	"holdfast/broker/durable"
	"holdfast/broker/packet"
)

// lines is a log in memory.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Split(strings.TrimSpace(l.b.String()), "\n")
}

// logged starts a broker that logs to memory.
func logged(t *testing.T, handler func(*lines) slog.Handler, auth broker.Auth) (*broker.Broker, *lines) {
	t.Helper()
	b, to, _ := loggedWithStore(t, handler, auth)
	return b, to
}

func loggedWithStore(t *testing.T, handler func(*lines) slog.Handler, auth broker.Auth) (*broker.Broker, *lines, *brokertest.MemoryStore) {
	t.Helper()
	to := &lines{}
	store := brokertest.NewMemoryStore()
	o := broker.DefaultOptions()
	o.Auth, o.SysInterval, o.MaxConnectRatePerClient = auth, 0, 0
	b, err := broker.New(o, store, slog.New(handler(to)))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		store.Close()
	})
	return b, to, store
}

// TestLogOfRefusedMessages: who looks why messages do not arrive finds what the
// store had no room for, how large it was and whose, and a flood writes few lines.
func TestLogOfRefusedMessages(t *testing.T) {
	for qos := byte(0); qos <= 2; qos++ {
		t.Run(fmt.Sprintf("QoS %d", qos), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b, to, store := loggedWithStore(t, plainText, &gate{})
				c := brokertest.Connect(t, pipeTo(b), brokertest.V5("pump"))
				store.SetFull(durable.ErrFull)
				for range 1000 {
					c.Publish(qos, true, "big/one", strings.Repeat("x", 5000))
				}
				synctest.Wait()
				said := 0
				for _, line := range to.all() {
					if strings.Contains(line, "message not taken") && strings.Contains(line, "client_id=pump topic=big/one qos="+fmt.Sprint(qos)+" bytes=5000") {
						said++
					}
				}
				if said == 0 || said > 300 {
					t.Errorf("said %d times of 1000", said)
				}
				c.Kill()
			})
		})
	}
}

func pipeTo(b *broker.Broker) net.Conn {
	client, server := net.Pipe()
	b.ServeConn(server, broker.Listener{Name: "pipe"})
	return client
}

func plainText(to *lines) slog.Handler {
	return slog.NewTextHandler(to, &slog.HandlerOptions{Level: slog.LevelDebug})
}

func jsonText(to *lines) slog.Handler {
	return slog.NewJSONHandler(to, &slog.HandlerOptions{Level: slog.LevelDebug})
}

// TestLogFlood: refusals, and clients that come and go, write a bounded number
// of lines, and the next line says how many there were not.
func TestLogFlood(t *testing.T) {
	for name, g := range map[string]*gate{"refused": {refuse: packet.ReasonBadUserNameOrPassword}, "let in": {}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b, to := logged(t, plainText, g)
				flood := func(n int) {
					for i := range n {
						c := brokertest.Raw(t, pipeTo(b), packet.V5)
						c.Try(brokertest.V5(fmt.Sprint(i)))
						c.Kill()
						synctest.Wait()
					}
				}
				flood(2000)
				if n := len(to.all()); n > 300 {
					t.Errorf("%d lines", n)
				}
				pass(time.Minute)
				flood(1)
				all := to.all()
				if last := strings.Join(all[len(all)-2:], "\n"); !strings.Contains(last, "not_logged_before=1900") {
					t.Errorf("the last lines say %s", last)
				}
			})
		})
	}
}

// TestLogOfStrangers: what clients say gets into the log escaped, and not at any
// length.
func TestLogOfStrangers(t *testing.T) {
	nasty := []string{
		"a\nlevel=ERROR msg=\"root logged in\"", "\x1b[2Jgone", "\u202egnp.exe", "a\u2028b", "\u0085", `back\slash`,
		"\ufeffbom", strings.Repeat("x", 1000), "quote\" and = ", "\U000e0041tag",
	}
	for name, handler := range map[string]func(*lines) slog.Handler{"text": plainText, "JSON": jsonText} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b, to := logged(t, handler, &gate{deny: "secret\x1b[2J"})
				for _, id := range nasty {
					p := brokertest.V5(id)
					p.Will = &packet.Will{Topic: id}
					c := brokertest.Connect(t, pipeTo(b), p)
					c.Publish(1, false, id, "")
					c.Publish(1, false, "secret\x1b[2J", "")
					c.Subscribe(0, id)
					c.SendBytes([]byte{0, 0})
					c.Ended()
				}
				synctest.Wait()
				for _, line := range to.all() {
					if !strings.HasPrefix(line, "time=") && !strings.HasPrefix(line, `{"time":`) {
						t.Errorf("a line that is not ours: %q", line)
					}
					if len(line) > 2000 {
						t.Errorf("a line of %d bytes", len(line))
					}
					if i := strings.IndexFunc(line, func(r rune) bool { return !unicode.IsPrint(r) }); i >= 0 {
						t.Errorf("%q has %q in it", line, line[i:min(len(line), i+4)])
					}
				}
				if text := strings.Join(to.all(), "\n"); !strings.Contains(text, "publish denied") || !strings.Contains(text, "client left") {
					t.Error("the lines this test is about are missing")
				}
			})
		})
	}
}
