package uplink

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker/packet"
)

// While a configuration is on trial nothing is dropped for want of a route: it may
// have had one before, and get it back.
func TestTrialKeepsWhatHasNoRoute(t *testing.T) {
	fill := func(r *rig) {
		for qos := byte(1); qos <= 2; qos++ {
			r.put("was/a", "was", qos)
			r.put("s/a", "is", qos)
		}
	}
	// take acknowledges everything, and says that each payload came in both QoS.
	take := func(t *testing.T, p *peer, payloads ...string) {
		t.Helper()
		var got []string
		for finished := 0; finished < 2*len(payloads); {
			switch q := p.next().(type) {
			case *packet.Publish:
				got = append(got, fmt.Sprintf("%s %d", q.Payload, q.QoS))
				if q.QoS == 1 {
					p.send(&packet.Puback{PacketID: q.PacketID})
					finished++
				} else {
					p.send(&packet.Pubrec{PacketID: q.PacketID})
				}
			case *packet.Pubrel:
				p.send(&packet.Pubcomp{PacketID: q.PacketID})
				finished++
			default:
				t.Fatalf("got %v", q)
			}
		}
		var want []string
		for _, payload := range payloads {
			want = append(want, payload+" 1", payload+" 2")
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	trial := func(t *testing.T) (*rig, *peer) {
		t.Helper()
		r := newRig(t, func(o *Options) { o.OnTrial = true })
		fill(r)
		p := r.cloud.welcome(t, packet.Connack{})
		p.subscribed()
		p.quiet()
		pass(time.Second)
		if st := r.up.Status(); st.Backlog != 4 || len(st.Dropped) != 0 {
			t.Fatalf("on trial: backlog %d, dropped %v", st.Backlog, st.Dropped)
		}
		return r, p
	}
	t.Run("proven", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r, p := trial(t)
			r.up.Proven()
			take(t, p, "is")
			p.quiet()
			if st := r.up.Status(); st.Backlog != 0 || st.Dropped[dropNoRoute] != 2 {
				t.Errorf("backlog %d, dropped %v", st.Backlog, st.Dropped)
			}
		})
	})
	t.Run("taken back", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r, _ := trial(t)
			r.end()
			r.opts.OnTrial = false
			r.opts.Routes = append(r.opts.Routes, Route{Direction: DirectionOut, Filter: "was/#"})
			r.start()
			p := r.cloud.welcome(t, packet.Connack{})
			p.subscribed()
			take(t, p, "was", "is")
			p.quiet()
			if st := r.up.Status(); st.Backlog != 0 || len(st.Dropped) != 0 {
				t.Errorf("backlog %d, dropped %v", st.Backlog, st.Dropped)
			}
		})
	})
}
