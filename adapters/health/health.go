package health

import (
	"context"
	"encoding/json"
	"fmt"
	"math/bits"
	"slices"
	"strings"
	"sync"
	"time"
)

// State of a device.
type State uint8

// The states. Transitions:
//
//	unknown --success--> online            degraded --few failures left, successes in a row--> online
//	online --some failures--> degraded     offline --success--> degraded (online if only its port was gone)
//	any --failures in a row, port gone--> offline
//	unknown, online, degraded --silence--> stale --success--> online or degraded
const (
	// Unknown: nothing has been heard or tried yet.
	Unknown State = iota
	// Online: it answers.
	Online
	// Degraded: it answers, but not always.
	Degraded
	// Stale: nothing came for longer than expected; the last values are old.
	Stale
	// Offline: it does not answer, or its port is gone.
	Offline
)

// String returns the state as it stands in status messages.
func (s State) String() string {
	switch s {
	case Unknown:
		return "unknown"
	case Online:
		return "online"
	case Degraded:
		return "degraded"
	case Stale:
		return "stale"
	case Offline:
		return "offline"
	default:
		return fmt.Sprintf("state %d", uint8(s))
	}
}

// MarshalText renders the state as String does.
func (s State) MarshalText() ([]byte, error) {
	return []byte(s.String()), nil
}

// UnmarshalText reads what MarshalText wrote.
func (s *State) UnmarshalText(text []byte) error {
	for known := Unknown; known <= Offline; known++ {
		if known.String() == string(text) {
			*s = known
			return nil
		}
	}
	return fmt.Errorf("%q is no device state", text)
}

// Change is one transition of a device.
type Change struct {
	Device     string
	State, Was State
	Since      time.Time
	// Reason says why; empty only for Online.
	Reason string
}

// AppendJSON appends the payload of the device's retained status message.
// session is the gateway's session number: a reader trusts the state only if
// it equals the number in the gateway's own status.
func (c Change) AppendJSON(b []byte, session uint64) []byte {
	j, err := json.Marshal(struct {
		State   State  `json:"state"`
		Since   string `json:"since"`
		Reason  string `json:"reason,omitempty"`
		Session uint64 `json:"session"`
	}{c.State, c.Since.UTC().Format("2006-01-02T15:04:05.000Z"), c.Reason, session})
	if err != nil {
		panic(err) // strings and numbers always marshal
	}
	return append(b, j...)
}

// DeviceStatus is a snapshot of one device.
type DeviceStatus struct {
	Device string    `json:"device"`
	State  State     `json:"state"`
	Since  time.Time `json:"since"`
	Reason string    `json:"reason,omitempty"`
	// LastGood and LastBad are when the last success and failure were; zero
	// for never.
	LastGood  time.Time `json:"last_good,omitzero"`
	LastBad   time.Time `json:"last_bad,omitzero"`
	LastError string    `json:"last_error,omitempty"`
	Good      uint64    `json:"good"`
	Bad       uint64    `json:"bad"`
	// Expect is the silence after which it is stale, configured or learned; 0
	// while it is not known.
	Expect time.Duration `json:"expect_ns,omitempty"`
	// Changes counts transitions since the start.
	Changes uint64 `json:"changes"`
}

// Monitor holds the devices of a gateway. Its methods and those of its
// trackers are safe for use by many goroutines and never wait for anything but
// its own short lock and the callback.
type Monitor struct {
	onChange func(Change)
	wake     chan struct{} // capacity 1: a deadline moved, Run looks again; full means it will anyway

	mu       sync.Mutex
	trackers map[string]*Tracker // guarded by mu
}

// NewMonitor returns a monitor without devices. onChange is called for every
// transition, in order, by whichever goroutine reported the outcome, under the
// monitor's lock: it must not block and must not call the monitor.
func NewMonitor(onChange func(Change)) *Monitor {
	return &Monitor{onChange: onChange, wake: make(chan struct{}, 1), trackers: make(map[string]*Tracker)}
}

