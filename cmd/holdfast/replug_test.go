package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/creack/pty"

	"holdfast/adapters/health"
)

// A sensor is unplugged and plugged in again under its own name, again and
// again: its device is offline and online, without anybody's help, and the rest
// of the gateway does not notice.
func TestGatewayGoesOnAfterReplugs(t *testing.T) {
	for _, driver := range []string{"bugst", "tarm"} {
		t.Run(driver, func(t *testing.T) {
			dir := t.TempDir()
			link := filepath.Join(dir, "by-id", "scale")
			file := filepath.Join(dir, "h.toml")
			text := fmt.Sprintf(`
[[listener]]
address = "tcp://127.0.0.1:0"
[port.scale]
device = %q
driver = %q
[device.scale]
adapter = "serial"
port = "scale"
format = "regexp"
pattern = '^(?P<weight>[0-9]+)$'
recover_after = 1
[[device.scale.point]]
name = "weight"
`, link, driver)
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			gw := reloadable(t, file)
			state := func() (s health.State) {
				for _, d := range gw.g.monitor.Status() {
					if d.Device == "scale" {
						s = d.State
					}
				}
				return s
			}
			waitUntil(t, "offline without a device", func() bool { return state() == health.Offline })
			for round := range 3 {
				master, slave, err := pty.Open()
				if err != nil {
					t.Fatal(err)
				}
				// udev makes the folder with the first device.
				if err := errors.Join(os.MkdirAll(filepath.Dir(link), 0o700), os.Symlink(slave.Name(), link), slave.Close()); err != nil {
					t.Fatal(err)
				}
				plugged := time.Now()
				waitUntil(t, "online", func() bool {
					_, err := master.WriteString("12\n") // a sensor speaks all the time
					return err == nil && state() == health.Online
				})
				t.Logf("round %d: online %v after it was plugged in", round, time.Since(plugged))
				if err := errors.Join(os.RemoveAll(filepath.Dir(link)), master.Close()); err != nil {
					t.Fatal(err)
				}
				waitUntil(t, "offline", func() bool { return state() == health.Offline })
			}
			bus := gw.snapshot().Buses[0]
			if bus.Supervisor.Failures != 0 || bus.Supervisor.Starts != 1 {
				t.Errorf("the adapter ended: %+v", bus.Supervisor)
			}
		})
	}
}
