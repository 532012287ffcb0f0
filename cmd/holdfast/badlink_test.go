//go:build integration

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/broker/client"
)

// badLink is a wire between two network namespaces that treats IP packets as a
// cellular link does, so that the kernel's own TCP meets loss, delay and little
// room. It is what `tc netem` does, for kernels that have no netem.
type badLink struct {
	delay time.Duration // one way
	rate  int           // bytes/s each way
	queue int           // bytes that wait for the line; what is more is dropped
	loss  float64

	mu   sync.Mutex
	dead bool   // guarded by mu; everything is lost
	sent [2]int // guarded by mu; bytes that went through, up and down
}

// The two ends.
const (
	nearAddress = "10.213.7.1"
	farAddress  = "10.213.7.2"
)

// run brings the namespaces up and carries packets until the end of the test.
// It returns their names.
func (l *badLink) run(t *testing.T) (near, far string) {
	t.Helper()
	names := [2]string{fmt.Sprintf("hfnear%d", os.Getpid()), fmt.Sprintf("hffar%d", os.Getpid())}
	addresses := [2]string{nearAddress, farAddress}
	var ends [2]*os.File
	for i, name := range names {
		ip(t, "netns", "add", name)
		t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", name).Run() })
		var err error
		if ends[i], err = tunIn("/run/netns/"+name, "wan0"); err != nil {
			t.Fatal(err)
		}
		ip(t, "-n", name, "addr", "add", addresses[i], "peer", addresses[1-i], "dev", "wan0")
		ip(t, "-n", name, "link", "set", "wan0", "up", "mtu", "1500")
		ip(t, "-n", name, "link", "set", "lo", "up")
	}
	over := make(chan struct{})
	var wg sync.WaitGroup
	for i := range ends {
		wg.Go(func() { l.carry(i, ends[i], ends[1-i], over, &wg) })
	}
	t.Cleanup(func() {
		close(over)
		for _, f := range ends {
			_ = f.Close()
		}
		wg.Wait()
	})
	return names[0], names[1]
}

// carry takes packets one way. Each waits its turn on the line and then its
// delay; none overtakes another.
func (l *badLink) carry(way int, from, to *os.File, over <-chan struct{}, wg *sync.WaitGroup) {
	type timed struct {
		b   []byte
		due time.Time
	}
	line := make(chan timed, 10_000) // the queue's bytes bound it before
	wg.Go(func() {
		for p := range line {
			timer := time.NewTimer(time.Until(p.due))
			select {
			case <-timer.C:
			case <-over:
				timer.Stop()
				continue
			}
			_, _ = to.Write(p.b)
		}
	})
	defer close(line)
	var free time.Time
	b := make([]byte, 2048)
	for {
		n, err := from.Read(b)
		if err != nil {
			return
		}
		now := time.Now()
		if free.Before(now) {
			free = now
		}
		l.mu.Lock()
		lost := l.dead
		l.mu.Unlock()
		if waiting := int(free.Sub(now).Seconds() * float64(l.rate)); lost || waiting+n > l.queue {
			continue
		}
		free = free.Add(time.Duration(float64(n) / float64(l.rate) * float64(time.Second)))
		if rand.Float64() < l.loss {
			continue // on the air: it has taken its time
		}
		l.mu.Lock()
		l.sent[way] += n
		l.mu.Unlock()
		select {
		case line <- timed{append([]byte(nil), b[:n]...), free.Add(l.delay)}:
		default:
		}
	}
}

func (l *badLink) setDead(dead bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dead = dead
}

func ip(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// tunIn makes a TUN device inside a network namespace, and brings back its end.
func tunIn(namespace, name string) (*os.File, error) {
	type result struct {
		f   *os.File
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its namespace
		f, err := func() (*os.File, error) {
			ns, err := os.Open(namespace)
			if err != nil {
				return nil, err
			}
			defer ns.Close()
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return nil, fmt.Errorf("setns: %w", err)
			}
			fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
			if err != nil {
				return nil, fmt.Errorf("/dev/net/tun: %w", err)
			}
			req, err := unix.NewIfreq(name)
			if err == nil {
				req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
				err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
			}
			if err != nil {
				return nil, errors.Join(fmt.Errorf("TUNSETIFF: %w", err), unix.Close(fd))
			}
			return os.NewFile(uintptr(fd), "/dev/net/tun"), nil
		}()
		done <- result{f, err}
	}()
	r := <-done
	return r.f, r.err
}

