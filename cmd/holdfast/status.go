package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"holdfast/adapters"
	"holdfast/adapters/health"
	"holdfast/adapters/modbus"
	"holdfast/broker"
	"holdfast/broker/access"
	"holdfast/broker/listen"
	"holdfast/storeforward"
	"holdfast/storeforward/sparkplug"
	"holdfast/storeforward/uplink"
)

// gatewayStatus is what `holdfast status` shows and the metrics are made of.
type gatewayStatus struct {
	Gateway  string                `json:"gateway"`
	Version  string                `json:"version"`
	Session  uint64                `json:"session" metric:"gauge"`
	Time     time.Time             `json:"time"`
	Clock    string                `json:"clock"` // "synchronised" or "unsynchronised"
	Uptime   float64               `json:"uptime_seconds"`
	Problems []string              `json:"problems"`
	Uplinks  []uplink.Status       `json:"uplinks"`
	Nodes    []sparkplug.Status    `json:"sparkplug"`
	Devices  []deviceStatus        `json:"devices"`
	Buses    []busStatus           `json:"buses"`
	Servers  []serverStatus        `json:"modbus_servers"`
	Gateways []serverStatus        `json:"modbus_gateways"`
	Broker   broker.Status         `json:"broker"`
	Access   access.Status         `json:"access"`
	Listen   []listen.Status       `json:"listeners"`
	Store    storeforward.Status   `json:"store"`
	Readings adapters.OutboxStatus `json:"readings"`
	Statuses adapters.OutboxStatus `json:"statuses"` // of the devices
	Reloads  reloadStatus          `json:"reloads"`
	Ended    []string              `json:"ended,omitempty"` // parts that ended by themselves, and why
}

// deviceStatus is a device's health with what became of its readings.
type deviceStatus struct {
	Name string `json:"name"`
	health.DeviceStatus
	adapters.OutboxCounters
}

// busStatus is one port: whether its adapter runs, and what the adapter says.
type busStatus struct {
	Name       string                    `json:"name"`
	Supervisor adapters.SupervisorStatus `json:"supervisor"`
	Bus        any                       `json:"bus"`
}

func clockText(synchronised bool) string {
	if synchronised {
		return "synchronised"
	}
	return "unsynchronised"
}

// status takes the snapshot.
func (gw *gateway) status() any { return gw.snapshot() }

func (gw *gateway) snapshot() gatewayStatus {
	gw.mu.Lock()
	id, reloads := gw.cfg.Gateway.ID, gw.reloads
	reloads.Reverted = map[string]string{}
	for name, r := range gw.reverted {
		reloads.Reverted[name] = r.said
	}
	ups := values(gw.uplinks)
	nodes := values(gw.nodes)
	buses := values(gw.buses)
	listeners := values(gw.listeners)
	servers := values(gw.servers)
	gw.mu.Unlock()
	now := gw.clock.Now()
	var ended []string
	for _, p := range slices.Concat(ups, nodes, buses, listeners, servers) {
		if err := p.failure.Load(); err != nil {
			ended = append(ended, fmt.Sprintf("%s has ended: %v", p.name, *err))
		}
	}
	s := gatewayStatus{
		Ended:   ended,
		Gateway: id, Version: version, Session: gw.g.store.StartNumber(),
		Time: now.Wall, Clock: clockText(now.Synchronised),
		Uptime:   time.Since(gw.started).Seconds(),
		Broker:   gw.g.broker.Status(),
		Access:   gw.g.access.Status(),
		Store:    gw.g.store.Status(),
		Readings: gw.g.readings.Status(),
		Statuses: gw.g.statuses.Status(),
		Reloads:  reloads,
		Problems: []string{}, Uplinks: []uplink.Status{}, Nodes: []sparkplug.Status{}, Devices: []deviceStatus{}, Buses: []busStatus{},
		Servers: []serverStatus{}, Gateways: []serverStatus{}, Listen: []listen.Status{},
	}
	for _, u := range ups {
		if st, ok := u.status().(uplink.Status); ok {
			s.Uplinks = append(s.Uplinks, st)
		}
	}
	for _, n := range nodes {
		if st, ok := n.status().(sparkplug.Status); ok {
			s.Nodes = append(s.Nodes, st)
		}
	}
	for _, b := range buses {
		if st, ok := b.status().(busStatus); ok {
			s.Buses = append(s.Buses, st)
		}
	}
	for _, l := range listeners {
		if st, ok := l.status().(listen.Status); ok {
			s.Listen = append(s.Listen, st)
		}
	}
	for _, srv := range servers {
		switch st, ok := srv.status().(serverStatus); {
		case !ok:
		case st.Values != nil:
			s.Servers = append(s.Servers, st)
		default:
			s.Gateways = append(s.Gateways, st)
		}
	}
	for _, d := range gw.g.monitor.Status() {
		s.Devices = append(s.Devices, deviceStatus{
			Name: d.Device, DeviceStatus: d, OutboxCounters: s.Readings.Devices[d.Device],
		})
	}
	s.Problems = s.problems()
	return s
}

