package reading_test

import (
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"holdfast/adapters/reading"
)

// Each value comes a second after the one before. What a known product has the
// wrong way round is the first line: first value yes, unchanged no,
// changed yes.
func TestReport(t *testing.T) {
	bad := func(reason string) reading.Reading { return reading.Reading{Quality: reading.Bad, Reason: reason} }
	change := reading.Report{Report: reading.ReportChange}
	tests := map[string]struct {
		rule   reading.Report
		values []any // a reading.Reading, or the value of a good one
		want   []int // which of them
	}{
		"on change":                       {change, []any{1.0, 1.0, 2.0, 2.0, 1.0}, []int{0, 2, 4}},
		"every":                           {reading.Report{Report: reading.ReportEvery}, []any{1.0, 1.0, 1.0}, []int{0, 1, 2}},
		"nothing said is every":           {reading.Report{}, []any{1.0, 1.0}, []int{0, 1}},
		"text":                            {change, []any{"on", "on", "off"}, []int{0, 2}},
		"bool":                            {change, []any{false, false, true}, []int{0, 2}},
		"large integers are exact":        {change, []any{uint64(math.MaxUint64), uint64(math.MaxUint64 - 1)}, []int{0, 1}},
		"deadband":                        {reading.Report{Deadband: 0.5}, []any{20.0, 20.5, 19.5, 20.6, 20.2, 20.1, 20.0}, []int{0, 3, 6}},
		"slow drift is seen":              {reading.Report{Deadband: 1}, []any{0.0, 0.4, 0.8, 1.2, 1.6, 2.0, 2.4}, []int{0, 3, 6}},
		"deadband of integers":            {reading.Report{Deadband: 2}, []any{int64(-1), int64(1), int64(2), uint64(2)}, []int{0, 2}},
		"per cent":                        {reading.Report{DeadbandPercent: 10}, []any{200.0, 219.0, 220.0, 221.0, 199.0, 198.0}, []int{0, 3, 5}},
		"per cent of a negative":          {reading.Report{DeadbandPercent: 10}, []any{-200.0, -219.0, -221.0}, []int{0, 2}},
		"per cent of nothing":             {reading.Report{DeadbandPercent: 10}, []any{0.0, 0.0, 0.001, 0.001}, []int{0, 2}},
		"quality, always":                 {reading.Report{Deadband: 5}, []any{1.0, bad("no answer"), bad("no answer"), 1.0}, []int{0, 1, 3}},
		"another reason is another state": {change, []any{bad("no answer"), bad("exception 2")}, []int{0, 1}},
		"uncertain is not good": {
			change,
			[]any{"7", reading.Reading{Value: "7", Quality: reading.Uncertain}},
			[]int{0, 1},
		},
		"a number after none":       {reading.Report{Deadband: 5}, []any{nil, 1.0, nil}, []int{0, 1, 2}},
		"heartbeat":                 {reading.Report{Report: reading.ReportChange, Heartbeat: 3 * time.Second}, []any{1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0}, []int{0, 3, 5, 8}},
		"heartbeat within deadband": {reading.Report{Deadband: 10, Heartbeat: 2 * time.Second}, []any{1.0, 2.0, 3.0, 4.0, 12.5, 13.5}, []int{0, 2, 4}},
		"heartbeat of a bad value":  {reading.Report{Report: reading.ReportChange, Heartbeat: 2 * time.Second}, []any{bad("x"), bad("x"), bad("x")}, []int{0, 2}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if err := tt.rule.Validate(true); err != nil {
				t.Fatal(err)
			}
			p := reading.NewReporter(tt.rule)
			at := time.Unix(1_000_000, 0)
			var got []int
			for i, v := range tt.values {
				r, ok := v.(reading.Reading)
				if !ok {
					r.Value = v
				}
				if p.Take(&r, at.Add(time.Duration(i)*time.Second)) {
					got = append(got, i)
				}
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("reported %v of %v, want %v", got, tt.values, tt.want)
			}
		})
	}
}

// Whoever has only the reports knows every value to within the deadband.
func TestReportsAreNeverFurtherOffThanTheDeadband(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		band := rapid.Float64Range(0.001, 100).Draw(t, "deadband")
		p := reading.NewReporter(reading.Report{Deadband: band})
		var known float64
		for i, v := range rapid.SliceOf(rapid.Float64Range(-1e6, 1e6)).Draw(t, "values") {
			if p.Take(&reading.Reading{Value: v}, time.Unix(int64(i), 0)) {
				known = v
			} else if i == 0 {
				t.Fatal("the first value is not reported")
			}
			if math.Abs(v-known) > band {
				t.Fatalf("%v is known as %v", v, known)
			}
		}
	})
}

func TestReportValidate(t *testing.T) {
	tests := map[string]struct {
		rule   reading.Report
		number bool
		want   string
	}{
		"a word":               {reading.Report{Report: "sometimes"}, true, `report: "sometimes" is not one of`},
		"negative":             {reading.Report{Deadband: -1}, true, "deadband: -1 is not 0 or more"},
		"not a number":         {reading.Report{Deadband: math.NaN()}, true, "deadband: NaN"},
		"too many per cent":    {reading.Report{DeadbandPercent: 101}, true, "deadband_percent: 101 is outside 0..100"},
		"both":                 {reading.Report{Deadband: 1, DeadbandPercent: 1}, true, "deadband_percent: there is a deadband already"},
		"of a text":            {reading.Report{Deadband: 1}, false, "deadband: only a number has one"},
		"with every":           {reading.Report{Report: "every", Deadband: 1}, true, "deadband: with report"},
		"heartbeat alone":      {reading.Report{Heartbeat: time.Minute}, true, "heartbeat: it belongs to"},
		"heartbeat of a blink": {reading.Report{Report: "change", Heartbeat: 1}, true, "heartbeat: 1ns is neither"},
	}
	for name, tt := range tests {
		if err := tt.rule.Validate(tt.number); err == nil || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("%s: Validate() = %v, want %s...", name, err, tt.want)
		}
	}
}
