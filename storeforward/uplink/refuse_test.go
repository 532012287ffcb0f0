package uplink

import (
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker/packet"
)

// 0x80, 0x83 and 0x97 keep a message and try it again with back-off; what is
// behind it on its topic waits, the rest goes on.
func TestRefusedForNowIsTriedAgainInOrder(t *testing.T) {
	for _, reason := range []packet.ReasonCode{packet.ReasonUnspecified, packet.ReasonImplementationSpecific, packet.ReasonQuotaExceeded} {
		for qos := byte(1); qos <= 2; qos++ {
			t.Run(reason.String()+" "+string('0'+rune(qos)), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { refusedForNow(t, reason, qos) })
			})
		}
	}
}

func refusedForNow(t *testing.T, reason packet.ReasonCode, qos byte) {
	t.Helper()
	r := newRig(t, nil)
	p := r.cloud.welcome(t, packet.Connack{Properties: packet.Properties{ReceiveMaximum: 2}})
	p.subscribed()
	r.put("s/a", "1", qos)
	id := p.expectPublish("1", qos, false).PacketID
	p.refuse(qos, id, reason)
	p.quiet()
	r.put("s/a", "2", qos)
	p.quiet() // behind the first
	r.put("s/b", "x", qos)
	x := p.expectPublish("x", qos, false)
	p.accept(x)
	for range 4 { // refused again and again, with growing pauses
		began := time.Now()
		q := p.expectPublish("1", qos, false)
		if q.PacketID != id {
			t.Errorf("tried again as %d, want %d", q.PacketID, id)
		}
		pause := time.Since(began)
		if pause < r.opts.ReconnectMin || pause > r.opts.ReconnectMax {
			t.Errorf("tried again after %v, want %v to %v", pause, r.opts.ReconnectMin, r.opts.ReconnectMax)
		}
		p.refuse(qos, id, reason)
	}
	if got := p.serve(2); got != "12" {
		t.Errorf("got %q, want 12", got)
	}
	p.quiet()
	if st := r.up.Status(); st.RefusedForNow != 5 || st.Refused != 0 || st.Backlog != 0 || st.Held != 0 {
		t.Errorf("status is %+v", st)
	}
}

func (p *peer) refuse(qos byte, id uint16, reason packet.ReasonCode) {
	p.t.Helper()
	if qos == 2 {
		p.send(&packet.Pubrec{PacketID: id, Reason: reason})
		return
	}
	p.send(&packet.Puback{PacketID: id, Reason: reason})
}

// accept takes a message over, to the end.
func (p *peer) accept(q *packet.Publish) {
	p.t.Helper()
	if q.QoS == 1 {
		p.send(&packet.Puback{PacketID: q.PacketID})
		return
	}
	p.send(&packet.Pubrec{PacketID: q.PacketID})
	expect[*packet.Pubrel](p)
	p.send(&packet.Pubcomp{PacketID: q.PacketID})
}

// serve takes n messages over, to the end, and returns their payloads.
func (p *peer) serve(n int) (payloads string) {
	p.t.Helper()
	for open := n; open > 0; {
		switch q := p.next().(type) {
		case *packet.Publish:
			payloads += string(q.Payload)
			if q.QoS == 1 {
				p.send(&packet.Puback{PacketID: q.PacketID})
				open--
			} else {
				p.send(&packet.Pubrec{PacketID: q.PacketID})
			}
		case *packet.Pubrel:
			p.send(&packet.Pubcomp{PacketID: q.PacketID})
			open--
		default:
			p.t.Fatalf("got %s", show(q))
		}
	}
	return payloads
}

func TestRefusedForGoodIsADeadLetter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		p := r.cloud.welcome(t, packet.Connack{})
		p.subscribed()
		for qos := byte(1); qos <= 2; qos++ {
			r.put("s/a", "1", qos)
			p.refuse(qos, p.expectPublish("1", qos, false).PacketID, packet.ReasonNotAuthorized)
			r.put("s/a", "2", qos)
			p.accept(p.expectPublish("2", qos, false))
		}
		p.quiet()
		st := r.up.Status()
		if st.Refused != 2 || st.Acked != 2 || st.Backlog != 0 || st.InFlight != 0 {
			t.Errorf("status is %+v", st)
		}
		if n := r.store.Status().Queues[0].DeadLetters; n != 2 {
			t.Errorf("%d dead letters, want 2", n)
		}
	})
}

// A message held when the connection breaks keeps its place.
func TestHeldAcrossAReconnect(t *testing.T) {
	for qos := byte(1); qos <= 2; qos++ {
		t.Run("qos "+string('0'+rune(qos)), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, func(o *Options) { o.ReconnectMin, o.ReconnectMax = time.Minute, time.Minute })
				p := r.cloud.welcome(t, packet.Connack{})
				p.subscribed()
				r.put("s/a", "1", qos)
				p.refuse(qos, p.expectPublish("1", qos, false).PacketID, packet.ReasonQuotaExceeded)
				r.put("s/a", "2", qos)
				p.quiet()
				if n := r.up.Status().Held; n != 2 {
					t.Errorf("%d held, want 2", n)
				}
				p.cut()
				p = r.cloud.welcome(t, packet.Connack{SessionPresent: true})
				if got := p.serve(2); got != "12" {
					t.Errorf("got %q, want 12", got)
				}
				p.quiet()
				if st := r.up.Status(); st.Resends != 0 || st.Backlog != 0 {
					t.Errorf("resends %d backlog %d: it was refused, not sent", st.Resends, st.Backlog)
				}
			})
		})
	}
}
