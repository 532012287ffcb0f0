package port

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// soon is well below lookSlowly: what is noticed by then, the kernel has told.
const soon = lookSlowly / 2

func waitingLine(t *testing.T, o Options) *Line {
	t.Helper()
	l, err := NewLine("meter", o, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// touch stands for a device file: Wait opens nothing, so any file will do.
func touch(t testing.TB, path string) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

func mkdir(t testing.TB, path string) {
	t.Helper()
	if err := os.MkdirAll(path, 0o700); err != nil {
		t.Fatal(err)
	}
}

func link(t testing.TB, to, path string) {
	t.Helper()
	if err := os.Symlink(to, path); err != nil {
		t.Fatal(err)
	}
}

// devFolder is a /dev of a test.
type devFolder struct {
	testing.TB
	path string
}

func TestWaitIsToldOfADevice(t *testing.T) {
	t.Parallel()
	const byID = "serial/by-id/usb-FTDI-if00-port0"
	tests := map[string]struct {
		before func(d devFolder)
		device string // below dev, or usb:
		steps  []func(d devFolder)
	}{
		"in a folder that is there": {
			device: "ttyUSB0",
			steps:  []func(devFolder){func(d devFolder) { touch(d, d.path+"/ttyUSB0") }},
		},
		"renamed into place": {
			before: func(d devFolder) { touch(d, d.path+"/.tmp") },
			device: "ttyUSB0",
			steps: []func(devFolder){func(d devFolder) {
				if err := os.Rename(d.path+"/.tmp", d.path+"/ttyUSB0"); err != nil {
					t.Fatal(err)
				}
			}},
		},
		"by-id, whose folder udev makes with the first device and removes with the last": {
			device: byID,
			steps: []func(devFolder){
				func(d devFolder) { mkdir(d, d.path+"/serial/by-id") },
				func(d devFolder) {
					if err := os.RemoveAll(d.path + "/serial"); err != nil {
						d.Fatal(err)
					}
				},
				func(d devFolder) { mkdir(d, d.path+"/serial") },
				func(d devFolder) { touch(d, d.path+"/ttyUSB1") },
				func(d devFolder) { mkdir(d, d.path+"/serial/by-id") },
				func(d devFolder) { link(d, "../../ttyUSB1", d.path+"/"+byID) },
			},
		},
		"by-id, whose link is there before the device": {
			before: func(d devFolder) {
				mkdir(d, d.path+"/serial/by-id")
				link(d, "../../ttyUSB0", d.path+"/"+byID)
			},
			device: byID,
			steps:  []func(devFolder){func(d devFolder) { touch(d, d.path+"/ttyUSB0") }},
		},
		"links in a ring": {
			before: func(d devFolder) { link(d, "b", d.path+"/a"); link(d, "a", d.path+"/b") },
			device: "c",
			steps:  []func(devFolder){func(d devFolder) { touch(d, d.path+"/c") }},
		},
		"by its USB ids: first in /sys, then in /dev": {
			device: "usb:0403:6001",
			steps: []func(devFolder){
				func(d devFolder) {
					usb := filepath.Join(d.path, "sys/devices/usb1/1-1")
					mkdir(d, usb+"/1-1:1.0/ttyUSB0")
					if err := errors.Join(os.WriteFile(usb+"/idVendor", []byte("0403\n"), 0o600), os.WriteFile(usb+"/idProduct", []byte("6001\n"), 0o600)); err != nil {
						d.Fatal(err)
					}
					mkdir(d, d.path+"/sys/class/tty/ttyUSB0")
					link(d, usb+"/1-1:1.0/ttyUSB0", d.path+"/sys/class/tty/ttyUSB0/device")
				},
				func(d devFolder) { touch(d, d.path+"/ttyUSB0") },
			},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dev := t.TempDir()
			mkdir(t, dev+"/sys/class/tty")
			if tt.before != nil {
				tt.before(devFolder{t, dev})
			}
			o := DefaultOptions()
			o.Device, o.Dev, o.Sysfs = tt.device, dev, dev+"/sys"
			if !strings.HasPrefix(tt.device, "usb:") {
				o.Device = filepath.Join(dev, tt.device)
			}
			l := waitingLine(t, o)
			ctx, cancel := context.WithTimeout(t.Context(), soon)
			defer cancel()
			result := make(chan error, 1)
			go func() { result <- l.Wait(ctx) }()
			for i, step := range tt.steps {
				for l.Status().State != "absent" { // it has looked
					<-time.After(time.Millisecond)
				}
				select {
				case err := <-result:
					t.Fatalf("Wait returned before step %d: %v", i, err)
				default:
				}
				step(devFolder{t, dev})
			}
			if err := <-result; err != nil {
				t.Errorf("Wait = %v, want nil within %v", err, soon)
			}
		})
	}
}

// More changes than the kernel keeps: what it says then is only that there were
// too many.
func TestOverflownQueueIsAReasonToLook(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("/proc/sys/fs/inotify/max_queued_events")
	if err != nil {
		t.Fatal(err)
	}
	most, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	dev := t.TempDir()
	h, err := newHotplug()
	if err != nil {
		t.Fatal(err)
	}
	defer h.close()
	path := filepath.Join(dev, "ttyUSB0")
	if err := h.watch(path); err != nil {
		t.Fatal(err)
	}
	for range most/2 + 1 {
		touch(t, dev+"/x")
		if err := os.Remove(dev + "/x"); err != nil {
			t.Fatal(err)
		}
	}
	touch(t, path) // not among the events
	start := time.Now()
	if err := h.wait(t.Context(), start.Add(soon)); err != nil || time.Since(start) >= soon {
		t.Errorf("wait = %v after %v, want nil at once", err, time.Since(start))
	}
}

// Without inotify the clock does.
func TestWaitWithoutInotify(t *testing.T) {
	t.Parallel()
	h := &hotplug{}
	if err := errors.Join(h.watch("/dev/ttyUSB0"), h.wait(t.Context(), time.Now().Add(time.Millisecond))); err != nil {
		t.Errorf("watch and wait = %v, want nil", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h.wait(ctx, time.Now().Add(time.Hour)); !errors.Is(err, context.Canceled) {
		t.Errorf("wait = %v, want context.Canceled", err)
	}
}

func TestBackoff(t *testing.T) {
	t.Parallel()
	o := DefaultOptions()
	o.Device = filepath.Join(t.TempDir(), "ttyUSB0")
	touch(t, o.Device)
	l := waitingLine(t, o)
	var got []string
	for range 9 {
		next := l.nextTry()
		pause := time.Duration(0)
		if !next.IsZero() {
			pause = next.Sub(l.lastTry)
		}
		got = append(got, pause.String())
		if _, err := l.Open(t.Context()); err == nil { // no serial port
			t.Fatal("a plain file was opened")
		}
	}
	if want := "[0s 0s 1s 2s 4s 8s 16s 30s 30s]"; fmt.Sprint(got) != want {
		t.Errorf("pauses = %v, want %s", got, want)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := l.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Wait in the pause = %v, want it to wait", err)
	}
	l.forgive()
	if err := l.Wait(t.Context()); err != nil {
		t.Errorf("Wait after a settled opening = %v", err)
	}
}

// A loose contact must not fill the log, and what is left out is said.
func TestLogOfALooseContactIsBounded(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	o := DefaultOptions()
	o.Device = "/dev/none"
	l, err := NewLine("meter", o, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		l.say(slog.LevelWarn, "port lost")
	}
	if n := strings.Count(log.String(), "port lost"); n != logLines {
		t.Errorf("%d lines in a minute, want %d", n, logLines)
	}
	l.said.since = l.said.since.Add(-logPeriod)
	l.say(slog.LevelWarn, "port lost")
	if !strings.Contains(log.String(), fmt.Sprintf("left_out=%d", 100-logLines)) {
		t.Errorf("what was left out is not said:\n%s", log.String())
	}
}
