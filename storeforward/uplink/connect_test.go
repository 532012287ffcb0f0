package uplink

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker/message"
	"holdfast/broker/packet"
)

func TestFallsBackTo311AndRemembers(t *testing.T) {
	answers := map[string]func(p *peer){
		"reason 0x84": func(p *peer) {
			p.send(&packet.Connack{Reason: packet.ReasonUnsupportedProtocolVersion})
			p.cut()
		},
		"return code 1 as 3.1.1 has it": func(p *peer) {
			p.nc.Write([]byte{0x20, 2, 0, 1})
			p.cut()
		},
	}
	for name, answer := range answers {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, nil)
				began := time.Now()
				p := r.cloud.accept(t)
				if p.v != packet.V5 {
					t.Fatalf("first version is %s, want 5.0", p.v)
				}
				answer(p)
				p = r.cloud.accept(t)
				if p.v != packet.V311 || time.Since(began) > 100*time.Millisecond {
					t.Fatalf("second version is %s after %v, want 3.1.1 at once", p.v, time.Since(began))
				}
				p.answer(packet.Connack{}) // ends the old session
				p.gone()
				p = r.cloud.welcome(t, packet.Connack{})
				p.subscribed()
				r.put("s/a", "1", 2)
				q := p.expectPublish("1", 2, false)
				p.accept(q)
				p.quiet()
				if st := r.up.Status(); st.Protocol != "3.1.1" || st.Acked != 1 {
					t.Errorf("protocol %s acked %d", st.Protocol, st.Acked)
				}
				p.cut()
				p = r.cloud.accept(t)
				if p.v != packet.V311 || p.hello.CleanStart {
					t.Errorf("version %s clean %v, want 3.1.1 and the session", p.v, p.hello.CleanStart)
				}
			})
		})
	}
}

// One connection that breaks at CONNECT is a bad link, three are an old broker.
func TestHangUpsFallBackLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		for range hangUps {
			p := r.cloud.accept(t)
			if p.v != packet.V5 {
				t.Fatalf("version is %s, want 5.0", p.v)
			}
			p.cut()
		}
		if p := r.cloud.accept(t); p.v != packet.V311 {
			t.Errorf("version is %s, want 3.1.1", p.v)
		}
	})
}

// A cloud that has spoken 5.0 is not asked for 3.1.1 when it hangs up.
func TestNoFallbackOnceFiveHasWorked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		r.cloud.welcome(t, packet.Connack{}).cut()
		for range 2 * hangUps {
			p := r.cloud.accept(t)
			if p.v != packet.V5 {
				t.Fatalf("version is %s, want 5.0", p.v)
			}
			p.cut()
		}
	})
}

func TestBackoffGrowsWhileDownAndResetsAfterTheLinkHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) { o.ReconnectSpread = 0 })
		r.cloud.welcome(t, packet.Connack{}).cut() // it did not hold
		synctest.Wait()
		r.cloud.setRefuse(errDown)
		pass(2 * time.Minute)
		r.cloud.mu.Lock()
		dials := r.cloud.dials
		r.cloud.mu.Unlock()
		longest := time.Duration(0)
		for i := 1; i < len(dials); i++ {
			pause := dials[i].Sub(dials[i-1])
			if pause < r.opts.ReconnectMin || pause > r.opts.ReconnectMax {
				t.Errorf("pause %d is %v, want %v to %v", i, pause, r.opts.ReconnectMin, r.opts.ReconnectMax)
			}
			longest = max(longest, pause)
		}
		if longest < 2*r.opts.ReconnectMin || len(dials) < 10 {
			t.Errorf("%d attempts, longest pause %v: it does not grow", len(dials), longest)
		}
		st := r.up.Status()
		if st.State != StateBackingOff && st.State != StateConnecting || !strings.Contains(st.Reason, errDown.Error()) || st.Attempt != len(dials) {
			t.Errorf("status is %+v, want %d attempts", st, len(dials))
		}

		r.cloud.setRefuse(nil)
		p := r.cloud.welcome(t, packet.Connack{SessionPresent: true})
		p.subscribed()
		pass(r.opts.ReconnectReset)
		began := time.Now()
		p.cut()
		r.cloud.accept(t)
		if pause := time.Since(began); pause > 3*r.opts.ReconnectMin {
			t.Errorf("pause after a link that held is %v, want at most %v", pause, 3*r.opts.ReconnectMin)
		}
	})
}

