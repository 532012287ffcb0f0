package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/creack/pty"

	"holdfast/adapters/health"
	"holdfast/adapters/modbus"
	"holdfast/adapters/modbus/modbustest"
	"holdfast/adapters/modbus/server"
	"holdfast/adapters/reading"
	"holdfast/broker"
	"holdfast/broker/brokertest"
	"holdfast/broker/message"
	"holdfast/cmd/holdfast/config"
)

// servingRig is a gateway with a device behind a pty, served as registers and let at.
type servingRig struct {
	gw              *gateway
	file            string
	unit            *modbustest.Unit
	server, gateway string // addresses
}

const servingFile = `
[[listener]]
address = "tcp://127.0.0.1:0"
[port.rs485]
device = %q
baud = 115200
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
[[device.boiler.point]]
name = "flow"
register = "input:8"
type = "float32"
[modbus_server.scada]
address = "tcp://%s"
[[modbus_server.scada.register]]
device = "boiler"
point = "setpoint"
register = "holding:10"
type = "float32"
write = true
quality = "holding:12"
[[modbus_server.scada.register]]
device = "boiler"
point = "flow"
register = "input:100"
type = "int32"
scale = 0.001
[[modbus_server.scada.register]]
device = "client"
point = "level"
register = "input:102"
[modbus_gateway.rs485]
address = "tcp://%s"
port = "rs485"
write_units = [1]
units = [1, 2]
`

func newServingRig(t *testing.T) *servingRig {
	t.Helper()
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	modbustest.Nonblocking(master)
	plant := modbustest.New(modbustest.Options{})
	r := &servingRig{unit: plant.Unit(1), file: filepath.Join(t.TempDir(), "h.toml"), server: freeAddress(t), gateway: freeAddress(t)}
	r.unit.SetHolding(0, 200, 7)
	r.unit.SetInput(8, modbustest.Float32(1.25, "ABCD")...)
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- plant.Serve(ctx, master) }()
	t.Cleanup(func() {
		cancel()
		<-served
		_ = master.Close()
		_ = slave.Close()
	})
	r.write(t, fmt.Sprintf(servingFile, slave.Name(), r.server, r.gateway))
	r.gw = reloadable(t, r.file)
	// The device has been read, and the sockets are open.
	waitUntil(t, "the answer", func() bool { return r.ask(t, r.server, 1, "\x03\x00\x0c\x00\x01") == "\x03\x02\x00\x00" })
	return r
}

