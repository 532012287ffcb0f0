package storeforward

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"holdfast/broker/durable"
	"holdfast/broker/message"
)

func script(t testing.TB, path, sql string) {
	t.Helper()
	d, err := openDB(path, url.Values{})
	if err == nil {
		err = errors.Join(d.script(sql), d.close())
	}
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func TestNewerDatabaseIsRefusedUnchanged(t *testing.T) {
	o := onFile(t)
	closeStore(t, open(t, o))
	script(t, o.Path, "PRAGMA user_version = 99")
	before, err := os.ReadFile(o.Path)
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(context.Background(), o, slog.New(slog.DiscardHandler))
	if !errors.Is(err, ErrNewerVersion) || s != nil {
		t.Fatalf("open: %v, want ErrNewerVersion", err)
	}
	if after, err := os.ReadFile(o.Path); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the file has changed (%v)", err)
	}
	if files, _ := filepath.Glob(o.Path + ".aside*"); len(files) != 0 {
		t.Errorf("set aside: %v", files)
	}
}

func TestUnusableFilesAreSetAside(t *testing.T) {
	tests := map[string]func(t *testing.T, path string){
		"garbage": func(t *testing.T, path string) {
			t.Helper()
			if err := os.WriteFile(path, bytes.Repeat([]byte("garbage "), 1000), 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"all zeros": func(t *testing.T, path string) {
			t.Helper()
			if err := os.WriteFile(path, make([]byte, 8192), 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"somebody else's database": func(t *testing.T, path string) {
			t.Helper()
			script(t, path, "CREATE TABLE theirs (x); INSERT INTO theirs VALUES (1)")
		},
	}
	for name, spoil := range tests {
		t.Run(name, func(t *testing.T) {
			o := onFile(t)
			spoil(t, o.Path)
			before, err := os.ReadFile(o.Path)
			if err != nil {
				t.Fatal(err)
			}
			s := open(t, o)
			defer closeStore(t, s)
			st := s.Status()
			if after, err := os.ReadFile(st.SetAside); err != nil || !bytes.Equal(before, after) {
				t.Errorf("set aside as %q: %v, or it has changed", st.SetAside, err)
			}
			q := uplink(t, s)
			if err := put(t, s, msg("a", "1"), claimFor(q, 1), durable.Origin{}).wait(t); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestDamagedDatabaseIsSalvaged(t *testing.T) {
	o, disk := onDisk(t)
	s := open(t, o)
	q := uplink(t, s)
	const n = 3000
	for i := range n {
		m := msg(fmt.Sprintf("topic/%d", i), strings.Repeat("x", 100))
		if o := put(t, s, m, claimFor(q, 1), durable.Origin{}); i%500 == 499 {
			if err := o.wait(t); err != nil {
				t.Fatal(err)
			}
		}
	}
	set := newOutcome()
	s.SetSessionState(q, "epoch 1", set.done)
	if err := set.wait(t); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	// In the middle, where the messages are, not at the schema.
	size, err := disk.Size(o.Path)
	if err != nil {
		t.Fatal(err)
	}
	at := size / 2 / 4096 * 4096
	disk.Corrupt(o.Path, at, bytes.Repeat([]byte{0xFF}, 3*4096))
	s = open(t, o)
	defer closeStore(t, s)
	st := s.Status()
	if st.SetAside == "" {
		t.Fatal("not set aside")
	}
	got, _ := s.Backlog(q)
	t.Logf("%d of %d messages: %s", got, n, st.Salvaged)
	if got < n*8/10 || got >= n {
		t.Errorf("%d of %d messages saved, want most of them", got, n)
	}
	if state := s.SessionState(q); state != "" {
		t.Errorf("session state %q survived, want none", state)
	}
}

// Messages do not age while the power is off, unless both clocks can be trusted.
func TestLifetimesAcrossRestarts(t *testing.T) {
	for name, trusted := range map[string]bool{"clock trusted": true, "clock not trusted": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o, disk := onDisk(t)
				o.ClockSynchronised = func() bool { return trusted }
				s := open(t, o)
				q := uplink(t, s)
				m := &message.Message{Topic: "r", QoS: 1, Retain: true, Payload: []byte("x"), HasExpiry: true, Expiry: 3600, Received: time.Now()}
				if err := put(t, s, m, claimFor(q, 1), durable.Origin{}).wait(t); err != nil {
					t.Fatal(err)
				}
				s.CreateSession("alice", 7200, nil)
				wait(10 * time.Minute)
				closeStore(t, s)
				off := time.Now()
				wait(20 * time.Minute)
				s = open(t, o)
				if floor := s.ClockFloor(); trusted && !floor.Equal(off.Truncate(time.Microsecond)) || !trusted && !floor.IsZero() {
					t.Errorf("clock floor %v, the power went off at %v", floor, off)
				}
				wait(5 * time.Minute)
				want := uint32(45 * 60)
				if trusted {
					want = 25 * 60
				}
				if err := s.Attach(q, &taker{}); err != nil {
					t.Fatal(err)
				}
				ds, _, err := s.Read(context.Background(), q, 1, 1, 1000)
				if err != nil || len(ds) != 1 {
					t.Fatalf("read %v, %v", ds, err)
				}
				if left, alive := ds[0].Message.Remaining(time.Now()); !alive || left != want {
					t.Errorf("%d s left (%v), want %d", left, alive, want)
				}
				sessions, err := s.Sessions(context.Background())
				if err != nil || len(sessions) != 1 {
					t.Fatalf("sessions %v, %v", sessions, err)
				}
				offline := 5 * time.Minute // since it was last known to be open
				if trusted {
					offline = 25 * time.Minute
				}
				if got := time.Since(sessions[0].Offline); got.Round(time.Minute) != offline {
					t.Errorf("offline for %v, want %v", got, offline)
				}
				wait(time.Hour)
				n := 0
				if err := s.Retained(context.Background(), func(*message.Message) error { n++; return nil }); err != nil || n != 0 {
					t.Errorf("%d retained messages after their expiry, %v", n, err)
				}
				closeStore(t, s)
				_ = disk
			})
		})
	}
}

// A clock that jumps while running disturbs nothing: stored times follow the
// monotonic clock.
func TestOfflineTimeOfSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, disk := onDisk(t)
		s := open(t, o)
		q := s.CreateSession("alice", 7200, nil)
		wait(time.Minute)
		answered := newOutcome()
		s.UpdateSession(q, 7200, false, answered.done)
		if !answered.called() {
			t.Error("an unchanged session waits for the disk")
		}
		wait(10 * time.Minute)
		next := disk.Cut(rand.New(rand.NewPCG(1, 2)))
		_ = s.Close()
		o.Disk, o.Path = next, next.Path("holdfast.db")
		s = open(t, o)
		defer closeStore(t, s)
		sessions, err := s.Sessions(context.Background())
		if err != nil || len(sessions) != 1 {
			t.Fatalf("sessions %v, %v", sessions, err)
		}
		// The store wrote nothing since, so ten minutes are not known of.
		if got := time.Since(sessions[0].Offline); got > 11*time.Minute || got < 0 {
			t.Errorf("offline for %v", got)
		}
	})
}

func TestSpaceComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, disk := onDisk(t)
		s := open(t, o)
		defer closeStore(t, s)
		q := uplink(t, s)
		var last *outcome
		for range 200 {
			for range 50 {
				last = put(t, s, msg("a", strings.Repeat("x", 1000)), claimFor(q, 1), durable.Origin{})
			}
			if err := last.wait(t); err != nil {
				t.Fatal(err)
			}
		}
		r := &taker{}
		if err := s.Attach(q, r); err != nil {
			t.Fatal(err)
		}
		full := disk.Used()
		for live := false; !live; {
			ds, l, err := s.Read(context.Background(), q, 1, 100, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range ds {
				s.Acked(q, d.Seq)
			}
			live = l
		}
		wait(time.Minute)
		if n := rowsOf(t, s); n != 0 {
			t.Errorf("%d rows left", n)
		}
		if err := put(t, s, msg("a", "1"), claimFor(q, 1), durable.Origin{}).wait(t); err == nil {
			wait(time.Second)
		}
		st := s.Status()
		t.Logf("%d bytes with 10000 messages, then file %d and log %d", full, st.FileBytes, st.WALBytes)
		if st.FileBytes > full/3 {
			t.Errorf("the file has %d bytes after the drain of %d", st.FileBytes, full)
		}
		if st.WALBytes > 5*o.WALBytes {
			t.Errorf("the log has %d bytes, bound %d", st.WALBytes, o.WALBytes)
		}
	})
}

