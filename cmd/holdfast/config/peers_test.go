package config

import (
	"strings"
	"testing"
)

// Keys that mean nothing to what a port is are errors that name them.
func TestPortsHaveTheKeysOfTheirKind(t *testing.T) {
	tests := map[string]struct{ in, want string }{
		"baud of a peer":       {"[port.p]\ndevice='tcp://plc'\nbaud=9600\n", `h.toml:3: port.p.baud: means nothing to a tcp:// peer`},
		"TLS of a serial port": {"[port.p]\ndevice='/dev/x'\nca_file='x'\n", `h.toml:3: port.p.ca_file: means nothing to a serial port`},
		"TLS of a plain peer":  {"[port.p]\ndevice='tcp://plc'\nca_file='x'\n", `h.toml:3: port.p.ca_file: means nothing to a tcp:// peer`},
		"warm-up of a peer":    {"[port.p]\ndevice='udp://plc'\nwarm_up='1s'\n", `h.toml:3: port.p.warm_up: means nothing to a udp:// peer`},
		"no such key":          {"[port.p]\ndevice='tcp://plc'\npipelin=2\n", `h.toml:3: port.p.pipelin: unknown key`},
		"another scheme":       {"[port.p]\ndevice='http://plc'\n", `h.toml:2: port.p.device: `},
		"too many at once":     {"[port.p]\ndevice='tcp://plc'\npipeline=17\n", `h.toml:3: port.p.pipeline: 17 is outside 1..16`},
		"serial on a peer":     {"[port.p]\ndevice='tcp://plc'\n[device.b]\nadapter='serial'\nport='p'\nformat='json'\n[[device.b.point]]\nname='x'\n", `h.toml:5: device.b.port: port p is a Modbus peer, no serial line`},
		"RTU with 7 bits":      {"[port.p]\ndevice='/dev/x'\ndata_bits=7\n[device.d]\nadapter='modbus'\nport='p'\nunit=1\n[[device.d.point]]\nname='a'\nregister='holding:1'\n", `h.toml:3: port.p.data_bits: Modbus RTU has 8 data bits, not 7`},
		"unit 250 on a line":   {"[port.p]\ndevice='/dev/x'\n[device.d]\nadapter='modbus'\nport='p'\nunit=250\n[[device.d.point]]\nname='a'\nregister='holding:1'\n", `h.toml:6: device.d.unit: 250 is outside 1..247`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			root, err := parse("h.toml", []byte(tt.in))
			if err != nil {
				t.Fatal(err)
			}
			if _, err = decodeConfig(root); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got  %v\nwant %s", err, tt.want)
			}
		})
	}
}
