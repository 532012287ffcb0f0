package storeforward

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"testing/synctest"

	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(killChildEnv); path != "" {
		killChild(path)
		os.Exit(1)
	}
	if stage := os.Getenv(stageChildEnv); stage != "" {
		stageChild(stage)
		os.Exit(1)
	}
	if path := os.Getenv(crashChildEnv); path != "" {
		crashChild(path)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

type rapidChooser struct{ t *rapid.T }

func (c rapidChooser) pick(n int, what string) int { return rapid.IntRange(0, n-1).Draw(c.t, what) }

// wantedCuts is how many power cuts TestCrash makes: HOLDFAST_CUTS, or 300.
func wantedCuts(t *testing.T) int {
	t.Helper()
	if v := os.Getenv("HOLDFAST_CUTS"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil {
			t.Fatalf("HOLDFAST_CUTS=%s: %v", v, err)
		}
		return n
	}
	if testing.Short() {
		return 50
	}
	return 300
}

// TestCrash proves P1, P2 and P3 of the promises against a disk that loses, tears
// and reorders what was not synced.
func TestCrash(t *testing.T) {
	want, cuts, lives, drops, replaced := wantedCuts(t), 0, 0, uint64(0), uint64(0)
	for cuts < want && !t.Failed() {
		rapid.Check(t, func(rt *rapid.T) {
			if cuts >= want {
				return
			}
			w := newWorld(rapidChooser{rt}, rapid.Uint64().Draw(rt, "seed"), nil)
			err := w.live1(t)
			cuts += w.cuts
			lives++
			drops += w.drops
			replaced += w.replaced
			if err != nil {
				rt.Fatalf("after %d cuts: %v", w.cuts, err)
			}
		})
	}
	t.Logf("%d power cuts in %d lives, %d messages dropped by policies, %d replaced by newer states", cuts, lives, drops, replaced)
}

// live1 runs one life in a bubble with its own time. rapid ends a run by a panic,
// which must leave the bubble as one.
func (w *world) live1(t *testing.T) (err error) {
	t.Helper()
	var stop any
	synctest.Test(t, func(*testing.T) {
		defer func() { stop = recover() }()
		err = w.run()
	})
	if stop != nil {
		panic(stop)
	}
	return err
}

// TestCrashTeeth breaks the store on purpose: the crash model must find it out.
func TestCrashTeeth(t *testing.T) {
	for name, breakIt := range map[string]func(*Options){
		"commits without fsync":      func(o *Options) { o.faults.syncOff = true },
		"done called before commits": func(o *Options) { o.faults.doneSoon = true },
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(200) {
				w := newWorld(randChooser{rand.New(rand.NewPCG(seed, 2))}, seed, breakIt)
				if err := w.live1(t); err != nil {
					t.Logf("found after %d lives: %.300s", seed+1, fmt.Sprint(err))
					return
				}
			}
			t.Error("200 lives with a broken store and nothing was found")
		})
	}
}
