package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"holdfast/broker/packet"
	"holdfast/storeforward/uplink/relaytest"
)

// The uplink benchmark: a gateway's way to the cloud through a link, beside
// Mosquitto's bridge with the same cloud and the same link.
//
//	10 publishers --> gateway (its own accounts) --> relay (counts bytes) --> sink
type uplinkBench struct {
	holdfast, mosquitto string  // executables
	scale               float64 // share of the readings
	hour                int     // messages of the long outage
	only, link          string  // parts of names of measurements and links
	out                 io.Writer
	rows                [][]string
}

// profile is a kind of link.
type profile struct {
	name     string
	trip     time.Duration
	rate     int // bytes/s each way
	readings int
}

func profiles() []profile {
	return []profile{
		{name: "100 ms, no limit", trip: 100 * time.Millisecond, readings: 300_000},
		{name: "300 ms, 1 Mbit/s", trip: 300 * time.Millisecond, rate: 125_000, readings: 25_000},
		{name: "600 ms, 50 kbit/s", trip: 600 * time.Millisecond, rate: 6250, readings: 2000},
	}
}

func (p profile) options() relaytest.Options {
	path := relaytest.Path{Delay: p.trip / 2, Rate: p.rate}
	o := relaytest.Options{Up: path, Down: path}
	if p.rate > 0 {
		o.Buffer = 4096
	}
	return o
}

func (b *uplinkBench) note(measure, kind, format string, args ...any) {
	value := fmt.Sprintf(format, args...)
	fmt.Fprintf(b.out, "%-44s %-22s %s\n", measure, kind, value)
	b.rows = append(b.rows, []string{measure, kind, value})
}

// drain fills the queue while the link is down and watches it empty.
func (b *uplinkBench) drain(ctx context.Context, k gatewayKind, p profile) error {
	n := int(float64(p.readings) * b.scale)
	r, err := b.start(ctx, k, p.options(), false)
	if err != nil {
		return err
	}
	defer r.stop()
	if err := r.publish(ctx, 0, n, 0); err != nil {
		return err
	}
	before, err := r.account()
	if err != nil {
		return err
	}
	if err := r.link.Restore(); err != nil {
		return err
	}
	if err := r.arrived(ctx, n); err != nil {
		return err
	}
	used, err := r.since(before)
	if err != nil {
		return err
	}
	_, perSecond := r.cloud.counts()
	up := per(used.up, n)
	b.note("drain "+p.name+": readings/s", k.name, "%.0f", perSecond)
	if p.rate > 0 {
		b.note("drain "+p.name+": share of the line", k.name, "%.1f %%", 100*up*perSecond/float64(p.rate))
	}
	b.note("drain "+p.name+": bytes up, down a reading", k.name, "%.1f, %.1f", up, per(used.down, n))
	b.note("drain "+p.name+": CPU µs a reading", k.name, "%.1f", per(used.cpu.Microseconds(), n))
	return nil
}

func per(amount int64, n int) float64 { return float64(amount) / float64(n) }

// steady publishes n readings at a pace over a link of 100 ms, and returns what
// they have used. Some before them do not count: the start, and every topic once,
// is not what a reading costs.
func (b *uplinkBench) steady(ctx context.Context, k gatewayKind, first int, firstPace float64, n int, perSecond float64) (used account, err error) {
	path := relaytest.Path{Delay: 50 * time.Millisecond}
	r, err := b.start(ctx, k, relaytest.Options{Up: path, Down: path}, true)
	if err != nil {
		return used, err
	}
	defer r.stop()
	if err := r.publish(ctx, 0, first, firstPace); err != nil {
		return used, err
	}
	if err := r.arrived(ctx, first); err != nil {
		return used, err
	}
	before, err := r.account()
	if err != nil {
		return used, err
	}
	if err := r.publish(ctx, first, n, perSecond); err != nil {
		return used, err
	}
	if err := r.arrived(ctx, first+n); err != nil {
		return used, err
	}
	return r.since(before)
}

// wire counts the bytes of readings that come at their own pace.
func (b *uplinkBench) wire(ctx context.Context, k gatewayKind) error {
	const perSecond = 500
	n := int(20_000 * b.scale)
	used, err := b.steady(ctx, k, 2*uplinkTopics, perSecond, n, perSecond)
	if err != nil {
		return err
	}
	b.note("live: bytes up a reading", k.name, "%.1f", per(used.up, n))
	b.note("live: bytes up and down a reading", k.name, "%.1f", per(used.up+used.down, n))
	b.note(fmt.Sprintf("live: CPU µs a reading at %d/s", perSecond), k.name, "%.1f", per(used.cpu.Microseconds(), n))
	b.note("live: bytes of flash a reading", k.name, "%.2f", per(used.flash, n))
	return nil
}

// bridged is what a message costs the gateway's processor when there are many.
func (b *uplinkBench) bridged(ctx context.Context, k gatewayKind) error {
	n := int(200_000 * b.scale)
	used, err := b.steady(ctx, k, 2000, 0, n, 5000)
	if err != nil {
		return err
	}
	b.note("bridged at 5000/s: CPU µs a message", k.name, "%.1f", per(used.cpu.Microseconds(), n))
	return nil
}

