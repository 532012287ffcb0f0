package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"holdfast/adapters/modbus"
	"holdfast/adapters/modbus/profile"
)

// maxProfiles bounds the profiles taken from a folder.
const maxProfiles = 1000

// DefaultProfiles is the folder of the user's own profiles where the
// configuration names none: beside its file.
func DefaultProfiles(file string) string { return filepath.Join(filepath.Dir(file), "profiles") }

// Profiles are the register maps that devices can name: the user's own, in a
// folder, and those that are part of the program. The user's own are first.
type Profiles struct {
	dir      string
	required bool
	read     map[string]*profile.Profile
}

// NewProfiles returns the profiles of a folder, which may be missing unless
// required, and of the program.
func NewProfiles(dir string, required bool) *Profiles {
	return &Profiles{dir: dir, required: required, read: map[string]*profile.Profile{}}
}

// ProfilesOf returns the profiles that a configuration can name. Nothing of it is
// read but where they are.
func ProfilesOf(file string) (*Profiles, error) {
	root, err := load(file)
	if err != nil {
		return nil, err
	}
	return profilesUnder(root), nil
}

func profilesUnder(root *node) *Profiles {
	dir, named := folderOf(root)
	if !named {
		dir = DefaultProfiles(root.at.file)
	}
	return NewProfiles(dir, named)
}

// Get returns a profile by its name.
func (ps *Profiles) Get(name string) (*profile.Profile, error) {
	if p := ps.read[name]; p != nil {
		return p, nil
	}
	p, err := ps.load(name)
	if err != nil {
		return nil, err
	}
	ps.read[name] = p
	return p, nil
}

func (ps *Profiles) load(name string) (*profile.Profile, error) {
	if name == profile.SunSpecName {
		return nil, errors.New("sunspec has no register map: the device says what it has")
	}
	if !profile.ValidName(name) {
		return nil, fmt.Errorf("%q is no name of a profile, such as \"eastron/sdm120\"", name)
	}
	if ps.dir != "" {
		path := filepath.Join(ps.dir, filepath.FromSlash(name)+profile.Suffix)
		switch _, err := os.Stat(path); {
		case err == nil:
			return LoadProfile(path, name)
		case !errors.Is(err, fs.ErrNotExist):
			return nil, err
		}
	}
	data, ok := profile.Open(name)
	if !ok {
		names, _ := ps.Names()
		return nil, fmt.Errorf("there is no profile %q%s", name, suggest(name, append(names, profile.SunSpecName)))
	}
	return decodeProfile(name+profile.Suffix, name, data)
}

// Names lists all profiles, in order.
func (ps *Profiles) Names() ([]string, error) {
	names := profile.Embedded()
	own, err := ps.Own()
	names = append(names, own...)
	slices.Sort(names)
	return slices.Compact(names), err
}

// Own lists the profiles in the folder, in order.
func (ps *Profiles) Own() ([]string, error) {
	if ps.dir == "" {
		return nil, nil
	}
	var names []string
	err := filepath.WalkDir(ps.dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if len(names) == maxProfiles {
			return fmt.Errorf("%s: more than %d profiles", ps.dir, maxProfiles)
		}
		rel, err := filepath.Rel(ps.dir, path)
		if err != nil {
			return err
		}
		name, isProfile := strings.CutSuffix(filepath.ToSlash(rel), profile.Suffix)
		if isProfile && !e.IsDir() {
			if !profile.ValidName(name) || name == profile.SunSpecName {
				return fmt.Errorf("%s: a profile is MODEL.toml or MAKER/MODEL.toml, in lower case letters, digits, - and _", path)
			}
			names = append(names, name)
		}
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) && !ps.required {
		err = nil
	}
	slices.Sort(names)
	return names, err
}

