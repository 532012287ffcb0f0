package reading

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Form is how readings are rendered.
type Form string

// The forms.
const (
	// FormJSON is that of [Reading.AppendJSON] or [AppendDevice].
	FormJSON Form = "json"
	// FormSenML and FormSenMLCBOR are packs of SenML (RFC 8428).
	FormSenML     Form = "senml"
	FormSenMLCBOR Form = "senml_cbor"
	// FormRaw is the value alone: a number, true, false or the text; empty for
	// none.
	FormRaw Form = "raw"
	// FormLine is InfluxDB's line protocol: the levels of the topic before the
	// device as the measurement, the device and the gateway as tags, the point as
	// the field, and nanoseconds. Numbers are floats always, so that a field
	// never changes its type. A quality that is not good is a second field,
	// POINT_quality; one without a value has only that. The time is left out
	// where the clock stands before July 1978.
	FormLine Form = "line"
	// FormTemplate is text with ${NAME} in it: topic, gateway, device, point,
	// value, unit, quality, reason, time, clock, unix, unix_ms, unix_ns, session,
	// seq. ${json:NAME} is the same as JSON, quoted where it is text; $$ is $.
	FormTemplate Form = "template"
)

// Forms are all of them.
var Forms = []Form{FormJSON, FormSenML, FormSenMLCBOR, FormRaw, FormLine, FormTemplate}

// Renderer writes readings in one form. It is safe for use by many goroutines.
type Renderer struct {
	form    Form
	gateway string
	pieces  []piece
}

// piece is a part of a template: text, then a value.
type piece struct {
	text string
	name string // empty at the end
	json bool
}

// maxTemplate is how long a template may be, in bytes.
const maxTemplate = 4096

// NewRenderer returns a renderer. Errors begin with the key, "render" or
// "template".
func NewRenderer(form Form, template, gateway string) (*Renderer, error) {
	r := &Renderer{form: form, gateway: gateway}
	switch {
	case !slices.Contains(Forms, form):
		return nil, fmt.Errorf("render: %q is not one of %q", form, Forms)
	case form == FormTemplate && template == "":
		return nil, errors.New(`template: is missing; something like '${json:value}'`)
	case form != FormTemplate && template != "":
		return nil, fmt.Errorf("template: means nothing with render = %q", form)
	case len(template) > maxTemplate:
		return nil, fmt.Errorf("template: has %d bytes, at most %d are allowed", len(template), maxTemplate)
	}
	for rest := template; rest != ""; {
		text, after, found := strings.Cut(rest, "$")
		p := piece{text: text}
		switch {
		case !found:
			rest = ""
		case strings.HasPrefix(after, "$"):
			p.text += "$"
			rest = after[1:]
		case strings.HasPrefix(after, "{"):
			name, tail, closed := strings.Cut(after[1:], "}")
			if !closed {
				return nil, fmt.Errorf("template: %q is not closed", "${"+name)
			}
			p.name, p.json = strings.CutPrefix(name, "json:")
			if _, ok := r.value(p.name, "", &Reading{}); !ok {
				return nil, fmt.Errorf("template: there is no ${%s}", p.name)
			}
			rest = tail
		default:
			return nil, errors.New("template: a $ stands alone; write ${NAME}, or $$ for $")
		}
		r.pieces = append(r.pieces, p)
	}
	return r, nil
}

// Packs says that the form puts many messages into one.
func (f Form) Packs() bool { return f == FormSenML || f == FormSenMLCBOR }

// Append appends the message of topic: one reading, or, when whole is set, those
// of a device, whose points are not in the topic.
func (r *Renderer) Append(b []byte, topic string, rs []Reading, whole bool) []byte {
	switch r.form {
	case FormSenML, FormSenMLCBOR:
		return appendSenML(b, senmlRecords(nil, topic, rs, whole), r.form == FormSenMLCBOR)
	case FormJSON:
		if whole {
			return AppendDevice(b, rs)
		}
		return rs[0].AppendJSON(b)
	case FormRaw, FormLine, FormTemplate:
	}
	for i := range rs {
		if i > 0 {
			b = append(b, '\n')
		}
		switch r.form {
		case FormLine:
			b = r.appendLine(b, topic, &rs[i], whole)
		case FormRaw:
			b = appendRaw(b, &rs[i])
		default:
			b = r.appendTemplate(b, topic, &rs[i])
		}
	}
	return b
}

func senmlRecords(out []senmlRecord, topic string, rs []Reading, whole bool) []senmlRecord {
	for i := range rs {
		name := topic
		if whole {
			name += "/" + rs[i].Point
		}
		out = append(out, senmlReading(name, rs[i]))
	}
	return out
}

