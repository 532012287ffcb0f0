package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"holdfast/broker/packet"
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
	storm int // connections that come and go, as many at once as there are publishers
	wild  int // filters with a wildcard of each subscriber

	version packet.Version
}

// topic is where the publisher of that number publishes.
func (sc scenario) topic(i int) string {
	switch {
	case sc.wild > 0:
		return "bench/wild/" + strconv.Itoa(i%sc.subscribers) + "/x/" + strconv.Itoa(i)
	case sc.pairs:
		return "bench/pair/" + strconv.Itoa(i)
	}
	return "bench/all"
}

// filters are what the subscriber of that number subscribes to: one topic, or
// many filters of which one matches a publisher's.
func (sc scenario) filters(i int) (fs []packet.Filter) {
	if sc.wild == 0 {
		return []packet.Filter{{Filter: sc.topic(i), QoS: sc.qos}}
	}
	for n := range sc.wild {
		fs = append(fs, packet.Filter{Filter: "bench/wild/" + strconv.Itoa(i) + "/+/" + strconv.Itoa(n), QoS: sc.qos})
	}
	return fs
}

const payloadSize = 100

func scenarios(length time.Duration, v packet.Version) (out []scenario) {
	defer func() {
		for i := range out {
			out[i].version = v
		}
	}()
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
		scenario{name: "100,000 wildcards 20k/s qos0", publishers: 20, subscribers: 100, wild: 1000, rate: 20_000, time: length},
		scenario{name: "connect storm 5000", storm: 5000, publishers: 50},
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
	return fmt.Sprintf("%6.2f CPU s/M, %8.0f/s, p50 %v p99 %v p99.9 %v, RSS %.1f -> %.1f MB",
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
	if err := rest(ctx, time.Second); err != nil { // it answers before its start is over
		return r, err
	}
	if r.rssStart, err = proc.rss(); err != nil {
		return r, err
	}
	if sc.storm > 0 {
		return measureStorm(ctx, proc, sc, r)
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
	conns, err := connectMany(ctx, proc.addr, "idle", sc.idle, sc.version)
	if err != nil {
		return r, err
	}
	defer func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	if err := rest(ctx, 12*time.Second); err != nil { // collectors give back what the handshakes took
		return r, err
	}
	if r.rss, err = proc.rss(); err != nil {
		return r, err
	}
	r.perIdle = max(float64(r.rss-r.rssStart)/float64(sc.idle), 1)
	return r, nil
}

// rest lets time pass, if d is above 0.
func rest(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// measureStorm has clients connect and leave as fast as it goes; "messages" are
// connections then.
func measureStorm(ctx context.Context, proc *process, sc scenario, r result) (result, error) {
	before, err := proc.cpu()
	if err != nil {
		return r, err
	}
	began := time.Now()
	var next atomic.Int64
	var wg sync.WaitGroup
	failures := make(chan error, sc.publishers)
	for range sc.publishers {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(sc.storm); i = next.Add(1) {
				var c net.Conn
				c, err := connect(ctx, proc.addr, "storm"+strconv.FormatInt(i, 10), sc.version)
				if err == nil {
					err = c.Close()
				}
				if err != nil {
					failures <- err
					return
				}
			}
		})
	}
	wg.Wait()
	select {
	case err := <-failures:
		return r, err
	default:
	}
	elapsed := time.Since(began)
	after, err := proc.cpu()
	if err != nil {
		return r, err
	}
	r.cpuPerMillion = (after - before).Seconds() * 1e6 / float64(sc.storm)
	r.perSecond = float64(sc.storm) / elapsed.Seconds()
	r.rss, err = proc.rss()
	return r, err
}
