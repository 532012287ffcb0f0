package modbus

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/adapters/modbus/modbustest"
)

// What comes and goes all day says so a few times, and then now and then.
func TestBusLogIsBounded(t *testing.T) {
	for name, bad := range map[string]struct {
		fault func(n int) modbustest.Fault
		says  string
	}{
		"a unit that echoes on a line that does not": {
			says:  "line echoes what is sent",
			fault: func(int) modbustest.Fault { return modbustest.Fault{Echo: true} },
		},
		"a unit that comes and goes": {
			says:  "unit went down",
			fault: func(n int) modbustest.Fault { return modbustest.Fault{Silent: n%6 < 4} },
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, options(meter("m", 1, 100*time.Millisecond, 0), meter("n", 2, 100*time.Millisecond, 0)))
				var log bytes.Buffer // of the bus goroutine, until stop
				r.bus.log = slog.New(slog.NewTextHandler(&log, nil))
				r.slave.Unit(1).SetHolding(0, 7)
				u, n := r.slave.Unit(2), 0
				u.SetHolding(0, 7)
				u.FaultFunc(func(modbustest.Request) modbustest.Fault {
					n++
					return bad.fault(n)
				})
				r.start()
				r.after(time.Hour)
				r.stop()
				lines, of := strings.Count(log.String(), "\n"), strings.Count(log.String(), bad.says)
				if of == 0 || lines > 70 {
					t.Errorf("%d lines in an hour, %d of them %q, want some and at most 70:\n%.1000s", lines, of, bad.says, &log)
				}
				if !strings.Contains(log.String(), "not_logged_before=") {
					t.Error("the lines left out are not counted")
				}
			})
		})
	}
}