func values(m map[string]*running) []*running {
	var out []*running
	for _, k := range sorted(m) {
		out = append(out, m[k])
	}
	return out
}

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// problems says in sentences what an operator should look at.
func (s *gatewayStatus) problems() []string {
	out := append([]string{}, s.Ended...) // never null in JSON
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	if s.Store.State != "ok" {
		add("store: %s: %s", s.Store.State, s.Store.LastError)
	}
	if s.Store.State == "ok" && s.Store.ReserveBytes < s.Store.ReserveWanted {
		add("store: the disk has room for a reserve of %d bytes only, not %d: see store.reserve_bytes", s.Store.ReserveBytes, s.Store.ReserveWanted)
	}
	if s.Store.Crashes > 0 {
		add("the gateway has crashed %d times in a row, the last time: %s", s.Store.Crashes, s.Store.LastCrash)
	}
	if s.Store.Quarantined > 0 {
		add("store: %d rows were in hand at each crash and are dead letters now", s.Store.Quarantined)
	}
	if s.Store.Damaged > 0 {
		add("store: %d rows of the database are damaged and not used; messages for a cloud are dead letters now", s.Store.Damaged)
	}
	if s.Store.SetAside != "" {
		add("store: the previous database could not be used and was set aside as %s", s.Store.SetAside)
	}
	for _, n := range s.Nodes {
		switch n.State {
		case sparkplug.StateBackingOff:
			add("sparkplug %s: %s: %s", n.Name, n.State, n.Reason)
		case sparkplug.StateWaiting:
			if s.Time.Sub(n.Since) > time.Minute {
				add("sparkplug %s: %s for %s", n.Name, n.State, s.Time.Sub(n.Since).Round(time.Second))
			}
		case sparkplug.StateIdle, sparkplug.StateConnecting, sparkplug.StateUp, sparkplug.StateStopped:
		}
		if n.Refused > 0 {
			add("sparkplug %s: %d values were not sent: too many metrics, or larger than the host's broker takes", n.Name, n.Refused)
		}
	}
	for _, u := range s.Uplinks {
		switch u.State {
		case uplink.StateUp, uplink.StateIdle, uplink.StateStopping:
		case uplink.StateConnecting:
			if u.Reason != "" { // why the attempt before failed
				add("uplink %s: %s again after: %s", u.Name, u.State.Words(), u.Reason)
			}
		default:
			add("uplink %s: %s: %s", u.Name, u.State.Words(), u.Reason)
		}
		if u.Twin != "" && u.Twin != u.Reason {
			add("uplink %s: %s", u.Name, u.Twin)
		}
		if b := u.Budget; b != nil && b.Short() {
			add("uplink %s: its data budget is short: %s", u.Name, b.Words())
		}
		for _, c := range []struct {
			whose string
			*uplink.CertificateStatus
		}{{"its", u.OwnCertificate}, {"the cloud's", u.CloudCertificate}} {
			switch {
			case c.CertificateStatus == nil:
			case c.Error != "":
				add("uplink %s: %s certificate cannot be used: %s", u.Name, c.whose, c.Error)
			case c.Warning != "":
				add("uplink %s: %s certificate %s", u.Name, c.whose, c.Warning)
			}
		}
	}
	for _, d := range s.Devices {
		switch d.State {
		case health.Online, health.Unknown:
		default:
			add("device %s: %s: %s", d.Name, d.State, d.Reason)
		}
	}
	for _, o := range []adapters.OutboxStatus{s.Readings, s.Statuses} {
		if o.Dropping {
			dropped := uint64(0)
			for _, d := range o.Devices {
				dropped += d.Dropped
			}
			add("%s: the store has not taken them, and there was no room in memory for all: %d were dropped, %d wait: %s", o.Name, dropped, o.Queued, o.LastError)
		}
	}
	for _, b := range s.Buses {
		if st, ok := b.Bus.(modbus.Status); ok {
			if words := st.Pace.Overloaded(); words != "" {
				add("port %s is %s", b.Name, words)
			}
			for _, d := range st.Described {
				if d.LastError != "" {
					add("device %s has not said what it measures: %s", d.Device, d.LastError)
				}
			}
		}
	}
	if s.Broker.AcceptFailing {
		add("broker: no client can connect: there are no file descriptors left")
	}
	if n := s.Broker.Stuck; n > 0 {
		add("broker: messages for clients that acknowledge nothing are refused: %d of them", n)
	}
	sockets := slices.Clone(s.Listen)
	for _, srv := range slices.Concat(s.Servers, s.Gateways) {
		if srv.Supervisor.State == "waiting" {
			add("Modbus at %s is not served: %s", srv.Address, srv.Supervisor.LastError)
		}
		if srv.Serial != nil && srv.Serial.State == "absent" && srv.Supervisor.State == "running" {
			add("Modbus at %s is not served: %s", srv.Address, srv.Serial.LastError)
		}
		if srv.Listen != nil {
			sockets = append(sockets, *srv.Listen)
		}
	}
	for _, l := range sockets {
		switch c := l.Certificate; {
		case c == nil:
		case c.LastError != "":
			add("listener %s: the new certificate files are not used: %s", l.Address, c.LastError)
		case s.Time.Before(c.NotBefore):
			add("listener %s: its certificate is not valid before %s, or the clock is wrong", l.Address, c.NotBefore.Format(time.RFC3339))
		case c.NotAfter.Sub(s.Time) < uplink.CertificateNotice(c.NotBefore, c.NotAfter):
			add("listener %s: its certificate is valid until %s only", l.Address, c.NotAfter.Format(time.RFC3339))
		}
	}
	if s.Reloads.LastError != "" {
		add("the latest configuration was not taken: %s", s.Reloads.LastError)
	}
	for _, name := range sorted(s.Reloads.Reverted) {
		add("uplink %s: %s", name, s.Reloads.Reverted[name])
	}
	if len(s.Reloads.Waiting) > 0 {
		add("changes wait for a restart: %s", strings.Join(s.Reloads.Waiting, ", "))
	}
	return out
}

