//go:build powercut

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"holdfast/storeforward/uplink/relaytest"
)

// The real daemon on a real file system, and the power goes: 4 publishers of
// QoS 1 and 2, an offline subscriber with a persistent session, and a cloud
// behind a link that comes and goes. The cloud is on the same disk, so that
// both are cut at the same instant. At every cut the publishers' memories are
// noted together with the place in the log of the disk; later each cut is
// brought back to life: ext4 recovers, both daemons start, the publishers
// resume where they were, and the subscribers here and at the cloud must get
// everything that was acknowledged, in order, QoS 2 once.
func TestPowerCut(t *testing.T) {
	lost := powerCuts(t, number("HOLDFAST_CUTS", 100), "full")
	for _, l := range lost {
		t.Error(l)
	}
}

// Commits that are not flushed must be found out.
func TestPowerCutHasTeeth(t *testing.T) {
	if lost := powerCuts(t, number("HOLDFAST_TEETH", 15), "normal"); len(lost) == 0 {
		t.Error("sync = \"normal\" lost nothing: this test proves nothing")
	} else {
		t.Logf("sync = \"normal\": %d cuts with losses, such as: %s", len(lost), lost[0])
	}
}

// moment is one cut: what the publishers know and how much the disk was told.
type moment struct {
	written  uint64
	memories []memory
}

const linkSwing = 1500 * time.Millisecond

func powerCuts(t *testing.T, cuts int, sync string) (lost []string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this needs root: it mounts file systems")
	}
	binary := buildBinary(t)
	rig := startRecorder(t)
	// The gateway knows its session at the cloud by the address.
	link := freeAddress(t)
	memories := []*memory{{name: "a1", qos: 1}, {name: "b1", qos: 1}, {name: "a2", qos: 2}, {name: "b2", qos: 2}}
	moments := record(t, rig, binary, link, sync, memories, cuts)
	for i := range memories {
		t.Logf("%s: %d sent, %d acknowledged", memories[i].name, memories[i].next, memories[i].acked)
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	p := rig.replay(t)
	duplicates, unflushed := 0, 0
	for i, m := range moments {
		if err := p.to(m.written); err != nil {
			t.Fatal(err)
		}
		image := filepath.Join(rig.dir, "cut.img")
		kept, gone, err := p.cut(t.Context(), image, rnd)
		if err != nil {
			t.Fatal(err)
		}
		unflushed += kept + gone
		ok := t.Run(fmt.Sprintf("cut %d", i), func(t *testing.T) {
			d, problem := revive(t, binary, link, image, m.memories)
			duplicates += d
			if problem != "" {
				lost = append(lost, fmt.Sprintf("cut %d at entry %d, %d unflushed writes kept and %d lost: %s", i, m.written, kept, gone, problem))
			}
		})
		if !ok {
			t.Fatalf("cut %d did not come back", i)
		}
	}
	t.Logf("%d cuts, %d with losses; %d QoS 1 duplicates, %d unflushed writes at the cuts", len(moments), len(lost), duplicates, unflushed)
	return lost
}

func buildBinary(t *testing.T) string {
	t.Helper()
	if b := os.Getenv("HOLDFAST_BINARY"); b != "" {
		return b
	}
	binary := filepath.Join(t.TempDir(), "holdfast")
	if _, err := command(t.Context(), "go", "build", "-trimpath", "-buildvcs=false", "-tags", "netgo osusergo sqlite_omit_load_extension nethttpomithttp2", "-o", binary, "."); err != nil {
		t.Fatal(err)
	}
	return binary
}

// record runs everything on the recorded disk and notes the moments.
func record(t *testing.T, rig *recorder, binary, link, sync string, memories []*memory, cuts int) (moments []moment) {
	t.Helper()
	s := startSite(t, binary, link, rig.mount, sync)
	defer s.kill()
	for _, sub := range [][2]string{{s.gateway, "offline"}, {s.cloud, "backend"}} {
		if err := subscribe(t.Context(), sub[0], sub[1], "up/#"); err != nil {
			t.Fatal(err)
		}
	}
	var w world
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var wg waitGroup
	defer wg.Wait()
	defer stop()
	wg.Go(func() {
		if err := swing(ctx, s.link, linkSwing); err != nil && ctx.Err() == nil {
			t.Error(err)
		}
	})
	for _, m := range memories {
		wg.Go(func() {
			if err := m.publish(ctx, &w, s.gateway, 1<<30, 20, 8*time.Millisecond); err != nil && ctx.Err() == nil {
				t.Errorf("publisher %s: %v\n%s", m.name, err, s.out.String())
			}
		})
	}
	rnd := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 1))
	timer := time.NewTimer(time.Second)
	defer timer.Stop()
	for len(moments) < cuts && !t.Failed() {
		<-timer.C
		w.Lock()
		var at moment
		for _, m := range memories {
			at.memories = append(at.memories, m.clone())
		}
		n, err := rig.written()
		w.Unlock()
		if err != nil {
			t.Fatal(err)
		}
		at.written = n
		moments = append(moments, at)
		timer.Reset(time.Duration(rnd.IntN(250)) * time.Millisecond)
	}
	return moments
}