// Tracker is one device's state.
type Tracker struct {
	m      *Monitor
	device string
	opts   Options

	// All guarded by m.mu.
	state     State
	since     time.Time
	reason    string
	heard     time.Time // last success, or when the device was added: silence counts from here
	lastGood  time.Time
	lastBad   time.Time
	lastError string
	good, bad uint64
	changes   uint64
	window    uint16 // the last outcomes, newest in bit 0, 1 for a failure
	goodRow   int    // successes since the last failure
	badRow    int    // failures since the last success
	gone      bool   // offline because of Gone, not of its own failures
	rhythm    rhythm // when Options.Expect is 0
}

// outcomes is the length of Tracker.window in bits.
const outcomes = 16

// Add starts tracking a device and announces it as unknown, which replaces a
// retained status of an earlier run. A name can be added once until Remove.
func (m *Monitor) Add(device string, opts Options) (*Tracker, error) {
	if err := opts.Validate(); err != nil {
		return nil, fmt.Errorf("device %s: %w", device, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.trackers[device] != nil {
		return nil, fmt.Errorf("device %s: is tracked already", device)
	}
	now := time.Now()
	t := &Tracker{m: m, device: device, opts: opts, since: now, heard: now, reason: "not heard yet"}
	m.trackers[device] = t
	m.onChange(t.changeLocked(Unknown))
	m.poke()
	return t, nil
}

// Remove ends the tracking of a device; nothing is announced. The outcomes of
// a removed tracker are ignored.
func (m *Monitor) Remove(device string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.trackers, device)
}

// Announce calls onChange for every device with its present state, by name.
func (m *Monitor) Announce() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, t := range m.sortedLocked() {
		m.onChange(t.changeLocked(t.state))
	}
}

// Status returns a snapshot of all devices, by name.
func (m *Monitor) Status() []DeviceStatus {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]DeviceStatus, 0, len(m.trackers))
	for _, t := range m.sortedLocked() {
		all = append(all, t.statusLocked())
	}
	return all
}

func (m *Monitor) sortedLocked() []*Tracker {
	ts := make([]*Tracker, 0, len(m.trackers))
	for _, t := range m.trackers {
		ts = append(ts, t)
	}
	slices.SortFunc(ts, func(a, b *Tracker) int { return strings.Compare(a.device, b.device) })
	return ts
}

func (m *Monitor) poke() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// Run notices devices that have fallen silent, until ctx is done.
func (m *Monitor) Run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.wake:
		case <-timer.C:
		}
		if next := m.expire(time.Now()); next.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(time.Until(next))
		}
	}
}

// expire makes silent devices stale and returns when the next one may be;
// zero when none will. A device heard in the meantime only moves its own
// deadline back, so Run need not be told.
func (m *Monitor) expire(now time.Time) (next time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, t := range m.sortedLocked() {
		expect := t.expectLocked()
		if expect == 0 || t.state == Stale || t.state == Offline {
			continue
		}
		due := t.heard.Add(expect)
		if due.After(now) {
			if next.IsZero() || due.Before(next) {
				next = due
			}
			continue
		}
		reason := fmt.Sprintf("silent for more than %v", expect)
		switch {
		case t.lastGood.IsZero():
			reason = fmt.Sprintf("never heard within %v", expect)
		case t.opts.Expect == 0:
			reason += ", which it has not been before"
		}
		t.setLocked(Stale, now, reason)
	}
	return next
}

// Good reports a success: the device answered, or sent something valid.
func (t *Tracker) Good(at time.Time) {
	t.m.mu.Lock()
	defer t.m.mu.Unlock()
	t.good++
	before := t.expectLocked()
	switch {
	case t.lastGood.IsZero() || t.state == Offline:
	case t.state == Stale:
		t.rhythm.wrong()
	default:
		t.rhythm.beat(at.Sub(t.lastGood))
	}
	t.lastGood, t.heard = at, at
	t.window <<= 1
	t.goodRow++
	t.badRow = 0
	was := t.state
	switch t.state {
	case Online:
	case Unknown:
		t.setLocked(Online, at, "")
	case Offline:
		if t.gone {
			t.setLocked(Online, at, "")
		} else {
			t.recoverLocked(at, "recovering: answers again")
		}
	case Stale:
		if t.failures() <= t.opts.HealthyAt {
			t.setLocked(Online, at, "")
		} else {
			t.setLocked(Degraded, at, t.failureReason())
		}
	case Degraded:
		t.recoverLocked(at, "")
	}
	t.gone = false
	if expect := t.expectLocked(); t.state != was || expect != 0 && (before == 0 || expect < before) {
		t.m.poke() // out of stale or offline, or by what was learned: there is an earlier deadline
	}
}

