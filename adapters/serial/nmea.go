package serial

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// nmeaFormat finds fields in the sentences of NMEA 0183: receivers of satellites,
// wind sensors, echo sounders, weather stations. A sentence is a frame:
//
//	$GPRMC,123519,A,4807.038,N,01131.000,E,022.4,084.4,230394,003.1,W*6A
//
// A point's field is the type of a sentence, from whichever talker or from one
// ("RMC", "GPRMC"), and a name or the number of one of its columns, from 1:
// "RMC.latitude", "MWV.3". Where sentences of one type differ in a column,
// "MWV[R].angle" means those in which one is "R". Positions are in degrees, south
// and west negative. In XDR a name is that of a transducer: "XDR.AIRTEMP".
//
// What the sentence itself calls void (no fix, status V) has no value. The
// checksum is looked at where there is one; the key check = "nmea" wants one.
// The date and time of RMC and ZDA are the time of the readings; GGA and GLL have
// a time only, for which the date of the others serves.
type nmeaFormat struct {
	wanted []nmeaField
	points int // of wanted; behind them is the device's time
	sum    *check

	columns []string  // of the sentence in hand
	last    time.Time // told with a date
}

// nmeaField is what a point means.
type nmeaField struct {
	talker, kind string // talker empty: any
	with         string // a column is this; empty: any
	name         string // of a transducer
	index        int    // of the column; 0: by name, in XDR
	as           nmeaValue
	unit         string
	unitAt       int // where the sentence names it
	valid        bool
}

// nmeaValue is how a column is to be read.
type nmeaValue byte

const (
	nmeaPlain  nmeaValue = iota
	nmeaAngle            // degrees and minutes, and a letter in the next column
	nmeaSigned           // degrees, and a letter in the next column
)

// nmeaName is a column that has a name. Its sentence may say that it is void.
type nmeaName struct {
	kind, name string
	index      int
	as         nmeaValue
	valid      bool // has no value in a void sentence
	unit       string
	unitAt     int
}

// The columns are those of NMEA 0183 4.10 §8.3; VWR and others that go by other
// names have their numbers.
var nmeaNames = []nmeaName{
	{"GGA", "latitude", 2, nmeaAngle, true, "°", 0},
	{"GGA", "longitude", 4, nmeaAngle, true, "°", 0},
	{"GGA", "quality", 6, nmeaPlain, false, "", 0},
	{"GGA", "satellites", 7, nmeaPlain, false, "", 0},
	{"GGA", "hdop", 8, nmeaPlain, true, "", 0},
	{"GGA", "altitude", 9, nmeaPlain, true, "m", 0},
	{"GGA", "geoid", 11, nmeaPlain, true, "m", 0},
	{"RMC", "status", 2, nmeaPlain, false, "", 0},
	{"RMC", "latitude", 3, nmeaAngle, true, "°", 0},
	{"RMC", "longitude", 5, nmeaAngle, true, "°", 0},
	{"RMC", "speed", 7, nmeaPlain, true, "kn", 0},
	{"RMC", "course", 8, nmeaPlain, true, "°", 0},
	{"RMC", "variation", 10, nmeaSigned, true, "°", 0},
	{"VTG", "course", 1, nmeaPlain, true, "°", 0},
	{"VTG", "course_magnetic", 3, nmeaPlain, true, "°", 0},
	{"VTG", "speed_knots", 5, nmeaPlain, true, "kn", 0},
	{"VTG", "speed", 7, nmeaPlain, true, "km/h", 0},
	{"GLL", "latitude", 1, nmeaAngle, true, "°", 0},
	{"GLL", "longitude", 3, nmeaAngle, true, "°", 0},
	{"GLL", "status", 6, nmeaPlain, false, "", 0},
	{"GSA", "fix", 2, nmeaPlain, false, "", 0},
	{"GSA", "pdop", 15, nmeaPlain, false, "", 0},
	{"GSA", "hdop", 16, nmeaPlain, false, "", 0},
	{"GSA", "vdop", 17, nmeaPlain, false, "", 0},
	{"HDT", "heading", 1, nmeaPlain, false, "°", 0},
	{"HDM", "heading", 1, nmeaPlain, false, "°", 0},
	{"HDG", "heading", 1, nmeaPlain, false, "°", 0},
	{"HDG", "deviation", 2, nmeaSigned, false, "°", 0},
	{"HDG", "variation", 4, nmeaSigned, false, "°", 0},
	{"ROT", "rate", 1, nmeaPlain, true, "°/min", 0},
	{"DBT", "depth", 3, nmeaPlain, false, "m", 0},
	{"DPT", "depth", 1, nmeaPlain, false, "m", 0},
	{"DPT", "offset", 2, nmeaPlain, false, "m", 0},
	{"MTW", "temperature", 1, nmeaPlain, false, "", 2},
	{"VHW", "heading", 1, nmeaPlain, false, "°", 0},
	{"VHW", "speed_knots", 5, nmeaPlain, false, "kn", 0},
	{"VHW", "speed", 7, nmeaPlain, false, "km/h", 0},
	{"MWV", "angle", 1, nmeaPlain, true, "°", 0},
	{"MWV", "speed", 3, nmeaPlain, true, "", 4},
	{"MWD", "direction", 1, nmeaPlain, false, "°", 0},
	{"MWD", "speed_knots", 5, nmeaPlain, false, "kn", 0},
	{"MWD", "speed", 7, nmeaPlain, false, "m/s", 0},
	{"MDA", "pressure", 3, nmeaPlain, false, "bar", 0},
	{"MDA", "air_temperature", 5, nmeaPlain, false, "°C", 0},
	{"MDA", "water_temperature", 7, nmeaPlain, false, "°C", 0},
	{"MDA", "humidity", 9, nmeaPlain, false, "%", 0},
	{"MDA", "dew_point", 11, nmeaPlain, false, "°C", 0},
	{"MDA", "wind_direction", 13, nmeaPlain, false, "°", 0},
	{"MDA", "wind_speed_knots", 17, nmeaPlain, false, "kn", 0},
	{"MDA", "wind_speed", 19, nmeaPlain, false, "m/s", 0},
}