func (r *servingRig) write(t *testing.T, text string) {
	t.Helper()
	if err := os.WriteFile(r.file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// ask makes one request on a connection of its own; empty: nobody was there.
func (r *servingRig) ask(t *testing.T, address string, unit byte, pdu string) string {
	t.Helper()
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address)
	if err != nil {
		return ""
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(modbus.AppendMBAP(nil, 7, unit, []byte(pdu))); err != nil {
		return ""
	}
	var head [7]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return ""
	}
	answer := make([]byte, binary.BigEndian.Uint16(head[4:])-1)
	if _, err := io.ReadFull(c, answer); err != nil {
		return ""
	}
	return string(answer)
}

// A device and an MQTT client are read as registers; what a master writes is written,
// or refused for the reason that anybody else would have.
func TestModbusServer(t *testing.T) {
	r := newServingRig(t)
	want := func(address string, unit byte, pdu, want string) {
		t.Helper()
		if got := r.ask(t, address, unit, pdu); got != want {
			t.Errorf("% x: got % x, want % x", pdu, got, want)
		}
	}
	want(r.server, 1, "\x03\x00\x0a\x00\x03", "\x03\x06\x41\xa0\x00\x00\x00\x00")
	waitUntil(t, "the answer", func() bool { return r.ask(t, r.server, 1, "\x04\x00\x64\x00\x02") == "\x04\x04\x00\x00\x04\xe2" })
	want(r.server, 1, "\x04\x00\x66\x00\x01", "\x04\x02\xff\xff")
	client, far := net.Pipe()
	r.gw.g.broker.ServeConn(far, broker.Listener{Name: "pipe"})
	panel := brokertest.Connect(t, client, brokertest.V5("panel"))
	for payload, answer := range map[string]string{
		"17": "\x04\x02\x00\x11", `{"value":18}`: "\x04\x02\x00\x12", `{"value":null,"quality":"bad"}`: "\x04\x02\xff\xff", "70000": "\x04\x02\xff\xff",
	} {
		panel.Publish(0, false, "sensors/client/level", payload)
		waitUntil(t, "the answer", func() bool { return r.ask(t, r.server, 1, "\x04\x00\x66\x00\x01") == answer })
		panel.Publish(0, false, "sensors/client/level", "3")
		waitUntil(t, "the answer", func() bool { return r.ask(t, r.server, 1, "\x04\x00\x66\x00\x01") == "\x04\x02\x00\x03" })
	}

	// 25.0, and read back; 99.0 is above the point's max; 21.57 is no step of it.
	want(r.server, 1, "\x10\x00\x0a\x00\x02\x04\x41\xc8\x00\x00", "\x10\x00\x0a\x00\x02")
	if got := r.unit.Holding(0); got != 250 {
		t.Errorf("the device has %d, want 250", got)
	}
	want(r.server, 1, "\x10\x00\x0a\x00\x02\x04\x42\xc6\x00\x00", "\x90\x03")
	want(r.server, 1, "\x10\x00\x0a\x00\x02\x04\x41\xac\x8f\x5c", "\x90\x03")
	// The device refuses.
	r.unit.Deny(modbustest.Holding, 0, 4)
	want(r.server, 1, "\x10\x00\x0a\x00\x02\x04\x41\xa0\x00\x00", "\x90\x04")
	// And its value is bad then.
	waitUntil(t, "the answer", func() bool {
		return r.ask(t, r.server, 1, "\x03\x00\x0a\x00\x03") == "\x03\x06\x7f\xc0\x00\x00\x00\x02"
	})

	s := r.gw.snapshot()
	if len(s.Servers) != 1 || len(s.Gateways) != 1 || s.Servers[0].Values == nil || s.Servers[0].Values.WritesFailed != 3 || s.Servers[0].Values.Writes != 4 {
		t.Errorf("status %+v, %+v", s.Servers, s.Gateways)
	}
	var text strings.Builder
	if err := s.print(&text); err != nil || !strings.Contains(text.String(), "modbus server") || !strings.Contains(text.String(), "writes 4, failed 3") {
		t.Errorf("%v\n%s", err, text.String())
	}
}

// Another master reads and writes units of the line, and is told of those that are
// not there; a reload moves it without a word to the bus.
func TestModbusGateway(t *testing.T) {
	r := newServingRig(t)
	want := func(address string, unit byte, pdu, want string) {
		t.Helper()
		if got := r.ask(t, address, unit, pdu); got != want {
			t.Errorf("% x: got % x, want % x", pdu, got, want)
		}
	}
	want(r.gateway, 1, "\x03\x00\x00\x00\x02", "\x03\x04\x00\xc8\x00\x07")
	want(r.gateway, 1, "\x06\x00\x01\x00\x09", "\x06\x00\x01\x00\x09")
	want(r.gateway, 1, "\x16\x00\x01\xff\x00\x00\x09", "\x16\x00\x01\xff\x00\x00\x09")
	want(r.gateway, 1, "\x03\x03\xe7\x00\x01", "\x83\x02")
	want(r.gateway, 2, "\x03\x00\x00\x00\x01", "\x83\x0b")
	want(r.gateway, 3, "\x03\x00\x00\x00\x01", "\x83\x0a")
	if got := r.unit.Holding(1); got != 9 {
		t.Errorf("the device has %d, want 9", got)
	}

	bus, was := r.gw.buses["rs485"], r.gateway
	r.gateway = freeAddress(t)
	text, err := os.ReadFile(r.file)
	if err != nil {
		t.Fatal(err)
	}
	r.write(t, strings.Replace(string(text), was, r.gateway, 1))
	data := r.gw.cfg.Gateway.Data
	load := func() (config.Config, error) { return loadConfig(r.file, data, nil) }
	if err := r.gw.applyReload(t.Context(), t.Context(), load); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, "the answer", func() bool {
		return r.ask(t, r.gateway, 1, "\x03\x00\x00\x00\x02") == "\x03\x04\x00\xc8\x00\x09"
	})
	if r.ask(t, was, 1, "\x03\x00\x00\x00\x01") != "" {
		t.Error("it still is where it was")
	}
	if r.gw.buses["rs485"] != bus {
		t.Error("the bus was replaced")
	}
	// An address that cannot be had is a problem, and no other part's.
	taken, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	r.write(t, strings.Replace(string(text), was, taken.Addr().String(), 1))
	if err := r.gw.applyReload(t.Context(), t.Context(), load); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, "the answer", func() bool {
		s := r.gw.snapshot()
		return strings.Contains(strings.Join(s.Problems, "\n"), "Modbus at tcp://"+taken.Addr().String()+" is not served: ")
	})
	want(r.server, 1, "\x03\x00\x0c\x00\x01", "\x03\x02\x00\x00")
}

