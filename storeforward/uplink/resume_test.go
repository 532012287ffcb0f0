package uplink

import (
	"testing"
	"testing/synctest"

	"holdfast/broker/packet"
)

// The cloud kept the session: PUBRELs, then the PUBLISHes that are not
// acknowledged in their first order and under their ids, then new ones.
func TestSessionPresentResendsInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		p := r.cloud.welcome(t, packet.Connack{})
		p.subscribed()
		ids := make(map[string]uint16)
		for _, m := range []struct {
			payload string
			qos     byte
		}{{"a", 1}, {"B", 2}, {"c", 1}, {"D", 2}, {"e", 1}} {
			r.put("s/x", m.payload, m.qos)
			ids[m.payload] = p.expectPublish(m.payload, m.qos, false).PacketID
		}
		p.send(&packet.Puback{PacketID: ids["a"]}, &packet.Pubrec{PacketID: ids["B"]})
		expect[*packet.Pubrel](p)
		p.cut()
		synctest.Wait() // or it would be written into the dead connection
		r.put("s/x", "f", 1)
		p = r.cloud.welcome(t, packet.Connack{SessionPresent: true, Properties: packet.Properties{ReceiveMaximum: 3}})
		if p.hello.CleanStart {
			t.Error("clean start, want the session resumed")
		}
		if rel := expect[*packet.Pubrel](p); rel.PacketID != ids["B"] {
			t.Errorf("PUBREL for %d, want %d", rel.PacketID, ids["B"])
		}
		for _, payload := range []string{"c", "D", "e"} {
			qos := byte(1)
			if payload == "D" {
				qos = 2
			}
			q := p.expectPublish(payload, qos, true)
			if q.PacketID != ids[payload] {
				t.Errorf("%s is sent again as %d, want %d", payload, q.PacketID, ids[payload])
			}
		}
		p.quiet() // the three places are taken
		p.send(&packet.Pubcomp{PacketID: ids["B"]})
		p.quiet() // it had no place to give back
		p.send(&packet.Puback{PacketID: ids["c"]})
		p.expectPublish("f", 1, false)
		st := r.up.Status()
		if st.Resends != 3 || st.ResentReleases != 1 || st.Duplicates != 2 || st.SessionsLost != 0 {
			t.Errorf("resends %d releases %d duplicates %d lost %d", st.Resends, st.ResentReleases, st.Duplicates, st.SessionsLost)
		}
	})
}

// The cloud lost the session: ids mean nothing any more, what it had taken
// over is finished, and the rest goes out as new.
func TestSessionLostStartsAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		p := r.cloud.welcome(t, packet.Connack{})
		p.subscribed()
		r.put("s/x", "a", 1)
		p.expectPublish("a", 1, false)
		r.put("s/x", "B", 2)
		b := p.expectPublish("B", 2, false)
		r.put("s/x", "C", 2)
		p.expectPublish("C", 2, false)
		p.send(&packet.Pubrec{PacketID: b.PacketID})
		expect[*packet.Pubrel](p)
		p.cut()
		p = r.cloud.welcome(t, packet.Connack{})
		if p.hello.CleanStart {
			t.Error("clean start, want to resume")
		}
		p.subscribed()
		got := ""
		for range 2 {
			q := p.publish()
			if q.Dup {
				t.Errorf("%s: DUP in a new session", show(q))
			}
			got += string(q.Payload)
		}
		if order(got, "a") || order(got, "C") {
			t.Errorf("got %q, want a and C", got)
		}
		p.quiet()
		if st := r.up.Status(); st.SessionsLost != 1 || st.Duplicates != 2 {
			t.Errorf("lost %d duplicates %d, want 1 and 2", st.SessionsLost, st.Duplicates)
		}
	})
}