// All reads all profiles, in order.
func (ps *Profiles) All() ([]*profile.Profile, error) {
	names, err := ps.Names()
	errs := []error{err}
	var all []*profile.Profile
	for _, name := range names {
		p, err := ps.Get(name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		all = append(all, p)
	}
	return all, errors.Join(errs...)
}

// LoadProfile reads a profile from a file. Its name is the file's unless one is
// given. Every problem names file, line and key.
func LoadProfile(path, name string) (*profile.Profile, error) {
	if name == "" {
		name = strings.TrimSuffix(filepath.Base(path), profile.Suffix)
	}
	data, err := readRegular(path, maxFile)
	if err != nil {
		return nil, err
	}
	return decodeProfile(path, name, data)
}

func decodeProfile(file, name string, data []byte) (*profile.Profile, error) {
	root, err := parse(file, data)
	if err != nil {
		return nil, err
	}
	p := &profile.Profile{}
	d := decoder{places: map[string]position{}}
	d.decode("", root, reflect.ValueOf(p).Elem())
	if len(d.problems) > 0 {
		return nil, d.err()
	}
	p.Name = name
	if err := p.Validate(); err != nil {
		d.place(err, file)
		return nil, d.err()
	}
	return p, nil
}

// folderOf returns the folder of the profiles that the configuration under root
// names, and whether it names one.
func folderOf(root *node) (dir string, named bool) {
	table, _ := root.value.(map[string]*node)
	gateway := table["gateway"]
	if gateway == nil {
		return "", false
	}
	if table, ok := gateway.value.(map[string]*node); ok && table["profiles"] != nil {
		dir, _ = table["profiles"].value.(string)
		dir, _, err := resolve(dir)
		return dir, err == nil && dir != ""
	}
	return "", false
}

// Choice is the profile of a device and what of it is read.
type Choice struct {
	// Profile is its name; empty for none.
	Profile string `toml:"profile"`
	// Points are patterns of the names of the profile's points that are read;
	// none means all but the details.
	Points []string `toml:"points"`
}

// applyProfile gives dev what its profile says; the keys of the device, decoded
// after, come on top.
func (d *decoder) applyProfile(key string, table map[string]*node, c *Choice, dev *modbus.Device) {
	choice := fieldsOf(reflect.ValueOf(c).Elem())
	for _, k := range []string{"profile", "points"} {
		if table[k] != nil {
			d.decode(join(key, k), table[k], choice[k])
		}
	}
	switch {
	case c.Profile == "" && len(c.Points) > 0:
		d.problem(table["points"].at, join(key, "points"), "chooses among the points of a profile, and there is none")
	case c.Profile == "":
	case c.Profile == profile.SunSpecName:
		dev.Discover = profile.SunSpec{Points: c.Points}
		// The models are read as they are: a scale factor stands beside its
		// values.
		dev.MaxGap = new(modbus.MaxReadRegisters - 1)
	default:
		p, err := d.profiles.Get(c.Profile)
		if err != nil {
			d.problem(table["profile"].at, join(key, "profile"), "%v", err)
			return
		}
		if err := p.Apply(dev, c.Points); err != nil {
			d.problem(d.places[join(key, "points")], join(key, "points"), "%v", err)
		}
	}
}

// points decodes the points of a device over those of its profile: one with the
// name of a profile's is that one with other settings.
func (d *decoder) points(key string, n *node, dev *modbus.Device) {
	list, ok := n.value.([]*node)
	if !ok {
		d.problem(n.at, key, "expected an array, found %s", describe(n))
		return
	}
	d.places[key] = n.at
	// The device's own stand first, so that their numbers are those in the file.
	own := make([]modbus.Point, len(list))
	rest := dev.Points
	for i, el := range list {
		if table, ok := el.value.(map[string]*node); ok && table["name"] != nil {
			name, _ := table["name"].value.(string)
			if at := slices.IndexFunc(rest, func(p modbus.Point) bool { return p.Name == name }); at >= 0 {
				own[i] = rest[at]
				rest = slices.Delete(slices.Clone(rest), at, at+1)
			}
		}
		d.decode(index(key, i), el, reflect.ValueOf(&own[i]).Elem())
	}
	dev.Points = slices.Concat(own, rest)
}
