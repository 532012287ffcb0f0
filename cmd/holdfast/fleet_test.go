//go:build integration

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"holdfast/broker/client"
	"holdfast/broker/durable"
	"holdfast/broker/message"
	"holdfast/broker/packet"
	"holdfast/storeforward"
	"holdfast/storeforward/uplink"
	"holdfast/storeforward/uplink/relaytest"
)

// TestFleet has many gateways in one process, each with a store and an uplink
// of its own, at a cluster of three brokers. In the middle the region is cut off
// for a while, and one node dies in the storm of those that come back. Nothing
// acknowledged is lost; what a gateway costs is said.
func TestFleet(t *testing.T) {
	f := &fleet{t: t, size: number("HOLDFAST_FLEET", 50), cluster: newNATSCluster(t), got: map[string]map[int]bool{}}
	f.run()
}

type fleet struct {
	t       *testing.T
	size    int
	cluster *natsCluster
	links   [3]*relaytest.Relay
	members []*fleetMember
	acked   atomic.Int64

	mu  sync.Mutex
	got map[string]map[int]bool // guarded by mu; what the cloud has of each gateway
}

// fleetMember is one gateway: no broker, no field.
type fleetMember struct {
	name  string
	store *storeforward.Store
	up    *uplink.Uplink

	mu    sync.Mutex
	next  int
	acked []bool // guarded by mu
}

// nowhere is the local side of a gateway that nobody sends commands to.
type nowhere struct{}

func (nowhere) Publish(*message.Message, durable.Origin, func(error)) error {
	return errors.New("no commands here")
}

const (
	fleetEvery  = 5 * time.Second // a reading of each gateway
	fleetRounds = 4
)

