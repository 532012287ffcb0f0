package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"holdfast/broker/access"
)

func passwdCommand() *cobra.Command {
	var fromStdin, remove, useSCRAM bool
	c := &cobra.Command{
		Use:   "passwd FILE USER",
		Short: "Add, change or delete a user of a password file",
		Long: `Add, change or delete a user of a password file (access.password_file).

The password is asked for on the terminal, or read from the first line of
standard input with --stdin. It is hashed with argon2id, or with --scram into
keys for SCRAM-SHA-256: then MQTT 5.0 clients can log in without sending it, and
the others still do by sending it. The file is replaced as a whole and synced;
the other lines stay as they are. With - for FILE the line NAME:HASH is printed
instead; the hash also fits [user.NAME] password.

A running gateway takes the change with SIGHUP (systemctl reload holdfast).`,
		Example: `  holdfast passwd /etc/holdfast/passwd pump-7
  pwgen 20 1 | tee secret | holdfast passwd --stdin /etc/holdfast/passwd pump-7
  holdfast passwd --delete /etc/holdfast/passwd pump-7`,
		Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			file, user := args[0], args[1]
			if err := access.ValidUser(user); err != nil {
				return &exitError{exitUsage, err}
			}
			if remove {
				if file == "-" || fromStdin {
					return &exitError{exitUsage, errors.New("--delete takes a file and no password")}
				}
				if err := access.DeleteUser(file, user); err != nil {
					return err
				}
				fmt.Fprintf(c.OutOrStdout(), "%s: user %s deleted\n", file, user)
				return nil
			}
			password, err := readPassword(c, user, fromStdin)
			if err != nil {
				return err
			}
			hash := access.NewHash(password)
			if useSCRAM {
				if hash, err = access.NewSCRAMHash(password); err != nil {
					return err
				}
			}
			if file == "-" {
				fmt.Fprintf(c.OutOrStdout(), "%s:%s\n", user, hash)
				return nil
			}
			added, err := access.SetPassword(file, user, hash)
			if err != nil {
				return err
			}
			done := "changed"
			if added {
				done = "added"
			}
			fmt.Fprintf(c.OutOrStdout(), "%s: user %s %s\n", file, user, done)
			return nil
		},
	}
	c.Flags().BoolVar(&fromStdin, "stdin", false, "read the password from standard input")
	c.Flags().BoolVar(&useSCRAM, "scram", false, "make keys for SCRAM-SHA-256")
	c.Flags().BoolVar(&remove, "delete", false, "delete the user")
	return c
}

// maxPassword is what a CONNECT packet can carry, in bytes (MQTT 5.0 §1.5.6).
const maxPassword = 65535

func readPassword(c *cobra.Command, user string, fromStdin bool) ([]byte, error) {
	if fromStdin {
		return passwordLine(bufio.NewReader(c.InOrStdin()))
	}
	f, ok := c.InOrStdin().(*os.File)
	if !ok || !isTerminal(f) {
		return nil, &exitError{exitUsage, errors.New("standard input is no terminal to ask on; give the password with --stdin")}
	}
	// Opened anew and not blocking, so that Ctrl-C ends the reading.
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	password, err := promptTwice(c.Context(), tty, user)
	return password, errors.Join(err, tty.Close())
}

// passwordLine reads one line. An empty password would be one that everybody
// tries first.
func passwordLine(r *bufio.Reader) ([]byte, error) {
	line, err := r.ReadBytes('\n')
	if err != nil && (!errors.Is(err, io.EOF) || len(line) == 0) {
		return nil, fmt.Errorf("read password: %w", err)
	}
	line = bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r"))
	switch {
	case len(line) == 0:
		return nil, errors.New("the password is empty")
	case len(line) > maxPassword:
		return nil, fmt.Errorf("the password is longer than %d bytes", maxPassword)
	}
	return line, nil
}

// promptTwice asks for a password without showing it, and again.
func promptTwice(ctx context.Context, tty *os.File, user string) (password []byte, err error) {
	restore, err := hideInput(tty)
	if err != nil {
		return nil, fmt.Errorf("hide what is typed: %w", err)
	}
	defer func() { err = errors.Join(err, restore()) }()
	stop := context.AfterFunc(ctx, func() { _ = tty.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	r := bufio.NewReader(tty)
	ask := func(prompt string) ([]byte, error) {
		fmt.Fprint(tty, prompt)
		line, err := passwordLine(r)
		fmt.Fprintln(tty) // the one that was typed is not shown
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return line, err
	}
	if password, err = ask("Password for " + user + ": "); err != nil {
		return nil, err
	}
	again, err := ask("Again: ")
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(password, again) {
		return nil, errors.New("the two passwords differ; nothing was changed")
	}
	if strings.TrimSpace(string(password)) != string(password) {
		return nil, errors.New("the password begins or ends with white space; if that is meant, give it with --stdin")
	}
	return password, nil
}

// hideInput turns the echo off until restore.
func hideInput(tty *os.File) (restore func() error, err error) {
	raw, err := tty.SyscallConn()
	if err != nil {
		return nil, err
	}
	set := func(change func(fd int) error) error {
		var inner error
		return errors.Join(raw.Control(func(fd uintptr) { inner = change(int(fd)) }), inner)
	}
	var old unix.Termios
	err = set(func(fd int) error {
		t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		if err != nil {
			return err
		}
		old = *t
		t.Lflag &^= unix.ECHO
		t.Lflag |= unix.ICANON | unix.ISIG
		return unix.IoctlSetTermios(fd, unix.TCSETS, t)
	})
	if err != nil {
		return nil, err
	}
	return func() error {
		return set(func(fd int) error { return unix.IoctlSetTermios(fd, unix.TCSETS, &old) })
	}, nil
}
