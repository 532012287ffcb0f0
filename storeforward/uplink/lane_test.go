package uplink

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker/message"
	"holdfast/broker/packet"
)

// laneRoutes are a lane for alarms, one for bulk, and the rest.
func laneRoutes(o *Options) {
	o.Routes = []Route{
		{Direction: DirectionOut, Filter: "s/alarm/#", Lane: new(7)},
		{Direction: DirectionOut, Filter: "s/bulk/#", Lane: new(0)},
		{Direction: DirectionOut, Filter: "s/#"},
	}
}

func (p *peer) ack(q *packet.Publish) { p.send(&packet.Puback{PacketID: q.PacketID}) }

// An alarm published while a long backlog drains waits for what is on its way and
// for nothing else.
func TestAlarmOvertakesTheBacklog(t *testing.T) {
	backlog := 100_000
	if testing.Short() {
		backlog = 5000
	}
	const window = 20
	for name, alarmQoS := range map[string]byte{"QoS 1": 1, "QoS 2": 2} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, func(o *Options) { laneRoutes(o); o.Window = window })
				for i := range backlog {
					r.put("s/data", strconv.Itoa(i), 1)
				}
				p := r.cloud.welcome(t, packet.Connack{})
				var waiting []*packet.Publish
				next := 0
				take := func() bool {
					q := p.publish()
					waiting = append(waiting, q)
					if string(q.Payload) == "fire" {
						return true
					}
					if string(q.Payload) != strconv.Itoa(next) {
						t.Fatalf("got %s, want message %d", show(q), next)
					}
					next++
					return false
				}
				ack := func() {
					q := waiting[0]
					waiting = waiting[1:]
					p.ack(q)
				}
				for range 500 {
					for range window {
						take()
					}
					for range window {
						ack()
					}
					if next > 1000 {
						break
					}
				}
				for range window {
					take()
				}
				p.quiet()
				r.put("s/alarm/a", "fire", alarmQoS)
				p.quiet() // the window is full
				for i := range 3 {
					ack()
					if take() {
						break
					}
					if alarmQoS == 1 || i == 2 { // the id of QoS 2 has to be made durable first
						t.Fatalf("after %d acknowledgements the alarm is still behind %d", i+1, next)
					}
				}
				if st := r.up.Status(); len(st.Lanes) != 3 || st.Lanes[0].Lane != "7" || st.Lanes[0].MessagesOut != 1 || st.Lanes[1].Backlog == 0 {
					t.Errorf("lanes %+v", st.Lanes)
				}
			})
		})
	}
}

// Under a constant load of alarms the lowest lane still gets its share.
func TestNoLaneStarves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) { laneRoutes(o); o.Window = 8 })
		const bulk = 40
		for i := range bulk {
			r.put("s/bulk", fmt.Sprintf("bulk %03d", i), byte(1+i%2))
		}
		alarm := func() { r.put("s/alarm", "alarm 00", 1) }
		for range 200 {
			alarm()
		}
		p := r.cloud.welcome(t, packet.Connack{})
		got, sent := 0, 0
		for got < bulk {
			q := p.next()
			pass(time.Millisecond) // a link takes longer than a disk
			switch q := q.(type) {
			case *packet.Publish:
				sent++
				if string(q.Payload[:4]) == "bulk" {
					got++
				} else {
					alarm() // there are always 200 more
				}
				if q.QoS == 2 {
					p.send(&packet.Pubrec{PacketID: q.PacketID})
				} else {
					p.ack(q)
				}
			case *packet.Pubrel:
				p.send(&packet.Pubcomp{PacketID: q.PacketID})
			default:
				t.Fatalf("got %s", show(q))
			}
			if sent > 2*bulk*minShare {
				t.Fatalf("%d of %d bulk messages in %d, want one of %d", got, bulk, sent, minShare)
			}
		}
		if sent < bulk*minShare/2 {
			t.Errorf("%d messages sent for %d of bulk: alarms must go first", sent, bulk)
		}
	})
}

