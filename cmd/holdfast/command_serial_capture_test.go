package main

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/creack/pty"

	"holdfast/adapters/port"
)

// bytesOfCapture are the bytes that came in, put together, and how the port was
// set.
func bytesOfCapture(t *testing.T, file string) (string, port.Options) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c, err := port.ReadCapture(f)
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for {
		chunk, err := c.Next()
		if errors.Is(err, io.EOF) {
			return all.String(), c.Options
		}
		if err != nil {
			t.Fatal(err)
		}
		all.Write(chunk.Bytes)
	}
}

// What is replayed on a terminal of its own is captured there, byte for byte, with
// the settings of the port.
func TestSerialReplayAndCapture(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	text := "# holdfast capture 1\n# parity = even\n0.1 < 00 11 13 7f 03 04 0a 0d ff\n0.2 > 05\n0.25 < " + strings.Repeat("55", 5000) + "\n0.3 < 1a\n"
	if err := os.WriteFile(from, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	want, _ := bytesOfCapture(t, from)
	want = strings.Replace(want, "\x05", "", 1) // was sent
	var out, errs lockedBuffer
	ended := make(chan error, 1)
	go func() {
		ended <- run(t.Context(), []string{"serial", "replay", from, "--speed", "10", "--settle", "300ms"}, nil, &out, &errs)
	}()
	waitUntil(t, "the path", func() bool { return strings.HasSuffix(out.String(), "\n") })
	path := strings.TrimSpace(out.String())
	if err := run(t.Context(), []string{"serial", "capture", path, to, "--baud", "19200", "--max-bytes", "5010", "--for", "20s"}, nil, io.Discard, &errs); err != nil {
		t.Fatalf("capture: %v", err)
	}
	if err := <-ended; err != nil {
		t.Errorf("replay: %v", err)
	}
	got, o := bytesOfCapture(t, to)
	if got != want || o.Baud != 19200 || o.Device != path {
		t.Errorf("captured %d bytes of %d with %+v", len(got), len(want), o)
	}
	if err := run(t.Context(), []string{"serial", "capture", path, to}, nil, io.Discard, &errs); err == nil {
		t.Error("a capture was written over")
	}
}

// With --wait an answer is said when the question has come, and not before.
func TestSerialReplayWaits(t *testing.T) {
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	o := port.DefaultOptions()
	o.Device = slave.Name()
	line, err := openPort(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer line.Close()
	slave.Close()
	c, err := port.ReadCapture(strings.NewReader("# holdfast capture 1\n1000 > 41 0d\n1000 < 42\n1000 > 41 0d\n1000 < 43\n"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- sayAgain(ctx, c, line, replayOptions{speed: 1, wait: true}) }()
	answer := make([]byte, 1)
	for _, want := range "BC" {
		for _, s := range []string{"xA", "\r"} {
			if _, err := master.WriteString(s); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := io.ReadFull(master, answer); err != nil || rune(answer[0]) != want {
			t.Errorf("answer %q, %v, want %q", answer, err, want)
		}
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