func TestValidateNamesTheKey(t *testing.T) {
	if err := DefaultOptions().Validate(); err != nil {
		t.Errorf("defaults: %v", err)
	}
	for key, change := range map[string]func(*Options){
		"store.path":             func(o *Options) { o.Path = "" },
		"store.commit_window":    func(o *Options) { o.CommitWindow = time.Hour },
		"store.max_memory_bytes": func(o *Options) { o.MaxMemoryBytes = 1 },
		"store.retry_max":        func(o *Options) { o.RetryMax = 0 },
	} {
		o := DefaultOptions()
		change(&o)
		if err := o.Validate(); err == nil || !strings.HasPrefix(err.Error(), key+":") {
			t.Errorf("%s: %v", key, err)
		}
	}
}

func TestMigrationsAreNumberedWithoutGaps(t *testing.T) {
	if list, err := loadMigrations(migrations); err != nil || len(list) == 0 {
		t.Errorf("our own: %d, %v", len(list), err)
	}
	files := fstest.MapFS{"migrations/0001_a.sql": {}, "migrations/0003_b.sql": {}}
	if _, err := loadMigrations(files); err == nil || !strings.Contains(err.Error(), "0003_b.sql: want number 0002") {
		t.Errorf("a gap: %v", err)
	}
}

// A migration that fails leaves the database at the version before it.
func TestFailingMigrationChangesNothing(t *testing.T) {
	o := onFile(t)
	closeStore(t, open(t, o))
	d, err := openDB(o.Path, url.Values{})
	if err != nil {
		t.Fatal(err)
	}
	list, err := loadMigrations(migrations)
	if err != nil {
		t.Fatal(err)
	}
	known := int64(len(list))
	list = append(list, migration{number: len(list) + 1, name: "x.sql", sql: "CREATE TABLE x (y); INSERT INTO nowhere VALUES (1)"})
	if err := migrate(d, list); err == nil || !strings.Contains(err.Error(), "migrate x.sql") {
		t.Errorf("migrate: %v", err)
	}
	version, err := d.queryInt("PRAGMA user_version")
	if err != nil || version != known || d.exec("SELECT y FROM x") == nil {
		t.Errorf("version %d, %v, or table x is there", version, err)
	}
	if err := d.close(); err != nil {
		t.Fatal(err)
	}
	closeStore(t, open(t, o))
}

