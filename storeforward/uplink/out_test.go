package uplink

import (
	"encoding/json"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker/message"
	"holdfast/broker/packet"
)

func TestBirthAndWill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) { o.Username, o.Password = "u", "p" })
		p := r.cloud.acceptWith(t, packet.Connack{})
		h := p.hello
		if !h.CleanStart || h.ClientID != "gw" || h.Username != "u" || string(h.Password) != "p" || h.KeepAlive != 60 {
			t.Errorf("CONNECT is %+v", h)
		}
		if h.Properties.SessionExpiry == nil || *h.Properties.SessionExpiry != 7*24*3600 || h.Properties.ReceiveMaximum != 100 {
			t.Errorf("CONNECT properties are %+v", h.Properties)
		}
		if h.Will == nil || h.Will.Topic != "holdfast/gw/status" || !h.Will.Retain || h.Will.QoS != 1 || h.Will.Properties.WillDelay != 30 {
			t.Fatalf("will is %+v", h.Will)
		}
		birth := p.publish()
		if string(birth.Topic) != "holdfast/gw/status" || !birth.Retain || birth.QoS != 1 {
			t.Errorf("birth is %s", show(birth))
		}
		for name, payload := range map[string][]byte{"offline": h.Will.Payload, "online": birth.Payload} {
			var st gatewayStatus
			if err := json.Unmarshal(payload, &st); err != nil {
				t.Fatalf("%s: %v", payload, err)
			}
			if st.State != name || st.Session != r.store.StartNumber() || st.Version != "1.2.3" || st.Time == "" || st.Reason == "" {
				t.Errorf("%s message is %+v", name, st)
			}
		}
		sub := expect[*packet.Subscribe](p)
		if f := sub.Filters[0]; f.Filter != "site/cmd/#" || !f.NoLocal || !f.RetainAsPublished || f.RetainHandling != 1 || f.QoS != 2 {
			t.Errorf("SUBSCRIBE asks for %+v", f)
		}
	})
}

func TestQoS1GoesOutAndIsAcknowledged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		p := r.cloud.welcome(t, packet.Connack{})
		p.subscribed()
		safe := r.put("s/a", "1", 1)
		q := p.expectPublish("1", 1, false)
		if string(q.Topic) != "site/s/a" {
			t.Errorf("topic is %q", q.Topic)
		}
		p.send(&packet.Puback{PacketID: q.PacketID})
		<-safe
		if st := r.up.Status(); st.State != StateUp || st.Acked != 1 || st.InFlight != 0 || st.Backlog != 0 {
			t.Errorf("status is %+v", st)
		}
		if w := r.store.Status().Written; w != 0 {
			t.Errorf("%d messages written, want none: the link is well", w)
		}
	})
}

// Acknowledgements that come in one segment make everything safe that they are
// for, though the connection ends right behind them.
func TestAcknowledgementsInOneSegment(t *testing.T) {
	tests := map[string][]packet.Packet{
		"the connection stays":       nil,
		"the cloud breaks the rules": {&packet.Pingreq{}},
		"the cloud goes":             {&packet.Disconnect{Reason: packet.ReasonServerShuttingDown}},
	}
	for name, behind := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, nil)
				p := r.cloud.welcome(t, packet.Connack{})
				p.subscribed()
				var waits []chan struct{}
				var out []byte
				for i := range 100 {
					waits = append(waits, r.put("s/a", strconv.Itoa(i), 1))
				}
				for i := range waits {
					q := p.expectPublish(strconv.Itoa(i), 1, false)
					out, _ = (&packet.Puback{PacketID: q.PacketID}).AppendTo(out, p.v)
				}
				for _, q := range behind {
					out, _ = q.AppendTo(out, p.v)
				}
				if _, err := p.nc.Write(out); err != nil {
					t.Fatal(err)
				}
				for _, safe := range waits {
					<-safe
				}
				if w := r.store.Status().Written; w != 0 {
					t.Errorf("%d messages written, want none: all were acknowledged", w)
				}
			})
		})
	}
}

