package storeforward

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"holdfast/broker/durable"
	"holdfast/storeforward/storetest"
)

// stageChildEnv makes the test binary a process that is killed in a certain stage of
// the database in its working directory.
const stageChildEnv = "HOLDFAST_STAGE_CHILD"

// stageChild says "start" when the stage begins and "end" when it is over.
func stageChild(stage string) {
	const path = "holdfast.db"
	o := DefaultOptions()
	o.Path, o.WALBytes, o.ReserveBytes = path, 64<<10, 0
	ctx, log := context.Background(), slog.New(slog.DiscardHandler)
	if stage == "open" || stage == "backup" {
		fmt.Println("start")
	}
	var err error
	var s *Store
	if stage == "backup" {
		err = Backup(ctx, path, path+".copy", nil)
	} else {
		s, err = Open(ctx, o, log)
	}
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	switch stage {
	case "drain": // checkpoints and vacuum while everything leaves
		fmt.Println("start")
		for id := durable.QueueID(1); id < 10; id++ {
			if s.Attach(id, &taker{}) != nil {
				continue
			}
			for {
				ds, live, err := s.Read(ctx, id, 1, 100, 1<<20)
				if err != nil || live {
					break
				}
				for _, d := range ds {
					s.Acked(id, d.Seq)
				}
			}
		}
		for s.Status().FileBytes > 3<<20 { // until the space has been given back
			<-time.After(time.Millisecond)
		}
	case "checkpoint":
		fmt.Println("start")
		for range 200 {
			s.tendLog()
			done := make(chan error, 1)
			err := s.Append(msg("more", strings.Repeat("y", 2000)), claimFor(1, 1), durable.Origin{}, func(err error) { done <- err })
			if err == nil {
				err = <-done
			}
			if err != nil {
				fmt.Println("error", err)
				os.Exit(1)
			}
		}
	}
	fmt.Println("end")
	select {}
}

// killInStage starts a process in a stage and kills it at a random moment of it, or after.
// It returns how long the stage took, 0 when it was not over.
func killInStage(t *testing.T, stage, path string, longest time.Duration) time.Duration {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), stageChildEnv+"="+stage)
	cmd.Dir = filepath.Dir(path)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	var took time.Duration
	var began time.Time
	for lines := bufio.NewScanner(out); lines.Scan(); {
		switch line := lines.Text(); line {
		case "start":
			began = time.Now()
			if longest > 0 {
				defer time.AfterFunc(time.Duration(rand.Int64N(int64(longest))), func() { _ = cmd.Process.Kill() }).Stop()
			}
		case "end":
			took = time.Since(began)
			_ = cmd.Process.Kill()
		default:
			t.Errorf("%s: %s", stage, line)
			_ = cmd.Process.Kill()
		}
	}
	_ = cmd.Wait() // killed, as it should be
	return took
}

const largeMessages = 10_000

