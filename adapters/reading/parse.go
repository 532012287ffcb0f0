package reading

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// object is a reading as JSON, and a message of a device's readings.
type object struct {
	Value   json.RawMessage   `json:"value"`
	Unit    string            `json:"unit"`
	Quality string            `json:"quality"`
	Reason  string            `json:"reason"`
	Time    string            `json:"time"`
	Clock   string            `json:"clock"`
	Session uint64            `json:"session"`
	Seq     uint64            `json:"seq"`
	Points  map[string]object `json:"points"`
}

// Parse reads what [Reading.AppendJSON] or [AppendDevice] wrote, and the
// messages of others that look the same. Device and Point are taken from the
// topic, which ends in /DEVICE/POINT or, when whole says that the message is of
// a device, in /DEVICE. ok false: it is no reading.
func Parse(topic string, payload []byte) (rs []Reading, whole, ok bool) {
	return ParseAt(topic, payload, time.Time{})
}

// ParseAt is Parse that also takes what says no time: it was measured when it was
// received, as far as we know.
func ParseAt(topic string, payload []byte, received time.Time) (rs []Reading, whole, ok bool) {
	// Most of what is no reading is found out without parsing it.
	if len(payload) < len(`{"value":0}`) || payload[0] != '{' {
		return nil, false, false
	}
	var o object
	if json.Unmarshal(payload, &o) != nil {
		return nil, false, false
	}
	at, ok := stamp(o.Time, o.Clock)
	if o.Time == "" && !received.IsZero() {
		at, ok = Stamp{Wall: received}, true
	}
	if !ok {
		return nil, false, false
	}
	before, last := cutLast(topic)
	if o.Points == nil {
		_, device := cutLast(before)
		r, ok := o.reading(device, last, at)
		r.Session, r.Seq = o.Session, o.Seq
		return []Reading{r}, false, ok
	}
	for _, name := range slices.Sorted(maps.Keys(o.Points)) {
		p := o.Points[name]
		own := at
		if p.Time != "" {
			if own, ok = stamp(p.Time, p.Clock); !ok {
				return nil, false, false
			}
		}
		r, ok := p.reading(last, name, own)
		if !ok {
			return nil, false, false
		}
		r.Session, r.Seq = o.Session, o.Seq
		rs = append(rs, r)
	}
	return rs, true, len(rs) > 0
}

// cutLast cuts the last level off a topic.
func cutLast(topic string) (before, last string) {
	i := strings.LastIndexByte(topic, '/')
	if i < 0 {
		return "", topic
	}
	return topic[:i], topic[i+1:]
}

func stamp(at, clock string) (Stamp, bool) {
	t, err := time.Parse(time.RFC3339Nano, at)
	if err != nil {
		return Stamp{}, false
	}
	if clock == clockDevice {
		return Stamp{Device: t}, true
	}
	return Stamp{Wall: t, Synchronised: clock == clockSynchronised}, true
}

func (o *object) reading(device, point string, at Stamp) (Reading, bool) {
	r := Reading{Device: device, Point: point, Unit: o.Unit, Reason: o.Reason, Time: at}
	switch o.Quality {
	case "", "good":
	case "uncertain":
		r.Quality = Uncertain
	default:
		r.Quality = Bad
	}
	if len(o.Value) == 0 {
		return r, false
	}
	var ok bool
	r.Value, ok = parseValue(o.Value)
	return r, ok
}

// ParseValue reads a JSON text that is a scalar: whole numbers as int64, or uint64
// where they need it, others as float64; nil for null.
func ParseValue(payload []byte) (v any, ok bool) {
	payload = bytes.TrimSpace(payload)
	if !json.Valid(payload) {
		return nil, false
	}
	return parseValue(payload)
}

// parseValue reads a JSON scalar.
func parseValue(raw []byte) (any, bool) {
	switch raw[0] {
	case 'n':
		return nil, true
	case 't', 'f':
		return raw[0] == 't', true
	case '"':
		var s string
		err := json.Unmarshal(raw, &s)
		return s, err == nil
	case '{', '[':
		return nil, false
	}
	return parseNumber(string(raw))
}

// parseNumber keeps whole numbers exact.
func parseNumber(text string) (any, bool) {
	if n, err := strconv.ParseInt(text, 10, 64); err == nil {
		return n, true
	}
	if n, err := strconv.ParseUint(text, 10, 64); err == nil {
		return n, true
	}
	f, err := strconv.ParseFloat(text, 64)
	return f, err == nil
}
