package demo

import (
	"bufio"
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"syscall"
	"testing"
	"time"
)

// opened opens the other end of a line by its name.
func opened(t *testing.T, name string) *os.File {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	_ = f.SetDeadline(time.Now().Add(10 * time.Second))
	return f
}

func startTestField(t *testing.T) *field {
	t.Helper()
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	f, err := startField(ctx, filepath.Join(dir, "meter"), filepath.Join(dir, "sensor"))
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if err := f.close(); err != nil {
			t.Errorf("close = %v", err)
		}
		select {
		case err := <-f.failed:
			t.Errorf("a device failed: %v", err)
		default:
		}
	})
	return f
}

func TestSensorSpeaks(t *testing.T) {
	f := startTestField(t)
	pattern := regexp.MustCompile(`^T=[-0-9.]+ H=[0-9.]+ N=[0-9]+$`)
	for range 2 { // the second time on another pty under the same name
		port := opened(t, f.sensor.plug.name)
		scanner := bufio.NewScanner(port)
		for i := range 3 {
			if !scanner.Scan() {
				t.Fatalf("line %d: %v", i, scanner.Err())
			}
			if !pattern.MatchString(scanner.Text()) {
				t.Errorf("line %q is not %v", scanner.Text(), pattern)
			}
		}
		if err := f.sensor.plug.unplug(); err != nil {
			t.Errorf("unplug = %v", err)
		}
		for scanner.Scan() { // what was still in the line
		}
		if _, err := os.Lstat(f.sensor.plug.name); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the name after unplug: %v", err)
		}
		before := f.sensor.lines.Load()
		<-time.After(2 * speakEvery)
		if got := f.sensor.lines.Load(); got > before+1 { // one may have begun
			t.Errorf("an unplugged sensor counted from %d to %d", before, got)
		}
		if err := f.sensor.plug.plugIn(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestMeterAnswersEachOneWhoOpensItsPort(t *testing.T) {
	f := startTestField(t)
	request := []byte{meterUnit, 3, 0, 100, 0, 6, 0x84, 0x17} // CRC 0x1784
	for life := range 3 {
		port := opened(t, f.meter.plug.name)
		if _, err := port.Write(request); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 17)
		for got := 0; got < len(b); {
			n, err := port.Read(b[got:])
			if err != nil {
				t.Fatalf("life %d: after % x: %v", life, b[:got], err)
			}
			got += n
		}
		if b[0] != meterUnit || b[1] != 3 || b[2] != 12 {
			t.Errorf("answer % x", b)
		}
		if n := int(b[11])<<8 | int(b[12]); n != life+1 { // CDAB: the low word first
			t.Errorf("poll %d is number %d", life+1, n)
		}
		port.Close()
	}
}
