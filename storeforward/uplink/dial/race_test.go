package dial

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// network is names and hosts as a test wants them.
type network struct {
	// answers are the name server's, by family; a negative delay is silence.
	answers map[string]answerAfter
	// hosts take connections after the time, or refuse; those not named and
	// those with a negative time stay silent.
	hosts map[string]hostAfter

	mu    sync.Mutex
	began []string // guarded by mu: the attempts in order
	at    []time.Duration
	start time.Time
	conns []*openConn
}

type answerAfter struct {
	delay time.Duration
	addrs []string
	err   error
}

type hostAfter struct {
	delay time.Duration
	err   error
}

type openConn struct {
	net.Conn
	to     string
	closed bool
}

func (c *openConn) Close() error {
	c.closed = true
	return nil
}

func wait(ctx context.Context, d time.Duration) error {
	if d < 0 {
		<-ctx.Done()
		return ctx.Err()
	}
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (n *network) lookup(ctx context.Context, family, _ string) ([]netip.Addr, error) {
	a := n.answers[family]
	if err := wait(ctx, a.delay); err != nil {
		return nil, &net.DNSError{Err: "i/o timeout", Name: "cloud.test", IsTimeout: true}
	}
	var addrs []netip.Addr
	for _, s := range a.addrs {
		addrs = append(addrs, netip.MustParseAddr(s))
	}
	return addrs, a.err
}

func (n *network) connect(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	name := to.Addr().String()
	n.mu.Lock()
	n.began = append(n.began, name)
	n.at = append(n.at, time.Since(n.start))
	n.mu.Unlock()
	h, ok := n.hosts[name]
	if !ok {
		h.delay = -1
	}
	if err := wait(ctx, h.delay); err != nil {
		return nil, err
	}
	if h.err != nil {
		return nil, h.err
	}
	c := &openConn{to: name}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.conns = append(n.conns, c)
	return c, nil
}

func (n *network) race(known ...string) *race {
	n.start = time.Now()
	r := &race{host: "cloud.test", port: 1883, lookup: n.lookup, connect: n.connect}
	for _, s := range known {
		r.known = append(r.known, netip.MustParseAddr(s))
	}
	return r
}

var gone = &net.DNSError{Err: "no such host", Name: "cloud.test", IsNotFound: true}

func TestRace(t *testing.T) {
	const six, six2, four, four2 = "2001:db8::1", "2001:db8::2", "192.0.2.1", "192.0.2.2"
	well := hostAfter{delay: 30 * time.Millisecond}
	refuses := hostAfter{delay: 10 * time.Millisecond, err: syscall.ECONNREFUSED}
	both := map[string]answerAfter{"ip6": {addrs: []string{six, six2}}, "ip4": {addrs: []string{four, four2}}}
	tests := map[string]struct {
		answers map[string]answerAfter
		hosts   map[string]hostAfter
		known   []string
		want    string        // empty: an error
		err     string        // in it
		after   time.Duration // at most
		began   []string
	}{
		"IPv6 first": {
			answers: both, hosts: map[string]hostAfter{six: well, four: well},
			want: six, after: 40 * time.Millisecond, began: []string{six},
		},
		"a black hole under IPv6 costs a quarter of a second": {
			answers: both, hosts: map[string]hostAfter{four: well},
			want: four, after: 300 * time.Millisecond, began: []string{six, four},
		},
		"what refuses costs nothing": {
			answers: both, hosts: map[string]hostAfter{six: refuses, four: refuses, six2: well},
			want: six2, after: 60 * time.Millisecond, began: []string{six, four, six2},
		},
		"the families take turns": {
			answers: both, hosts: map[string]hostAfter{four2: well},
			want: four2, after: 800 * time.Millisecond, began: []string{six, four, six2, four2},
		},
		"one family only": {
			answers: map[string]answerAfter{"ip6": {err: gone}, "ip4": {addrs: []string{four}}}, hosts: map[string]hostAfter{four: well},
			want: four, after: 40 * time.Millisecond, began: []string{four},
		},
		"AAAA is never answered": {
			answers: map[string]answerAfter{"ip6": {delay: -1}, "ip4": {addrs: []string{four}}}, hosts: map[string]hostAfter{four: well},
			want: four, after: 90 * time.Millisecond, began: []string{four},
		},
		"AAAA comes within the resolution delay": {
			answers: map[string]answerAfter{"ip6": {delay: 20 * time.Millisecond, addrs: []string{six}}, "ip4": {addrs: []string{four}}},
			hosts:   map[string]hostAfter{six: well, four: well},
			want:    six, after: 60 * time.Millisecond, began: []string{six},
		},
		"AAAA comes late and still helps": {
			answers: map[string]answerAfter{"ip6": {delay: time.Second, addrs: []string{six}}, "ip4": {addrs: []string{four}}},
			hosts:   map[string]hostAfter{six: well},
			want:    six, after: 1100 * time.Millisecond, began: []string{four, six},
		},
		"a silent name server: what worked before": {
			answers: map[string]answerAfter{"ip6": {delay: -1}, "ip4": {delay: -1}}, hosts: map[string]hostAfter{four2: well},
			known: []string{four2}, want: four2, after: staleAfter + 100*time.Millisecond, began: []string{four2},
		},
		"a name server that fails: what worked before, at once": {
			answers: map[string]answerAfter{"ip6": {err: errors.New("server misbehaving")}, "ip4": {err: errors.New("server misbehaving")}},
			hosts:   map[string]hostAfter{four2: well},
			known:   []string{four2}, want: four2, after: 100 * time.Millisecond, began: []string{four2},
		},
		"a silent name server and nothing known": {
			answers: map[string]answerAfter{"ip6": {delay: -1}, "ip4": {delay: -1}},
			err:     "i/o timeout", after: lookupTimeout + time.Millisecond,
		},
		"a name that is gone is not what it was before": {
			answers: map[string]answerAfter{"ip6": {err: gone}, "ip4": {err: gone}}, hosts: map[string]hostAfter{four: well},
			known: []string{four}, err: "no such host", after: time.Millisecond,
		},
		"nobody answers": {
			answers: both, err: "deadline exceeded", after: 20 * time.Second, began: []string{six, four, six2, four2},
		},
		"a name of one family in the hosts file, which refuses": {
			answers: map[string]answerAfter{"ip6": {err: &net.AddrError{Err: "no suitable address found", Addr: "cloud.test"}}, "ip4": {addrs: []string{four, four2}}},
			hosts:   map[string]hostAfter{four: refuses, four2: {err: errors.New("no route")}},
			err:     "connection refused, no route", after: 30 * time.Millisecond, began: []string{four, four2},
		},
		"all refuse": {
			answers: map[string]answerAfter{"ip6": {err: gone}, "ip4": {addrs: []string{four, four2}}}, hosts: map[string]hostAfter{four: refuses, four2: refuses},
			err: "connection refused", after: 30 * time.Millisecond, began: []string{four, four2},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := &network{answers: tt.answers, hosts: tt.hosts}
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				c, addr, err := n.race(tt.known...).run(ctx)
				took := time.Since(n.start)
				switch {
				case tt.want == "" && (err == nil || !strings.Contains(err.Error(), tt.err)):
					t.Errorf("err = %v, want %q in it", err, tt.err)
				case tt.want != "" && (err != nil || c.(*openConn).to != tt.want || addr.String() != tt.want):
					t.Errorf("connection to %v, %v, want %s", addr, err, tt.want)
				}
				if took > tt.after {
					t.Errorf("took %v, want at most %v", took, tt.after)
				}
				if !slices.Equal(n.began, tt.began) {
					t.Errorf("attempts %v at %v, want %v", n.began, n.at, tt.began)
				}
			})
		})
	}
}

