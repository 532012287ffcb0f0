package health_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"holdfast/adapters/health"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errSilent = errors.New("no answer within 1s")

// tracked is one device whose changes are recorded.
type tracked struct {
	*health.Tracker
	m       *health.Monitor
	changes []health.Change
}

func track(tb testing.TB, o health.Options) *tracked {
	tb.Helper()
	d := &tracked{}
	d.m = health.NewMonitor(func(c health.Change) { d.changes = append(d.changes, c) })
	var err error
	if d.Tracker, err = d.m.Add("boiler", o); err != nil {
		tb.Fatal(err)
	}
	return d
}

// feed reports outcomes: '+' success, '-' failure, 'x' port gone.
func (d *tracked) feed(outcomes string) {
	for _, c := range outcomes {
		switch c {
		case '+':
			d.Good(time.Now())
		case '-':
			d.Bad(time.Now(), errSilent)
		case 'x':
			d.Gone(time.Now(), errors.New("device is unplugged"))
		}
	}
}

// path is the states it went through.
func (d *tracked) path() string {
	var s []string
	for _, c := range d.changes {
		s = append(s, c.State.String())
	}
	return strings.Join(s, " ")
}

func TestStates(t *testing.T) {
	tests := map[string]struct{ outcomes, want string }{
		"the first answer makes it online":         {"+", "unknown online"},
		"one failure is nothing":                   {"+-+-+", "unknown online"},
		"two in a row are nothing":                 {"+--+", "unknown online"},
		"three in a row make it offline":           {"+---", "unknown online offline"},
		"never answered":                           {"---", "unknown offline"},
		"never answered, not sure yet":             {"--", "unknown"},
		"every other one fails":                    {"+-+-+-+-", "unknown online degraded"},
		"degraded needs more than one good":        {"+-+-+-+-+", "unknown online degraded"},
		"degraded until the window is clean":       {"+-+-+-+-" + strings.Repeat("+", 14), "unknown online degraded online"},
		"one less is not enough":                   {"+-+-+-+-" + strings.Repeat("+", 12), "unknown online degraded"},
		"back from offline takes three":            {"+---++", "unknown online offline degraded"},
		"back from offline":                        {"+---+++", "unknown online offline degraded online"},
		"degraded, then offline":                   {"+-+-+-+----", "unknown online degraded offline"},
		"its port gone":                            {"+x", "unknown online offline"},
		"its port back":                            {"+x+", "unknown online offline online"},
		"each failed attempt to open says nothing": {"+xxxx", "unknown online offline"},
		"port back, device not":                    {"+x---", "unknown online offline offline"},
		"port back, device slow to start":          {"+x--+", "unknown online offline online"},
		"offline, then its port goes too":          {"---x", "unknown offline offline"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			d := track(t, health.DefaultOptions())
			d.feed(tt.outcomes)
			if got := d.path(); got != tt.want {
				t.Errorf("%q: %s, want %s", tt.outcomes, got, tt.want)
			}
			for i, c := range d.changes {
				if (c.Reason == "") != (c.State == health.Online) {
					t.Errorf("change %d to %v has the reason %q", i, c.State, c.Reason)
				}
				if i > 0 && c.Was != d.changes[i-1].State {
					t.Errorf("change %d was %v, before it was %v", i, c.Was, d.changes[i-1].State)
				}
			}
			if st := d.Status(); st.State != d.changes[len(d.changes)-1].State || st.Changes != uint64(len(d.changes)-1) {
				t.Errorf("Status %+v after %d changes", st, len(d.changes))
			}
		})
	}
}

func TestReasonsSayWhatHappened(t *testing.T) {
	d := track(t, health.DefaultOptions())
	d.feed("+-+-+-+----")
	want := []string{"not heard yet", "", "4 of the last 8 failed: no answer within 1s", "3 failures in a row: no answer within 1s"}
	// The fourth failure in the window is the first of four in a row.
	for i, c := range d.changes {
		if c.Reason != want[i] {
			t.Errorf("change %d (%v): reason %q, want %q", i, c.State, c.Reason, want[i])
		}
	}
}

func TestSilenceMakesStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := health.DefaultOptions()
		o.Expect = 30 * time.Second
		d := track(t, o)
		quiet, err := d.m.Add("quiet", health.DefaultOptions()) // no expectation
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { d.m.Run(ctx); close(done) }()
		at := func(after time.Duration, want health.State) {
			t.Helper()
			<-time.After(after)
			synctest.Wait()
			if got := d.State(); got != want {
				t.Errorf("%v, want %v", got, want)
			}
		}
		at(29*time.Second, health.Unknown)
		at(time.Second, health.Stale) // never heard
		d.feed("+")
		at(29*time.Second, health.Online)
		d.feed("+")
		at(29*time.Second, health.Online)
		at(time.Second, health.Stale)
		d.feed("-")
		at(0, health.Stale)
		d.feed("--")
		at(0, health.Offline)
		at(time.Hour, health.Offline) // known to be dead, not merely silent
		d.feed("+++")
		at(0, health.Online)
		d.feed("--+-+-")
		at(0, health.Degraded)
		at(30*time.Second, health.Stale)
		d.feed("+") // back where its outcomes put it
		at(0, health.Degraded)
		if quiet.State() != health.Unknown {
			t.Errorf("a device without expectation is %v", quiet.State())
		}
		cancel()
		<-done
	})
}

