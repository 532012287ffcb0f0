package relaytest

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// echoServer answers every byte, and says when a connection ended.
func echoServer(t *testing.T) (address string, ended <-chan error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	ends := make(chan error, 10)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { c.Close() })
			go func() {
				_, err := io.Copy(c, c)
				ends <- err
			}()
		}
	}()
	return l.Addr().String(), ends
}

func startRelay(t *testing.T, target string, o Options) *Relay {
	t.Helper()
	r, err := New(context.Background(), target, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

func dialRelay(t *testing.T, r *Relay) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", r.Address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// says sends text and returns what comes back within the time given.
func says(t *testing.T, c net.Conn, text string, within time.Duration) (string, error) {
	t.Helper()
	if _, err := c.Write([]byte(text)); err != nil {
		return "", err
	}
	_ = c.SetReadDeadline(time.Now().Add(within))
	b := make([]byte, len(text))
	n, err := io.ReadFull(c, b)
	return string(b[:n]), err
}

func TestRelayPasses(t *testing.T) {
	address, ended := echoServer(t)
	r := startRelay(t, address, Options{})
	c := dialRelay(t, r)
	if got, err := says(t, c, "hello", 5*time.Second); got != "hello" {
		t.Fatalf("through the relay came %q, %v", got, err)
	}
	c.Close()
	if err := <-ended; err != nil {
		t.Errorf("the end arrived as %v, want an orderly one", err)
	}
}

func TestRelayFreezes(t *testing.T) {
	address, ended := echoServer(t)
	r := startRelay(t, address, Options{})
	old := dialRelay(t, r)
	if _, err := says(t, old, "a", 5*time.Second); err != nil {
		t.Fatal(err)
	}
	r.Freeze()
	if got, err := says(t, old, "b", 200*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("through a frozen relay came %q, %v, want silence", got, err)
	}
	late := dialRelay(t, r)
	if got, err := says(t, late, "c", 200*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a new connection through a frozen relay got %q, %v, want silence", got, err)
	}
	select {
	case err := <-ended:
		t.Errorf("the far side learned of the cut: %v", err)
	default:
	}
	if err := r.Restore(); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]net.Conn{"old": old, "late": late} {
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the %s connection after Restore = %v, want its end", name, err)
		}
	}
	<-ended
	if got, err := says(t, dialRelay(t, r), "d", 5*time.Second); got != "d" {
		t.Errorf("after Restore came %q, %v", got, err)
	}
}

func TestRelayRefuses(t *testing.T) {
	address, ended := echoServer(t)
	r := startRelay(t, address, Options{})
	c := dialRelay(t, r)
	if _, err := says(t, c, "a", 5*time.Second); err != nil {
		t.Fatal(err)
	}
	r.Refuse()
	<-ended
	if got, err := says(t, c, "b", 5*time.Second); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after Refuse came %q, %v, want the end", got, err)
	}
	if c, err := net.Dial("tcp", r.Address()); err == nil {
		c.Close()
		t.Error("a new connection was not refused")
	}
	was := r.Address()
	if err := r.Restore(); err != nil {
		t.Fatal(err)
	}
	if r.Address() != was {
		t.Errorf("address after Restore = %s, want %s", r.Address(), was)
	}
	if got, err := says(t, dialRelay(t, r), "c", 5*time.Second); got != "c" {
		t.Errorf("after Restore came %q, %v", got, err)
	}
}

func TestRelayWithoutTarget(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	r := startRelay(t, l.Addr().String(), Options{})
	if c, err := net.Dial("tcp", r.Address()); err == nil { // or it was reset at once
		defer c.Close()
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Read = %v, want the end", err)
		}
	}
	r.Freeze()
	r.Freeze()
	r.Close()
	if err := r.Restore(); err == nil {
		t.Error("Restore after Close = nil")
	}
}

