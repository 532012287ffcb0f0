package port

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

// A capture is what went over a line, as text that people can read, cut and write
// themselves:
//
//	# holdfast capture 1
//	# started = 2026-03-01T08:15:02.5Z
//	# device = /dev/ttyUSB0
//	# baud = 19200
//	# data_bits = 8
//	# parity = even
//	# stop_bits = 1
//	0.000000 > 01 03 00 00 00 02 c4 0b
//	0.021480 < 01 03 04 00 e6
//	0.024105 < 01 a4 4a 1c
//
// A line is the seconds since the beginning, never less than on the line before;
// "<" for what came in and ">" for what was sent; and bytes in hexadecimal. Lines
// that begin with "#" are remarks. Before the first of the others "# key = value"
// says when the capture was begun and how the port was set, under the names of the
// configuration; what is missing is as by default.

// captureMark is the first line of a capture; the number is raised when older
// programs could not read the rest.
const captureMark = "# holdfast capture 1"

// maxCaptureLine bounds a line of a capture, in bytes.
const maxCaptureLine = 1 << 20

// Chunk is bytes that came in, or were sent, at one time.
type Chunk struct {
	// At is when, since the beginning of the capture.
	At time.Duration
	// Sent is the direction.
	Sent bool
	// Bytes are at least one.
	Bytes []byte
}

// Append appends the chunk as a line of a capture.
func (c *Chunk) Append(b []byte) []byte {
	way := "<"
	if c.Sent {
		way = ">"
	}
	return fmt.Appendf(b, "%.6f %s % x\n", c.At.Seconds(), way, c.Bytes)
}

// CaptureHeader is what stands at the beginning of a capture of a port with these
// options.
func CaptureHeader(o Options, started time.Time) string {
	return fmt.Sprintf("%s\n# started = %s\n# device = %s\n# baud = %d\n# data_bits = %d\n# parity = %s\n# stop_bits = %d\n",
		captureMark, started.Format(time.RFC3339Nano), strings.ReplaceAll(o.Device, "\n", " "), o.Baud, o.DataBits, o.Parity, o.StopBits)
}

// Capture reads a capture.
type Capture struct {
	// Started is when it was begun; zero if that is not known.
	Started time.Time
	// Options are how the port was set.
	Options Options

	lines  *bufio.Scanner
	number int           // of the line read last
	line   string        // the first that is no remark, until Next has taken it
	last   time.Duration // At of the chunk before
}

// ReadCapture reads the header of a capture. Errors name the line.
func ReadCapture(r io.Reader) (*Capture, error) {
	c := &Capture{Options: DefaultOptions(), lines: bufio.NewScanner(r)}
	c.lines.Buffer(nil, maxCaptureLine)
	line, err := c.read()
	if err == nil && line != captureMark || errors.Is(err, io.EOF) {
		err = fmt.Errorf("line %d: is not %q", c.number, captureMark)
	}
	for err == nil {
		line, err = c.read()
		remark, ok := strings.CutPrefix(line, "#")
		if !ok {
			c.line = line
			break
		}
		if key, value, ok := strings.Cut(remark, "="); ok {
			if serr := c.setting(strings.TrimSpace(key), strings.TrimSpace(value)); serr != nil {
				return nil, fmt.Errorf("line %d: %w", c.number, serr)
			}
		}
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return c, nil
}

// read returns the next line that is not empty, or io.EOF.
func (c *Capture) read() (string, error) {
	for c.lines.Scan() {
		c.number++
		if line := strings.TrimSpace(c.lines.Text()); line != "" {
			return line, nil
		}
	}
	if err := c.lines.Err(); err != nil {
		return "", fmt.Errorf("line %d: %w", c.number+1, err)
	}
	return "", io.EOF
}

// setting takes a line of the header; other keys are remarks.
func (c *Capture) setting(key, value string) (err error) {
	switch key {
	case "started":
		c.Started, err = time.Parse(time.RFC3339Nano, value)
	case "device":
		c.Options.Device = value
	case "baud":
		c.Options.Baud, err = strconv.Atoi(value)
	case "data_bits":
		c.Options.DataBits, err = strconv.Atoi(value)
	case "stop_bits":
		c.Options.StopBits, err = strconv.Atoi(value)
	case "parity":
		c.Options.Parity = value
	}
	if err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	return nil
}

// Next returns the next chunk, or io.EOF. Errors name the line.
func (c *Capture) Next() (Chunk, error) {
	line := c.line
	c.line = ""
	for line == "" || line[0] == '#' {
		var err error
		if line, err = c.read(); err != nil {
			return Chunk{}, err
		}
	}
	chunk, err := parseChunk(line)
	if err == nil && chunk.At < c.last {
		err = fmt.Errorf("%v is before the line above", chunk.At)
	}
	if err != nil {
		return Chunk{}, fmt.Errorf("line %d: %w", c.number, err)
	}
	c.last = chunk.At
	return chunk, nil
}

var errNoChunk = errors.New(`is not SECONDS < BYTES, as "0.02 < 01 a4"`)

func parseChunk(line string) (c Chunk, err error) {
	parts := strings.Fields(line)
	if len(parts) < 3 || parts[1] != "<" && parts[1] != ">" {
		return c, errNoChunk
	}
	c.Sent = parts[1] == ">"
	if strings.Trim(parts[0], "0123456789.") != "" {
		return c, fmt.Errorf("%.20q is no number of seconds", parts[0])
	}
	if c.At, err = time.ParseDuration(parts[0] + "s"); err != nil {
		return c, fmt.Errorf("%.20q is no number of seconds", parts[0])
	}
	if c.Bytes, err = hex.DecodeString(strings.Join(parts[2:], "")); err != nil {
		return c, errNoChunk
	}
	return c, nil
}
