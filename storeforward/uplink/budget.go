package uplink

import (
	"bytes"
	"fmt"
	"time"

	"holdfast/broker/durable"
	"holdfast/storeforward"
)

// What TCP and IP add to the bytes of a connection is estimated: each segment
// with data costs its headers, every second one an acknowledgement, and a
// connection its handshake and its end. IPv4; what is lost and sent again is not
// known.
const (
	headerBytes  = 52 // IPv4 20, TCP 20, timestamps 12
	segmentBytes = headerBytes + headerBytes/2
	connectBytes = 7 * headerBytes
)

// budgetStage says what is still sent.
type budgetStage byte

const (
	budgetAll    budgetStage = iota
	budgetBatch              // batches gather for longer
	budgetThin               // routes with the policy thin send less of each topic
	budgetAlarms             // only the high lanes send
)

// String is the name of the stage in the status.
func (s budgetStage) String() string {
	return [...]string{"all", "batch", "thin", "alarms"}[s]
}

// moreBatching is how many times as long batches gather when data is short.
const moreBatching = 10

// period is a day or month of the budget.
type period struct {
	label int64 // such as 20260501, or 202605 for a month; 0 before the clock is right
	spent int64 // bytes
}

// budget counts what goes over the wire by day and month. Guarded by Uplink.mu.
type budget struct {
	opts       *Options
	name       string // of the numbers in the store
	day, month period
	counted    uint64 // of the connection, its bytes up to now
	unsaved    int64
	savedAt    time.Time
	looked     time.Time
	stage      budgetStage
}

func newBudget(name string, opts *Options, store *storeforward.Store) budget {
	b := budget{opts: opts, name: "uplink/" + name + "/", savedAt: time.Now()}
	b.day = period{store.Number(b.name + "day"), store.Number(b.name + "day_bytes")}
	b.month = period{store.Number(b.name + "month"), store.Number(b.name + "month_bytes")}
	b.decide()
	return b
}

func (b *budget) limited() bool { return b.opts.DayBudget > 0 || b.opts.MonthBudget > 0 }

func dayLabel(t time.Time) int64 {
	y, m, d := t.Date()
	return int64(y)*10000 + int64(m)*100 + int64(d)
}

// monthStart is when the month of t begins, on that day.
func monthStart(t time.Time, day int) time.Time {
	y, m, d := t.Date()
	if d < day {
		m--
	}
	return time.Date(y, m, day, 0, 0, 0, 0, t.Location())
}

// roll begins a new day or month. A clock that is not right says nothing: what is
// spent stays spent until it is.
func (b *budget) roll(now time.Time) {
	if b.opts.ClockSynchronised != nil && !b.opts.ClockSynchronised() {
		return
	}
	month := monthStart(now, b.opts.MonthBegins)
	y, m, _ := month.Date()
	for p, label := range map[*period]int64{&b.day: dayLabel(now), &b.month: int64(y)*100 + int64(m)} {
		if p.label != label && p.label != 0 {
			p.spent = 0
			b.unsaved = max(b.unsaved, 1)
		}
		p.label = label
	}
}

// add counts bytes.
func (b *budget) add(bytes uint64) {
	b.day.spent += int64(bytes)
	b.month.spent += int64(bytes)
	b.unsaved += int64(bytes)
}

// share is what is used of the budget, of day or month, whichever is nearer its end.
func (b *budget) share() (share float64) {
	if b.opts.DayBudget > 0 {
		share = float64(b.day.spent) / float64(b.opts.DayBudget)
	}
	if b.opts.MonthBudget > 0 {
		share = max(share, float64(b.month.spent)/float64(b.opts.MonthBudget))
	}
	return share
}

// decide sets the stage; changed says that it was another one.
func (b *budget) decide() (changed bool) {
	was := b.stage
	switch share := b.share(); {
	case !b.limited():
		b.stage = budgetAll
	case share >= b.opts.BudgetAlarms:
		b.stage = budgetAlarms
	case share >= b.opts.BudgetThin:
		b.stage = budgetThin
	case share >= b.opts.BudgetBatch:
		b.stage = budgetBatch
	default:
		b.stage = budgetAll
	}
	return b.stage != was
}

// saveDue says whether it is time to keep what was counted: after a hundredth of
// the budget, but not within a minute, nor while something is in flight, which
// would be written along; and after ten minutes. A power cut forgets so much; more
// often would cost flash while the link is well.
func (b *budget) saveDue(now time.Time, idle bool) bool {
	const soon, late = time.Minute, 10 * time.Minute
	if !b.limited() || b.unsaved == 0 {
		return false
	}
	least := b.opts.MonthBudget
	if b.opts.DayBudget > 0 && (least == 0 || b.opts.DayBudget < least) {
		least = b.opts.DayBudget
	}
	age := now.Sub(b.savedAt)
	return age >= late || idle && age >= soon && b.unsaved >= least/100
}

// numbers are what is kept, and count as kept from now on.
func (b *budget) numbers(now time.Time) map[string]int64 {
	b.unsaved, b.savedAt = 0, now
	return map[string]int64{
		b.name + "day": b.day.label, b.name + "day_bytes": b.day.spent,
		b.name + "month": b.month.label, b.name + "month_bytes": b.month.spent,
	}
}

