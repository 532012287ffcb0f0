package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"holdfast/adapters/modbus"
	"holdfast/adapters/modbus/profile"
	"holdfast/adapters/port"
	"holdfast/adapters/reading"
	"holdfast/cmd/holdfast/config"
)

type wizardOptions struct {
	scanOptions
	target string
	root   string
	output string
	write  bool
	yes    bool
}

func modbusWizard() *cobra.Command {
	var o wizardOptions
	c := &cobra.Command{
		Use:   "wizard",
		Short: "Find the port, its settings and the devices, and write the configuration",
		Long: `Find the port, its settings and the devices, and write the configuration.

It asks in plain questions, each with an answer that Enter takes; flags answer them
beforehand, and --yes takes all the rest. Answers may come from a pipe, a line each.
The configuration is printed, and on request written to a file of its own in the
folder of drop-ins, so that nothing that is there is changed: a file that exists is
never overwritten, and one with which the configuration would be wrong is taken
back. Nothing is written to devices.`,
		Example: `  holdfast modbus wizard
  holdfast modbus wizard --target /dev/ttyUSB0 --units 1-10 --yes > devices.toml
  holdfast modbus wizard --target tcp://192.168.1.50 --units 1-5 --yes --write`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return o.run(c) },
	}
	o.flags(c)
	f := c.Flags()
	f.StringVar(&o.target, "target", "", "serial port, or tcp://HOST and the like")
	f.StringVar(&o.units, "units", "1-247", "units to look for: 1-10,17")
	f.StringVar(&o.output, "output", "", "file to write to (default: modbus-NAME.toml in the folder of drop-ins)")
	f.BoolVar(&o.write, "write", false, "write the file without asking")
	f.BoolVarP(&o.yes, "yes", "y", false, "ask nothing")
	f.StringVar(&o.root, "root", "/", "where the machine's /sys, /dev and /proc are")
	f.Lookup("timeout").DefValue = "100ms, on the network 1s"
	return c
}

// interview asks questions.
type interview struct {
	out   io.Writer
	in    *bufio.Reader
	yes   bool
	close func() error
}

// newInterview asks on the terminal, opened anew and not blocking so that Ctrl-C
// ends a question, or reads answers from a pipe.
func newInterview(c *cobra.Command, yes bool) (*interview, error) {
	v := &interview{out: c.ErrOrStderr(), yes: yes, close: func() error { return nil }}
	if yes || !isTerminal(c.InOrStdin()) {
		v.in = bufio.NewReader(c.InOrStdin())
		return v, nil
	}
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(c.Context(), func() { _ = tty.SetReadDeadline(time.Unix(1, 0)) })
	v.in = bufio.NewReader(tty)
	v.close = func() error {
		stop()
		return tty.Close()
	}
	return v, nil
}

// ask returns the answer, def for an empty one; one that accept refuses is asked
// for again.
func (v *interview) ask(question, def string, accept func(string) error) (string, error) {
	for {
		tell(v.out, "%s", question)
		if def != "" {
			tell(v.out, " [%s]", def)
		}
		fmt.Fprint(v.out, ": ")
		answer := ""
		if v.yes {
			tell(v.out, "%s\n", def)
		} else {
			line, err := v.in.ReadString('\n')
			if err != nil && (!errors.Is(err, io.EOF) || line == "") {
				return "", fmt.Errorf("no answer to %q: %w", question, err)
			}
			answer = strings.TrimSpace(line)
		}
		if answer == "" {
			answer = def
		}
		err := accept(answer)
		if err == nil {
			return answer, nil
		}
		if v.yes {
			return "", &exitError{exitUsage, fmt.Errorf("%s: %w", question, err)}
		}
		tell(v.out, "  %s\n", err)
	}
}

// plan is what the wizard has found out.
type plan struct {
	port    string // its name
	is      bool   // the configuration has the port already
	line    line
	found   []foundUnit
	devices []plannedDevice
}

