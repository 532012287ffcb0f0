package main

import (
	"context"
	"net"
	"sync"

	"github.com/creack/pty"
	"github.com/rogpeppe/go-internal/testscript"

	"holdfast/adapters/modbus/modbustest"
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
