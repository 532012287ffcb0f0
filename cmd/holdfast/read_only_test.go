//go:build integration

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// A data folder that cannot be written does not end the start: the gateway runs, says
// what is wrong, and is healthy when the folder can be written, without a restart.
// Needs root for the mount.
func TestReadOnlyDataFolder(t *testing.T) {
	dir, mnt := t.TempDir(), t.TempDir()
	switch err := syscall.Mount("tmpfs", mnt, "tmpfs", syscall.MS_RDONLY, "size=64m"); {
	case errors.Is(err, fs.ErrPermission):
		t.Skipf("mount: %v", err)
	case err != nil:
		t.Fatalf("mount: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(mnt, syscall.MNT_DETACH) })
	data, socket, file := filepath.Join(mnt, "data"), filepath.Join(dir, "s"), filepath.Join(dir, "h.toml")
	text := fmt.Sprintf("[gateway]\ndata = %q\n[control]\nsocket = %q\n[store]\nretry_max = \"1s\"\n[[listener]]\naddress = \"tcp://127.0.0.1:0\"\n"+
		"[uplink.cloud]\nurl = \"mqtt://127.0.0.1:1\"\n", data, socket)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	run := exec.CommandContext(t.Context(), "holdfast", "run", "--config", file)
	run.Stderr = &log
	if err := run.Start(); err != nil {
		t.Fatal(err)
	}
	status := func() (code int, out string) {
		c := exec.CommandContext(t.Context(), "holdfast", "status", "--exit-code", "--socket", socket)
		b, _ := c.CombinedOutput() // its exit code says it
		return c.ProcessState.ExitCode(), string(b)
	}
	await := func(want int) (out string) {
		t.Helper()
		waitUntil(t, fmt.Sprintf("exit code %d of the status", want), func() bool {
			var code int
			code, out = status()
			return code == want
		})
		return out
	}
	if out := await(exitUnhealthy); !strings.Contains(out, "failing") {
		t.Errorf("status without a disk:\n%s", out)
	}
	if err := syscall.Mount("", mnt, "", syscall.MS_REMOUNT, ""); err != nil {
		t.Fatal(err)
	}
	await(0)
	if err := run.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := run.Wait(); err != nil {
		t.Errorf("%v\n%s", err, log.String())
	}
	if _, err := os.Stat(filepath.Join(data, "holdfast.db")); err != nil {
		t.Error(err)
	}
}
