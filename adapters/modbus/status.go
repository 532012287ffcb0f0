package modbus

import (
	"slices"
	"time"

	"holdfast/adapters"
)

// Status is a snapshot of a bus.
type Status struct {
	Bus string `json:"bus"`
	// Open says that the line is open, Since when that began or ended.
	Open      bool      `json:"open"`
	Since     time.Time `json:"since,omitzero"`
	LastError string    `json:"last_error,omitempty"`
	// Load is the part of the time since the line was opened in which it was
	// in use, waiting for answers included, 0 to 1.
	Load float64 `json:"load"`
	// Pace says whether all is read as often as wanted.
	Pace Pace `json:"pace"`
	// Echo says that the line gives back what is sent.
	Echo bool `json:"echo"`
	// StrayBytes belonged to no answer, ForeignFrames came from units that
	// were not asked: late answers, or a second master.
	StrayBytes    uint64 `json:"stray_bytes"`
	ForeignFrames uint64 `json:"foreign_frames"`
	// Of a peer on the network: LateAnswers came after their timeout (and
	// were thrown away), Connects are the connections made, BrokenConnections
	// those that ended while an answer was waited for, or without any.
	LateAnswers       uint64       `json:"late_answers"`
	Connects          uint64       `json:"connects"`
	BrokenConnections uint64       `json:"broken_connections"`
	Units             []UnitStatus `json:"units"`
	// Described are the devices that say themselves what they have.
	Described []DescribedStatus `json:"described,omitempty"`
	// Asked are the requests from outside.
	Asked RequestStatus `json:"asked"`
	// Commands are what came on set topics.
	Commands adapters.CommandStatus `json:"commands"`
}

// UnitStatus is a snapshot of one unit of a bus.
type UnitStatus struct {
	UnitID    byte      `json:"unit_id" metric:"label"`
	Devices   []string  `json:"devices"`
	State     UnitState `json:"state"`
	Since     time.Time `json:"since"`
	LastGood  time.Time `json:"last_good,omitzero"`
	LastError string    `json:"last_error,omitempty"`
	// NextProbe is when a unit that is down is asked again at the earliest.
	NextProbe time.Time `json:"next_probe,omitzero"`

	Requests   uint64 `json:"requests"`
	Answers    uint64 `json:"answers"`
	Exceptions uint64 `json:"exceptions"`
	Timeouts   uint64 `json:"timeouts"`
	Garbled    uint64 `json:"garbled"`
	// Mismatched answers were well formed, but to something else.
	Mismatched uint64 `json:"mismatched"`
	Retries    uint64 `json:"retries"`
	Probes     uint64 `json:"probes"`
	// Skipped are polls left out because the bus was late.
	Skipped uint64 `json:"skipped"`
	// Reads are the requests that poll the unit, as joined and split now.
	Reads []ReadStatus `json:"reads"`
}

// ReadStatus is one request that is made again and again.
type ReadStatus struct {
	Device   string        `json:"device" metric:"label"`
	Register string        `json:"register" metric:"label"`
	Count    int           `json:"count"`
	Points   []string      `json:"points"`
	Every    time.Duration `json:"every_ns"`
	// Refused says that the unit answers this with an exception; it is asked
	// again now and then.
	Refused bool `json:"refused,omitempty"`
	// Missed are the cycles without a value in a row.
	Missed int `json:"missed,omitempty"`
}

// Status returns a snapshot. It may be called at any time.
func (b *Bus) Status() Status {
	asked := b.asks.status()
	b.mu.Lock()
	defer b.mu.Unlock()
	s := Status{
		Bus: b.name, Open: b.open, Since: b.since, LastError: b.lastErr,
		Pace: b.pace(time.Now()), Asked: asked, Commands: b.receiver.Status(), Echo: b.echo, StrayBytes: b.n.stray, ForeignFrames: b.n.foreign,
		LateAnswers: b.n.late, Connects: b.n.connects, BrokenConnections: b.n.broken,
	}
	if elapsed := time.Since(b.opened); b.open && elapsed > 0 {
		s.Load = min(1, b.busy.Seconds()/elapsed.Seconds())
	}
	for _, u := range b.units {
		s.Units = append(s.Units, u.status())
	}
	s.Described = b.described()
	return s
}

// status is called with Bus.mu held.
func (u *unit) status() UnitStatus {
	s := UnitStatus{
		UnitID: u.id, State: u.state, Since: u.since, LastGood: u.lastGood, LastError: u.lastErr,
		Requests: u.n.requests, Answers: u.n.answers, Exceptions: u.n.exceptions, Timeouts: u.n.timeouts,
		Garbled: u.n.garbled, Mismatched: u.n.mismatched, Retries: u.n.retries, Probes: u.n.probes, Skipped: u.n.late,
	}
	if u.state == UnitDown {
		s.NextProbe = later(u.probeAt, u.notBefore)
	}
	for _, d := range u.devices {
		s.Devices = append(s.Devices, d.name)
	}
	for _, k := range u.blocks {
		r := ReadStatus{
			Device:   k.dev.name,
			Register: Register{Table: k.points[0].reg.Table, Addr: k.req.Addr, Bit: noBit}.String(),
			Count:    int(k.req.Count), Every: k.every, Refused: k.refused > 0, Missed: k.misses,
		}
		for _, p := range k.points {
			r.Points = append(r.Points, p.name)
		}
		s.Reads = append(s.Reads, r)
	}
	slices.SortFunc(s.Reads, func(a, b ReadStatus) int { return slices.Compare(a.Points, b.Points) })
	return s
}
