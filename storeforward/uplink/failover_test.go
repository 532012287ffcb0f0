package uplink

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker/packet"
	"holdfast/storeforward/uplink/dial"
)

// sky is several clouds, by host.
type sky map[string]*cloud

func (s sky) dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	c := s[host]
	if c == nil {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	return c.dial(ctx, network, address)
}

// newSkyRig is newRig with clouds a.test, b.test and c.test; the uplink knows
// the first two.
func newSkyRig(tb testing.TB, change func(*Options)) (*rig, sky) {
	tb.Helper()
	s := sky{"a.test": newCloud(), "b.test": newCloud(), "c.test": newCloud()}
	r := newRigWith(tb, func(o *Options) {
		o.URL, o.URLs, o.Dial = "", []string{"mqtt://a.test", "mqtt://b.test"}, s.dial
		if change != nil {
			change(o)
		}
	})
	return r, s
}

// scouted waits for a connection that is closed again without a word, and
// returns when it came.
func (c *cloud) scouted(tb testing.TB) time.Time {
	tb.Helper()
	select {
	case nc := <-c.dialled:
		at := time.Now()
		defer nc.Close()
		if n, err := nc.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
			tb.Fatalf("a scout says something: %d bytes, %v", n, err)
		}
		return at
	case <-time.After(patience):
		tb.Fatal("nobody looks whether it is well")
		return time.Time{}
	}
}

// The first address is dead: the second is used at once; when the first has been
// well for the set time the connection moves back, with a new session at each
// change: each address has an epoch of its own.
func TestFailsOverAndReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, s := newSkyRig(t, nil)
		p := s["a.test"].welcome(t, packet.Connack{})
		p.subscribed()
		r.put("s/x", "1", 1)
		p.expectPublish("1", 1, false)
		s["a.test"].setRefuse(errDown)
		p.cut()

		began := time.Now()
		p = s["b.test"].welcome(t, packet.Connack{})
		if d := time.Since(began); !p.hello.CleanStart || d > 3*r.opts.ReconnectMin {
			t.Errorf("second address after %v, clean start %v", d, p.hello.CleanStart)
		}
		p.subscribed()
		q := p.expectPublish("1", 1, false) // as new: this cloud has not seen it
		p.send(&packet.Puback{PacketID: q.PacketID})
		synctest.Wait()
		if st := r.up.Status(); st.URL != "mqtt://b.test:1883" || st.Failovers != 1 || st.State != StateUp {
			t.Errorf("url %s failovers %d state %s", st.URL, st.Failovers, st.State)
		}

		pass(20 * time.Minute) // dead: it is asked less and less
		s["a.test"].mu.Lock()
		asked := len(s["a.test"].dials)
		s["a.test"].mu.Unlock()
		if asked < 4 || asked > 10 {
			t.Errorf("a dead address is asked %d times in 20 minutes", asked)
		}
		s["a.test"].setRefuse(nil)
		well := s["a.test"].scouted(t)
		for {
			s["a.test"].scouted(t)
			if time.Since(well) >= r.opts.ReturnAfter {
				break
			}
		}
		if q := expect[*packet.Disconnect](p); q.Reason != packet.ReasonSuccess {
			t.Errorf("DISCONNECT with %s: the will would say that we are gone", q.Reason)
		}
		p.cut()
		r.put("s/x", "2", 1)
		moved := time.Now()
		p = s["a.test"].welcome(t, packet.Connack{})
		if d := time.Since(moved); d > 10*time.Millisecond || !p.hello.CleanStart {
			t.Errorf("back after %v, clean start %v", d, p.hello.CleanStart)
		}
		p.subscribed()
		p.expectPublish("2", 1, false)
		if st := r.up.Status(); st.URL != "mqtt://a.test:1883" || st.Returns != 1 || st.Failovers != 2 {
			t.Errorf("url %s returns %d failovers %d", st.URL, st.Returns, st.Failovers)
		}
	})
}

// A cluster that shares sessions keeps ours, whichever of its nodes we reach.
func TestSharedSessionSurvivesFailover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, s := newSkyRig(t, func(o *Options) { o.SharedSession = true })
		p := s["a.test"].welcome(t, packet.Connack{})
		p.subscribed()
		r.put("s/x", "1", 2)
		q := p.expectPublish("1", 2, false)
		s["a.test"].setRefuse(errDown)
		p.cut()
		p = s["b.test"].welcome(t, packet.Connack{SessionPresent: true})
		if p.hello.CleanStart {
			t.Error("clean start, want the session")
		}
		if again := p.expectPublish("1", 2, true); again.PacketID != q.PacketID {
			t.Errorf("id %d, want %d", again.PacketID, q.PacketID)
		}
		// A node more in the configuration is the same cluster.
		p.cut()
		r.restart(func(o *Options) { o.URLs = []string{"mqtt://c.test", "mqtt://b.test"} })
		if p = s["c.test"].welcome(t, packet.Connack{SessionPresent: true}); p.hello.CleanStart {
			t.Error("clean start after a change of the list, want the session")
		}
	})
}

