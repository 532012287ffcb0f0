package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// scenario is one load.
type scenario struct {
	name        string
	qos         byte
	publishers  int
	subscribers int
	// each: every subscriber has a topic of its own, in pairs with the
	// publishers; otherwise all have the same one.
	pairs bool
	rate  int // messages per second in all; 0 is as fast as it goes
	time  time.Duration
	idle  int // connections that do nothing; nothing is published then
}

const payloadSize = 100

func scenarios(length time.Duration) []scenario {
	var out []scenario
	for qos := range byte(3) {
		out = append(out, scenario{name: fmt.Sprintf("fan-in 20:1 20k/s qos%d", qos), qos: qos, publishers: 20, subscribers: 1, rate: 20_000, time: length})
	}
	for qos := range byte(3) {
		out = append(out, scenario{name: fmt.Sprintf("fan-in 20:1 max qos%d", qos), qos: qos, publishers: 20, subscribers: 1, time: length})
	}
	return append(out,
		scenario{name: "fan-out 1:100 200/s qos1", qos: 1, publishers: 1, subscribers: 100, rate: 200, time: length},
		scenario{name: "latency 20:1 5k/s qos1", qos: 1, publishers: 20, subscribers: 1, rate: 5000, time: length},
		scenario{name: "pairs 50:50 10k/s qos0", publishers: 50, subscribers: 50, pairs: true, rate: 10_000, time: length},
		scenario{name: "idle 1000", idle: 1000},
		scenario{name: "idle 10000", idle: 10_000},
	)
}

// result is one measurement.
type result struct {
	scenario, peer string
	cpuPerMillion  float64 // broker CPU seconds per million messages delivered
	perSecond      float64 // messages delivered
	p50, p99, p999 time.Duration
	rss            int64
	rssStart       int64
	perIdle        float64 // bytes of RSS per idle connection
}

func (r result) String() string {
	if r.perIdle > 0 {
		return fmt.Sprintf("%6.0f B/connection, RSS %.1f -> %.1f MB", r.perIdle, mb(r.rssStart), mb(r.rss))
	}
	return fmt.Sprintf("%6.1f CPU s/M, %8.0f/s, p50 %v p99 %v p99.9 %v, RSS %.1f -> %.1f MB",
		r.cpuPerMillion, r.perSecond, r.p50.Round(time.Microsecond), r.p99.Round(time.Microsecond), r.p999.Round(time.Microsecond), mb(r.rssStart), mb(r.rss))
}

func mb(n int64) float64 { return float64(n) / 1e6 }

// measure starts the peer, loads it and reads its accounts.
func measure(ctx context.Context, p peer, sc scenario) (r result, err error) {
	proc, err := p.start(ctx)
	if err != nil {
		return r, err
	}
	defer proc.stop()
	r = result{scenario: sc.name, peer: p.name}
	if r.rssStart, err = proc.rss(); err != nil {
		return r, err
	}
	if sc.idle > 0 {
		return measureIdle(ctx, proc, sc, r)
	}
	l, err := newLoad(ctx, proc.addr, sc)
	if err != nil {
		return r, err
	}
	defer l.close()
	// Warm: caches, pools and TCP windows fill, and do not count.
	if err := l.run(ctx, min(sc.time/4, time.Second)); err != nil {
		return r, err
	}
	l.reset()
	before, err := proc.cpu()
	if err != nil {
		return r, err
	}
	began := time.Now()
	if err := l.run(ctx, sc.time); err != nil {
		return r, err
	}
	elapsed := time.Since(began)
	after, err := proc.cpu()
	if err != nil {
		return r, err
	}
	delivered := l.delivered()
	if delivered == 0 {
		return r, errors.New("nothing was delivered")
	}
	r.cpuPerMillion = (after - before).Seconds() * 1e6 / float64(delivered)
	r.perSecond = float64(delivered) / elapsed.Seconds()
	r.p50, r.p99, r.p999 = l.percentiles()
	r.rss, err = proc.rss()
	return r, err
}

func measureIdle(ctx context.Context, proc *process, sc scenario, r result) (result, error) {
	conns, err := connectMany(ctx, proc.addr, "idle", sc.idle)
	if err != nil {
		return r, err
	}
	defer func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	settle := time.NewTimer(2 * time.Second) // collectors give back what the handshakes took
	defer settle.Stop()
	select {
	case <-ctx.Done():
		return r, ctx.Err()
	case <-settle.C:
	}
	if r.rss, err = proc.rss(); err != nil {
		return r, err
	}
	r.perIdle = max(float64(r.rss-r.rssStart)/float64(sc.idle), 1)
	return r, nil
}