func (f *fleet) run() {
	t := f.t
	for i := range f.links {
		var err error
		path := relaytest.Path{Delay: 50 * time.Millisecond}
		if f.links[i], err = relaytest.New(t.Context(), f.cluster.addresses[i], relaytest.Options{Up: path, Down: path}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(f.links[i].Close)
	}
	f.subscribe()
	memory, cpu := resident(t), used(t)
	ctx, stop := context.WithCancelCause(context.Background())
	var wg sync.WaitGroup
	dir := t.TempDir()
	for i := range f.size {
		m, err := f.member(i, dir)
		if err != nil {
			t.Fatal(err)
		}
		f.members = append(f.members, m)
		wg.Go(func() {
			if err := m.up.Run(ctx); err != nil {
				t.Errorf("%s: %v", m.name, err)
			}
		})
	}
	t.Cleanup(func() {
		stop(errors.New("test over"))
		wg.Wait()
		for _, m := range f.members {
			if err := m.store.Close(); err != nil {
				t.Errorf("%s: %v", m.name, err)
			}
		}
	})
	began := time.Now()
	waitUpTo(t, 5*time.Minute, "the fleet to come up", func() bool { return f.up() == f.size })
	t.Logf("%d gateways up after %v", f.size, time.Since(began).Round(time.Millisecond))
	f.say("started", memory, cpu)

	cpu = used(t)
	f.rounds(fleetRounds / 2)
	f.say(fmt.Sprintf("a reading every %v", fleetEvery), memory, cpu)

	cpu = used(t)
	for _, l := range f.links {
		l.Refuse()
	}
	f.rounds(2)
	f.say("cut off", memory, cpu)
	for _, l := range f.links {
		if err := l.Restore(); err != nil {
			t.Fatal(err)
		}
	}
	cpu, began = used(t), time.Now()
	waitUpTo(t, 2*time.Minute, "some to be back", func() bool { return f.up() > f.size/4 })
	f.cluster.nodes[0].kill()
	waitUpTo(t, 5*time.Minute, "the fleet to be back", func() bool { return f.up() == f.size })
	t.Logf("all back after %v, without node 0", time.Since(began).Round(time.Millisecond))
	f.rounds(fleetRounds / 2)
	waitUpTo(t, 5*time.Minute, "everything to be at the cloud", func() bool { return f.missing() == 0 && f.backlog() == 0 })
	f.say("back again", memory, cpu)
	var connects, duplicates, stuck uint64
	for _, m := range f.members {
		st := m.up.Status()
		connects, duplicates, stuck = connects+st.Connects, duplicates+st.Duplicates, stuck+st.StuckConnections
		if st.SessionsLost > 0 {
			t.Logf("%s lost its session %d times", m.name, st.SessionsLost)
		}
	}
	t.Logf("%d readings acknowledged, none missing; %d connects, %d possible duplicates, %d connections stuck", f.acked.Load(), connects, duplicates, stuck)
}

// member is gateway i. Its address list begins with another node than its
// neighbour's.
func (f *fleet) member(i int, dir string) (*fleetMember, error) {
	m := &fleetMember{name: fmt.Sprintf("gw%04d", i)}
	log := slog.New(slog.DiscardHandler)
	so := storeforward.DefaultOptions()
	so.Path = filepath.Join(dir, m.name+".db")
	so.ReserveBytes = 0
	var err error
	if m.store, err = storeforward.Open(context.Background(), so, log); err != nil {
		return nil, err
	}
	o := uplink.DefaultOptions()
	for n := range f.links {
		o.URLs = append(o.URLs, "mqtt://"+f.links[(i+n)%len(f.links)].Address())
	}
	o.SharedSession, o.Protocol, o.Gateway, o.Epoch = true, uplink.Protocol311, m.name, m.name
	o.ReconnectMin, o.ReconnectMax, o.ReconnectSpread = 500*time.Millisecond, 10*time.Second, 5*time.Second
	o.Routes = []uplink.Route{{Direction: uplink.DirectionOut, Filter: "#", Prefix: "fleet/" + m.name + "/"}}
	m.up, err = uplink.New("cloud", o, m.store, nowhere{}, log)
	return m, err
}

// rounds has every gateway take one reading in each interval, not all at once.
func (f *fleet) rounds(n int) {
	tick := time.NewTicker(fleetEvery / 50)
	defer tick.Stop()
	for i := range n * 50 {
		<-tick.C
		for j := i % 50; j < len(f.members); j += 50 {
			f.put(f.members[j])
		}
	}
}

func (f *fleet) put(m *fleetMember) {
	m.mu.Lock()
	i := m.next
	m.next++
	m.acked = append(m.acked, false)
	m.mu.Unlock()
	msg := &message.Message{Topic: "line/temp", Payload: strconv.AppendInt(nil, int64(i), 10), QoS: 1, Received: time.Now()}
	err := m.store.Append(msg, []durable.Claim{{Queue: m.up.Queue(), QoS: 1}}, durable.Origin{}, func(err error) {
		if err != nil {
			return
		}
		m.mu.Lock()
		m.acked[i] = true
		m.mu.Unlock()
		f.acked.Add(1)
	})
	if err != nil {
		f.t.Errorf("%s: %v", m.name, err)
	}
}

// subscribe notes what comes to the cloud, at the node that lives.
func (f *fleet) subscribe() {
	f.t.Helper()
	c, err := client.Connect(f.t.Context(), client.Options{
		URL: "mqtt://" + f.cluster.addresses[2], ClientID: "backend", CleanStart: true, Version: packet.V311, KeepAlive: time.Minute,
	}, func(m client.Message) {
		name, _, _ := strings.Cut(strings.TrimPrefix(m.Topic, "fleet/"), "/")
		i, err := strconv.Atoi(string(m.Payload))
		if err != nil {
			return
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.got[name] == nil {
			f.got[name] = map[int]bool{}
		}
		f.got[name][i] = true
	})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(c.Abort)
	if reasons, err := c.Subscribe(f.t.Context(), []packet.Filter{{Filter: "fleet/#", QoS: 1}}); err != nil || reasons[0].Failed() {
		f.t.Fatalf("subscribe: %v, %v", reasons, err)
	}
}

func (f *fleet) up() (n int) {
	for _, m := range f.members {
		if m.up.State() == uplink.StateUp {
			n++
		}
	}
	return n
}

func (f *fleet) backlog() (n int64) {
	for _, m := range f.members {
		waiting, _ := m.store.Backlog(m.up.Queue())
		n += waiting
	}
	return n
}

// missing is how much was acknowledged and has not come.
func (f *fleet) missing() (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range f.members {
		m.mu.Lock()
		for i, ok := range m.acked {
			if ok && !f.got[m.name][i] {
				n++
			}
		}
		m.mu.Unlock()
	}
	return n
}

// say tells what a gateway costs: what the process has more than before the
// fleet, and what it used of the processor since then, relay and test included.
func (f *fleet) say(when string, memory int, since usage) {
	f.t.Helper()
	now := used(f.t)
	span := now.at.Sub(since.at)
	cpu := (now.cpu - since.cpu) / time.Duration(f.size)
	f.t.Logf("%s: %d kB of memory and %.2f ms of processor a second for each of %d gateways, relay and test included (%v)",
		when, (resident(f.t)-memory)/f.size>>10, float64(cpu.Microseconds())/1000/span.Seconds(), f.size, span.Round(time.Second))
}

type usage struct {
	at  time.Time
	cpu time.Duration
}

func used(t *testing.T) usage {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return usage{time.Now(), time.Duration(u.Utime.Nano() + u.Stime.Nano())}
}

func resident(t *testing.T) int {
	t.Helper()
	data, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(data))[1])
	if err != nil {
		t.Fatal(err)
	}
	return pages * os.Getpagesize()
}