// revive brings the world back after a cut and says what is missing.
func revive(t *testing.T, binary, link, image string, at []memory) (duplicates int, problem string) {
	t.Helper()
	dir := t.TempDir()
	mountAt(t, attachLoop(t, image), dir)
	s := startSite(t, binary, link, dir, "full")
	defer s.kill()
	want := map[string]*memory{}
	var w world
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for i := range at {
		m := at[i].clone()
		want[m.topic()] = &m
		if err := m.publish(ctx, &w, s.gateway, m.next+5, 20, time.Millisecond); err != nil {
			t.Fatalf("%v\n%s", err, s.out.String())
		}
	}
	for _, sub := range [][2]string{{s.gateway, "offline"}, {s.cloud, "backend"}} {
		a, err := collect(ctx, sub[0], sub[1], want)
		switch {
		case err != nil && len(a.problems) == 0:
			return duplicates, fmt.Sprintf("%s: %v", sub[1], err)
		case len(a.problems) > 0:
			return duplicates, sub[1] + ": " + a.summary()
		}
		duplicates += a.duplicates
	}
	return duplicates, ""
}

type waitGroup = sync.WaitGroup

// site is a gateway and its cloud, with their data in one folder.
type site struct {
	gateway, cloud string
	link           *relaytest.Relay
	commands       []*exec.Cmd
	out            lockedBuffer
	stop           func()
}

func startSite(t *testing.T, binary, link, disk, sync string) *site {
	t.Helper()
	s := &site{gateway: freeAddress(t), cloud: freeAddress(t)}
	var err error
	if s.link, err = relaytest.NewAt(t.Context(), link, s.cloud, relaytest.Options{}); err != nil {
		t.Fatal(err)
	}
	s.stop = s.link.Close
	conf := t.TempDir()
	for name, text := range map[string]string{
		"cloud": "[[listener]]\naddress = \"tcp://" + s.cloud + "\"\n",
		"gateway": "[[listener]]\naddress = \"tcp://" + s.gateway + "\"\n[uplink.cloud]\nurl = \"mqtt://" + s.link.Address() + "\"\n" +
			"client_id = \"gateway\"\nreconnect_min = \"200ms\"\nreconnect_max = \"400ms\"\n" +
			"[[uplink.cloud.route]]\ndirection = \"out\"\nfilter = \"up/#\"\nqos = 2\n",
	} {
		file := filepath.Join(conf, name+".toml")
		text = "[gateway]\nid = \"" + name + "\"\ndata = \"" + filepath.Join(disk, name) + "\"\n[control]\nsocket = \"" + conf + "/" + name + ".sock\"\n[store]\nsync = \"" + sync + "\"\n" + text
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c := exec.Command(binary, "run", "--config", file)
		c.Stdout, c.Stderr = &s.out, &s.out
		c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		s.commands = append(s.commands, c)
	}
	for _, addr := range []string{s.gateway, s.cloud} {
		waitUntil(t, "the daemons", func() bool {
			c, err := net.Dial("tcp", addr)
			if err == nil {
				_ = c.Close()
			}
			return err == nil
		})
	}
	return s
}

func (s *site) kill() {
	for _, c := range s.commands {
		_ = c.Process.Kill()
		_ = c.Wait()
	}
	s.stop()
}

// swing takes the link down and up again.
func swing(ctx context.Context, link *relaytest.Relay, every time.Duration) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		for _, change := range []func() error{func() error { link.Refuse(); return nil }, link.Restore} {
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
			if err := change(); err != nil {
				return err
			}
		}
	}
}
