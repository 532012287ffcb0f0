package uplink

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"

	"holdfast/broker/message"
	"holdfast/broker/packet"
)

// hopsProperty is the user property (MQTT 5.0 §3.3.2.3.7) that counts how often a
// message has gone from one cloud through a gateway to another. One uplink alone
// cannot loop: what came from its cloud does not go back there, and the cloud is
// asked not to send what is ours (no-local). Only what comes from another uplink,
// or has been counted before, is counted: readings carry nothing.
const hopsProperty = "holdfast-hops"

// maxHops is how many a message may make: more clouds in a row than anybody has,
// few enough that a loop ends at once.
const maxHops = 8

// hops returns how many a message has made, and whether the next one counts.
func hops(m *message.Message) (n int, counts bool) {
	counts = strings.HasPrefix(m.From, recipientPrefix)
	if !bytes.Contains(m.Properties, []byte(hopsProperty)) {
		return 0, counts
	}
	p, err := packet.ParsePublishProperties(m.Properties)
	if err != nil {
		return 0, counts
	}
	for _, u := range p.User {
		if u.Key != hopsProperty {
			continue
		}
		// What is no number has been made up: it goes no further.
		if v, err := strconv.Atoi(u.Value); err == nil && v >= 0 {
			n = max(n, v)
		} else {
			n = maxHops
		}
		counts = true
	}
	return n, counts
}

// propertiesOut are the properties of m on its way to the cloud.
func propertiesOut(m *message.Message) []byte {
	n, counts := hops(m)
	if !counts {
		return m.Properties
	}
	p, err := packet.ParsePublishProperties(m.Properties)
	if err != nil {
		return m.Properties
	}
	users := []packet.UserProperty{{Key: hopsProperty, Value: strconv.Itoa(n + 1)}}
	for _, u := range p.User {
		if u.Key != hopsProperty {
			users = append(users, u)
		}
	}
	p.User = users
	if b, err := p.AppendTo(nil); err == nil {
		return b
	}
	return m.Properties
}

// overlap says whether there is a topic that both filters match.
func overlap(a, b string) bool {
	as, bs := strings.Split(a, "/"), strings.Split(b, "/")
	for i := 0; ; i++ {
		switch {
		case i < len(as) && as[i] == "#", i < len(bs) && bs[i] == "#":
			return true
		case i == len(as) || i == len(bs):
			return len(as) == len(bs)
		case as[i] != bs[i] && as[i] != "+" && bs[i] != "+":
			return false
		}
	}
}

// Loops warns of uplinks whose routes could send messages round. The hop count
// ends that in 5.0; in 3.1.1 only the routes can.
func Loops(names []string, uplinks map[string]Options) (warnings []string) {
	for i, name := range names {
		o := uplinks[name]
		if o.Protocol == Protocol311 {
			for _, w := range o.echoes() {
				warnings = append(warnings, fmt.Sprintf("uplink.%s: %s", name, w))
			}
		}
		for _, other := range names[i+1:] {
			p := uplinks[other]
			through, back := o.through(p), p.through(o)
			if through == "" || back == "" {
				continue
			}
			text := "they go round at most %d times"
			if o.Protocol == Protocol311 || p.Protocol == Protocol311 {
				text = "in 3.1.1 nothing ends that, not even after %d times"
			}
			warnings = append(warnings, fmt.Sprintf("uplink.%s: messages of its cloud that match %q go on to uplink %s, and those that match %q come back; if the clouds are joined "+text,
				name, through, other, back, maxHops))
		}
	}
	return warnings
}

// through returns the filter here by which messages of o's cloud can go on to
// that of p; empty when there is none.
func (o Options) through(p Options) string {
	_, in := compile(o.Routes, o.Gateway)
	out, _ := compile(p.Routes, p.Gateway)
	for i := range in {
		for j := range out {
			if overlap(in[i].target(), out[j].filter) {
				return in[i].target()
			}
		}
	}
	return ""
}

// echoes says which routes of o bring our own messages back in 3.1.1.
func (o Options) echoes() (warnings []string) {
	out, in := compile(o.Routes, o.Gateway)
	for i := range out {
		for j := range in {
			if overlap(out[i].target(), in[j].filter) {
				warnings = append(warnings, fmt.Sprintf("what goes out as %q comes back by the route in of %q: 3.1.1 has no no-local; give the two different prefixes", out[i].target(), in[j].filter))
			}
		}
	}
	return warnings
}

// target is the filter of what the way makes of topics.
func (w *way) target() string {
	if w.toLevels != nil {
		return filterOf(w.toLevels)
	}
	return w.to + strings.TrimPrefix(w.filter, w.from)
}