const (
	// budgetLook is how often the budget is looked at while messages flow, and
	// budgetIdle how often at least.
	budgetLook = time.Second
	budgetIdle = time.Minute
)

// accountLocked counts what has gone over the connection and acts on it; it
// returns when to look again.
func (l *link) accountLocked(now time.Time) time.Time {
	u, b := l.u, &l.u.budget
	if !b.limited() {
		return now.Add(time.Hour)
	}
	if now.Sub(b.looked) < budgetLook {
		return b.looked.Add(budgetIdle)
	}
	b.looked = now
	u.countLocked()
	b.roll(now)
	if b.decide() {
		stage, share, day, month := b.stage, b.share(), b.day.spent, b.month.spent
		l.later(func() {
			u.log.Warn("data budget has another stage", "stage", stage.String(), "share", fmt.Sprintf("%.2f", share), "day_bytes", day, "month_bytes", month)
		})
		u.wakeLocked()
		clear(u.thinned)
	}
	if b.saveDue(now, len(l.sess.flights) == 0) {
		numbers := b.numbers(now)
		l.later(func() { u.keepBudget(numbers) })
	}
	return now.Add(budgetIdle)
}

// countLocked counts what has gone over the connection since the last time.
func (u *Uplink) countLocked() {
	l := u.link
	if l == nil {
		return
	}
	total := connectBytes + l.conn.BytesIn() + l.conn.BytesOut() + segmentBytes*l.conn.Segments()
	u.budget.add(total - u.budget.counted)
	u.budget.counted = total
}

// thinned is what was last sent of a topic while data is short.
type thinned struct {
	seq durable.Seq
	at  time.Time
}

// near says that a message came within that time, before or after: where the clock
// has been set back since the last one, that is no reason to leave all out until it
// is as late again.
func (t thinned) near(at time.Time, within time.Duration) bool {
	d := at.Sub(t.at)
	return -within < d && d < within
}

// thinsLocked says that a message is to be left out because another of its topic
// was sent shortly before: on routes with the policy thin, which is the licence to
// do so, and not of events.
func (ln *lane) thinsLocked(d *durable.Delivery) bool {
	u := ln.l.u
	if u.budget.stage < budgetThin || int(u.lanes.Queues[ln.index].Number) >= u.opts.BudgetLane {
		return false
	}
	m := d.Message
	way, _ := u.carries(m.Topic)
	if way == nil || !way.thin || bytes.Contains(m.Properties, []byte(durable.EventProperty)) {
		return false
	}
	last, known := u.thinned[m.Topic]
	if known && last.seq != d.Seq && last.near(m.Received, u.opts.BudgetThinEvery) {
		return true
	}
	if u.thinned == nil || len(u.thinned) >= maxCarried {
		u.thinned = make(map[string]thinned)
	}
	u.thinned[m.Topic] = thinned{d.Seq, m.Received}
	return false
}

// keepBudget keeps numbers of the budget; without the lock.
func (u *Uplink) keepBudget(numbers map[string]int64) {
	if numbers == nil {
		return
	}
	u.store.KeepNumbers(numbers, func(err error) {
		if err != nil { // the store says so itself
			u.mu.Lock()
			u.budget.unsaved = max(u.budget.unsaved, 1)
			u.mu.Unlock()
		}
	})
}

// restrictedLocked says that the lane is not to send: the budget is for others.
func (ln *lane) restrictedLocked() bool {
	u := ln.l.u
	return u.budget.stage == budgetAlarms && int(u.lanes.Queues[ln.index].Number) < u.opts.BudgetLane
}

// BudgetStatus is what the data budget has left. Bytes are those on the wire, with
// TLS, and with TCP and IP as an estimate.
type BudgetStatus struct {
	// State is "all", "batch" (batches gather for longer), "thin" (less of each
	// topic on routes with that policy) or "alarms" (only high lanes).
	State       string    `json:"state"`
	DayBytes    int64     `json:"day_bytes"`
	DayBudget   int64     `json:"day_budget"` // 0 is none
	DayEnds     time.Time `json:"day_ends"`
	MonthBytes  int64     `json:"month_bytes"`
	MonthBudget int64     `json:"month_budget"` // 0 is none
	MonthEnds   time.Time `json:"month_ends"`
}

// Words say for people what is sent.
func (s *BudgetStatus) Words() string {
	switch s.State {
	case budgetBatch.String():
		return "batches gather for longer"
	case budgetThin.String():
		return "less is sent of each topic"
	case budgetAlarms.String():
		return "only the lanes from budget_lane on send"
	default:
		return "all is sent"
	}
}

// Short says that most lanes wait for another day or month.
func (s *BudgetStatus) Short() bool { return s.State == budgetAlarms.String() }

// status is nil without a budget.
func (b *budget) status(now time.Time) *BudgetStatus {
	if !b.limited() {
		return nil
	}
	y, m, d := now.Date()
	return &BudgetStatus{
		State: b.stage.String(), DayBytes: b.day.spent, DayBudget: b.opts.DayBudget, MonthBytes: b.month.spent, MonthBudget: b.opts.MonthBudget,
		DayEnds:   time.Date(y, m, d+1, 0, 0, 0, 0, now.Location()),
		MonthEnds: monthStart(now, b.opts.MonthBegins).AddDate(0, 1, 0),
	}
}
