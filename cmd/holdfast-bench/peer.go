package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// peer is a broker under load.
type peer struct {
	name    string
	command string
}

// knownPeers need no command: Mosquitto with the windows and queues that the
// load takes (its own are 20 and 1000), and the two floors.
func knownPeers() map[string]string {
	self, err := os.Executable()
	if err != nil {
		self = os.Args[0]
	}
	return map[string]string{
		"mosquitto": `sh -c "printf 'listener {port} 127.0.0.1\\nallow_anonymous true\\nmax_inflight_messages 200\\nmax_queued_messages 100000\\n' ` +
			`> {dir}/m.conf; exec mosquitto -c {dir}/m.conf"`,
		"floor-epoll":     self + " null --epoll {port}",
		"floor-goroutine": self + " null {port}",
	}
}

// process is a running peer.
type process struct {
	cmd  *exec.Cmd
	addr string
	dir  string
	out  bytes.Buffer
}

// start runs the peer's command and waits until it answers.
func (p peer) start(ctx context.Context) (*process, error) {
	dir, err := os.MkdirTemp("", "holdfast-bench")
	if err != nil {
		return nil, err
	}
	proc := &process{dir: dir}
	port, err := freePort(ctx)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	proc.addr = net.JoinHostPort("127.0.0.1", port)
	line := strings.NewReplacer("{port}", port, "{dir}", dir).Replace(p.command)
	proc.cmd = exec.Command("/bin/sh", "-c", "exec "+line) //nolint:gosec,noctx // the operator's own command, ended by stop
	proc.cmd.Stdout, proc.cmd.Stderr = &proc.out, &proc.out
	proc.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := proc.cmd.Start(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	if err := proc.wait(ctx); err != nil {
		proc.stop()
		return nil, fmt.Errorf("%w; it said: %s", err, proc.out.Bytes())
	}
	return proc, nil
}

func freePort(ctx context.Context) (string, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, errors.Join(err, l.Close())
}

func (p *process) wait(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		var d net.Dialer
		c, err := d.DialContext(ctx, "tcp", p.addr)
		if err == nil {
			return c.Close()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer: %w", p.addr, err)
		case <-tick.C:
		}
	}
}

// stop ends the peer and removes its data.
func (p *process) stop() {
	_ = p.cmd.Process.Kill() // measured already; how it ends does not matter
	_ = p.cmd.Wait()
	_ = os.RemoveAll(p.dir)
}

// clockTicks is the unit of /proc/PID/stat, the same on every Linux that Go
// runs on (USER_HZ).
const clockTicks = 100

// cpu is the CPU time all threads of the peer have used.
func (p *process) cpu() (time.Duration, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(p.cmd.Process.Pid) + "/stat")
	if err != nil {
		return 0, err
	}
	// The command's name may hold spaces; what counts comes after its bracket.
	_, rest, _ := bytes.Cut(data, []byte(") "))
	fields := strings.Fields(string(rest))
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat: %q", p.cmd.Process.Pid, data)
	}
	user, err1 := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * time.Second / clockTicks, errors.Join(err1, err2)
}

// rss is the peer's resident memory in bytes.
func (p *process) rss() (int64, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(p.cmd.Process.Pid) + "/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return kb << 10, err
		}
	}
	return 0, errors.New("no VmRSS")
}
