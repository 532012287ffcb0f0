package main

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"holdfast/broker"
	"holdfast/broker/access"
	"holdfast/cmd/holdfast/config"
)

// reloadStatus says how the latest reload went.
type reloadStatus struct {
	Count     uint64    `json:"count"`
	Failures  uint64    `json:"failures"`
	LastAt    time.Time `json:"last_at,omitzero"`
	LastError string    `json:"last_error,omitempty"`
	// Reverts counts changed configurations of uplinks that did not come up
	// and were taken back.
	Reverts uint64 `json:"reverts"`
	// Reverted says why, by uplink, until the next reload.
	Reverted map[string]string `json:"reverted,omitempty" metric:"-"`
	// Waiting are the sections of the file whose changes wait for a restart.
	Waiting []string `json:"waiting_for_restart,omitempty"`
}

// reload reads the configuration again and applies what can be changed while
// running. A file with a mistake changes nothing.
func (gw *gateway) reload(life, patience context.Context, load func() (config.Config, error)) {
	gw.sup.reloading()
	err := gw.applyReload(life, patience, load)
	gw.update(func() {
		gw.reloads.Count++
		gw.reloads.LastAt = time.Now()
		gw.reloads.LastError = ""
		if err != nil {
			gw.reloads.Failures++
			gw.reloads.LastError = err.Error()
		}
	})
	if err != nil {
		gw.log.Error("configuration not reloaded", "err", err)
	} else {
		gw.log.Info("configuration reloaded")
	}
	gw.sup.ready(gw.summary())
}

func (gw *gateway) applyReload(life, patience context.Context, load func() (config.Config, error)) error {
	cfg, err := load()
	if err != nil {
		return err
	}
	rules, err := cfg.AccessRules()
	if err != nil {
		return err
	}
	old := gw.cfg
	fixed := fixedKeys(&old, &cfg)
	if len(fixed) > 0 {
		gw.log.Warn("changes wait for a restart", "keys", strings.Join(fixed, " "))
		cfg.Gateway, cfg.Broker, cfg.Store, cfg.Readings, cfg.Control, cfg.Log = old.Gateway, old.Broker, old.Store, old.Readings, old.Control, old.Log
		cfg.Resolve()
	}
	// Before the listeners: a new one may be meant for the new users.
	before := gw.g.access.Replace(rules)
	trialsBefore := gw.trials
	gw.trials = gw.trialsFor(&cfg)
	if err := gw.reconcile(life, patience, cfg); err != nil {
		gw.trials = trialsBefore
		gw.g.access.Replace(before)
		gw.g.broker.Reauthorize()
		back := gw.reconcile(life, patience, old)
		return errors.Join(fmt.Errorf("%w (went back to the previous configuration)", err), back)
	}
	gw.settle(time.Now())
	gw.update(func() { gw.reloads.Waiting = fixed })
	gw.enforce(rules, before, &old, &cfg)
	return nil
}

// enforce applies new rights to the clients that are connected: those who could
// not connect any more as they are have to do it again, those of a listener
// that is gone or has changed too, and what the others may receive is asked
// anew.
func (gw *gateway) enforce(rules, before *access.Rules, old, fresh *config.Config) {
	changed := map[string]bool{}
	now := listenersByAddress(fresh.Listeners)
	for _, l := range old.Listeners {
		changed[l.Label()] = !reflect.DeepEqual(now[l.Address], l)
	}
	gw.g.broker.Reauthorize()
	n := gw.g.broker.Revoke(func(id broker.Identity) bool { return changed[id.Listener] || rules.Revokes(before, id) })
	if n > 0 {
		gw.log.Warn("clients have to log in again", "clients", n)
	}
	if n := gw.g.broker.Redirect(); n > 0 {
		gw.log.Info("clients sent to another server", "clients", n)
	}
}

// fixedKeys names the sections that differ but are read only at the start.
func fixedKeys(old, fresh *config.Config) []string {
	var keys []string
	for key, pair := range map[string][2]any{
		"gateway":  {old.Gateway, fresh.Gateway},
		"broker":   {old.Broker, fresh.Broker},
		"store":    {old.Store, fresh.Store},
		"readings": {old.Readings, fresh.Readings},
		"control":  {old.Control, fresh.Control},
		"log":      {old.Log, fresh.Log},
	} {
		if !reflect.DeepEqual(pair[0], pair[1]) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}
