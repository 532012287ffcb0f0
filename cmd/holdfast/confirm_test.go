package main

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/cmd/holdfast/config"
	"holdfast/storeforward/uplink"
)

// confirmRig is a gateway with two uplinks that are up; the test changes one.
type confirmRig struct {
	t     *testing.T
	gw    *gateway
	file  string
	other *running
}

func newConfirmRig(t *testing.T) *confirmRig {
	t.Helper()
	r := &confirmRig{t: t, file: filepath.Join(t.TempDir(), "h.toml")}
	elsewhere := silentCloud(t)
	text := "[[listener]]\naddress = \"tcp://127.0.0.1:0\"\n[uplink.other]\nurl = \"mqtt://" + elsewhere + "\"\nclient_id = \"other\"\nstop_timeout = \"0s\"\n"
	if err := os.WriteFile(r.file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	r.gw = reloadable(t, r.file)
	r.other = r.gw.uplinks["other"]
	return r
}

// writeKeys lays the uplink's keys over the file.
func (r *confirmRig) writeKeys(keys string) {
	r.t.Helper()
	dropin := strings.TrimSuffix(r.file, ".toml") + ".d"
	if err := os.MkdirAll(dropin, 0o700); err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dropin, "cloud.toml"), []byte("[uplink.cloud]\n"+keys+"\n"), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// reload lays the uplink's keys over the file and takes it over.
func (r *confirmRig) reload(keys string) {
	r.t.Helper()
	r.writeKeys(keys)
	data := r.gw.cfg.Gateway.Data
	if err := r.gw.applyReload(r.t.Context(), r.t.Context(), func() (config.Config, error) { return loadConfig(r.file, data, nil) }); err != nil {
		r.t.Fatal(err)
	}
	if r.gw.uplinks["other"] != r.other {
		r.t.Fatal("the other uplink was touched")
	}
}

func (r *confirmRig) confirm(later time.Duration) {
	r.t.Helper()
	r.gw.confirm(r.t.Context(), r.t.Context(), time.Now().Add(later))
	if r.gw.uplinks["other"] != r.other {
		r.t.Fatal("the other uplink was touched")
	}
}

func (r *confirmRig) up() {
	r.t.Helper()
	waitUntil(r.t, "the uplink", func() bool { return r.gw.uplinks["cloud"].upFor() > 0 })
}

// failed waits for an attempt that did.
func (r *confirmRig) failed() {
	r.t.Helper()
	waitUntil(r.t, "an attempt that fails", func() bool {
		return r.gw.uplinks["cloud"].status().(uplink.Status).Reason != ""
	})
}

func (r *confirmRig) url() string {
	return r.gw.uplinks["cloud"].settings.(uplink.Options).URL
}

// proven pretends that the uplink has been up for long.
func (r *confirmRig) proven() {
	r.gw.uplinks["cloud"].upFor = func() time.Duration { return time.Hour }
}

func (r *confirmRig) problem() string {
	for _, p := range r.gw.snapshot().Problems {
		if strings.Contains(p, "its changed configuration") {
			return p
		}
	}
	return ""
}

// A change that keeps the uplink from coming up is taken back, said, and tried
// again by the next reload; nothing else is touched.
func TestChangeThatLocksOutIsTakenBack(t *testing.T) {
	r := newConfirmRig(t)
	good := "url = \"mqtt://" + silentCloud(t) + "\"\nstop_timeout = \"0s\"\nconfirm = \"10s\""
	bad := "url = \"mqtt://127.0.0.1:1\"\nconfirm = \"10s\""
	r.reload(good)
	r.up()
	was := r.url()

	for i := range 2 { // the second time by a reload of the same file
		r.reload(bad)
		if r.url() == was || len(r.gw.trials) != 1 {
			t.Fatalf("round %d: url %s, %d on trial", i, r.url(), len(r.gw.trials))
		}
		if p := r.problem(); p != "" {
			t.Errorf("round %d: said before the time: %s", i, p)
		}
		r.failed()
		r.confirm(8 * time.Second)
		if r.url() == was {
			t.Errorf("round %d: taken back before the time", i)
		}
		r.confirm(11 * time.Second)
		if r.url() != was || len(r.gw.trials) != 0 {
			t.Fatalf("round %d: url %s, %d on trial", i, r.url(), len(r.gw.trials))
		}
		r.up()
		if p := r.problem(); !strings.HasPrefix(p, "uplink cloud: its changed configuration did not come up within 10s (") || !strings.Contains(p, "connection refused") {
			t.Errorf("round %d: problem %q", i, p)
		}
		if n := r.gw.snapshot().Reloads.Reverts; n != uint64(i+1) {
			t.Errorf("reverts %d, want %d", n, i+1)
		}
	}

	// Bad on bad: what was good stays what is gone back to.
	r.reload(bad)
	r.reload(bad + "\nkeep_alive = \"30s\"")
	r.confirm(11 * time.Second)
	if r.url() != was {
		t.Errorf("url %s, want the last that was up", r.url())
	}
	// Taken back by hand.
	r.up()
	r.reload(bad)
	r.reload(good)
	if len(r.gw.trials) != 0 || r.problem() != "" {
		t.Errorf("%d on trial, problem %q", len(r.gw.trials), r.problem())
	}
}

func TestChangeThatWorksStays(t *testing.T) {
	r := newConfirmRig(t)
	r.reload("url = \"mqtt://" + silentCloud(t) + "\"\nstop_timeout = \"0s\"\nconfirm = \"10s\"")
	r.up()
	r.reload("url = \"mqtt://" + silentCloud(t) + "\"\nstop_timeout = \"0s\"\nconfirm = \"10s\"")
	is := r.url()
	r.up()
	r.confirm(time.Second)
	if len(r.gw.trials) != 1 {
		t.Error("one moment of being up was taken for proof")
	}
	r.proven()
	r.confirm(time.Second)
	r.confirm(time.Hour)
	if r.url() != is || r.problem() != "" || len(r.gw.trials) != 0 {
		t.Errorf("url %s, want %s; problem %q", r.url(), is, r.problem())
	}
}

func TestChangesThatAreNotOnTrial(t *testing.T) {
	tests := map[string]struct {
		before string // empty: a cloud that is up
		change string
	}{
		"the link was down before": {before: "url = \"mqtt://127.0.0.1:1\"", change: "url = \"mqtt://127.0.0.1:2\""},
		"the operator says so":     {change: "url = \"mqtt://127.0.0.1:1\"\nconfirm = \"0s\""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := newConfirmRig(t)
			if tt.before == "" {
				r.reload("url = \"mqtt://" + silentCloud(t) + "\"\nstop_timeout = \"0s\"")
				r.up()
			} else {
				r.reload(tt.before)
			}
			r.reload(tt.change)
			is := r.url()
			r.confirm(time.Hour)
			if r.url() != is || r.problem() != "" {
				t.Errorf("url %s, want %s; problem %q", r.url(), is, r.problem())
			}
		})
	}
	t.Run("an uplink that is gone", func(t *testing.T) {
		r := newConfirmRig(t)
		r.reload("url = \"mqtt://" + silentCloud(t) + "\"\nstop_timeout = \"0s\"")
		r.up()
		r.reload("url = \"mqtt://127.0.0.1:1\"")
		if err := os.Remove(filepath.Join(strings.TrimSuffix(r.file, ".toml")+".d", "cloud.toml")); err != nil {
			t.Fatal(err)
		}
		data := r.gw.cfg.Gateway.Data
		if err := r.gw.applyReload(t.Context(), t.Context(), func() (config.Config, error) { return loadConfig(r.file, data, nil) }); err != nil {
			t.Fatal(err)
		}
		r.confirm(time.Hour)
		if names := sorted(r.gw.uplinks); !slices.Equal(names, []string{"other"}) {
			t.Errorf("uplinks %s", fmt.Sprint(names))
		}
	})
}

