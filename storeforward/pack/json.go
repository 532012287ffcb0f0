package pack

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"strconv"
	"time"
	"unicode/utf8"
)

const timeFormat = "2006-01-02T15:04:05.000Z"

// appendJSON appends a record as one object without a line break.
func appendJSON(b []byte, r *Record) []byte {
	b = appendString(append(b, `{"topic":`...), r.Topic)
	b = r.Time.UTC().AppendFormat(append(b, `,"time":"`...), timeFormat)
	b = append(b, '"')
	if r.QoS > 0 {
		b = strconv.AppendUint(append(b, `,"qos":`...), uint64(r.QoS), 10)
	}
	if r.HasExpiry {
		b = strconv.AppendUint(append(b, `,"expiry":`...), uint64(r.Expiry), 10)
	}
	if len(r.Properties) > 0 {
		b = appendBase64(append(b, `,"properties":`...), r.Properties)
	}
	switch p := r.Payload; {
	case len(p) == 0:
	case bytes.IndexByte(p, '\n') < 0 && p[0] > ' ' && p[len(p)-1] > ' ' && utf8.Valid(p) && json.Valid(p) && nesting(p) <= maxNesting:
		b = append(append(b, `,"payload":`...), p...)
	case utf8.Valid(p):
		b = appendString(append(b, `,"text":`...), string(p))
	default:
		b = appendBase64(append(b, `,"base64":`...), p)
	}
	return append(b, '}')
}

// maxNesting is how deep a payload may be nested to be part of the batch's own JSON.
// Readers have limits (64 levels are common), and one message must not make a batch
// unreadable.
const maxNesting = 32

// nesting is how deep valid JSON is nested.
func nesting(p []byte) (deepest int) {
	depth, text := 0, false
	for i := 0; i < len(p); i++ {
		switch c := p[i]; {
		case text && c == '\\':
			i++
		case c == '"':
			text = !text
		case text:
		case c == '[' || c == '{':
			depth++
			deepest = max(deepest, depth)
		case c == ']' || c == '}':
			depth--
		}
	}
	return deepest
}

func appendString(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < ' ' || c == 0x7f:
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		default:
			b = append(b, c)
		}
	}
	return append(b, '"')
}

func appendBase64(b, p []byte) []byte {
	return append(base64.StdEncoding.AppendEncode(append(b, '"'), p), '"')
}

// object is a record as JSON.
type object struct {
	Topic      *string         `json:"topic"`
	Time       time.Time       `json:"time"`
	QoS        byte            `json:"qos"`
	Expiry     *uint32         `json:"expiry"`
	Properties []byte          `json:"properties"`
	Payload    json.RawMessage `json:"payload"`
	Text       *string         `json:"text"`
	Base64     []byte          `json:"base64"`
}

func (o *object) record() (Record, error) {
	if o.Topic == nil {
		return Record{}, wrong("a record has no topic")
	}
	if o.QoS > 2 {
		return Record{}, wrong("qos %d", o.QoS)
	}
	r := Record{Topic: *o.Topic, Time: o.Time, QoS: o.QoS, Properties: o.Properties, Payload: o.Payload}
	if o.Expiry != nil {
		r.HasExpiry, r.Expiry = true, *o.Expiry
	}
	switch {
	case o.Text != nil:
		r.Payload = []byte(*o.Text)
	case o.Base64 != nil:
		r.Payload = o.Base64
	}
	return r, nil
}

// readJSON reads both forms: an array is lines in brackets.
func readJSON(b []byte, fn func(Record) error) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	array := len(b) > 0 && b[0] == '['
	if array {
		if _, err := dec.Token(); err != nil {
			return wrong("%v", err)
		}
	}
	for dec.More() {
		var o object
		if err := dec.Decode(&o); err != nil {
			return wrong("%v", err)
		}
		r, err := o.record()
		if err != nil {
			return err
		}
		if err := fn(r); err != nil {
			return err
		}
	}
	if array {
		if _, err := dec.Token(); err != nil {
			return wrong("it is cut off: %v", err)
		}
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return wrong("there is something behind the end")
	}
	return nil
}
