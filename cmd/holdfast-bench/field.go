package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"holdfast/adapters/modbus/modbustest"
)

// fieldBench measures what it costs to read Modbus devices: every unit's points,
// once in every interval, over one TCP connection.
type fieldBench struct {
	units, points int
	every, length time.Duration
	rounds        int
	holdfast      string
	python        string
}

// fieldResult is one turn of one reader.
type fieldResult struct {
	reader string
	reads  uint64 // requests that the slave has answered
	cpu    time.Duration
	rss    int64
}

// pymodbusReader is the same reads by pymodbus; the values are thrown away, where
// Holdfast scales, stamps and publishes them.
const pymodbusReader = `
import asyncio, sys, time
from pymodbus.client import AsyncModbusTcpClient
async def main(port, units, points, every):
    client = AsyncModbusTcpClient("127.0.0.1", port=port)
    await client.connect()
    due = time.monotonic()
    while True:
        for unit in range(1, units + 1):
            answer = await client.read_holding_registers(0, points, slave=unit)
            if answer.isError():
                sys.exit("unit %d: %s" % (unit, answer))
            [r for r in answer.registers]
        due += every
        await asyncio.sleep(max(0, due - time.monotonic()))
asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])))
`

func runField(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	b := fieldBench{}
	fs := flag.NewFlagSet("holdfast-bench field", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.IntVar(&b.units, "units", 32, "units behind the connection")
	fs.IntVar(&b.points, "points", 50, "points of each, in one request")
	fs.DurationVar(&b.every, "every", time.Second, "how often each point is read")
	fs.DurationVar(&b.length, "time", 15*time.Second, "length of one measurement")
	fs.IntVar(&b.rounds, "rounds", 1, "rounds, in turns")
	fs.StringVar(&b.holdfast, "holdfast", "dist/holdfast", "the gateway")
	fs.StringVar(&b.python, "python", "/usr/bin/python3", "a Python that has pymodbus; without one Holdfast is measured alone")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if b.units < 1 || b.units > 247 || b.points < 1 || b.points > 125 || b.rounds < 1 || b.length < time.Second {
		return errors.New("units is 1 to 247, points 1 to 125, rounds at least 1 and time at least 1s")
	}
	return b.run(ctx, stdout, stderr)
}

func (b *fieldBench) run(ctx context.Context, stdout, stderr io.Writer) (err error) {
	slave := modbustest.New(modbustest.Options{Framing: modbustest.TCP})
	for id := 1; id <= b.units; id++ {
		u := slave.Unit(byte(id))
		for addr := range b.points {
			u.SetHolding(uint16(addr), uint16(id*1000+addr))
		}
		n := uint16(0)
		u.OnRead(func(modbustest.Request) { n++; u.SetHolding(0, n) }) // a value that changes
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	serving, stop := context.WithCancel(ctx)
	served := make(chan error, 1)
	go func() { served <- slave.ServeTCP(serving, l) }()
	defer func() {
		stop()
		err = errors.Join(err, <-served)
	}()
	addr, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		return fmt.Errorf("%v is no address of TCP", l.Addr())
	}

	readers := []peer{{name: "holdfast", command: b.holdfast + " run --config {dir}/h.toml"}}
	if err := exec.CommandContext(ctx, b.python, "-c", "import pymodbus").Run(); err != nil { //nolint:gosec // the operator's own
		fmt.Fprintf(stderr, "no pymodbus (%v): Holdfast alone\n", err)
	} else {
		readers = append(readers, peer{name: "pymodbus", command: fmt.Sprintf("%s {dir}/reader.py %d %d %d %g", b.python, addr.Port, b.units, b.points, b.every.Seconds())})
	}
	var results []fieldResult
	for range b.rounds {
		for _, r := range readers {
			res, err := b.measure(ctx, r, addr.Port, slave)
			if err != nil {
				return fmt.Errorf("%s: %w", r.name, err)
			}
			results = append(results, res)
		}
	}
	return b.report(stdout, results)
}

// config is a gateway that reads all of it and has nobody to tell.
func (b *fieldBench) config(dir string, port int) string {
	var s strings.Builder
	fmt.Fprintf(&s, "[gateway]\nid = \"bench\"\ndata = %q\n[[listener]]\naddress = \"tcp://127.0.0.1:0\"\n", dir)
	fmt.Fprintf(&s, "[port.field]\ndevice = \"tcp://127.0.0.1:%d\"\n", port)
	for id := 1; id <= b.units; id++ {
		fmt.Fprintf(&s, "[device.unit%d]\nadapter = \"modbus\"\nport = \"field\"\nunit = %d\nevery = %q\n", id, id, b.every)
		for p := range b.points {
			fmt.Fprintf(&s, "[[device.unit%d.point]]\nname = \"p%d\"\nregister = \"holding:%d\"\nscale = 0.1\nunit = \"V\"\n", id, p, p)
		}
	}
	return s.String()
}

func (b *fieldBench) measure(ctx context.Context, r peer, port int, slave *modbustest.Slave) (res fieldResult, err error) {
	dir, err := os.MkdirTemp("", "holdfast-bench")
	if err != nil {
		return res, err
	}
	proc := &process{dir: dir, addr: "127.0.0.1:" + strconv.Itoa(port)}
	for name, text := range map[string]string{"h.toml": b.config(dir, port), "reader.py": pymodbusReader} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return res, errors.Join(err, os.RemoveAll(dir))
		}
	}
	if err := r.again(ctx, proc); err != nil {
		return res, errors.Join(err, os.RemoveAll(dir))
	}
	defer proc.stop()
	// Until two rounds of reads are done it is starting, and not measured.
	start := slave.Stats().Answers
	if err := reached(ctx, slave, start+2*uint64(b.units)); err != nil {
		return res, fmt.Errorf("%w; it said: %s", err, proc.out.Bytes())
	}
	before, err := proc.cpu()
	if err != nil {
		return res, err
	}
	first := slave.Stats().Answers
	select {
	case <-time.After(b.length):
	case <-ctx.Done():
		return res, ctx.Err()
	}
	after, err := proc.cpu()
	if err != nil {
		return res, err
	}
	res = fieldResult{reader: r.name, reads: slave.Stats().Answers - first, cpu: after - before}
	res.rss, err = proc.rss()
	return res, err
}