// One that is well only now and then is not gone back to.
func TestReturnWantsItWellAllTheTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, s := newSkyRig(t, nil)
		s["a.test"].setRefuse(errDown)
		p := s["b.test"].welcome(t, packet.Connack{})
		p.subscribed()
		for range 3 {
			s["a.test"].setRefuse(nil)
			for range 4 {
				s["a.test"].scouted(t)
			}
			s["a.test"].setRefuse(errDown)
			pass(r.opts.ReturnAfter)
		}
		p.quiet()
		if st := r.up.Status(); st.Returns != 0 || st.State != StateUp {
			t.Errorf("returns %d state %s", st.Returns, st.State)
		}
	})
}

// The first address lets us as far as TCP, and refuses the CONNECT: the second
// is back at once, and the next move is thought over for longer.
func TestReturnThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, s := newSkyRig(t, nil)
		s["a.test"].setRefuse(errDown)
		p := s["b.test"].welcome(t, packet.Connack{})
		p.subscribed()
		s["a.test"].setRefuse(nil)
		last := time.Now()
		for i := range 3 {
			for ended := false; !ended; {
				select {
				case nc := <-s["a.test"].dialled:
					nc.Close()
				case q := <-p.packets:
					if q.Type() != packet.TypeDisconnect {
						t.Fatalf("got %s", show(q))
					}
					ended = true
				}
			}
			p.cut()
			if d, want := time.Since(last), r.opts.ReturnAfter<<i; d < want {
				t.Errorf("move %d after %v, want at least %v", i, d, want)
			}
			refusing := s["a.test"].accept(t)
			refusing.send(&packet.Connack{Reason: packet.ReasonServerUnavailable})
			refusing.cut()
			began := time.Now()
			p = s["b.test"].welcome(t, packet.Connack{})
			if d := time.Since(began); d > 10*time.Millisecond {
				t.Errorf("second address again after %v", d)
			}
			p.subscribed()
			last = time.Now()
		}
	})
}

func TestRoundRobin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, s := newSkyRig(t, func(o *Options) { o.Failover = dial.FailoverRoundRobin })
		for range 3 {
			s["a.test"].welcome(t, packet.Connack{}).cut()
			s["b.test"].welcome(t, packet.Connack{}).cut()
		}
		s["a.test"].setRefuse(errDown)
		p := s["b.test"].welcome(t, packet.Connack{})
		p.subscribed()
		s["a.test"].setRefuse(nil)
		pass(time.Hour)
		p.quiet() // there is no better one
		if st := r.up.Status(); st.Returns != 0 {
			t.Errorf("returns %d", st.Returns)
		}
	})
}

// All ways are dead: the reason names each, and there is one pause for the round.
func TestAllAddressesDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := sky{"a.test": newCloud()}
		s["a.test"].setRefuse(errDown)
		r := newRigWith(t, func(o *Options) {
			o.URL, o.URLs, o.Dial = "", []string{"mqtt://a.test", "mqtt://b.test"}, s.dial
		})
		pass(10 * time.Minute)
		st := r.up.Status()
		if !strings.Contains(st.Reason, "a.test:1883: network is unreachable; ") || !strings.Contains(st.Reason, "lookup b.test: no such host") {
			t.Errorf("reason %q", st.Reason)
		}
		if st.ConnectFailures != 2*uint64(st.Attempt) {
			t.Errorf("%d failures in %d rounds", st.ConnectFailures, st.Attempt)
		}
	})
}

// One refuses us, the other is dead: both are said, the dead one is tried soon,
// and the one that refuses is left in peace for as long as if it were alone.
func TestOneRefusesAndOneIsDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, s := newSkyRig(t, nil)
		s["b.test"].setRefuse(errDown)
		p := s["a.test"].accept(t)
		p.send(&packet.Connack{Reason: packet.ReasonNotAuthorized})
		p.cut()
		pass(r.opts.ReconnectMax/2 - time.Second)
		for name, want := range map[string]int{"a.test": 1, "b.test": 2} {
			s[name].mu.Lock()
			if n := len(s[name].dials); n < want || name == "a.test" && n > 1 {
				t.Errorf("%s tried %d times", name, n)
			}
			s[name].mu.Unlock()
		}
		st := r.up.Status()
		if st.BytesOut < 50 || st.BytesIn < 5 {
			t.Errorf("a CONNECT that was refused took %d bytes out, %d in", st.BytesOut, st.BytesIn)
		}
		if (st.State != StateAuthRefused && st.State != StateConnecting) || !strings.Contains(st.Reason, "not authorized") || !strings.Contains(st.Reason, errDown.Error()) {
			t.Errorf("state %s reason %q", st.State, st.Reason)
		}
		s["b.test"].setRefuse(nil)
		s["b.test"].welcome(t, packet.Connack{})
	})
}

