package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"os"
	"os/signal"
	"regexp"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"holdfast/cmd/holdfast/console"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"holdfast": main})
}

// Each script is one thing that an operator sees.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			// Socket paths are limited to 107 bytes, work folders are not.
			e.Setenv("SHORT", t.TempDir())
			e.Values[systemdKey{}] = new(*systemdTold)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"freeport": freePort,
			"status":   waitStatus,
			"systemd":  systemd,
			"told":     told,
			"signal":   sendSignal,
			"certs":    certs,
			"publish":  publish,
			"session":  session,
			"slave":    slave,
		},
	})
}

// freePort NAME sets NAME to host:port of a port nobody listens on.
func freePort(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: freeport NAME")
	}
	var lc net.ListenConfig
	l, err := lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
	ts.Check(err)
	ts.Setenv(args[0], l.Addr().String())
	ts.Check(l.Close())
}

// status SOCKET REGEXP waits until the indented status of the gateway matches.
func waitStatus(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: status SOCKET REGEXP")
	}
	want := regexp.MustCompile(args[1])
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	var last bytes.Buffer
	for {
		body, _, err := console.Get(ctx, args[0], "/api/v1/status")
		if err == nil {
			last.Reset()
			ts.Check(json.Indent(&last, body, "", "  "))
			if want.Match(last.Bytes()) {
				return
			}
		}
		select {
		case <-ctx.Done():
			ts.Fatalf("status of %s never matched %q; last: %v\n%s", args[0], args[1], err, last.Bytes())
		case <-poll.C:
		}
	}
}

// signal NAME goes to every command in the background.
func sendSignal(ts *testscript.TestScript, neg bool, args []string) {
	signals := map[string]os.Signal{"HUP": syscall.SIGHUP, "TERM": syscall.SIGTERM, "KILL": syscall.SIGKILL}
	if neg || len(args) != 1 || signals[args[0]] == nil {
		ts.Fatalf("usage: signal HUP|TERM|KILL")
	}
	for _, c := range ts.BackgroundCmds() {
		ts.Check(c.Process.Signal(signals[args[0]]))
	}
}

// systemdTold is what the commands of one script told systemd.
type systemdTold struct {
	conn *net.UnixConn
	more chan struct{} // capacity 1: something came since told last looked

	mu   sync.Mutex
	text bytes.Buffer // guarded by mu
}

type systemdKey struct{}

// systemd plays systemd for the next commands: NOTIFY_SOCKET and a watchdog of
// 200 ms.
func systemd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: systemd")
	}
	path := ts.Getenv("SHORT") + "/notify"
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	ts.Check(err)
	told := &systemdTold{conn: conn, more: make(chan struct{}, 1)}
	*ts.Value(systemdKey{}).(**systemdTold) = told
	var wg sync.WaitGroup
	wg.Go(told.listen)
	ts.Defer(func() {
		_ = conn.Close()
		wg.Wait()
	})
	ts.Setenv("NOTIFY_SOCKET", path)
	ts.Setenv("WATCHDOG_USEC", strconv.Itoa(int((200 * time.Millisecond).Microseconds())))
}

func (s *systemdTold) listen() {
	buf := make([]byte, 4096)
	for {
		n, err := s.conn.Read(buf)
		if err != nil {
			return
		}
		s.mu.Lock()
		s.text.Write(append(buf[:n:n], '\n'))
		s.mu.Unlock()
		select {
		case s.more <- struct{}{}:
		default:
		}
	}
}

// told REGEXP waits until systemd has been told that.
func told(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: told REGEXP")
	}
	s := *ts.Value(systemdKey{}).(**systemdTold)
	want := regexp.MustCompile("(?m)" + args[0])
	timeout := time.After(20 * time.Second)
	for {
		s.mu.Lock()
		text := s.text.String()
		s.mu.Unlock()
		if want.MatchString(text) {
			return
		}
		select {
		case <-s.more:
		case <-timeout:
			ts.Fatalf("systemd was never told %q, only:\n%s", args[0], text)
		}
	}
}

// Signals are taken from the start: one that comes before READY stops the
// start, it does not kill the process half way.
func TestRunStopsWhenAsked(t *testing.T) {
	ctx, stop := signal.NotifyContext(t.Context(), syscall.SIGUSR1)
	defer stop()
	dir := t.TempDir()
	if err := syscall.Kill(os.Getpid(), syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	<-ctx.Done()
	var stderr bytes.Buffer
	if err := run(ctx, []string{"run", "--listen", "tcp://127.0.0.1:0", "--data", dir}, nil, &stderr, &stderr); err != nil {
		t.Errorf("run = %v\n%s", err, stderr.String())
	}
	if !bytes.Contains(stderr.Bytes(), []byte("gateway stopped")) {
		t.Errorf("no clean stop:\n%s", stderr.String())
	}
}