// expectLocked is the longest silence that is normal; 0 when that is not known.
func (t *Tracker) expectLocked() time.Duration {
	if t.opts.Expect != 0 {
		return t.opts.Expect
	}
	return t.rhythm.silence()
}

// recoverLocked makes the device online if it has earned it, and otherwise
// degraded for the reason given if it is not degraded yet.
func (t *Tracker) recoverLocked(at time.Time, reason string) {
	switch {
	case t.goodRow >= t.opts.RecoverAfter && t.failures() <= t.opts.HealthyAt:
		t.setLocked(Online, at, "")
	case t.state != Degraded:
		t.setLocked(Degraded, at, reason)
	}
}

// Bad reports a failure: no answer in time, or one that cannot be used.
func (t *Tracker) Bad(at time.Time, err error) {
	t.m.mu.Lock()
	defer t.m.mu.Unlock()
	t.bad++
	t.lastBad, t.lastError = at, err.Error()
	t.window = t.window<<1 | 1
	t.badRow++
	t.goodRow = 0
	switch {
	case t.state == Offline && !t.gone:
	case t.badRow >= t.opts.OfflineAfter:
		t.gone = false // its port may be back; now the silence is its own
		t.setLocked(Offline, at, fmt.Sprintf("%d failures in a row: %v", t.badRow, err))
	case t.state == Online && t.failures() >= t.opts.DegradedAt:
		t.setLocked(Degraded, at, t.failureReason())
	}
}

// Gone reports that the device cannot be reached at all, for a reason that is
// not its own: its port is not there or cannot be opened.
func (t *Tracker) Gone(at time.Time, err error) {
	t.m.mu.Lock()
	defer t.m.mu.Unlock()
	t.lastBad, t.lastError = at, err.Error()
	if t.gone {
		return // the first reason counts, not each failed attempt to reopen
	}
	t.gone = true
	t.goodRow, t.badRow = 0, 0
	t.setLocked(Offline, at, err.Error())
}

// State returns the present state.
func (t *Tracker) State() State {
	t.m.mu.Lock()
	defer t.m.mu.Unlock()
	return t.state
}

// Status returns a snapshot.
func (t *Tracker) Status() DeviceStatus {
	t.m.mu.Lock()
	defer t.m.mu.Unlock()
	return t.statusLocked()
}

func (t *Tracker) statusLocked() DeviceStatus {
	return DeviceStatus{
		Device: t.device, State: t.state, Since: t.since, Reason: t.reason,
		LastGood: t.lastGood, LastBad: t.lastBad, LastError: t.lastError,
		Good: t.good, Bad: t.bad, Changes: t.changes, Expect: t.expectLocked(),
	}
}

func (t *Tracker) failures() int { return bits.OnesCount16(t.window) }

func (t *Tracker) failureReason() string {
	return fmt.Sprintf("%d of the last %d failed: %s", t.failures(), min(t.good+t.bad, outcomes), t.lastError)
}

func (t *Tracker) changeLocked(was State) Change {
	return Change{Device: t.device, State: t.state, Was: was, Since: t.since, Reason: t.reason}
}

func (t *Tracker) setLocked(s State, at time.Time, reason string) {
	if t.m.trackers[t.device] != t {
		return // removed
	}
	was := t.state
	t.state, t.since, t.reason = s, at, reason
	if s == Offline {
		// The verdict is given; when the device comes back, old failures
		// must not hold it back for another 16 polls.
		t.window = 0
	}
	t.changes++
	t.m.onChange(t.changeLocked(was))
}