// A cloud that sends us elsewhere is obeyed once; then it is home again
// (MQTT 5.0 §4.11).
func TestServerReferenceIsHonouredOnce(t *testing.T) {
	for name, reason := range map[string]packet.ReasonCode{"use another server": packet.ReasonUseAnotherServer, "server moved": packet.ReasonServerMoved} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, s := newSkyRig(t, func(o *Options) { o.URL, o.URLs = "mqtt://a.test", nil })
				sends := func(to string) {
					t.Helper()
					p := s["a.test"].accept(t)
					p.send(&packet.Connack{Reason: reason, Properties: packet.Properties{ServerReference: to}})
					p.cut()
				}
				sends("c.test")
				began := time.Now()
				p := s["c.test"].welcome(t, packet.Connack{})
				if d := time.Since(began); d > 10*time.Millisecond || !p.hello.CleanStart {
					t.Errorf("there after %v, clean start %v", d, p.hello.CleanStart)
				}
				p.subscribed()
				if st := r.up.Status(); st.URL != "mqtt://c.test:1883" {
					t.Errorf("url %s", st.URL)
				}
				p.cut()
				sends("c.test")
				// One that sends us on is not obeyed: the next is home.
				p = s["c.test"].accept(t)
				p.send(&packet.Connack{Reason: reason, Properties: packet.Properties{ServerReference: "b.test"}})
				p.cut()
				sends("not a / reference")
				s["a.test"].welcome(t, packet.Connack{})
				if n := len(s["b.test"].dials); n != 0 {
					t.Errorf("the second reference was followed %d times", n)
				}
			})
		})
	}
}

// The same in DISCONNECT. A cloud that sends everybody on as soon as they come
// does not make us turn in circles.
func TestServerReferenceInDisconnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, s := newSkyRig(t, func(o *Options) { o.URL, o.URLs = "mqtt://a.test", nil })
		away := func(p *peer) {
			p.send(&packet.Disconnect{Reason: packet.ReasonUseAnotherServer, Properties: packet.Properties{ServerReference: "c.test"}})
			p.gone()
		}
		p := s["a.test"].welcome(t, packet.Connack{})
		p.subscribed()
		pass(r.opts.ReconnectReset)
		began := time.Now()
		away(p)
		p = s["c.test"].welcome(t, packet.Connack{})
		if d := time.Since(began); d > 10*time.Millisecond {
			t.Errorf("there after %v", d)
		}
		began = time.Now()
		p.cut()
		for range 10 {
			away(s["a.test"].welcome(t, packet.Connack{}))
			away(s["c.test"].welcome(t, packet.Connack{}))
		}
		if d := time.Since(began); d < 10*r.opts.ReconnectMin {
			t.Errorf("ten rounds in %v", d)
		}
	})
}

// A cloud without retained messages, or without QoS 1, refuses our will: it gets
// a humbler one at once, and from then on.
func TestWillThatTheCloudRefuses(t *testing.T) {
	tests := map[string]struct {
		reason packet.ReasonCode
		qos    byte
		retain bool
	}{
		"retain": {packet.ReasonRetainNotSupported, 1, false},
		"QoS":    {packet.ReasonQoSNotSupported, 0, true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, nil)
				p := r.cloud.accept(t)
				p.send(&packet.Connack{Reason: tt.reason})
				p.cut()
				began := time.Now()
				for range 2 {
					p = r.cloud.welcome(t, packet.Connack{})
					if w := p.hello.Will; w.QoS != tt.qos || w.Retain != tt.retain {
						t.Errorf("will QoS %d retain %v, want %d %v", w.QoS, w.Retain, tt.qos, tt.retain)
					}
					if d := time.Since(began); d > 4*time.Second {
						t.Errorf("after %v", d)
					}
					p.cut()
				}
				// It does not help for ever.
				for range 2 {
					p = r.cloud.accept(t)
					p.send(&packet.Connack{Reason: tt.reason})
					p.cut()
				}
				synctest.Wait()
				if st := r.up.Status(); st.State == StateUp {
					t.Errorf("state %s", st.State)
				}
			})
		})
	}
}