func TestAwkwardPaths(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, path := range []string{"holdfast.db", "a b?c#d%41.db", "./x:y.db"} {
		o := DefaultOptions()
		o.Path = path
		s := open(t, o)
		uplink(t, s)
		closeStore(t, s)
		if _, err := os.Stat(path); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		if list, err := ListQueues(context.Background(), path); err != nil || len(list) != 1 {
			t.Errorf("%s: %v, %v", path, list, err)
		}
	}
}

// Numbers are reserved on disk even while nothing else is written.
func TestMarkStaysAhead(t *testing.T) {
	o := onFile(t)
	s := open(t, o)
	q := uplink(t, s)
	r := attachLive(t, s, q, 1)
	last := durable.Seq(0)
	for range seqBlock * 3 / 4 {
		if err := s.Append(msg("a", "1"), claimFor(q, 1), durable.Origin{}, nil); err != nil {
			t.Fatal(err)
		}
		last = r.take()[0].Seq
		s.Acked(q, last)
	}
	closeStore(t, s)
	s = open(t, o)
	defer closeStore(t, s)
	o1 := put(t, s, msg("a", "1"), claimFor(q, 1), durable.Origin{})
	r = &taker{}
	if err := s.Attach(q, r); err != nil {
		t.Fatal(err)
	}
	if ds := readAll(t, s, q, 1); len(ds) != 1 || ds[0].Seq <= last+seqBlock/4 {
		t.Errorf("after %d came %+v; want a number from a block reserved meanwhile", last, ds)
	}
	if err := o1.wait(t); err != nil {
		t.Fatal(err)
	}
}

// Reserving numbers is a commit that takes along nothing that the peer may still
// acknowledge in time.
func TestReservingNumbersWritesNoMessages(t *testing.T) {
	o := onFile(t)
	o.CommitWindow = time.Minute
	s := open(t, o)
	defer closeStore(t, s)
	q := uplink(t, s)
	r := attachLive(t, s, q, 3)
	commits := s.Status().Commits
	s.mu.Lock()
	s.mark = s.seq + seqBlock/2 + 50 // the block nears its half
	s.mu.Unlock()
	waiting := []durable.Seq{}
	for range 100 { // one is always on its way
		if err := s.Append(msg("a", "1"), claimFor(q, 1), durable.Origin{}, nil); err != nil {
			t.Fatal(err)
		}
		if waiting = append(waiting, r.take()[0].Seq); len(waiting) > 1 {
			s.Acked(q, waiting[0])
			waiting = waiting[1:]
		}
	}
	eventually(t, "no numbers are reserved", func() bool { return s.Status().Commits > commits })
	if st := s.Status(); st.Written != 0 {
		t.Errorf("%d messages written over a healthy link", st.Written)
	}
	s.Acked(q, waiting[0])
}

