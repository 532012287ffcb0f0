package uplink

import (
	"maps"
	"math"
	"slices"
	"time"

	"holdfast/broker/durable"
	"holdfast/broker/packet"
)

// State is what the uplink is doing.
type State string

// The states of an uplink.
const (
	StateIdle        State = "idle"         // Run has not been called
	StateConnecting  State = "connecting"   // name lookup, TCP, TLS, CONNECT
	StateUp          State = "up"           // session open, messages flow
	StateStuck       State = "stuck"        // up, but the cloud acknowledges nothing
	StateBackingOff  State = "backing_off"  // waiting for the next attempt
	StateAuthRefused State = "auth_refused" // the same, and only a person can change the outcome
	StateCertificate State = "certificate"  // the same, and a certificate or our clock is the reason
	StateStopping    State = "stopping"     // saying goodbye
	StateStopped     State = "stopped"
)

// Words are the state for people.
func (s State) Words() string {
	switch s {
	case StateStuck:
		return "up, but stuck"
	case StateBackingOff:
		return "backing off"
	case StateAuthRefused:
		return "log-in refused"
	case StateCertificate:
		return "certificate not accepted"
	case StateIdle, StateConnecting, StateUp, StateStopping, StateStopped:
	}
	return string(s)
}

// Why messages are dropped: the keys of Status.Dropped, and the reasons given
// to the store.
const (
	dropExpired   = "expired"     // message expiry passed before the first send
	dropTooLarge  = "too_large"   // above the cloud's Maximum Packet Size
	dropNoRoute   = "no_route"    // no route out matches any more
	dropLoop      = "loop"        // came from this uplink
	dropInvalid   = "invalid"     // cannot be said in MQTT: topic too long with its prefix
	dropQoS0Down  = "qos0_down"   // QoS 0 while the link was down
	dropQoS0Full  = "qos0_full"   // QoS 0 beyond qos0_queue, or not taken by the store
	dropBudget    = "budget"      // QoS 0 while the data budget is for higher lanes
	dropThinned   = "budget_thin" // another of its topic went shortly before, data is short
	dropInNoRoute = "in_no_route" // from the cloud, no route in matches
	dropInFull    = "in_refused"  // from the cloud, not taken here
)

