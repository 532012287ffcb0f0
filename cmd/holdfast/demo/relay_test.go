package demo

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
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

func startRelay(t *testing.T, target string) *relay {
	t.Helper()
	r, err := newRelay(context.Background(), target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

func dialRelay(t *testing.T, r *relay) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", r.address)
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
	r := startRelay(t, address)
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
	r := startRelay(t, address)
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
	r := startRelay(t, address)
	c := dialRelay(t, r)
	if _, err := says(t, c, "a", 5*time.Second); err != nil {
		t.Fatal(err)
	}
	r.Refuse()
	<-ended
	if got, err := says(t, c, "b", 5*time.Second); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after Refuse came %q, %v, want the end", got, err)
	}
	if c, err := net.Dial("tcp", r.address); err == nil {
		c.Close()
		t.Error("a new connection was not refused")
	}
	was := r.address
	if err := r.Restore(); err != nil {
		t.Fatal(err)
	}
	if r.address != was {
		t.Errorf("address after Restore = %s, want %s", r.address, was)
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
	r := startRelay(t, l.Addr().String())
	if c, err := net.Dial("tcp", r.address); err == nil { // or it was reset at once
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