// Who comes after a pause goes out at once; who comes right behind waits a 32nd of
// a round trip at most, and needs no write of its own.
func TestWriterRestsBetweenWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		p := r.cloud.welcome(t, packet.Connack{})
		p.subscribed()
		const trip = 64 * time.Millisecond
		answer := func(payload string) {
			q := p.expectPublish(payload, 1, false)
			pass(trip)
			p.send(&packet.Puback{PacketID: q.PacketID})
			synctest.Wait()
		}
		r.put("s/a", "1", 1) // from this the trip is known
		answer("1")
		pass(time.Second)
		began := time.Now()
		safe := r.put("s/a", "2", 1)
		q2 := p.expectPublish("2", 1, false)
		if d := time.Since(began); d != 0 {
			t.Errorf("a message after a pause waited %v", d)
		}
		r.put("s/a", "3", 1)
		q3 := p.expectPublish("3", 1, false)
		if d := time.Since(began); d == 0 || d > trip/32 {
			t.Errorf("a message right behind another waited %v, want up to %v", d, trip/32)
		}
		p.send(&packet.Puback{PacketID: q2.PacketID})
		<-safe
		if d := time.Since(began); d > trip/32 {
			t.Errorf("an acknowledgement was told after %v", d)
		}
		p.send(&packet.Puback{PacketID: q3.PacketID})
	})
}

// A message that the cloud does not acknowledge in the commit window is safe
// on disk, and still the cloud's to acknowledge.
func TestSafeWithoutTheCloud(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		p := r.cloud.welcome(t, packet.Connack{})
		p.subscribed()
		safe := r.put("s/a", "1", 1)
		q := p.expectPublish("1", 1, false)
		<-safe
		if r.backlog() != 1 {
			t.Errorf("backlog is %d, want 1", r.backlog())
		}
		p.send(&packet.Puback{PacketID: q.PacketID, Reason: packet.ReasonNoMatchingSubscribers})
		p.quiet()
		if r.backlog() != 0 {
			t.Errorf("backlog is %d, want 0", r.backlog())
		}
	})
}

func TestQoS2GoesOutExactlyOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		p := r.cloud.welcome(t, packet.Connack{})
		p.subscribed()
		r.put("s/a", "1", 2)
		q := p.expectPublish("1", 2, false)
		p.send(&packet.Pubrec{PacketID: q.PacketID})
		rel := expect[*packet.Pubrel](p)
		if rel.PacketID != q.PacketID {
			t.Errorf("PUBREL for %d, want %d", rel.PacketID, q.PacketID)
		}
		p.send(&packet.Pubcomp{PacketID: q.PacketID})
		p.quiet()
		if st := r.up.Status(); st.Acked != 1 || st.InFlight != 0 || st.Backlog != 0 {
			t.Errorf("status is %+v", st)
		}
	})
}

func TestReceiveMaximumOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		for i := range 3 {
			r.put("s/a", string(rune('1'+i)), 1)
		}
		r.put("s/b", "x", 2)
		r.put("s/b", "y", 2)
		p := r.cloud.acceptWith(t, packet.Connack{Properties: packet.Properties{ReceiveMaximum: 1}})
		birth := p.publish()
		p.subscribed()
		p.quiet() // the birth holds the only place
		p.send(&packet.Puback{PacketID: birth.PacketID})
		var got string
		for range 5 {
			q := p.publish()
			p.quiet()
			got += string(q.Payload)
			if q.QoS == 1 {
				p.send(&packet.Puback{PacketID: q.PacketID})
				continue
			}
			p.send(&packet.Pubrec{PacketID: q.PacketID})
			expect[*packet.Pubrel](p)
			p.quiet() // the place is free at PUBCOMP
			p.send(&packet.Pubcomp{PacketID: q.PacketID})
		}
		p.quiet()
		if order(got, "123") || order(got, "xy") {
			t.Errorf("order was %q", got)
		}
		if w := r.up.Status().Window; w != 1 {
			t.Errorf("window is %d, want 1", w)
		}
	})
}