// largeImage is a database that gives space back when it is drained.
func largeImage(t *testing.T) []byte {
	t.Helper()
	o := onFile(t)
	s := open(t, o)
	q := uplink(t, s)
	var last *outcome
	for i := range largeMessages {
		last = put(t, s, msg("a", strconv.Itoa(i)+strings.Repeat(".", 1000)), claimFor(q, 1), durable.Origin{})
	}
	if err := last.wait(t); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	b, err := os.ReadFile(o.Path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A process that is killed in the middle of a migration, a checkpoint, a vacuum, a
// salvage or a backup leaves what it had.
func TestKillInEveryStage(t *testing.T) {
	whole := onFile(t)
	want := manyRows(t, whole)
	image, err := os.ReadFile(whole.Path)
	if err != nil {
		t.Fatal(err)
	}
	broken := slices.Clone(image)
	copy(broken, bytes.Repeat([]byte{0xA5}, 4096))
	large := largeImage(t)
	tests := map[string]struct {
		stage string
		image []byte
		check func(t *testing.T, path string, s *Store)
	}{
		"migration": {"open", unpacked(t, fixture(1)), func(t *testing.T, _ string, s *Store) { t.Helper(); checkFull(t, s, 1) }},
		"salvage": {"open", broken, func(t *testing.T, _ string, s *Store) {
			t.Helper()
			if got := payloadsFor(t, s, "another"); !slices.Equal(got, want) {
				t.Errorf("%d of %d messages", len(got), len(want))
			}
			checkDeliveries(t, s, 1, 2)
			checkKept(t, s, 1, 2, 1)
		}},
		"checkpoint": {"checkpoint", image, func(t *testing.T, _ string, s *Store) {
			t.Helper()
			if got := payloadsFor(t, s, "another"); !slices.Equal(got, want) {
				t.Errorf("%d of %d messages", len(got), len(want))
			}
		}},
		"drain and vacuum": {"drain", large, func(t *testing.T, _ string, s *Store) {
			t.Helper()
			got := payloadsFor(t, s, "cloud")
			for i, p := range got {
				if n, _ := strconv.Atoi(strings.TrimRight(p, ".")); n != largeMessages-len(got)+i {
					t.Fatalf("message %d of the last %d is %.10s", i, len(got), p)
				}
			}
		}},
		"backup": {"backup", image, func(t *testing.T, path string, s *Store) {
			t.Helper()
			if got := payloadsFor(t, s, "another"); !slices.Equal(got, want) {
				t.Errorf("%d of %d messages", len(got), len(want))
			}
			if _, err := os.Stat(path + ".copy"); err != nil {
				return // not whole, so not there
			}
			o := onFile(t)
			if err := os.Rename(path+".copy", o.Path); err != nil {
				t.Fatal(err)
			}
			c := open(t, o)
			defer closeStore(t, c)
			if got := payloadsFor(t, c, "another"); !slices.Equal(got, want) || c.Status().SetAside != "" {
				t.Errorf("the copy has %d of %d messages", len(got), len(want))
			}
		}},
	}
	rounds := 10
	if testing.Short() {
		rounds = 2
	}
	for name, x := range tests {
		t.Run(name, func(t *testing.T) {
			longest, cut := time.Duration(0), 0
			for range rounds + 1 {
				o := onFile(t)
				if err := os.WriteFile(o.Path, x.image, 0o600); err != nil {
					t.Fatal(err)
				}
				took := killInStage(t, x.stage, o.Path, longest)
				if longest == 0 {
					longest = took // the first runs to its end
				}
				if took == 0 {
					cut++
					if rand.IntN(2) == 0 { // and once more
						killInStage(t, x.stage, o.Path, longest)
					}
				}
				s := open(t, o)
				x.check(t, o.Path, s)
				closeStore(t, s)
				if _, err := os.Stat(s.salvagePath()); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("the salvage has not ended: %v", err)
				}
				if aside, _ := filepath.Glob(o.Path + ".aside-*"); name == "salvage" && len(aside) != 1 || name != "salvage" && len(aside) != 0 {
					t.Errorf("set aside: %v", aside)
				}
			}
			t.Logf("%d of %d were killed in the middle of %v", cut, rounds, longest)
		})
	}
}

// The power fails at any call of a migration or of a salvage: the next start does the
// rest, and nothing is lost.
func TestPowerCutInMigrationAndSalvage(t *testing.T) {
	o, disk := onDisk(t)
	seeded(t, o, 300)
	size, err := disk.Size(o.Path)
	if err != nil {
		t.Fatal(err)
	}
	image, err := disk.ReadFile(o.Path)
	if err != nil {
		t.Fatal(err)
	}
	at := size / 2 / 4096 * 4096
	copy(image[at:], bytes.Repeat([]byte{0xFF}, 4096))
	whole := onFile(t) // what a salvage that nothing disturbs saves
	whole.Disk, whole.Path = plugged(t, image)
	s := open(t, whole)
	least, _ := s.Held()
	if least < 100 || s.Status().SetAside == "" {
		t.Fatalf("%d saved", least)
	}
	closeStore(t, s)
	tests := map[string]struct {
		image []byte
		check func(t *testing.T, s *Store)
	}{
		"migration": {unpacked(t, fixture(1)), func(t *testing.T, s *Store) { t.Helper(); checkFull(t, s, 1) }},
		"salvage": {image, func(t *testing.T, s *Store) {
			t.Helper()
			if n, _ := s.Held(); n != least {
				t.Errorf("%d messages saved, %d without a cut", n, least)
			}
		}},
	}
	for name, x := range tests {
		t.Run(name, func(t *testing.T) {
			cuts := 0
			for seed := range uint64(60) {
				r := rand.New(rand.NewPCG(seed, 7))
				o := DefaultOptions()
				o.ReserveBytes, o.RetryMin = 0, time.Millisecond
				o.Disk, o.Path = plugged(t, x.image)
				for range 1 + r.IntN(3) {
					disk, ok := o.Disk.(*storetest.Disk)
					if !ok {
						t.Fatal("not that disk")
					}
					disk.CutAfter(r.IntN(120))
					if s, err := Open(t.Context(), o, slog.New(slog.DiscardHandler)); err == nil {
						_ = s.Close() // it may be without power
					} else {
						cuts++
					}
					next := disk.Cut(r)
					t.Cleanup(next.Unplug)
					o.Disk, o.Path = next, next.Path("holdfast.db")
				}
				s := open(t, o)
				x.check(t, s)
				closeStore(t, s)
				if t.Failed() {
					t.Fatalf("seed %d", seed)
				}
			}
			t.Logf("%d starts were cut", cuts)
			if cuts < 20 {
				t.Errorf("only %d starts were cut", cuts)
			}
		})
	}
}

// plugged is a disk with a database.
func plugged(t *testing.T, image []byte) (Disk, string) {
	t.Helper()
	disk := storetest.NewDisk()
	t.Cleanup(disk.Unplug)
	path := disk.Path("holdfast.db")
	disk.Corrupt(path, 0, image)
	return disk, path
}
