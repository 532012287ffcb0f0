package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"holdfast/adapters/modbus"
	"holdfast/adapters/modbus/survey"
	"holdfast/adapters/port"
	"holdfast/cmd/holdfast/config"
	"holdfast/cmd/holdfast/console"
)

func modbusCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "modbus",
		Short: "Find Modbus devices, read and write them, and listen to others do it",
		Long: `Find Modbus devices, read and write them, and listen to others do it.

TARGET is a serial port (a path, best one in /dev/serial/by-id, or
usb:VID:PID[:SERIAL]), a device on the network (tcp://HOST, udp://HOST, tls://HOST,
rtu+tcp://HOST:PORT), or the name of a [port.NAME] of the configuration, whose
settings are taken then. What the running gateway has open is asked through it:
its polls go on, and what is written is in its log.

REGISTER is holding:ADDRESS, input:ADDRESS, coil:ADDRESS or discrete:ADDRESS, and
holding:ADDRESS.BIT for one bit. Addresses are zero-based: 40001 in a manual is
holding:0.

Exit codes: 0 done, 1 it did not work (no answer, an exception), 2 the command line
is wrong, 3 the configuration is wrong.`,
	}
	c.AddCommand(modbusScan(), modbusRead(), modbusWrite(), modbusPoll(), modbusSniff(), modbusWizard())
	return c
}

// line is what a TARGET comes to.
type line struct {
	name   string // as given
	serial port.Options
	bus    modbus.Options
	peer   *modbus.PeerOptions // nil for a serial port
}

// modbusFlags choose a line and how it is spoken on.
type modbusFlags struct {
	portFlags
	framing  string
	socket   string
	caFile   string
	certFile string
	keyFile  string
	insecure bool
	timeout  time.Duration
	json     bool
}

func (f *modbusFlags) flags(c *cobra.Command) {
	f.portFlags.flags(c)
	c.Flags().StringVar(&f.framing, "framing", modbus.FramingRTU, "rtu or ascii, on a serial port")
	c.Flags().StringVar(&f.socket, "socket", "", "control socket of the running gateway")
	c.Flags().StringVar(&f.caFile, "ca-file", "", "of a tls:// device: certificates to check its own against (PEM)")
	c.Flags().StringVar(&f.certFile, "cert-file", "", "our own certificate for it (PEM)")
	c.Flags().StringVar(&f.keyFile, "key-file", "", "and its key")
	c.Flags().BoolVar(&f.insecure, "insecure", false, "do not check its certificate")
	c.Flags().DurationVar(&f.timeout, "timeout", modbus.DefaultTimeout, "how long an answer may take, 10ms to 1m")
	c.Flags().BoolVar(&f.json, "json", false, "print JSON")
}

// line finds the target; flags that were given win over the configuration.
func (f *modbusFlags) line(c *cobra.Command, target string) (line, error) {
	l := line{name: target, bus: modbus.DefaultOptions()}
	usage := func(err error) (line, error) { return line{}, &exitError{exitUsage, err} }
	if f.timeout < 10*time.Millisecond || f.timeout > time.Minute {
		return usage(fmt.Errorf("--timeout: %v is outside 10ms..1m", f.timeout))
	}
	if modbus.PeerKind(target) != "" {
		l.peer = new(modbus.DefaultPeerOptions())
		l.peer.Device = target
	} else if !strings.HasPrefix(target, "/") && !strings.HasPrefix(target, "usb:") {
		cfg, err := config.Load(orDefault(f.file))
		if err != nil {
			return line{}, &exitError{exitConfig, fmt.Errorf("%q is no path, no usb:VID:PID and no tcp://HOST, so it must be a [port.%s]: %w", target, target, err)}
		}
		configured, ok := cfg.Ports[target]
		if !ok {
			return usage(fmt.Errorf("there is no [port.%s]; name one, or a path, or usb:VID:PID, or tcp://HOST", target))
		}
		l.bus, l.peer = configured.Bus, configured.Peer
	}
	if l.peer != nil {
		if f.caFile != "" {
			l.peer.CAFile = f.caFile
		}
		if f.certFile != "" || f.keyFile != "" {
			l.peer.CertFile, l.peer.KeyFile = f.certFile, f.keyFile
		}
		l.peer.Insecure = l.peer.Insecure || f.insecure
		if err := l.peer.Validate(); err != nil {
			return usage(err)
		}
		if modbus.PeerKind(l.peer.Device) != modbus.PeerRTUTCP {
			l.bus.WarmUp = 0
		}
		return l, nil
	}
	var err error
	if l.serial, err = f.options(c, target); err != nil {
		return line{}, err
	}
	if c.Flags().Changed("framing") {
		l.bus.Framing = f.framing
	}
	l.bus.CharTime = l.serial.CharTime()
	if err := l.bus.Validate(); err != nil {
		return usage(err)
	}
	if l.bus.Framing != modbus.FramingASCII && l.serial.DataBits != 8 {
		return usage(fmt.Errorf("--data-bits: Modbus RTU has 8, not %d; --framing ascii has 7 or 8", l.serial.DataBits))
	}
	return l, nil
}