// order says that the letters of want do not come in that order in got.
func order(got, want string) bool {
	for _, c := range got {
		if want != "" && c == rune(want[0]) {
			want = want[1:]
		}
	}
	return want != ""
}

func TestWindowBoundsWhatIsOnItsWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) { o.Window, o.Batch = 4, 3 })
		p := r.cloud.welcome(t, packet.Connack{})
		p.subscribed()
		for i := range 20 {
			r.put("s/a", string(rune('a'+i)), 1)
		}
		var waiting []*packet.Publish
		for i := range 20 {
			if len(waiting) == 0 {
				for range min(4, 20-i) {
					waiting = append(waiting, p.publish())
				}
				p.quiet()
			}
			if got, want := string(waiting[0].Payload), string(rune('a'+i)); got != want {
				t.Fatalf("message %d is %q, want %q", i, got, want)
			}
			p.send(&packet.Puback{PacketID: waiting[0].PacketID})
			waiting = waiting[1:]
			if i+4 < 20 {
				waiting = append(waiting, p.publish())
			}
		}
		p.quiet()
		if r.backlog() != 0 {
			t.Errorf("backlog is %d", r.backlog())
		}
	})
}

func TestAcknowledgementsOfNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		p := r.cloud.welcome(t, packet.Connack{})
		p.subscribed()
		r.put("s/a", "1", 1)
		q := p.expectPublish("1", 1, false)
		p.send(
			&packet.Puback{PacketID: q.PacketID + 7}, // wrong id
			&packet.Pubcomp{PacketID: q.PacketID},    // wrong kind
			&packet.Puback{PacketID: q.PacketID},
			&packet.Puback{PacketID: q.PacketID}, // twice
		)
		p.quiet()
		p.send(&packet.Pubrec{PacketID: 4711}) // QoS 2 we know nothing of
		rel := expect[*packet.Pubrel](p)
		if rel.PacketID != 4711 || rel.Reason != packet.ReasonPacketIDNotFound {
			t.Errorf("answer is %s", show(rel))
		}
		r.put("s/a", "2", 1)
		p.expectPublish("2", 1, false)
		if st := r.up.Status(); st.UnknownAcks != 4 || st.Acked != 1 {
			t.Errorf("unknown acks %d acked %d, want 4 and 1", st.UnknownAcks, st.Acked)
		}
	})
}

func TestTooLargeIsSetAside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		r.put("s/a", "before", 1)
		r.put("s/a", string(make([]byte, 500)), 1)
		r.put("s/a", string(make([]byte, 500)), 2)
		r.put("s/a", "after", 1)
		p := r.cloud.welcome(t, packet.Connack{Properties: packet.Properties{MaximumPacketSize: 300}})
		p.subscribed()
		p.expectPublish("before", 1, false)
		p.expectPublish("after", 1, false)
		p.quiet()
		if n := r.up.Status().Dropped[dropTooLarge]; n != 2 {
			t.Errorf("%d dropped, want 2", n)
		}
		if n := r.store.Status().Queues[0].DeadLetters; n != 2 {
			t.Errorf("%d dead letters, want 2", n)
		}
		if r.backlog() != 2 {
			t.Errorf("backlog is %d, want 2", r.backlog())
		}
	})
}

// P7: a topic that its prefix makes too long ends no connection, neither from the
// store nor on the way that what is just published takes.
func TestTopicTooLongWithItsPrefix(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		long := "s/" + strings.Repeat("x", 65535-len("s/"))
		r.put(long, "waited", 1)
		p := r.cloud.welcome(t, packet.Connack{})
		p.subscribed()
		for qos := byte(1); qos <= 2; qos++ {
			r.put(long, "live", qos)
			pass(time.Second)
		}
		r.put("s/a", "after", 1)
		p.expectPublish("after", 1, false)
		st := r.up.Status()
		if n := st.Dropped[dropInvalid]; n != 3 || st.Connects != 1 {
			t.Errorf("%d dropped, %d connections, want 3 and 1", n, st.Connects)
		}
	})
}

