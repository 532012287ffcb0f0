package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"holdfast/adapters/reading"
	"holdfast/storeforward/pack"
)

// unpackMost is the largest batch taken apart, in bytes without compression:
// hundreds of times what an uplink makes.
const unpackMost = 256 << 20

func unpackCommand() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "unpack [FILE]...",
		Short: "Take apart what an uplink has put into one message",
		Long: `Take apart the payloads of batches, as the routes of an uplink with the key batch
make them, and print a line for each message in them. Compression and form are
told by the first bytes. The readings in SenML packs come as JSON, with the units
of SenML. Without a file it reads one payload from standard input.

The form json has one object a line, with topic, time, and payload, text or
base64; text has the topic and the payload, as mosquitto_sub -v prints them.`,
		Example: `  mosquitto_sub -h cloud -t 'holdfast/gw-7/batch' -C 1 -N | holdfast unpack
  holdfast unpack --format text batch.bin`,
		RunE: func(c *cobra.Command, args []string) error {
			out := bufio.NewWriter(c.OutOrStdout())
			show, err := shower(out, format)
			if err != nil {
				return err
			}
			if len(args) == 0 {
				return errors.Join(unpack("standard input", c.InOrStdin(), show), out.Flush())
			}
			for _, name := range args {
				if err := unpackFile(name, show); err != nil {
					return errors.Join(err, out.Flush())
				}
			}
			return out.Flush()
		},
	}
	cmd.Flags().StringVar(&format, "format", "json", "json or text")
	return cmd
}

func unpackFile(name string, show func(pack.Record) error) error {
	f, err := os.Open(name)
	if err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	return errors.Join(unpack(name, f, show), f.Close())
}

func unpack(name string, r io.Reader, show func(pack.Record) error) error {
	b, err := io.ReadAll(io.LimitReader(r, unpackMost+1))
	if err != nil {
		return fmt.Errorf("unpack: read %s: %w", name, err)
	}
	if b, err = pack.Decompress(b, unpackMost); err == nil {
		if reading.LooksLikeSenML(b) {
			err = reading.UnpackSenML(b, func(u reading.Unpacked) error {
				return show(pack.Record{Topic: u.Topic, Time: u.Time, Payload: u.Payload})
			})
		} else {
			err = pack.Read(b, show)
		}
	}
	if err != nil {
		return fmt.Errorf("unpack: %s: %w", name, err)
	}
	return nil
}

// shower returns what prints a record in that form.
func shower(w io.Writer, format string) (func(pack.Record) error, error) {
	switch format {
	case "text":
		return func(r pack.Record) error {
			_, err := fmt.Fprintf(w, "%s %s\n", r.Topic, r.Payload)
			return err
		}, nil
	case "json":
		lines, err := pack.NewPacker(pack.FormatJSONLines, pack.CompressionNone)
		return func(r pack.Record) error {
			b, _, err := lines.Pack([]pack.Record{r})
			if err != nil {
				return err
			}
			_, err = w.Write(b)
			return err
		}, err
	default:
		return nil, &exitError{exitUsage, fmt.Errorf("--format: %q is not one of \"json\", \"text\"", format)}
	}
}
