package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"holdfast/adapters/modbus"
)

type writeOptions struct {
	modbusFlags
	unit     int
	point    modbus.Point
	yes      bool
	noVerify bool
}

// modbusWritten is what a write came to.
type modbusWritten struct {
	Register string `json:"register"`
	Before   any    `json:"before"`
	Wrote    any    `json:"wrote"`
	After    any    `json:"after"`
	Verified bool   `json:"verified"`
}

func modbusWrite() *cobra.Command {
	var o writeOptions
	c := &cobra.Command{
		Use:   "write TARGET REGISTER VALUE",
		Short: "Write one value, and read it back",
		Long: `Write one value, and read it back.

What the place holds is read and shown first, and on a terminal you are asked
before anything is written; elsewhere --yes is needed. Coils are written with
function 5, one register with 6, more with 16, a bit with 22; --function 15 or 16
is for units that know only these. A value that the type does not hold exactly is
refused. Afterwards it is read back; if it is not there, the exit code is 1.`,
		Example: `  holdfast modbus write /dev/ttyUSB0 --unit 1 holding:100 235
  holdfast modbus write tcp://192.168.1.50 --unit 1 holding:0x200 21.5 --type float32 --order CDAB --yes
  holdfast modbus write rs485 --unit 17 coil:3 on
  holdfast modbus write rs485 --unit 17 holding:12.3 off
  holdfast modbus write rs485 --unit 17 --type int16 --yes -- holding:7 -5`,
		Args: cobra.ExactArgs(3),
		RunE: func(c *cobra.Command, args []string) error {
			o.point.Name, o.point.Register = "value", args[1]
			change, err := modbus.NewChange(byte(o.unit), o.point, "", args[2])
			if err != nil {
				return &exitError{exitUsage, err}
			}
			if !o.yes && !isTerminal(c.InOrStdin()) {
				return &exitError{exitUsage, errors.New("standard input is no terminal to ask on; say --yes")}
			}
			return o.withLine(c, args[0], o.unit, func(ctx context.Context, a *asker) error {
				return o.write(ctx, c, a, change)
			})
		},
	}
	o.flags(c)
	f := c.Flags()
	f.IntVar(&o.unit, "unit", 1, "unit number (slave address)")
	f.StringVar(&o.point.Type, "type", "", "type of the value (default bool for bits, else uint16)")
	f.StringVar(&o.point.Order, "order", "", "byte order: AB, BA, ABCD, CDAB, ...")
	f.Float64Var(&o.point.Scale, "scale", 0, "the register holds VALUE divided by this")
	f.IntVar(&o.point.Length, "length", 0, "registers of a string")
	f.IntVar(&o.point.WriteFunction, "function", 0, "5, 6, 15, 16 or 22 (default: what fits)")
	f.BoolVarP(&o.yes, "yes", "y", false, "do not ask")
	f.BoolVar(&o.noVerify, "no-read", false, "write even if it cannot be read, and do not verify: for what can only be written")
	return c
}

func (o *writeOptions) write(ctx context.Context, c *cobra.Command, a *asker, change *modbus.Change) error {
	res := modbusWritten{Register: o.point.Register, Wrote: change.Value()}
	// Read in any case: the answer to a single write is the same as its echo, and
	// only the answer to something else shows whether the line has one.
	before, _, err := change.Read(ctx, a.do, o.timeout)
	if err != nil && !o.noVerify {
		return fmt.Errorf("nothing was written: read before: %w", explained(err))
	}
	res.Before = before
	if !o.yes {
		tell(c.ErrOrStderr(), "unit %d %s holds %s; write %s? [y/N] ", o.unit, o.point.Register, shown(res.Before), shown(res.Wrote))
		answer, err := readAnswer(ctx)
		if err != nil {
			return err
		}
		if answer = strings.ToLower(answer); answer != "y" && answer != "yes" {
			return errors.New("nothing was written")
		}
	}
	if err := change.Write(ctx, a.do, o.timeout); err != nil {
		if _, refused := errors.AsType[*modbus.ExceptionError](err); refused {
			return fmt.Errorf("not written: %w", explained(err))
		}
		return fmt.Errorf("it may have been written: %w", explained(err))
	}
	if !o.noVerify {
		after, same, err := change.Read(ctx, a.do, o.timeout)
		if err != nil {
			return fmt.Errorf("written, but not read back: %w", explained(err))
		}
		res.After, res.Verified = after, same
	}
	if err := res.print(c.OutOrStdout(), o.json); err != nil {
		return err
	}
	if !o.noVerify && !res.Verified {
		return errors.New("the unit confirmed the write, but holds another value")
	}
	return nil
}

func (r *modbusWritten) print(w io.Writer, asJSON bool) error {
	if asJSON {
		return printJSON(w, r)
	}
	tell(w, "%s: before %s, wrote %s, after %s\n", r.Register, shown(r.Before), shown(r.Wrote), shown(r.After))
	return nil
}

// readAnswer reads a line from the terminal, opened anew and not blocking, so that
// Ctrl-C ends the reading.
func readAnswer(ctx context.Context) (answer string, err error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, tty.Close()) }()
	stop := context.AfterFunc(ctx, func() { _ = tty.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	answer, err = bufio.NewReader(tty).ReadString('\n')
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	return strings.TrimSpace(answer), err
}
