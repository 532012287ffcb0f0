package uplink

import (
	"cmp"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"holdfast/broker/message"
	"holdfast/broker/packet"
	"holdfast/broker/topic"
)

// DefaultStatusPayload is the payload of the will, the birth and the last message.
// Session grows with every start of the gateway; device states carry it too, and
// count only while it is the same. Time is when the message was made; a will is
// made at connect.
const DefaultStatusPayload = `{"state":"{state}","session":{session},"reason":"{reason}","version":"{version}","time":"{time}"}`

// statusValues are what stands for something in the topics and payloads of will
// and birth, by name; state, reason and time in payloads only.
type statusValues struct {
	gateway, clientID, version string
	session                    uint64
	state, reason              string
	at                         time.Time
}

// inTopic fills a topic in.
func (v *statusValues) inTopic(template string) string {
	return strings.NewReplacer(
		"{gateway}", v.gateway, "{client_id}", v.clientID, "{version}", v.version, "{session}", strconv.FormatUint(v.session, 10),
	).Replace(template)
}

// inPayload fills a payload in. In one that is JSON with something in its places
// the values are escaped, so that it is JSON whatever the reason says.
func (v *statusValues) inPayload(template string) string {
	values := []string{
		"{gateway}", v.gateway, "{client_id}", v.clientID, "{version}", v.version, "{state}", v.state, "{reason}", v.reason,
		"{session}", strconv.FormatUint(v.session, 10), "{time}", v.at.UTC().Format("2006-01-02T15:04:05.000Z"),
	}
	if isJSON(template) {
		for i := 1; i < len(values); i += 2 {
			if quoted, err := json.Marshal(values[i]); err == nil {
				values[i] = string(quoted[1 : len(quoted)-1])
			}
		}
	}
	return strings.NewReplacer(values...).Replace(template)
}

var blank = regexp.MustCompile(`\{[a-z_]+\}`)

// isJSON says whether a template is JSON when a number, which can be part of a
// string too, stands in its places.
func isJSON(template string) bool {
	return json.Valid(blank.ReplaceAll([]byte(template), []byte("0")))
}

// unknownBlank returns what looks like a place to be filled in and is none.
func unknownBlank(template string, payload bool) string {
	known := []string{"{gateway}", "{client_id}", "{version}", "{session}"}
	if payload {
		known = append(known, "{state}", "{reason}", "{time}")
	}
	for _, b := range blank.FindAllString(template, -1) {
		if !slices.Contains(known, b) {
			return b
		}
	}
	return ""
}

// The states that are told.
const (
	stateOnline  = "online"
	stateOffline = "offline"
)

// statusMessage is the message about a state; nil when its topic is empty. The
// will and the last message of a clean stop are the same kind.
func (u *Uplink) statusMessage(state, reason string) *message.Message {
	o := &u.opts
	topic, payload := cmp.Or(o.BirthTopic, o.StatusTopic), o.BirthPayload
	if state == stateOffline {
		topic, payload = cmp.Or(o.WillTopic, o.StatusTopic), o.WillPayload
	}
	if topic == "" {
		return nil
	}
	v := statusValues{
		gateway: o.Gateway, clientID: o.clientID(), version: o.Software, session: u.store.StartNumber(),
		state: state, reason: reason, at: time.Now(),
	}
	return &message.Message{Topic: v.inTopic(topic), Payload: []byte(v.inPayload(payload)), QoS: 1, Retain: o.StatusRetain}
}

// validateStatus checks the keys of will and birth.
func (o Options) validateStatus() (errs []error) {
	v := statusValues{gateway: o.Gateway, clientID: o.clientID(), version: "1"}
	for key, template := range map[string]string{"status_topic": o.StatusTopic, "birth_topic": o.BirthTopic, "will_topic": o.WillTopic} {
		if template == "" {
			continue
		}
		if b := unknownBlank(template, false); b != "" {
			errs = append(errs, fmt.Errorf("uplink.%s: %s stands for nothing; known are {gateway}, {client_id}, {session} and {version}", key, b))
		} else if err := topic.ValidName(v.inTopic(template)); err != nil {
			errs = append(errs, fmt.Errorf("uplink.%s: %w", key, err))
		}
	}
	for key, template := range map[string]string{"birth_payload": o.BirthPayload, "will_payload": o.WillPayload} {
		if b := unknownBlank(template, true); b != "" {
			errs = append(errs, fmt.Errorf("uplink.%s: %s stands for nothing; known are {state}, {reason}, {session}, {gateway}, {client_id}, {version} and {time}", key, b))
		}
		if len(template) > 32<<10 {
			errs = append(errs, fmt.Errorf("uplink.%s: %d bytes are more than %d", key, len(template), 32<<10))
		}
	}
	return errs
}

// will is published by the cloud when the link breaks: in 5.0 only after the
// will delay, so that a cellular link that flaps wakes nobody.
func (u *Uplink) will() *packet.Will {
	m := u.statusMessage(stateOffline, "connection lost")
	if m == nil {
		return nil
	}
	return &packet.Will{
		Topic: m.Topic, QoS: 1, Retain: m.Retain, Payload: m.Payload,
		Properties: packet.Properties{WillDelay: uint32(u.opts.WillDelay / time.Second)},
	}
}

// announceLocked puts a status message in front of everything else.
func (l *link) announceLocked(state, reason string) *flight {
	m := l.u.statusMessage(state, reason)
	if m == nil {
		return nil
	}
	return l.ownLocked(m)
}

// ownLocked takes a message of the uplink itself in flight; nil when there is no
// packet id left.
func (l *link) ownLocked(m *message.Message) *flight {
	f := &flight{remote: m.Topic, qos: 1, retain: m.Retain, state: flightReady, msg: m}
	if f.id, _ = l.sess.ids.Take(); f.id == 0 {
		return nil
	}
	l.sess.add(f)
	l.own = append(l.own, f)
	return f
}

// startReason says in the birth message how the last run ended.
func startReason(m memory) string {
	switch {
	case !m.Ran:
		return "first start"
	case m.Stop == "":
		return "start after power loss or kill"
	default:
		return "start after stop: " + m.Stop
	}
}