// Whatever names and hosts do: one connection is returned and every other one
// that came about is closed, no address is tried twice, a host that is well is
// found, and nothing goes on after the end.
func TestRaceKeepsOneConnection(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n := &network{answers: map[string]answerAfter{}, hosts: map[string]hostAfter{}}
		delay := rapid.SampledFrom([]time.Duration{-1, 0, time.Millisecond, 40 * time.Millisecond, 100 * time.Millisecond, time.Second})
		reachable := false
		for family, pool := range map[string][]string{
			"ip6": {"2001:db8::1", "2001:db8::2", "2001:db8::3"},
			"ip4": {"192.0.2.1", "192.0.2.2", "192.0.2.3"},
		} {
			a := answerAfter{delay: delay.Draw(rt, "answer"), addrs: rapid.SliceOfN(rapid.SampledFrom(pool), 0, 4).Draw(rt, "addresses")}
			n.answers[family] = a
			for _, s := range pool {
				h := hostAfter{delay: delay.Draw(rt, "host")}
				if rapid.Bool().Draw(rt, "refuses") {
					h.err = syscall.ECONNREFUSED
				}
				n.hosts[s] = h
				if h.err == nil && h.delay >= 0 && a.delay >= 0 && slices.Contains(a.addrs, s) {
					reachable = true
				}
			}
		}
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			c, _, err := n.race().run(ctx)
			if reachable && err != nil {
				rt.Errorf("err = %v, and there is a host that is well", err)
			}
			for _, o := range n.conns {
				if o.closed == (err == nil && o == c.(*openConn)) {
					rt.Errorf("connection to %s: closed %v", o.to, o.closed)
				}
			}
			seen := map[string]bool{}
			for _, s := range n.began {
				if seen[s] {
					rt.Errorf("%s tried twice", s)
				}
				seen[s] = true
			}
		})
	})
}
