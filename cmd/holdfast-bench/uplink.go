package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
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
	holdfast, mosquitto string
	scale               float64
	hour                int
	only, link          string
	out                 io.Writer
	rows                [][]string
}

// A reading as the issue has it.
const (
	uplinkPayload = 64
	uplinkTopics  = 200
	// uplinkInFlight is how many of a publisher may be without an answer, which
	// comes after a round trip to the cloud.
	uplinkInFlight = 200
)

// uplinkTopic has 40 characters.
func uplinkTopic(i int) string {
	return fmt.Sprintf("bench/site-0001/line-%02d/device-%04d/temp", i%20, i%uplinkTopics)
}

// uplinkReading is a payload of 64 bytes that changes as readings do.
func uplinkReading(i int) string {
	at := time.Unix(1_800_000_000, 0).UTC().Add(time.Duration(i) * 50 * time.Millisecond)
	value := 2000 + (i*7+i%uplinkTopics*31)%400
	s := fmt.Sprintf(`{"value":%d.%02d,"unit":"C","time":"%s"}`, value/100, value%100, at.Format("2006-01-02T15:04:05.000Z"))
	return s[:len(s)-1] + strings.Repeat(" ", uplinkPayload-len(s)) + "}"
}

// gatewayKind is one way of having messages carried to the cloud.
type gatewayKind struct {
	name   string
	secure bool
	// config is written to {dir}/conf, with {port}, {dir} and {cloud}
	// (host:port) replaced; command is then run.
	config, command string
	batched         bool // the sink cannot count readings
}

func (b *uplinkBench) kind(name string) gatewayKind {
	k := gatewayKind{name: name}
	rest, secure := strings.CutSuffix(name, " TLS")
	k.secure = secure
	if rest == "mosquitto" {
		ca := ""
		if secure {
			ca = "bridge_cafile {dir}/ca.pem\nbridge_insecure true\n"
		}
		// Its best: no limits, nothing kept on disk.
		k.config = "listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nuser root\nmax_queued_messages 0\nmax_inflight_messages 0\n" +
			"connection cloud\naddress {cloud}\ntopic bench/# out 1\ncleansession false\nnotifications false\nrestart_timeout 1\ntry_private false\n" + ca
		k.command = b.mosquitto + " -c {dir}/conf"
		return k
	}
	scheme, uplink, route := "mqtt", "", ""
	if secure {
		scheme, uplink = "mqtts", "ca_file = \"{dir}/ca.pem\"\n"
	}
	switch strings.TrimPrefix(rest, "holdfast") {
	case " no alias":
		uplink += "topic_aliases = 0\n"
	case " jsonl":
		k.batched = true
		route = "batch = \"jsonl\"\ncompression = \"none\"\nbatch_topic = \"bench/batch\"\n"
	case " jsonl+zstd":
		k.batched = true
		route = "batch = \"jsonl\"\ncompression = \"zstd\"\nbatch_topic = \"bench/batch\"\n"
	case " cbor+zstd":
		k.batched = true
		route = "batch = \"cbor\"\ncompression = \"zstd\"\nbatch_topic = \"bench/batch\"\n"
	}
	k.config = "[gateway]\ndata = \"{dir}\"\n[store]\nmax_queue_messages = 100000000\n[[listener]]\naddress = \"tcp://127.0.0.1:{port}\"\n" +
		"[uplink.cloud]\nurl = \"" + scheme + "://{cloud}\"\nreconnect_min = \"200ms\"\nreconnect_max = \"400ms\"\nreconnect_spread = \"0s\"\n" + uplink +
		"[[uplink.cloud.route]]\ndirection = \"out\"\nfilter = \"" + livePrefix + "#\"\nlane = 6\n" +
		"[[uplink.cloud.route]]\ndirection = \"out\"\nfilter = \"" + uplinkPrefix + "#\"\n" + route
	k.command = b.holdfast + " run --config {dir}/conf"
	return k
}

// uplinkRun is a gateway, its link and its cloud.
type uplinkRun struct {
	kind  gatewayKind
	cloud *sink
	link  *relaytest.Relay
	proc  *process
}