// Status is a snapshot of the uplink.
type Status struct {
	Name string `json:"name"`
	// URL and Interface are the way in use, or last tried.
	URL       string `json:"url"`
	Interface string `json:"interface,omitempty"`
	ClientID  string `json:"client_id"`
	State     State  `json:"state"`
	// Reason says why it is in that state, for people.
	Reason string    `json:"reason,omitempty"`
	Since  time.Time `json:"since"`
	// NextAttempt is when the next connection is tried; zero while up.
	NextAttempt time.Time `json:"next_attempt,omitzero"`
	// Attempt counts the attempts since the link was last up.
	Attempt int `json:"attempt,omitempty"`
	// Protocol is the version spoken, empty before the first connection.
	Protocol string `json:"protocol,omitempty"`
	// SessionPresent says that the cloud had kept the session at the latest
	// connection.
	SessionPresent bool `json:"session_present"`
	// Remote is the address of the cloud while up.
	Remote string `json:"remote,omitempty"`
	// Twin says that another gateway seems to have our client id, and what
	// points to it.
	Twin string `json:"twin,omitempty"`
	// OwnCertificate and CloudCertificate are those of TLS, absent without.
	OwnCertificate   *CertificateStatus `json:"own_certificate,omitempty"`
	CloudCertificate *CertificateStatus `json:"cloud_certificate,omitempty"`

	Connects         uint64 `json:"connects"`            // successful connections
	ConnectFailures  uint64 `json:"connect_failures"`    // attempts that failed
	SessionsLost     uint64 `json:"sessions_lost"`       // the cloud had forgotten us
	Failovers        uint64 `json:"failovers"`           // connections by another way than the one before
	Returns          uint64 `json:"returns"`             // connections given up for a better way
	Takeovers        uint64 `json:"takeovers"`           // connections another one with our client id ended
	BytesOut         uint64 `json:"bytes_out"`           // with TLS, without TCP and IP
	BytesIn          uint64 `json:"bytes_in"`            // the same
	MessagesOut      uint64 `json:"messages_out"`        // PUBLISH sent for the first time
	MessagesIn       uint64 `json:"messages_in"`         // PUBLISH taken over here
	Acked            uint64 `json:"acked"`               // QoS 1 and 2 finished with success
	Resends          uint64 `json:"resends"`             // PUBLISH sent again with DUP
	ResentReleases   uint64 `json:"resent_releases"`     // PUBREL sent again
	Duplicates       uint64 `json:"possible_duplicates"` // QoS 1 sent again, and QoS 2 of a lost session
	InDuplicates     uint64 `json:"in_duplicates"`       // QoS 2 of the cloud recognised as sent before
	Refused          uint64 `json:"refused"`             // refused for good: dead letters
	RefusedForNow    uint64 `json:"refused_for_now"`     // refused with 0x80, 0x83 or 0x97: tried again
	Downgraded       uint64 `json:"downgraded"`          // QoS 2 that the cloud takes as QoS 1 only
	UnknownAcks      uint64 `json:"unknown_acks"`        // acknowledgements of nothing we sent
	StuckConnections uint64 `json:"stuck_connections"`   // replaced for want of acknowledgements
	SubscribeRefused uint64 `json:"subscribe_refused"`   // routes in that the cloud did not grant
	StoreErrors      uint64 `json:"store_errors"`        // connections given up because the store failed
	// NotRendered went as they are by a route that renders: they are no readings.
	NotRendered uint64 `json:"not_rendered"`
	// Batches are the messages that carried Batched others. Of their bytes
	// (topic, payload, properties) BatchBytes were left, so that BatchSaving is
	// the share that was saved, 0 to 1.
	Batches      uint64  `json:"batches"`
	Batched      uint64  `json:"batched"`
	BatchedBytes uint64  `json:"batched_bytes"`
	BatchBytes   uint64  `json:"batch_bytes"`
	BatchSaving  float64 `json:"batch_saving"`
	// Snapshot counts states sent before what waited.
	Snapshot uint64 `json:"snapshot"`
	// Budget is what the data budget has left; nil without one.
	Budget *BudgetStatus `json:"budget,omitempty"`
	// Dropped counts messages by reason.
	Dropped map[string]uint64 `json:"dropped,omitempty"`

	// Window is how many messages may be on their way: the option, or the
	// cloud's Receive Maximum where that is lower.
	Window int `json:"window"`
	// WindowBytes is how much of them may be on its way: what the link holds,
	// and a little more. Rate is what it was last seen to carry, bytes of
	// topic, payload and properties a second.
	WindowBytes int     `json:"window_bytes"`
	Rate        float64 `json:"rate_bytes_per_second"`
	// InFlight are on their way; of these Held were refused for now.
	InFlight int `json:"in_flight"`
	Held     int `json:"held"`
	// OldestUnacked is how long the oldest of them has waited for its
	// acknowledgement on this connection, seconds.
	OldestUnacked float64 `json:"oldest_unacked_seconds"`
	// RoundTrip is a running mean from PUBLISH to its acknowledgement and from
	// PINGREQ to PINGRESP, seconds; 0 before the first.
	RoundTrip float64 `json:"round_trip_seconds"`

	// Backlog is what the store keeps for the cloud, in flight included.
	Backlog      int64   `json:"backlog"`
	BacklogBytes int64   `json:"backlog_bytes"`
	BacklogAge   float64 `json:"backlog_age_seconds"`
	// AckedRate is how fast the cloud acknowledges, messages a second, and
	// DrainSeconds how long the backlog lasts if that and what is published stay
	// as they are; 0 without one, while the link is down, and when it grows.
	AckedRate    float64 `json:"acked_per_second"`
	DrainSeconds float64 `json:"drain_seconds"`
	// Lanes are what the backlog is made of, the one that goes first first.
	Lanes []LaneStatus `json:"lanes"`
}

// LaneStatus is the snapshot of one lane.
type LaneStatus struct {
	Lane         string  `json:"lane" metric:"label"` // such as "3" or "7-latest"
	Backlog      int64   `json:"backlog"`
	BacklogBytes int64   `json:"backlog_bytes"`
	BacklogAge   float64 `json:"backlog_age_seconds"`
	DrainSeconds float64 `json:"drain_seconds"` // as in Status; the lanes before it go first
	MessagesOut  uint64  `json:"messages_out"`  // PUBLISH sent for the first time
	BytesOut     uint64  `json:"bytes_out"`     // of these, topic, payload and properties
}

// State is what Status says of it, without asking the store.
func (u *Uplink) State() State {
	u.mu.Lock()
	defer u.mu.Unlock()
	state, _ := u.stateLocked(time.Now())
	return state
}

