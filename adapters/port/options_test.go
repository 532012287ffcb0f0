package port_test

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/adapters/port"
)

func TestValidateNamesTheKey(t *testing.T) {
	tests := map[string]struct {
		change func(*port.Options)
		want   string // empty: valid
	}{
		"defaults with a device":        {func(*port.Options) {}, ""},
		"no device":                     {func(o *port.Options) { o.Device = "" }, "device: is missing"},
		"relative device":               {func(o *port.Options) { o.Device = "ttyUSB0" }, "device: "},
		"device with a NUL":             {func(o *port.Options) { o.Device = "/dev/\x00" }, "device: "},
		"usb selector":                  {func(o *port.Options) { o.Device = "usb:0403:6001" }, ""},
		"usb selector with a serial":    {func(o *port.Options) { o.Device = "usb:0403:6001:A:1" }, ""},
		"usb selector without product":  {func(o *port.Options) { o.Device = "usb:0403" }, "device: "},
		"usb selector, not hexadecimal": {func(o *port.Options) { o.Device = "usb:0403:60g1" }, "device: "},
		"usb selector, empty serial":    {func(o *port.Options) { o.Device = "usb:0403:6001:" }, "device: "},
		"unknown driver":                {func(o *port.Options) { o.Driver = "goburrow" }, `driver: "goburrow"`},
		"no baud":                       {func(o *port.Options) { o.Baud = 0 }, "baud: 0"},
		"odd baud on bugst":             {func(o *port.Options) { o.Baud = 12345 }, ""},
		"nine data bits":                {func(o *port.Options) { o.DataBits = 9 }, "data_bits: 9"},
		"parity in other words":         {func(o *port.Options) { o.Parity = "E" }, `parity: "E"`},
		"mark parity on bugst":          {func(o *port.Options) { o.Parity = "mark" }, ""},
		"three stop bits":               {func(o *port.Options) { o.StopBits = 3 }, "stop_bits: 3"},
		"no write timeout":              {func(o *port.Options) { o.WriteTimeout = 0 }, "write_timeout: 0s"},
		"tarm at its defaults":          {func(o *port.Options) { o.Driver = "tarm" }, ""},
		"tarm, 1200 baud": {
			func(o *port.Options) { o.Driver, o.Baud = "tarm", 1200 },
			`baud: driver "tarm" cannot do 1200, only 2400 4800 9600 19200 38400 57600 115200; driver "bugst" can`,
		},
		"tarm, seven bits":    {func(o *port.Options) { o.Driver, o.DataBits = "tarm", 7 }, `data_bits: driver "tarm" cannot do 7 data bits`},
		"tarm, even parity":   {func(o *port.Options) { o.Driver, o.Parity = "tarm", "even" }, `parity: driver "tarm" cannot do even parity`},
		"tarm, two stop bits": {func(o *port.Options) { o.Driver, o.StopBits = "tarm", 2 }, `stop_bits: driver "tarm" cannot do 2 stop bits`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			o := port.DefaultOptions()
			o.Device = "/dev/ttyS0"
			tt.change(&o)
			err := o.Validate()
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.HasPrefix(err.Error(), tt.want)) {
				t.Errorf("Validate(%+v) = %v, want %q", o, err, tt.want)
			}
			if _, lerr := port.NewLine("p", o, quiet()); (lerr == nil) != (err == nil) {
				t.Errorf("NewLine = %v, Validate = %v", lerr, err)
			}
		})
	}
}

// What Validate promises of the drivers must be so.
func TestDriversOpenEveryValidSetting(t *testing.T) {
	_, base := device(t)
	for _, baud := range []int{50, 300, 2400, 9600, 12345, 19200, 115200, 250000, 4_000_000} {
		for bits := 5; bits <= 8; bits++ {
			for _, parity := range []string{"none", "odd", "even", "mark", "space"} {
				for stop := 1; stop <= 2; stop++ {
					for _, driver := range drivers {
						o := base
						o.Driver, o.Baud, o.DataBits, o.Parity, o.StopBits = driver, baud, bits, parity, stop
						if o.Validate() != nil {
							continue
						}
						p, err := port.Open(t.Context(), o, quiet())
						if err != nil {
							t.Fatalf("Open(%+v): %v", o, err)
						}
						p.Close()
					}
				}
			}
		}
	}
}

