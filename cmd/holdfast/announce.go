package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"holdfast/adapters"
	"holdfast/adapters/discovery"
	"holdfast/broker"
	"holdfast/broker/durable"
	"holdfast/broker/message"
	"holdfast/cmd/holdfast/config"
)

// lister is an adapter that says which devices are behind it.
type lister interface{ Devices() []adapters.Device }

// announcements are what the gateway tells of its devices in retained messages,
// so that whoever comes later finds them: and nothing of devices that are gone.
type announcements struct {
	births  chan struct{}     // of 1: Home Assistant has started
	inbox   *broker.Inbox     // listens for that; nil while it is not asked to
	heard   string            // on this topic
	again   <-chan time.Time  // when to announce once more
	options discovery.Options // as last reconciled
}

// listen follows the configuration.
func (a *announcements) listen(b *broker.Broker, o discovery.Options) error {
	topic := ""
	if o.Enabled {
		topic = o.BirthTopic
	}
	a.options = o
	if topic == a.heard {
		return nil
	}
	a.close()
	if topic == "" {
		return nil
	}
	inbox, err := b.OpenInbox(broker.InboxOptions{Name: "home_assistant", Queue: 4, MaxSize: 4096}, []string{topic}, func(in broker.Incoming) {
		if string(in.Payload) != "online" {
			return
		}
		select {
		case a.births <- struct{}{}:
		default: // one is enough
		}
	})
	if err != nil {
		return fmt.Errorf("home_assistant.birth_topic: %w", err)
	}
	a.inbox, a.heard = inbox, topic
	return nil
}

func (a *announcements) close() {
	if a.inbox != nil {
		a.inbox.Close()
	}
	a.inbox, a.heard = nil, ""
}

// born has the devices announced again, in a while.
func (a *announcements) born() {
	a.again = time.After(rand.N(a.options.Spread + 1)) //nolint:gosec // it spreads load
}

// announce brings the retained messages up to date: those of devices that are
// configured, and with anew also those that have not changed.
func (gw *gateway) announce(cfg *config.Config, anew bool) {
	opts := cfg.HomeAssistant
	want := map[string]*message.Message{}
	of := map[string]string{} // topic -> device
	keep := map[string]bool{} // topics of devices that will say what they have
	if opts.Enabled {
		g := discovery.Gateway{
			ID: cfg.Gateway.ID, Version: version, Readings: cfg.Gateway.Readings,
			StatusTopic:       config.GatewayStatusTopic(cfg.Gateway.ID),
			DeviceStatusTopic: func(device string) string { return config.DeviceStatusTopic(cfg.Gateway.ID, device) },
		}
		for _, bus := range values(gw.buses) {
			for _, d := range bus.devices() {
				if d.Pending {
					keep[opts.Topic(g.ID, d.Name)] = true
				}
				m, err := opts.Message(g, d)
				if errors.Is(err, discovery.ErrNothing) {
					continue
				}
				if err != nil {
					gw.log.Error("device not announced", "device", d.Name, "err", err)
					continue
				}
				want[m.Topic], of[m.Topic] = m, d.Name
			}
		}
	}
	for _, old := range gw.g.broker.Retained(opts.Topic(cfg.Gateway.ID, "+")) {
		switch m := want[old.Topic]; {
		case m == nil && keep[old.Topic]:
		case m == nil:
			gw.g.statuses.Put("", cleared(old.Topic))
		case !anew && bytes.Equal(m.Payload, old.Payload):
			delete(want, old.Topic) // flash is not written for nothing
		}
	}
	for _, topic := range sorted(want) {
		gw.g.statuses.Put(of[topic], want[topic])
	}
	first, last, _ := strings.Cut(config.DeviceStatusTopic(cfg.Gateway.ID, "+"), "+")
	for _, old := range gw.g.broker.Retained(config.DeviceStatusTopic(cfg.Gateway.ID, "+")) {
		device := strings.TrimSuffix(strings.TrimPrefix(old.Topic, first), last)
		if _, ok := cfg.Devices[device]; !ok {
			gw.g.statuses.Put(device, cleared(old.Topic))
		}
	}
}

// cleared empties a retained topic.
func cleared(topic string) *message.Message {
	return &message.Message{Topic: topic, QoS: 1, Retain: true, Received: time.Now()}
}

// tellState publishes the gateway's own status, for local clients: those at a
// cloud have it from the uplink, by its will.
func (gw *gateway) tellState(ctx context.Context, id, state, reason string) {
	payload, err := json.Marshal(struct {
		State   string `json:"state"`
		Session uint64 `json:"session"`
		Reason  string `json:"reason,omitempty"`
		Version string `json:"version"`
		Time    string `json:"time"`
	}{state, gw.g.store.StartNumber(), reason, version, time.Now().UTC().Format("2006-01-02T15:04:05.000Z")})
	if err != nil {
		panic(err) // strings and a number always marshal
	}
	m := &message.Message{Topic: config.GatewayStatusTopic(id), Payload: payload, QoS: 1, Retain: true, Received: time.Now()}
	if err := gw.g.broker.Publish(m, durable.Origin{}, func(error) {}); err != nil && ctx.Err() == nil {
		gw.log.Warn("status of the gateway not published", "err", err)
	}
}
