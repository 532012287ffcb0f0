package main

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/creack/pty"

	"holdfast/adapters/port"
)

// What comes in is shown; a second one is told who has the port; an end that was
// asked for is no error.
func TestSerialMonitor(t *testing.T) {
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	name := slave.Name()
	if err := slave.Close(); err != nil {
		t.Fatal(err)
	}
	o := port.DefaultOptions()
	o.Device = name
	line, err := openPort(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer line.Close()
	if _, err := openPort(t.Context(), o); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("(pid %d) has it open", os.Getpid())) {
		t.Errorf("second open = %v, want who has it", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out lockedBuffer
	ended := make(chan error, 1)
	go func() { ended <- monitor(ctx, line, &out) }()
	if _, err := master.WriteString("\x01\x03T=21.5 and so on\r\n"); err != nil {
		t.Fatal(err)
	}
	want := regexp.MustCompile(`(?s)^\d\d:\d\d:\d\d\.\d{6} < 01 03 54 3d .*\|\.\.T=21\.5 and so \|\n.* < 6f 6e 0d 0a +\|on\.\.\|\n$`)
	waitUntil(t, "what came in", func() bool { return want.MatchString(out.String()) })
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("monitor = %v, want nil", err)
	}
	if err := run(t.Context(), []string{"serial", "monitor", name, "--baud", "1200", "--driver", "tarm"}, nil, &out, &out); err == nil || !strings.Contains(err.Error(), "baud:") {
		t.Errorf("a setting that the driver cannot do: %v", err)
	}
}
