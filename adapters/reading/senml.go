package reading

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"holdfast/broker/cbor"
)

// How readings become SenML (RFC 8428):
//
// The name is the topic. Characters that a name cannot have (§4.5.1) become "_"
// and two hexadecimal digits; then the label "topic" has the topic. Units are
// those of the registry where there is a usual way to write them ("°C" becomes
// "Cel", "m³/h" "m3/h"), else as they are.
//
// The records of a pack are put in the order that needs the fewest bytes: a topic
// that comes more than once has its name in "bn" and its unit in "bu", once; of
// the others the topic up to the last level is the "bn" of its device. The order
// of a topic is kept. "bt" is the time of the first record.
//
// A wall clock that stands before July 1978 would be taken for a time relative to
// now (§4.5.3): such a record has the time 0, which means about now.
//
// What SenML has no label for is in labels of ours, which others ignore (§4.4), and
// only where it says something: "quality" and "reason" where it is not good,
// "clock" where it is not synchronised, "session" where it changes, "seq" where it
// is not one more than that of the same name just before. A reading without a
// value has its reason as the text "vs". A message that is no reading is one record
// with the label "message", as text in "vs" or as bytes in "vd".
type senmlRecord struct {
	topic    string
	r        Reading
	message  []byte // is no reading
	isOther  bool
	unit     string // as in SenML
	at       int64  // milliseconds since 1970; 0: not known
	dir      string
	siblings int // records of the same topic
	bu       bool
}

// leastTime is the first time that is not relative to now, in seconds (RFC 8428 §4.5.3).
const leastTime = 1 << 28

// latestTime is in the year 9999, the last one that can be written.
const latestTime = 253_402_300_799

// senmlUnits are replacements within units.
var senmlUnits = strings.NewReplacer("°C", "Cel", "℃", "Cel", "Ω", "Ohm", "Ω", "Ohm", "³", "3", "²", "2", "µ", "u", "μ", "u", "°", "deg")

func senmlReading(topic string, r Reading) senmlRecord {
	rec := senmlRecord{topic: topic, r: r}
	if r.Unit != "" {
		rec.unit = senmlUnits.Replace(r.Unit)
	}
	if at, _ := r.Time.Measured(); at.Unix() >= leastTime {
		rec.at = at.UnixMilli()
	}
	return rec
}

