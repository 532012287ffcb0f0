package uplink

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker/durable"
	"holdfast/broker/message"
	"holdfast/broker/packet"
	"holdfast/storeforward/pack"
)

func TestBudgetDaysAndMonths(t *testing.T) {
	right := true
	o := DefaultOptions()
	o.DayBudget, o.MonthBudget, o.MonthBegins = 1000, 10_000, 15
	o.ClockSynchronised = func() bool { return right }
	b := budget{opts: &o}
	at := func(s string) time.Time {
		now, err := time.ParseInLocation("2006-01-02 15:04", s, time.Local)
		if err != nil {
			t.Fatal(err)
		}
		return now
	}
	steps := []struct {
		now   string
		right bool
		add   uint64
		day   int64
		month int64
		stage budgetStage
	}{
		{"1970-01-01 00:01", false, 100, 100, 100, budgetAll}, // a board without a clock
		{"2026-05-14 22:00", true, 300, 400, 400, budgetAll},  // it was not another day
		{"2026-05-14 23:59", true, 100, 500, 500, budgetBatch},
		{"2026-05-14 23:59", true, 250, 750, 750, budgetThin},
		{"2026-05-15 00:00", true, 0, 0, 0, budgetAll}, // its month begins
		{"2026-05-16 00:00", true, 900, 900, 900, budgetAlarms},
		{"1970-01-01 00:01", false, 0, 900, 900, budgetAlarms}, // after a restart
		{"2026-05-16 08:00", true, 0, 900, 900, budgetAlarms},
		{"2026-05-17 08:00", true, 8000, 8000, 8900, budgetAlarms},
		{"2026-05-18 08:00", true, 0, 0, 8900, budgetThin}, // of the month
		{"2026-06-14 08:00", true, 0, 0, 8900, budgetThin},
		{"2026-06-15 08:00", true, 0, 0, 0, budgetAll},
		{"2027-01-02 08:00", true, 10, 10, 10, budgetAll},
		{"2027-01-15 08:00", true, 0, 0, 0, budgetAll},
	}
	for _, s := range steps {
		right = s.right
		b.roll(at(s.now))
		b.add(s.add)
		b.decide()
		if b.day.spent != s.day || b.month.spent != s.month || b.stage != s.stage {
			t.Errorf("%s: day %d month %d stage %s, want %d %d %s", s.now, b.day.spent, b.month.spent, b.stage, s.day, s.month, s.stage)
		}
	}
	st := b.status(at("2027-01-10 12:00"))
	if !st.DayEnds.Equal(at("2027-01-11 00:00")) || !st.MonthEnds.Equal(at("2027-01-15 00:00")) {
		t.Errorf("ends are %v and %v", st.DayEnds, st.MonthEnds)
	}
}

// halfAnHour sends 17 kB about every minute, between two looks at the budget, and
// returns how many commits that took. A message that is on its way at the very
// moment the budget is kept would be written with it.
func halfAnHour(r *rig) uint64 {
	r.t.Helper()
	p := r.cloud.welcome(r.t, packet.Connack{})
	p.subscribed()
	before := r.store.Status().Commits
	for range 30 {
		r.put("s/a", strings.Repeat("x", 16<<10), 1)
		p.puback(p.publish())
		pass(budgetIdle + 10*time.Second)
	}
	return r.store.Status().Commits - before
}

// The budget is written once in a while, and kept when the gateway stops; a start
// goes on from there.
func TestBudgetIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		plain := newRig(t, nil)
		without := halfAnHour(plain)
		plain.end()
		r := newRig(t, func(o *Options) { o.DayBudget = 1 << 20 })
		if with := halfAnHour(r); with > without+31 {
			t.Errorf("%d commits in half an hour, %d without a budget", with, without)
		}
		st := r.up.Status()
		wire := int64(st.BytesOut + st.BytesIn)
		if n := st.Budget.DayBytes; n < wire+segmentBytes*60 || n > wire*12/10 {
			t.Errorf("counted %d, the connection had %d", n, wire)
		}
		r.restart(nil)
		if got := r.up.Status().Budget; got.DayBytes < st.Budget.DayBytes || got.DayBytes > st.Budget.DayBytes+3*connectBytes {
			t.Errorf("after a restart it is %d, was %d", got.DayBytes, st.Budget.DayBytes)
		}
	})
}

