package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/storeforward"
	"holdfast/storeforward/uplink"
)

// What is wrong with an uplink is said in sentences, and its state in words.
func TestUplinksInWords(t *testing.T) {
	now := time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	tests := map[string]struct {
		status   uplink.Status
		problems []string
		line     string
	}{
		"well": {
			status: uplink.Status{State: uplink.StateUp, URL: "mqtts://a:8883", Interface: "eth0", RoundTrip: 0.12, BytesOut: 7, BytesIn: 8, Resends: 9, Duplicates: 10},
			line:   "mqtts://a:8883 via eth0; round trip 120 ms; out 7 bytes, in 8 bytes; resent 9, possible duplicates 10",
		},
		"who is there": {
			status: uplink.Status{State: uplink.StateUp, URL: "mqtts://a:8883", Remote: "192.0.2.1:8883", Protocol: "5.0", BytesOut: 12_345, BytesIn: 1_999_999_999},
			line:   "mqtts://a:8883 (192.0.2.1:8883, MQTT 5.0); round trip 0 ms; out 12.3 kB, in 2.0 GB;",
		},
		"lanes": {
			status: uplink.Status{State: uplink.StateUp, Backlog: 3, BacklogBytes: 300, Lanes: []uplink.LaneStatus{
				{Lane: "7"}, {Lane: "6-latest", Backlog: 1, BacklogBytes: 100, BacklogAge: 5}, {Lane: "3", Backlog: 2, BacklogBytes: 200, BacklogAge: 60},
			}},
			line: "lane 6-latest: backlog 1 messages, 100 bytes, oldest 5s\n",
		},
		"dropped": {
			status: uplink.Status{State: uplink.StateUp, Refused: 1, Dropped: map[string]uint64{"too_large": 2, "expired": 3, "loop": 0}},
			line:   "refused 1, dropped 5 (expired 3, too_large 2)\n",
		},
		"batches": {
			status: uplink.Status{State: uplink.StateUp, Batches: 2, Batched: 400, BatchSaving: 0.912},
			line:   "batches 2 with 400 messages, 91 % of their bytes saved\n",
		},
		"data budget": {
			status: uplink.Status{State: uplink.StateUp, Budget: &uplink.BudgetStatus{State: "batch", DayBytes: 6_000_000, DayBudget: 10_000_000}},
			line:   "data 6.0 MB of 10.0 MB today: batches gather for longer\n",
		},
		"short data budget": {
			status:   uplink.Status{State: uplink.StateUp, Budget: &uplink.BudgetStatus{State: "alarms", DayBytes: 1, DayBudget: 100, MonthBytes: 99, MonthBudget: 100}},
			problems: []string{"uplink cloud: its data budget is short: only the lanes from budget_lane on send"},
			line:     "data 1 bytes of 100 bytes today, 99 bytes of 100 bytes this month: only the lanes from budget_lane on send\n",
		},
		"stuck": {
			status:   uplink.Status{State: uplink.StateStuck, Reason: "the cloud acknowledges nothing"},
			problems: []string{"uplink cloud: up, but stuck: the cloud acknowledges nothing"}, line: "up, but stuck for 1m0s",
		},
		"backing off": {
			status:   uplink.Status{State: uplink.StateBackingOff, Reason: "connection refused", NextAttempt: now.Add(30 * time.Second)},
			problems: []string{"uplink cloud: backing off: connection refused"}, line: "backing off for 1m0s (connection refused), next attempt in 30s",
		},
		"refused": {
			status:   uplink.Status{State: uplink.StateAuthRefused, Reason: "not authorized (0x87)"},
			problems: []string{"uplink cloud: log-in refused: not authorized (0x87)"}, line: "log-in refused for 1m0s",
		},
		"clock": {
			status:   uplink.Status{State: uplink.StateCertificate, Reason: "our clock is wrong: it says 1970"},
			problems: []string{"uplink cloud: certificate not accepted: our clock is wrong: it says 1970"}, line: "certificate not accepted for 1m0s",
		},
		"a twin, while up": {
			status:   uplink.Status{State: uplink.StateUp, Twin: "another gateway connects with our client id"},
			problems: []string{"uplink cloud: another gateway connects with our client id"}, line: "up for 1m0s",
		},
		"certificates": {
			status: uplink.Status{
				State: uplink.StateUp, OwnCertificate: &uplink.CertificateStatus{Error: "uplink.cert_file: no such file"},
				CloudCertificate: &uplink.CertificateStatus{Warning: "expires in 20 days, on 2026-06-21 00:00:00"},
			},
			problems: []string{
				"uplink cloud: its certificate cannot be used: uplink.cert_file: no such file",
				"uplink cloud: the cloud's certificate expires in 20 days, on 2026-06-21 00:00:00",
			},
			line: "up for 1m0s",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			tt.status.Name, tt.status.Since = "cloud", now.Add(-time.Minute)
			s := gatewayStatus{Time: now, Uplinks: []uplink.Status{tt.status}, Store: storeforward.Status{State: "ok"}}
			if got := s.problems(); !slices.Equal(got, tt.problems) {
				t.Errorf("problems %q, want %q", got, tt.problems)
			}
			var out strings.Builder
			if err := s.print(&out); err != nil || !strings.Contains(out.String(), tt.line) {
				t.Errorf("status %v\n%swant %q in it", err, out.String(), tt.line)
			}
		})
	}
}