// After a restart of the process QoS 2 goes on under its ids, QoS 1 as new;
// and the ids do not meet.
func TestRestartResumesQoS2(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		p := r.cloud.welcome(t, packet.Connack{})
		p.subscribed()
		used := make(map[uint16]bool)
		var released uint16
		for i := range 6 {
			payload := string(rune('A' + i))
			r.put("s/x", payload, 2)
			id := p.expectPublish(payload, 2, false).PacketID
			used[id] = true
			if i == 0 {
				released = id
				p.send(&packet.Pubrec{PacketID: id})
				expect[*packet.Pubrel](p)
			}
		}
		r.put("s/x", "q", 1)
		p.expectPublish("q", 1, false)
		p.cut()
		r.restart(func(o *Options) { o.Batch = 2 })
		p = r.cloud.welcome(t, packet.Connack{SessionPresent: true})
		if rel := expect[*packet.Pubrel](p); rel.PacketID != released {
			t.Errorf("PUBREL for %d, want %d", rel.PacketID, released)
		}
		p.subscribed()
		for i := 1; i < 6; i++ {
			q := p.expectPublish(string(rune('A'+i)), 2, true)
			if !used[q.PacketID] {
				t.Errorf("%s has a new id %d", q.Payload, q.PacketID)
			}
		}
		if q := p.expectPublish("q", 1, false); used[q.PacketID] {
			t.Errorf("QoS 1 got the id %d of a QoS 2 message", q.PacketID)
		}
		p.quiet()
	})
}

// Nothing is known about this session of the cloud, whatever it remembers.
func TestForeignSessionIsACleanStart(t *testing.T) {
	changes := map[string]func(*Options){
		"another epoch":     func(o *Options) { o.Epoch = "e2" },
		"another address":   func(o *Options) { o.URL = "mqtt://other.test" },
		"another client id": func(o *Options) { o.ClientID = "gw-b" },
	}
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, nil)
				p := r.cloud.welcome(t, packet.Connack{})
				p.subscribed()
				r.put("s/x", "A", 2)
				p.expectPublish("A", 2, false)
				p.cut()
				r.restart(change)
				p = r.cloud.welcome(t, packet.Connack{})
				if !p.hello.CleanStart {
					t.Error("no clean start")
				}
				p.subscribed()
				p.expectPublish("A", 2, false)
				p.cut()
				if p = r.cloud.accept(t); p.hello.CleanStart {
					t.Error("clean start again, want the new session resumed")
				}
			})
		})
	}
}

// A server that says it has a session though a clean start was asked for is
// not believed (MQTT 5.0 [MQTT-3.2.2-2]).
func TestSessionPresentAfterCleanStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		p := r.cloud.acceptWith(t, packet.Connack{SessionPresent: true})
		p.gone()
		if p = r.cloud.accept(t); !p.hello.CleanStart {
			t.Error("no clean start")
		}
	})
}

// The connection breaks between PUBREC and PUBREL, PUBREL and PUBCOMP.
func TestKilledInTheMiddleOfQoS2(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		p := r.cloud.welcome(t, packet.Connack{})
		p.subscribed()
		r.put("s/x", "A", 2)
		id := p.expectPublish("A", 2, false).PacketID
		p.send(&packet.Pubrec{PacketID: id})
		p.cut() // the PUBREL may have been lost
		for range 3 {
			p = r.cloud.welcome(t, packet.Connack{SessionPresent: true})
			if rel := expect[*packet.Pubrel](p); rel.PacketID != id {
				t.Errorf("PUBREL for %d, want %d", rel.PacketID, id)
			}
			p.cut()
		}
		p = r.cloud.welcome(t, packet.Connack{SessionPresent: true})
		expect[*packet.Pubrel](p)
		p.send(&packet.Pubcomp{PacketID: id, Reason: packet.ReasonPacketIDNotFound})
		p.quiet()
		if r.backlog() != 0 {
			t.Errorf("backlog is %d, want 0", r.backlog())
		}
	})
}

// What the new connection does not carry any more is finished and counted.
func TestResendTooLargeForTheNewConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		p := r.cloud.welcome(t, packet.Connack{})
		p.subscribed()
		big := string(make([]byte, 500))
		r.put("s/x", big, 1)
		r.put("s/x", big, 2)
		r.put("s/x", "z", 1)
		for range 3 {
			p.publish()
		}
		p.cut()
		p = r.cloud.welcome(t, packet.Connack{SessionPresent: true, Properties: packet.Properties{MaximumPacketSize: 300}})
		p.expectPublish("z", 1, true)
		p.quiet()
		if st := r.up.Status(); st.Dropped[dropTooLarge] != 2 || st.Backlog != 1 || st.InFlight != 1 {
			t.Errorf("dropped %v backlog %d in flight %d", st.Dropped, st.Backlog, st.InFlight)
		}
	})
}
