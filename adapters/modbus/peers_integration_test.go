//go:build integration

package modbus

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/adapters/modbus/modbustest"
	"holdfast/adapters/port"
)

// Other people's Modbus at the other end. `make test` installs mbpoll and
// python3-pymodbus where it may; a missing one fails the test, it is not passed
// over in silence.

// mbpoll runs Debian's mbpoll (libmodbus) once and returns what it printed.
func mbpoll(t *testing.T, args ...string) (out string, ok bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	b, err := exec.CommandContext(ctx, "mbpoll", args...).CombinedOutput()
	if err != nil && ctx.Err() != nil {
		t.Fatalf("mbpoll %v: %v\n%s", args, err, b)
	}
	return string(b), err == nil
}

// The slave of the tests and the demonstration, judged by libmodbus.
func TestMbpollReadsOurSlave(t *testing.T) {
	master, path := openPty(t)
	s := modbustest.New(modbustest.Options{})
	u := s.Unit(17)
	u.SetHolding(107, 0xae41, 0x5652, 0x4340)
	u.SetHolding(200, modbustest.Float32(123.456, "CDAB")...)
	u.SetInput(8, 10)
	u.SetCoil(19, true, false, true)
	u.SetDiscrete(3, true)
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, master) }()
	defer func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve = %v", err)
		}
	}()
	rtu := []string{"-m", "rtu", "-b", "19200", "-P", "none", "-a", "17", "-0", "-1", "-o", "2"}
	tests := map[string]struct {
		args []string
		want []string
		ok   bool
	}{
		"holding registers": {[]string{"-t", "4:hex", "-r", "107", "-c", "3", path}, []string{"[107]: \t0xAE41", "[108]: \t0x5652", "[109]: \t0x4340"}, true},
		"float":             {[]string{"-t", "4:float", "-r", "200", path}, []string{"[200]: \t123.456"}, true},
		"input register":    {[]string{"-t", "3", "-r", "8", path}, []string{"[8]: \t10"}, true},
		"coils":             {[]string{"-t", "0", "-r", "19", "-c", "3", path}, []string{"[19]: \t1", "[20]: \t0", "[21]: \t1"}, true},
		"discrete input":    {[]string{"-t", "1", "-r", "3", path}, []string{"[3]: \t1"}, true},
		"no such register":  {[]string{"-t", "4", "-r", "999", path}, []string{"Illegal data address"}, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			out, ok := mbpoll(t, slices.Concat(rtu, tt.args)...)
			for _, want := range tt.want {
				if !strings.Contains(out, want) || ok != tt.ok {
					t.Errorf("mbpoll printed (success %v):\n%s\nwant %q (success %v)", ok, out, want, tt.ok)
				}
			}
		})
	}
	t.Run("writes", func(t *testing.T) {
		if out, ok := mbpoll(t, slices.Concat(rtu, []string{"-t", "4", "-r", "107", path, "1", "2", "3"})...); !ok {
			t.Errorf("mbpoll could not write registers:\n%s", out)
		}
		if out, ok := mbpoll(t, slices.Concat(rtu, []string{"-t", "0", "-r", "20", path, "1"})...); !ok {
			t.Errorf("mbpoll could not write a coil:\n%s", out)
		}
		if got := []uint16{u.Holding(107), u.Holding(108), u.Holding(109)}; !slices.Equal(got, []uint16{1, 2, 3}) || !u.Coil(20) {
			t.Errorf("registers %v, coil %v after the writes, want 1 2 3, true", got, u.Coil(20))
		}
	})
}

// pymodbusSlave is a unit 17 with values that the master does not know.
const pymodbusSlave = `
import sys
from pymodbus.datastore import ModbusSequentialDataBlock, ModbusServerContext, ModbusSlaveContext
from pymodbus.device import ModbusDeviceIdentification
from pymodbus.payload import BinaryPayloadBuilder
from pymodbus.constants import Endian
from pymodbus.transaction import ModbusRtuFramer
from pymodbus.server import StartSerialServer

def registers(byteorder, wordorder):
    b = BinaryPayloadBuilder(byteorder=byteorder, wordorder=wordorder)
    b.add_32bit_float(123.456)
    b.add_32bit_int(-66052)
    b.add_64bit_uint(0x0123456789abcdef)
    b.add_16bit_int(-2)
    return b.to_registers()

hr = registers(Endian.Big, Endian.Big) + registers(Endian.Big, Endian.Little)
unit = ModbusSlaveContext(
    zero_mode=True,
    hr=ModbusSequentialDataBlock(0, hr),
    ir=ModbusSequentialDataBlock(30, [215]),
    co=ModbusSequentialDataBlock(5, [False, True]),
    di=ModbusSequentialDataBlock(9, [True]),
)
identity = ModbusDeviceIdentification(info_name={
    "VendorName": "pymodbus", "ProductCode": "PM", "MajorMinorRevision": "3"})
print("ready", flush=True)
StartSerialServer(context=ModbusServerContext(slaves={17: unit}, single=False), identity=identity, framer=ModbusRtuFramer,
                  port=sys.argv[1], baudrate=19200, parity="N", bytesize=8, stopbits=1, timeout=0.01)
`

