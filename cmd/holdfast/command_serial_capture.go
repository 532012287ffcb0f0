package main

import (
	"context"
	"errors"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"holdfast/adapters/port"
)

// orStdout is the name of a file that means standard input or output.
const orStdout = "-"

func serialCapture() *cobra.Command {
	var p portFlags
	var limit time.Duration
	var most int64
	c := &cobra.Command{
		Use:   "capture PORT FILE",
		Short: "Write down what comes in on a line, with times",
		Long: `Write down what comes in on a line, with times, as text.

PORT is as with monitor. FILE must not be there yet; "-" is standard output. It
begins with the settings of the port, and each line of it is the seconds since the
beginning, "<" for what came in (">" for what was sent), and bytes in hexadecimal:

  # holdfast capture 1
  # baud = 19200
  0.021480 < 01 03 04 00 e6
  0.024105 < 01 a4 4a 1c`,
		Example: `  holdfast serial capture scale scale.capture --for 1m
  holdfast serial replay scale.capture --decode scale`,
		Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) (err error) {
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
			defer func() { err = errors.Join(err, line.Close()) }()
			out := c.OutOrStdout()
			if args[1] != orStdout {
				f, err := os.OpenFile(args[1], os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644) //nolint:gosec // the operator's file, which others may read
				if err != nil {
					return err
				}
				defer func() { err = errors.Join(err, f.Close()) }()
				out = f
			}
			n, err := capture(ctx, line, out, most)
			tell(c.ErrOrStderr(), "%d bytes came in\n", n)
			return err
		},
	}
	p.flags(c)
	c.Flags().DurationVar(&limit, "for", 0, "end after that long; 0: when interrupted")
	c.Flags().Int64Var(&most, "max-bytes", 16<<20, "end when so many bytes have come in; the file is three to four times as long")
	return c
}

// forAWhile is ctx, ended after limit if that is not 0.
func forAWhile(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	if limit <= 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, limit)
}

// eachRead calls fn with what p receives until ctx ends or fn says no more.
func eachRead(ctx context.Context, p *port.Port, fn func(b []byte) (more bool, err error)) error {
	stop := context.AfterFunc(ctx, func() { _ = p.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, 4096)
	for {
		n, err := p.Read(buf)
		switch {
		case n > 0:
			if more, err := fn(buf[:n]); !more || err != nil {
				return err
			}
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		}
	}
}

// capture writes what p receives until ctx ends or most bytes have come, and
// returns how many did. Each piece is written at once: a capture that is killed
// has all but the last.
func capture(ctx context.Context, p *port.Port, w io.Writer, most int64) (n int64, err error) {
	began := time.Now()
	if _, err := io.WriteString(w, port.CaptureHeader(p.Options(), began)); err != nil {
		return 0, err
	}
	var text []byte
	err = eachRead(ctx, p, func(b []byte) (bool, error) {
		n += int64(len(b))
		chunk := port.Chunk{At: time.Since(began), Bytes: b}
		text = chunk.Append(text[:0])
		_, err := w.Write(text)
		return n < most, err
	})
	return n, err
}
