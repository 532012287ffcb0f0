package reading

import (
	"errors"
	"fmt"
	"math"
	"time"
)

// When a value is reported.
const (
	ReportEvery  = "every"
	ReportChange = "change"
)

// Report says which of a point's values are reported.
type Report struct {
	// Report is "every" or "change": every value, or those that differ from
	// the one reported last. Empty means change where there is a deadband,
	// else every.
	Report string `toml:"report"`
	// Deadband is by how much a number has to differ from the one reported
	// last, in its unit; DeadbandPercent the same in per cent of that one. At
	// most one of them is not 0. Any other change is none.
	Deadband        float64 `toml:"deadband"`
	DeadbandPercent float64 `toml:"deadband_percent"`
	// Heartbeat is how long after the last report a value is reported though
	// it has not changed; 0 means never. 0 or 100ms to 24h.
	Heartbeat time.Duration `toml:"heartbeat"`
}

// Validate reports the first value out of range, naming its key. number says
// that the values are numbers.
func (r Report) Validate(number bool) error {
	finite := func(v float64) bool { return v >= 0 && v <= math.MaxFloat64 }
	switch {
	case r.Report != "" && r.Report != ReportEvery && r.Report != ReportChange:
		return fmt.Errorf("report: %q is not one of %q, %q", r.Report, ReportEvery, ReportChange)
	case !finite(r.Deadband):
		return fmt.Errorf("deadband: %v is not 0 or more", r.Deadband)
	case !finite(r.DeadbandPercent) || r.DeadbandPercent > 100:
		return fmt.Errorf("deadband_percent: %v is outside 0..100", r.DeadbandPercent)
	case r.Deadband > 0 && r.DeadbandPercent > 0:
		return errors.New("deadband_percent: there is a deadband already")
	case r.banded() && !number:
		return errors.New("deadband: only a number has one")
	case r.banded() && r.Report == ReportEvery:
		return errors.New(`deadband: with report = "every" it has no meaning`)
	case r.Heartbeat != 0 && (r.Heartbeat < 100*time.Millisecond || r.Heartbeat > 24*time.Hour):
		return fmt.Errorf("heartbeat: %v is neither 0 nor within 100ms..24h", r.Heartbeat)
	case r.Heartbeat != 0 && !r.onChange():
		return errors.New(`heartbeat: it belongs to report = "change" or a deadband`)
	}
	return nil
}

func (r Report) banded() bool   { return r.Deadband > 0 || r.DeadbandPercent > 0 }
func (r Report) onChange() bool { return r.Report == ReportChange || r.banded() }

// Reporter holds the values of one point against its rule. The zero value reports
// all. It is not safe for concurrent use.
type Reporter struct {
	rule    Report
	some    bool // something was reported
	value   any
	quality Quality
	reason  string
	at      time.Time
}

// NewReporter returns a reporter for a valid rule.
func NewReporter(rule Report) Reporter { return Reporter{rule: rule} }

// Take says whether r, measured at a time, is to be reported; if so it is what
// later ones are compared with. The first value and any change of quality are
// always reported, an unchanged value never but for the heartbeat.
func (p *Reporter) Take(r *Reading, at time.Time) bool {
	if !p.rule.onChange() {
		return true
	}
	if p.some && r.Quality == p.quality && r.Reason == p.reason && !p.rule.differs(p.value, r.Value) &&
		(p.rule.Heartbeat == 0 || at.Sub(p.at) < p.rule.Heartbeat) {
		return false
	}
	p.some, p.value, p.quality, p.reason, p.at = true, r.Value, r.Quality, r.Reason, at
	return true
}

// differs says whether a value is another than the last one.
func (r Report) differs(last, v any) bool {
	if last == v {
		return false
	}
	a, ok := Number(last)
	b, ok2 := Number(v)
	if !r.banded() || !ok || !ok2 {
		return true
	}
	return math.Abs(b-a) > max(r.Deadband, math.Abs(a)*r.DeadbandPercent/100)
}
