package main

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

// rssFile is how much of files the process has mapped in, in kB.
func rssFile(tb testing.TB) int {
	tb.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		tb.Skip("no /proc")
	}
	_, rest, _ := strings.Cut(string(status), "RssFile:")
	kb, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		tb.Fatal(err)
	}
	return kb
}

func TestTrimMemory(t *testing.T) {
	before := rssFile(t)
	trimMemory()
	if after := rssFile(t); after >= before {
		t.Errorf("%d kB of files before, %d after", before, after)
	}
}

func TestHandshakeGarbage(t *testing.T) {
	var h handshakeGarbage
	for i, step := range []struct {
		connects uint64
		want     bool
	}{{0, false}, {10, false}, {10, false}, {300, false}, {400, false}, {400, true}, {400, false}, {500, false}, {500, false}, {700, false}, {700, true}} {
		if got := h.look(step.connects); got != step.want {
			t.Errorf("step %d, %d connected: %t, want %t", i, step.connects, got, step.want)
		}
	}
}
