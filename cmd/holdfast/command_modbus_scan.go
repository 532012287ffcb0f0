package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"holdfast/adapters/modbus"
	"holdfast/adapters/modbus/profile"
	"holdfast/adapters/modbus/survey"
	"holdfast/adapters/port"
)

// scanTimeout is how long a unit on a serial port has to answer a scan where nothing
// was said: devices answer within some ten milliseconds, and one that is later is
// heard all the same. Behind a gateway on the network there may be a slow line.
const scanTimeout = 100 * time.Millisecond

// oneDeviceFrom is how many units of a peer must answer, if all do, for it to be one
// device that does not look at the number.
const oneDeviceFrom = 5

// The usual settings of a line, the likeliest first.
var (
	usualBauds    = []int{9600, 19200, 38400, 115200, 4800, 57600, 2400}
	usualParities = []string{port.ParityNone, port.ParityEven, port.ParityOdd}
)

type scanOptions struct {
	modbusFlags
	units      string
	bauds      string
	parities   string
	all        bool
	noIdentify bool
}

// foundUnit is a unit that a scan found.
type foundUnit struct {
	Target string `json:"target"`
	Baud   int    `json:"baud,omitempty"`
	Parity string `json:"parity,omitempty"`
	Unit   int    `json:"unit"`
	// Exception is what it answered, if that was a refusal; Late says that it
	// took longer than the timeout.
	Exception string `json:"exception,omitempty"`
	Late      bool   `json:"late,omitempty"`
	survey.Identity
}

func modbusScan() *cobra.Command {
	var o scanOptions
	c := &cobra.Command{
		Use:   "scan TARGET...",
		Short: "Find the units on lines and peers, and what they are",
		Long: `Find the units on lines and peers, and what they are.

Each unit is asked for one register; an exception is a sign of life too. An answer
that comes after the timeout is not taken for that of the next unit, but makes the
units asked just before to be asked again, with patience. Those that are there are
asked who they are (function 43/14), whether they speak SunSpec, and for the
registers by which the profiles know their devices. Nothing is written.

On a serial port --bauds and --parities try several settings, one after the other,
until units are found (--all: all of them); "usual" stands for the usual ones. While
settings are tried, other devices on the line see requests that they cannot read.

Exit codes: 0 units were found, 1 none was or it did not work.`,
		Example: `  holdfast modbus scan /dev/ttyUSB0
  holdfast modbus scan /dev/ttyUSB0 --bauds usual --parities usual --units 1-10
  holdfast modbus scan tcp://192.168.1.50 tcp://192.168.1.51:1502 --units 1-5,255 --json`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error { return o.run(c, args) },
	}
	o.flags(c)
	f := c.Flags()
	f.StringVar(&o.units, "units", "1-247", "units to ask: 1-10,17")
	f.StringVar(&o.bauds, "bauds", "", `baud rates to try: 9600,19200, or "usual"`)
	f.StringVar(&o.parities, "parities", "", `parities to try: none,even, or "usual"`)
	f.BoolVar(&o.all, "all", false, "do not stop at the first settings at which units are found")
	f.BoolVar(&o.noIdentify, "no-identify", false, "only find them")
	f.Lookup("timeout").DefValue = "100ms, on the network 1s"
	return c
}

func (o *scanOptions) run(c *cobra.Command, targets []string) error {
	units, err := parseUnits(o.units)
	if err != nil {
		return &exitError{exitUsage, fmt.Errorf("--units: %w", err)}
	}
	profiles, err := o.profiles(c)
	if err != nil {
		return err
	}
	found := []foundUnit{}
	var errs []error
	for _, target := range targets {
		l, err := o.line(c, target)
		if err != nil {
			return err
		}
		us, err := o.target(c, l, units, profiles)
		found = append(found, us...)
		if c.Context().Err() != nil {
			errs = append(errs, errors.New("not finished"))
			break
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", target, err))
		}
	}
	if o.json {
		errs = append(errs, printJSON(c.OutOrStdout(), found))
	} else if len(found) > 0 {
		errs = append(errs, showUnits(c.OutOrStdout(), found))
	}
	if err := errors.Join(errs...); err != nil || len(found) > 0 {
		return err
	}
	return errors.New("no unit answered")
}

