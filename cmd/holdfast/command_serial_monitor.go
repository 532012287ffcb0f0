package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"holdfast/adapters/port"
	"holdfast/cmd/holdfast/config"
)

// portFlags choose a port on the command line, and how it is set.
type portFlags struct {
	file  string
	given port.Options
}

func (p *portFlags) flags(c *cobra.Command) {
	d := port.DefaultOptions()
	f := c.Flags()
	f.StringVar(&p.file, "config", "", "configuration file that has [port.NAME] (default "+config.DefaultFile+")")
	f.StringVar(&p.given.Driver, "driver", d.Driver, "bugst or tarm")
	f.IntVar(&p.given.Baud, "baud", d.Baud, "bits per second")
	f.IntVar(&p.given.DataBits, "data-bits", d.DataBits, "5 to 8")
	f.StringVar(&p.given.Parity, "parity", d.Parity, "none, odd, even, mark or space")
	f.IntVar(&p.given.StopBits, "stop-bits", d.StopBits, "1 or 2")
}

// options are those of the port called name in the configuration, or of the
// device when it is a path or usb:VID:PID; flags that were given win.
func (p *portFlags) options(c *cobra.Command, name string) (port.Options, error) {
	return p.optionsOver(c, name, port.DefaultOptions())
}

// optionsOver is options with other defaults for a path.
func (p *portFlags) optionsOver(c *cobra.Command, name string, o port.Options) (port.Options, error) {
	o.Device = name
	if !strings.HasPrefix(name, "/") && !strings.HasPrefix(name, "usb:") {
		cfg, err := config.Load(orDefault(p.file))
		if err != nil {
			return o, &exitError{exitConfig, err}
		}
		configured, ok := cfg.Ports[name]
		if !ok {
			return o, &exitError{exitUsage, fmt.Errorf("there is no [port.%s]; name one, or a path, or usb:VID:PID", name)}
		}
		o = configured.Options
	}
	for flag, set := range map[string]func(){
		"driver":    func() { o.Driver = p.given.Driver },
		"baud":      func() { o.Baud = p.given.Baud },
		"data-bits": func() { o.DataBits = p.given.DataBits },
		"parity":    func() { o.Parity = p.given.Parity },
		"stop-bits": func() { o.StopBits = p.given.StopBits },
	} {
		if c.Flags().Changed(flag) {
			set()
		}
	}
	if err := o.Validate(); err != nil {
		return o, &exitError{exitUsage, err}
	}
	return o, nil
}

// openPort opens a port for a command, or says who has it.
func openPort(ctx context.Context, o port.Options) (*port.Port, error) {
	p, err := port.Open(ctx, o, slog.New(slog.DiscardHandler))
	if !errors.Is(err, port.ErrBusy) {
		return p, err
	}
	path, ferr := o.Find()
	if ferr != nil {
		return nil, err
	}
	users, uerr := port.MachineAt("/").UsersOf(path)
	if uerr != nil {
		return nil, err
	}
	for _, u := range users {
		err = fmt.Errorf("%w; %s (pid %d) has it open", err, u.Name, u.PID)
	}
	return nil, err
}

func serialMonitor() *cobra.Command {
	var p portFlags
	var limit time.Duration
	c := &cobra.Command{
		Use:   "monitor PORT",
		Short: "Show what comes in on a line, in hexadecimal and as text, with times",
		Long: `Show what comes in on a line, in hexadecimal and as text, with times.

PORT is a path, usb:VID:PID[:SERIAL], or the name of a [port.NAME], whose
settings are taken then. Nothing is sent. Nobody else may have the port open; who
has is said.`,
		Example: `  holdfast serial monitor rs485
  holdfast serial monitor /dev/ttyUSB0 --baud 19200 --parity even --for 10s`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			o, err := p.options(c, args[0])
			if err != nil {
				return err
			}
			ctx, cancel := forAWhile(c.Context(), limit)
			defer cancel()
			line, err := openPort(ctx, o)
			if err != nil {
				return err
			}
			return errors.Join(monitor(ctx, line, c.OutOrStdout()), line.Close())
		},
	}
	p.flags(c)
	c.Flags().DurationVar(&limit, "for", 0, "end after that long; 0: when interrupted")
	return c
}

// monitor shows what p receives until ctx ends.
func monitor(ctx context.Context, p *port.Port, w io.Writer) error {
	return eachRead(ctx, p, func(b []byte) (bool, error) { return true, dump(w, time.Now(), b) })
}

// dump writes bytes that came together, sixteen to a line.
func dump(w io.Writer, at time.Time, b []byte) error {
	const width = 16
	for len(b) > 0 {
		part := b[:min(width, len(b))]
		b = b[len(part):]
		shown := make([]byte, len(part))
		for i, c := range part {
			shown[i] = '.'
			if c >= ' ' && c <= '~' {
				shown[i] = c
			}
		}
		if _, err := fmt.Fprintf(w, "%s < %-47s |%s|\n", at.Format("15:04:05.000000"), fmt.Sprintf("% x", part), shown); err != nil {
			return err
		}
	}
	return nil
}
