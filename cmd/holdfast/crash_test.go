package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
)

// What the runtime has written of a crash is told to the next start, once, and kept.
func TestCrashIsNoted(t *testing.T) {
	dir := t.TempDir()
	t.Cleanup(func() { _ = debug.SetCrashOutput(nil, debug.CrashOptions{}) })
	log := slog.New(slog.DiscardHandler)
	if got := noteCrashes(dir, log); got != "" {
		t.Errorf("the first start finds %q", got)
	}
	if err := os.WriteFile(filepath.Join(dir, crashFile), []byte("panic: out of ideas\n\ngoroutine 1 [running]:\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := noteCrashes(dir, log); got != "panic: out of ideas" {
		t.Errorf("after a crash: %q", got)
	}
	if got := noteCrashes(dir, log); got != "" {
		t.Errorf("the start after that finds %q", got)
	}
	if b, err := os.ReadFile(filepath.Join(dir, crashFileLast)); err != nil || !strings.Contains(string(b), "goroutine 1") {
		t.Errorf("kept: %q, %v", b, err)
	}
}