// profiles are those that units are compared with, none with --no-identify.
func (o *scanOptions) profiles(c *cobra.Command) ([]*profile.Profile, error) {
	if o.noIdentify {
		return nil, nil
	}
	return o.allProfiles(c)
}

// allProfiles are those of the program and of the configuration, if there is one.
func (f *modbusFlags) allProfiles(c *cobra.Command) ([]*profile.Profile, error) {
	pf := profileFlags{config: orDefault(f.file)}
	ps, err := pf.profiles(c)
	if err != nil {
		return nil, err
	}
	all, err := ps.All()
	if err != nil {
		tell(c.ErrOrStderr(), "some profiles are left out: %s\n", err)
	}
	return all, nil
}

// settings are the baud rates and parities to try on a serial port.
func (o *scanOptions) settings(l *line) ([]port.Options, error) {
	if l.peer != nil {
		if o.bauds != "" || o.parities != "" {
			return nil, &exitError{exitUsage, errors.New("--bauds and --parities are for serial ports")}
		}
		return []port.Options{{}}, nil
	}
	bauds, parities := []int{l.serial.Baud}, []string{l.serial.Parity}
	switch o.bauds {
	case "":
	case "usual":
		bauds = usualBauds
	default:
		bauds = nil
		for b := range strings.SplitSeq(o.bauds, ",") {
			n, err := strconv.Atoi(b)
			if err != nil {
				return nil, &exitError{exitUsage, fmt.Errorf("--bauds: %q is not a number", b)}
			}
			bauds = append(bauds, n)
		}
	}
	switch o.parities {
	case "":
	case "usual":
		parities = usualParities
	default:
		parities = strings.Split(o.parities, ",")
	}
	var all []port.Options
	for _, b := range bauds {
		for _, p := range parities {
			s := l.serial
			s.Baud, s.Parity = b, p
			if err := s.Validate(); err != nil {
				return nil, &exitError{exitUsage, err}
			}
			all = append(all, s)
		}
	}
	return all, nil
}

// target scans one line at all settings.
func (o *scanOptions) target(c *cobra.Command, l line, units []byte, profiles []*profile.Profile) ([]foundUnit, error) {
	settings, err := o.settings(&l)
	if err != nil {
		return nil, err
	}
	timeout := o.timeout
	if !c.Flags().Changed("timeout") && modbus.PeerKind(l.address()) == "" {
		timeout = scanTimeout
	}
	var found []foundUnit
	for _, s := range settings {
		at := l
		if l.peer == nil {
			at.serial, at.bus.CharTime = s, s.CharTime()
		}
		us, err := o.scan(c, at, units, timeout, profiles)
		found = append(found, us...)
		if err != nil || len(found) > 0 && !o.all {
			return found, err
		}
	}
	return found, nil
}

// scan scans a line as it is set.
func (o *scanOptions) scan(c *cobra.Command, l line, units []byte, timeout time.Duration, profiles []*profile.Profile) (found []foundUnit, err error) {
	ctx := c.Context()
	a, err := o.open(ctx, &l)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, a.close()) }()
	a.say(c.ErrOrStderr())
	a.reopen(&l)
	what := l.name
	if l.peer == nil {
		what += fmt.Sprintf(" %d baud, parity %s", l.serial.Baud, l.serial.Parity)
	}
	bar := newScanBar(c.ErrOrStderr(), what)
	defer bar.end()
	signs, err := survey.Scan(ctx, a.do, survey.ScanOptions{
		Units: units, Timeout: timeout, Patience: max(timeout, modbus.DefaultTimeout), Heard: func() uint64 { return a.heard() },
		Progress: func(done, of, n int) { bar.show(done, of, fmt.Sprintf("%d found", n)) },
	})
	oneDevice := l.peer != nil && len(signs) == len(units) && len(units) >= oneDeviceFrom
	if oneDevice {
		bar.end()
		tell(c.ErrOrStderr(), "%s answers whatever the unit: it is one device, shown as unit %d\n", l.name, signs[0].Unit)
		signs = signs[:1]
	}
	for i, s := range signs {
		u := foundUnit{Target: l.address(), Unit: int(s.Unit), Late: s.Late}
		if l.peer == nil {
			u.Baud, u.Parity = l.serial.Baud, l.serial.Parity
		}
		if e, ok := errors.AsType[*modbus.ExceptionError](s.Err); ok {
			u.Exception = fmt.Sprintf("%d (%v)", byte(e.Code), e.Code)
		}
		if err == nil && !o.noIdentify {
			bar.show(i, len(signs), fmt.Sprintf("asking unit %d who it is", s.Unit))
			u.Identity, err = survey.Identify(ctx, a.do, s.Unit, profiles, max(timeout, modbus.DefaultTimeout))
		}
		found = append(found, u)
	}
	return found, err
}

