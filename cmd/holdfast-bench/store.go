package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"

	"holdfast/broker/packet"
)

// The store benchmark: what a broker does for an offline persistent session,
// beside what SQLite does alone with the same driver and the same promises.
//
//	10 publishers, 20 in flight each --> broker --> a session that is away
//	                                            --> and comes back
type storeBench struct {
	messages, million int
	length            time.Duration
	only              string
	out               io.Writer
	values            map[string]map[string][]float64 // measure -> peer -> rounds
	order             []string
}

// The load that the table is about.
const (
	storePublishers = 10
	storeInFlight   = 20
	storePayload    = 100
)

// bare is the column of SQLite alone.
const bare = "bare SQLite"

func runStore(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("holdfast-bench store", flag.ContinueOnError)
	fs.SetOutput(stderr)
	var peers peerFlag
	fs.Var(&peers, "peer", "NAME=COMMAND that starts a broker on {port} with its data in {dir}; may be repeated")
	b := storeBench{out: stderr, values: map[string]map[string][]float64{}}
	rounds := fs.Int("rounds", 3, "rounds; the median counts")
	only := fs.String("only", "", "run the measurements of a broker whose names contain this: "+strings.Join(stepNames(), ", ")+"; drained needs acknowledged")
	fs.IntVar(&b.messages, "messages", 200_000, "messages of one measurement")
	fs.IntVar(&b.million, "backlog", 1_000_000, "messages of the long backlog; 0 leaves it out")
	fs.DurationVar(&b.length, "time", 3*time.Second, "length of a measurement that is not counted in messages")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	b.only = *only
	if *rounds < 1 || b.messages < 1000 || len(peers) == 0 {
		return errors.New("name at least one --peer, one round and 1000 messages")
	}
	for range *rounds {
		if err := b.sqlite(ctx); err != nil {
			return fmt.Errorf("%s: %w", bare, err)
		}
		for _, p := range peers { // in turns, so that a busy moment hits all of them
			if err := b.peer(ctx, p); err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
		}
	}
	for _, p := range peers {
		if b.million > 0 {
			if err := b.backlog(ctx, p); err != nil {
				return fmt.Errorf("%s: backlog: %w", p.name, err)
			}
		}
	}
	return b.report(stdout, peers)
}

func (b *storeBench) note(measure, peer string, v float64) {
	if b.values[measure] == nil {
		b.values[measure] = map[string][]float64{}
		b.order = append(b.order, measure)
	}
	b.values[measure][peer] = append(b.values[measure][peer], v)
	fmt.Fprintf(b.out, "%-40s %-14s %12.1f\n", measure, peer, v)
}

// The names of the measures that have a limit beside them.
const (
	acked1     = "QoS 1 acknowledged/s"
	bytes1     = "bytes written per message"
	batch1     = "messages per commit"
	cpuAcked   = "  CPU µs per message"
	drained    = "drained msg/s"
	cpuDrained = "  CPU µs per message drained"
	single     = "one in flight, acknowledged/s"
	pairedOne  = "  ratio to SQLite just before and after"
	acked2     = "QoS 2 completed/s"
	bytesOne   = "one in flight, bytes per message"
	ready      = "ready with the backlog, s"
	rssBacklog = "RSS growth with the backlog, MB"
)

