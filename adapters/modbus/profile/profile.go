package profile

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"holdfast/adapters"
	"holdfast/adapters/modbus"
)

//go:embed maps
var maps embed.FS

// Suffix is what the names of the files end in.
const Suffix = ".toml"

// Embedded lists the names of the maps that are part of the program, in order.
func Embedded() []string {
	var names []string
	err := fs.WalkDir(maps, "maps", func(p string, e fs.DirEntry, err error) error {
		if name, ok := strings.CutSuffix(p, Suffix); ok && err == nil && !e.IsDir() {
			names = append(names, strings.TrimPrefix(name, "maps/"))
		}
		return err
	})
	if err != nil {
		panic("profile: " + err.Error()) // the program's own files
	}
	return names
}

// Open returns the file of an embedded map; ok is false when there is none.
func Open(name string) (data []byte, ok bool) {
	data, err := maps.ReadFile(path.Join("maps", name+Suffix))
	return data, err == nil
}

var validName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]*(/[a-z0-9][a-z0-9_-]*)?$`)

// ValidName says whether name can be that of a profile: "model" or
// "maker/model", of lower case letters, digits, - and _.
func ValidName(name string) bool { return len(name) <= 100 && validName.MatchString(name) }

// Profile is the register map of a kind of device.
type Profile struct {
	// Name is what devices are configured with: "eastron/sdm120".
	Name string `toml:"-" json:"name"`
	// Title names the device for people.
	Title string `toml:"title" json:"title"`
	// Source is where the map is from: the manual's title and revision, or a
	// public repository with the file. Checked are the other sources that agree
	// with it.
	Source  string   `toml:"source" json:"source"`
	Checked []string `toml:"checked" json:"checked,omitempty"`
	// Serial is how the device leaves the factory.
	Serial Serial `toml:"serial" json:"serial,omitzero"`

	// What follows are the settings of modbus.Device that the device needs.
	Order        string        `toml:"order" json:"order,omitempty"`
	MaxGap       *int          `toml:"max_gap" json:"max_gap,omitempty"`
	MaxRegisters int           `toml:"max_registers" json:"max_registers,omitempty"`
	Timeout      time.Duration `toml:"timeout" json:"timeout_ns,omitempty"`
	Pause        time.Duration `toml:"pause" json:"pause_ns,omitempty"`
	Holes        []string      `toml:"holes" json:"holes,omitempty"`

	// Identify are the signs by which the device is recognised; all must fit.
	Identify []Sign `toml:"identify" json:"identify,omitempty"`
	// Points are what the device has.
	Points []Point `toml:"point" json:"points"`
}

// Serial are the settings of a serial line. The zero value says nothing.
type Serial struct {
	Baud     int    `toml:"baud" json:"baud,omitempty"`
	Parity   string `toml:"parity" json:"parity,omitempty"`
	StopBits int    `toml:"stop_bits" json:"stop_bits,omitempty"`
}

// Point is one point of a profile.
type Point struct {
	modbus.Point
	// Detail says that it is read only where the configuration asks for it.
	Detail bool `toml:"detail"`
}

// Validate reports the first thing wrong with the profile, naming its key:
// "point[3].unit: ...".
func (p *Profile) Validate() error {
	switch {
	case !ValidName(p.Name):
		return fmt.Errorf("name: %q is not MODEL or MAKER/MODEL in lower case letters, digits, - and _", p.Name)
	case p.Title == "":
		return errors.New("title: is missing")
	case p.Source == "":
		return errors.New("source: is missing; where are the registers from?")
	case p.Serial.Baud < 0 || p.Serial.Baud > 4_000_000:
		return fmt.Errorf("serial.baud: %d is outside 0..4000000", p.Serial.Baud)
	case !slices.Contains([]string{"", "none", "odd", "even", "mark", "space"}, p.Serial.Parity):
		return fmt.Errorf("serial.parity: %q is none of none, odd, even, mark, space", p.Serial.Parity)
	case p.Serial.StopBits < 0 || p.Serial.StopBits > 2:
		return fmt.Errorf("serial.stop_bits: %d is outside 0..2", p.Serial.StopBits)
	}
	d := p.device(p.all())
	if err := d.Validate(); err != nil {
		text := strings.TrimPrefix(err.Error(), "device."+d.Name+".")
		return errors.New(text)
	}
	for i, pt := range p.Points {
		if pt.Unit != "" && !adapters.KnownUnit(pt.Unit) {
			return fmt.Errorf("point[%d].unit: %q is none of the units of profiles", i, pt.Unit)
		}
	}
	for i := range p.Identify {
		if err := p.Identify[i].validate(p.Order); err != nil {
			return fmt.Errorf("identify[%d].%w", i, err)
		}
	}
	return nil
}

// all are the points as the bus knows them.
func (p *Profile) all() []modbus.Point {
	points := make([]modbus.Point, len(p.Points))
	for i, pt := range p.Points {
		points[i] = pt.Point
	}
	return points
}

// device is one of this kind with these points, at address 1.
func (p *Profile) device(points []modbus.Point) *modbus.Device {
	d := modbus.DefaultDevice()
	d.Name, d.Unit = "profile", 1
	p.settings(&d)
	d.Points = points
	return &d
}

// Device is one of this kind with the points that choose selects, for
// forecasts and tests.
func (p *Profile) Device(choose []string) (*modbus.Device, error) {
	points, err := p.Select(choose)
	if err != nil {
		return nil, err
	}
	return p.device(points), nil
}

func (p *Profile) settings(d *modbus.Device) {
	if p.Order != "" {
		d.Order = p.Order
	}
	if p.MaxGap != nil {
		d.MaxGap = new(*p.MaxGap)
	}
	if p.MaxRegisters != 0 {
		d.MaxRegisters = p.MaxRegisters
	}
	if p.Timeout != 0 {
		d.Timeout = p.Timeout
	}
	if p.Pause != 0 {
		d.Pause = p.Pause
	}
	if p.Holes != nil {
		d.Holes = slices.Clone(p.Holes)
	}
}

// Apply gives d the settings and the points of the profile. choose are patterns
// of names ("power*"), each of which must match a point; none means all
// points but the details.
func (p *Profile) Apply(d *modbus.Device, choose []string) error {
	points, err := p.Select(choose)
	if err != nil {
		return err
	}
	p.settings(d)
	d.Points = points
	return nil
}

// Select returns the points that choose selects, as in Apply. Its error names
// the pattern.
func (p *Profile) Select(choose []string) ([]modbus.Point, error) {
	names := make([]string, len(p.Points))
	for i, pt := range p.Points {
		names[i] = pt.Name
	}
	chosen, err := chosen(choose, names, func(i int) bool { return p.Points[i].Detail })
	if err != nil {
		return nil, err
	}
	points := make([]modbus.Point, 0, len(chosen))
	for _, i := range chosen {
		points = append(points, p.Points[i].Point)
	}
	return points, nil
}

// chosen returns the indexes of the names that the patterns select.
func chosen(patterns, names []string, detail func(i int) bool) ([]int, error) {
	matched := make([]bool, len(patterns))
	var chosen []int
	for i, name := range names {
		if len(patterns) == 0 {
			if !detail(i) {
				chosen = append(chosen, i)
			}
			continue
		}
		hit := false
		for j, pattern := range patterns {
			ok, err := path.Match(pattern, name)
			if err != nil {
				return nil, fmt.Errorf("%q is no pattern such as \"power*\"", pattern)
			}
			matched[j] = matched[j] || ok
			hit = hit || ok
		}
		if hit {
			chosen = append(chosen, i)
		}
	}
	for j, pattern := range patterns {
		if !matched[j] {
			return nil, fmt.Errorf("%q matches no point; there are %s", pattern, strings.Join(names, ", "))
		}
	}
	return chosen, nil
}
