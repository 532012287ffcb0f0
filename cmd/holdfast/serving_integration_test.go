//go:build integration

package main

import (
	"context"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"
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
