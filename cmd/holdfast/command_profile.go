package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"holdfast/adapters"
	"holdfast/adapters/modbus"
	"holdfast/adapters/modbus/profile"
	"holdfast/adapters/port"
	"holdfast/cmd/holdfast/config"
)

func profileCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "profile",
		Short: "Look at the register maps of known Modbus devices, and check your own",
		Long: `Look at the register maps of known Modbus devices, and check your own.

A device in the configuration names one: profile = "eastron/sdm120". Your own are
files NAME.toml or MAKER/NAME.toml in the folder profiles beside the configuration,
or where gateway.profiles says.

Exit codes: 0 done, 1 it did not work, 3 the profile or the configuration is wrong.`,
	}
	c.AddCommand(profileList(), profileShow(), profileCheck())
	return c
}

// profileFlags are those that all of them have.
type profileFlags struct {
	config string
	json   bool
}

func (f *profileFlags) flags(c *cobra.Command) {
	c.Flags().StringVar(&f.config, "config", config.DefaultFile, "configuration that says where your own profiles are")
	c.Flags().BoolVar(&f.json, "json", false, "print JSON")
}

// profiles are those that the configuration finds. Without one there are those
// of the program.
func (f *profileFlags) profiles(c *cobra.Command) (*config.Profiles, error) {
	ps, err := config.ProfilesOf(f.config)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !c.Flags().Changed("config"):
		return config.NewProfiles(config.DefaultProfiles(f.config), false), nil
	case err != nil:
		return nil, &exitError{exitConfig, err}
	}
	return ps, nil
}

// profilePoint is a point as JSON shows it.
type profilePoint struct {
	adapters.Point
	Register string  `json:"register"`
	Type     string  `json:"type"`
	Scale    float64 `json:"scale,omitempty"`
	Offset   float64 `json:"offset,omitempty"`
	Detail   bool    `json:"detail,omitempty"`
}

// profileInfo is a profile as JSON shows it.
type profileInfo struct {
	*profile.Profile
	Own    bool           `json:"own"`
	Points []profilePoint `json:"points"`
}

func infoOf(p *profile.Profile, own bool) (profileInfo, error) {
	info := profileInfo{Profile: p, Own: own, Points: []profilePoint{}}
	for _, pt := range p.Points {
		about, err := modbus.Describe(pt.Point)
		if err != nil {
			return profileInfo{}, err
		}
		typ := pt.Type
		if typ == "" {
			typ = about.Type
		}
		info.Points = append(info.Points, profilePoint{
			Point: about.Point, Register: pt.Register, Type: typ, Scale: pt.Scale, Offset: pt.Offset, Detail: pt.Detail,
		})
	}
	return info, nil
}

func profileList() *cobra.Command {
	var f profileFlags
	c := &cobra.Command{
		Use:   "list",
		Short: "List the profiles, yours too",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			ps, err := f.profiles(c)
			if err != nil {
				return err
			}
			own, err := ps.Own()
			if err != nil {
				return &exitError{exitConfig, err}
			}
			all, bad := ps.All() // one that is wrong hides no others
			type row struct {
				Name   string `json:"name"`
				Title  string `json:"title"`
				Points int    `json:"points"` // 0: the device says it
				Own    bool   `json:"own"`
			}
			rows := []row{}
			for _, p := range all {
				rows = append(rows, row{p.Name, p.Title, len(p.Points), slices.Contains(own, p.Name)})
			}
			rows = append(rows, row{Name: profile.SunSpecName, Title: "any SunSpec device; it says itself what it measures"})
			if f.json {
				err = printJSON(c.OutOrStdout(), rows)
			} else {
				t := tabwriter.NewWriter(c.OutOrStdout(), 0, 8, 2, ' ', 0)
				fmt.Fprintln(t, "profile\tpoints\tdevice")
				for _, r := range rows {
					title := r.Title
					if r.Own {
						title += " (your own)"
					}
					points := strconv.Itoa(r.Points)
					if r.Points == 0 {
						points = "-"
					}
					tell(t, "%s\t%s\t%s\n", r.Name, points, title)
				}
				err = t.Flush()
			}
			if bad != nil {
				return &exitError{exitConfig, errors.Join(err, bad)}
			}
			return err
		},
	}
	f.flags(c)
	return c
}

func profileShow() *cobra.Command {
	var f profileFlags
	c := &cobra.Command{
		Use:     "show NAME",
		Short:   "Show a profile: its points, registers and sources",
		Example: `  holdfast profile show eastron/sdm630`,
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			ps, err := f.profiles(c)
			if err != nil {
				return err
			}
			p, err := ps.Get(args[0])
			if err != nil {
				return &exitError{exitConfig, err}
			}
			own, err := ps.Own()
			if err != nil {
				return &exitError{exitConfig, err}
			}
			info, err := infoOf(p, slices.Contains(own, p.Name))
			if err != nil {
				return err
			}
			if f.json {
				return printJSON(c.OutOrStdout(), info)
			}
			return showProfile(c.OutOrStdout(), info)
		},
	}
	f.flags(c)
	return c
}