func TestCharTime(t *testing.T) {
	o := port.DefaultOptions()
	if got, want := o.CharTime(), 10*time.Second/9600; got != want {
		t.Errorf("CharTime of 9600 8N1 = %v, want %v", got, want)
	}
	o.Parity, o.StopBits = "even", 2
	if got, want := o.CharTime(), 12*time.Second/9600; got != want {
		t.Errorf("CharTime of 9600 8E2 = %v, want %v", got, want)
	}
}

func TestBareUSBNameWarns(t *testing.T) {
	for dev, warns := range map[string]bool{
		"/dev/ttyUSB0": true, "/dev/ttyACM1": true, "/dev/ttyS0": false, "/dev/ttyAMA0": false,
		"/dev/serial/by-id/usb-FTDI-if00-port0": false, "usb:0403:6001": false,
	} {
		o := port.DefaultOptions()
		o.Device = dev
		var log bytes.Buffer
		l, err := port.NewLine("p", o, slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		if got := len(l.Status().Warnings) > 0; got != warns || strings.Contains(log.String(), "WARN") != warns {
			t.Errorf("%s: warned %v (log %q), want %v", dev, got, log.String(), warns)
		}
	}
}

// sysfs builds the part of /sys that USB serial adapters have: a link from
// class/tty to the tty's device, which lies below the USB device.
func sysfs(t *testing.T, ttys map[string]usbDevice) string {
	t.Helper()
	root := t.TempDir()
	class := filepath.Join(root, "class", "tty")
	write := func(path, text string) {
		if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	mkdir := func(path string) {
		if err := os.MkdirAll(path, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	mkdir(class)
	mkdir(filepath.Join(class, "tty0")) // a virtual terminal has no device
	for name, d := range ttys {
		usb := filepath.Join(root, "devices", "pci0000:00", "usb1", d.path)
		dev := filepath.Join(usb, d.path+":1.0", name) // usb-serial: below the interface
		mkdir(filepath.Join(dev, "tty", name))
		write(filepath.Join(usb, "idVendor"), d.vendor)
		write(filepath.Join(usb, "idProduct"), d.product)
		if d.serial != "" {
			write(filepath.Join(usb, "serial"), d.serial)
		}
		if err := os.Symlink(dev, filepath.Join(dev, "tty", name, "device")); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(filepath.Join(dev, "tty", name), filepath.Join(class, name)); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

type usbDevice struct{ path, vendor, product, serial string }

func TestUSBSelector(t *testing.T) {
	root := sysfs(t, map[string]usbDevice{
		"ttyUSB900": {"1-1", "0403", "6001", "A50285BI"},
		"ttyUSB901": {"1-2", "0403", "6001", "A:1"},
		"ttyACM902": {"1-3", "1a86", "55d4", ""},
	})
	tests := map[string]struct {
		want      string // in the error, which names the device that was to be opened
		unplugged bool
	}{
		"usb:1A86:55d4":          {"/dev/ttyACM902", true}, // found, though not in /dev
		"usb:0403:6001:A50285BI": {"/dev/ttyUSB900", true},
		"usb:0403:6001:A:1":      {"/dev/ttyUSB901", true},
		"usb:0403:6001":          {"selects 2 ports (ttyUSB900, ttyUSB901)", false},
		"usb:0403:6001:other":    {"no serial port belongs to", true},
		"usb:0404:6001":          {"no serial port belongs to", true},
	}
	for dev, tt := range tests {
		o := port.DefaultOptions()
		o.Device, o.Sysfs = dev, root
		_, err := port.Open(t.Context(), o, quiet())
		if err == nil || !strings.Contains(err.Error(), tt.want) || errors.Is(err, port.ErrUnplugged) != tt.unplugged {
			t.Errorf("Open(%s) = %v, want %q, unplugged %v", dev, err, tt.want, tt.unplugged)
		}
	}
}
