//go:build integration

package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"

	"holdfast/adapters/modbus/modbustest"
	"holdfast/broker"
	"holdfast/broker/brokertest"
)

// other runs other people's master once and returns what it printed.
func other(t *testing.T, name string, args ...string) (out string, ok bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	b, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil && ctx.Err() != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, b)
	}
	return string(b), err == nil
}

// mbpoll (libmodbus) reads and writes values here, and the units of a line through
// here.
func TestMbpollAsMaster(t *testing.T) {
	r := newServingRig(t)
	tests := []struct {
		name, address string
		args          []string
		want          string
		ok            bool
	}{
		{"a float", r.server, []string{"-t", "4:float", "-B", "-r", "10"}, "[10]: \t20", true},
		{"its quality", r.server, []string{"-t", "4", "-r", "12"}, "[12]: \t0", true},
		{"an integer of two registers", r.server, []string{"-t", "3:int", "-B", "-r", "100"}, "[100]: \t1250", true},
		{"none yet", r.server, []string{"-t", "3:hex", "-r", "102"}, "[102]: \t0xFFFF", true},
		{"nothing there", r.server, []string{"-t", "3", "-r", "5"}, "Illegal data address", false},
		{"half of a value", r.server, []string{"-t", "4", "-r", "10"}, "Illegal data address", false},
		{"a write", r.server, []string{"-t", "4:float", "-B", "-r", "10", "host", "25.5"}, "Written 1 references", true},
		{"what was written", r.gateway, []string{"-t", "4", "-r", "0"}, "[0]: \t255", true},
		{"a write above the maximum", r.server, []string{"-t", "4:float", "-B", "-r", "10", "host", "31"}, "Illegal data value", false},
		{"registers of the unit", r.gateway, []string{"-t", "4", "-r", "0", "-c", "2"}, "[1]: \t7", true},
		{"a write to the unit", r.gateway, []string{"-t", "4", "-r", "1", "host", "9"}, "Written 1 references", true},
		{"and read", r.gateway, []string{"-t", "4", "-r", "1"}, "[1]: \t9", true},
		{"a unit that is silent", r.gateway, []string{"-a", "2", "-t", "4", "-r", "0"}, "Target device failed to respond", false},
		{"a unit that may not be", r.gateway, []string{"-a", "9", "-t", "4", "-r", "0"}, "Gateway path unavailable", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			host, port, err := net.SplitHostPort(tt.address)
			if err != nil {
				t.Fatal(err)
			}
			args := []string{"-m", "tcp", "-p", port, "-0", "-1", "-o", "5"}
			placed := false
			for _, a := range tt.args {
				if a == "host" {
					a, placed = host, true
				}
				args = append(args, a)
			}
			if !placed {
				args = append(args, host)
			}
			out, ok := other(t, "mbpoll", args...)
			if !strings.Contains(out, tt.want) || ok != tt.ok {
				t.Errorf("mbpoll %v printed (success %v):\n%s\nwant %q (success %v)", args, ok, out, tt.want, tt.ok)
			}
		})
	}
}

// lineFile is a gateway that is units 7 and 8 of somebody else's line.
const lineFile = `
[[listener]]
address = "tcp://127.0.0.1:0"
[port.plc]
device = %q
baud = 19200
driver = "bugst"
[modbus_server.plc]
address = "rtu:plc"
units = [7, 8]
[[modbus_server.plc.register]]
device = "client"
point = "level"
register = "holding:10"
type = "float32"
[[modbus_server.plc.register]]
device = "client"
point = "count"
register = "input:3"
`

// joinPtys carries bytes between two ptys and returns the paths of their other sides.
func joinPtys(t *testing.T) (a, b string) {
	t.Helper()
	var masters [2]*os.File
	var paths [2]string
	for i := range masters {
		master, slave, err := pty.Open()
		if err != nil {
			t.Fatal(err)
		}
		modbustest.Nonblocking(master)
		t.Cleanup(func() { _ = slave.Close() })
		masters[i], paths[i] = master, slave.Name()
	}
	var carrying sync.WaitGroup
	for i := range masters {
		carrying.Go(func() { _, _ = io.Copy(masters[1-i], masters[i]) })
	}
	t.Cleanup(func() {
		_, _ = masters[0].Close(), masters[1].Close()
		carrying.Wait()
	})
	return paths[0], paths[1]
}