type plannedDevice struct {
	name    string
	unit    foundUnit
	profile string // "" for none
}

func (o *wizardOptions) run(c *cobra.Command) (err error) {
	v, err := newInterview(c, o.yes)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.close()) }()
	cfg, err := configIfAny(o.file)
	if err != nil {
		return &exitError{exitConfig, err}
	}
	profiles, err := o.allProfiles(c)
	if err != nil {
		return err
	}
	var p plan
	if err := o.choosePort(c, v, &p, &cfg); err != nil {
		return err
	}
	if err := o.findUnits(c, v, &p, profiles); err != nil {
		return err
	}
	if err := o.nameAll(v, &p, &cfg, profiles); err != nil {
		return err
	}
	text := p.toml()
	fmt.Fprint(forTerminal(c.OutOrStdout()), text)
	return o.save(v, &p, text)
}

// choosePort asks for the port, and sees if the configuration has it.
func (o *wizardOptions) choosePort(c *cobra.Command, v *interview, p *plan, cfg *config.Config) error {
	target := o.target
	if target == "" {
		ports, err := port.MachineAt(o.root).List()
		if err != nil {
			tell(v.out, "%s\n", err)
		}
		ports = slices.DeleteFunc(ports, func(f port.Found) bool { return !f.Hardware })
		names := []string{}
		for i, f := range ports {
			name := f.Path
			if f.ByID != "" {
				name = f.ByID
			}
			names = append(names, name)
			about := strings.TrimSpace(f.Manufacturer + " " + f.Product)
			if len(f.Users) > 0 {
				about += " (open by " + f.Users[0].Name + ")"
			}
			tell(v.out, "%d) %s %s\n", i+1, name, about)
		}
		def := ""
		if len(names) > 0 {
			def = "1"
		}
		answer, err := v.ask("On which port are the devices? A number from above, a path, or tcp://HOST", def, func(a string) error {
			if n, err := strconv.Atoi(a); err == nil && (n < 1 || n > len(names)) {
				return fmt.Errorf("%d is not in the list", n)
			}
			if a == "" {
				return errors.New("a port is needed")
			}
			return nil
		})
		if err != nil {
			return err
		}
		target = answer
		if n, err := strconv.Atoi(answer); err == nil {
			target = names[n-1]
		}
	}
	l, err := o.scanOptions.line(c, target)
	if err != nil {
		return err
	}
	p.line = l
	for _, name := range sorted(cfg.Ports) {
		configured := cfg.Ports[name]
		if sameDevice(configured.Address(), l.address()) {
			p.port, p.is = name, true
			tell(v.out, "this is [port.%s] of the configuration; its settings are taken\n", name)
			if p.line, err = o.scanOptions.line(c, name); err != nil {
				return err
			}
		}
	}
	return nil
}

// findUnits asks for the settings that nobody has said, and scans.
func (o *wizardOptions) findUnits(c *cobra.Command, v *interview, p *plan, profiles []*profile.Profile) error {
	if p.line.peer == nil && !p.is {
		const findOut = "find out"
		if !c.Flags().Changed("baud") {
			baud, err := v.ask("Baud rate", findOut, func(a string) error {
				if _, err := strconv.Atoi(a); err != nil && a != findOut {
					return errors.New("a number, or Enter")
				}
				return nil
			})
			if err != nil {
				return err
			}
			if o.bauds = baud; baud == findOut {
				o.bauds = "usual"
			}
		}
		if !c.Flags().Changed("parity") {
			parity, err := v.ask("Parity (none, even, odd)", findOut, func(a string) error {
				if a != findOut && !slices.Contains(usualParities, a) {
					return errors.New("none, even or odd, or Enter")
				}
				return nil
			})
			if err != nil {
				return err
			}
			if o.parities = parity; parity == findOut {
				o.parities = "usual"
			}
		}
	}
	if !c.Flags().Changed("units") {
		var err error
		o.units, err = v.ask("Which unit numbers may there be", o.units, func(a string) error {
			_, err := parseUnits(a)
			return err
		})
		if err != nil {
			return err
		}
	}
	units, err := parseUnits(o.units)
	if err != nil {
		return &exitError{exitUsage, fmt.Errorf("--units: %w", err)}
	}
	tell(v.out, "looking for units %s ...\n", o.units)
	if p.found, err = o.scanOptions.target(c, p.line, units, profiles); err != nil {
		return err
	}
	if len(p.found) == 0 {
		return errors.New("no unit answered; look at the wiring (A and B swapped?), and at the settings in the devices' manuals")
	}
	return nil
}

