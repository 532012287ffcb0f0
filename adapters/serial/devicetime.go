package serial

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"holdfast/adapters/reading"
)

// Formats of a time that are no patterns.
const (
	TimeUnix        = "unix"
	TimeUnixMillis  = "unix_ms"
	TimeRFC3339     = "rfc3339"
	timeDirectives  = "YymdHMSfz"
	dateDirectives  = "Yymd"
	maxTimeFormat   = 128
	maxTimeDistance = 8760 * time.Hour
)

// deviceTime reads the time at which a device says it measured.
type deviceTime struct {
	format    string
	zone      *time.Location
	tolerance time.Duration
	dated     bool // the pattern has a date
}

// newDeviceTime checks the options that are about the device's clock.
func newDeviceTime(o *Options) (*deviceTime, error) {
	t := &deviceTime{format: o.TimeFormat, tolerance: o.TimeTolerance}
	if o.TimeTolerance < 0 || o.TimeTolerance > maxTimeDistance {
		return nil, fmt.Errorf("time_tolerance: %v is outside 0s..%v", o.TimeTolerance, maxTimeDistance)
	}
	var err error
	if t.zone, err = zone(o.TimeZone); err != nil {
		return nil, fmt.Errorf("time_zone: %w", err)
	}
	switch o.TimeFormat {
	case TimeUnix, TimeUnixMillis, TimeRFC3339:
		return t, nil
	}
	if len(o.TimeFormat) > maxTimeFormat || !strings.Contains(o.TimeFormat, "%") {
		return nil, fmt.Errorf(`time_format: %s is none of "unix", "unix_ms", "rfc3339", and no pattern such as "%%Y-%%m-%%d %%H:%%M:%%S"`, short(o.TimeFormat))
	}
	seen := ""
	for _, part := range strings.Split(o.TimeFormat, "%")[1:] {
		if part == "" || !strings.Contains(timeDirectives, part[:1]) {
			return nil, fmt.Errorf("time_format: %s: there is %%Y %%y %%m %%d %%H %%M %%S %%f %%z, and nothing else", short(o.TimeFormat))
		}
		if strings.Contains(seen, part[:1]) {
			return nil, fmt.Errorf("time_format: %s has %%%s twice", short(o.TimeFormat), part[:1])
		}
		seen += part[:1]
	}
	t.dated = strings.ContainsAny(seen, dateDirectives)
	if t.dated && (!strings.ContainsAny(seen, "Yy") || !strings.Contains(seen, "m") || !strings.Contains(seen, "d")) {
		return nil, fmt.Errorf("time_format: %s has a part of a date; a year, %%m and %%d are needed, or none of them", short(o.TimeFormat))
	}
	if !strings.Contains(seen, "H") {
		return nil, fmt.Errorf("time_format: %s has no %%H", short(o.TimeFormat))
	}
	return t, nil
}

func zone(s string) (*time.Location, error) {
	if s != "" && (s[0] == '+' || s[0] == '-') {
		t, err := time.Parse("-07:00", s)
		if err != nil {
			return nil, fmt.Errorf("%q is not an offset such as +01:00", s)
		}
		return t.Location(), nil
	}
	if s == "" {
		return nil, errors.New(`is empty; expected "UTC", "Local", "+01:00" or a name such as "Europe/Berlin"`)
	}
	loc, err := time.LoadLocation(s)
	if err != nil {
		return nil, fmt.Errorf("%q is not known here: %w", s, err)
	}
	return loc, nil
}

// read reads the time that stands in a frame which came at now.
func (d *deviceTime) read(s string, now time.Time) (t time.Time, err error) {
	switch d.format {
	case TimeUnix, TimeUnixMillis:
		f, err := strconv.ParseFloat(s, 64)
		if err != nil || !isDecimal(s) {
			return t, fmt.Errorf("%s is not a Unix time", short(s))
		}
		if d.format == TimeUnix {
			f *= 1e3
		}
		if f < 0 || f > 1e14 { // the year 5138
			return t, fmt.Errorf("%s is not a Unix time of these centuries", short(s))
		}
		return time.UnixMicro(int64(f * 1e3)), nil
	case TimeRFC3339:
		if t, err = time.Parse(time.RFC3339, s); err != nil {
			return t, fmt.Errorf("%s is not a time of RFC 3339", short(s))
		}
		return t, nil
	}
	return d.pattern(s, now)
}