// Render renders a message that holds readings as [FormJSON] does, for another
// topic: local is the one it had here. False: it holds none.
func (r *Renderer) Render(local, remote string, payload []byte) ([]byte, bool) {
	rs, whole, ok := Parse(local, payload)
	if !ok {
		return nil, false
	}
	if r.form == FormJSON {
		return payload, true
	}
	return r.Append(nil, remote, rs, whole), true
}

// Packed is a message on its way into a pack.
type Packed struct {
	Local, Remote string
	Time          time.Time // when it was accepted
	Payload       []byte
}

// Pack appends one SenML pack of many messages, in the form of the renderer, which
// must be one that packs. What is no reading is in it as it is.
func (r *Renderer) Pack(b []byte, messages []Packed) []byte {
	records := make([]senmlRecord, 0, len(messages))
	for i := range messages {
		m := &messages[i]
		if rs, whole, ok := Parse(m.Local, m.Payload); ok {
			records = senmlRecords(records, m.Remote, rs, whole)
		} else {
			rec := senmlRecord{topic: m.Remote, message: m.Payload, isOther: true}
			if m.Time.Unix() >= leastTime {
				rec.at = m.Time.UnixMilli()
			}
			records = append(records, rec)
		}
	}
	return appendSenML(b, records, r.form == FormSenMLCBOR)
}

func appendRaw(b []byte, r *Reading) []byte {
	quality, _ := r.told()
	if quality == Bad || r.Value == nil {
		return b
	}
	if s, ok := r.Value.(string); ok {
		return append(b, s...)
	}
	return appendValue(b, r.Value)
}

func (r *Renderer) appendTemplate(b []byte, topic string, rd *Reading) []byte {
	for _, p := range r.pieces {
		b = append(b, p.text...)
		if p.name == "" {
			continue
		}
		v, _ := r.value(p.name, topic, rd)
		if s, isText := v.(string); !p.json && isText {
			b = append(b, s...)
		} else if v != nil || p.json {
			b = appendValue(b, v)
		}
	}
	return b
}

// value is what a name in a template stands for; false for one there is not.
func (r *Renderer) value(name, topic string, rd *Reading) (any, bool) {
	at, clock := rd.Time.Measured()
	quality, reason := rd.told()
	switch name {
	case "topic":
		return topic, true
	case "gateway":
		return r.gateway, true
	case "device":
		return rd.Device, true
	case "point":
		return rd.Point, true
	case "value":
		if quality == Bad {
			return nil, true
		}
		return rd.Value, true
	case "unit":
		return rd.Unit, true
	case "quality":
		return quality.String(), true
	case "reason":
		return reason, true
	case "time":
		return at.UTC().Format(timeFormat), true
	case "clock":
		return clock, true
	case "unix":
		return at.Unix(), true
	case "unix_ms":
		return at.UnixMilli(), true
	case "unix_ns":
		return at.UnixNano(), true
	case "session":
		return rd.Session, true
	case "seq":
		return rd.Seq, true
	default:
		return nil, false
	}
}

// What must be escaped in line protocol, by place.
var (
	lineMeasurement = strings.NewReplacer(",", `\,`, " ", `\ `, "\n", `\n`)
	lineKey         = strings.NewReplacer(",", `\,`, " ", `\ `, "=", `\=`, "\n", `\n`)
	lineText        = strings.NewReplacer(`"`, `\"`, `\`, `\\`)
)

func (r *Renderer) appendLine(b []byte, topic string, rd *Reading, whole bool) []byte {
	if !whole {
		topic, _ = cutLast(topic)
	}
	measurement, _ := cutLast(topic)
	if measurement == "" {
		measurement = "readings"
	}
	b = append(b, lineMeasurement.Replace(measurement)...)
	b = append(append(b, ",device="...), lineKey.Replace(rd.Device)...)
	if r.gateway != "" {
		b = append(append(b, ",gateway="...), lineKey.Replace(r.gateway)...)
	}
	b = append(b, ' ')
	field := lineKey.Replace(rd.Point)
	quality, _ := rd.told()
	some := quality != Bad && rd.Value != nil
	if some {
		b = append(append(b, field...), '=')
		if s, isText := rd.Value.(string); isText {
			b = append(append(append(b, '"'), lineText.Replace(s)...), '"')
		} else {
			b = appendValue(b, rd.Value)
		}
	} else {
		quality = Bad
	}
	if quality != Good {
		if some {
			b = append(b, ',')
		}
		b = append(append(append(append(b, field...), `_quality="`...), quality.String()...), '"')
	}
	if at, _ := rd.Time.Measured(); at.Unix() >= leastTime {
		b = strconv.AppendInt(append(b, ' '), at.UnixNano(), 10)
	}
	return b
}