func TestAuthRefusedIsSaidAndRetriedSlowly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		p := r.cloud.accept(t)
		p.send(&packet.Connack{Reason: packet.ReasonBadUserNameOrPassword})
		p.cut()
		synctest.Wait()
		st := r.up.Status()
		if st.State != StateAuthRefused || !strings.Contains(st.Reason, "password") {
			t.Errorf("state %s reason %q", st.State, st.Reason)
		}
		if wait := time.Until(st.NextAttempt); wait < r.opts.ReconnectMax/2 || wait > r.opts.ReconnectMax {
			t.Errorf("next attempt in %v, want at least %v", wait, r.opts.ReconnectMax/2)
		}
		r.cloud.welcome(t, packet.Connack{})
		if st := r.up.Status(); st.State != StateUp || !st.NextAttempt.IsZero() || st.Attempt != 0 {
			t.Errorf("status is %+v", st)
		}
	})
}

func TestTakenOverIsSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		p := r.cloud.welcome(t, packet.Connack{})
		p.subscribed()
		p.send(&packet.Disconnect{Reason: packet.ReasonSessionTakenOver})
		p.gone()
		synctest.Wait()
		if st := r.up.Status(); st.State != StateBackingOff || st.Remote != "" || !strings.Contains(st.Reason, "another connection uses our client id") {
			t.Errorf("state %s reason %q", st.State, st.Reason)
		}
	})
}

// A cloud that takes the connection and never answers CONNECT holds us up for
// the connect timeout, not longer.
func TestNoConnack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		began := time.Now()
		p := r.cloud.accept(t)
		r.cloud.accept(t)
		if d := time.Since(began); d > r.opts.ConnectTimeout+3*r.opts.ReconnectMin {
			t.Errorf("second attempt after %v", d)
		}
		p.cut()
	})
}

// The link is up and nothing comes back: found within keep alive and a half.
func TestSilentCloudIsReplaced(t *testing.T) {
	tests := map[string]func(r *rig){
		"idle":          func(*rig) {},
		"while we send": func(r *rig) { r.put("s/a", "1", 1) },
		"while QoS 0 flows": func(r *rig) {
			for range 200 {
				r.up.Offer0(&message.Message{Topic: "s/a"})
				pass(time.Second)
			}
		},
	}
	for name, busy := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, func(o *Options) { o.AckTimeout = 0 })
				p := r.cloud.welcome(t, packet.Connack{})
				p.subscribed()
				close(p.silent)
				began := time.Now()
				var wg sync.WaitGroup
				wg.Go(func() { busy(r) })
				wg.Go(p.gone)
				r.cloud.accept(t)
				if d := time.Since(began); d > r.opts.KeepAlive*3/2+3*r.opts.ReconnectMin {
					t.Errorf("replaced after %v", d)
				}
				wg.Wait()
			})
		})
	}
}

// PINGRESPs come, acknowledgements do not: said after a while, and the
// connection is replaced, the only way to ask again.
func TestCloudThatNeverAcknowledges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		p := r.cloud.welcome(t, packet.Connack{})
		p.subscribed()
		r.put("s/a", "1", 1)
		q := p.expectPublish("1", 1, false)
		began := time.Now()
		pass(r.opts.AckTimeout / 2)
		if st := r.up.Status(); st.State != StateStuck || st.OldestUnacked < 29 || st.OldestUnacked > 31 {
			t.Errorf("state %s, oldest %vs", st.State, st.OldestUnacked)
		}
		p.gone()
		if d := time.Since(began); d < r.opts.AckTimeout || d > r.opts.AckTimeout+time.Second {
			t.Errorf("given up after %v, want %v", d, r.opts.AckTimeout)
		}
		p = r.cloud.welcome(t, packet.Connack{SessionPresent: true})
		if again := p.expectPublish("1", 1, true); again.PacketID != q.PacketID {
			t.Errorf("sent again as %d, want %d", again.PacketID, q.PacketID)
		}
		if n := r.up.Status().StuckConnections; n != 1 {
			t.Errorf("stuck connections %d, want 1", n)
		}
	})
}