// nameAll asks what the port and the devices are called, and what they are.
func (o *wizardOptions) nameAll(v *interview, p *plan, cfg *config.Config, profiles []*profile.Profile) error {
	if !p.is {
		base := "rs485"
		if p.line.peer != nil {
			base = "peer"
		}
		var err error
		p.port, err = v.ask("Name of the port", free(base, cfg.Ports), func(a string) error {
			if _, taken := cfg.Ports[a]; taken {
				return fmt.Errorf("there is a [port.%s] already", a)
			}
			return reading.ValidName(a)
		})
		if err != nil {
			return err
		}
	}
	taken := map[string]bool{}
	for name := range cfg.Devices {
		taken[name] = true
	}
	for _, u := range p.found {
		tell(v.out, "\nunit %d: %s\n", u.Unit, orDash(u.Identity.String()))
		d := plannedDevice{unit: u}
		names := []string{}
		for i, f := range u.Profiles {
			certain := ""
			if !f.Certain {
				certain = " (its values look like it)"
			}
			tell(v.out, "%d) %s: %s%s\n", i+1, f.Profile, f.Title, certain)
			names = append(names, f.Profile)
		}
		def := "0"
		if len(names) > 0 {
			def = "1"
		}
		answer, err := v.ask("What is it? A number from above, the name of a profile, or 0 to leave it out", def, func(a string) error {
			n, err := strconv.Atoi(a)
			switch {
			case err == nil && (n < 0 || n > len(names)):
				return fmt.Errorf("%d is not in the list", n)
			case err != nil && a != profile.SunSpecName && !slices.ContainsFunc(profiles, func(p *profile.Profile) bool { return p.Name == a }):
				return fmt.Errorf("there is no profile %q; `holdfast profile list` shows all", a)
			}
			return nil
		})
		if err != nil {
			return err
		}
		if d.profile = answer; answer == "0" {
			d.profile = ""
		} else if n, err := strconv.Atoi(answer); err == nil {
			d.profile = names[n-1]
		}
		if d.profile != "" {
			d.name, err = v.ask("Name of the device", free(fmt.Sprintf("%s-%d", path.Base(d.profile), u.Unit), taken), func(a string) error {
				if taken[a] {
					return fmt.Errorf("there is a device %s already", a)
				}
				return reading.ValidName(a)
			})
			if err != nil {
				return err
			}
			taken[d.name] = true
		}
		p.devices = append(p.devices, d)
	}
	return nil
}

// free is base, or base with the first number that makes it a name not taken.
func free[V any](base string, taken map[string]V) string {
	name := base
	for i := 2; ; i++ {
		if _, is := taken[name]; !is {
			return name
		}
		name = fmt.Sprintf("%s_%d", base, i)
	}
}