func TestRelayDelaysAndLimits(t *testing.T) {
	address, _ := echoServer(t)
	tests := map[string]struct {
		o     Options
		bytes int
		least time.Duration
	}{
		"delay both ways": {o: Options{Up: Path{Delay: 60 * time.Millisecond}, Down: Path{Delay: 40 * time.Millisecond}}, bytes: 10, least: 100 * time.Millisecond},
		"rate":            {o: Options{Up: Path{Rate: 100_000}, Buffer: 4096}, bytes: 20_000, least: 200 * time.Millisecond},
		"rate and delay":  {o: Options{Up: Path{Rate: 100_000, Delay: 50 * time.Millisecond}}, bytes: 20_000, least: 250 * time.Millisecond},
		"loss":            {o: Options{Up: Path{Loss: 1}}, bytes: 10, least: 200 * time.Millisecond},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := startRelay(t, address, tt.o)
			c := dialRelay(t, r)
			began := time.Now()
			text := strings.Repeat("x", tt.bytes)
			if got, err := says(t, c, text, 20*time.Second); got != text {
				t.Fatalf("through the relay came %d bytes, %v", len(got), err)
			}
			if took := time.Since(began); took < tt.least {
				t.Errorf("%d bytes took %v, want at least %v", tt.bytes, took, tt.least)
			}
			if up, down := r.Bytes(); up != int64(tt.bytes) || down != int64(tt.bytes) {
				t.Errorf("counted %d up and %d down, want %d", up, down, tt.bytes)
			}
		})
	}
}

// A delay alone is no limit: what is under way is not waited for.
func TestRelayCarriesMuchOverALongLine(t *testing.T) {
	address, _ := echoServer(t)
	r := startRelay(t, address, Options{Up: Path{Delay: 100 * time.Millisecond}})
	c := dialRelay(t, r)
	var wg sync.WaitGroup
	defer wg.Wait()
	const size = 4 << 20
	wg.Go(func() {
		for left := size; left > 0; left -= 128 {
			if _, err := c.Write(make([]byte, 128)); err != nil {
				return
			}
		}
	})
	began := time.Now()
	if _, err := io.CopyN(io.Discard, c, size); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < 100*time.Millisecond || took > 20*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestRelayStalls(t *testing.T) {
	address, _ := echoServer(t)
	r := startRelay(t, address, Options{})
	c := dialRelay(t, r)
	if _, err := says(t, c, "a", 5*time.Second); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	r.Stall(300 * time.Millisecond)
	if got, err := says(t, c, "hello", 5*time.Second); got != "hello" || time.Since(began) < 300*time.Millisecond {
		t.Errorf("after %v came %q, %v", time.Since(began), got, err)
	}
}

func TestRelayCutsInside(t *testing.T) {
	for name, d := range map[string]Direction{"up": Up, "down": Down} {
		t.Run(name, func(t *testing.T) {
			address, ended := echoServer(t)
			r := startRelay(t, address, Options{})
			c := dialRelay(t, r)
			r.CutAfter(d, 3)
			if _, err := c.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
			_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
			got, err := io.ReadAll(c)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal("the connection goes on")
			}
			if d == Down && string(got) != "hel" {
				t.Errorf("before the cut came %q, %v, want \"hel\"", got, err)
			}
			<-ended
			if up, _ := r.Bytes(); d == Up && up != 3 {
				t.Errorf("%d bytes passed, want 3", up)
			}
			if got, err := says(t, dialRelay(t, r), "d", 5*time.Second); got != "d" {
				t.Errorf("over the next connection came %q, %v", got, err)
			}
		})
	}
}

func TestRelaySwallowsOneWay(t *testing.T) {
	address, _ := echoServer(t)
	r := startRelay(t, address, Options{})
	c := dialRelay(t, r)
	if _, err := says(t, c, "a", 5*time.Second); err != nil {
		t.Fatal(err)
	}
	r.Swallow(Down)
	if got, err := says(t, c, "b", 100*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("from a side that is swallowed came %q, %v", got, err)
	}
	if up, _ := r.Bytes(); up != 2 {
		t.Errorf("%d bytes went up, want 2", up)
	}
}

func TestRelayHalfOpens(t *testing.T) {
	address, ended := echoServer(t)
	r := startRelay(t, address, Options{})
	c := dialRelay(t, r)
	if _, err := says(t, c, "a", 5*time.Second); err != nil {
		t.Fatal(err)
	}
	r.HalfOpen(Up)
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Read on our side = %v, want the end", err)
	}
	other := dialRelay(t, r)
	if got, err := says(t, other, "b", 5*time.Second); got != "b" {
		t.Errorf("over a new connection came %q, %v", got, err)
	}
	select {
	case err := <-ended:
		t.Errorf("the target learned of it: %v", err)
	default:
	}
	r.HalfOpen(Down)
	<-ended
	if got, err := says(t, other, "c", 100*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("over half a connection came %q, %v, want silence", got, err)
	}
	if r.Passed() != 2 {
		t.Errorf("%d connections passed, want 2", r.Passed())
	}
}