func showProfile(w io.Writer, p profileInfo) error {
	tell(w, "%s: %s\n", p.Name, p.Title)
	tell(w, "source: %s\n", p.Source)
	for _, other := range p.Checked {
		tell(w, "checked with: %s\n", other)
	}
	if s := p.Serial; s.Baud != 0 {
		tell(w, "leaves the factory with: %d baud, parity %s, %d stop bits\n", s.Baud, s.Parity, s.StopBits)
	}
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "point\tregister\ttype\tunit\tclass\tread")
	for _, pt := range p.Points {
		read := "always"
		if pt.Detail {
			read = "when chosen"
		}
		tell(t, "%s\t%s\t%s\t%s\t%s\t%s\n", pt.Name, pt.Register, pt.Type, pt.Unit, pt.DeviceClass, read)
	}
	return t.Flush()
}

// profileCost is what reading a device with a profile takes.
type profileCost struct {
	Profile  string        `json:"profile"`
	Points   int           `json:"points"`
	Requests []string      `json:"requests"`
	Baud     int           `json:"baud"`
	OnLine   time.Duration `json:"on_line_ns"`
	// All are the same with the details.
	AllPoints   int           `json:"all_points"`
	AllRequests int           `json:"all_requests"`
	AllOnLine   time.Duration `json:"all_on_line_ns"`
}

func profileCheck() *cobra.Command {
	var f profileFlags
	var baud int
	c := &cobra.Command{
		Use:   "check FILE",
		Short: "Check a profile of your own; every problem names file, line and key",
		Long: `Check a profile of your own: that its keys are known and its registers, types, units
and classes right. Then it says how many requests read a device of this kind once,
and how long they keep a serial line busy when the device answers at once.`,
		Example: `  holdfast profile check ./profiles/boiler.toml`,
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			p, err := config.LoadProfile(args[0], "")
			if err != nil {
				return &exitError{exitConfig, err}
			}
			cost, err := costOf(p, baud)
			if err != nil {
				return &exitError{exitConfig, err}
			}
			if f.json {
				return printJSON(c.OutOrStdout(), cost)
			}
			tell(c.OutOrStdout(), "%s: ok: %s\n", args[0], p.Title)
			tell(c.OutOrStdout(), "%d points in %d requests, %v of the line at %d baud:\n", cost.Points, len(cost.Requests), cost.OnLine.Round(time.Millisecond), cost.Baud)
			for _, r := range cost.Requests {
				tell(c.OutOrStdout(), "  %s\n", r)
			}
			if cost.AllPoints > cost.Points {
				tell(c.OutOrStdout(), "with the details %d points in %d requests, %v\n", cost.AllPoints, cost.AllRequests, cost.AllOnLine.Round(time.Millisecond))
			}
			return nil
		},
	}
	c.Flags().BoolVar(&f.json, "json", false, "print JSON")
	c.Flags().IntVar(&baud, "baud", 0, "baud rate of the line; 0: the profile's, else 9600")
	return c
}

func costOf(p *profile.Profile, baud int) (profileCost, error) {
	line := port.DefaultOptions()
	line.Device = "/dev/null" // it is not opened
	if p.Serial.Baud != 0 {
		line.Baud = p.Serial.Baud
	}
	if baud != 0 {
		line.Baud = baud
	}
	if p.Serial.Parity != "" {
		line.Parity = p.Serial.Parity
	}
	if p.Serial.StopBits != 0 {
		line.StopBits = p.Serial.StopBits
	}
	if err := line.Validate(); err != nil {
		return profileCost{}, err
	}
	cost := profileCost{Profile: p.Name, Baud: line.Baud, Requests: []string{}}
	count := func(choose []string) (points int, requests []modbus.Request, busy time.Duration, err error) {
		d, err := p.Device(choose)
		if err != nil {
			return 0, nil, 0, err
		}
		requests, err = modbus.Plan(d)
		for _, r := range requests {
			busy += r.TimeOnLine(line.CharTime())
		}
		return len(d.Points), requests, busy, err
	}
	points, requests, busy, err := count(nil)
	if err != nil {
		return profileCost{}, err
	}
	cost.Points, cost.OnLine = points, busy
	for _, r := range requests {
		_, text, _ := strings.Cut(r.String(), "unit 1 ")
		cost.Requests = append(cost.Requests, text)
	}
	points, requests, busy, err = count([]string{"*"})
	cost.AllPoints, cost.AllRequests, cost.AllOnLine = points, len(requests), busy
	return cost, err
}
