package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"holdfast/adapters/port"
	"holdfast/cmd/holdfast/config"
)

func serialCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "serial",
		Short: "Find serial ports, listen to them, and say again what was heard",
	}
	c.AddCommand(serialList(), serialMonitor(), serialCapture(), serialReplay())
	return c
}

// listedPort is a port of the machine with the names it has in the
// configuration.
type listedPort struct {
	port.Found
	Ports []string `json:"ports"`
}

func serialList() *cobra.Command {
	var all, asJSON bool
	var root, file string
	c := &cobra.Command{
		Use:   "list",
		Short: "List the serial ports with their lasting names, and who has them open",
		Long: `List the serial ports with their lasting names, and who has them open.

No port is opened: that alone would reset some devices. Of other users'
processes only root can see what they have open.`,
		Example: `  holdfast serial list
  holdfast serial list --json | jq -r '.[].by_id'`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			machine := port.MachineAt(root)
			found, err := machine.List()
			if err != nil {
				return err
			}
			cfg, err := configIfAny(file)
			if err != nil {
				return &exitError{exitConfig, err}
			}
			list := []listedPort{}
			hidden := 0
			for _, f := range found {
				if !f.Hardware && !all {
					hidden++
					continue
				}
				list = append(list, listedPort{f, portsOf(machine, &cfg, &f)})
			}
			if asJSON {
				return printJSON(c.OutOrStdout(), list)
			}
			printPorts(c.OutOrStdout(), list)
			if hidden > 0 {
				tell(c.ErrOrStderr(), "%d ports without hardware are left out; --all lists them\n", hidden)
			}
			return nil
		},
	}
	c.Flags().BoolVar(&all, "all", false, "also the ttyS that have no hardware")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().StringVar(&root, "root", "/", "where the machine's /sys, /dev and /proc are")
	c.Flags().StringVar(&file, "config", "", "configuration file whose ports are named (default "+config.DefaultFile+" if there is one)")
	return c
}

// configIfAny is the configuration, or an empty one when none was named and
// there is none.
func configIfAny(file string) (config.Config, error) {
	cfg, err := config.Load(orDefault(file))
	if file == "" && errors.Is(err, fs.ErrNotExist) {
		return config.Config{}, nil
	}
	return cfg, err
}

func orDefault(file string) string {
	if file == "" {
		return config.DefaultFile
	}
	return file
}

// portsOf are the [port.NAME] that lead to f.
func portsOf(m port.Machine, cfg *config.Config, f *port.Found) []string {
	names := []string{}
	for _, name := range sorted(cfg.Ports) {
		o := cfg.Ports[name].Options
		o.Sysfs, o.Dev = m.Sysfs, m.Dev
		device := o.Device
		if found, err := o.Find(); err == nil && strings.HasPrefix(device, "usb:") {
			device = "/dev/" + filepath.Base(found)
		}
		if to, err := filepath.EvalSymlinks(device); err == nil {
			device = to
		}
		if device == f.Path || device == f.ByID || device == f.ByPath {
			names = append(names, name)
		}
	}
	return names
}

func printPorts(w io.Writer, list []listedPort) {
	if len(list) == 0 {
		fmt.Fprintln(w, "no serial port")
	}
	for i := range list {
		f := &list[i]
		tell(w, "%s\n", f.Path)
		line := func(what, text string) {
			if text != "" {
				tell(w, "  %-8s %s\n", what, text)
			}
		}
		line("by-id", f.ByID)
		line("by-path", f.ByPath)
		line("driver", f.Driver)
		if f.USB != "" {
			line("device", strings.TrimSpace(f.Manufacturer+" "+f.Product))
			line("select", strings.TrimSuffix("usb:"+f.USB+":"+f.Serial, ":"))
		}
		if !f.Hardware {
			line("device", "none: there is no such hardware")
		}
		for _, u := range f.Users {
			line("open by", fmt.Sprintf("%s (pid %d)", u.Name, u.PID))
		}
		for _, name := range f.Ports {
			line("config", "[port."+name+"]")
		}
	}
}
