//go:build integration

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// typist answers each prompt with the next of its lines, and records what the
// terminal shows.
func typist(t *testing.T, terminal *os.File, lines []string, then func()) (shown func() string) {
	t.Helper()
	var wg sync.WaitGroup
	var all bytes.Buffer
	wg.Go(func() {
		r := bufio.NewReader(terminal)
		for {
			b, err := r.ReadByte()
			if err != nil {
				return // the other end is closed
			}
			all.WriteByte(b)
			if !bytes.HasSuffix(all.Bytes(), []byte(": ")) {
				continue
			}
			if len(lines) == 0 {
				then()
				continue
			}
			if _, err := terminal.WriteString(lines[0] + "\n"); err != nil {
				t.Error(err)
			}
			lines = lines[1:]
		}
	})
	return func() string {
		wg.Wait()
		return all.String()
	}
}

func TestPasswordsAreNotShown(t *testing.T) {
	tests := map[string]struct {
		lines     []string
		want, err string
	}{
		"typed twice":        {lines: []string{"hunter2", "hunter2"}, want: "hunter2"},
		"two different":      {lines: []string{"hunter2", "hunter3"}, err: "the two passwords differ"},
		"nothing":            {lines: []string{""}, err: "the password is empty"},
		"a blank at the end": {lines: []string{"hunter2 ", "hunter2 "}, err: "begins or ends with white space"},
		"Ctrl-C":             {lines: []string{"hunter2"}, err: "context canceled"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			terminal, end, err := pty.Open()
			if err != nil {
				t.Fatal(err)
			}
			defer terminal.Close()
			// As passwd opens /dev/tty: not blocking, so that reading can end.
			tty, err := os.OpenFile(end.Name(), os.O_RDWR|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			shown := typist(t, terminal, tt.lines, cancel)
			got, err := promptTwice(ctx, tty, "ann")
			if string(got) != tt.want && err == nil || tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
				t.Errorf("got %q, %v; want %q, %q", got, err, tt.want, tt.err)
			}
			mode, err := unix.IoctlGetTermios(int(end.Fd()), unix.TCGETS)
			if err != nil || mode.Lflag&unix.ECHO == 0 {
				t.Errorf("the echo is still off (%v)", err)
			}
			if err := errors.Join(tty.Close(), end.Close()); err != nil {
				t.Error(err)
			}
			if s := shown(); !strings.Contains(s, "Password for ann: ") || strings.Contains(s, "hunter") {
				t.Errorf("the terminal shows %q", s)
			}
		})
	}
}
