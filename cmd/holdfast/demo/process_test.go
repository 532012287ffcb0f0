package demo

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func sh(t *testing.T, script string) *process {
	t.Helper()
	p, err := startProcess("child", "/bin/sh", filepath.Join(t.TempDir(), "child.log"), []string{"GREETING=hello"}, "-c", script)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.cmd.Process.Kill(); <-p.done })
	return p
}

// says waits for a line in the log.
func (p *process) says(t *testing.T, text string) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); p.lastWords() != text; {
		if time.Now().After(deadline) {
			t.Fatalf("the child says %q, want %q", p.lastWords(), text)
		}
		<-time.After(5 * time.Millisecond)
	}
}

func TestProcessStops(t *testing.T) {
	p := sh(t, `trap 'echo bye; exit 0' TERM; echo $GREETING; while :; do sleep 0.01; done`)
	p.says(t, "hello")
	if err := running(p); err != nil {
		t.Errorf("running = %v", err)
	}
	if err := p.stop(10 * time.Second); err != nil {
		t.Errorf("stop = %v", err)
	}
	p.says(t, "bye")
	if err := running(p); err == nil || !strings.Contains(err.Error(), "ended by itself") {
		t.Errorf("running after the end = %v", err)
	}
}

func TestProcessThatFails(t *testing.T) {
	p := sh(t, `echo first; echo why >&2; exit 3`)
	<-p.done
	for what, err := range map[string]error{"running": running(p), "stop": p.stop(time.Second), "kill": p.kill()} {
		if err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "why") {
			t.Errorf("%s = %v, want the status and the last line", what, err)
		}
	}
}

func TestProcessThatDoesNotStop(t *testing.T) {
	p := sh(t, `trap '' TERM; echo ready; while :; do sleep 0.01; done`)
	p.says(t, "ready")
	if err := p.stop(50 * time.Millisecond); err == nil || !strings.Contains(err.Error(), "did not stop") {
		t.Errorf("stop = %v", err)
	}
	<-p.done
}

func TestProcessKill(t *testing.T) {
	p := sh(t, `trap 'echo never' TERM; echo ready; while :; do sleep 0.01; done`)
	p.says(t, "ready")
	if err := p.kill(); err != nil {
		t.Errorf("kill = %v", err)
	}
	if p.lastWords() != "ready" {
		t.Errorf("the child says %q after the kill", p.lastWords())
	}
}

func TestProcessThatIsNotThere(t *testing.T) {
	if _, err := startProcess("child", "/no/such/binary", filepath.Join(t.TempDir(), "log"), nil); err == nil || !strings.Contains(err.Error(), "start child") {
		t.Errorf("startProcess = %v", err)
	}
	if err := (*process)(nil).stop(time.Second); err != nil || running(nil) != nil {
		t.Errorf("a process that was never started: %v", err)
	}
}

// runIn runs the demo with its temporary files in a folder of the test.
func runIn(t *testing.T, ctx context.Context, binary string) (report, dir string, err error) { //nolint:revive // t first, as in all helpers
	t.Helper()
	dir = t.TempDir()
	t.Setenv("TMPDIR", dir)
	var out bytes.Buffer
	err = Run(ctx, Options{Binary: binary, Out: &out})
	return out.String(), dir, err
}

func left(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestRunNamesTheLogsWhenAProcessFails(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "broken")
	if err := os.WriteFile(binary, []byte("#!/bin/sh\necho no disk today >&2\nexit 7\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	report, dir, err := runIn(t, t.Context(), binary)
	if err == nil || !strings.Contains(err.Error(), "cloud has ended by itself") || !strings.Contains(err.Error(), "no disk today") {
		t.Errorf("Run = %v", err)
	}
	names := left(t, dir)
	if len(names) != 1 || !strings.HasPrefix(names[0], "holdfast-demo-logs-") {
		t.Errorf("left behind: %v, want the logs", names)
	}
	if !strings.Contains(report, "logs of the two processes: "+filepath.Join(dir, names[0])) {
		t.Errorf("report = %q, want the folder of the logs", report)
	}
}

func TestRunLeavesNothingBehindWhenInterrupted(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "silent")
	if err := os.WriteFile(binary, []byte("#!/bin/sh\ntrap 'exit 0' TERM\nwhile :; do sleep 0.01; done\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(300*time.Millisecond, cancel)
	_, dir, err := runIn(t, ctx, binary)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Run = %v, want context.Canceled", err)
	}
	if names := left(t, dir); len(names) != 0 {
		t.Errorf("left behind: %v", names)
	}
}

func TestRunRefusesABadURL(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	var out bytes.Buffer
	err := Run(t.Context(), Options{Binary: "/bin/false", Cloud: "mqtt://me:hunter2@", Out: &out})
	if err == nil || strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), "--cloud") {
		t.Errorf("Run = %v", err)
	}
}

func TestSummary(t *testing.T) {
	var out bytes.Buffer
	r := reporter{out: &out, start: time.Now()}
	n := r.summary([]row{
		{what: "a", qos: 1, sent: 10, acked: 10, arrived: 10, notes: []string{"a note"}},
		{what: "b", qos: 2, sent: 10, acked: 9, arrived: 8, lost: 1, problems: []string{"one lost"}},
	}, []string{"first"}, []string{"strange"})
	if n != 2 {
		t.Errorf("summary = %d problems, want 2", n)
	}
	for _, want := range []string{"out of order", "a note", "first", "! one lost", "! strange"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("summary %q has no %q", out.String(), want)
		}
	}
	if strings.Contains(out.String(), "\x1b") {
		t.Error("colour though none was asked for")
	}
	out.Reset()
	r.colour = true
	st := status{Uplinks: []uplinkStatus{{State: "up", Backlog: 42}}}
	r.progress(st, true, 7)
	r.progress(st, false, 7)
	for _, want := range []string{"\x1b[32m", "backlog    42", "does not answer"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("progress %q has no %q", out.String(), want)
		}
	}
}

func TestStates(t *testing.T) {
	var s states
	for _, state := range []string{"online", "online", "offline"} {
		s.saw(state)
	}
	mark := s.mark()
	if s.String() != "online > offline" || s.now() != "offline" {
		t.Errorf("states = %s, now %s", &s, s.now())
	}
	offline := func(s string) bool { return s == "offline" }
	if s.since(mark, offline) {
		t.Error("offline was seen before the mark only")
	}
	s.saw("online")
	s.saw("offline")
	if !s.since(mark, offline) {
		t.Error("offline was seen after the mark")
	}
}