// healthy is what the health check asks: can the gateway do its job? A device
// or link that is down is what the gateway is made for; a store that cannot
// write and a listener that has ended are not.
func (gw *gateway) healthy() error {
	st := gw.g.store.Status()
	if st.State != "ok" {
		return fmt.Errorf("store: %s: %s", st.State, st.LastError)
	}
	gw.mu.Lock()
	defer gw.mu.Unlock()
	for _, l := range gw.listeners {
		if err := l.failure.Load(); err != nil {
			return fmt.Errorf("%s has ended: %w", l.name, *err)
		}
	}
	return nil
}

// alive asks every part for an answer; one that hangs keeps the watchdog
// hungry. It does not wait for the disk: a slow one, or a backlog that takes
// long to look through, is nothing that a restart would help.
func (gw *gateway) alive(ctx context.Context) error {
	answered := make(chan struct{})
	go func() { // ends when the part answers; if none does, systemd ends the process
		defer close(answered)
		gw.mu.Lock()
		parts := slices.Concat(values(gw.buses), values(gw.listeners))
		gw.mu.Unlock()
		for _, p := range parts {
			p.status()
		}
		gw.summary()
		gw.g.broker.Status()
		gw.g.access.Status()
		gw.g.store.Held()
		gw.g.readings.Status()
		gw.g.statuses.Status()
	}()
	select {
	case <-answered:
		return nil
	case <-ctx.Done():
		return errors.New("the parts did not answer in time")
	}
}

// summary is the one line systemd shows.
func (gw *gateway) summary() string {
	var parts []string
	gw.mu.Lock()
	ups := maps.Clone(gw.uplinks)
	gw.mu.Unlock()
	for _, name := range sorted(ups) {
		parts = append(parts, fmt.Sprintf("uplink %s %s", name, ups[name].state()))
	}
	devices, online := gw.g.monitor.Status(), 0
	for _, d := range devices {
		if d.State == health.Online {
			online++
		}
	}
	if len(devices) > 0 {
		parts = append(parts, fmt.Sprintf("%d of %d devices online", online, len(devices)))
	}
	if len(parts) == 0 {
		return "running"
	}
	return strings.Join(parts, ", ")
}
