package serial

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// use is when a key has a meaning.
type use struct {
	of string // the key it depends on
	// only are the values of that key with which it has one, except those
	// with which it has none. With neither: it must not be empty.
	only, except []string
}

// uses has the keys of Options that have a meaning only sometimes. A key that
// is in vain shows that its author takes the device for another.
var uses = map[string]use{
	"frame_timeout":  {of: "framing", except: []string{FramingSilence}},
	"delimiter":      {of: "framing", only: []string{FramingDelimiter}},
	"sync":           {of: "framing", only: []string{FramingFixed, FramingLength}},
	"length":         {of: "framing", only: []string{FramingFixed}},
	"length_offset":  {of: "framing", only: []string{FramingLength}},
	"length_size":    {of: "framing", only: []string{FramingLength}},
	"length_order":   {of: "framing", only: []string{FramingLength}},
	"length_adjust":  {of: "framing", only: []string{FramingLength}},
	"start":          {of: "framing", only: []string{FramingStartEnd}},
	"end":            {of: "framing", only: []string{FramingStartEnd}},
	"escape":         {of: "framing", only: []string{FramingStartEnd}},
	"escape_xor":     {of: "framing", only: []string{FramingStartEnd}},
	"trailer":        {of: "framing", only: []string{FramingStartEnd}},
	"silence":        {of: "framing", only: []string{FramingSilence}},
	"frame_pattern":  {of: "framing", only: []string{FramingRegexp}},
	"check":          {of: "framing", except: []string{FramingIEC62056}},
	"check_encoding": {of: "check"},
	"check_order":    {of: "check"},
	"check_at":       {of: "check"},
	"check_from":     {of: "check"},
	"check_to":       {of: "check"},
	"pattern":        {of: "format", only: []string{FormatRegexp}},
	"pair_separator": {of: "format", only: []string{FormatKeyValue}},
	"key_separator":  {of: "format", only: []string{FormatKeyValue}},
	"separator":      {of: "format", only: []string{FormatCSV}},
	"columns":        {of: "format", only: []string{FormatCSV}},
	"header":         {of: "format", only: []string{FormatCSV}},
	"decimal":        {of: "format", except: []string{FormatBinary}},
	"thousands":      {of: "format", except: []string{FormatBinary}},
	"sign_after":     {of: "format", except: []string{FormatBinary}},
	"time":           {of: "format", except: []string{FormatBinary}},
	"time_format":    {of: "time"},
	"time_zone":      {of: "time"},
	"time_tolerance": {of: "time"},
}

// pointUses are the same for the keys of a point.
var pointUses = map[string]use{
	"field":    {of: "format", except: []string{FormatBinary}},
	"at":       {of: "format", only: []string{FormatBinary}},
	"length":   {of: "type", only: []string{TypeString, TypeBCD}},
	"bit":      {of: "type", only: unsignedTypes},
	"bits":     {of: "type", only: unsignedTypes},
	"order":    {of: "type", only: orderedTypes},
	"suffixes": {of: "type", only: []string{TypeNumber}},
}

// Useless says why a key that stands in the configuration of the device has no
// meaning there; nil if it has one.
func (o *Options) Useless(key string) error {
	u, ok := uses[key]
	if !ok {
		return nil
	}
	return u.check(map[string]string{"framing": o.Framing, "format": o.Format, "check": o.Check, "time": o.Time})
}

// UselessInPoint is the same for a key of a point.
func (o *Options) UselessInPoint(p *Point, key string) error {
	u, ok := pointUses[key]
	if !ok {
		return nil
	}
	typ := p.Type
	if kind, ok := formats[o.Format]; ok && typ == "" {
		typ = kind.types[0]
	}
	return u.check(map[string]string{"format": o.Format, "type": typ})
}

func (u use) check(values map[string]string) error {
	v := values[u.of]
	switch {
	case u.only != nil && !slices.Contains(u.only, v):
		return fmt.Errorf("has no use with %s %q, only with %s", u.of, v, strings.Join(u.only, ", "))
	case u.only == nil && u.except == nil && v == "":
		return fmt.Errorf("has no use without %s", u.of)
	case slices.Contains(u.except, v):
		return fmt.Errorf("has no use with %s %q", u.of, v)
	}
	return nil
}

// useless finds a key that has been given another value than its default and
// has no meaning.
func (o *Options) useless() error {
	err := changed(reflect.ValueOf(*o), reflect.ValueOf(DefaultOptions()), o.Useless)
	if err != nil {
		return err
	}
	for i := range o.Points {
		p := &o.Points[i]
		err := changed(reflect.ValueOf(*p), reflect.ValueOf(Point{}), func(key string) error { return o.UselessInPoint(p, key) })
		if err != nil {
			return fmt.Errorf("point[%d].%w", i, err)
		}
	}
	return nil
}

func changed(v, def reflect.Value, useless func(key string) error) error {
	for i := range v.NumField() {
		key := v.Type().Field(i).Tag.Get("toml")
		if reflect.DeepEqual(v.Field(i).Interface(), def.Field(i).Interface()) {
			continue
		}
		if err := useless(key); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
	}
	return nil
}
