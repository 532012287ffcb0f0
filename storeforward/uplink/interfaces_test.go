//go:build integration

package uplink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/broker/packet"
)

// The two roles of this binary in network namespaces of their own.
const (
	netGateway = "UPLINK_TEST_NET_GATEWAY" // run the test below
	netCloud   = "UPLINK_TEST_NET_CLOUD"   // be a cloud on this address until standard input ends
)

var _ = addRole(netCloud, func(address string) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		panic(err)
	}
	go func() {
		for nc, err := l.Accept(); err == nil; nc, err = l.Accept() {
			go patientCloud(nc)
		}
	}()
	names, err := net.ListenPacket("udp", "0.0.0.0:53") // a name server that answers nothing
	if err != nil {
		panic(err)
	}
	defer names.Close()
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
})

// patientCloud welcomes, acknowledges and answers pings.
func patientCloud(nc net.Conn) {
	defer nc.Close()
	for {
		q, err := readPacket(nc, packet.V5)
		if err != nil {
			return
		}
		var answer packet.Packet
		switch q := q.(type) {
		case *packet.Connect:
			answer = &packet.Connack{}
		case *packet.Publish:
			if q.QoS == 1 {
				answer = &packet.Puback{PacketID: q.PacketID}
			}
		case *packet.Subscribe:
			answer = &packet.Suback{PacketID: q.PacketID, Reasons: make([]packet.ReasonCode, len(q.Filters))}
		case *packet.Pingreq:
			answer = &packet.Pingresp{}
		}
		if answer != nil {
			b, err := answer.AppendTo(nil, packet.V5)
			if err != nil {
				return
			}
			if _, err := nc.Write(b); err != nil {
				return
			}
		}
	}
}

// Two interfaces to one cloud, in order: the link moves when the better one goes
// silent, within the time that is set and under load, and back when it has been
// well for the time that is set; one that is switched off is noticed as well.
func TestInterfacesInOrder(t *testing.T) {
	if !inNetwork(t) {
		return
	}
	n := newNetwork(t)
	r := newRigWith(t, func(o *Options) {
		o.URL, o.Interfaces = "mqtt://10.99.9.9", []string{"eth0", "wwan0"}
		o.KeepAlive, o.TCPUserTimeout, o.ConnectTimeout = 5*time.Second, 2*time.Second, 2*time.Second
		o.ReturnAfter = 10 * time.Second
		o.Routes = o.Routes[:1]
		o.MaxMessages = 1 << 20
	})
	via := func(name string, within time.Duration) time.Duration {
		t.Helper()
		began := time.Now()
		for i := 0; time.Since(began) < within; i++ {
			if st := r.up.Status(); st.State == StateUp && st.Interface == name {
				return time.Since(began)
			}
			r.put("s/load", strconv.Itoa(i), 1)
			pass(5 * time.Millisecond)
		}
		t.Fatalf("not up via %s within %v: %+v", name, within, r.up.Status())
		return 0
	}
	load := func(d time.Duration) {
		t.Helper()
		for began := time.Now(); time.Since(began) < d; {
			r.put("s/load", "x", 1)
			pass(5 * time.Millisecond)
		}
	}
	t.Logf("up via eth0 after %v", via("eth0", 5*time.Second))
	load(time.Second)

	n.swallow("10.99.1.2") // the answers go nowhere: a NAT that has forgotten us
	t.Logf("eth0 silent: up via wwan0 after %v", via("wwan0", 9*time.Second))
	if st := r.up.Status(); st.Failovers != 1 {
		t.Errorf("failovers %d, want 1", st.Failovers)
	}
	load(time.Second)

	n.answer("10.99.1.2")
	back := via("eth0", 40*time.Second)
	t.Logf("eth0 well: back after %v", back)
	if st := r.up.Status(); st.Returns != 1 || back < r.opts.ReturnAfter-time.Second {
		t.Errorf("back after %v, returns %d; want 1, not before %v", back, st.Returns, r.opts.ReturnAfter)
	}

	n.run("ip", "link", "set", "eth0", "down")
	t.Logf("eth0 switched off: up via wwan0 after %v", via("wwan0", 15*time.Second))
	for range 500 {
		if r.backlog() == 0 {
			break
		}
		pass(20 * time.Millisecond)
	}
	if st := r.up.Status(); st.Backlog != 0 || st.Refused != 0 || len(st.Dropped) != 0 {
		t.Errorf("backlog %d refused %d dropped %v", st.Backlog, st.Refused, st.Dropped)
	}
}