// reopen makes a peer that hangs up on units that it does not have be called
// again: that is its way to say no.
func (a *asker) reopen(l *line) {
	if l.peer == nil || a.via != "" {
		return
	}
	do := a.do
	a.do = func(ctx context.Context, r modbus.Request, timeout time.Duration) ([]byte, error) {
		data, err := do(ctx, r, timeout)
		if !errors.Is(err, modbus.ErrLost) && !errors.Is(err, modbus.ErrNotOpen) {
			return data, err
		}
		_ = a.close() // says the same again
		fresh, oerr := openDirectly(ctx, l)
		if oerr != nil {
			a.close = func() error { return nil }
			return nil, err
		}
		do, a.heard, a.close = fresh.do, fresh.heard, fresh.close
		return nil, fmt.Errorf("%w: %s", modbus.ErrNoAnswer, err.Error())
	}
}

// parseUnits reads "1-10,17".
func parseUnits(s string) ([]byte, error) {
	var units []byte
	var seen [256]bool
	for part := range strings.SplitSeq(s, ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		from, err := strconv.ParseUint(first, 10, 8)
		to, err2 := strconv.ParseUint(last, 10, 8)
		if err != nil || err2 != nil || from < 1 || from > to {
			return nil, fmt.Errorf(`%q is no such thing as "1-10" or "17", within 1..255`, part)
		}
		for u := from; u <= to; u++ {
			if !seen[u] {
				seen[u] = true
				units = append(units, byte(u))
			}
		}
	}
	return units, nil
}

func showUnits(w io.Writer, found []foundUnit) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "target\tunit\tanswered\tis\tprofile")
	for i := range found {
		u := &found[i]
		target := u.Target
		if u.Baud != 0 {
			target += fmt.Sprintf(" %d %s", u.Baud, u.Parity)
		}
		answered := "a value"
		if u.Exception != "" {
			answered = "exception " + u.Exception
		}
		if u.Late {
			answered += ", late"
		}
		var fits []string
		for _, f := range u.Profiles {
			name := f.Profile
			if !f.Certain {
				name += "?"
			}
			fits = append(fits, name)
		}
		tell(t, "%s\t%d\t%s\t%s\t%s\n", target, u.Unit, answered, orDash(u.Identity.String()), orDash(strings.Join(fits, ", ")))
	}
	return t.Flush()
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// scanBar is a bar on a terminal; elsewhere nothing.
type scanBar struct {
	w    io.Writer
	what string
	last time.Time
	on   bool
}

func newScanBar(w io.Writer, what string) *scanBar {
	if !isTerminal(w) {
		w = nil
	}
	return &scanBar{w: w, what: what}
}

// show draws the bar anew, ten times a second at most.
func (p *scanBar) show(done, of int, note string) {
	now := time.Now()
	if p.w == nil || p.on && done < of && now.Sub(p.last) < 100*time.Millisecond {
		return
	}
	const width = 20
	p.last, p.on = now, true
	n := width * done / max(of, 1)
	tell(p.w, "\r\x1b[K%s [%s%s] %d/%d, %s", p.what, strings.Repeat("#", n), strings.Repeat(".", width-n), done, of, note)
}

// end takes the bar away.
func (p *scanBar) end() {
	if p.on {
		p.on = false
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}
