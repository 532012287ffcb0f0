package main

import (
	"errors"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"holdfast/cmd/holdfast/config"
	"holdfast/cmd/holdfast/doctor"
)

func doctorCommand() *cobra.Command {
	var file, data string
	var asJSON, strict bool
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Examine the machine: is the disk honest, the clock set, are the ports there",
		Long: `Examine the machine as the gateway finds it: whether a flush of the disk under the
data folder takes long enough to be true, rights of data and configuration, room,
clock and serial ports. Each finding comes with what to do. It writes for about a
second in the data folder, and can run beside the gateway; best as its user.

Exit codes: 0 nothing is wrong (warnings are allowed, without --strict), 3 the
configuration is wrong, 4 something is.`,
		Example: `  holdfast doctor
  sudo -u holdfast holdfast doctor --strict`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := loadConfig(file, data, nil)
			if err != nil {
				return &exitError{exitConfig, err}
			}
			found := doctor.Examine(doctor.Machine(), &cfg, configFilesOf(file, data))
			if asJSON {
				err = printJSON(c.OutOrStdout(), found)
			} else {
				t := tabwriter.NewWriter(c.OutOrStdout(), 0, 8, 2, ' ', 0)
				for _, f := range found {
					tell(t, "%s\t%s\t%s\n", f.Level, f.Check, f.Text)
					if f.Remedy != "" {
						tell(t, "\t\t-> %s\n", f.Remedy)
					}
				}
				err = t.Flush()
			}
			if err != nil {
				return err
			}
			switch doctor.Worst(found) {
			case doctor.Problem:
				return &exitError{exitUnhealthy, errors.New("something is wrong")}
			case doctor.Warning:
				if strict {
					return &exitError{exitUnhealthy, errors.New("there are warnings")}
				}
			default:
			}
			return nil
		},
	}
	c.Flags().StringVar(&file, "config", "", "configuration file (default "+config.DefaultFile+" unless --data is given)")
	c.Flags().StringVar(&data, "data", "", "folder of the store, instead of gateway.data")
	c.Flags().BoolVar(&asJSON, "json", false, "print the findings as JSON")
	c.Flags().BoolVar(&strict, "strict", false, "exit with 4 for warnings too")
	return c
}

// configFilesOf lists the file that loadConfig reads, and its drop-ins.
func configFilesOf(file, data string) []string {
	if file == "" {
		if data != "" {
			return nil
		}
		file = config.DefaultFile
	}
	dropins, err := filepath.Glob(strings.TrimSuffix(file, ".toml") + ".d/*.toml")
	if err != nil {
		dropins = nil // a strange name; the file itself was read
	}
	return append([]string{file}, dropins...)
}
