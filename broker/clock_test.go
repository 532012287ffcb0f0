package broker

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		k := newClock()
		var wg sync.WaitGroup
		wg.Go(func() { k.loop(ctx) })
		start := time.Now()
		var got []time.Duration
		note := func() { got = append(got, time.Since(start)) }
		k.after(3*time.Second, note)
		k.after(2*time.Hour, note)
		canceled := k.after(2*time.Second, note)
		k.after(time.Second, func() {
			note()
			k.after(time.Second/2, note)
		})
		k.cancel(canceled)
		k.cancel(canceled)
		k.cancel(nil)
		<-time.After(3 * time.Hour)
		cancel()
		wg.Wait()
		want := []time.Duration{time.Second, 3 * time.Second / 2, 3 * time.Second, 2 * time.Hour}
		if !slices.Equal(got, want) {
			t.Errorf("ran at %v, want %v", got, want)
		}
	})
}
