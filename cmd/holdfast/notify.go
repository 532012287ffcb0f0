package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

// supervisor tells systemd how the gateway is doing (sd_notify(3)). Outside
// systemd every call is a no-op.
type supervisor struct {
	log *slog.Logger
}

func (s supervisor) notify(state ...string) {
	if _, err := daemon.SdNotify(false, strings.Join(state, "\n")); err != nil {
		s.log.Warn("systemd not told", "err", err)
	}
}

func (s supervisor) ready(text string)  { s.notify(daemon.SdNotifyReady, "STATUS="+text) }
func (s supervisor) status(text string) { s.notify("STATUS=" + text) }
func (s supervisor) stopping()          { s.notify(daemon.SdNotifyStopping, "STATUS=stopping") }

// reloading opens a reload that ready closes. The time stamp is what
// Type=notify-reload compares.
func (s supervisor) reloading() {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		s.log.Warn("monotonic clock not read", "err", err)
		return
	}
	s.notify(daemon.SdNotifyReloading, fmt.Sprintf("MONOTONIC_USEC=%d", ts.Nano()/1000))
}

// feedWatchdog pings the watchdog at half its interval while alive returns nil
// in time; a gateway whose parts hang is left to systemd to restart. It returns
// when ctx ends, at once when there is no watchdog.
func (s supervisor) feedWatchdog(ctx context.Context, alive func(context.Context) error) {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		s.log.Error("watchdog settings not understood", "err", err)
		return
	}
	if interval <= 0 {
		return
	}
	tick := time.NewTicker(interval / 2)
	defer tick.Stop()
	for {
		probe, cancel := context.WithTimeout(ctx, interval/4)
		err := alive(probe)
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			s.log.Error("watchdog not fed", "err", err)
		default:
			s.notify(daemon.SdNotifyWatchdog)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
