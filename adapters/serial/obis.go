package serial

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// obisFormat finds fields by their OBIS codes in the telegrams of electricity
// meters: the P1 port (DSMR 2.2 to 5, and its kin in Belgium and Luxembourg), and
// what IEC 62056-21 meters send by themselves (mode D). An object is a code with
// values in parentheses behind it:
//
//	1-0:1.8.1(000123.456*kWh)                          a number with its unit
//	0-1:24.2.1(101209112500W)(12785.123*m3)            a gas meter: when, and what
//	0-1:24.3.0(090212160000)(00)(60)(1)(0-1:24.2.1)(m3) the same in DSMR 2.2,
//	(00000.000)                                        on two lines
//
// A point's field is a code: its value is the last one, or that of a place counted
// from 0, "0-1:24.2.1[0]". A code without medium and channel ("1.8.1") stands for
// the first object that ends in it; "*255" at the end may be left out.
//
// The clock of the meter, 0-0:1.0.0 with W (winter) or S (summer) at its end, is the
// time of the readings; those letters are of central European time. Text values are
// as in the telegram: equipment numbers are hexadecimal there.
type obisFormat struct {
	wanted []obisField
	objs   []obisObject // of the frame in hand
}

type obisField struct {
	code  string
	index int // -1: the last
	any   bool
}

type obisObject struct {
	code   []byte
	groups [][]byte
	unit   []byte // from another line
}

// maxGroups bounds the values of an object: the longest is a list of ten power
// failures (DSMR P1 5.0.2 §6.12) with two for each.
const maxGroups = 64

var errNoObjects = errors.New("frame has no object such as 1-0:1.8.0(...)")

func newOBISFormat(_ *Options, points []point) (format, error) {
	f := &obisFormat{}
	for i, p := range points {
		w, err := parseOBISField(p.Field)
		if err != nil {
			return nil, fmt.Errorf("point[%d].field: %w", i, err)
		}
		f.wanted = append(f.wanted, w)
	}
	return f, nil
}

func parseOBISField(s string) (obisField, error) {
	f := obisField{code: s, index: -1}
	if rest, ok := strings.CutSuffix(s, "]"); ok {
		code, number, found := strings.Cut(rest, "[")
		n, err := strconv.Atoi(number)
		if !found || err != nil || n < 0 || n >= maxGroups {
			return f, fmt.Errorf("%q has no place 0 to %d in brackets", s, maxGroups-1)
		}
		f.code, f.index = code, n
	}
	if f.code == "" || strings.Trim(f.code, "0123456789ABCDEFabcdef-:.*") != "" {
		return f, fmt.Errorf("%q is no OBIS code such as 1-0:1.8.1", s)
	}
	f.any = !strings.Contains(f.code, ":")
	return f, nil
}

// parse reads the objects of a telegram.
func (f *obisFormat) parse(frame []byte) (fields, error) {
	f.objs = f.objs[:0]
	for line := range bytes.Lines(frame) {
		line = bytes.Trim(line, " \r\n\x02\x03")
		if len(line) == 0 || line[0] == '/' {
			continue // the meter's name
		}
		if line[0] == '!' {
			break
		}
		if err := f.line(line); err != nil {
			return fields{}, err
		}
	}
	if len(f.objs) == 0 {
		return fields{}, errNoObjects
	}
	out := fields{get: f.get, unit: f.unit}
	if o := f.find(obisField{code: "0-0:1.0.0", index: -1}); o != nil {
		out.time = p1Time(o.groups[len(o.groups)-1])
	}
	return out, nil
}

// line takes the objects of a line. What stands before the first parenthesis is a
// code; without one, its values belong to the object before.
func (f *obisFormat) line(line []byte) error {
	for len(line) > 0 {
		open := bytes.IndexByte(line, '(')
		if open < 0 {
			if len(f.objs) == 0 {
				return nil // the rest of the meter's name
			}
			return fmt.Errorf("%s is no object", short(string(line)))
		}
		if code := bytes.TrimSpace(line[:open]); len(code) > 0 {
			f.objs = append(f.objs, obisObject{code: code})
		} else if len(f.objs) == 0 {
			return fmt.Errorf("%s has no code", short(string(line)))
		} else if o := &f.objs[len(f.objs)-1]; len(o.groups) > 0 {
			o.unit = o.groups[len(o.groups)-1]
		}
		o := &f.objs[len(f.objs)-1]
		line = line[open:]
		for len(line) > 0 && line[0] == '(' {
			end := bytes.IndexByte(line, ')')
			if end < 0 {
				return fmt.Errorf("%s is cut off", short(string(o.code)))
			}
			if len(o.groups) == maxGroups {
				return fmt.Errorf("%s has more than %d values", short(string(o.code)), maxGroups)
			}
			o.groups = append(o.groups, line[1:end])
			line = line[end+1:]
		}
	}
	return nil
}

// find returns the object of a field; nil for none.
func (f *obisFormat) find(w obisField) *obisObject {
	for i := range f.objs {
		if w.matches(string(f.objs[i].code)) {
			return &f.objs[i]
		}
	}
	return nil
}

// matches says whether the field means an object of that code.
func (w *obisField) matches(code string) bool {
	if !strings.Contains(w.code, "*") {
		code, _, _ = strings.Cut(code, "*")
	}
	return code == w.code || w.any && strings.HasSuffix(code, ":"+w.code)
}

// value cuts the unit off a value.
func (f *obisFormat) value(i int) (v, unit string, ok bool) {
	w := f.wanted[i]
	o := f.find(w)
	if o == nil || w.index >= len(o.groups) {
		return "", "", false
	}
	group := o.groups[len(o.groups)-1]
	if w.index >= 0 {
		group = o.groups[w.index]
	}
	v, unit, ok = strings.Cut(string(group), "*")
	if !ok && w.index < 0 {
		unit = string(o.unit)
	}
	return v, unit, true
}

func (f *obisFormat) get(i int) (any, bool) {
	v, _, ok := f.value(i)
	switch {
	case !ok:
		return nil, false
	case v == "":
		return nil, true // such as a message that is empty
	}
	return v, true
}

func (f *obisFormat) unit(i int) string {
	_, unit, _ := f.value(i)
	return unit
}

// p1Time reads YYMMDDhhmmssX, X being W or S; zero where there is none.
func p1Time(b []byte) time.Time {
	if len(b) != 13 {
		return time.Time{}
	}
	hours := 1
	switch b[12] {
	case 'W':
	case 'S':
		hours = 2
	default:
		return time.Time{}
	}
	t, err := time.ParseInLocation("060102150405", string(b[:12]), time.FixedZone("", hours*3600))
	if err != nil {
		return time.Time{}
	}
	return t
}
