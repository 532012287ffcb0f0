package main

import (
	"encoding/json"
	"slices"
	"strings"
	"time"

	"holdfast/cmd/holdfast/config"
)

// gateways are what a cloud's broker says of any number of gateways and their devices.
//
// The rule: a device is reachable if its gateway is online, it is itself, and both
// tell of the same session. When a gateway dies its will says so once, and nobody
// has to ask its devices; what they said before it died is of another session when
// it is back.
type gateways struct {
	known map[string]*gatewayTold
}

type gatewayTold struct {
	statusTold
	devices map[string]statusTold
}

// statusTold is one status message.
type statusTold struct {
	State   string    `json:"state"`
	Since   time.Time `json:"since"`
	Time    time.Time `json:"time"`
	Reason  string    `json:"reason"`
	Version string    `json:"version"`
	Session uint64    `json:"session"`
}

// alive is one line of the answer: a gateway, or with Device one of its devices.
type alive struct {
	Gateway string    `json:"gateway"`
	Device  string    `json:"device,omitempty"`
	State   string    `json:"state"`
	Since   time.Time `json:"since,omitzero"`
	Reason  string    `json:"reason,omitempty"`
	Session uint64    `json:"session"`
}

// The words for what is not told by the one it is about.
const (
	stateUnreachable = "unreachable" // its gateway is offline
	stateOutdated    = "outdated"    // told in a session that has ended
	stateGone        = "gone"        // its status was taken back
	stateOnline      = "online"
)

// follow takes a status message and returns the lines that have changed by it;
// none for a topic or payload that is no status.
func (f *gateways) follow(topic string, payload []byte) []alive {
	rest, ok := strings.CutPrefix(topic, config.OwnTopics)
	if !ok {
		return nil
	}
	rest, ok = strings.CutSuffix(rest, "/status")
	if !ok {
		return nil
	}
	gateway, device, isDevice := strings.Cut(rest, "/device/")
	if gateway == "" || strings.Contains(gateway, "/") || isDevice && (device == "" || strings.Contains(device, "/")) {
		return nil
	}
	var t statusTold
	if len(payload) > 0 && (json.Unmarshal(payload, &t) != nil || t.State == "") {
		return nil
	}
	if f.known == nil {
		f.known = make(map[string]*gatewayTold)
	}
	g := f.known[gateway]
	if g == nil {
		g = &gatewayTold{devices: make(map[string]statusTold)}
		f.known[gateway] = g
	}
	before := g.lines(gateway)
	var gone []alive
	switch {
	case len(payload) > 0 && isDevice:
		g.devices[device] = t
	case len(payload) > 0:
		g.statusTold = t
	case isDevice:
		if _, ok := g.devices[device]; ok {
			gone = []alive{{Gateway: gateway, Device: device, State: stateGone}}
		}
		delete(g.devices, device)
	default:
		g.statusTold = statusTold{}
		gone = []alive{{Gateway: gateway, State: stateGone}}
	}
	var changed []alive
	for _, l := range g.lines(gateway) {
		if !slices.Contains(before, l) {
			changed = append(changed, l)
		}
	}
	return append(changed, gone...)
}

// lines say of a gateway and its devices how they are, by the rule.
func (g *gatewayTold) lines(name string) []alive {
	var out []alive
	if g.State != "" {
		since := g.Since
		if since.IsZero() {
			since = g.Time
		}
		out = append(out, alive{Gateway: name, State: g.State, Since: since, Reason: g.Reason, Session: g.Session})
	}
	for _, device := range sorted(g.devices) {
		d := g.devices[device]
		l := alive{Gateway: name, Device: device, State: d.State, Since: d.Since, Reason: d.Reason, Session: d.Session}
		switch {
		case g.State != "" && g.State != stateOnline:
			l.State, l.Reason = stateUnreachable, "the gateway is "+g.State
			l.Since = g.Time
		case g.State != "" && g.Session != d.Session:
			l.State, l.Reason = stateOutdated, "told before the gateway started anew"
		}
		out = append(out, l)
	}
	return out
}

// all are the lines of all gateways.
func (f *gateways) all() []alive {
	var out []alive
	for _, name := range sorted(f.known) {
		out = append(out, f.known[name].lines(name)...)
	}
	return out
}