// When a topic gets another lane, what it has in the old one goes first, and those
// that wait for it lend it their turn.
func TestChangeOfLaneKeepsOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) {
			o.Window, o.Batch = 4, 3
			o.Routes = []Route{{Direction: DirectionOut, Filter: "s/#"}}
		})
		for i := range 30 {
			r.put("s/data", fmt.Sprint("data ", i), 1)
			if i%10 == 9 {
				r.put("s/alarm/a", fmt.Sprint("alarm ", i/10), byte(1+i/10%2))
			}
		}
		r.restart(laneRoutes)
		for i := range 3 {
			r.put("s/alarm/a", fmt.Sprint("alarm ", 3+i), 1)
			r.put("s/alarm/b", fmt.Sprint("other ", i), 1)
		}
		r.put("s/data", "data 30", 1)
		got := newArrivals()
		for connections := 0; ; connections++ {
			p := r.cloud.welcome(t, packet.Connack{SessionPresent: connections > 0})
			if got.take(p, 6) {
				break
			}
			p.cut()
		}
		if n := len(got.seen); n != 40 {
			t.Errorf("%d messages came, want 40", n)
		}
		for _, wrong := range got.wrong {
			t.Error(wrong)
		}
		synctest.Wait()
		if n := r.backlog(); n != 0 {
			t.Errorf("backlog %d", n)
		}
		r.up.mu.Lock()
		changes := len(r.up.changes)
		r.up.mu.Unlock()
		if changes != 0 {
			t.Errorf("%d changes are still under way", changes)
		}
	})
}

// arrivals checks the order in which messages come for the first time: payloads are
// a name and a number that grows.
type arrivals struct {
	seen  map[string]bool
	last  map[string]int // by name and QoS
	wrong []string
}

func newArrivals() *arrivals { return &arrivals{seen: map[string]bool{}, last: map[string]int{}} }

// take acknowledges up to so many packets; true when no more come.
func (a *arrivals) take(p *peer, most int) (all bool) {
	p.t.Helper()
	for range most {
		select {
		case q := <-p.packets:
			switch q := q.(type) {
			case *packet.Publish:
				a.arrive(q)
				if q.QoS == 2 {
					p.send(&packet.Pubrec{PacketID: q.PacketID})
				} else {
					p.ack(q)
				}
			case *packet.Pubrel:
				p.send(&packet.Pubcomp{PacketID: q.PacketID})
			}
		case <-time.After(10 * time.Second):
			return true
		}
	}
	return false
}

func (a *arrivals) arrive(q *packet.Publish) {
	payload := string(q.Payload)
	if a.seen[payload] {
		return
	}
	a.seen[payload] = true
	name, number, _ := strings.Cut(payload, " ")
	key := fmt.Sprintf("%s QoS %d", name, q.QoS)
	n, err := strconv.Atoi(number)
	if last, ok := a.last[key]; err != nil || ok && n <= last {
		a.wrong = append(a.wrong, fmt.Sprintf("%s came after %d", show(q), last))
	}
	a.last[key] = n
}

// States go before the backlog, one message each, in the order of their last change.
func TestLatestStatesGoFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) {
			o.Routes = []Route{
				{Direction: DirectionOut, Filter: "s/state/#", Lane: new(7), Latest: true},
				{Direction: DirectionOut, Filter: "s/alarm/#", Lane: new(7)},
				{Direction: DirectionOut, Filter: "s/#"},
			}
		})
		for i := range 300 {
			r.put("s/data", fmt.Sprint("data ", i), 1)
			r.put(fmt.Sprint("s/state/", i%3), strconv.Itoa(i), byte(1+i%2))
		}
		r.put("s/alarm/a", "fire", 1)
		if n := r.backlog(); n != 304 {
			t.Errorf("backlog %d, want 300 of data, three states and an alarm", n)
		}
		p := r.cloud.welcome(t, packet.Connack{})
		for _, want := range []string{"297", "298", "299", "fire", "data 0"} {
			p.expectPublish(want, 1, false)
		}
		// What was sent stays; one newer one waits behind it, and others do not.
		p.cut()
		synctest.Wait()
		for i := range 5 {
			r.put("s/state/0", fmt.Sprint("later ", i), 1)
		}
		p = r.cloud.welcome(t, packet.Connack{SessionPresent: true})
		var got []string
		for len(got) < 4 || got[len(got)-1] != "later 4" {
			q := p.publish()
			if topic := string(q.Topic); topic == "s/state/0" || !strings.HasPrefix(string(q.Payload), "data") {
				got = append(got, string(q.Payload))
			}
			p.ack(q)
		}
		if want := "297 298 299 fire later 4"; strings.Join(got, " ") != want {
			t.Errorf("after the cut %q, want %q", got, want)
		}
		if st := r.up.Status(); st.Lanes[0].Lane != "7-latest" || st.Lanes[0].MessagesOut != 4 {
			t.Errorf("lanes %+v", st.Lanes)
		}
	})
}

