package uplink

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker/message"
	"holdfast/broker/packet"
	"holdfast/storeforward/pack"
)

// TestOutages cuts the link at random packets, both ways, with traffic both
// ways, and checks the promises: what was acknowledged arrives (P1), QoS 2 once
// (P2), in order (P3).
func TestOutages(t *testing.T) {
	variants := map[string]struct {
		rounds   int
		version  packet.Version
		lose     float64
		restarts int
		batches  bool // of what is of QoS 1, in a lane above the rest
		lanes    bool
	}{
		"5.0":                              {rounds: 50, version: packet.V5},
		"3.1.1":                            {rounds: 25, version: packet.V311},
		"5.0 and restarts":                 {rounds: 25, version: packet.V5, restarts: 3},
		"5.0 and lost sessions":            {rounds: 25, version: packet.V5, lose: 0.3},
		"batches":                          {rounds: 25, version: packet.V5, batches: true},
		"batches, 3.1.1":                   {rounds: 15, version: packet.V311, batches: true},
		"batches, restarts, lost sessions": {rounds: 25, version: packet.V5, batches: true, lose: 0.3, restarts: 2},
		"lanes":                            {rounds: 25, version: packet.V5, lanes: true},
		"lanes that change":                {rounds: 25, version: packet.V5, lanes: true, restarts: 4},
		"lanes, lost sessions":             {rounds: 15, version: packet.V311, lanes: true, restarts: 2, lose: 0.3},
	}
	for name, v := range variants {
		t.Run(name, func(t *testing.T) {
			if testing.Short() {
				v.rounds = 5
			}
			for seed := range v.rounds {
				o := outage{seed: uint64(seed), version: v.version, lose: v.lose, restarts: v.restarts, batches: v.batches, lanes: v.lanes}
				ok := t.Run(strconv.Itoa(seed), func(t *testing.T) {
					synctest.Test(t, o.run)
				})
				if !ok {
					return
				}
			}
		})
	}
}

type outage struct {
	seed     uint64
	version  packet.Version
	lose     float64
	restarts int
	batches  bool
	lanes    bool
}

// routes give topics lanes at random, and states one that keeps the latest, or not.
func (o outage) routes(rnd *rand.Rand) []Route {
	if !o.lanes {
		return testOptions().Routes
	}
	lane := func() *int { return new(rnd.IntN(8)) }
	return append([]Route{
		{Direction: DirectionOut, Filter: "s/state/#", Prefix: "site/", Lane: lane(), Latest: rnd.IntN(4) > 0},
		{Direction: DirectionOut, Filter: "s/a", Prefix: "site/", Lane: lane()},
	}, testOptions().Routes...)
}

func (o outage) run(t *testing.T) {
	const each = 40 // messages of each topic and QoS
	rnd := rand.New(rand.NewPCG(o.seed, 2))
	cloud := newHonest(t, o.seed)
	cloud.version, cloud.lose, cloud.cuts = o.version, o.lose, 12
	var conns sync.WaitGroup
	r := newRigWith(t, func(opts *Options) {
		opts.Window = 1 + rnd.IntN(30)
		opts.Batch = 1 + rnd.IntN(30)
		opts.ReceiveMaximum = 10
		opts.Routes = o.routes(rnd)
		if o.batches {
			both := Route{Direction: DirectionOut, Filter: "s/a", Prefix: "site/", Batch: pack.Formats[rnd.IntN(3)], BatchMessages: 1 + rnd.IntN(10), BatchDelay: time.Duration(1+rnd.IntN(1000)) * time.Millisecond}
			both.Lane = new(rnd.IntN(8))
			opts.Routes = append([]Route{both}, opts.Routes...)
		}
		opts.Dial = func(context.Context, string, string) (net.Conn, error) {
			ours, theirs := net.Pipe()
			conns.Go(func() { cloud.serve(theirs) })
			return ours, nil
		}
	})
	t.Cleanup(func() { r.end(); conns.Wait() })

	var safe []chan struct{}
	var came []*message.Message
	commands := o.lose == 0 // a session that is lost takes its commands along
	for i := range each {
		for _, topic := range []string{"a", "b"} {
			for qos := byte(1); qos <= 2; qos++ {
				safe = append(safe, r.put("s/"+topic, strconv.Itoa(i), qos))
				if commands {
					cloud.command(fmt.Sprintf("site/cmd/%s/%d", topic, qos), strconv.Itoa(i), qos)
				}
			}
		}
		if o.lanes {
			safe = append(safe, r.put("s/state/x", strconv.Itoa(i), 1), r.put("s/state/y", strconv.Itoa(i), 2))
		}
		if rnd.IntN(3) == 0 {
			pass(time.Duration(rnd.IntN(1500)) * time.Millisecond)
		}
		if o.restarts > 0 && i%(each/(o.restarts+1)) == each/(o.restarts+1)-1 {
			r.end()
			came = append(came, r.local.messages()...)
			if o.lanes {
				r.opts.Routes = o.routes(rnd)
			}
			r.start()
		}
	}
	for range 600 {
		cloud.mu.Lock()
		done := cloud.session != nil && len(cloud.session.down) == 0 && len(cloud.early) == 0 && cloud.cuts == 0
		cloud.mu.Unlock()
		if done && r.backlog() == 0 && r.up.Status().InFlight == 0 {
			break
		}
		pass(time.Second)
		cloud.mu.Lock()
		if cloud.cuts > 0 && cloud.conn != nil && r.backlog() == 0 {
			cloud.conn.Close() // nothing flows any more that could be cut
		}
		cloud.mu.Unlock()
	}
	for i, ch := range safe {
		select {
		case <-ch:
		default:
			t.Errorf("message %d is not safe", i)
		}
	}
	came = append(came, r.local.messages()...)
	st := r.up.Status()

	cloud.mu.Lock()
	defer cloud.mu.Unlock()
	for _, b := range cloud.breach {
		t.Errorf("against the protocol: %s", b)
	}
	lanes := inLanes(cloud.got)
	for _, topic := range []string{"a", "b"} {
		checkLane(t, topic+" QoS 1", lanes["site/s/"+topic+"/1"], each, false)
		checkLane(t, topic+" QoS 2", lanes["site/s/"+topic+"/2"], each, cloud.lost == 0)
	}
	for _, name := range []string{"x", "y"} {
		if got := slices.Concat(lanes["site/s/state/"+name+"/1"], lanes["site/s/state/"+name+"/2"]); o.lanes && (len(got) == 0 || !slices.Contains(got, strconv.Itoa(each-1))) {
			t.Errorf("state %s is %q in the end", name, got)
		}
	}
	if got := lanes["site/s/state/x/1"]; o.lanes && got[len(got)-1] != strconv.Itoa(each-1) {
		t.Errorf("state x ends as %q", got)
	}
	if commands {
		down := make(map[string][]string)
		for _, m := range came {
			down[m.Topic] = append(down[m.Topic], string(m.Payload))
		}
		for _, topic := range []string{"a", "b"} {
			checkLane(t, "commands "+topic+" QoS 1", down["cmd/"+topic+"/1"], each, false)
			checkLane(t, "commands "+topic+" QoS 2", down["cmd/"+topic+"/2"], each, true)
		}
	}
	if st.Backlog != 0 || st.InFlight != 0 || st.UnknownAcks != 0 {
		t.Errorf("in the end backlog %d, in flight %d, unknown acks %d", st.Backlog, st.InFlight, st.UnknownAcks)
	}
	if t.Failed() {
		t.Logf("status: %+v", st)
	}
}
