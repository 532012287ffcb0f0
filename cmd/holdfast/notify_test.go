package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"
)

// While the parts do not answer systemd hears nothing, which is how it learns
// that the gateway hangs.
func TestWatchdogIsFedOnlyWhileThePartsAnswer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "20000")
	const hangs = 5
	var asked atomic.Int64
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		supervisor{slog.New(slog.DiscardHandler)}.feedWatchdog(ctx, func(context.Context) error {
			if asked.Add(1) <= hangs {
				return errors.New("a part hangs")
			}
			return nil
		})
	}()
	buf := make([]byte, 64)
	if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	n, err := conn.Read(buf)
	if err != nil || string(buf[:n]) != "WATCHDOG=1" || asked.Load() <= hangs {
		t.Errorf("systemd was told %q (%v) after %d questions, want WATCHDOG=1 after more than %d", buf[:n], err, asked.Load(), hangs)
	}
	cancel()
	<-done
}
