//go:build integration

package modbus

import (
	"bytes"
	"context"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"holdfast/adapters/modbus/modbustest"
)

// The slave of the tests over TCP, judged by libmodbus.
func TestMbpollReadsOurSlaveOverTCP(t *testing.T) {
	s := modbustest.New(modbustest.Options{Framing: modbustest.TCP})
	s.Unit(17).SetHolding(107, 0xae41, 0x5652, 0x4340)
	_, port, err := net.SplitHostPort(strings.TrimPrefix(serveNet(t, s, PeerTCP, nil), "tcp://"))
	if err != nil {
		t.Fatal(err)
	}
	out, ok := mbpoll(t, "-m", "tcp", "-p", port, "-a", "17", "-0", "-1", "-t", "4:hex", "-r", "107", "-c", "3", "127.0.0.1")
	for _, want := range []string{"[107]: \t0xAE41", "[108]: \t0x5652", "[109]: \t0x4340"} {
		if !ok || !strings.Contains(out, want) {
			t.Errorf("mbpoll printed (success %v):\n%s\nwant %q", ok, out, want)
		}
	}
}

// pymodbusTCP is unit 17 behind a TCP or UDP server.
const pymodbusTCP = `
import sys
from pymodbus.datastore import ModbusSequentialDataBlock, ModbusServerContext, ModbusSlaveContext
from pymodbus.server import StartTcpServer, StartUdpServer

unit = ModbusSlaveContext(zero_mode=True, hr=ModbusSequentialDataBlock(0, [65526, 7]), co=ModbusSequentialDataBlock(5, [False, True]))
start = StartUdpServer if sys.argv[1] == "udp" else StartTcpServer
start(context=ModbusServerContext(slaves={17: unit}, single=False), address=("127.0.0.1", int(sys.argv[2])))
`

func TestBusReadsPymodbusOverTheNetwork(t *testing.T) {
	for _, scheme := range []string{PeerTCP, PeerUDP} {
		t.Run(scheme, func(t *testing.T) {
			var lc net.ListenConfig
			free, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			address := free.Addr().String()
			_, port, err := net.SplitHostPort(address)
			if err != nil {
				t.Fatal(err)
			}
			if err := free.Close(); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			cmd := exec.CommandContext(ctx, "/usr/bin/python3", "-c", pymodbusTCP, scheme, port)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				cancel()
				_ = cmd.Wait() // killed
				if t.Failed() {
					t.Logf("pymodbus said:\n%s", &stderr)
				}
			})
			d := DefaultDevice()
			d.Name, d.Unit, d.Every = "py", 17, 50*time.Millisecond
			d.Points = []Point{
				{Name: "t", Register: "holding:0", Type: "int16", Scale: 0.1},
				{Name: "on", Register: "coil:6"},
			}
			po := DefaultPeerOptions()
			po.Device = scheme + "://" + address
			_, sink := runPeer(t, po, d) // calls until pymodbus is there
			sink.wait(t, 5, func(m string) bool { return strings.HasPrefix(m, `sensors/py/t {"value":-1,"quality":"good"`) })
			sink.wait(t, 5, func(m string) bool { return strings.HasPrefix(m, `sensors/py/on {"value":true,"quality":"good"`) })
		})
	}
}