func (b *storeBench) peer(ctx context.Context, p peer) error {
	proc, err := p.start(ctx)
	if err != nil {
		return err
	}
	defer proc.stop()
	for _, step := range steps {
		if !strings.Contains(step.name, b.only) && !(step.name == "acknowledged" && strings.Contains("drained", b.only)) {
			continue
		}
		if err := step.run(b, ctx, proc, p.name); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return nil
}

// steps are the measurements of a broker, in order.
var steps = []struct {
	name string
	run  func(*storeBench, context.Context, *process, string) error
}{
	{"acknowledged", (*storeBench).throughput},
	{"drained", (*storeBench).drain}, // what the one before has left
	{"one in flight", (*storeBench).oneInFlight},
	{"QoS 2", (*storeBench).exactlyOnce},
}

func stepNames() (names []string) {
	for _, s := range steps {
		names = append(names, s.name)
	}
	return names
}

func (b *storeBench) throughput(ctx context.Context, proc *process, name string) error {
	if err := newSession(ctx, proc.addr, "q/1"); err != nil {
		return err
	}
	before, err := writtenBytes(proc.cmd.Process.Pid)
	if err != nil {
		return err
	}
	commits := proc.counts(ctx).Commits
	cpu, err := proc.cpu()
	if err != nil {
		return err
	}
	took, err := publishMany(ctx, proc.addr, "q/1", 1, b.messages)
	if err != nil {
		return err
	}
	if err := b.noteCPU(cpuAcked, proc, name, cpu); err != nil {
		return err
	}
	after, err := writtenBytes(proc.cmd.Process.Pid)
	b.note(acked1, name, float64(b.messages)/took.Seconds())
	b.note(bytes1, name, float64(after-before)/float64(b.messages))
	if n := proc.counts(ctx).Commits - commits; n > 0 {
		b.note(batch1, name, float64(b.messages)/float64(n))
	}
	return err
}

func (b *storeBench) drain(ctx context.Context, proc *process, name string) error {
	cpu, err := proc.cpu()
	if err != nil {
		return err
	}
	took, err := drainSession(ctx, proc.addr, "q/1", b.messages)
	if err != nil {
		return err
	}
	b.note(drained, name, float64(b.messages)/took.Seconds())
	return b.noteCPU(cpuDrained, proc, name, cpu)
}

// noteCPU notes what each message has cost a broker: unlike the speed it does not
// depend on what else the machine does.
func (b *storeBench) noteCPU(measure string, proc *process, name string, before time.Duration) error {
	after, err := proc.cpu()
	if err == nil {
		b.note(measure, name, float64((after-before).Nanoseconds())/1e3/float64(b.messages))
	}
	return err
}

func (b *storeBench) oneInFlight(ctx context.Context, proc *process, name string) error {
	if err := newSession(ctx, proc.addr, "q/2"); err != nil {
		return err
	}
	// A disk is faster now and slower then: the limit is measured at both ends.
	beforehand, err := commitsAlone(ctx, b.length/2)
	if err != nil {
		return err
	}
	before, err := writtenBytes(proc.cmd.Process.Pid)
	if err != nil {
		return err
	}
	until, cancel := context.WithTimeout(ctx, b.length)
	defer cancel()
	began := time.Now()
	n, err := publishOver(until, proc.addr, "q/2", "single", 1, 1, 1<<30)
	if err != nil {
		return err
	}
	rate := float64(n) / time.Since(began).Seconds()
	b.note(single, name, rate)
	after, err := writtenBytes(proc.cmd.Process.Pid)
	b.note(bytesOne, name, float64(after-before)/float64(max(n, 1)))
	if err != nil {
		return err
	}
	afterwards, err := commitsAlone(ctx, b.length/2)
	b.note(pairedOne, name, 2*rate/(beforehand+afterwards))
	return err
}

func (b *storeBench) exactlyOnce(ctx context.Context, proc *process, name string) error {
	if err := newSession(ctx, proc.addr, "q/3"); err != nil {
		return err
	}
	n := b.messages / 2
	took, err := publishMany(ctx, proc.addr, "q/3", 2, n)
	b.note(acked2, name, float64(n)/took.Seconds())
	return err
}

// backlog fills a session's queue, looks at the memory, and starts again.
func (b *storeBench) backlog(ctx context.Context, p peer) error {
	proc, err := p.start(ctx)
	if err != nil {
		return err
	}
	defer func() { proc.stop() }()
	if err := newSession(ctx, proc.addr, "q/1"); err != nil {
		return err
	}
	// The first thousands fill pools and caches, and do not count.
	if _, err := publishMany(ctx, proc.addr, "q/1", 1, 20_000); err != nil {
		return err
	}
	before, err := proc.rss()
	if err != nil {
		return err
	}
	if _, err := publishMany(ctx, proc.addr, "q/1", 1, b.million); err != nil {
		return err
	}
	after, err := proc.rss()
	if err != nil {
		return err
	}
	b.note(rssBacklog, p.name, mb(after-before))
	if err := proc.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	_ = proc.cmd.Wait() // how it ends is its own affair
	began := time.Now()
	if err := p.again(ctx, proc); err != nil {
		return err
	}
	if err := answers(ctx, proc.addr); err != nil {
		return err
	}
	b.note(ready, p.name, time.Since(began).Seconds())
	return nil
}

// answers waits until a CONNECT is answered; it tries every 10 ms.
func answers(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := connect(ctx, addr, "ready", packet.V311)
		if err == nil {
			return c.Close()
		}
		select {
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
}

// storeCounts is what Holdfast's store has done since its start.
type storeCounts struct {
	Appended int64 `json:"appended"`
	Written  int64 `json:"written"`
	Commits  int64 `json:"commits"`
}

// counts asks a peer that has a control socket of Holdfast's kind; others have
// none.
func (p *process) counts(ctx context.Context) storeCounts {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", filepath.Join(p.dir, "holdfast.sock"))
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://holdfast/api/v1/status", http.NoBody)
	if err != nil {
		return storeCounts{}
	}
	resp, err := client.Do(req)
	if err != nil {
		return storeCounts{}
	}
	var answer struct {
		Store storeCounts `json:"store"`
	}
	err = json.NewDecoder(resp.Body).Decode(&answer)
	_ = resp.Body.Close()
	if err != nil {
		return storeCounts{}
	}
	return answer.Store
}

// report prints the medians, with ratios to the other peers and to SQLite alone.
func (b *storeBench) report(w io.Writer, peers []peer) error {
	mid := func(measure, peer string) float64 {
		v := slices.Clone(b.values[measure][peer])
		if len(v) == 0 {
			return 0
		}
		slices.Sort(v)
		return v[len(v)/2]
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprint(t, "median of the rounds")
	for _, p := range peers {
		fmt.Fprintf(t, "\t%s", p.name)
	}
	fmt.Fprintf(t, "\t%s\tratio to it", bare)
	for _, p := range peers[1:] {
		fmt.Fprintf(t, "\tratio to %s", p.name)
	}
	fmt.Fprintln(t)
	// The batch that came about by itself decides which limit is meant.
	batch := nearestBatch(mid(batch1, peers[0].name))
	limits := map[string]string{acked1: sqliteRows(batch), bytes1: sqliteBytes(batch), cpuAcked: sqliteCPU(batch), cpuDrained: sqliteSelectCPU, single: sqliteRows(1), bytesOne: sqliteBytes(1), drained: sqliteSelect, acked2: acked1}
	for _, measure := range b.order {
		if _, alone := b.values[measure][bare]; alone {
			continue
		}
		first := mid(measure, peers[0].name)
		fmt.Fprint(t, measure)
		for _, p := range peers {
			fmt.Fprintf(t, "\t%s", figure(mid(measure, p.name)))
		}
		limit := mid(limits[measure], bare)
		if measure == pairedOne {
			fmt.Fprintf(t, "\t-\t%s\n", figure(first))
			continue
		}
		if measure == acked2 { // its limit is the other QoS
			limit = mid(acked1, peers[0].name)
		}
		fmt.Fprintf(t, "\t%s\t%s", figure(limit), ratio(first, limit))
		for _, p := range peers[1:] {
			fmt.Fprintf(t, "\t%s", ratio(first, mid(measure, p.name)))
		}
		fmt.Fprintln(t)
	}
	fmt.Fprintf(t, "\nwith %d in flight the limit is %d rows per transaction\n", storePublishers*storeInFlight, batch)
	fmt.Fprintf(t, "%s: rows per transaction\ttransactions/s\trows/s\tCPU µs per row\tbytes written per row\n", bare)
	for _, n := range sqliteBatches {
		rows := mid(sqliteRows(n), bare)
		fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%s\n", n, figure(rows/float64(n)), figure(rows), figure(mid(sqliteCPU(n), bare)), figure(mid(sqliteBytes(n), bare)))
	}
	return t.Flush()
}

// nearestBatch is the measured batch nearest to n; without a number, as many as
// can be in flight.
func nearestBatch(n float64) int {
	const all = storePublishers * storeInFlight
	if n == 0 {
		n = all
	}
	return slices.MinFunc(sqliteBatches, func(a, b int) int {
		return cmp.Compare(math.Abs(math.Log(float64(a)/n)), math.Abs(math.Log(float64(b)/n)))
	})
}

func figure(v float64) string {
	switch {
	case v == 0:
		return "-"
	case v < 10:
		return fmt.Sprintf("%.2f", v)
	default:
		return fmt.Sprintf("%.0f", v)
	}
}

// publishMany has ten publishers send n messages, and waits for every
// acknowledgement.
func publishMany(ctx context.Context, addr, topic string, qos byte, n int) (time.Duration, error) {
	var wg sync.WaitGroup
	errs := make([]error, storePublishers)
	began := time.Now()
	for i := range storePublishers {
		wg.Go(func() {
			_, errs[i] = publishOver(ctx, addr, topic, "pub"+strconv.Itoa(i), qos, storeInFlight, n/storePublishers)
		})
	}
	wg.Wait()
	return time.Since(began), errors.Join(errs...)
}