// start brings up everything, with the link down unless up.
func (b *uplinkBench) start(ctx context.Context, k gatewayKind, o relaytest.Options, up bool) (*uplinkRun, error) {
	r := &uplinkRun{kind: k}
	var err error
	if r.cloud, err = newSink(ctx, k.secure); err != nil {
		return nil, err
	}
	if r.link, err = relaytest.New(ctx, r.cloud.l.Addr().String(), o); err != nil {
		r.cloud.close()
		return nil, err
	}
	if !up {
		r.link.Refuse()
	}
	files := map[string]string{"conf": strings.ReplaceAll(k.config, "{cloud}", r.link.Address())}
	if k.secure {
		files["ca.pem"] = string(r.cloud.pem)
	}
	if r.proc, err = (peer{name: k.name, command: k.command}).startWith(ctx, files); err != nil {
		r.link.Close()
		r.cloud.close()
		return nil, err
	}
	if !up {
		return r, nil
	}
	if err := r.connected(ctx); err != nil {
		r.stop()
		return nil, err
	}
	return r, nil
}

// connected waits until the gateway has its session with the cloud, and a
// moment for what it says first.
func (r *uplinkRun) connected(ctx context.Context) error {
	for late := time.Now().Add(stuck); ; {
		r.cloud.mu.Lock()
		there := r.cloud.sessions > 0
		r.cloud.mu.Unlock()
		if err := waitUntil(ctx, time.Now().Add(time.Second)); err != nil || there {
			return err
		}
		if time.Now().After(late) {
			return fmt.Errorf("the gateway does not connect; it said: %s", r.proc.out.Bytes())
		}
	}
}

func (r *uplinkRun) stop() {
	r.proc.stop()
	r.link.Close()
	r.cloud.close()
}