// reached waits until the slave has answered that often.
func reached(ctx context.Context, slave *modbustest.Slave, answers uint64) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for slave.Stats().Answers < answers {
		select {
		case <-ctx.Done():
			return errors.New("it does not read")
		case <-tick.C:
		}
	}
	return nil
}

func (b *fieldBench) report(w io.Writer, results []fieldResult) error {
	fmt.Fprintf(w, "%d units x %d points every %v over one TCP connection, %v\n", b.units, b.points, b.every, b.length)
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "reader\treads/s\tof those wanted\tCPU\tus a point\tRSS MB\t")
	cost := map[string]float64{}
	wanted := float64(b.units) / b.every.Seconds()
	for _, r := range results {
		rate := float64(r.reads) / b.length.Seconds()
		us := 0.0
		if r.reads > 0 {
			us = float64(r.cpu.Microseconds()) / float64(r.reads) / float64(b.points)
		}
		cost[r.reader] = us
		fmt.Fprintf(t, "%s\t%.1f\t%.0f %%\t%.2f s\t%.2f\t%.1f\t\n", r.reader, rate, 100*rate/wanted, r.cpu.Seconds(), us, float64(r.rss)/1e6)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if cost["pymodbus"] > 0 {
		fmt.Fprintf(w, "CPU a point, Holdfast against pymodbus in the last round: %.2f\n", cost["holdfast"]/cost["pymodbus"])
	}
	return nil
}