// As the budget goes, batches gather for longer, then routes that may be thinned
// are, then only alarms go; and all of it again on the next day.
func TestBudgetStages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) {
			o.DayBudget, o.AckTimeout = 100_000, 0 // nobody answers at midnight
			o.Routes = []Route{
				{Direction: DirectionOut, Filter: "alarm/#", Prefix: "site/", Lane: new(7)},
				{Direction: DirectionOut, Filter: "b/#", Prefix: "site/s/", Batch: pack.FormatJSONLines},
				{Direction: DirectionOut, Filter: "thin/#", Prefix: "site/", Policy: durable.PolicyThin},
				{Direction: DirectionOut, Filter: "s/#", Prefix: "site/"},
			}
		})
		p := r.cloud.welcome(t, packet.Connack{})
		spend := func(upto int64) {
			t.Helper()
			for r.up.Status().Budget.DayBytes < upto {
				r.put("s/a", strings.Repeat("x", 2000), 1)
				p.puback(p.publish())
			}
			pass(2 * budgetIdle) // it is looked at
		}
		batch := func() time.Duration {
			began := time.Now()
			r.put("b/1", "1", 1)
			r.put("b/2", "2", 1)
			_, q := p.batch()
			p.puback(q)
			return time.Since(began)
		}
		expectState := func(want string) {
			t.Helper()
			if got := r.up.Status().Budget.State; got != want {
				t.Errorf("state is %q, want %q", got, want)
			}
		}
		expectState("all")
		if d := batch(); d != DefaultBatchDelay {
			t.Errorf("a batch took %v", d)
		}
		spend(51_000)
		expectState("batch")
		if d := batch(); d != moreBatching*DefaultBatchDelay {
			t.Errorf("a batch took %v with less data", d)
		}
		spend(76_000)
		expectState("thin")
		for i := range 13 { // every ten seconds
			r.put("thin/a", fmt.Sprint(i), 1)
			if i%6 == 0 {
				p.puback(p.expectPublish(fmt.Sprint(i), 1, false))
			}
			pass(10 * time.Second)
		}
		event, err := (&packet.PublishProperties{User: []packet.UserProperty{{Key: durable.EventProperty, Value: "1"}}}).AppendTo(nil)
		if err != nil {
			t.Fatal(err)
		}
		r.putMessage(&message.Message{Topic: "thin/a", Payload: []byte("event"), QoS: 1, Properties: event, Received: time.Now()})
		p.puback(p.expectPublish("event", 1, false))
		p.quiet()
		if st := r.up.Status(); st.Dropped[dropThinned] != 10 || st.Backlog != 0 {
			t.Errorf("dropped %v, backlog %d", st.Dropped, st.Backlog)
		}
		spend(91_000)
		expectState("alarms")
		r.put("s/a", "waits", 1)
		r.put("b/1", "waits too", 1)
		r.up.Offer0(&message.Message{Topic: "s/a"})
		r.put("alarm/a", "fire", 1)
		p.puback(p.expectPublish("fire", 1, false))
		p.quiet()
		pass(time.Hour)
		p.quiet()
		if st := r.up.Status(); st.Backlog != 2 || st.Dropped[dropBudget] != 1 || st.State != StateUp {
			t.Errorf("backlog %d, dropped %v, %s", st.Backlog, st.Dropped, st.State)
		}
		pass(24 * time.Hour)
		expectState("all")
		for range 2 {
			p.puback(p.publish())
		}
		p.quiet()
		if n := r.backlog(); n != 0 {
			t.Errorf("backlog is %d on the next day", n)
		}
	})
}

// What has waited goes at its pace; what is new, in a lane above, at once.
func TestDrainRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate, size, many = 1000, 100, 300
		r := newRig(t, func(o *Options) {
			o.DrainRate = rate
			o.Routes = []Route{
				{Direction: DirectionOut, Filter: "live/#", Lane: new(5)},
				{Direction: DirectionOut, Filter: "s/#"},
			}
		})
		for i := range many {
			r.put("s/a", fmt.Sprintf("%0*d", size, i), 1)
		}
		pass(time.Minute)
		p := r.cloud.welcome(t, packet.Connack{})
		began, bytes := time.Now(), 0
		var end time.Time // as the status says half way
		for i := range many {
			if i == many/2 {
				end = time.Now().Add(time.Duration(r.up.Status().DrainSeconds * float64(time.Second)))
			}
			if i%50 == 25 {
				at := time.Now()
				r.put("live/a", "now", 1)
				p.puback(p.expectPublish("now", 1, false))
				if d := time.Since(at); d > 10*time.Millisecond {
					t.Errorf("what is new waited %v", d)
				}
			}
			q := p.expectPublish(fmt.Sprintf("%0*d", size, i), 1, false)
			bytes += q.Size(packet.V5)
			p.puback(q)
		}
		took := time.Since(began).Seconds()
		if got := float64(bytes) / took; got < 0.95*rate || got > 1.05*rate {
			t.Errorf("%d bytes in %.1f s: %.0f a second, want %d", bytes, took, got, rate)
		}
		if late := time.Since(end).Seconds(); late < -took/10 || late > took/10 {
			t.Errorf("drained in %.1f s, %.1f s later than foretold half way", took, late)
		}
		p.quiet()
	})
}

// P7: a clock that is set back is no reason to leave everything out.
func TestThinningAndClockSteps(t *testing.T) {
	begin := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	last := thinned{at: begin}
	for after, near := range map[time.Duration]bool{
		0: true, 59 * time.Second: true, time.Minute: false, -59 * time.Second: true, -time.Minute: false, -4 * 365 * 24 * time.Hour: false,
	} {
		if got := last.near(begin.Add(after), time.Minute); got != near {
			t.Errorf("%v later: near %v, want %v", after, got, near)
		}
	}
}