// What a route lets wait no longer than so much is dropped and counted; the cloud is
// told what is left, of the publisher's expiry where that is shorter.
func TestRouteExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) {
			o.Routes = []Route{
				{Direction: DirectionOut, Filter: "s/minute", Expiry: time.Minute},
				{Direction: DirectionOut, Filter: "s/#"},
			}
		})
		put := func(topic, payload string, expiry uint32) {
			r.putMessage(&message.Message{Topic: topic, Payload: []byte(payload), QoS: 1, HasExpiry: expiry != 0, Expiry: expiry, Received: time.Now()})
		}
		put("s/minute", "old", 0)
		put("s/minute", "old too", 3600)
		put("s/other", "stays", 0)
		pass(time.Minute)
		start := time.Now()
		put("s/minute", "lowered", 3600)
		put("s/minute", "given", 0)
		put("s/minute", "shorter", 30)
		pass(10 * time.Second)
		p := r.cloud.welcome(t, packet.Connack{})
		want := map[string]uint32{"stays": 0, "lowered": 60, "given": 60, "shorter": 30}
		for range want {
			q := p.publish()
			left, ok := want[string(q.Payload)]
			if left != 0 {
				left -= uint32(time.Since(start) / time.Second)
			}
			if !ok || q.HasExpiry != (left != 0) || q.MessageExpiry != left {
				t.Errorf("%s with expiry %v %d, want %d", show(q), q.HasExpiry, q.MessageExpiry, left)
			}
			p.ack(q)
		}
		p.quiet()
		if n := r.up.Status().Dropped[dropExpired]; n != 2 {
			t.Errorf("%d dropped, want 2", n)
		}
	})
}

// A change of lanes that cannot end, since the cloud takes one of the old messages not
// now, holds up its topic and nothing else: the rest is not even written.
func TestChangeOfLaneHoldsUpItsTopicOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) { o.Routes = []Route{{Direction: DirectionOut, Filter: "s/#"}} })
		r.put("s/alarm/a", "alarm 0", 1)
		r.restart(laneRoutes)
		p := r.cloud.welcome(t, packet.Connack{})
		q := p.expectPublish("alarm 0", 1, false)
		p.send(&packet.Puback{PacketID: q.PacketID, Reason: packet.ReasonQuotaExceeded})
		p.quiet()
		for i := range 5 { // until the streams are live
			r.put("s/data", fmt.Sprint("before ", i), 1)
			p.ack(p.publish())
		}
		written := r.store.Status().Written
		for i := range 100 {
			r.put("s/data", fmt.Sprint("data ", i), 1)
			p.ack(p.expectPublish(fmt.Sprint("data ", i), 1, false))
		}
		synctest.Wait()
		if n := r.store.Status().Written - written; n != 0 {
			t.Errorf("%d messages written though the link is well", n)
		}
		r.put("s/alarm/a", "alarm 1", 1)
		p.quiet()
		pass(r.opts.ReconnectMax)
		p.ack(p.expectPublish("alarm 0", 1, false))
		p.ack(p.expectPublish("alarm 1", 1, false))
	})
}
