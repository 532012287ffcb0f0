package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"holdfast/adapters/modbus"
	"holdfast/adapters/modbus/survey"
	"holdfast/adapters/port"
)

// sniffSettle is the silence after which what came is all of it: USB adapters hand
// over bytes in batches 16 ms apart.
const sniffSettle = 25 * time.Millisecond

type sniffOptions struct {
	portFlags
	framing string
	limit   time.Duration
	json    bool
	quiet   bool
}

func modbusSniff() *cobra.Command {
	var o sniffOptions
	c := &cobra.Command{
		Use:   "sniff PORT",
		Short: "Listen to a line on which others speak Modbus, and decode it",
		Long: `Listen to a line on which others speak Modbus, and decode it.

PORT is a path, usb:VID:PID[:SERIAL], or the name of a [port.NAME]. Nothing is sent.
Requests and answers are told apart and matched; each answer says how long after its
request it was complete, as exactly as the adapter hands bytes over (USB ones: in
batches 1 to 16 ms apart). At the end there is a summary by unit: who is asked, who
answers, how fast, with which errors.`,
		Example: `  holdfast modbus sniff /dev/ttyUSB0 --baud 19200 --parity even
  holdfast modbus sniff rs485 --for 1m --summary
  holdfast modbus sniff /dev/ttyUSB0 --json | jq 'select(.kind == "garbled")'`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if o.framing != modbus.FramingRTU && o.framing != modbus.FramingASCII {
				return &exitError{exitUsage, fmt.Errorf("--framing: %q is neither rtu nor ascii", o.framing)}
			}
			settings, err := o.options(c, args[0])
			if err != nil {
				return err
			}
			ctx := c.Context()
			if o.limit > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, o.limit)
				defer cancel()
			}
			p, err := openPort(ctx, settings)
			if err != nil {
				return err
			}
			return errors.Join(o.sniff(ctx, p, settings, c.OutOrStdout()), p.Close())
		},
	}
	o.flags(c)
	f := c.Flags()
	f.StringVar(&o.framing, "framing", modbus.FramingRTU, "rtu or ascii")
	f.DurationVar(&o.limit, "for", 0, "end after that long; 0: when interrupted")
	f.BoolVar(&o.json, "json", false, "a JSON object a line, the summary last")
	f.BoolVar(&o.quiet, "summary", false, "print only the summary")
	return c
}

// sniff decodes what p receives until ctx ends, then sums up.
func (o *sniffOptions) sniff(ctx context.Context, p *port.Port, settings port.Options, w io.Writer) error {
	stop := context.AfterFunc(ctx, func() { _ = p.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	s := survey.Sniffer{ASCII: o.framing == modbus.FramingASCII}
	buf := make([]byte, 4096)
	start := time.Now()
	for {
		if err := p.SetReadDeadline(time.Now().Add(sniffSettle + 4*settings.CharTime())); err != nil {
			return err
		}
		if ctx.Err() != nil { // its deadline may have been before ours
			break
		}
		n, err := p.Read(buf)
		var heard []survey.Heard
		switch {
		case n > 0:
			heard = s.Take(time.Now(), buf[:n])
		case errors.Is(err, os.ErrDeadlineExceeded):
			heard = s.Silent(time.Now())
		case err != nil && ctx.Err() == nil:
			return errors.Join(err, o.summary(w, &s, time.Since(start), settings.CharTime()))
		}
		if err := o.print(w, heard); err != nil {
			return err
		}
	}
	if err := o.print(w, s.Silent(time.Now())); err != nil {
		return err
	}
	return o.summary(w, &s, time.Since(start), settings.CharTime())
}

func (o *sniffOptions) print(w io.Writer, heard []survey.Heard) error {
	if o.quiet {
		return nil
	}
	for i := range heard {
		h := &heard[i]
		if o.json {
			if err := json.NewEncoder(forTerminal(w)).Encode(h); err != nil {
				return err
			}
			continue
		}
		who := ""
		if h.Kind != survey.KindNoise {
			who = fmt.Sprintf("unit %-3d ", h.Unit)
		}
		after := ""
		if h.After > 0 {
			after = fmt.Sprintf(" after %.1f ms", float64(h.After)/float64(time.Millisecond))
		}
		data := ""
		if h.Data != "" {
			data = " " + h.Data
		}
		if _, err := fmt.Fprintf(w, "%s %s%s: %s%s%s\n", h.At.Format("15:04:05.000"), who, h.Kind, h.Text, data, after); err != nil {
			return err
		}
	}
	return nil
}

// sniffed is the summary.
type sniffed struct {
	Seconds float64        `json:"seconds"`
	Bytes   int            `json:"bytes"`
	Noise   int            `json:"noise_bytes"`
	Load    float64        `json:"load"` // part of the time in which bytes were on the line
	Units   []survey.Tally `json:"units"`
}

func (o *sniffOptions) summary(w io.Writer, s *survey.Sniffer, took, char time.Duration) error {
	sum := sniffed{Seconds: took.Seconds(), Bytes: s.Bytes, Noise: s.Noise, Units: s.Tallies()}
	sum.Load = min(1, float64(s.Bytes)*char.Seconds()/max(sum.Seconds, 1e-9))
	if o.json {
		return json.NewEncoder(forTerminal(w)).Encode(sum)
	}
	tell(w, "\n%d bytes in %s, the line was in use %.0f %% of the time; %d bytes were noise\n", sum.Bytes, took.Round(100*time.Millisecond), 100*sum.Load, sum.Noise)
	switch {
	case sum.Bytes == 0:
		fmt.Fprintln(w, "nothing was heard: is anybody speaking, and are A and B connected?")
	case sum.Noise > sum.Bytes/2:
		fmt.Fprintln(w, "most of it made no sense: the baud rate or parity is another one, or A and B are swapped")
	}
	if len(sum.Units) == 0 {
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "unit\trequests\tanswers\texceptions\tno answer\tgarbled\tfastest\tmean\tslowest")
	ms := func(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond)) }
	for i := range sum.Units {
		u := &sum.Units[i]
		times := "-\t-\t-"
		if u.Slowest > 0 {
			times = ms(u.Fastest) + "\t" + ms(u.Mean) + "\t" + ms(u.Slowest)
		}
		fmt.Fprintf(t, "%d\t%d\t%d\t%d\t%d\t%d\t%s\n", u.Unit, u.Requests, u.Answers, u.Exceptions, u.NoAnswers, u.Garbled, times)
	}
	return t.Flush()
}
