package adapters_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"holdfast/adapters"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// scripted is an adapter that does what each of its runs is told.
type scripted struct {
	run    func(ctx context.Context, n int) error
	starts []time.Time
}

func (*scripted) Name() string { return "rs485" }

func (s *scripted) Run(ctx context.Context) error {
	s.starts = append(s.starts, time.Now())
	return s.run(ctx, len(s.starts))
}

// supervise runs s for d of fake time and returns the supervisor and its log.
func supervise(t *testing.T, s *scripted, d time.Duration) (sup *adapters.Supervisor, log string) {
	t.Helper()
	var b bytes.Buffer
	sup = adapters.NewSupervisor(s, adapters.DefaultSuperviseOptions(), slog.New(slog.NewTextHandler(&b, nil)))
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	sup.Run(ctx)
	return sup, b.String()
}

func TestRestartsBackOffToHalfAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{run: func(context.Context, int) error { return errors.New("port rs485: busy") }}
		sup, log := supervise(t, s, time.Hour)
		want := time.Second
		for i := 1; i < len(s.starts); i++ {
			gap := s.starts[i].Sub(s.starts[i-1])
			if gap < want*3/4 || gap > want*5/4 {
				t.Errorf("restart %d after %v, want %v give or take a quarter", i, gap, want)
			}
			want = min(2*want, 30*time.Second)
		}
		if n := len(s.starts); n < 90 || n > 170 {
			t.Errorf("%d starts in an hour", n)
		}
		st := sup.Status()
		if st.State != "stopped" || st.Starts != uint64(len(s.starts)) || st.Failures < st.Starts-1 || st.LastError != "port rs485: busy" {
			t.Errorf("Status %+v", st)
		}
		if !strings.Contains(log, "adapter=rs485") || !strings.Contains(log, `err="port rs485: busy"`) {
			t.Errorf("log %s", log[:200])
		}
	})
}

func TestSettledRunStartsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{run: func(ctx context.Context, n int) error {
			if n > 5 {
				select {
				case <-ctx.Done():
				case <-time.After(time.Minute):
				}
			}
			return errors.New("unplugged")
		}}
		supervise(t, s, 10*time.Minute)
		for i := 6; i < len(s.starts); i++ {
			if gap := s.starts[i].Sub(s.starts[i-1]) - time.Minute; gap < 750*time.Millisecond || gap > 1250*time.Millisecond {
				t.Errorf("restart %d came %v after a settled run, want about 1s", i, gap)
			}
		}
	})
}

func TestPanicHarmsOnlyItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{run: func(ctx context.Context, n int) error {
			if n == 1 {
				panic("index out of range")
			}
			<-ctx.Done()
			return ctx.Err()
		}}
		sup, log := supervise(t, s, time.Minute)
		st := sup.Status()
		if st.Panics != 1 || st.Starts != 2 || st.Failures != 1 || !strings.Contains(st.LastError, "index out of range") {
			t.Errorf("Status %+v", st)
		}
		if !strings.Contains(log, "level=ERROR") || !strings.Contains(log, "supervise_test.go") {
			t.Errorf("the log has no stack: %s", log)
		}
	})
}

func TestEndWithoutErrorIsRestarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{run: func(context.Context, int) error { return nil }}
		sup, _ := supervise(t, s, 10*time.Second)
		if st := sup.Status(); st.Starts < 3 || st.LastError == "" {
			t.Errorf("Status %+v", st)
		}
	})
}

func TestStopDuringAPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{run: func(context.Context, int) error { return errors.New("no") }}
		start := time.Now()
		sup, _ := supervise(t, s, 10*time.Millisecond)
		if d := time.Since(start); d != 10*time.Millisecond {
			t.Errorf("Run ended %v after its start, want 10ms", d)
		}
		if st := sup.Status(); st.State != "stopped" || !st.NextStart.IsZero() {
			t.Errorf("Status %+v", st)
		}
	})
}

func TestStatusWhileRunningAndWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fail := make(chan struct{})
		s := &scripted{run: func(ctx context.Context, _ int) error {
			select {
			case <-fail:
				return errors.New("no")
			case <-ctx.Done():
				return ctx.Err()
			}
		}}
		ctx, cancel := context.WithCancel(t.Context())
		sup := adapters.NewSupervisor(s, adapters.DefaultSuperviseOptions(), slog.New(slog.DiscardHandler))
		done := make(chan struct{})
		go func() { sup.Run(ctx); close(done) }()
		synctest.Wait()
		if st := sup.Status(); st.State != "running" || st.Adapter != "rs485" {
			t.Errorf("Status %+v, want running", st)
		}
		fail <- struct{}{}
		synctest.Wait()
		if st := sup.Status(); st.State != "waiting" || !st.NextStart.After(time.Now()) {
			t.Errorf("Status %+v, want waiting", st)
		}
		<-time.After(2 * time.Second)
		if st := sup.Status(); st.State != "running" || st.Starts != 2 {
			t.Errorf("Status %+v, want running again", st)
		}
		cancel()
		<-done
	})
}

func TestSuperviseOptionsNameTheKey(t *testing.T) {
	tests := map[string]struct {
		change func(*adapters.SuperviseOptions)
		want   string
	}{
		"defaults": {func(*adapters.SuperviseOptions) {}, ""},
		"min":      {func(o *adapters.SuperviseOptions) { o.MinDelay = 0 }, "min_delay: 0s"},
		"max":      {func(o *adapters.SuperviseOptions) { o.MaxDelay = 1 }, "max_delay: 1ns"},
		"settled":  {func(o *adapters.SuperviseOptions) { o.Settled = -1 }, "settled: -1ns"},
	}
	for name, tt := range tests {
		o := adapters.DefaultSuperviseOptions()
		tt.change(&o)
		if err := o.Validate(); tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.HasPrefix(err.Error(), tt.want)) {
			t.Errorf("%s: Validate = %v, want %q", name, err, tt.want)
		}
	}
}