func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		now := time.Now()
		for payload, seconds := range map[string]uint32{"short": 5, "long": 3600} {
			r.putMessage(&message.Message{Topic: "s/" + payload, Payload: []byte(payload), QoS: 1, HasExpiry: true, Expiry: seconds, Received: now})
		}
		pass(time.Minute) // nobody answers
		p := r.cloud.welcome(t, packet.Connack{})
		p.subscribed()
		q := p.expectPublish("long", 1, false)
		if want := uint32(3600 - time.Since(now)/time.Second); !q.HasExpiry || q.MessageExpiry != want {
			t.Errorf("expiry is %d, want the remaining %d", q.MessageExpiry, want)
		}
		p.quiet()
		// Once sent it stays, whatever the clock says.
		p.cut()
		pass(2 * time.Hour)
		p = r.cloud.welcome(t, packet.Connack{SessionPresent: true})
		if q = p.expectPublish("long", 1, true); q.MessageExpiry != 1 {
			t.Errorf("expiry of the resend is %d, want 1", q.MessageExpiry)
		}
	})
}

func TestTopicAliases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		p := r.cloud.welcome(t, packet.Connack{Properties: packet.Properties{TopicAliasMaximum: 1}})
		p.subscribed()
		want := []struct {
			topic string
			alias uint16
		}{{"site/s/a", 1}, {"", 1}, {"site/s/b", 0}, {"", 1}}
		for i, topic := range []string{"s/a", "s/a", "s/b", "s/a"} {
			r.put(topic, "x", 1)
			q := p.publish()
			if string(q.Topic) != want[i].topic || q.TopicAlias != want[i].alias {
				t.Errorf("message %d: topic %q alias %d, want %q %d", i, q.Topic, q.TopicAlias, want[i].topic, want[i].alias)
			}
			p.send(&packet.Puback{PacketID: q.PacketID})
		}
	})
}

func TestQoS0(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) { o.QoS0Queue = 2 })
		m := &message.Message{Topic: "s/a", Payload: []byte("0")}
		r.up.Offer0(m) // down
		p := r.cloud.welcome(t, packet.Connack{})
		p.subscribed()
		r.up.Offer0(m)
		p.expectPublish("0", 0, false)
		r.up.Offer0(&message.Message{Topic: "s/a", From: r.up.Name()}) // came from there
		p.quiet()
		st := r.up.Status()
		if st.Dropped[dropQoS0Down] != 1 || st.Dropped[dropLoop] != 1 {
			t.Errorf("dropped %v", st.Dropped)
		}

		// A cloud that does not read: what is beyond the connection and the
		// queue is dropped and counted, the rest arrives.
		const many = 20
		large := strings.Repeat("x", outputLimit/2)
		for range many {
			r.up.Offer0(&message.Message{Topic: "s/a", Payload: []byte(large)})
		}
		synctest.Wait()
		dropped := int(r.up.Status().Dropped[dropQoS0Full])
		if dropped < many-8 || dropped >= many {
			t.Errorf("%d of %d dropped, want all but those in the connection and two", dropped, many)
		}
		for range many - dropped {
			p.expectPublish(large, 0, false)
		}
		p.quiet()
	})
}

func TestMaximumQoSOneTakesQoS2AsQoS1(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		p := r.cloud.welcome(t, packet.Connack{Properties: packet.Properties{MaximumQoS: new(byte(1))}})
		p.subscribed()
		r.put("s/a", "1", 2)
		q := p.expectPublish("1", 1, false)
		p.send(&packet.Puback{PacketID: q.PacketID})
		p.quiet()
		if st := r.up.Status(); st.Downgraded != 1 || st.InFlight != 0 || st.Backlog != 0 {
			t.Errorf("status is %+v", st)
		}
	})
}