// mbpoll (libmodbus) is the master of a line on which the gateway is a slave.
func TestMbpollOnALine(t *testing.T) {
	ours, theirs := joinPtys(t)
	file := filepath.Join(t.TempDir(), "h.toml")
	if err := os.WriteFile(file, fmt.Appendf(nil, lineFile, ours), 0o600); err != nil {
		t.Fatal(err)
	}
	gw := reloadable(t, file)
	client, far := net.Pipe()
	gw.g.broker.ServeConn(far, broker.Listener{Name: "pipe"})
	panel := brokertest.Connect(t, client, brokertest.V5("panel"))
	panel.Publish(0, false, "sensors/client/level", "21.5")
	panel.Publish(0, false, "sensors/client/count", "42")
	waitUntil(t, "the values and the line", func() bool {
		s := gw.snapshot()
		return len(s.Servers) == 1 && s.Servers[0].Values.Good == 2 && s.Servers[0].Line.Open
	})
	for _, tt := range []struct {
		name string
		args []string
		want string
		ok   bool
	}{
		{"a float", []string{"-a", "7", "-t", "4:float", "-B", "-r", "10", theirs}, "[10]: \t21.5", true},
		{"the other unit", []string{"-a", "8", "-t", "3", "-r", "3", theirs}, "[3]: \t42", true},
		{"nothing there", []string{"-a", "7", "-t", "3", "-r", "5", theirs}, "Illegal data address", false},
		{"a write", []string{"-a", "7", "-t", "4", "-r", "10", theirs, "1"}, "Illegal data address", false},
		{"another's unit", []string{"-a", "9", "-t", "3", "-r", "3", theirs}, "timed out", false},
		{"and again", []string{"-a", "7", "-t", "3", "-r", "3", theirs}, "[3]: \t42", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, ok := other(t, "mbpoll", append([]string{"-m", "rtu", "-b", "19200", "-P", "none", "-0", "-1", "-o", "2"}, tt.args...)...)
			if !strings.Contains(out, tt.want) || ok != tt.ok {
				t.Errorf("mbpoll printed (success %v):\n%s\nwant %q (success %v)", ok, out, tt.want, tt.ok)
			}
		})
	}
	s := gw.snapshot()
	if st := s.Servers[0]; st.Requests != 5 || st.Line.Answers != 5 || st.Line.Foreign != 1 || st.Line.Garbled != 0 {
		t.Errorf("status %+v, %+v", st, st.Line)
	}
	var text strings.Builder
	if err := s.print(&text); err != nil || !strings.Contains(text.String(), "rtu:plc; requests 5, with an exception 2; answers 5") {
		t.Errorf("%v\n%s", err, text.String())
	}
}

const pymodbusMaster = `
import sys
from pymodbus.client import ModbusTcpClient
from pymodbus.mei_message import ReadDeviceInformationRequest

def ask(what, r):
    if r.isError():
        print(what, "exception", getattr(r, "exception_code", r))
    elif hasattr(r, "registers"):
        print(what, r.registers)
    elif hasattr(r, "information"):
        print(what, r.information[0].decode(), r.information[6].decode())
    else:
        print(what, "done")

server = ModbusTcpClient("127.0.0.1", port=int(sys.argv[1]))
gateway = ModbusTcpClient("127.0.0.1", port=int(sys.argv[2]))
ask("float", server.read_holding_registers(10, 3, slave=1))
ask("write", server.write_registers(10, [0x41c8, 0], slave=1))
ask("above", server.write_registers(10, [0x42c6, 0], slave=1))
ask("readonly", server.write_register(12, 1, slave=1))
ask("both", server.readwrite_registers(read_address=10, read_count=2, write_address=10, write_registers=[0x41a0, 0], slave=1))
ask("identity", server.execute(ReadDeviceInformationRequest(2, 0, slave=1)))
ask("unit", gateway.read_holding_registers(0, 2, slave=1))
ask("unit write", gateway.write_registers(1, [9], slave=1))
ask("unit mask", gateway.mask_write_register(1, 0xff00, 0x0042, unit=1))  # not called slave here
ask("unit again", gateway.read_holding_registers(1, 1, slave=1))
ask("silent", gateway.read_holding_registers(0, 1, slave=2))
ask("nobody", gateway.read_holding_registers(0, 1, slave=9))
`

// pymodbus likewise.
func TestPymodbusAsMaster(t *testing.T) {
	r := newServingRig(t)
	_, server, _ := net.SplitHostPort(r.server)
	_, gateway, _ := net.SplitHostPort(r.gateway)
	out, ok := other(t, "/usr/bin/python3", "-c", pymodbusMaster, server, gateway)
	want := `float [16800, 0, 0]
write done
above exception 3
readonly exception 2
both [16800, 0]
identity Holdfast ` + r.gw.cfg.Gateway.ID + `
unit [200, 7]
unit write done
unit mask done
unit again [66]
silent exception 11
nobody exception 10
`
	if !ok || out != want {
		t.Errorf("pymodbus printed (success %v):\n%s\nwant\n%s", ok, out, want)
	}
}
