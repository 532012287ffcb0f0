package reading

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Quality says how far a value can be trusted.
type Quality uint8

// The qualities, best first. A value of quality Bad is rendered as null: a
// number that is not a measurement must not be mistaken for one.
const (
	Good Quality = iota
	Uncertain
	Bad
)

// String returns "good", "uncertain" or "bad".
func (q Quality) String() string {
	switch q {
	case Good:
		return "good"
	case Uncertain:
		return "uncertain"
	default:
		return "bad"
	}
}

// Reading is one measured value of one point of one device.
type Reading struct {
	// Device and Point are names that [ValidName] accepts.
	Device, Point string
	// Value is a float64, int64, uint64, bool, string, or nil for none.
	// Anything else, NaN and the infinities are rendered as null and "bad".
	Value any
	// Unit is for people ("kW", "°C"); empty when there is none.
	Unit string
	// Quality of the value.
	Quality Quality
	// Reason says in a few words why Quality is not Good; empty otherwise.
	Reason string
	// Time is when the value was measured, as near as the gateway knows.
	Time Stamp
	// Seq counts the messages of a topic from 1, and Session is the number of
	// the gateway's start, the one in its status: a number left out is a
	// reading that was lost, a new session a restart. Both are 0 when nobody
	// has counted.
	Seq, Session uint64
}

// timeFormat has milliseconds, always three digits, so that equal lengths
// sort as text; no field bus delivers anything finer.
const timeFormat = "2006-01-02T15:04:05.000Z"

// AppendJSON appends the reading as one JSON object:
//
//	{"value":21.5,"unit":"°C","quality":"good","time":"2026-01-02T15:04:05.123Z","clock":"synchronised","session":7,"seq":345}
//
// The keys always come in this order; "unit" and "reason" are left out when
// empty, "session" and "seq" when nobody has counted. Numbers take the shortest
// form that reads back as the same number.
func (r *Reading) AppendJSON(b []byte) []byte {
	b = r.appendWhat(append(b, '{'), true)
	b = r.appendWhen(append(b, ','))
	return append(b, '}')
}

// AppendDevice appends readings of one device as one JSON object, each point with
// what is its own:
//
//	{"time":"...","clock":"synchronised","session":7,"seq":9,"points":{"flow":{"value":1.5,"unit":"m³/h"},
//	 "level":{"value":null,"quality":"bad","reason":"exception 2"}}}
//
// Time, clock, session and number are those of the first; a point measured at
// another moment has "time" and "clock" of its own. A quality left out is good.
func AppendDevice(b []byte, rs []Reading) []byte {
	b = rs[0].appendWhen(append(b, '{'))
	b = append(b, `,"points":{`...)
	first, whose := rs[0].Time.Measured()
	for i := range rs {
		r := &rs[i]
		if i > 0 {
			b = append(b, ',')
		}
		b = append(appendString(b, r.Point), ':', '{')
		b = r.appendWhat(b, false)
		if t, clock := r.Time.Measured(); !t.Truncate(time.Millisecond).Equal(first.Truncate(time.Millisecond)) || clock != whose {
			own := Reading{Time: r.Time}
			b = own.appendWhen(append(b, ','))
		}
		b = append(b, '}')
	}
	return append(b, '}', '}')
}

// told returns quality and reason as they are to be told: what has no place in
// JSON is no measurement.
func (r *Reading) told() (Quality, string) {
	quality, reason := r.Quality, r.Reason
	switch f := r.Value.(type) {
	case nil, int64, uint64, bool, string:
	case float64:
		if quality != Bad && (math.IsNaN(f) || math.IsInf(f, 0)) {
			return Bad, cmp.Or(reason, notANumber)
		}
	default:
		if quality != Bad {
			return Bad, cmp.Or(reason, notANumber)
		}
	}
	return quality, reason
}

const notANumber = "not a number"

