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
		for _, c := range s.message(string(p.Topic), p.Payload, p.Retain) {
			s.n.write(c)
		}
		if p.QoS == 1 {
			return s.conn.Queue(&packet.Puback{PacketID: p.PacketID})
		}
	}
	return nil
}

// command is a metric that the host writes.
type command struct {
	device, metric string
	value          any
}

// message takes one, and returns the commands in it.
func (s *session) message(topic string, payload []byte, retained bool) []command {
	n := s.n
	n.mu.Lock()
	defer n.mu.Unlock()
	device, isDevice := strings.CutPrefix(topic, n.topic("DCMD")+"/")
	switch {
	case n.opts.PrimaryHost != "" && (topic == Namespace+"/STATE/"+n.opts.PrimaryHost || topic == "STATE/"+n.opts.PrimaryHost):
		s.hostLocked(payload)
	case retained: // a command of who knows when
		n.status.BadCommand++
		n.warnLocked("retained command ignored", "topic", topic)
	case topic == n.topic("NCMD"):
		return s.commandLocked("", payload)
	case isDevice:
		return s.commandLocked(device, payload)
	}
	return nil
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
			s.n.warnLocked("state of the host that is none", "host", s.n.opts.PrimaryHost, "bytes", len(payload))
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
func (s *session) commandLocked(device string, payload []byte) (commands []command) {
	n := s.n
	p, err := Parse(payload)
	if err != nil {
		n.status.BadCommand++
		n.warnLocked("command that cannot be read", "device", device, "err", err)
		return nil
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
		c := command{device, name, commandValue(m)}
		switch d := n.model.devices[device]; {
		case !n.opts.Commands:
			n.refusedLocked(c, errNoCommands)
		case d == nil || d.metrics[name] == nil:
			n.refusedLocked(c, errNoMetric)
		default:
			commands = append(commands, c)
		}
	}
	return commands
}

// write hands a written metric on. The broker is called without the lock.
func (n *Node) write(c command) {
	err := n.site.Command(c.device, c.metric, c.value)
	n.mu.Lock()
	defer n.mu.Unlock()
	if err != nil {
		n.refusedLocked(c, err)
		return
	}
	n.status.Commands++
}

func (n *Node) refusedLocked(c command, err error) {
	n.status.BadCommand++
	n.warnLocked("command refused", "device", c.device, "metric", c.metric, "err", err)
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
