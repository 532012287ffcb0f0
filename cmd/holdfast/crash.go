package main

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
)

// Where the runtime writes why the process crashes, besides standard error, and where
// that is kept for people after the next start.
const (
	crashFile     = "holdfast.crash"
	crashFileLast = "holdfast.crash.last"
)

// noteCrashes returns why the process before this one ended, if it crashed, and has
// the next crash noted. Who is killed or loses power notes nothing.
func noteCrashes(dir string, log *slog.Logger) (crashed string) {
	path := filepath.Join(dir, crashFile)
	b, err := os.ReadFile(path)
	switch {
	case err == nil && len(b) > 0:
		crashed, _, _ = strings.Cut(string(b), "\n")
		err = os.Rename(path, filepath.Join(dir, crashFileLast))
	case errors.Is(err, fs.ErrNotExist):
		err = nil
	}
	if err != nil {
		log.Warn("notes of a crash not read", "path", path, "err", err)
	}
	if strings.HasPrefix(crashed, "SIGABRT") || strings.HasPrefix(crashed, "SIGQUIT") {
		log.Warn("the process before was ended by the watchdog or by somebody", "err", crashed)
		crashed = "" // not by what it had in hand
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err == nil {
		err = errors.Join(debug.SetCrashOutput(f, debug.CrashOptions{}), f.Close()) // it has a copy of its own
	}
	if err != nil {
		log.Warn("crashes are not noted", "path", path, "err", err)
	}
	return crashed
}