// memoryLine is a serial line in memory with a slave at its end.
type memoryLine struct {
	slave *modbustest.Slave
	polls atomic.Int64
}

const char38400 = 10 * time.Second / 38400

func (l *memoryLine) Open(ctx context.Context) (modbus.Wire, error) {
	master, far := modbustest.NewLine(char38400)
	go func() { _ = l.slave.Serve(context.WithoutCancel(ctx), far) }() // until the line is closed
	return master, nil
}

func (l *memoryLine) Wait(ctx context.Context) error { return ctx.Err() }

func (l *memoryLine) Put(string, byte, ...reading.Reading) { l.polls.Add(1) }
func (l *memoryLine) PutMessage(string, *message.Message)  {}

// 32 reads a second from outside take nothing from the polls of the line, which
// would be 38400 baud: four devices of ten registers, each read ten times a second.
func TestModbusGatewayLeavesPollsTheirRate(t *testing.T) {
	const seconds = 60
	run := func(t *testing.T, outside int) (polls int64, answered, failed int) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			l := &memoryLine{slave: modbustest.New(modbustest.Options{Gap: 5 * time.Millisecond})}
			opts := modbus.DefaultOptions()
			opts.CharTime = char38400
			for unit := 1; unit <= 4; unit++ {
				l.slave.Unit(byte(unit)).SetHolding(0, make([]uint16, 10)...)
				d := modbus.DefaultDevice()
				d.Name, d.Unit, d.Every = fmt.Sprintf("d%d", unit), unit, 100*time.Millisecond
				d.Points = []modbus.Point{{Name: "a", Register: "holding:0", Type: "string", Length: 10}}
				opts.Devices = append(opts.Devices, d)
			}
			log := slog.New(slog.DiscardHandler)
			bus, err := modbus.New("rs485", opts, l, l, health.NewMonitor(func(health.Change) {}), log)
			if err != nil {
				t.Fatal(err)
			}
			g, err := server.NewGateway(server.DefaultGatewayOptions(), bus.Do)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- bus.Run(ctx) }()
			<-time.After(time.Second)
			before := l.polls.Load()
			start := time.Now()
			for i := range outside * seconds {
				<-time.After(time.Until(start.Add(time.Duration(i) * time.Second / time.Duration(outside))))
				if got := g.Handle(ctx, byte(1+i%4), []byte{3, 0, 0, 0, 2}, nil); len(got) == 6 {
					answered++
				} else {
					failed++
				}
			}
			<-time.After(time.Until(start.Add(seconds * time.Second)))
			polls = l.polls.Load() - before
			cancel()
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
		return polls, answered, failed
	}
	alone, _, _ := run(t, 0)
	polls, answered, failed := run(t, 32)
	t.Logf("polls %d, alone %d; outside %d answered, %d not", polls, alone, answered, failed)
	if polls < alone*99/100 {
		t.Errorf("%d polls beside requests from outside, %d without", polls, alone)
	}
	if failed > 0 || answered != 32*seconds {
		t.Errorf("%d answered, %d not", answered, failed)
	}
}