// A name server that is silent holds up the uplink that needs it, for as long as
// an attempt may take, and nobody else.
func TestSilentNameServer(t *testing.T) {
	if !inNetwork(t) {
		return
	}
	n := newNetwork(t)
	file := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(file, []byte("nameserver 10.99.9.9\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	n.run("mount", "--make-rprivate", "/")
	n.run("mount", "--bind", file, "/etc/resolv.conf")
	r := newRigWith(t, func(o *Options) { o.URL = "mqtt://10.99.9.9" })
	o := testOptions()
	o.URL, o.ConnectTimeout = "mqtt://cloud.example", 3*time.Second
	named, err := New("named", o, r.store, r.local, r.up.log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := newCancel()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = named.Run(ctx)
	}()
	began := time.Now()
	slowest := time.Duration(0)
	for time.Since(began) < 4*time.Second {
		sent := time.Now()
		select {
		case <-r.put("s/x", "x", 1):
			slowest = max(slowest, time.Since(sent))
		case <-time.After(5 * time.Second):
			t.Fatalf("not acknowledged: %+v", r.up.Status())
		}
		pass(10 * time.Millisecond)
	}
	st := named.Status()
	t.Logf("slowest of %d messages beside it: %v; the other says: %s", r.up.Status().Acked, slowest, st.Reason)
	if slowest > 2*time.Second { // the first waits for the connection
		t.Errorf("a message took %v", slowest)
	}
	if st.ConnectFailures == 0 || st.Connects != 0 || !strings.Contains(st.Reason, "cloud.example") {
		t.Errorf("failures %d reason %q", st.ConnectFailures, st.Reason)
	}
	began = time.Now()
	stop(errors.New("stop"))
	<-ended
	if d := time.Since(began); d > time.Second {
		t.Errorf("the stop took %v", d)
	}
}

// inNetwork says whether this process has a network and mounts of its own;
// otherwise it runs the test again in one that has. It needs root.
func inNetwork(t *testing.T) bool {
	t.Helper()
	if os.Getenv(netGateway) != "" {
		return true
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=5m")
	cmd.Env = append(os.Environ(), netGateway+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatalf("in a network of its own (this needs root): %v", err)
	}
	return false
}

// network is ours with eth0 and wwan0, and the cloud's at the other end of both.
type network struct {
	t     *testing.T
	cloud string // process id
}

func newNetwork(t *testing.T) *network {
	t.Helper()
	n := &network{t: t}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), netCloud+"=0.0.0.0:1883")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		cancel()
		_ = cmd.Wait()
	})
	ready := make([]byte, 6)
	if _, err := io.ReadFull(out, ready); err != nil {
		t.Fatal(err)
	}
	n.cloud = strconv.Itoa(cmd.Process.Pid)
	n.run("ip", "link", "set", "lo", "up")
	n.there("ip", "link", "set", "lo", "up")
	n.there("ip", "address", "add", "10.99.9.9/32", "dev", "lo")
	for i, name := range []string{"eth0", "wwan0"} {
		peer, subnet := fmt.Sprintf("c%d", i), fmt.Sprintf("10.99.%d.", i+1)
		n.run("ip", "link", "add", name, "type", "veth", "peer", "name", peer, "netns", n.cloud)
		n.run("ip", "address", "add", subnet+"2/24", "dev", name)
		n.there("ip", "address", "add", subnet+"1/24", "dev", peer)
		n.run("ip", "link", "set", name, "up")
		n.there("ip", "link", "set", peer, "up")
		n.run("ip", "route", "add", "10.99.9.9/32", "via", subnet+"1", "dev", name, "metric", strconv.Itoa(100*(i+1)))
	}
	return n
}

// run runs a command in our network, there in the cloud's.
func (n *network) run(args ...string) {
	n.t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		n.t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
}

func (n *network) there(args ...string) {
	n.t.Helper()
	n.run(append([]string{"nsenter", "--target", n.cloud, "--net"}, args...)...)
}

// swallow has everything to that address disappear, answer brings it back.
func (n *network) swallow(address string) {
	n.there("ip", "route", "add", "blackhole", address+"/32")
}

func (n *network) answer(address string) {
	n.there("ip", "route", "del", "blackhole", address+"/32")
}
