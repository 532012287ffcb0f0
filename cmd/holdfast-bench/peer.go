package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
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

// start runs the peer's command in a folder of its own and waits until it answers.
func (p peer) start(ctx context.Context) (*process, error) { return p.startWith(ctx, nil) }

// startWith is start with files laid into the folder before, by name; {port} and
// {dir} stand for the same in them as in the command.
func (p peer) startWith(ctx context.Context, files map[string]string) (*process, error) {
	dir, err := os.MkdirTemp("", "holdfast-bench")
	if err != nil {
		return nil, err
	}
	port, err := freePort(ctx)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	proc := &process{dir: dir, addr: net.JoinHostPort("127.0.0.1", port)}
	for name, text := range files {
		text = strings.NewReplacer("{port}", port, "{dir}", dir).Replace(text)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return nil, errors.Join(err, os.RemoveAll(dir))
		}
	}
	if err := p.again(ctx, proc); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	if err := proc.wait(ctx); err != nil {
		proc.stop()
		return nil, fmt.Errorf("%w; it said: %s", err, proc.out.Bytes())
	}
	return proc, nil
}

// again starts a peer that has ended, on its data.
func (p peer) again(ctx context.Context, proc *process) error {
	_, port, err := net.SplitHostPort(proc.addr)
	if err != nil {
		return err
	}
	line := strings.NewReplacer("{port}", port, "{dir}", proc.dir).Replace(p.command)
	cmd := exec.CommandContext(context.WithoutCancel(ctx), "/bin/sh", "-c", "exec "+line) //nolint:gosec // the operator's own command, ended by stop
	cmd.Stdout, cmd.Stderr = &proc.out, &proc.out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	proc.cmd = cmd
	return cmd.Start()
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

// writtenBytes is what a process has had written to the disk (proc(5)).
func writtenBytes(pid int) (int64, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/io")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "write_bytes:"); ok {
			return strconv.ParseInt(strings.TrimSpace(rest), 10, 64)
		}
	}
	return 0, errors.New("no write_bytes in /proc/PID/io")
}
