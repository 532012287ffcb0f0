package demo

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	"holdfast/broker/client"
	"holdfast/broker/message"
)

// publishEvery is the pause between two QoS 1 messages of the local publisher;
// every second time it publishes a QoS 2 message as well.
const publishEvery = 50 * time.Millisecond

// numbered is the payload of the publisher and of the commands.
type numbered struct {
	N    uint64    `json:"n"`
	Sent time.Time `json:"sent"`
}

// publish gives the next message of a journal to a link, if that is connected.
func publish(l *link, j *journal, topic string, qos byte) bool {
	c := l.client()
	if c == nil {
		return false
	}
	n := j.next()
	payload, err := json.Marshal(numbered{n, time.Now().UTC()})
	if err != nil {
		j.done(n, err)
		return true
	}
	c.PublishAsync(&message.Message{Topic: topic, Payload: payload, QoS: qos}, func(err error) { j.done(n, err) })
	return true
}

// press is the local publisher, until ctx ends.
func (d *demo) press(ctx context.Context) {
	tick := time.NewTicker(publishEvery)
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		publish(d.local, &d.strokes, topicStrokes, 1)
		if i%2 == 0 {
			publish(d.local, &d.energy, topicEnergy, 2)
		}
	}
}

// command sends one from the cloud to the gateway.
func (d *demo) command() {
	if !publish(d.upstream, &d.orders, d.prefix+topicCommands, 2) {
		d.report.line("  the cloud took no command: not connected")
	}
}

// ordered takes the commands that reach the local broker.
func (d *demo) ordered(m client.Message) {
	var p numbered
	if err := json.Unmarshal(m.Payload, &p); err != nil || m.Topic != topicCommands {
		d.commands.complain("%s: %q is not a command", m.Topic, m.Payload)
		return
	}
	d.commands.got(m.Topic, m.QoS, p.N, time.Now())
}

// arrived takes everything that reaches the cloud.
func (d *demo) arrived(m client.Message) {
	if rest, ok := strings.CutPrefix(m.Topic, "holdfast/"+d.siteID()+"/"); ok {
		d.stateArrived(rest, m)
		return
	}
	topic, _ := strings.CutPrefix(m.Topic, d.prefix)
	switch topic {
	case topicStrokes, topicEnergy:
		var p numbered
		if err := json.Unmarshal(m.Payload, &p); err != nil {
			d.checker.complain("%s: %q has no number", topic, m.Payload)
			return
		}
		d.checker.got(topic, m.QoS, p.N, time.Now())
	default:
		d.readingArrived(topic, m)
	}
}

// siteID is the gateway's id, from the prefix: messages come before there is a
// site.
func (d *demo) siteID() string {
	return strings.TrimSuffix(strings.TrimPrefix(d.prefix, "holdfast-"), "/")
}

func (d *demo) stateArrived(rest string, m client.Message) {
	var p struct {
		State  string `json:"state"`
		Reason string `json:"reason"`
	}
	if err := json.Unmarshal(m.Payload, &p); err != nil {
		d.checker.complain("%s: %q is no state", m.Topic, m.Payload)
		return
	}
	of, who := &d.gatewayStates, "the gateway"
	if device, ok := strings.CutPrefix(rest, "device/"); ok {
		who = strings.TrimSuffix(device, "/status")
		if of = d.deviceStates[who]; of == nil {
			d.checker.complain("%s: there is no such device", m.Topic)
			return
		}
	}
	if of.saw(p.State) {
		why := ""
		if p.Reason != "" {
			why = " (" + p.Reason + ")"
		}
		d.report.line("  the cloud hears: %s is %s%s", who, p.State, why)
	}
}

// readingArrived takes a reading: sensors/DEVICE/POINT.
func (d *demo) readingArrived(topic string, m client.Message) {
	var p struct {
		Value json.RawMessage `json:"value"`
		Time  time.Time       `json:"time"`
	}
	levels := strings.Split(topic, "/")
	err := json.Unmarshal(m.Payload, &p)
	if len(levels) != 3 || levels[0] != "sensors" || points[levels[1]] == nil || err != nil || p.Time.IsZero() {
		d.checker.complain("%s: %q is no reading of ours", topic, m.Payload)
		return
	}
	if string(p.Value) == "null" {
		d.checker.got(topic+badValue, m.QoS, stamp(p.Time), time.Now())
		return
	}
	all := points[levels[1]]
	if levels[2] != all[len(all)-1] {
		d.checker.got(topic, m.QoS, stamp(p.Time), time.Now())
		return
	}
	var n uint64
	if err := json.Unmarshal(p.Value, &n); err != nil {
		d.checker.complain("%s: %q has no number", topic, m.Payload)
		return
	}
	d.mu.Lock()
	d.times[levels[1]][n] = p.Time
	d.mu.Unlock()
	d.checker.got(topic, m.QoS, n, time.Now())
}