// address is the device of a line as the configuration would name it.
func (l *line) address() string {
	if l.peer != nil {
		return l.peer.Device
	}
	return l.serial.Device
}

// asker makes requests, directly or through the running gateway.
type asker struct {
	do    modbus.Do
	heard func() uint64 // what came besides answers
	close func() error
	via   string // the port of the running gateway, "" when it is not asked
}

// open opens the line, or finds the way through the gateway that has it.
func (f *modbusFlags) open(ctx context.Context, l *line) (*asker, error) {
	if a, err := f.through(ctx, l); a != nil || err != nil {
		return a, err
	}
	return openDirectly(ctx, l)
}

// through is the way through the running gateway; nil when that does not have
// the line.
func (f *modbusFlags) through(ctx context.Context, l *line) (*asker, error) {
	socket, err := controlSocket(f.socket)
	if err != nil {
		return nil, nil //nolint:nilerr,nilnil // no gateway runs here
	}
	buses, err := console.ListBuses(ctx, socket)
	switch {
	case err != nil && f.socket != "":
		return nil, &exitError{exitNotThere, err}
	case err != nil:
		return nil, nil //nolint:nilerr,nilnil // it does not run, or is not ours to ask
	}
	for _, b := range buses {
		if !sameDevice(b.Device, l.address()) {
			continue
		}
		return &asker{
			do: func(ctx context.Context, r modbus.Request, timeout time.Duration) ([]byte, error) {
				return console.AskBus(ctx, socket, b.Port, r, timeout)
			},
			heard: func() uint64 { return 0 },
			close: func() error { return nil },
			via:   b.Port,
		}, nil
	}
	return nil, nil //nolint:nilnil // it has others
}

// sameDevice says whether two names are of one device.
func sameDevice(a, b string) bool {
	return a == b || deviceFile(a) == deviceFile(b)
}

// deviceFile is the device file behind a path or selector, or the name itself.
func deviceFile(name string) string {
	if modbus.PeerKind(name) != "" {
		return name
	}
	o := port.DefaultOptions()
	o.Device = name
	path, err := o.Find()
	if err != nil {
		return name
	}
	if to, err := filepath.EvalSymlinks(path); err == nil {
		return to
	}
	return path
}

func openDirectly(ctx context.Context, l *line) (*asker, error) {
	var way modbus.Line = onePort{l.serial}
	if l.peer != nil {
		peer, err := modbus.NewPeer(*l.peer)
		if err != nil {
			return nil, err
		}
		way = peer
	}
	client, err := modbus.Connect(ctx, l.bus, way, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	return &asker{
		do: client.DoWithin,
		heard: func() uint64 {
			s := client.Status()
			return s.StrayBytes + s.ForeignFrames + s.LateAnswers
		},
		close: client.Close,
	}, nil
}

// onePort opens a port once: a command does not wait for one that is unplugged.
type onePort struct{ o port.Options }

// Open is part of modbus.Line.
func (p onePort) Open(ctx context.Context) (modbus.Wire, error) {
	w, err := openPort(ctx, p.o)
	if err != nil {
		return nil, err // not a nil *port.Port
	}
	return w, nil
}

// Wait is part of modbus.Line.
func (p onePort) Wait(context.Context) error { return port.ErrUnplugged }

// explained adds to an outcome what it means.
func explained(err error) error {
	if why := survey.Explain(err); why != "" {
		return fmt.Errorf("%w: %s", err, why)
	}
	return err
}

// validUnit says whether a unit can be asked on this line.
func (l *line) validUnit(unit int) error {
	most := 247
	if l.peer != nil {
		most = 255
	}
	if unit < 1 || unit > most {
		return &exitError{exitUsage, fmt.Errorf("--unit: %d is outside 1..%d", unit, most)}
	}
	return nil
}

// withLine calls fn with the opened line.
func (f *modbusFlags) withLine(c *cobra.Command, target string, unit int, fn func(ctx context.Context, a *asker) error) error {
	l, err := f.line(c, target)
	if err != nil {
		return err
	}
	if err := l.validUnit(unit); err != nil {
		return err
	}
	a, err := f.open(c.Context(), &l)
	if err != nil {
		return err
	}
	a.say(c.ErrOrStderr())
	return errors.Join(fn(c.Context(), a), a.close())
}

// say tells whose line it is.
func (a *asker) say(w io.Writer) {
	if a.via != "" {
		tell(w, "the running gateway has this port open as [port.%s]: asked through it\n", a.via)
	}
}