// restarted is the gateway of a process after this one, before anything starts.
func (r *confirmRig) restarted() (*gateway, config.Config) {
	r.t.Helper()
	data := r.gw.cfg.Gateway.Data
	cfg, err := loadConfig(r.file, data, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	gw := &gateway{log: r.gw.log, cfg: cfg}
	gw.resumeAttempts(&cfg, time.Now())
	if !reflect.DeepEqual(gw.cfg, cfg) {
		r.t.Error("the gateway has another configuration than what is built")
	}
	return gw, cfg
}

// A restart with the file that locked us out stays with what was good, until the
// file changes; what was on trial at the restart still is.
func TestTakenBackOverARestart(t *testing.T) {
	r := newConfirmRig(t)
	good := "url = \"mqtt://" + silentCloud(t) + "\"\nusername = \"u\"\npassword = \"secret\"\nstop_timeout = \"0s\"\nconfirm = \"10s\"\n" +
		"[[uplink.cloud.route]]\ndirection = \"out\"\nfilter = \"a/#\"\n"
	bad := "url = \"mqtt://127.0.0.1:1\"\nconfirm = \"10s\""
	r.reload(good)
	r.up()
	was := r.gw.uplinks["cloud"].settings.(uplink.Options)
	kept := filepath.Join(r.gw.cfg.Gateway.Data, attemptsFile)
	if _, err := os.Stat(kept); !os.IsNotExist(err) {
		t.Fatalf("%v before anything was on trial", err)
	}

	r.reload(bad)
	gw, cfg := r.restarted()
	if got := cfg.Uplinks["cloud"].URL; got != "mqtt://127.0.0.1:1" || len(gw.reverted) != 0 {
		t.Errorf("on trial: url %s, taken back %v", got, gw.reverted)
	}
	if on := gw.trials["cloud"]; !reflect.DeepEqual(on.good, was) || time.Until(on.until) > 10*time.Second {
		t.Errorf("on trial: %+v", on)
	}

	r.failed()
	r.confirm(11 * time.Second)
	r.up()
	if st, err := os.Stat(kept); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	for range 2 { // one restart after the other
		gw, cfg = r.restarted()
		if got := cfg.Uplinks["cloud"]; !reflect.DeepEqual(got, was) {
			t.Fatalf("after a restart: %+v, want %+v", got, was)
		}
		if said := gw.reverted["cloud"].said; !strings.Contains(said, "before the restart (") || !strings.Contains(said, "connection refused") {
			t.Errorf("said %q", said)
		}
	}

	// The next reload tries the file, and may lock us out again, up or not.
	gw.uplinks = map[string]*running{"cloud": {settings: was, upFor: func() time.Duration { return 0 }}}
	file, err := loadConfig(r.file, gw.cfg.Gateway.Data, nil)
	if err != nil {
		t.Fatal(err)
	}
	if trials := gw.trialsFor(&file); !reflect.DeepEqual(trials["cloud"].good, was) {
		t.Errorf("on trial by a reload: %+v", trials)
	}

	r.writeKeys(bad + "\nkeep_alive = \"30s\"")
	gw, cfg = r.restarted()
	if got := cfg.Uplinks["cloud"].URL; got == was.URL || len(gw.reverted) != 0 {
		t.Errorf("the file has changed: url %s, taken back %v", got, gw.reverted)
	}
	if _, err := os.Stat(kept); !os.IsNotExist(err) {
		t.Errorf("%v after the file has changed", err)
	}
}

// What is not understood does not keep the gateway from starting.
func TestBrokenNotesOfTrials(t *testing.T) {
	for name, text := range map[string]string{
		"torn":        `{"cloud": {"tri`,
		"good is not": `{"cloud": {"tried": "FINGERPRINT", "good": {"URL": "gopher://x"}, "why": "w"}}`,
		"no good":     `{"cloud": {"tried": "FINGERPRINT", "why": "w"}}`,
	} {
		t.Run(name, func(t *testing.T) {
			r := newConfirmRig(t)
			r.writeKeys("url = \"mqtt://127.0.0.1:1\"")
			file, err := loadConfig(r.file, r.gw.cfg.Gateway.Data, nil)
			if err != nil {
				t.Fatal(err)
			}
			settings := file.Uplinks["cloud"]
			text = strings.ReplaceAll(text, "FINGERPRINT", fingerprint(&settings))
			if err := os.WriteFile(filepath.Join(r.gw.cfg.Gateway.Data, attemptsFile), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			gw, cfg := r.restarted()
			if !reflect.DeepEqual(cfg, file) || len(gw.reverted)+len(gw.trials) != 0 {
				t.Errorf("%+v, %v, %v", cfg.Uplinks, gw.reverted, gw.trials)
			}
		})
	}
}
