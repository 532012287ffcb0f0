package demo

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// process is a child, with what it says in a file.
type process struct {
	name string
	log  string // path
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // before done is closed: the waiting goroutine's
}

// startProcess starts binary with args. What it writes is appended to the file
// log. It dies with this process, whatever kills that, and does not get the
// Ctrl-C of the terminal: it is stopped in its turn.
func startProcess(name, binary, log string, env []string, args ...string) (*process, error) {
	out, err := os.OpenFile(log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	defer out.Close() //nolint:errcheck // the child has its own descriptor
	p := &process{name: name, log: log, done: make(chan struct{})}
	p.cmd = exec.Command(binary, args...) //nolint:gosec,noctx // our own executable; stop ends it, not a context
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error, 1)
	go func() {
		defer close(p.done)
		// Pdeathsig is sent when the thread that started the child ends.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.err = p.cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		<-p.done
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return p, nil
}

// kill is the power cut: SIGKILL, and wait.
func (p *process) kill() error {
	err := p.cmd.Process.Kill()
	<-p.done
	if errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("%s had ended before it was killed: %w", p.name, p.ended())
	}
	return err
}

// stop asks with SIGTERM and waits; after patience it kills, and that is an
// error, as is an exit status that is not 0.
func (p *process) stop(patience time.Duration) error {
	if p == nil {
		return nil
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // if it has ended already, done says so
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-p.done:
		return p.ended()
	case <-timer.C:
		return errors.Join(fmt.Errorf("%s did not stop within %v of SIGTERM", p.name, patience), p.kill())
	}
}

// ended is how it ended, nil for status 0; done must be closed.
func (p *process) ended() error {
	if p.err == nil {
		return nil
	}
	err := fmt.Errorf("%s ended: %w", p.name, p.err)
	if last := p.lastWords(); last != "" {
		err = fmt.Errorf("%w: %s", err, last)
	}
	return err
}

// lastWords is the last line of its log.
func (p *process) lastWords() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return lines[len(lines)-1]
}
