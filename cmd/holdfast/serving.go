package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"holdfast/adapters"
	"holdfast/adapters/modbus"
	"holdfast/adapters/modbus/server"
	"holdfast/adapters/port"
	"holdfast/broker"
	"holdfast/broker/durable"
	"holdfast/broker/listen"
	"holdfast/broker/message"
	"holdfast/broker/packet"
	"holdfast/cmd/holdfast/config"
)

// serverStatus is one Modbus server or gateway.
type serverStatus struct {
	Name string `json:"name"`
	// Address is where it listens, Port the line behind a gateway, or of a server.
	Address    string                    `json:"address"`
	Port       string                    `json:"port,omitempty"`
	Supervisor adapters.SupervisorStatus `json:"supervisor"`
	server.Status
	// Values are those of a server; nil for a gateway.
	Values *server.RegistersStatus `json:"values,omitempty"`
	// Serial is the port of a server that is a slave on a line.
	Serial *port.Status `json:"serial,omitempty"`
	// Listen is what is known of its socket; nil before it was open.
	Listen *listen.Status `json:"listener,omitempty"`
}

// startSlave starts a Modbus server on a serial line.
func (gw *gateway) startSlave(ctx context.Context, table string, cfg *config.Config, s config.Serving) (*running, error) {
	_, name, _ := strings.Cut(table, ".")
	portName, _ := s.Server.Line()
	line, err := port.NewLine(portName, s.Line.Options, gw.parts)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", table, err)
	}
	values, forget, err := gw.registers(table, cfg, s.Server.RegistersOptions)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", table, err)
	}
	srv, err := server.NewLine(table, modbus.PortLine(line), s.Line.CharTime(), s.Server.Units, values, gw.parts)
	if err != nil {
		forget()
		return nil, fmt.Errorf("%s: %w", table, err)
	}
	sup := adapters.NewSupervisor(srv, adapters.DefaultSuperviseOptions(), gw.parts)
	r := gw.startPart(ctx, table, s, func(ctx context.Context) error {
		sup.Run(ctx)
		return nil
	})
	r.cleanup = forget
	r.status = func() any {
		return serverStatus{
			Name: name, Address: s.Server.Address, Port: portName, Supervisor: sup.Status(), Status: srv.Status(),
			Values: new(values.Status()), Serial: new(line.Status()),
		}
	}
	return r, nil
}

// startServer starts a Modbus server or gateway.
func (gw *gateway) startServer(ctx context.Context, table string, cfg *config.Config, s config.Serving) (*running, error) {
	if s.Line != nil {
		return gw.startSlave(ctx, table, cfg, s)
	}
	_, name, _ := strings.Cut(table, ".")
	var socket config.ModbusListener
	var opts server.Options
	var handler server.Handler
	var values *server.Registers
	var line string
	forget := func() {}
	if s.Gateway != nil {
		socket, opts, line = s.Gateway.ModbusListener, s.Gateway.Options, s.Gateway.Port
		g, err := server.NewGateway(s.Gateway.GatewayOptions, gw.askPort(line))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", table, err)
		}
		handler = g
	} else {
		socket, opts = s.Server.ModbusListener, s.Server.Options
		var err error
		if values, forget, err = gw.registers(table, cfg, s.Server.RegistersOptions); err != nil {
			return nil, fmt.Errorf("%s: %w", table, err)
		}
		handler = values
	}
	var endpoint atomic.Pointer[listen.Endpoint]
	srv, err := server.New(table, opts, func(ctx context.Context) ([]net.Listener, error) {
		e, err := listen.Open(ctx, socket.Address, socket.Listen(), gw.inherited, gw.parts)
		if err != nil {
			return nil, err
		}
		endpoint.Store(e)
		return e.Listeners(), nil
	}, handler, gw.parts)
	if err != nil {
		forget()
		return nil, fmt.Errorf("%s: %w", table, err)
	}
	// An address may be there only later, as that of a modem is.
	sup := adapters.NewSupervisor(srv, adapters.DefaultSuperviseOptions(), gw.parts)
	r := gw.startPart(ctx, table, s, func(ctx context.Context) error {
		sup.Run(ctx)
		return nil
	})
	r.cleanup = forget
	r.status = func() any {
		st := serverStatus{Name: name, Address: socket.Address, Port: line, Supervisor: sup.Status(), Status: srv.Status()}
		if values != nil {
			st.Values = new(values.Status())
		}
		if e := endpoint.Load(); e != nil {
			st.Listen = new(e.Status())
		}
		return st
	}
	return r, nil
}

// askPort returns how requests are made at a port, whatever becomes of its bus
// meanwhile.
func (gw *gateway) askPort(port string) func(context.Context, modbus.Request) ([]byte, error) {
	return func(ctx context.Context, r modbus.Request) ([]byte, error) {
		gw.mu.Lock()
		part := gw.buses[port]
		gw.mu.Unlock()
		if part == nil || part.bus == nil {
			return nil, modbus.ErrNotOpen
		}
		return part.bus.Do(ctx, r)
	}
}

