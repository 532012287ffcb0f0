package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"holdfast/adapters/modbus"
	"holdfast/adapters/modbus/survey"
)

type pollOptions struct {
	modbusFlags
	unit    int
	every   time.Duration
	count   int
	profile string
	choose  []string
}

func modbusPoll() *cobra.Command {
	var o pollOptions
	c := &cobra.Command{
		Use:   "poll TARGET [REGISTER[/TYPE[/ORDER]]...]",
		Short: "Read registers again and again, and show what changes",
		Long: `Read registers again and again, and show what changes.

On a terminal this is a table, in which what has changed is marked; elsewhere a
line for each change, with its time. What is read is named by registers with their
type (uint16 if none is given) and order, or by the profile of the device.`,
		Example: `  holdfast modbus poll /dev/ttyUSB0 --unit 1 input:0/float32 input:6/float32
  holdfast modbus poll rs485 --unit 1 --profile eastron/sdm120 --every 2s
  holdfast modbus poll tcp://192.168.1.50 --unit 1 holding:0/int32/CDAB --json | tee log.jsonl`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			d, err := o.device(c, args[1:])
			if err != nil {
				return err
			}
			poller, err := survey.NewPoller(d)
			if err != nil {
				return &exitError{exitUsage, err}
			}
			if o.every < 10*time.Millisecond || o.every > 24*time.Hour {
				return &exitError{exitUsage, fmt.Errorf("--every: %v is outside 10ms..24h", o.every)}
			}
			return o.withLine(c, args[0], o.unit, func(ctx context.Context, a *asker) error {
				return o.poll(ctx, c.OutOrStdout(), a, poller)
			})
		},
	}
	o.flags(c)
	f := c.Flags()
	f.IntVar(&o.unit, "unit", 1, "unit number (slave address)")
	f.DurationVar(&o.every, "every", time.Second, "how often all is read")
	f.IntVar(&o.count, "count", 0, "end after so many times; 0: when interrupted")
	f.StringVar(&o.profile, "profile", "", "read what this profile says")
	f.StringArrayVar(&o.choose, "points", nil, `of the profile, only points of this name ("power*"; may be repeated; default all but the details)`)
	return c
}

// device is what is read.
func (o *pollOptions) device(c *cobra.Command, registers []string) (*modbus.Device, error) {
	usage := func(err error) (*modbus.Device, error) { return nil, &exitError{exitUsage, err} }
	if (o.profile == "") == (len(registers) == 0) {
		return usage(errors.New("name the registers to read, or a --profile"))
	}
	if o.profile != "" {
		pf := profileFlags{config: orDefault(o.file)}
		ps, err := pf.profiles(c)
		if err != nil {
			return nil, err
		}
		p, err := ps.Get(o.profile)
		if err != nil {
			return usage(err)
		}
		d, err := p.Device(o.choose)
		if err != nil {
			return usage(err)
		}
		return o.asked(d), nil
	}
	d := modbus.DefaultDevice()
	for _, r := range registers {
		parts := strings.Split(r, "/")
		if len(parts) > 3 {
			return usage(fmt.Errorf("%q is no such thing as holding:0/float32/CDAB", r))
		}
		parts = append(parts, "", "")
		d.Points = append(d.Points, modbus.Point{Name: fmt.Sprintf("value%d", len(d.Points)), Register: parts[0], Type: parts[1], Order: parts[2]})
	}
	return o.asked(&d), nil
}

func (o *pollOptions) asked(d *modbus.Device) *modbus.Device {
	d.Name, d.Unit, d.Net = "poll", o.unit, true // a serial line's range is checked with the line
	return d
}

// poll reads until ctx ends, which is no error.
func (o *pollOptions) poll(ctx context.Context, w io.Writer, a *asker, p *survey.Poller) error {
	show := o.table
	if o.json || !isTerminal(w) {
		show = o.lines
	}
	var before []survey.Polled
	tick := time.NewTicker(o.every)
	defer tick.Stop()
	for n := 1; ; n++ {
		now, err := p.Read(ctx, a.do, o.timeout)
		switch {
		case ctx.Err() != nil:
			return nil // it was asked to end
		case err != nil:
			return err
		}
		if err := show(w, before, now); err != nil {
			return err
		}
		before = now
		if n == o.count {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// changedPoint says whether a point reads otherwise than before.
func changedPoint(before, now []survey.Polled, i int) bool {
	return before == nil || before[i] != now[i]
}

// lines prints a line for each change.
func (o *pollOptions) lines(w io.Writer, before, now []survey.Polled) error {
	at := time.Now()
	for i, v := range now {
		if !changedPoint(before, now, i) {
			continue
		}
		if o.json {
			line := struct {
				Time time.Time `json:"time"`
				survey.Polled
			}{at, v}
			enc := json.NewEncoder(forTerminal(w))
			enc.SetEscapeHTML(false)
			if err := enc.Encode(line); err != nil {
				return err
			}
			continue
		}
		text := shown(v.Value)
		if v.Note != "" {
			text += " (" + v.Note + ")"
		} else if v.Unit != "" {
			text += " " + v.Unit
		}
		tell(w, "%s %s %s\n", at.Format("15:04:05.000"), o.label(&v), text)
	}
	return nil
}

// label is the name of a point that has one of its own, else its register.
func (o *pollOptions) label(v *survey.Polled) string {
	if o.profile == "" {
		return v.Register
	}
	return v.Name
}

// table draws all points anew, from the top of the terminal.
func (o *pollOptions) table(w io.Writer, before, now []survey.Polled) error {
	var b bytes.Buffer
	t := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
	fmt.Fprintf(t, "%s\t\t\t\t\n", time.Now().Format("15:04:05"))
	for i, v := range now {
		mark := ""
		if before != nil && changedPoint(before, now, i) {
			mark = "*"
		}
		tell(t, "%s\t%s\t%s\t%s\t%s\n", mark, o.label(&v), shown(v.Value), v.Unit, v.Note)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\x1b[H\x1b[2J%s", b.Bytes())
	return err
}
