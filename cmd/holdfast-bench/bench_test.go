package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"holdfast/broker/packet"
)

func TestQuantile(t *testing.T) {
	var sorted []time.Duration
	for i := range 1001 {
		sorted = append(sorted, time.Duration(i))
	}
	for share, want := range map[float64]time.Duration{0: 0, 0.5: 500, 0.99: 990, 0.999: 999, 1: 1000} {
		if got := quantile(sorted, share); got != want {
			t.Errorf("quantile %v = %d, want %d", share, got, want)
		}
	}
	if got := quantile(sorted[7:8], 0.999); got != 7 {
		t.Errorf("of a single value: %d", got)
	}
}

func TestMedian(t *testing.T) {
	var rs []result
	for _, v := range []float64{9, 1, 5} {
		rs = append(rs, result{scenario: "s", peer: "p", cpuPerMillion: v, perSecond: 10 * v, p99: time.Duration(v)})
		rs = append(rs, result{scenario: "s", peer: "other", cpuPerMillion: 100})
	}
	m := median(rs, "s", "p")
	if m.cpuPerMillion != 5 || m.perSecond != 50 || m.p99 != 5 {
		t.Errorf("median = %+v", m)
	}
	if got := ratio(m.cpuPerMillion, 10); got != "0.50" {
		t.Errorf("ratio = %s", got)
	}
	if got := ratio(1, 0); got != "" {
		t.Errorf("ratio to nothing = %q", got)
	}
}

func TestReportAndChart(t *testing.T) {
	peers := []peer{{name: "a"}, {name: "b<"}}
	rs := []result{
		{scenario: "s & t", peer: "a", cpuPerMillion: 10, perSecond: 100},
		{scenario: "s & t", peer: "b<", cpuPerMillion: 5, perSecond: 200},
		{scenario: "idle", peer: "a", perIdle: 700, rss: 5e6},
		{scenario: "idle", peer: "b<", perIdle: 1400, rss: 9e6},
	}
	var out bytes.Buffer
	if err := report(&out, peers, rs); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"0.50", "2.00", "1400"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the report has no %s:\n%s", want, out.String())
		}
	}
	d := xml.NewDecoder(bytes.NewReader(chart(peers, rs)))
	for {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func TestCredit(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	c := newCredit(5)
	if a, b := c.take(ctx, 3), c.take(ctx, 3); a != 3 || b != 2 {
		t.Fatalf("took %d and %d of 5, want 3 and 2", a, b)
	}
	got := make(chan int)
	go func() { got <- c.take(ctx, 9) }()
	c.give(4)
	if n := <-got; n != 4 {
		t.Errorf("took %d of 4", n)
	}
	go func() { got <- c.take(ctx, 1) }()
	cancel()
	c.wake()
	if n := <-got; n != 0 {
		t.Errorf("took %d after the end", n)
	}
	c.give(1)
	c.end()
	if n := c.take(context.Background(), 1); n != 0 {
		t.Errorf("took %d of a connection that is gone", n)
	}
}

func TestQueuedFrames(t *testing.T) {
	for _, v := range []packet.Version{packet.V311, packet.V5} {
		for qos := range byte(3) {
			p, err := newPublisher(nil, "bench/all", qos, v)
			if err != nil {
				t.Fatal(err)
			}
			epoch := time.Now().Add(-time.Hour)
			p.queue(qos, epoch)
			p.queue(qos, epoch)
			r := packet.NewReader(bytes.NewReader(p.out), 0)
			r.SetVersion(v)
			for id := uint16(1); id <= 2; id++ {
				in, err := r.Next()
				pub, ok := in.(*packet.Publish)
				if err != nil || !ok {
					t.Fatalf("%v QoS %d: %v, %v", v, qos, in, err)
				}
				if qos > 0 && pub.PacketID != id || len(pub.Payload) != payloadSize || pub.QoS != qos {
					t.Errorf("%v QoS %d: %+v", v, qos, pub)
				}
				if d := time.Duration(binary.BigEndian.Uint64(pub.Payload)); d < time.Hour || d > 2*time.Hour {
					t.Errorf("%v QoS %d: stamped %v", v, qos, d)
				}
			}
		}
	}
}

func TestWildcardsOfEveryPublisher(t *testing.T) {
	for _, sc := range scenarios(time.Second, packet.V5) {
		if sc.wild == 0 {
			continue
		}
		total := 0
		for i := range sc.subscribers {
			total += len(sc.filters(i))
		}
		if total != 100_000 {
			t.Errorf("%s: %d filters", sc.name, total)
		}
		for i := range sc.publishers {
			want := strings.Replace(sc.topic(i), "/x/", "/+/", 1)
			found := 0
			for s := range sc.subscribers {
				for _, f := range sc.filters(s) {
					if f.Filter == want {
						found++
					}
				}
			}
			if found != 1 {
				t.Errorf("%s matches %d filters", sc.topic(i), found)
			}
		}
	}
}

// TestAgainstTheFloor loads a null broker with every kind of scenario.
func TestAgainstTheFloor(t *testing.T) {
	if testing.Short() {
		return
	}
	for _, epoll := range []bool{false, true} {
		for qos := range byte(3) {
			for _, rate := range []int{0, 2000} {
				addr := floor(t, epoll) // an old one still forwards what came before
				l, err := newLoad(t.Context(), addr, scenario{qos: qos, publishers: 3, subscribers: 1, rate: rate, version: packet.V311})
				if err != nil {
					t.Fatal(err)
				}
				err = l.run(t.Context(), 100*time.Millisecond)
				delivered := l.delivered()
				l.close()
				if err != nil || delivered == 0 {
					t.Errorf("epoll %t, QoS %d, rate %d: %d delivered, %v", epoll, qos, rate, delivered, err)
				}
			}
		}
	}
}
