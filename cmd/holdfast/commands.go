package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/spf13/cobra"
)

// version, commit and built, the commit's time in Unix seconds, are set by the
// linker (make build).
var (
	version = "0.0.0-dev"
	commit  = ""
	built   = ""
)

// buildTime is a time that has passed when this program runs; zero when it is
// not known.
func buildTime() time.Time {
	if n, err := strconv.ParseInt(built, 10, 64); err == nil {
		return time.Unix(n, 0)
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.time" {
				t, _ := time.Parse(time.RFC3339, s.Value) // zero if it is not one
				return t
			}
		}
	}
	return time.Time{}
}

// The exit codes scripts can rely on.
const (
	exitFailure   = 1 // it did not work
	exitUsage     = 2 // the command line is wrong
	exitConfig    = 3 // the configuration is wrong
	exitUnhealthy = 4 // status --exit-code: it runs, but something is wrong
	exitNotThere  = 5 // no gateway answers on the control socket
)

// exitError is an error that chooses the exit code.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "holdfast",
		Short: "MQTT gateway that keeps what it acknowledged",
		Long: `Holdfast is a local MQTT broker for gateways at the end of a link that comes
and goes: it reads serial and Modbus devices, keeps QoS 1 and 2 messages through
power cuts, and sends them on to a cloud broker in order.`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return &exitError{exitUsage, fmt.Errorf("%w (see '%s --help')", err, c.CommandPath())}
	})
	root.AddCommand(runCommand(), checkCommand(), statusCommand(), watchCommand(), passwdCommand(), queueCommand(), sessionCommand(), backupCommand(), doctorCommand(), serialCommand(), modbusCommand(), unpackCommand(),
		importCommand(), profileCommand(), demoCommand(), versionCommand())
	return root
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print version, commit and platform",
		Args:  cobra.NoArgs,
		Run: func(c *cobra.Command, _ []string) {
			fmt.Fprintf(c.OutOrStdout(), "holdfast %s (%s) %s %s/%s\n",
				version, buildCommit(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
		},
	}
}

// buildCommit is the linker's commit, else what the toolchain stamped.
func buildCommit() string {
	if commit != "" {
		return commit
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" && len(s.Value) >= 12 {
				return s.Value[:12]
			}
		}
	}
	return "unknown commit"
}
