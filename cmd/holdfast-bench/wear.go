package main

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"holdfast/broker/packet"
)

// What a gateway writes to its flash: with the link up and down, by rate and by
// the time that commits wait for each other.
const (
	wearPublishers = 10
	cardBytes      = 8e9
	cardCycles     = 3000
	outage         = 0.1 // of the time
)

func runWear(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("holdfast-bench wear", flag.ContinueOnError)
	fs.SetOutput(stderr)
	gateway := fs.String("gateway", "", "command that starts a gateway on {port} with its data in {dir}, commits {window} apart, and {cloud} as its cloud")
	cloud := fs.String("cloud", "", "command that starts the cloud on {port} with its data in {dir}")
	length := fs.Duration("time", 10*time.Second, "least length of a measurement")
	only := fs.String("only", "", "run the measurements whose name contains this, such as \"link up, window 100ms\"")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if *gateway == "" || *cloud == "" {
		return errors.New("name a --gateway and a --cloud")
	}
	far, err := peer{"cloud", *cloud}.start(ctx)
	if err != nil {
		return err
	}
	defer far.stop()
	rows := slices.DeleteFunc(wearRows(far.addr), func(r wearRow) bool { return !strings.Contains(r.String(), *only) })
	// Slow rates leave the machine idle, and each gateway keeps accounts of its
	// own: they run side by side. A fast one has the machine for itself.
	var together sync.WaitGroup
	measure := func(r *wearRow) {
		command := strings.NewReplacer("{window}", r.window.String(), "{cloud}", r.cloud).Replace(*gateway)
		if r.err = r.measure(ctx, peer{"gateway", command}, *length); r.err == nil {
			fmt.Fprintf(stderr, "%s: %.1f bytes per message\n", r, r.perMessage)
		}
	}
	for i := range rows {
		if rows[i].rate < fastWear {
			together.Go(func() { measure(&rows[i]) })
		}
	}
	together.Wait()
	for i := range rows {
		if rows[i].rate >= fastWear {
			measure(&rows[i])
		}
	}
	return reportWear(stdout, rows)
}

// fastWear is from which rate on, in messages per second, a gateway is measured
// alone.
const fastWear = 1000

// wearRow is one measurement: a gateway with its link up or down.
type wearRow struct {
	up         bool
	cloud      string
	window     time.Duration
	rate       int
	perSecond  float64
	perMessage float64 // bytes
	rows       float64 // messages written for each that was acknowledged
	commits    float64 // for each message
	err        error
}

func (r *wearRow) String() string {
	link := "down"
	if r.up {
		link = "up"
	}
	return fmt.Sprintf("link %s, window %v, %d msg/s", link, r.window, r.rate)
}

func wearRows(cloud string) (rows []wearRow) {
	for _, up := range []bool{true, false} {
		to := "127.0.0.1:1" // tcpmux: nobody is there
		if up {
			to = cloud
		}
		for _, window := range []time.Duration{100 * time.Millisecond, time.Second, 10 * time.Second} {
			for _, rate := range []int{1, 10, 100, 10_000} {
				rows = append(rows, wearRow{up: up, cloud: to, window: window, rate: rate})
			}
		}
	}
	return rows
}

func reportWear(w io.Writer, rows []wearRow) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintf(t, "link\twindow\tmsg/s wanted\tmsg/s\tbytes written per message\trows per message\tcommits per message\tyears of an 8 GB card, %d cycles, down %.0f %% of the time\n", cardCycles, outage*100)
	for i := range rows {
		r := &rows[i]
		if r.err != nil {
			return fmt.Errorf("%s: %w", r, r.err)
		}
		link, years := "up", "-"
		if !r.up {
			link = "down"
			if r.perMessage > 0 {
				years = figure(cardBytes * cardCycles / (r.perMessage * r.perSecond * outage * 365 * 24 * 3600))
			}
		}
		fmt.Fprintf(t, "%s\t%v\t%d\t%s\t%s\t%.4f\t%.4f\t%s\n", link, r.window, r.rate, figure(r.perSecond), figure(r.perMessage), r.rows, r.commits, years)
	}
	return t.Flush()
}

// measure publishes at a rate and reads the gateway's accounts.
func (r *wearRow) measure(ctx context.Context, p peer, length time.Duration) error {
	proc, err := p.start(ctx)
	if err != nil {
		return err
	}
	defer proc.stop()
	var acked atomic.Int64
	conns := make([]*wearing, 0, wearPublishers)
	defer func() {
		for _, w := range conns {
			_ = w.conn.Close()
			<-w.ended
		}
	}()
	for i := range wearPublishers {
		c, err := connect(ctx, proc.addr, fmt.Sprintf("wear%d", i), packet.V311)
		if err != nil {
			return err
		}
		w, err := newWearing(c, &acked)
		if err != nil {
			return errors.Join(err, c.Close())
		}
		conns = append(conns, w)
	}
	settle := time.NewTimer(2*time.Second + 2*r.window) // the link comes up, statuses go out and are written
	defer settle.Stop()
	<-settle.C
	before, err := writtenBytes(proc.cmd.Process.Pid)
	if err != nil {
		return err
	}
	counted := proc.counts(ctx)
	began := time.Now()
	sent, err := publishAt(ctx, conns, r.rate, max(length, 3*r.window))
	if err != nil {
		return err
	}
	r.perSecond = float64(sent) / time.Since(began).Seconds()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for late := time.Now().Add(stuck); acked.Load() < int64(sent); <-tick.C {
		if time.Now().After(late) {
			return fmt.Errorf("%d of %d acknowledged", acked.Load(), sent)
		}
	}
	after, err := writtenBytes(proc.cmd.Process.Pid)
	r.perMessage = float64(after-before) / float64(sent)
	now := proc.counts(ctx)
	r.rows = float64(now.Written-counted.Written) / float64(sent)
	r.commits = float64(now.Commits-counted.Commits) / float64(sent)
	return err
}

// wearing is a publisher that does not wait for its acknowledgements.
type wearing struct {
	conn  net.Conn
	frame []byte
	next  uint16
	ended chan struct{}
}

func newWearing(c net.Conn, acked *atomic.Int64) (*wearing, error) {
	frame, err := (&packet.Publish{Topic: []byte("wear/1"), QoS: 1, PacketID: 1, Payload: make([]byte, storePayload)}).AppendTo(nil, packet.V311)
	if err != nil {
		return nil, err
	}
	w := &wearing{conn: c, frame: frame, ended: make(chan struct{})}
	go func() {
		defer close(w.ended)
		r := packet.NewReader(c, 16<<10)
		r.SetVersion(packet.V311)
		for {
			p, err := r.Next()
			if err != nil {
				return
			}
			if _, ok := p.(*packet.Puback); ok {
				acked.Add(1)
			}
		}
	}()
	return w, nil
}

func publishAt(ctx context.Context, conns []*wearing, rate int, length time.Duration) (sent int, err error) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	began := time.Now()
	for time.Since(began) < length {
		select {
		case <-ctx.Done():
			return sent, ctx.Err()
		case <-tick.C:
		}
		for due := int(time.Since(began).Seconds() * float64(rate)); sent < due; sent++ {
			w := conns[sent%len(conns)]
			w.next = w.next%60_000 + 1
			binary.BigEndian.PutUint16(w.frame[len(w.frame)-storePayload-2:], w.next)
			if err := w.conn.SetWriteDeadline(time.Now().Add(stuck)); err != nil {
				return sent, err
			}
			if _, err := w.conn.Write(w.frame); err != nil {
				return sent, err
			}
		}
	}
	return sent, nil
}