// toml is the configuration of what was found.
func (p *plan) toml() string {
	var b strings.Builder
	b.WriteString("# Found by `holdfast modbus wizard`.\n")
	if !p.is {
		fmt.Fprintf(&b, "\n[port.%s]\ndevice = %s\n", tomlKey(p.port), tomlString(p.line.address()))
		if p.line.peer == nil {
			first := p.found[0]
			if p.line.serial.Driver != port.DefaultOptions().Driver {
				fmt.Fprintf(&b, "driver = %s\n", tomlString(p.line.serial.Driver))
			}
			fmt.Fprintf(&b, "baud = %d\nparity = %s\n", first.Baud, tomlString(first.Parity))
			if s := p.line.serial; s.StopBits != 1 || s.DataBits != 8 {
				fmt.Fprintf(&b, "data_bits = %d\nstop_bits = %d\n", s.DataBits, s.StopBits)
			}
			if p.line.bus.Framing == modbus.FramingASCII {
				b.WriteString("framing = \"ascii\"\n")
			}
		} else {
			peerKeys(&b, p.line.peer)
		}
	}
	for _, d := range p.devices {
		b.WriteByte('\n')
		if about := d.unit.Identity.String(); about != "" {
			fmt.Fprintf(&b, "# %s\n", comment(about))
		}
		if d.profile == "" {
			fmt.Fprintf(&b, "# Unit %d answers; no profile was chosen for it.\n", d.unit.Unit)
			continue
		}
		if others := likely(&d); len(others) > 0 {
			fmt.Fprintf(&b, "# Not certain: %s fits as well.\n", strings.Join(others, ", "))
		}
		fmt.Fprintf(&b, "[device.%s]\nadapter = \"modbus\"\nport = %s\nunit = %d\nprofile = %s\n",
			tomlKey(d.name), tomlString(p.port), d.unit.Unit, tomlString(d.profile))
	}
	return b.String()
}

// peerKeys writes what was said of a peer on the command line.
func peerKeys(b *strings.Builder, o *modbus.PeerOptions) {
	for _, k := range []struct{ key, value string }{{"ca_file", o.CAFile}, {"cert_file", o.CertFile}, {"key_file", o.KeyFile}} {
		if k.value != "" {
			fmt.Fprintf(b, "%s = %s\n", k.key, tomlString(k.value))
		}
	}
	if o.Insecure {
		b.WriteString("insecure = true\n")
	}
}

// likely are the profiles that fit a device besides the one chosen, when none of
// them is certain.
func likely(d *plannedDevice) []string {
	var names []string
	for _, f := range d.unit.Profiles {
		switch {
		case f.Certain:
			return nil
		case f.Profile != d.profile:
			names = append(names, f.Profile)
		}
	}
	return names
}

// comment is text from a device as a line of a comment.
func comment(text string) string { return harmlessText(strings.Join(strings.Fields(text), " ")) }

var bareKey = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

func tomlKey(s string) string {
	if bareKey.MatchString(s) {
		return s
	}
	return tomlString(s)
}

// tomlString is a string of TOML: those of JSON are.
func tomlString(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		return `""` // a string can always be written
	}
	return string(b)
}

// save writes the file if that is wanted.
func (o *wizardOptions) save(v *interview, p *plan, text string) error {
	main := orDefault(o.file)
	file := o.output
	if file == "" {
		file = filepath.Join(strings.TrimSuffix(main, ".toml")+".d", "modbus-"+fileName(p.port)+".toml")
	}
	if !o.write {
		if o.yes {
			return nil
		}
		answer, err := v.ask("\nWrite this to "+file+"? (y or n)", "n", func(a string) error {
			if a != "y" && a != "n" {
				return errors.New("y or n")
			}
			return nil
		})
		if err != nil || answer == "n" {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil { //nolint:gosec // beside the configuration, which others may read
		return err
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644) //nolint:gosec // as its folder
	if err != nil {
		return fmt.Errorf("not written, nothing is overwritten: %w", err)
	}
	_, err = f.WriteString(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(file))
	}
	if _, err := config.Load(main); err != nil && !(errors.Is(err, os.ErrNotExist) && o.file == "") {
		return &exitError{exitConfig, errors.Join(fmt.Errorf("taken back, the configuration would be wrong with it: %w", err), os.Remove(file))}
	}
	tell(v.out, "written to %s; `holdfast check %s` checks it, `systemctl reload holdfast` takes it over\n", file, main)
	return nil
}

// fileName is a name of a port as a part of one of a file.
func fileName(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x80 && bareKey.MatchString(string(r)) {
			return r
		}
		return '_'
	}, s)
}