// publish has ten publishers send readings from number from on: n of them,
// perSecond, or as fast as they are acknowledged when that is 0.
func (r *uplinkRun) publish(ctx context.Context, from, n int, perSecond float64) error {
	var wg sync.WaitGroup
	errs := make([]error, storePublishers)
	var next atomic.Int64
	began := time.Now()
	for i := range errs {
		wg.Go(func() { errs[i] = r.publisher(ctx, "load"+strconv.Itoa(i), from, n, &next, perSecond, began) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (r *uplinkRun) publisher(ctx context.Context, id string, from, n int, next *atomic.Int64, perSecond float64, began time.Time) (err error) {
	c, err := connect(ctx, r.proc.addr, id, packet.V311)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	in := packet.NewReader(c, 16<<10)
	in.SetVersion(packet.V311)
	var out []byte
	flying, nextID, over := 0, uint16(0), false
	for !over || flying > 0 {
		for !over && flying < uplinkInFlight {
			i := int(next.Add(1)) - 1
			if over = i >= n; over {
				break
			}
			if perSecond > 0 {
				due := began.Add(time.Duration(float64(i) / perSecond * float64(time.Second)))
				if err := waitUntil(ctx, due); err != nil {
					return err
				}
			}
			nextID = nextID%60_000 + 1
			p := packet.Publish{Topic: []byte(uplinkTopic(from + i)), QoS: 1, PacketID: nextID, Payload: []byte(uplinkReading(from + i))}
			if out, err = p.AppendTo(out, packet.V311); err != nil {
				return err
			}
			flying++
			if perSecond > 0 {
				break // each in a write of its own, as sensors do
			}
		}
		if len(out) > 0 {
			if _, err := c.Write(out); err != nil {
				return err
			}
			out = out[:0]
		}
		if flying == 0 || perSecond > 0 && flying < uplinkInFlight && !over {
			continue
		}
		if err := c.SetReadDeadline(time.Now().Add(stuck)); err != nil {
			return err
		}
		for more := true; more; more = in.More() {
			if _, err := in.Next(); err != nil {
				return fmt.Errorf("%s: %d unanswered: %w", id, flying, err)
			}
			flying--
		}
	}
	return nil
}

func waitUntil(ctx context.Context, t time.Time) error {
	span := time.Until(t)
	if span <= 0 {
		return nil
	}
	timer := time.NewTimer(span)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// arrived waits until n readings are at the cloud, or, when they come in
// batches, until nothing has come for a while.
func (r *uplinkRun) arrived(ctx context.Context, n int) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	was, moved := int64(0), time.Now()
	for {
		up, _ := r.link.Bytes()
		if up != was {
			was, moved = up, time.Now()
		}
		got, _ := r.cloud.counts()
		quiet := time.Since(moved)
		switch {
		case !r.kind.batched && got >= n, r.kind.batched && got > 0 && quiet > 5*time.Second:
			return nil
		case quiet > stuck:
			return fmt.Errorf("%d of %d arrived; the gateway said: %s", got, n, r.proc.out.Bytes())
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
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
	before, err := r.proc.cpu()
	if err != nil {
		return err
	}
	if err := r.link.Restore(); err != nil {
		return err
	}
	if err := r.arrived(ctx, n); err != nil {
		return err
	}
	after, err := r.proc.cpu()
	if err != nil {
		return err
	}
	_, perSecond := r.cloud.counts()
	up, down := r.link.Bytes()
	b.note("drain "+p.name+": readings/s", k.name, "%.0f", perSecond)
	if p.rate > 0 {
		b.note("drain "+p.name+": share of the line", k.name, "%.1f %%", 100*float64(up)/float64(n)*perSecond/float64(p.rate))
	}
	b.note("drain "+p.name+": bytes up, down a reading", k.name, "%.1f, %.1f", float64(up)/float64(n), float64(down)/float64(n))
	b.note("drain "+p.name+": CPU µs a reading", k.name, "%.1f", float64((after-before).Microseconds())/float64(n))
	return nil
}

// wire counts the bytes of readings that come at their own pace.
func (b *uplinkBench) wire(ctx context.Context, k gatewayKind) error {
	const perSecond = 500
	n := int(20_000 * b.scale)
	r, err := b.start(ctx, k, relaytest.Options{Up: relaytest.Path{Delay: 50 * time.Millisecond}, Down: relaytest.Path{Delay: 50 * time.Millisecond}}, true)
	if err != nil {
		return err
	}
	defer r.stop()
	// The start, and every topic once, is not what a reading costs.
	if err := r.publish(ctx, 0, 2*uplinkTopics, perSecond); err != nil {
		return err
	}
	if err := r.arrived(ctx, 2*uplinkTopics); err != nil {
		return err
	}
	up, down := r.link.Bytes()
	cpu, err := r.proc.cpu()
	if err != nil {
		return err
	}
	flash, err := writtenBytes(r.proc.cmd.Process.Pid)
	if err != nil {
		return err
	}
	if err := r.publish(ctx, 2*uplinkTopics, n, perSecond); err != nil {
		return err
	}
	if err := r.arrived(ctx, 2*uplinkTopics+n); err != nil {
		return err
	}
	after, err := r.proc.cpu()
	if err != nil {
		return err
	}
	written, err := writtenBytes(r.proc.cmd.Process.Pid)
	if err != nil {
		return err
	}
	upNow, downNow := r.link.Bytes()
	b.note("live: bytes up a reading", k.name, "%.1f", float64(upNow-up)/float64(n))
	b.note("live: bytes up and down a reading", k.name, "%.1f", float64(upNow-up+downNow-down)/float64(n))
	b.note(fmt.Sprintf("live: CPU µs a reading at %d/s", perSecond), k.name, "%.1f", float64((after-cpu).Microseconds())/float64(n))
	b.note("live: bytes of flash a reading", k.name, "%.2f", float64(written-flash)/float64(n))
	return nil
}

// bridged is what a message costs the gateway's processor when there are many.
func (b *uplinkBench) bridged(ctx context.Context, k gatewayKind) error {
	n := int(200_000 * b.scale)
	path := relaytest.Path{Delay: 50 * time.Millisecond}
	r, err := b.start(ctx, k, relaytest.Options{Up: path, Down: path}, true)
	if err != nil {
		return err
	}
	defer r.stop()
	if err := r.publish(ctx, 0, 2000, 0); err != nil {
		return err
	}
	if err := r.arrived(ctx, 2000); err != nil {
		return err
	}
	before, err := r.proc.cpu()
	if err != nil {
		return err
	}
	if err := r.publish(ctx, 2000, n, 5000); err != nil {
		return err
	}
	if err := r.arrived(ctx, 2000+n); err != nil {
		return err
	}
	after, err := r.proc.cpu()
	if err != nil {
		return err
	}
	b.note("bridged at 5000/s: CPU µs a message", k.name, "%.1f", float64((after-before).Microseconds())/float64(n))
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

// startWith is start with files laid into the folder before.
func (p peer) startWith(ctx context.Context, files map[string]string) (*process, error) {
	dir, err := os.MkdirTemp("", "holdfast-bench")
	if err != nil {
		return nil, err
	}
	port, err := freePort(ctx)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	proc := &process{dir: dir, addr: net.JoinHostPort("127.0.0.1", port)}
	for name, text := range files {
		text = strings.NewReplacer("{port}", port, "{dir}", dir).Replace(text)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return nil, errors.Join(err, os.RemoveAll(dir))
		}
	}
	if err := p.again(ctx, proc); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	if err := proc.wait(ctx); err != nil {
		proc.stop()
		return nil, fmt.Errorf("%w; it said: %s", err, proc.out.Bytes())
	}
	return proc, nil
}
