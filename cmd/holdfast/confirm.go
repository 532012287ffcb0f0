package main

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"time"

	"holdfast/cmd/holdfast/config"
	"holdfast/storeforward/uplink"
)

// provenAfter is how long an uplink must have been up with a configuration for
// that to be a good one: a cloud that lets us in and throws us out again at once
// proves nothing.
const provenAfter = 5 * time.Second

// trial is a changed configuration of an uplink that was up before, and has not
// been since: whoever changed it may have locked themselves out.
type trial struct {
	good  uplink.Options // to go back to
	until time.Time      // zero until the change is made
}

// trialsFor returns what is on trial once fresh is taken over: the uplinks it
// changes that are up, and those that still are on trial. One that was down
// before is given the time it needs: it proves nothing by staying down. It is
// called before the change.
func (gw *gateway) trialsFor(fresh *config.Config) map[string]trial {
	trials := map[string]trial{}
	for name, settings := range fresh.Uplinks {
		r := gw.uplinks[name]
		pending, onTrial := gw.trials[name]
		switch {
		case r == nil:
		case onTrial && reflect.DeepEqual(pending.good, settings): // taken back by hand
		case reflect.DeepEqual(r.settings, any(settings)):
			if onTrial {
				trials[name] = pending
			}
		case settings.Confirm == 0:
		case gw.reverted[name].tried != "": // what it has now was good, up or not
			trials[name] = trial{good: gw.reverted[name].good}
		case onTrial:
			trials[name] = trial{good: pending.good}
		default:
			if good, ok := r.settings.(uplink.Options); ok && r.upFor() > 0 {
				trials[name] = trial{good: good}
			}
		}
	}
	return trials
}

// confirm ends the trials of the uplinks that have come up, and takes back the
// configuration of those that have not done so in their time. Everything else
// goes on as it is.
func (gw *gateway) confirm(life, patience context.Context, now time.Time) {
	for _, name := range sorted(gw.trials) {
		t, r := gw.trials[name], gw.uplinks[name]
		switch {
		case r == nil:
			delete(gw.trials, name)
		case r.upFor() >= provenAfter:
			delete(gw.trials, name)
			r.proven()
			gw.log.Info("changed uplink is up, its configuration stays", "uplink", name)
		case !now.Before(t.until):
			delete(gw.trials, name)
			gw.revert(life, patience, name, t, r)
		}
	}
	gw.keepAttempts()
}

func (gw *gateway) revert(life, patience context.Context, name string, t trial, r *running) {
	why := "still connecting"
	if st, ok := r.status().(uplink.Status); ok && st.Reason != "" {
		why = st.Reason
	}
	bad := gw.cfg.Uplinks[name]
	cfg := gw.cfg
	cfg.Uplinks = maps.Clone(cfg.Uplinks)
	cfg.Uplinks[name] = t.good
	if err := gw.reconcile(life, patience, cfg); err != nil {
		gw.log.Error("uplink not taken back to its last good configuration", "uplink", name, "err", err)
		why = fmt.Sprintf("%s; going back failed: %v", why, err)
	}
	gw.log.Error("uplink did not come up with its changed configuration, went back to the last good one", "uplink", name, "tried_for", bad.Confirm, "reason", why)
	gw.takeBack(name, takenBack{tried: fingerprint(&bad), good: t.good, why: why, said: fmt.Sprintf(
		"its changed configuration did not come up within %v (%s); the last one that did is in use until the next reload, which tries the file again", bad.Confirm, why)})
	gw.update(func() { gw.reloads.Reverts++ })
}

// settle takes note of a configuration that has been taken over.
func (gw *gateway) settle(now time.Time) {
	for name, t := range gw.trials {
		if t.until.IsZero() {
			t.until = now.Add(gw.cfg.Uplinks[name].Confirm)
			gw.trials[name] = t
		}
	}
	gw.update(func() { clear(gw.reverted) }) // the file has been tried again
	gw.keepAttempts()
}