// After a power cut the log is there and its index in shared memory is not.
func TestOpensWithoutSharedMemory(t *testing.T) {
	o := onFile(t)
	s := open(t, o)
	q := uplink(t, s)
	if err := put(t, s, msg("a", "1"), claimFor(q, 1), durable.Origin{}).wait(t); err != nil {
		t.Fatal(err)
	}
	again := onFile(t)
	for _, suffix := range []string{"", "-wal"} {
		b, err := os.ReadFile(o.Path + suffix)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(again.Path+suffix, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	closeStore(t, s)
	s = open(t, again)
	defer closeStore(t, s)
	if n, _ := s.Backlog(q); n != 1 || s.Status().SetAside != "" {
		t.Errorf("backlog %d, want 1; set aside %q", n, s.Status().SetAside)
	}
}

// A database of the first version opens, whole or damaged, with what it held.
func TestFirstVersionOpens(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, path string){
		"whole": func(*testing.T, string) {},
		"salvaged": func(t *testing.T, path string) {
			t.Helper()
			d, err := openDB(path, nil)
			if err != nil {
				t.Fatal(err)
			}
			page, err := d.queryInt("SELECT rootpage FROM sqlite_schema WHERE name = 'dead_letter'")
			if err := errors.Join(err, d.close()); err != nil {
				t.Fatal(err)
			}
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			_, err = f.WriteAt(bytes.Repeat([]byte{0xFF}, 4096), (page-1)*4096)
			if err := errors.Join(err, f.Close()); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := onFile(t)
			list, err := loadMigrations(migrations)
			if err != nil {
				t.Fatal(err)
			}
			d, err := openDB(o.Path, nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(migrate(d, list[:1]), d.script(`
				INSERT INTO run VALUES (1, 1, 1000000, 0, 0, 1000000, 0);
				INSERT INTO session VALUES (1, 'alice', 3600, NULL);
				INSERT INTO uplink VALUES (2, 'cloud', 'mark');
				INSERT INTO stream VALUES (1, 1, 0), (1, 2, 0), (2, 1, 0), (2, 2, 0);
				INSERT INTO claim VALUES (1, 1, 1, 0, ''), (1, 2, 1, 0, '');
				INSERT INTO message VALUES (5, 1, 'a', x'31', NULL, 1, 0, NULL, 2000000, 'pub')`), d.close()); err != nil {
				t.Fatal(err)
			}
			spoil(t, o.Path)
			s := open(t, o)
			defer closeStore(t, s)
			sessions, err := s.Sessions(context.Background())
			if err != nil || len(sessions) != 1 || sessions[0].ClientID != "alice" || sessions[0].User != "" {
				t.Errorf("sessions %+v, %v", sessions, err)
			}
			for _, q := range s.Status().Queues {
				if q.Messages != 1 {
					t.Errorf("%s holds %d messages, want 1", q.Name, q.Messages)
				}
			}
		})
	}
}

func TestSessionUser(t *testing.T) {
	o := onFile(t)
	s := open(t, o)
	q := s.CreateSession("alice", 3600, nil)
	after(t, func(done func(error)) { s.SetUser(q, "al", done) })
	again := newOutcome()
	s.SetUser(q, "al", again.done)
	if !again.called() {
		t.Error("an unchanged user waits for the disk")
	}
	closeStore(t, s)
	s = open(t, o)
	sessions, err := s.Sessions(context.Background())
	if err != nil || len(sessions) != 1 || sessions[0].User != "al" {
		t.Errorf("sessions %+v, %v, want user al", sessions, err)
	}
	after(t, func(done func(error)) { s.SetUser(q, "", done) })
	closeStore(t, s)
	gone := newOutcome()
	if s.SetUser(q, "x", gone.done); !errors.Is(gone.wait(t), durable.ErrClosed) {
		t.Error("a closed store takes a user")
	}
}