// senmlName makes a name of a topic; changed says that it is not the topic.
func senmlName(topic string) (name string, changed bool) {
	clean := func(c byte, first bool) bool {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
			return true
		default:
			return !first && strings.IndexByte("-:./_", c) >= 0
		}
	}
	for i := range len(topic) {
		if !clean(topic[i], i == 0) {
			changed = true
		}
	}
	if !changed {
		return topic, false
	}
	var b []byte
	for i := range len(topic) {
		switch c := topic[i]; {
		case clean(c, len(b) == 0):
			b = append(b, c)
		default:
			if len(b) == 0 {
				b = append(b, 'x') // it begins with a letter
			}
			b = append(b, '_', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	return string(b), true
}

// arrange puts the records into the order of the pack.
func arrange(in []senmlRecord) []senmlRecord {
	type group struct {
		records []senmlRecord
		bu      bool
	}
	var dirs []string
	byDir := map[string][]string{} // topics
	byTopic := map[string]*group{}
	for _, rec := range in {
		g := byTopic[rec.topic]
		if g == nil {
			g = &group{bu: true}
			byTopic[rec.topic] = g
			dir := rec.topic[:strings.LastIndexByte(rec.topic, '/')+1]
			if byDir[dir] == nil {
				dirs = append(dirs, dir)
			}
			byDir[dir] = append(byDir[dir], rec.topic)
		}
		rec.dir = rec.topic[:strings.LastIndexByte(rec.topic, '/')+1]
		g.records = append(g.records, rec)
		g.bu = g.bu && rec.unit != "" && rec.unit == g.records[0].unit
	}
	out := make([]senmlRecord, 0, len(in))
	// A base unit holds until the next one: what has none goes before.
	for pass := range 3 {
		for _, dir := range dirs {
			for _, topic := range byDir[dir] {
				g := byTopic[topic]
				n := len(g.records)
				switch {
				case n == 1 && pass != 0, n > 1 && !g.bu && pass != 1, n > 1 && g.bu && pass != 2:
					continue
				}
				for _, rec := range g.records {
					rec.siblings, rec.bu = n, n > 1 && g.bu
					out = append(out, rec)
				}
			}
		}
	}
	return out
}

// The labels of SenML (RFC 8428 §12.2), and ours, which have no number.
var senmlLabels = map[string]int64{"bn": -2, "bt": -3, "bu": -4, "n": 0, "u": 1, "v": 2, "vs": 3, "vb": 4, "t": 6, "vd": 8}

// senmlWriter appends records in one of the two forms.
type senmlWriter struct {
	b     []byte
	cbor  bool
	count int    // fields of the record so far
	rec   []byte // CBOR: the record's fields
}

func (w *senmlWriter) label(name string) {
	w.count++
	if !w.cbor {
		if w.count > 1 {
			w.b = append(w.b, ',')
		}
		w.b = append(append(append(w.b, '"'), name...), '"', ':')
		return
	}
	if n, ok := senmlLabels[name]; ok {
		w.rec = cbor.AppendInt(w.rec, n)
	} else {
		w.rec = cbor.AppendText(w.rec, name)
	}
}

func (w *senmlWriter) text(name, s string) {
	w.label(name)
	if w.cbor {
		w.rec = cbor.AppendText(w.rec, strings.ToValidUTF8(s, "\ufffd"))
	} else {
		w.b = appendString(w.b, s)
	}
}

func (w *senmlWriter) bool(name string, v bool) {
	w.label(name)
	if w.cbor {
		w.rec = append(w.rec, 0xf4+map[bool]byte{true: 1}[v])
	} else {
		w.b = strconv.AppendBool(w.b, v)
	}
}

// number appends a float64, int64 or uint64.
func (w *senmlWriter) number(name string, v any) {
	w.label(name)
	if w.cbor {
		w.rec = appendCBORNumber(w.rec, v)
	} else {
		w.b = appendValue(w.b, v)
	}
}

// millis appends milliseconds as seconds.
func (w *senmlWriter) millis(name string, ms int64) {
	w.label(name)
	switch {
	case w.cbor:
		w.rec = appendDecimal(w.rec, ms, -3)
	case ms%1000 == 0:
		w.b = strconv.AppendInt(w.b, ms/1000, 10)
	default:
		w.b = strconv.AppendFloat(w.b, float64(ms)/1000, 'f', -1, 64)
	}
}

func (w *senmlWriter) bytes(name string, p []byte) {
	w.label(name)
	if w.cbor {
		w.rec = append(cbor.AppendHead(w.rec, cbor.Bytes, uint64(len(p))), p...)
	} else {
		w.b = base64.RawURLEncoding.AppendEncode(append(w.b, '"'), p)
		w.b = append(w.b, '"')
	}
}

// appendSenML appends a pack.
func appendSenML(b []byte, records []senmlRecord, binary bool) []byte {
	records = arrange(records)
	w := senmlWriter{b: b, cbor: binary}
	if binary {
		w.b = cbor.AppendHead(w.b, cbor.Array, uint64(len(records)))
	} else {
		w.b = append(w.b, '[')
	}
	base := senmlBase{}
	for i := range records {
		if !binary {
			w.b = append(w.b, ",{"[min(i, 1)^1:]...)
		}
		w.count, w.rec = 0, w.rec[:0]
		base.record(&w, &records[i], i == 0)
		if binary {
			w.b = append(cbor.AppendHead(w.b, cbor.Map, uint64(w.count)), w.rec...)
		} else {
			w.b = append(w.b, '}')
		}
	}
	if !binary {
		w.b = append(w.b, ']')
	}
	return w.b
}

// senmlBase is what earlier records of a pack have said.
type senmlBase struct {
	name, unit   string
	time         int64
	topic        string
	session, seq uint64
}

func (s *senmlBase) record(w *senmlWriter, rec *senmlRecord, first bool) {
	whole := rec.siblings > 1 || rec.dir == ""
	want := rec.topic
	if !whole {
		want = rec.dir
	}
	base, changed := senmlName(want)
	if changed { // a part of a name need not be one: the whole is said
		whole = true
		base, changed = senmlName(rec.topic)
	}
	if base != s.name || first {
		s.name = base
		w.text("bn", base)
	}
	if rec.at != s.time && (first || rec.at == 0 || s.time == 0) {
		s.time = rec.at
		w.millis("bt", rec.at)
	}
	if rec.bu && rec.unit != s.unit {
		s.unit = rec.unit
		w.text("bu", rec.unit)
	}
	if !whole {
		leaf, odd := senmlName("x" + rec.topic[len(rec.dir):])
		changed = odd
		w.text("n", leaf[1:])
	}
	if rec.unit != "" && rec.unit != s.unit {
		w.text("u", rec.unit)
	}
	s.value(w, rec)
	if rec.at != s.time {
		w.millis("t", rec.at-s.time)
	}
	if changed {
		w.text("topic", rec.topic)
	}
	if _, clock := rec.r.Time.Measured(); clock != clockSynchronised && !rec.isOther {
		w.text("clock", clock)
	}
	if rec.r.Session != s.session && !rec.isOther {
		s.session = rec.r.Session
		w.number("session", rec.r.Session)
	}
	next := uint64(0)
	if s.topic == rec.topic && s.seq != 0 {
		next = s.seq + 1
	}
	if rec.r.Seq != next && !rec.isOther {
		w.number("seq", rec.r.Seq)
	}
	s.topic, s.seq = rec.topic, rec.r.Seq
}

func (s *senmlBase) value(w *senmlWriter, rec *senmlRecord) {
	if rec.isOther {
		if utf8.Valid(rec.message) {
			w.text("vs", string(rec.message))
		} else {
			w.bytes("vd", rec.message)
		}
		w.bool("message", true)
		return
	}
	quality, reason := rec.r.told()
	switch v := rec.r.Value.(type) {
	case bool:
		if quality != Bad {
			w.bool("vb", v)
		}
	case string:
		if quality != Bad {
			w.text("vs", v)
		}
	case float64, int64, uint64:
		if quality != Bad {
			w.number("v", v)
		}
	default:
		quality = Bad
	}
	if quality == Good {
		return
	}
	if quality == Bad {
		w.text("vs", reason) // a record has a value (RFC 8428 §4.2)
	} else if reason != "" {
		w.text("reason", reason)
	}
	w.text("quality", quality.String())
}

// appendCBORNumber appends a number in the shortest of the forms that give the
// same float64 back (RFC 8428 §6): whole, decimal fraction, or float.
func appendCBORNumber(b []byte, v any) []byte {
	switch v := v.(type) {
	case int64:
		return cbor.AppendInt(b, v)
	case uint64:
		return cbor.AppendHead(b, cbor.Uint, v)
	case float64:
		return appendCBORFloat(b, v)
	default:
		return append(b, cbor.Null)
	}
}

func appendCBORFloat(b []byte, f float64) []byte {
	var buf [32]byte
	text := strconv.AppendFloat(buf[:0], f, 'e', -1, 64) // d.ddde±xx
	mark := bytes.IndexByte(text, 'e')
	exp, err := strconv.Atoi(string(text[mark+1:]))
	digits := text[:mark]
	if i := bytes.IndexByte(digits, '.'); i >= 0 {
		exp -= len(digits) - i - 1
		digits = append(digits[:i], digits[i+1:]...)
	}
	mantissa, merr := strconv.ParseInt(string(digits), 10, 64)
	if err != nil || merr != nil {
		return appendCBORBits(b, f)
	}
	for ; exp > 0 && exp <= 15 && mantissa < 1<<50/10 && mantissa > -(1<<50)/10; exp-- {
		mantissa *= 10
	}
	n := len(b)
	if b = appendDecimal(b, mantissa, exp); len(b)-n < floatSize(f) {
		return b
	}
	return appendCBORBits(b[:n], f)
}

// appendDecimal appends mantissa times ten to the exp.
func appendDecimal(b []byte, mantissa int64, exp int) []byte {
	for exp < 0 && mantissa%10 == 0 && mantissa != 0 {
		mantissa, exp = mantissa/10, exp+1
	}
	if exp == 0 || mantissa == 0 {
		return cbor.AppendInt(b, mantissa)
	}
	b = append(b, cbor.Tag<<5|4, cbor.Array<<5|2) // a decimal fraction (RFC 8949 §3.4.4)
	return cbor.AppendInt(cbor.AppendInt(b, int64(exp)), mantissa)
}

func floatSize(f float64) int {
	if float64(float32(f)) == f {
		return 5
	}
	return 9
}

func appendCBORBits(b []byte, f float64) []byte {
	if float64(float32(f)) == f {
		return binary.BigEndian.AppendUint32(append(b, 0xfa), math.Float32bits(float32(f)))
	}
	return binary.BigEndian.AppendUint64(append(b, 0xfb), math.Float64bits(f))
}

// senmlTime is a time of a pack, in milliseconds.
func senmlTime(base, t float64) time.Time {
	sum := base + t
	if !(sum >= leastTime && sum < latestTime) { // NaN is neither
		return time.Time{}
	}
	return time.UnixMilli(int64(sum*1000 + 0.5)).UTC()
}
