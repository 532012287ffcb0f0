package main

import (
	"context"
	"net"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/creack/pty"
	"github.com/rogpeppe/go-internal/testscript"

	"holdfast/adapters/modbus"
	"holdfast/adapters/modbus/modbustest"
	"holdfast/adapters/port"
)

// slave tcp|rtu NAME sets NAME to where units 3, 17 and 20 answer: 3 is a meter
// (an Eastron SDM120 by its registers), 17 says who it is, 20 refuses all there is
// to read.
func slave(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 || args[0] != "tcp" && args[0] != "rtu" {
		ts.Fatalf("usage: slave tcp|rtu NAME")
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var closing func()
	framing := modbustest.RTU
	if args[0] == "tcp" {
		framing = modbustest.TCP
	}
	s := modbustest.New(modbustest.Options{Framing: framing})
	fillSlave(s)
	if args[0] == "tcp" {
		var lc net.ListenConfig
		l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
		ts.Check(err)
		ts.Setenv(args[1], "tcp://"+l.Addr().String())
		wg.Go(func() { _ = s.ServeTCP(ctx, l) }) // it ends with ctx
		closing = func() {}
	} else {
		master, tty, err := pty.Open()
		ts.Check(err)
		ts.Setenv(args[1], tty.Name())
		modbustest.Nonblocking(master)
		wg.Go(func() { _ = s.Serve(ctx, master) }) // it ends with ctx
		closing = func() { _ = master.Close(); _ = tty.Close() }
	}
	ts.Defer(func() {
		cancel()
		wg.Wait()
		closing()
	})
}

func fillSlave(s *modbustest.Slave) {
	meter := s.Unit(3)
	for addr, v := range map[uint16]float32{0: 230.5, 6: 1.5, 12: 345, 18: 346, 24: 1, 30: 0.99, 70: 50, 72: 1234.5, 74: 0, 76: 0, 78: 0, 84: 345, 86: 0, 88: 0, 90: 0, 92: 0, 94: 0, 258: 0, 264: 0, 342: 1234.5, 344: 0} {
		meter.SetInput(addr, modbustest.Float32(v, "ABCD")...)
	}
	device := s.Unit(17)
	device.SetHolding(0, 0x4148, 0x0000, 0x4148, 0xfffe, 0x2026)
	device.SetHolding(100, 0, 0, 0)
	device.SetCoil(0, true, false, true)
	device.SetIdentity("Example Works", "EX-17", "2.4")
	s.Unit(20)
}

// What two others say on a line is decoded as it comes, and summed up at the end.
func TestModbusSniff(t *testing.T) {
	master, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	defer tty.Close()
	o := port.DefaultOptions()
	o.Device = tty.Name()
	p, err := openPort(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out lockedBuffer
	ended := make(chan error, 1)
	sniffing := sniffOptions{framing: modbus.FramingRTU}
	go func() { ended <- sniffing.sniff(ctx, p, o, &out) }()
	r := modbus.Request{Unit: 3, Function: modbus.ReadInputRegisters, Addr: 30, Count: 1}
	pdu, err := r.AppendPDU(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := master.Write(modbus.AppendRTU(nil, 3, pdu)); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, "the request", func() bool {
		return strings.Contains(out.String(), "unit 3   request: unit 3 read input registers 30")
	})
	if _, err := master.Write(modbus.AppendRTU(nil, 3, []byte{0x84, 2})); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, "the exception", func() bool { return strings.Contains(out.String(), "exception: 2 (illegal data address) after ") })
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("sniff = %v", err)
	}
	if want := regexp.MustCompile(`\n3     1         0        1           0          0        [0-9.]+ ms`); !want.MatchString(out.String()) {
		t.Errorf("the summary is not in\n%s", out.String())
	}
}
