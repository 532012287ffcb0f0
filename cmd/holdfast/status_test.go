package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/adapters"
	"holdfast/adapters/modbus"
	"holdfast/broker/listen"
	"holdfast/storeforward"
	"holdfast/storeforward/uplink"
)

// indent is that of the third column in the tests.
const indent = "                "

func TestRoughly(t *testing.T) {
	for s, want := range map[float64]string{0.1: "1s", 59.2: "59s", 119: "1m59s", 190: "3 minutes", 7300: "2 hours", 200_000: "2 days", 1e300: "100 days"} {
		if got := roughly(s); got != want {
			t.Errorf("roughly(%v) = %q, want %q", s, got, want)
		}
	}
}

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
			status: uplink.Status{State: uplink.StateUp, Budget: &uplink.BudgetStatus{State: "batch", DayBytes: 6_000_000, DayBudget: 10_000_000, DayEnds: now.Add(12 * time.Hour)}},
			line:   "data 6.0 MB of 10.0 MB today (60 %, until 2026-06-02 00:00:00): batches gather for longer\n",
		},
		"short data budget": {
			status: uplink.Status{
				State: uplink.StateUp, Backlog: 7, BacklogBytes: 70, BacklogAge: 120,
				Budget: &uplink.BudgetStatus{State: "alarms", DayBytes: 1, DayBudget: 100, DayEnds: now.Add(12 * time.Hour), MonthBytes: 99, MonthBudget: 100, MonthEnds: now.AddDate(0, 1, 0)},
			},
			problems: []string{"uplink cloud: its data budget is short: only the lanes from budget_lane on send"},
			line:     "data 1 bytes of 100 bytes today (1 %, until 2026-06-02 00:00:00), 99 bytes of 100 bytes this month (99 %, until 2026-07-01 12:00:00): only the lanes from budget_lane on send\n",
		},
		"waits for the data budget": {
			status:   uplink.Status{State: uplink.StateUp, BacklogAge: 120, AckedRate: 1, Budget: &uplink.BudgetStatus{State: "alarms"}},
			problems: []string{"uplink cloud: its data budget is short: only the lanes from budget_lane on send"},
			line:     "oldest 2m0s, waits for the data budget; sent",
		},
		"what the link carries": {
			status: uplink.Status{State: uplink.StateUp, WindowBytes: 12_340, Rate: 41_000},
			line:   "window 12.3 kB, carries 41.0 kB a second\n",
		},
		"drains": {
			status: uplink.Status{State: uplink.StateUp, AckedRate: 10, BacklogAge: 7200, DrainSeconds: 190},
			line:   "oldest 2h0m0s, drained in about 3 minutes; sent",
		},
		"a lane that grows": {
			status: uplink.Status{State: uplink.StateUp, AckedRate: 10, Backlog: 500, BacklogAge: 7200, Lanes: []uplink.LaneStatus{
				{Lane: "7", Backlog: 10, BacklogBytes: 900, BacklogAge: 8, DrainSeconds: 0.4}, {Lane: "0", Backlog: 490, BacklogBytes: 59_100, BacklogAge: 7200},
			}},
			line: "lane 7: backlog 10 messages, 900 bytes, oldest 8s, drained in about 1s\n" + indent +
				"lane 0: backlog 490 messages, 59.1 kB, oldest 2h0m0s, not getting less\n",
		},
		"a backlog while the link is down": {
			status:   uplink.Status{State: uplink.StateBackingOff, Reason: "x", AckedRate: 10, BacklogAge: 7200},
			problems: []string{"uplink cloud: backing off: x"}, line: "oldest 2h0m0s; sent",
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
			line: "its certificate cannot be used: uplink.cert_file: no such file\n" + indent +
				"the cloud's certificate expires in 20 days, on 2026-06-21 00:00:00\n",
		},
		"good certificates": {
			status: uplink.Status{State: uplink.StateUp, OwnCertificate: &uplink.CertificateStatus{NotAfter: now.AddDate(1, 0, 0)}},
			line:   "its certificate is valid until 2027-06-01\n",
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

// A listener's certificate is warned of as an uplink's is: weeks before its end, or in
// its last quarter when it lives for days only.
func TestListenersCertificateEnds(t *testing.T) {
	now := time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	const day = 24 * time.Hour
	tests := map[string]struct {
		age, left time.Duration
		warned    bool
	}{
		"of a year, three months left": {9 * 30 * day, 90 * day, false},
		"of a year, 20 days left":      {340 * day, 20 * day, true},
		"of a week, two days left":     {5 * day, 2 * day, false},
		"of a week, a day left":        {6 * day, day, true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := gatewayStatus{Time: now, Store: storeforward.Status{State: "ok"}, Listen: []listen.Status{{
				Address: "tls://:8883", Certificate: &listen.CertificateStatus{NotBefore: now.Add(-tt.age), NotAfter: now.Add(tt.left)},
			}}}
			if got := s.problems(); (len(got) > 0) != tt.warned {
				t.Errorf("problems %q, want one: %v", got, tt.warned)
			}
		})
	}
}

func TestADeviceThatDoesNotDescribeItselfIsAProblem(t *testing.T) {
	bus := modbus.Status{Described: []modbus.DescribedStatus{{Device: "pv", Points: 12}, {Device: "pv2", LastError: "no marker"}}}
	s := gatewayStatus{Store: storeforward.Status{State: "ok"}, Buses: []busStatus{{Name: "rs485", Bus: bus}}}
	want := []string{"device pv2 has not said what it measures: no marker"}
	if got := s.problems(); !slices.Equal(got, want) {
		t.Errorf("problems %q, want %q", got, want)
	}
}

func TestAnOverloadedBusIsAProblem(t *testing.T) {
	pace := modbus.Pace{Demand: 1.44, Devices: []modbus.DevicePace{
		{Device: "boiler", Every: 5 * time.Second, Comes: 7200 * time.Millisecond},
		{Device: "meter", Every: time.Minute, Comes: time.Minute},
	}}
	s := gatewayStatus{Store: storeforward.Status{State: "ok"}, Buses: []busStatus{{Name: "rs485", Bus: modbus.Status{Pace: pace}}}}
	want := []string{"port rs485 is 144 % loaded: device boiler's points come every 7.2s instead of 5s"}
	if got := s.problems(); !slices.Equal(got, want) {
		t.Errorf("problems %q, want %q", got, want)
	}
}

// Readings that are lost for want of room in memory are a problem until none wait.
func TestFullOutboxInWords(t *testing.T) {
	s := gatewayStatus{Store: storeforward.Status{State: "ok"}}
	s.Readings = adapters.OutboxStatus{
		Name: "readings", Queued: 10_000, Dropping: true, LastError: "the store is full",
		Devices: map[string]adapters.OutboxCounters{"a": {Dropped: 3}, "b": {Dropped: 4}},
	}
	want := []string{"readings: the store has not taken them, and there was no room in memory for all: 7 were dropped, 10000 wait: the store is full"}
	if got := s.problems(); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	s.Readings.Dropping = false
	if got := s.problems(); len(got) > 0 {
		t.Errorf("got %q, want none", got)
	}
}