// Two percent of packets lost, a round trip of 300 ms, 50 kbit/s, and silence in
// the middle: everything acknowledged arrives, in order, QoS 2 once, both ways.
func TestBadLink(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: it makes network namespaces")
	}
	link := &badLink{delay: 150 * time.Millisecond, rate: 6250, queue: 8000, loss: 0.02}
	near, far := link.run(t)
	dir := t.TempDir()
	cloudSocket, gatewaySocket, config := filepath.Join(dir, "c"), filepath.Join(dir, "g"), filepath.Join(dir, "mosquitto.conf")
	// With more waiting than in flight 2.0.11 lets new ones overtake.
	text := fmt.Sprintf("listener 1883 %s\nlistener 0 %s\nallow_anonymous true\nuser root\nmax_queued_messages 0\nmax_inflight_messages 20000\n", farAddress, cloudSocket)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	startDaemon(t, "ip", "netns", "exec", far, installed(t, "mosquitto", "apt-get install mosquitto"), "-c", config)
	gateway, control := startGateway(t, "unix://"+gatewaySocket, fmt.Sprintf(`url = "mqtt://%s:1883"
keep_alive = "5s"
connect_timeout = "10s"
ack_timeout = "20s"
reconnect_min = "200ms"
reconnect_max = "2s"
[[uplink.cloud.route]]
direction = "out"
filter = "up/#"
[[uplink.cloud.route]]
direction = "in"
filter = "down/#"
`, farAddress), "ip", "netns", "exec", near)
	over := func(socket string) client.Options {
		return client.Options{URL: "mqtt://localhost", Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		}}
	}
	for _, socket := range []string{cloudSocket, gatewaySocket} {
		waitUntil(t, socket, func() bool {
			c, err := net.Dial("unix", socket)
			if err == nil {
				_ = c.Close()
			}
			return err == nil
		})
	}
	var lanes []*outageLane
	for _, way := range []string{"up", "down"} {
		for qos := byte(0); qos <= 2; qos++ {
			lanes = append(lanes, &outageLane{topic: fmt.Sprintf("%s/a/%d", way, qos), qos: qos})
		}
	}
	up := outageClient(t, over(gatewaySocket), "publisher", nil, "")
	outageClient(t, over(cloudSocket), "backend", lanes, "up/#")
	down := outageClient(t, over(cloudSocket), "operator", nil, "")
	outageClient(t, over(gatewaySocket), "plant", lanes, "down/#")
	waitUntil(t, "the link", func() bool { return outageStatus(t, control).State == "up" })
	probe := &outageLane{topic: "down/probe/1", qos: 1}
	outageClient(t, over(gatewaySocket), "probe", []*outageLane{probe}, "down/probe/#")
	waitUntil(t, "the subscription at the cloud", func() bool {
		probe.publish(down)
		outagePause(500)
		return probe.count() > 0
	})
	for i := range 300 {
		for _, l := range lanes {
			if strings.HasPrefix(l.topic, "up/") {
				l.publish(up)
			} else if i%3 == 0 {
				l.publish(down)
			}
		}
		switch i {
		case 100:
			link.setDead(true)
		case 160: // six seconds of nothing
			link.setDead(false)
		}
		outagePause(100)
	}
	waitUpTo(t, 2*time.Minute, "the rest to arrive", func() bool {
		for _, l := range lanes {
			if len(l.missing()) > 0 {
				return false
			}
		}
		st := outageStatus(t, control)
		return st.Backlog == 0 && st.InFlight == 0
	})
	for _, l := range lanes {
		l.check(t, outageCloud{commands: true, once: true})
	}
	st := outageStatus(t, control)
	link.mu.Lock()
	t.Logf("%d bytes of IP up and %d down, %d connects, %d resends, round trip %.0f ms, dropped %v", link.sent[0], link.sent[1], st.Connects, st.Resends, 1000*st.RoundTrip, st.Dropped)
	link.mu.Unlock()
	if t.Failed() {
		t.Log(gateway.out.String())
	}
}