// appendWhat appends value, unit, quality and reason as members of an object;
// that the quality is good only if always is set.
func (r *Reading) appendWhat(b []byte, always bool) []byte {
	quality, reason := r.told()
	b = append(b, `"value":`...)
	if quality == Bad {
		b = append(b, "null"...)
	} else {
		b = appendValue(b, r.Value)
	}
	if r.Unit != "" {
		b = append(b, `,"unit":`...)
		b = appendString(b, r.Unit)
	}
	if quality == Good && !always {
		return b
	}
	b = append(b, `,"quality":"`...)
	b = append(b, quality.String()...)
	b = append(b, '"')
	if reason != "" && quality != Good {
		b = append(b, `,"reason":`...)
		b = appendString(b, reason)
	}
	return b
}

// appendWhen appends time, clock and number as members of an object.
func (r *Reading) appendWhen(b []byte) []byte {
	measured, clock := r.Time.Measured()
	b = append(b, `"time":"`...)
	b = measured.UTC().AppendFormat(b, timeFormat)
	b = append(b, `","clock":"`...)
	b = append(b, clock...)
	b = append(b, '"')
	if r.Session != 0 {
		b = strconv.AppendUint(append(b, `,"session":`...), r.Session, 10)
	}
	if r.Seq != 0 {
		b = strconv.AppendUint(append(b, `,"seq":`...), r.Seq, 10)
	}
	return b
}

// appendValue appends v, which has a place in JSON. A nil value is null and fine:
// there simply was none.
func appendValue(b []byte, v any) []byte {
	switch v := v.(type) {
	case float64:
		return appendFloat(b, v)
	case int64:
		return strconv.AppendInt(b, v, 10)
	case uint64:
		return strconv.AppendUint(b, v, 10)
	case bool:
		return strconv.AppendBool(b, v)
	case string:
		return appendString(b, v)
	default:
		return append(b, "null"...)
	}
}

// appendFloat writes plain decimals within the range people read and an
// exponent outside of it, as encoding/json does (ES6 number to string).
func appendFloat(b []byte, f float64) []byte {
	if f == 0 {
		return append(b, '0') // -0 says nothing that a reader of measurements wants
	}
	if abs := math.Abs(f); abs >= 1e-6 && abs < 1e21 {
		return strconv.AppendFloat(b, f, 'f', -1, 64)
	}
	return strconv.AppendFloat(b, f, 'e', -1, 64)
}

const hexDigits = "0123456789abcdef"

// appendString appends s as a JSON string. Bytes that are not UTF-8 become
// U+FFFD: the payload of an MQTT message marked as text must be UTF-8.
func appendString(b []byte, s string) []byte {
	b = append(b, '"')
	for _, c := range s { // an invalid byte comes as utf8.RuneError
		switch {
		case c == '"' || c == '\\':
			b = append(b, '\\', byte(c))
		case c == '\n':
			b = append(b, `\n`...)
		case c == '\r':
			b = append(b, `\r`...)
		case c == '\t':
			b = append(b, `\t`...)
		case c < 0x20 || c == 0x7f:
			b = append(b, `\u00`...)
			b = append(b, hexDigits[c>>4], hexDigits[c&0xf])
		default:
			b = utf8.AppendRune(b, c)
		}
	}
	return append(b, '"')
}

// MarshalJSON renders the reading as [Reading.AppendJSON] does.
func (r *Reading) MarshalJSON() ([]byte, error) {
	return r.AppendJSON(nil), nil
}

var _ json.Marshaler = (*Reading)(nil)

// maxName keeps topic names and log lines short; nobody has complained.
const maxName = 128

// ValidName checks the name of a device or point. It becomes one level of a
// topic, so it is not empty, has at most 128 bytes of UTF-8, and holds no
// '/', '+', '#' or control character (MQTT 5.0 §4.7.1).
func ValidName(s string) error {
	switch {
	case s == "":
		return errors.New("is empty")
	case len(s) > maxName:
		return fmt.Errorf("has %d bytes, at most %d are allowed", len(s), maxName)
	case !utf8.ValidString(s):
		return fmt.Errorf("%q is not UTF-8", s)
	}
	if i := strings.IndexFunc(s, func(c rune) bool {
		return c == '/' || c == '+' || c == '#' || c < 0x20 || c >= 0x7f && c < 0xa0
	}); i >= 0 {
		return fmt.Errorf("%q holds %q, which a topic level cannot", s, s[i:i+1])
	}
	return nil
}
