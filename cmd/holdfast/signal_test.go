package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"holdfast/broker/packet"
	"holdfast/cmd/holdfast/console"
)

// silentCloud takes sessions and says nothing more. It returns its address.
func silentCloud(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer context.AfterFunc(t.Context(), func() { c.Close() })()
				welcomeInSilence(c)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return l.Addr().String()
}

// welcomeInSilence answers the CONNECT, and nothing else.
func welcomeInSilence(c net.Conn) {
	defer c.Close()
	if _, err := packet.NewReader(c, 4096).Next(); err != nil {
		return
	}
	b, err := (&packet.Connack{}).AppendTo(nil, packet.V5)
	if err != nil {
		return
	}
	if _, err := c.Write(b); err != nil {
		return
	}
	_, _ = io.Copy(io.Discard, c)
}

// While a clean stop waits for a cloud that does not answer, a second signal
// ends the process at once.
func TestSecondSignalEndsAtOnce(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "h.toml")
	text := "[[listener]]\naddress = \"tcp://127.0.0.1:0\"\n[uplink.cloud]\nstop_timeout = \"10s\"\nurl = \"mqtt://" + silentCloud(t) + "\"\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	holdfast := exec.CommandContext(t.Context(), "holdfast", "run", "--config", file, "--data", dir)
	holdfast.Stderr = log
	if err := holdfast.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- holdfast.Wait() }()

	await := func(what, state string) {
		t.Helper()
		limit := time.After(20 * time.Second)
		for {
			body, _, err := console.Get(t.Context(), filepath.Join(dir, "holdfast.sock"), "/api/v1/status")
			if err == nil && bytes.Contains(body, []byte(`"state":"`+state+`"`)) {
				return
			}
			select {
			case <-limit:
				text, _ := os.ReadFile(log.Name())
				t.Fatalf("%s: never %s: %v\n%s%s", what, state, err, body, text)
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
	await("connected", "up")
	if err := holdfast.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	await("after the first signal", "stopping")
	if err := holdfast.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil || err.Error() != "signal: terminated" {
		text, _ := os.ReadFile(log.Name())
		t.Errorf("ended with %v, want the second signal\n%s", err, text)
	}
}
