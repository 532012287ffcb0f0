package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"holdfast/broker/brokertest"
	"holdfast/broker/client"
	"holdfast/broker/message"
	"holdfast/broker/packet"
	"holdfast/storeforward/sparkplug"
)

// edgeHost is what a Sparkplug host has of one metric.
type edgeHost struct {
	mu     sync.Mutex
	values map[int]bool
	births int
}

func (h *edgeHost) take(m client.Message) {
	p, err := sparkplug.Parse(m.Payload)
	if err != nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range p.Metrics {
		switch v := p.Metrics[i].Value.(type) {
		case float64:
			h.values[int(v)] = true
		case uint64:
			h.births++ // bdSeq
		}
	}
}

func (h *edgeHost) missing(acked []int) (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, v := range acked {
		if !h.values[v] {
			n++
		}
	}
	return n
}

// The gateway is killed again and again while readings come, with a backlog now and
// then: each that was acknowledged here comes to the host.
func TestEdgeNodeKilled(t *testing.T) {
	host := brokertest.Start(t, nil)
	h := &edgeHost{values: map[int]bool{}}
	watcher, err := client.Connect(t.Context(), client.Options{URL: "mqtt://" + host.Addr, ClientID: "host"}, h.take)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(watcher.Abort)
	if _, err := watcher.Subscribe(t.Context(), []packet.Filter{{Filter: "spBv1.0/#", QoS: 1}}); err != nil {
		t.Fatal(err)
	}
	dir, address := t.TempDir(), freeAddress(t)
	config := filepath.Join(dir, "gateway.toml")
	up := true
	run := func() *subprocess {
		url := host.Addr
		if !up {
			url = freeAddress(t)
		}
		text := fmt.Sprintf("[gateway]\nid = \"gw\"\ndata = %q\n[control]\nsocket = %q\n[[listener]]\naddress = \"tcp://%s\"\n"+
			"[sparkplug.scada]\nurl = \"mqtt://%s\"\ngroup = \"plant\"\nbirth = \"100ms\"\nreconnect_min = \"100ms\"\nreconnect_max = \"200ms\"\n",
			filepath.Join(dir, "data"), filepath.Join(dir, "s"), address, url)
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		d := startDaemon(t, daemonBinary(), "run", "--config", config)
		waitUntil(t, "the gateway", func() bool { return answers(address) })
		return d
	}
	var mu sync.Mutex
	var acked []int
	next := 1
	kills := number("HOLDFAST_KILLS", 6)
	for i := range kills + 1 {
		up = i == kills || i%2 == 0
		d := run()
		c, err := client.Connect(t.Context(), client.Options{URL: "mqtt://" + address, ClientID: "sensor"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		for range 300 {
			v := next
			next++
			m := &message.Message{Topic: fmt.Sprintf("sensors/meter/m%d", v%3), Payload: fmt.Append(nil, v), QoS: 1, Received: time.Now()}
			c.PublishAsync(m, func(err error) {
				if err == nil {
					mu.Lock()
					defer mu.Unlock()
					acked = append(acked, v)
				}
			})
		}
		if i < kills {
			<-time.After(time.Duration(rand.IntN(1200)) * time.Millisecond) // the moment of the kill
			d.kill()
		}
		defer c.Abort()
	}
	defer func() {
		mu.Lock()
		defer mu.Unlock()
		h.mu.Lock()
		defer h.mu.Unlock()
		t.Logf("%d published, %d acknowledged, %d births", next-1, len(acked), h.births)
	}()
	waitUntil(t, "all that was acknowledged", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(acked) >= 300 && h.missing(acked) == 0
	})
}
