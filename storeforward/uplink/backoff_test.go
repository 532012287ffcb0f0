package uplink

import (
	"testing"
	"time"
)

func TestBackoffGrowsToItsCapAndStartsAgain(t *testing.T) {
	b := newBackoff(time.Second, time.Minute)
	b.draw = func(n int64) int64 { return n - 1 } // the longest there is
	for i, want := range []float64{3, 9, 27, 60, 60} {
		if got := b.next().Seconds(); got != want {
			t.Fatalf("pause %d is %vs, want %vs", i, got, want)
		}
	}
	b.reset()
	if got := b.next(); got != 3*time.Second {
		t.Errorf("pause after reset is %v, want 3s", got)
	}
	b.draw = func(int64) int64 { return 0 } // the shortest
	if got := b.next(); got != time.Second {
		t.Errorf("shortest pause is %v, want 1s", got)
	}
	if got := b.long(); got != 30*time.Second {
		t.Errorf("shortest long pause is %v, want 30s", got)
	}
}

// A thousand gateways that lose the cloud in one second must not come back in
// one second.
func TestBackoffSpreads(t *testing.T) {
	const gateways = 1000
	seconds := make(map[int]int)
	for range gateways {
		b := newBackoff(time.Second, 2*time.Minute)
		var at time.Duration
		for range 4 {
			at += b.next()
		}
		seconds[int(at/time.Second)]++
	}
	for s, n := range seconds {
		if n > gateways/5 {
			t.Errorf("%d of %d gateways come back in second %d", n, gateways, s)
		}
	}
}