// registers makes the registers of a server, which hear of readings by their topics:
// those of devices and of MQTT clients alike.
func (gw *gateway) registers(table string, cfg *config.Config, o server.RegistersOptions) (values *server.Registers, forget func(), err error) {
	prefix := cfg.Gateway.Readings + "/"
	w := &commandWriter{b: gw.g.broker, prefix: prefix, name: table, confirm: o.Confirm, mark: rand.Text(), waiting: map[string]chan adapters.Result{}}
	values, err = server.NewRegisters(table, o, server.Identity{Version: version, Name: cfg.Gateway.ID}, w, gw.parts)
	if err != nil {
		return nil, nil, err
	}
	seen := map[string]bool{}
	var topics, results []string
	add := func(list *[]string, topic string) {
		if !seen[topic] {
			seen[topic] = true
			*list = append(*list, topic)
		}
	}
	for _, r := range o.Registers {
		add(&topics, prefix+r.Device) // readings.per = "device"
		add(&topics, prefix+r.Device+"/"+r.Point)
		if r.Write && o.Confirm {
			add(&results, prefix+r.Device+"/"+r.Point+"/set/result")
		}
	}
	site := edgeSite{b: gw.g.broker, prefix: prefix}
	inbox, err := gw.g.broker.OpenInbox(broker.InboxOptions{Name: table, Queue: observed, MaxSize: maxObserved}, topics,
		func(in broker.Incoming) { values.Put(in.Received, site.readings(in.Message)...) })
	if err != nil {
		return nil, nil, err
	}
	answers, err := gw.g.broker.OpenInbox(broker.InboxOptions{Name: table, Queue: commandQueue, MaxSize: maxCommand}, results,
		func(in broker.Incoming) { w.result(in.Message) })
	if err != nil {
		inbox.Close()
		return nil, nil, err
	}
	gw.g.watchers.set(table, values)
	for _, d := range gw.g.monitor.Status() {
		values.SetDevice(d.Device, reachable(d.State))
	}
	return values, func() {
		gw.g.watchers.set(table, nil)
		inbox.Close()
		answers.Close()
	}, nil
}

// commandWriter writes points by their set topics, as a client would, so that all
// that is checked there is checked.
type commandWriter struct {
	b      *broker.Broker
	prefix string
	name   string
	// confirm says that the result is waited for.
	confirm bool
	// mark begins the correlation data of this writer's commands: nobody can
	// guess it, and answer in the device's place.
	mark string

	mu      sync.Mutex
	next    uint64                          // guarded by mu
	waiting map[string]chan adapters.Result // guarded by mu; by correlation data
}

// Write is part of server.Writer.
func (w *commandWriter) Write(ctx context.Context, device, point string, value any) (read any, err error) {
	payload, err := commandPayload(value)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	w.next++
	id := fmt.Sprintf("%s%d", w.mark, w.next)
	answer := make(chan adapters.Result, 1)
	w.waiting[id] = answer
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.waiting, id)
	}()
	properties, err := packet.PublishProperties{CorrelationData: []byte(id)}.AppendTo(nil)
	if err != nil {
		return nil, err
	}
	m := &message.Message{
		Topic: w.prefix + device + "/" + point + "/set", Payload: payload, Properties: properties, QoS: 1, Received: time.Now(), From: w.name,
	}
	if until, ok := ctx.Deadline(); ok {
		m.HasExpiry, m.Expiry = true, uint32(max(time.Until(until)/time.Second, 1))
	}
	safe := make(chan error, 1)
	if err := w.b.Publish(m, durable.Origin{}, func(err error) { safe <- err }); err != nil {
		return nil, err
	}
	if !w.confirm {
		select {
		case err := <-safe:
			return nil, err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	select {
	case res := <-answer:
		switch res.Outcome {
		case adapters.OutcomeOK:
			return res.Read, nil
		case adapters.OutcomeRefused:
			return nil, fmt.Errorf("%w: %s", server.ErrRefused, res.Reason)
		default:
			return nil, errors.New(res.Reason)
		}
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// result takes what became of a command, ours or another's.
func (w *commandWriter) result(m *message.Message) {
	p, err := packet.ParsePublishProperties(m.Properties)
	if err != nil {
		return // cannot be: they were checked when it came
	}
	var res adapters.Result
	numbers := json.NewDecoder(bytes.NewReader(m.Payload))
	numbers.UseNumber() // as it stands there
	if numbers.Decode(&res) != nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if answer := w.waiting[string(p.CorrelationData)]; answer != nil {
		delete(w.waiting, string(p.CorrelationData)) // one is enough
		answer <- res
	}
}