// Our master against pymodbus, through two ptys whose masters are joined.
func TestBusReadsPymodbus(t *testing.T) {
	for _, driver := range []string{port.DriverBugst, port.DriverTarm} {
		t.Run(driver, func(t *testing.T) {
			ours, ourPath := openPty(t)
			theirs, theirPath := openPty(t)
			// A pty whose other side nobody has open gives EIO: keep both open.
			for _, p := range []string{ourPath, theirPath} {
				f, err := os.OpenFile(p, os.O_RDWR, 0)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
			}
			join(t, ours, theirs)

			ctx, cancel := context.WithCancel(context.Background())
			cmd := exec.CommandContext(ctx, "/usr/bin/python3", "-c", pymodbusSlave, theirPath)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				cancel()
				_ = cmd.Wait() // killed
				if t.Failed() {
					t.Logf("pymodbus said:\n%s", &stderr)
				}
			}()
			if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "ready\n" {
				t.Fatalf("pymodbus said %q: %v", line, err)
			}

			d := DefaultDevice()
			d.Name, d.Unit, d.Every = "py", 17, 50*time.Millisecond
			d.Points = []Point{
				{Name: "f", Register: "holding:0", Type: "float32"},
				{Name: "i", Register: "holding:2", Type: "int32"},
				{Name: "q", Register: "holding:4", Type: "uint64"},
				{Name: "h", Register: "holding:8", Type: "int16"},
				{Name: "fs", Register: "holding:9", Type: "float32", Order: "CDAB"},
				{Name: "is", Register: "holding:11", Type: "int32", Order: "CDAB"},
				{Name: "qs", Register: "holding:13", Type: "uint64", Order: "CDAB"},
				{Name: "gone", Register: "holding:18"},
				{Name: "t", Register: "input:30", Scale: 0.1},
				{Name: "c", Register: "coil:6"},
				{Name: "d", Register: "discrete:9"},
			}
			o := DefaultOptions()
			o.Devices = []Device{d}
			bus, sink := runBus(t, portOptions(driver, ourPath), o)
			for point, want := range map[string]string{
				"f": "123.456", "i": "-66052", "q": "81985529216486895", "h": "-2",
				"fs": "123.456", "is": "-66052", "qs": "81985529216486895",
				"t": "21.5", "c": "true", "d": "true",
			} {
				sink.wait(t, 3, func(m string) bool {
					return strings.HasPrefix(m, "sensors/py/"+point+` {"value":`+want+`,"quality":"good",`)
				})
			}
			sink.wait(t, 1, func(m string) bool {
				return strings.HasPrefix(m, `sensors/py/gone {"value":null,"quality":"bad","reason":"exception 2`)
			})
			writeTo(t, bus, 17)
			sink.wait(t, 1, func(m string) bool { return strings.HasPrefix(m, `sensors/py/h {"value":-5,"quality":"good",`) })
			u := bus.Status().Units[0]
			t.Logf("%d requests, %d answers, %d exceptions, %d timeouts, %d probes", u.Requests, u.Answers, u.Exceptions, u.Timeouts, u.Probes)
			if u.State != UnitUp {
				t.Errorf("unit is %v: %s", u.State, u.LastError)
			}
		})
	}
}

// writeTo has another implementation carry out each function that writes, and
// reads what it has then.
func writeTo(t *testing.T, bus *Bus, unit byte) {
	t.Helper()
	do := func(r Request) []byte {
		t.Helper()
		r.Unit = unit
		data, err := bus.Do(t.Context(), r)
		if err != nil {
			t.Errorf("%v: %v", r, err)
		}
		return data
	}
	do(Request{Function: WriteSingleCoil, Addr: 6, Count: 1, Data: []byte{0, 0}})
	do(Request{Function: WriteMultipleCoils, Addr: 5, Count: 2, Data: []byte{3}})
	if got := do(Request{Function: ReadCoils, Addr: 5, Count: 2}); len(got) != 1 || got[0]&3 != 3 {
		t.Errorf("coils % x, want 3", got)
	}
	do(Request{Function: WriteSingleRegister, Addr: 8, Count: 1, Data: []byte{0xff, 0xfb}}) // -5
	do(Request{Function: WriteMultipleRegisters, Addr: 16, Count: 2, Data: []byte{0, 0x12, 0, 9}})
	do(Request{Function: MaskWriteRegister, Addr: 16, Count: 1, Data: []byte{0, 0xf2, 0, 0x25}})
	got := do(Request{Function: ReadWriteRegisters, Addr: 16, Count: 2, WriteAddr: 17, Data: []byte{0, 10}})
	if want := []byte{0, 0x17, 0, 10}; !bytes.Equal(got, want) {
		t.Errorf("registers % x, want % x", got, want)
	}
	objects, err := Identify(t.Context(), bus.Do, unit, IdentifyBasic)
	if err != nil || len(objects) != 3 || string(objects[0].Value) != "pymodbus" {
		t.Errorf("identification %v, %v", objects, err)
	}
}

// join copies between the masters of two ptys until the test ends.
func join(t *testing.T, a, b *os.File) {
	t.Helper()
	done := make(chan struct{}, 2)
	for _, pair := range [][2]*os.File{{a, b}, {b, a}} {
		modbustest.Nonblocking(pair[0])
		go func() {
			_, _ = io.Copy(pair[1], pair[0])
			done <- struct{}{}
		}()
	}
	t.Cleanup(func() {
		_ = a.SetDeadline(time.Unix(1, 0))
		_ = b.SetDeadline(time.Unix(1, 0))
		<-done
		<-done
	})
}