// One missing PUBACK does not stall the rest; and it is asked for again, though
// others come.
func TestOneMissingPuback(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) { o.Window = 5 })
		p := r.cloud.welcome(t, packet.Connack{})
		p.subscribed()
		r.put("s/a", "lost", 1)
		p.expectPublish("lost", 1, false)
		began := time.Now()
		for n := 0; ; n++ {
			r.put("s/a", "x", 1)
			q, ok := p.next().(*packet.Publish)
			if !ok {
				if n < 50 {
					t.Errorf("only %d more went through", n)
				}
				break
			}
			p.send(&packet.Puback{PacketID: q.PacketID})
			pass(time.Second)
		}
		if d := time.Since(began); d < r.opts.AckTimeout || d > r.opts.AckTimeout+3*time.Second {
			t.Errorf("given up after %v, want %v", d, r.opts.AckTimeout)
		}
		p = r.cloud.welcome(t, packet.Connack{SessionPresent: true})
		p.expectPublish("lost", 1, true)
	})
}

// A slow link that keeps acknowledging is not stuck, however long it takes.
func TestSlowIsNotStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		p := r.cloud.welcome(t, packet.Connack{})
		p.subscribed()
		for range 10 {
			r.put("s/a", "x", 1)
		}
		for range 10 {
			q := p.publish()
			pass(r.opts.AckTimeout * 3 / 4)
			p.send(&packet.Puback{PacketID: q.PacketID})
		}
		p.quiet()
		if st := r.up.Status(); st.StuckConnections != 0 || st.Acked != 10 {
			t.Errorf("stuck %d acked %d", st.StuckConnections, st.Acked)
		}
	})
}

func TestCleanStopSaysWhyAndDisconnects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		p := r.cloud.welcome(t, packet.Connack{})
		p.subscribed()
		r.put("s/a", "1", 1)
		p.expectPublish("1", 1, false)
		r.stop(errors.New("SIGTERM"))
		q := p.publish()
		var st gatewayStatus
		if err := json.Unmarshal(q.Payload, &st); err != nil || st.State != "offline" || st.Reason != "SIGTERM" || !q.Retain || q.QoS != 1 {
			t.Errorf("last message is %s: %v", show(q), err)
		}
		p.quiet() // DISCONNECT waits for the acknowledgement
		p.send(&packet.Puback{PacketID: q.PacketID})
		if d := expect[*packet.Disconnect](p); d.Reason != packet.ReasonSuccess {
			t.Errorf("DISCONNECT with %s", d.Reason)
		}
		p.cut()
		<-r.ended
		if st := r.up.Status(); st.State != StateStopped || st.Reason != "SIGTERM" {
			t.Errorf("state %s reason %q", st.State, st.Reason)
		}
		r.restart(nil)
		p = r.cloud.acceptWith(t, packet.Connack{SessionPresent: true})
		if err := json.Unmarshal(p.publish().Payload, &st); err != nil || st.Reason != "start after stop: SIGTERM" {
			t.Errorf("reason of the birth is %q", st.Reason)
		}
	})
}

// When the cloud does not take the last message in time, the will says it.
func TestStopWithoutAnAnswerLeavesTheWill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		p := r.cloud.welcome(t, packet.Connack{})
		p.subscribed()
		began := time.Now()
		r.stop(errors.New("SIGTERM"))
		p.publish()
		if d := expect[*packet.Disconnect](p); d.Reason != packet.ReasonDisconnectWithWill {
			t.Errorf("DISCONNECT with %s", d.Reason)
		}
		p.cut()
		<-r.ended
		if d := time.Since(began); d > r.opts.StopTimeout+2*time.Second {
			t.Errorf("the stop took %v", d)
		}
	})
}

func TestStopWhileDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		synctest.Wait() // dialling
		r.stop(errors.New("SIGTERM"))
		<-r.ended
		r.restart(nil)
		p := r.cloud.acceptWith(t, packet.Connack{})
		var st gatewayStatus
		if err := json.Unmarshal(p.publish().Payload, &st); err != nil || st.Reason != "start after stop: SIGTERM" {
			t.Errorf("reason of the birth is %q: %v", st.Reason, err)
		}
	})
}

// A certificate out of its time is more often a wrong clock of ours.
func TestCertificateTimesNameTheClock(t *testing.T) {
	cert := &x509.Certificate{NotBefore: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)}
	err := x509.CertificateInvalidError{Cert: cert, Reason: x509.Expired}
	tests := map[string]struct {
		now  time.Time
		want string
	}{
		"clock in the past": {time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC), "our clock is wrong (2020-01-01 00:00:00)"},
		"expired":           {time.Date(2028, 1, 1, 0, 0, 0, 0, time.UTC), "expired on 2027-01-01 00:00:00"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := (&Uplink{}).explain(err, tt.now); !strings.Contains(got, tt.want) {
				t.Errorf("explain() = %q, want %q in it", got, tt.want)
			}
		})
	}
}
