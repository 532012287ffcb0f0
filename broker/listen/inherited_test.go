package listen

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// activated is what the parent hands to the child, in order, and its names.
var activatedNames = []string{"holdfast.socket", "holdfast.socket", "local", "datagram", "talking", "file"}

// activatedChild plays the daemon that systemd starts: it opens the sockets it
// was given and echoes what comes in, until its standard input ends.
func activatedChild() int {
	// systemd sets it between fork and exec.
	os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
	if err := child(); err != nil {
		fmt.Println("child:", err)
		return 1
	}
	return 0
}

func child() error {
	in := FromSystemd()
	if os.Getenv("LISTEN_FDS") != "" {
		return errors.New("the variables are still in the environment")
	}
	want := slices.Clone(activatedNames)
	slices.Sort(want)
	if got := in.Names(); !slices.Equal(got, slices.Compact(want)) {
		return fmt.Errorf("names %q, want %q", got, want)
	}
	ctx := context.Background()
	for name, want := range map[string]string{
		"datagram": "it is no stream socket", "talking": "it does not listen", "file": "it is no socket",
		"other": "no socket called other (handed over: datagram, file, holdfast.socket, local, talking)",
	} {
		if _, err := Open(ctx, "systemd:"+name, DefaultOptions(), in, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), want) {
			return fmt.Errorf("%s: error %w, want %q", name, err, want)
		}
	}
	// A reload closes and opens again: the socket is still there, and still
	// accepts.
	for range 2 {
		e, err := Open(ctx, "systemd:holdfast.socket", DefaultOptions(), in, slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		if n := len(e.Listeners()); n != 2 {
			return fmt.Errorf("%d listeners, want 2", n)
		}
		if err := e.Close(); err != nil {
			return err
		}
	}
	for _, address := range []string{"systemd:holdfast.socket", "systemd:local"} {
		e, err := Open(ctx, address, DefaultOptions(), in, slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		for _, l := range e.Listeners() {
			fmt.Println("ready", l.Addr())
			nc, err := l.Accept()
			if err != nil {
				return err
			}
			who := "nobody"
			if p, ok := nc.(interface{ PeerIdentity() string }); ok {
				who = p.PeerIdentity()
			}
			if _, err := fmt.Fprintln(nc, "hello", who); err != nil {
				return err
			}
			if err := errors.Join(nc.Close(), l.Close()); err != nil {
				return err
			}
		}
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	return in.Close()
}

func TestSocketActivation(t *testing.T) {
	dir := t.TempDir()
	var handed []*os.File
	hand := func(f *os.File, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		handed = append(handed, f)
	}
	var dials []net.Addr
	for range 2 {
		l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		dials = append(dials, l.Addr())
		hand(l.File())
	}
	ul, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer ul.Close()
	dials = append(dials, ul.Addr())
	hand(ul.File())
	udp, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	hand(udp.File())
	talking, err := net.DialTCP("tcp", nil, dials[0].(*net.TCPAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer talking.Close()
	hand(talking.File())
	hand(os.Create(filepath.Join(dir, "file")))

	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, exe)
	cmd.Env = append(os.Environ(), childKey+"=1", "LISTEN_FDS="+strconv.Itoa(len(handed)), "LISTEN_FDNAMES="+strings.Join(activatedNames, ":"))
	cmd.ExtraFiles = handed
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stdout)
	for i, addr := range dials {
		if !lines.Scan() || !strings.HasPrefix(lines.Text(), "ready ") {
			t.Fatalf("the child says %q", lines.Text())
		}
		if i == 0 {
			continue // talking, which connected before the child ran, is served
		}
		nc, err := (&net.Dialer{}).DialContext(ctx, addr.Network(), addr.String())
		if err != nil {
			t.Fatal(err)
		}
		greeting, err := io.ReadAll(nc)
		nc.Close()
		want := "hello nobody\n"
		if addr.Network() == "unix" {
			want = "hello " + userName(uint32(os.Getuid())) + "\n"
		}
		if err != nil || string(greeting) != want {
			t.Errorf("%s greets with %q, %v, want %q", addr, greeting, err, want)
		}
	}
	if greeting, err := io.ReadAll(talking); err != nil || string(greeting) != "hello nobody\n" {
		t.Errorf("a client that waited in the queue got %q, %v", greeting, err)
	}
	stdin.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("child: %v", err)
	}
}

func TestNothingFromSystemd(t *testing.T) {
	for _, in := range []*Inherited{nil, {}} {
		_, err := Open(t.Context(), "systemd:x", DefaultOptions(), in, logger(t))
		if err == nil || !strings.Contains(err.Error(), "no socket called x (handed over: none)") {
			t.Errorf("error %v", err)
		}
		if err := in.Close(); err != nil {
			t.Error(err)
		}
	}
}