// maxNMEAColumns bounds the columns: a sentence has 82 characters.
const maxNMEAColumns = 80

var (
	errNoSentence  = errors.New("frame is no sentence such as $GPRMC,1,A")
	errLongNMEA    = fmt.Errorf("sentence has more than %d columns", maxNMEAColumns)
	errNoDirection = errors.New("has no N, S, E or W behind it")
)

func newNMEAFormat(o *Options, points []point) (format, error) {
	f := &nmeaFormat{points: len(points)}
	if o.Time != "" {
		f.points--
	}
	var err error
	own := DefaultOptions()
	own.Check = CheckNMEA
	if f.sum, err = newCheck(&own); err != nil {
		return nil, err
	}
	for i := range points {
		w, err := parseNMEAField(points[i].Field)
		if err != nil {
			return nil, fmt.Errorf("point[%d].field: %w", i, err)
		}
		f.wanted = append(f.wanted, w)
	}
	return f, nil
}

func parseNMEAField(s string) (w nmeaField, err error) {
	head, name, ok := strings.Cut(s, ".")
	head, with, has := strings.Cut(head, "[")
	if has {
		if w.with, has = strings.CutSuffix(with, "]"); !has || w.with == "" {
			ok = false
		}
	}
	upper := strings.Trim(head, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789") == ""
	if !ok || name == "" || !upper || len(head) < 3 || len(head) > 8 {
		return w, fmt.Errorf(`%q is no sentence and column, such as "RMC.latitude" or "MWV.3"`, s)
	}
	w.kind = head
	if head[0] != 'P' && len(head) == 5 { // P: a maker's own, without a talker
		w.talker, w.kind = head[:2], head[2:]
	}
	if n, err := strconv.ParseUint(name, 10, 8); err == nil {
		if n < 1 || n > maxNMEAColumns {
			return w, fmt.Errorf("%q: column %d is outside 1..%d", s, n, maxNMEAColumns)
		}
		w.index = int(n)
		return w, nil
	}
	if w.kind == "XDR" {
		w.name = name
		return w, nil
	}
	var known []string
	for _, n := range nmeaNames {
		if n.kind != w.kind {
			continue
		}
		if n.name == name {
			w.index, w.as, w.unit, w.unitAt, w.valid = n.index, n.as, n.unit, n.unitAt, n.valid
			return w, nil
		}
		known = append(known, n.name)
	}
	if known == nil {
		return w, fmt.Errorf("%q: the columns of %s have no names here, only numbers", s, w.kind)
	}
	return w, fmt.Errorf("%q: %s has %s, and numbers", s, w.kind, strings.Join(known, ", "))
}

// parse reads a sentence.
func (f *nmeaFormat) parse(frame []byte) (fields, error) {
	frame = []byte(strings.TrimSpace(string(frame)))
	if len(frame) < 2 || frame[0] != '$' && frame[0] != '!' {
		return fields{}, errNoSentence
	}
	if strings.Contains(string(frame), "*") {
		var err error
		if frame, err = f.sum.verifyNMEA(frame); err != nil {
			return fields{}, err
		}
	}
	f.columns = strings.Split(string(frame[1:]), ",")
	if len(f.columns) > maxNMEAColumns+1 {
		return fields{}, errLongNMEA
	}
	at := f.moment()
	for i := range f.points {
		if f.has(&f.wanted[i]) {
			return fields{get: f.get, unit: f.unit, time: at, part: true}, nil
		}
	}
	return fields{}, errNothing
}

// kind is the sentence's type without its talker.
func (f *nmeaFormat) kind() string {
	head := f.columns[0]
	if len(head) == 5 && head[0] != 'P' {
		return head[2:]
	}
	return head
}

// column returns one of the sentence, empty if it has not so many.
func (f *nmeaFormat) column(i int) string {
	if i < 1 || i >= len(f.columns) {
		return ""
	}
	return strings.TrimSpace(f.columns[i])
}

// has says whether the sentence speaks of the field.
func (f *nmeaFormat) has(w *nmeaField) bool {
	if f.kind() != w.kind || w.talker != "" && !strings.HasPrefix(f.columns[0], w.talker) {
		return false
	}
	if w.with != "" {
		found := false
		for i := range f.columns[1:] {
			found = found || f.column(i+1) == w.with
		}
		if !found {
			return false
		}
	}
	return w.place(f) > 0
}

// place is the column of the field in the sentence; 0 for none.
func (w *nmeaField) place(f *nmeaFormat) int {
	if w.index > 0 {
		if w.index >= len(f.columns) {
			return 0
		}
		return w.index
	}
	// Each transducer has four columns: what, value, unit, name.
	for i := 4; i < len(f.columns); i += 4 {
		if f.column(i) == w.name {
			return i - 2
		}
	}
	return 0
}

// void says that the sentence calls its values none.
func (f *nmeaFormat) void() bool {
	mode := ""
	switch f.kind() {
	case "RMC":
		mode = f.column(12)
		if f.column(2) != "A" {
			return true
		}
	case "GLL":
		mode = f.column(7)
		if f.column(6) == "V" { // older ones have none
			return true
		}
	case "GGA":
		return f.column(6) == "0" || f.column(6) == ""
	case "VTG":
		mode = f.column(9)
	case "MWV":
		return f.column(5) == "V"
	case "ROT":
		return f.column(2) == "V"
	}
	return mode == "N"
}

func (f *nmeaFormat) get(i int) (any, bool) {
	w := &f.wanted[i]
	if !f.has(w) {
		return nil, false
	}
	at := w.place(f)
	text := f.column(at)
	if text == "" || w.valid && f.void() {
		return nil, true
	}
	if w.as == nmeaPlain {
		return text, true
	}
	v, err := strconv.ParseFloat(text, 64)
	if err != nil || !isDecimal(text) || v < 0 {
		return fmt.Errorf("%s is no angle", short(text)), true
	}
	if w.as == nmeaAngle {
		degrees := float64(int(v) / 100)
		minutes := v - 100*degrees
		if v > 18000 || minutes >= 60 {
			return fmt.Errorf("%s is not degrees and minutes", short(text)), true
		}
		// A ten millionth is a centimetre; what is behind is noise of the division.
		if v, err = strconv.ParseFloat(strconv.FormatFloat(degrees+minutes/60, 'f', 7, 64), 64); err != nil {
			return err, true
		}
	}
	switch f.column(at + 1) {
	case "N", "E":
		return v, true
	case "S", "W":
		return -v, true
	}
	return errNoDirection, true
}

// unit is that of the column, or what the sentence says.
func (f *nmeaFormat) unit(i int) string {
	w := &f.wanted[i]
	at := w.unitAt
	if w.name != "" {
		at = w.place(f) + 1
	}
	if at == 0 {
		return w.unit
	}
	u := f.column(at)
	if w.name == "" { // of wind
		switch u {
		case "K":
			return "km/h"
		case "M":
			return "m/s"
		case "N":
			return "kn"
		case "S":
			return "mph"
		}
	}
	switch u {
	case "C", "F", "D":
		return strings.Replace("°"+u, "°D", "°", 1)
	case "P":
		return "%"
	case "B":
		return "bar"
	case "M":
		return "m"
	}
	return u
}

// moment is when the sentence says that it is; zero if it does not, or if no date
// is known yet.
func (f *nmeaFormat) moment() time.Time {
	switch f.kind() {
	case "RMC":
		if d := f.column(9); len(d) == 6 && !f.void() {
			return f.date(d[:2], d[2:4], "20"+d[4:], f.column(1))
		}
	case "ZDA":
		return f.date(f.column(2), f.column(3), f.column(4), f.column(1))
	case "GGA":
		return f.clock(f.column(1))
	case "GLL":
		return f.clock(f.column(5))
	}
	return time.Time{}
}

// date puts a date and a time of day together, and keeps them.
func (f *nmeaFormat) date(day, month, year, clock string) time.Time {
	t, err := time.Parse("2006-01-02", year+"-"+month+"-"+day)
	since, ok := timeOfDay(clock)
	if err != nil || !ok {
		return time.Time{}
	}
	f.last = t.Add(since)
	return f.last
}

// clock is the moment with that time of day nearest to the one told last.
func (f *nmeaFormat) clock(s string) time.Time {
	since, ok := timeOfDay(s)
	if !ok || f.last.IsZero() || f.void() {
		return time.Time{}
	}
	const day = 24 * time.Hour
	t := f.last.Truncate(day).Add(since)
	switch ahead := t.Sub(f.last); {
	case ahead > day/2:
		t = t.Add(-day)
	case ahead < -day/2:
		t = t.Add(day)
	}
	return t
}

// timeOfDay reads hhmmss or hhmmss.sss.
func timeOfDay(s string) (time.Duration, bool) {
	t, err := time.Parse("150405", s) // takes a fraction as well
	if err != nil {
		return 0, false
	}
	return t.Sub(t.Truncate(24 * time.Hour)), true
}