func TestAddAnnouncesAndRefuses(t *testing.T) {
	d := track(t, health.DefaultOptions())
	if _, err := d.m.Add("boiler", health.DefaultOptions()); err == nil {
		t.Error("the same device was added twice")
	}
	if _, err := d.m.Add("x", health.Options{}); err == nil || !strings.Contains(err.Error(), "device x: offline_after: 0") {
		t.Errorf("Add with no options = %v", err)
	}
	d.feed("+")
	d.m.Announce()
	if got := d.path(); got != "unknown online online" {
		t.Errorf("changes %s", got)
	}
	d.m.Remove("boiler")
	d.feed("---")
	if got := d.path(); got != "unknown online online" || len(d.m.Status()) != 0 {
		t.Errorf("changes %s, status %v after Remove", got, d.m.Status())
	}
}

func TestChangeJSON(t *testing.T) {
	at := time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC)
	c := health.Change{Device: "boiler", State: health.Offline, Since: at, Reason: `open "x": gone`}
	want := `{"state":"offline","since":"2026-01-02T15:04:05.000Z","reason":"open \"x\": gone","session":7}`
	if got := string(c.AppendJSON(nil, 7)); got != want {
		t.Errorf("AppendJSON = %s, want %s", got, want)
	}
	c = health.Change{State: health.Online, Since: at}
	want = `{"state":"online","since":"2026-01-02T15:04:05.000Z","session":0}`
	if got := string(c.AppendJSON(nil, 0)); got != want {
		t.Errorf("AppendJSON = %s, want %s", got, want)
	}
}

func TestValidateNamesTheKey(t *testing.T) {
	tests := map[string]struct {
		change func(*health.Options)
		want   string
	}{
		"defaults":       {func(*health.Options) {}, ""},
		"short expect":   {func(o *health.Options) { o.Expect = 1 }, "expect: "},
		"offline after":  {func(o *health.Options) { o.OfflineAfter = 0 }, "offline_after: 0"},
		"degraded at":    {func(o *health.Options) { o.DegradedAt = 17 }, "degraded_at: 17"},
		"healthy at":     {func(o *health.Options) { o.HealthyAt = 4 }, "healthy_at: 4"},
		"recover after":  {func(o *health.Options) { o.RecoverAfter = 101 }, "recover_after: 101"},
		"expect a month": {func(o *health.Options) { o.Expect = 720 * time.Hour }, ""},
	}
	for name, tt := range tests {
		o := health.DefaultOptions()
		tt.change(&o)
		if err := o.Validate(); tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.HasPrefix(err.Error(), tt.want)) {
			t.Errorf("%s: Validate = %v, want %q", name, err, tt.want)
		}
	}
}

// Whatever the outcomes: online is never claimed right after OfflineAfter
// failures, offline never right after a success, and changes chain.
func TestStateNeverContradictsTheLastOutcomes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := health.DefaultOptions()
		o.OfflineAfter = rapid.IntRange(1, 5).Draw(t, "offline_after")
		o.DegradedAt = rapid.IntRange(1, 16).Draw(t, "degraded_at")
		o.HealthyAt = rapid.IntRange(0, o.DegradedAt-1).Draw(t, "healthy_at")
		o.RecoverAfter = rapid.IntRange(1, 5).Draw(t, "recover_after")
		d := &tracked{}
		d.m = health.NewMonitor(func(c health.Change) { d.changes = append(d.changes, c) })
		var err error
		if d.Tracker, err = d.m.Add("boiler", o); err != nil {
			t.Fatal(err)
		}
		failures := 0
		for _, c := range rapid.StringOfN(rapid.RuneFrom([]rune("++++---x")), 0, 60, -1).Draw(t, "outcomes") {
			d.feed(string(c))
			switch c {
			case '+':
				failures = 0
				if d.State() == health.Offline || d.State() == health.Unknown {
					t.Fatalf("%v right after a success", d.State())
				}
			case '-':
				failures++
				if failures >= o.OfflineAfter && d.State() != health.Offline {
					t.Fatalf("%v after %d failures in a row", d.State(), failures)
				}
			case 'x':
				if d.State() != health.Offline {
					t.Fatalf("%v though its port is gone", d.State())
				}
			}
		}
		for i := 1; i < len(d.changes); i++ {
			if d.changes[i].Was != d.changes[i-1].State {
				t.Fatalf("change %d was %v after %v", i, d.changes[i].Was, d.changes[i-1].State)
			}
		}
	})
}
