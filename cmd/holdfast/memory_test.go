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