// live publishes a reading now and then while a backlog drains.
func (b *uplinkBench) live(ctx context.Context, k gatewayKind, p profile) error {
	n := max(p.readings, p.rate*20/80) // some 20 seconds of a line with a limit
	r, err := b.start(ctx, k, p.options(), false)
	if err != nil {
		return err
	}
	defer r.stop()
	if err := r.publish(ctx, 0, n, 0); err != nil {
		return err
	}
	c, err := connect(ctx, r.proc.addr, "live", packet.V311)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := r.link.Restore(); err != nil {
		return err
	}
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	sent, draining := 0, true
	for draining {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		got, _ := r.cloud.counts()
		if got == 0 {
			continue // the link is not back yet
		}
		// The last of them must still find a backlog before it.
		draining = got < n*8/10
		out, err := (&packet.Publish{Topic: []byte(livePrefix + "1"), QoS: 1, PacketID: uint16(sent%60_000) + 1, Payload: strconv.AppendInt(nil, time.Now().UnixNano(), 10)}).AppendTo(nil, packet.V311)
		if err != nil {
			return err
		}
		if _, err := c.Write(out); err != nil {
			return err
		}
		sent++
	}
	if err := r.arrived(ctx, n); err != nil {
		return err
	}
	r.cloud.mu.Lock()
	waits := slices.Clone(r.cloud.live)
	r.cloud.mu.Unlock()
	if len(waits) == 0 {
		return errors.New("no live reading came")
	}
	slices.Sort(waits)
	trips := func(share float64) float64 { return float64(quantile(waits, share)) / float64(p.trip) }
	b.note("live reading in a drain, "+p.name+": p50, p99, most, in round trips", k.name, "%.2f, %.2f, %.2f (%d of %d)", trips(0.5), trips(0.99), trips(1), len(waits), sent)
	return nil
}

// outageMemory is an hour without the cloud at 1000 messages a second, in less
// time than that.
func (b *uplinkBench) outageMemory(ctx context.Context, k gatewayKind) error {
	r, err := b.start(ctx, k, relaytest.Options{}, false)
	if err != nil {
		return err
	}
	defer r.stop()
	began := time.Now()
	if err := r.publish(ctx, 0, b.hour, 0); err != nil {
		return err
	}
	rss, err := r.proc.rss()
	if err != nil {
		return err
	}
	b.note(fmt.Sprintf("RSS MB after %d messages of an outage", b.hour), k.name, "%.1f (%.0f msg/s)", mb(rss), float64(b.hour)/time.Since(began).Seconds())
	return nil
}

func runUplink(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("holdfast-bench uplink", flag.ContinueOnError)
	fs.SetOutput(stderr)
	b := uplinkBench{out: stderr}
	fs.StringVar(&b.holdfast, "holdfast", "dist/holdfast", "the holdfast executable")
	fs.StringVar(&b.mosquitto, "mosquitto", "", "the mosquitto executable, for its bridge beside; empty leaves it out")
	fs.Float64Var(&b.scale, "scale", 1, "share of the readings of each measurement")
	fs.IntVar(&b.hour, "hour", 3_600_000, "messages of the long outage; 0 leaves it out")
	fs.StringVar(&b.only, "only", "", "comma-separated: drain, wire, bridged, live, outage; empty is all")
	fs.StringVar(&b.link, "link", "", "part of the name of the links to drain over: \"no limit\", \"1 Mbit\", \"50 kbit\"")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	plain := []string{"holdfast"}
	wires := []string{"holdfast", "holdfast TLS", "holdfast no alias", "holdfast jsonl", "holdfast jsonl+zstd", "holdfast jsonl+zstd TLS", "holdfast cbor+zstd"}
	if b.mosquitto != "" {
		plain = append(plain, "mosquitto")
		wires = append(wires, "mosquitto", "mosquitto TLS")
	}
	type step struct {
		name  string
		kinds []string
		do    func(context.Context, gatewayKind) error
	}
	steps := []step{{"wire", wires, b.wire}, {"bridged", plain, b.bridged}}
	for _, p := range profiles() {
		if !strings.Contains(p.name, b.link) {
			continue
		}
		steps = append(steps, step{"drain", plain, func(ctx context.Context, k gatewayKind) error { return b.drain(ctx, k, p) }})
		if p.rate > 0 {
			steps = append(steps, step{"live", plain, func(ctx context.Context, k gatewayKind) error { return b.live(ctx, k, p) }})
		}
	}
	if b.hour > 0 {
		steps = append(steps, step{"outage", []string{"holdfast"}, b.outageMemory})
	}
	for _, s := range steps {
		if b.only != "" && !slices.Contains(strings.Split(b.only, ","), s.name) {
			continue
		}
		for _, name := range s.kinds {
			if err := s.do(ctx, b.kind(name)); err != nil {
				return fmt.Errorf("%s, %s: %w", s.name, name, err)
			}
		}
	}
	t := tabwriter.NewWriter(stdout, 0, 8, 2, ' ', 0)
	for _, row := range b.rows {
		fmt.Fprintln(t, strings.Join(row, "\t"))
	}
	return t.Flush()
}