// pattern reads a time by the directives of the format.
func (d *deviceTime) pattern(s string, now time.Time) (t time.Time, err error) {
	wrong := fmt.Errorf("%s is not a time as %q says", short(s), d.format)
	zone := d.zone
	year, month, day := now.In(zone).Date()
	v := map[byte]int{'m': int(month), 'd': day}
	var nanos int
	literal, directives, _ := strings.Cut(d.format, "%")
	s, ok := strings.CutPrefix(s, literal)
	if !ok {
		return t, wrong
	}
	for part := range strings.SplitSeq(directives, "%") {
		c, literal := part[0], part[1:]
		switch c {
		case 'z':
			n := 1 // Z
			if s != "" && s[0] != 'Z' {
				n = min(len(s), len("+01:00"))
				if n < len("+01:00") || s[3] != ':' {
					n = min(n, len("+0100"))
				}
			}
			if len(s) < n {
				return t, wrong
			}
			z, err := time.Parse("Z0700", strings.Replace(s[:n], ":", "", 1))
			if err != nil {
				return t, wrong
			}
			zone, s = z.Location(), s[n:]
		case 'f':
			n := 0
			for n < len(s) && n < 9 && s[n] >= '0' && s[n] <= '9' {
				nanos = nanos*10 + int(s[n]-'0')
				n++
			}
			if n == 0 {
				return t, wrong
			}
			for range 9 - n {
				nanos *= 10
			}
			s = s[n:]
		default:
			n := 2
			if c == 'Y' {
				n = 4
			}
			x, ok := digits(s, n)
			if !ok {
				return t, wrong
			}
			v[c], s = x, s[n:]
		}
		if s, ok = strings.CutPrefix(s, literal); !ok {
			return t, wrong
		}
	}
	if y, ok := v['Y']; ok {
		year = y
	} else if y, ok := v['y']; ok {
		year = 2000 + y
	}
	if s != "" {
		return t, wrong
	}
	t = time.Date(year, time.Month(v['m']), v['d'], v['H'], v['M'], v['S'], nanos, zone)
	if !d.dated {
		// The nearest one: just after midnight a device may still speak of
		// yesterday.
		for _, other := range []time.Time{t.AddDate(0, 0, -1), t.AddDate(0, 0, 1)} {
			if other.Sub(now).Abs() < t.Sub(now).Abs() {
				t = other
			}
		}
		return t, d.within(v, wrong)
	}
	if t.Day() != v['d'] || t.Month() != time.Month(v['m']) {
		return t, wrong // the 31st of a month that has 30
	}
	return t, d.within(v, wrong)
}

// within says whether the parts of a time of day are those of one. Second 60
// is a leap second.
func (*deviceTime) within(v map[byte]int, wrong error) error {
	if v['H'] > 23 || v['M'] > 59 || v['S'] > 60 {
		return wrong
	}
	return nil
}

func digits(s string, n int) (v int, ok bool) {
	if len(s) < n {
		return 0, false
	}
	for _, c := range []byte(s[:n]) {
		if c < '0' || c > '9' {
			return 0, false
		}
		v = v*10 + int(c-'0')
	}
	return v, true
}

// believe says whether a device's time may be true.
func (d *deviceTime) believe(t time.Time, at reading.Stamp) error {
	if far := t.Sub(at.Wall).Abs(); at.Synchronised && d.tolerance > 0 && far > d.tolerance {
		return fmt.Errorf("device's clock is %v off", far.Round(time.Second))
	}
	return nil
}
