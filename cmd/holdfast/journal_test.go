package main

import (
	"bytes"
	"log/slog"
	"sync"
	"testing"
)

func TestJournalLinesCarryTheirPriority(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(newJournalHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug})).With("component", "test")
	log.Error("one")
	log.Warn("two\nlines")
	log.WithGroup("g").Info("three", "key", "x")
	log.Debug("four")
	want := "<3>msg=one component=test\n" +
		"<4>msg=\"two\\nlines\" component=test\n" +
		"<6>msg=three component=test g.key=x\n" +
		"<7>msg=four component=test\n"
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
}

func TestJournalLinesAreWhole(t *testing.T) {
	var out lockedLines
	log := slog.New(newJournalHandler(&out, &slog.HandlerOptions{}))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				log.With("k", "v").Info("message")
			}
		})
	}
	wg.Wait()
	for _, line := range out.lines {
		if line != "<6>msg=message k=v\n" {
			t.Fatalf("line %q", line)
		}
	}
	if len(out.lines) != 800 {
		t.Errorf("%d lines, want 800", len(out.lines))
	}
}

// lockedLines keeps every Write apart; the handler promises one at a time.
type lockedLines struct{ lines []string }

func (l *lockedLines) Write(p []byte) (int, error) {
	l.lines = append(l.lines, string(p))
	return len(p), nil
}
