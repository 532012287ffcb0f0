package console

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type fakePart struct {
	Name     string        `json:"name"`
	State    string        `json:"state"`
	Dropped  uint64        `json:"dropped"`
	Oldest   time.Duration `json:"oldest_ns"`
	Up       bool          `json:"up"`
	Password string        `json:"reason"`
	Since    time.Time     `json:"since"`
}

type fakeBus struct {
	UnitID byte     `json:"unit_id" metric:"label"`
	Load   float64  `json:"load"`
	Secret uint64   `json:"secret" metric:"-"`
	Points []string `json:"points"`
}

type fakeStatus struct {
	Version string            `json:"version"`
	Session uint64            `json:"session" metric:"gauge"`
	Buses   []fakeBus         `json:"buses"`
	Parts   []fakePart        `json:"uplinks"`
	Reasons map[string]uint64 `json:"refused"`
	Nothing *fakePart         `json:"nothing"`
}

func start(t *testing.T, src Source) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "h.sock")
	ctx, cancel := context.WithCancel(context.Background())
	l, err := Listen(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, src, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return path
}

func TestStatusIsWhatTheSourceSays(t *testing.T) {
	path := start(t, Source{Status: func() any { return fakeStatus{Version: "1.2.3"} }})
	body, code, err := Get(t.Context(), path, "/api/v1/status")
	if err != nil || code != http.StatusOK {
		t.Fatalf("Get = %d, %v", code, err)
	}
	var got fakeStatus
	if err := json.Unmarshal(body, &got); err != nil || got.Version != "1.2.3" {
		t.Errorf("status = %s (%v)", body, err)
	}
}

func TestHealthSaysWhatIsWrong(t *testing.T) {
	var sick error
	path := start(t, Source{Healthy: func() error { return sick }})
	if _, code, err := Get(t.Context(), path, "/healthz"); code != http.StatusOK || err != nil {
		t.Errorf("healthy: %d, %v", code, err)
	}
	sick = errors.New("store: disk full")
	body, code, err := Get(t.Context(), path, "/healthz")
	if code != http.StatusServiceUnavailable || err != nil || !strings.Contains(string(body), "disk full") {
		t.Errorf("sick: %d %q %v", code, body, err)
	}
}

func TestSocketOfADeadProcessIsReplacedALiveOneIsNot(t *testing.T) {
	path := start(t, Source{Healthy: func() error { return nil }})
	if _, err := Listen(t.Context(), path); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("Listen on a live socket: %v", err)
	}
	file := filepath.Join(t.TempDir(), "notes.txt")
	if err := os.WriteFile(file, []byte("keep"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(t.Context(), file); err == nil {
		t.Error("Listen replaced a file that is no socket")
	}
	dead := filepath.Join(t.TempDir(), "dead.sock")
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	old.SetUnlinkOnClose(false) // as a killed process leaves it
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := Listen(t.Context(), dead)
	if err != nil {
		t.Fatalf("Listen over a dead socket: %v", err)
	}
	defer l.Close()
	info, err := os.Stat(dead)
	if err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("mode = %v, %v; want 0660", info.Mode(), err)
	}
}

func TestMetricsAreOpenMetrics(t *testing.T) {
	got := string(openMetrics("holdfast", fakeStatus{
		Version: "1", Session: 3,
		Buses: []fakeBus{{UnitID: 17, Load: 0.5, Points: []string{"a", "b"}}, {UnitID: 17}},
		Parts: []fakePart{
			{Name: `clo"ud`, State: "up", Dropped: 7, Oldest: 1500 * time.Millisecond, Up: true, Since: time.Unix(100, 0)},
			{Name: "b", State: "backing_off", Dropped: 1},
		},
		Reasons: map[string]uint64{"full": 3, "acl": 4},
	}))
	want := `# TYPE holdfast_session gauge
holdfast_session 3
# TYPE holdfast_bus_load gauge
holdfast_bus_load{bus="17"} 0.5
holdfast_bus_load{bus="17 1"} 0
# TYPE holdfast_bus_points gauge
holdfast_bus_points{bus="17"} 2
holdfast_bus_points{bus="17 1"} 0
# TYPE holdfast_uplink_state gauge
holdfast_uplink_state{uplink="clo\"ud",state="up"} 1
holdfast_uplink_state{uplink="b",state="backing_off"} 1
# TYPE holdfast_uplink_dropped counter
holdfast_uplink_dropped_total{uplink="clo\"ud"} 7
holdfast_uplink_dropped_total{uplink="b"} 1
# TYPE holdfast_uplink_oldest_seconds gauge
holdfast_uplink_oldest_seconds{uplink="clo\"ud"} 1.5
holdfast_uplink_oldest_seconds{uplink="b"} 0
# TYPE holdfast_uplink_up gauge
holdfast_uplink_up{uplink="clo\"ud"} 1
holdfast_uplink_up{uplink="b"} 0
# TYPE holdfast_uplink_since_timestamp_seconds gauge
holdfast_uplink_since_timestamp_seconds{uplink="clo\"ud"} 100.000
# TYPE holdfast_refused counter
holdfast_refused_total{reason="acl"} 4
holdfast_refused_total{reason="full"} 3
# EOF
`
	if got != want {
		t.Errorf("metrics =\n%s\nwant\n%s", got, want)
	}
}

func TestProfiles(t *testing.T) {
	path := start(t, Source{Status: func() any { return fakeStatus{} }, Healthy: func() error { return nil }})
	for target, want := range map[string]struct {
		code  int
		start string
	}{
		"heap":                {http.StatusOK, "\x1f\x8b"},
		"goroutine?debug=1":   {http.StatusOK, "goroutine profile: "},
		"profile?seconds=1":   {http.StatusOK, "\x1f\x8b"},
		"profile?seconds=0":   {http.StatusBadRequest, "seconds is a number from 1 to 300"},
		"profile?seconds=900": {http.StatusBadRequest, "seconds is a number from 1 to 300"},
		"profile?seconds=x":   {http.StatusBadRequest, "seconds is a number from 1 to 300"},
		"weather":             {http.StatusNotFound, "no such profile; "},
	} {
		body, code, err := Get(t.Context(), path, "/debug/pprof/"+target)
		if err != nil || code != want.code || !strings.HasPrefix(string(body), want.start) {
			t.Errorf("%s: %d %.40q, %v", target, code, body, err)
		}
	}
}
