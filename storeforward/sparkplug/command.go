package sparkplug

import (
	"encoding/json"
	"strings"

	"holdfast/broker/packet"
)

// The packet id of our one SUBSCRIBE.
const subscribeID = 2

// subscribe asks for commands and for the state of the host (§5.4, §6.2).
func (s *session) subscribe() error {
	o := &s.n.opts
	p := &packet.Subscribe{PacketID: subscribeID, Filters: []packet.Filter{
		{Filter: s.n.topic("NCMD"), QoS: 1},
		{Filter: s.n.topic("DCMD") + "/#", QoS: 1},
	}}
	if o.PrimaryHost != "" {
		p.Filters = append(p.Filters,
			packet.Filter{Filter: Namespace + "/STATE/" + o.PrimaryHost, QoS: 1},
			packet.Filter{Filter: "STATE/" + o.PrimaryHost, QoS: 1}) // of 2.2
	}
	if err := s.conn.Queue(p); err != nil {
		return err
	}
	s.conn.Flush()
	return nil
}

// handle takes what comes from the server.
func (s *session) handle(p packet.Packet) error {
	switch p := p.(type) {
	case *packet.Suback:
		for _, r := range p.Reasons[:min(2, len(p.Reasons))] {
			if r.Failed() {
				return errNotSubscribe
			}
		}
		s.n.mu.Lock()
		s.subscribed = true
		s.n.mu.Unlock()
		s.n.wakeUp()
	case *packet.Publish:
		s.message(string(p.Topic), p.Payload, p.Retain)
		if p.QoS == 1 {
			return s.conn.Queue(&packet.Puback{PacketID: p.PacketID})
		}
	}
	return nil
}

func (s *session) message(topic string, payload []byte, retained bool) {
	n := s.n
	n.mu.Lock()
	defer n.mu.Unlock()
	device, isDevice := strings.CutPrefix(topic, n.topic("DCMD")+"/")
	switch {
	case n.opts.PrimaryHost != "" && (topic == Namespace+"/STATE/"+n.opts.PrimaryHost || topic == "STATE/"+n.opts.PrimaryHost):
		s.hostLocked(payload)
	case retained: // a command of who knows when
		n.status.BadCommand++
		n.log.Warn("retained command ignored", "topic", topic)
	case topic == n.topic("NCMD"):
		s.commandLocked("", payload)
	case isDevice:
		s.commandLocked(device, payload)
	}
}

// hostLocked takes a STATE message: JSON in 3.0 (§6.4.26), ONLINE or OFFLINE in 2.2.
func (s *session) hostLocked(payload []byte) {
	var state struct {
		Online    *bool `json:"online"`
		Timestamp int64 `json:"timestamp"`
	}
	switch text := strings.TrimSpace(string(payload)); text {
	case "ONLINE", "OFFLINE":
		online := text == "ONLINE"
		state.Online, state.Timestamp = &online, s.hostSince
	default:
		if err := json.Unmarshal(payload, &state); err != nil || state.Online == nil {
			s.n.log.Warn("state of the host that is none", "host", s.n.opts.PrimaryHost, "bytes", len(payload))
			return
		}
	}
	if state.Timestamp < s.hostSince {
		return // a death older than the birth (§5.4)
	}
	s.host, s.hostSince = *state.Online, state.Timestamp
	s.n.wakeUp()
}

// commandLocked takes NCMD, and with the name of a device DCMD.
func (s *session) commandLocked(device string, payload []byte) {
	n := s.n
	p, err := Parse(payload)
	if err != nil {
		n.status.BadCommand++
		n.log.Warn("command that cannot be read", "device", device, "err", err)
		return
	}
	for i := range p.Metrics {
		m := &p.Metrics[i]
		name := m.Name
		if name == "" && m.HasAlias {
			if known := n.model.alias(m.Alias); known != nil && known.device.name == device {
				name = known.name
			}
		}
		if device == "" && name == metricRebirth {
			if on, ok := m.Value.(bool); ok && on {
				n.status.Rebirths++
				s.rebirth = true
				n.wakeUp()
			}
			continue
		}
		if err := n.write(device, name, m); err != nil {
			n.status.BadCommand++
			n.log.Warn("command refused", "device", device, "metric", name, "err", err)
			continue
		}
		n.status.Commands++
	}
}

// write hands a written metric on.
func (n *Node) write(device, name string, m *Metric) error {
	switch d := n.model.devices[device]; {
	case !n.opts.Commands:
		return errNoCommands
	case d == nil || d.metrics[name] == nil:
		return errNoMetric
	}
	return n.site.Command(device, name, commandValue(m))
}

// commandValue is the value of a metric as a reading would have it.
func commandValue(m *Metric) any {
	switch v := m.Value.(type) {
	case float32:
		return float64(v)
	case uint32, uint64:
		switch m.Type { //nolint:exhaustive // the signed ones
		case Int8, Int16, Int32, Int64:
			signed, _ := m.Signed()
			return signed
		}
		if v, ok := v.(uint32); ok {
			return uint64(v)
		}
	}
	return m.Value
}