// UpFor is how long the uplink has been up without a break, 0 while it is not.
func (u *Uplink) UpFor() time.Duration {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.status.State != StateUp {
		return 0
	}
	return max(time.Since(u.status.Since), 1) // up is not nothing
}

// stateLocked is the state with its reason. A quarter of the time allowed
// without any answer is long enough to stop calling a link healthy.
func (u *Uplink) stateLocked(now time.Time) (State, string) {
	if l, limit := u.link, u.opts.AckTimeout/4; l != nil && u.status.State == StateUp && limit > 0 {
		if oldest, ok := l.oldestLocked(); ok && now.Sub(oldest) > limit && now.Sub(l.progress) > limit {
			return StateStuck, "the cloud acknowledges nothing"
		}
	}
	return u.status.State, u.status.Reason
}

// Status returns a snapshot. It asks the store how old the backlog is, which
// may take the time of a look at the disk.
func (u *Uplink) Status() Status {
	now := time.Now()
	u.mu.Lock()
	st := u.status
	st.State, st.Reason = u.stateLocked(now)
	u.countLocked()
	st.Budget = u.budget.status(now)
	st.Dropped = make(map[string]uint64, len(u.status.Dropped))
	maps.Copy(st.Dropped, u.status.Dropped)
	st.Lanes = slices.Clone(u.status.Lanes)
	comes := make([]float64, len(st.Lanes))
	st.Window = u.opts.Window
	st.InFlight = len(u.sess.flights)
	for _, hd := range u.sess.holds {
		st.Held += len(hd.flights)
	}
	if st.BatchedBytes > 0 {
		st.BatchSaving = 1 - float64(st.BatchBytes)/float64(st.BatchedBytes)
	}
	st.RoundTrip = u.roundTrip.Seconds()
	st.OwnCertificate, st.CloudCertificate = st.OwnCertificate.copyWith(now), st.CloudCertificate.copyWith(now)
	if l := u.link; l != nil {
		st.Window = l.quota
		st.WindowBytes, st.Rate = l.window.limit(), l.window.rate()
		st.AckedRate = l.acked.perSecond(now)
		for i, ln := range l.lanes {
			comes[i] = ln.comes.rate
		}
		st.BytesIn += l.conn.BytesIn()
		st.BytesOut += l.conn.BytesOut()
		if oldest, ok := l.oldestLocked(); ok {
			st.OldestUnacked = now.Sub(oldest).Seconds()
		}
	}
	if st.State == StateUp && now.Sub(st.Since) > twinMemory {
		st.Twin = "" // if there was another one, it has gone
	}
	if u.budget.stage == budgetAlarms {
		for i, q := range u.lanes.Queues {
			if int(q.Number) < u.opts.BudgetLane {
				comes[i] = math.Inf(1) // none of it goes
			}
		}
	}
	u.mu.Unlock()

	for _, q := range u.store.Status().Queues {
		i := slices.IndexFunc(u.lanes.Queues, func(l durable.LaneQueue) bool { return l.Queue == q.ID })
		if i < 0 {
			continue
		}
		st.Backlog += q.Messages
		st.BacklogBytes += q.Bytes
		st.BacklogAge = max(st.BacklogAge, q.OldestSeconds)
		st.Duplicates += q.PossibleDuplicates
		st.Lanes[i].Backlog, st.Lanes[i].BacklogBytes, st.Lanes[i].BacklogAge = q.Messages, q.Bytes, q.OldestSeconds
	}
	st.estimateDrain(comes)
	return st
}

// setState changes the state and says since when and why.
func (u *Uplink) setState(s State, reason string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.status.State != s {
		u.status.Since = time.Now()
	}
	u.status.State, u.status.Reason = s, reason
	if s != StateBackingOff && s != StateAuthRefused && s != StateCertificate {
		u.status.NextAttempt = time.Time{}
	}
	if s != StateStopping {
		u.status.Remote = "" // upLocked says who is there now
	}
}

func (u *Uplink) dropLocked(reason string) { u.status.Dropped[reason]++ }

// drop counts, and says whether it is time for a line in the log too.
func (u *Uplink) drop(reason string) (say bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.dropLocked(reason)
	return u.drops.allow(reason, time.Now())
}

// forNow says that a refused message is kept and tried again; every other
// refusal is for good and makes it a dead letter.
func forNow(r packet.ReasonCode) bool {
	switch r {
	case packet.ReasonUnspecified, packet.ReasonImplementationSpecific, packet.ReasonQuotaExceeded:
		return true
	default:
		return false
	}
}
