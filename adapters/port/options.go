package port

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// The drivers.
const (
	DriverBugst = "bugst" // go.bug.st/serial
	DriverTarm  = "tarm"  // github.com/tarm/goserial
)

// The parities.
const (
	ParityNone  = "none"
	ParityOdd   = "odd"
	ParityEven  = "even"
	ParityMark  = "mark"
	ParitySpace = "space"
)

// Options say which serial port, and how it is set.
type Options struct {
	// Device is a path (best one in /dev/serial/by-id or by-path, which stay
	// the same when devices are plugged in another order), or
	// "usb:VID:PID" or "usb:VID:PID:SERIAL" for a USB adapter by its ids, in
	// hexadecimal as lsusb shows them.
	Device string `toml:"device"`
	// Driver is "bugst", which can do everything below, or "tarm", which can
	// do 8N1 at 2400 to 115200 baud.
	Driver string `toml:"driver"`
	// Baud is the rate in bits per second, 50 to 4000000.
	Baud int `toml:"baud"`
	// DataBits per character, 5 to 8.
	DataBits int `toml:"data_bits"`
	// Parity is "none", "odd", "even", "mark" or "space".
	Parity string `toml:"parity"`
	// StopBits is 1 or 2.
	StopBits int `toml:"stop_bits"`
	// WriteTimeout is how long a write may take before the port counts as
	// stuck and is closed, 10ms to 10m.
	WriteTimeout time.Duration `toml:"write_timeout"`
	// RS485 says who switches a half-duplex line.
	RS485 RS485 `toml:",inline"`
	// Sysfs is where the kernel describes devices; empty means /sys.
	Sysfs string `toml:"-"`
	// Dev is where device files are; empty means /dev.
	Dev string `toml:"-"`
}

// DefaultOptions are 9600 8N1 through driver bugst. There is no default
// device.
func DefaultOptions() Options {
	return Options{
		Driver: DriverBugst, Baud: 9600, DataBits: 8, Parity: ParityNone, StopBits: 1,
		WriteTimeout: 5 * time.Second, // 4 KiB, what a tty holds, take 4.3 s at 9600 baud
		RS485:        defaultRS485(),
	}
}

// tarmBauds are the rates goserial knows when built with cgo, as Holdfast is.
var tarmBauds = []int{2400, 4800, 9600, 19200, 38400, 57600, 115200}

// Validate reports the first value that is out of range or that the driver
// cannot do, naming its key. Silently running 8N1 where even parity was asked
// for would cost somebody a day.
func (o Options) Validate() error {
	if err := validateSelector(o.Device); err != nil {
		return fmt.Errorf("device: %w", err)
	}
	if o.Driver != DriverBugst && o.Driver != DriverTarm {
		return fmt.Errorf(`driver: %q is neither "bugst" nor "tarm"`, o.Driver)
	}
	if o.Baud < 50 || o.Baud > 4_000_000 {
		return fmt.Errorf("baud: %d is outside 50..4000000", o.Baud)
	}
	if o.DataBits < 5 || o.DataBits > 8 {
		return fmt.Errorf("data_bits: %d is outside 5..8", o.DataBits)
	}
	switch o.Parity {
	case ParityNone, ParityOdd, ParityEven, ParityMark, ParitySpace:
	default:
		return fmt.Errorf(`parity: %q is none of "none", "odd", "even", "mark", "space"`, o.Parity)
	}
	if o.StopBits != 1 && o.StopBits != 2 {
		return fmt.Errorf("stop_bits: %d is neither 1 nor 2", o.StopBits)
	}
	if o.WriteTimeout < 10*time.Millisecond || o.WriteTimeout > 10*time.Minute {
		return fmt.Errorf("write_timeout: %v is outside 10ms..10m", o.WriteTimeout)
	}
	if err := o.RS485.validate(); err != nil {
		return err
	}
	if o.Driver == DriverTarm {
		return o.validateTarm()
	}
	return nil
}

func (o Options) validateTarm() error {
	switch {
	case !slices.Contains(tarmBauds, o.Baud):
		return fmt.Errorf(`baud: driver "tarm" cannot do %d, only %s; driver "bugst" can`,
			o.Baud, strings.Trim(fmt.Sprint(tarmBauds), "[]"))
	case o.DataBits != 8:
		return fmt.Errorf(`data_bits: driver "tarm" cannot do %d data bits, only 8; driver "bugst" can`, o.DataBits)
	case o.Parity != ParityNone:
		return fmt.Errorf(`parity: driver "tarm" cannot do %s parity; driver "bugst" can`, o.Parity)
	case o.StopBits != 1:
		return fmt.Errorf(`stop_bits: driver "tarm" cannot do %d stop bits, only 1; driver "bugst" can`, o.StopBits)
	}
	return nil
}

// Warnings returns what is allowed and yet likely to end in trouble.
func (o Options) Warnings() []string {
	out := o.RS485.warnings()
	name, bare := strings.CutPrefix(o.Device, "/dev/")
	if bare && (strings.HasPrefix(name, "ttyUSB") || strings.HasPrefix(name, "ttyACM")) {
		out = append(out, fmt.Sprintf("device: %s may be another device after a restart; "+
			"use its name in /dev/serial/by-id or by-path, or usb:VID:PID", o.Device))
	}
	return out
}

// CharTime is how long one character takes on the line: start bit, data bits,
// parity bit and stop bits.
func (o Options) CharTime() time.Duration {
	n := 1 + o.DataBits + o.StopBits
	if o.Parity != ParityNone {
		n++
	}
	return time.Duration(n) * time.Second / time.Duration(max(o.Baud, 1))
}

var errNoDevice = errors.New(`is missing; give a path such as "/dev/serial/by-id/...", or "usb:VID:PID"`)
