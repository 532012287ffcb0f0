package health_test

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/adapters/health"
)

// A device whose expected interval nobody has configured becomes stale when it is
// silent for much longer than it ever was, and not before it has shown a rhythm.
func TestSilenceIsLearned(t *testing.T) {
	every := func(n int, d ...time.Duration) (all []time.Duration) {
		for i := range n {
			all = append(all, d[i%len(d)])
		}
		return all
	}
	tests := map[string]struct {
		intervals []time.Duration
		want      time.Duration // 0: never
	}{
		"every minute":                 {every(20, time.Minute), 4 * time.Minute},
		"every second":                 {every(20, time.Second), 10 * time.Second},
		"three lines a minute":         {every(30, 100*time.Millisecond, 100*time.Millisecond, 59800*time.Millisecond), 4 * 59800 * time.Millisecond},
		"not long enough to be sure":   {every(15, time.Minute), 0},
		"a long pause among short":     {append(every(14, time.Second), time.Hour, time.Second), 0},
		"a long pause, then forgotten": {append(every(3, time.Hour), every(20, time.Minute)...), 4 * time.Minute},
		"once a month":                 {every(17, 30*24*time.Hour), 720 * time.Hour},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := track(t, health.DefaultOptions())
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				go d.m.Run(ctx)
				d.Good(time.Now())
				for _, i := range tt.intervals {
					<-time.After(i)
					d.Good(time.Now())
				}
				if got := d.Status().Expect; got != tt.want {
					t.Fatalf("Expect = %v, want %v", got, tt.want)
				}
				if tt.want == 0 {
					<-time.After(1000 * time.Hour)
					synctest.Wait()
					if s := d.State(); s != health.Online {
						t.Errorf("%v after a long silence, want online", s)
					}
					return
				}
				<-time.After(tt.want - time.Millisecond)
				synctest.Wait()
				if s := d.State(); s != health.Online {
					t.Errorf("%v before %v of silence, want online", s, tt.want)
				}
				<-time.After(2 * time.Millisecond)
				synctest.Wait()
				if s := d.Status(); s.State != health.Stale || !strings.Contains(s.Reason, "has not been before") {
					t.Errorf("%v (%s) after %v of silence, want stale", s.State, s.Reason, tt.want)
				}
				// It was well: the next silence may be twice as long.
				d.Good(time.Now())
				if got, want := d.Status().Expect, max(10*time.Second, min(2*tt.want, 720*time.Hour)); d.State() != health.Online || got > want || got < tt.want {
					t.Errorf("%v, Expect = %v, want online and at most %v", d.State(), got, want)
				}
			})
		})
	}
}