// What came from the cloud does not go back there, and what no route carries
// any more is not kept for ever.
// RabbitMQ before 3.12, of 3.1.1, answers QoS 2 with PUBACK.
func TestPubackForQoS2EndsItIn311(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) { o.Protocol = Protocol311 })
		r.cloud.acceptWith(t, packet.Connack{}).gone() // ends the old session
		p := r.cloud.welcome(t, packet.Connack{})
		p.subscribed()
		for _, payload := range []string{"1", "2"} {
			r.put("s/a", payload, 2)
			q := p.expectPublish(payload, 2, false)
			p.send(&packet.Puback{PacketID: q.PacketID})
			p.quiet()
		}
		if st := r.up.Status(); st.Downgraded != 2 || st.UnknownAcks != 0 || st.InFlight != 0 || st.Backlog != 0 {
			t.Errorf("status is %+v", st)
		}
	})
}

func TestLoopsAndStrangersAreFinished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		p := r.cloud.welcome(t, packet.Connack{})
		p.subscribed()
		r.putMessage(&message.Message{Topic: "s/a", QoS: 1, From: r.up.Name(), Received: time.Now()})
		r.put("other", "1", 2)
		p.quiet()
		if st := r.up.Status(); st.Backlog != 0 || st.Dropped[dropLoop] != 1 || st.Dropped[dropNoRoute] != 1 {
			t.Errorf("backlog %d dropped %v", st.Backlog, st.Dropped)
		}
	})
}

// One PUBACK that does not come stalls nothing: the rest goes on at its pace.
func TestOneMissingAcknowledgement(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) { o.AckTimeout = 0 })
		p := r.cloud.welcome(t, packet.Connack{})
		p.subscribed()
		const many = 2000
		for i := range many {
			r.put("s/"+strconv.Itoa(i%7), strconv.Itoa(i), 1)
		}
		for i := range many {
			q := p.expectPublish(strconv.Itoa(i), 1, false)
			if i != 3 {
				p.send(&packet.Puback{PacketID: q.PacketID})
			}
		}
		p.quiet()
		if st := r.up.Status(); st.Acked != many-1 || st.InFlight != 1 {
			t.Errorf("%d acknowledged, %d in flight, want all but one", st.Acked, st.InFlight)
		}
		p.cut()
		p = r.cloud.welcome(t, packet.Connack{SessionPresent: true})
		p.expectPublish("3", 1, true)
		p.quiet()
	})
}

// With qos0 = "keep" a QoS 0 message waits for the link as QoS 1 does, in order,
// and costs no flash while the link is well.
func TestQoS0Kept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) { o.Routes[0].QoS0 = QoS0Keep })
		offer := func(payload string, retain bool) {
			r.up.Offer0(&message.Message{Topic: "s/a", Payload: []byte(payload), Retain: retain, Received: time.Now()})
		}
		offer("1", false)
		offer("2", true)
		p := r.cloud.welcome(t, packet.Connack{})
		p.subscribed()
		for i, want := range []string{"1", "2"} {
			q := p.expectPublish(want, 1, false)
			if q.Retain != (i == 1) {
				t.Errorf("got %s", show(q))
			}
			p.puback(q)
		}
		p.quiet()
		written := r.store.Status().Written
		offer("3", true)
		p.puback(p.expectPublish("3", 1, false))
		p.quiet()
		if st := r.up.Status(); st.Backlog != 0 || len(st.Dropped) != 0 || r.store.Status().Written != written {
			t.Errorf("backlog %d, dropped %v, written %d, was %d", st.Backlog, st.Dropped, r.store.Status().Written, written)
		}
	})
}

// A link that carries little has not become slow: what it was found to hold stays,
// and a burst of what is published goes out without touching the flash.
func TestBurstCostsNoFlash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		p := r.cloud.welcome(t, packet.Connack{})
		p.subscribed()
		payload := strings.Repeat("x", 100)
		for round := range 100 {
			n := 1
			if round%10 == 9 {
				n = 500
			}
			for range n {
				r.put("s/a", payload, 1)
			}
			pass(20 * time.Millisecond) // the cloud is that far away
			for got := 0; got < n; got++ {
				p.puback(p.expectPublish(payload, 1, false))
			}
			pass(50 * time.Millisecond)
		}
		if st := r.store.Status(); st.Written != 0 {
			t.Errorf("%d messages written", st.Written)
		}
	})
}
