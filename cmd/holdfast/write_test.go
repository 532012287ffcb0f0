package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/creack/pty"

	"holdfast/adapters"
	"holdfast/adapters/modbus/modbustest"
	"holdfast/broker"
	"holdfast/broker/brokertest"
	"holdfast/broker/packet"
)

// A client writes a point of a device behind a serial port, and is told where it
// wants what became of it: by MQTT 5.0 with its own mark, by 3.1.1 on the result
// topic.
func TestClientWritesAPoint(t *testing.T) {
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	defer slave.Close()
	modbustest.Nonblocking(master)
	plant := modbustest.New(modbustest.Options{})
	plant.Unit(1).SetHolding(0, 200)
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- plant.Serve(ctx, master) }()
	defer func() {
		cancel()
		<-served
	}()

	file := filepath.Join(t.TempDir(), "h.toml")
	text := fmt.Sprintf(`
[[listener]]
address = "tcp://127.0.0.1:0"
[port.rs485]
device = %q
baud = 19200
[device.boiler]
adapter = "modbus"
port = "rs485"
unit = 1
every = "100ms"
[[device.boiler.point]]
name = "setpoint"
register = "holding:0"
scale = 0.1
write = true
max = 30.0
`, slave.Name())
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	gw := reloadable(t, file)
	pipe := func() net.Conn {
		client, server := net.Pipe()
		gw.g.broker.ServeConn(server, broker.Listener{Name: "pipe"})
		return client
	}
	answer := func(m *packet.Publish) (r adapters.Result) {
		t.Helper()
		if err := json.Unmarshal(m.Payload, &r); err != nil {
			t.Fatalf("%s: %v", m.Payload, err)
		}
		return r
	}

	panel := brokertest.Connect(t, pipe(), brokertest.V5("panel"))
	watcher := brokertest.Connect(t, pipe(), brokertest.V5("watcher"))
	watcher.Subscribe(1, "sensors/boiler/setpoint")
	watcher.Message() // it is polled
	panel.Subscribe(1, "answers/panel")
	request, err := packet.PublishProperties{ResponseTopic: "answers/panel", CorrelationData: []byte("job 7")}.AppendTo(nil)
	if err != nil {
		t.Fatal(err)
	}
	set := func(payload string) packet.ReasonCode {
		return panel.PublishWith(&packet.Publish{QoS: 1, Topic: []byte("sensors/boiler/setpoint/set"), Payload: []byte(payload), Properties: request})
	}
	for i := range 2 { // the second is a repetition, and answered as such
		if reason := set("21.5"); reason != packet.ReasonSuccess {
			t.Errorf("PUBACK %v, want success: it has a subscriber", reason)
		}
		m := panel.Message()
		r := answer(m)
		got, err := packet.ParsePublishProperties(m.Properties)
		if err != nil || string(got.CorrelationData) != "job 7" || got.ContentType != "application/json" {
			t.Errorf("properties %+v, %v, want the mark of the request", got, err)
		}
		if r.Outcome != adapters.OutcomeOK || r.Value != 21.5 || r.Read != 21.5 || r.Device != "boiler" || r.Point != "setpoint" || r.Repeated != (i == 1) {
			t.Errorf("answer %d: %s", i, m.Payload)
		}
	}
	if v := plant.Unit(1).Holding(0); v != 215 {
		t.Errorf("the register is %d, want 215", v)
	}
	waitUntil(t, "the new value is a reading", func() bool {
		var reading struct{ Value float64 }
		return json.Unmarshal(watcher.Message().Payload, &reading) == nil && reading.Value == 21.5
	})

	old := brokertest.Connect(t, pipe(), brokertest.V4("old"))
	old.Subscribe(1, "sensors/boiler/setpoint/set/result")
	old.Publish(1, false, "sensors/boiler/setpoint/set", `{"value": 31, "id": "too hot"}`)
	if r := answer(old.Message()); r.Outcome != adapters.OutcomeRefused || r.ID != "too hot" || r.Reason != "the value is above max, 30" {
		t.Errorf("result %+v", r)
	}
	old.Publish(1, true, "sensors/boiler/setpoint/set", "5")
	if r := answer(old.Message()); r.Outcome != adapters.OutcomeRefused || r.Reason != adapters.StaleRetained {
		t.Errorf("result of a retained command %+v", r)
	}
	if v := plant.Unit(1).Holding(0); v != 215 {
		t.Errorf("the register is %d, want 215 still", v)
	}
	out, err := json.Marshal(gw.snapshot().Buses[0].Bus)
	if err != nil {
		t.Fatal(err)
	}
	var status struct{ Commands adapters.CommandStatus }
	if err := json.Unmarshal(out, &status); err != nil {
		t.Fatal(err)
	}
	want := adapters.CommandStatus{Received: 4, OK: 1, Refused: 2, Repeated: 1, Stale: 1}
	if status.Commands != want {
		t.Errorf("status %+v, want %+v", status.Commands, want)
	}
}
