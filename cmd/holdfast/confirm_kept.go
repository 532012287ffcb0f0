package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"time"

	"holdfast/cmd/holdfast/config"
	"holdfast/storeforward/uplink"
)

// attemptsFile keeps in the data folder which configurations of uplinks are on
// trial or did not come up, and what was good before: a restart neither forgets
// them nor falls back into the one that locked us out. It has passwords in it, and
// is for its owner only.
const attemptsFile = "uplinks-on-trial.json"

// attempt is a configuration that differs from the last one that was good.
type attempt struct {
	Tried string          `json:"tried"` // fingerprint of the one in the file
	Good  json.RawMessage `json:"good"`
	Why   string          `json:"why,omitempty"` // it was taken back; empty: it is on trial
}

// takenBack is a configuration of the file that is not in use.
type takenBack struct {
	tried string         // fingerprint
	good  uplink.Options // in use
	why   string
	said  string // to the operator
}

// fingerprint tells settings from others; a later version has another one for them.
func fingerprint(settings *uplink.Options) string {
	b, err := json.Marshal(settings) //nolint:gosec // only its sum is kept
	if err != nil {
		return "" // of no settings that there are
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// keepAttempts writes down what has changed of the attempts.
func (gw *gateway) keepAttempts() {
	all := map[string]attempt{}
	for name, t := range gw.trials {
		settings := gw.cfg.Uplinks[name]
		all[name] = newAttempt(fingerprint(&settings), &t.good, "")
	}
	for name, r := range gw.reverted {
		all[name] = newAttempt(r.tried, &r.good, r.why)
	}
	b, err := json.MarshalIndent(all, "", "\t")
	if err == nil && bytes.Equal(b, gw.attempts) {
		return
	}
	path := filepath.Join(gw.cfg.Gateway.Data, attemptsFile)
	switch {
	case err != nil:
	case len(all) == 0:
		if err = os.Remove(path); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	default:
		err = writeFile(path, func(w io.Writer) error { _, err := w.Write(b); return err })
	}
	if err != nil {
		gw.log.Error("a restart would not know which configurations of uplinks are on trial", "path", path, "err", err)
		return
	}
	gw.attempts = b
}

func newAttempt(tried string, good *uplink.Options, why string) attempt {
	b, err := json.Marshal(good) //nolint:gosec // into a file for its owner
	if err != nil {
		b = nil // it is not taken up again
	}
	return attempt{Tried: tried, Good: b, Why: why}
}

// resumeAttempts goes on where the process before this one was: what did not come
// up is replaced by what was good, as long as the file says the same; what was on
// trial still is. It is called before anything starts.
func (gw *gateway) resumeAttempts(cfg *config.Config, now time.Time) {
	path := filepath.Join(cfg.Gateway.Data, attemptsFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	all := map[string]attempt{}
	if err == nil {
		err = json.Unmarshal(b, &all)
	}
	if err != nil {
		gw.log.Error("not known which configurations of uplinks were on trial, those of the file are used", "path", path, "err", err)
		return
	}
	gw.attempts = b
	cfg.Uplinks = maps.Clone(cfg.Uplinks)
	for _, name := range sorted(all) {
		gw.resumeAttempt(cfg, name, all[name], now)
	}
	gw.cfg = *cfg
	gw.keepAttempts()
}

func (gw *gateway) resumeAttempt(cfg *config.Config, name string, a attempt, now time.Time) {
	settings, there := cfg.Uplinks[name]
	if !there || fingerprint(&settings) != a.Tried {
		gw.log.Info("configuration of the uplink has changed since it was on trial, that of the file is used", "uplink", name)
		return
	}
	good := uplink.DefaultOptions() // for keys that were not known then
	err := json.Unmarshal(a.Good, &good)
	good.Gateway = settings.Gateway
	if err == nil {
		err = good.Validate()
	}
	if err != nil {
		gw.log.Error("last good configuration of the uplink not understood, that of the file is used", "uplink", name, "err", err)
		return
	}
	if a.Why == "" {
		gw.log.Warn("changed configuration of the uplink is still on trial", "uplink", name, "for", settings.Confirm)
		if gw.trials == nil {
			gw.trials = map[string]trial{}
		}
		gw.trials[name] = trial{good: good, until: now.Add(settings.Confirm)}
		return
	}
	gw.log.Error("uplink starts with its last good configuration: that of the file did not come up before the restart", "uplink", name, "reason", a.Why)
	cfg.Uplinks[name] = good
	gw.takeBack(name, takenBack{tried: a.Tried, good: good, why: a.Why, said: fmt.Sprintf(
		"its configuration in the file did not come up before the restart (%s); the last one that did is in use until the file changes, or a reload tries it again", a.Why)})
}

// takeBack notes that an uplink does not have the configuration of the file.
func (gw *gateway) takeBack(name string, r takenBack) {
	gw.update(func() {
		if gw.reverted == nil {
			gw.reverted = map[string]takenBack{}
		}
		gw.reverted[name] = r
	})
}
