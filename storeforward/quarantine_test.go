package storeforward

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/broker/durable"
)

// crashChildEnv makes the test binary a process that crashes with a certain message
// in hand; it holds the path of the database.
const crashChildEnv = "HOLDFAST_CRASH_CHILD"

// crashChild delivers what two queues hold, and crashes when a message says so.
func crashChild(path string) {
	o := DefaultOptions()
	o.Path = path
	why, _ := os.ReadFile(path + ".crash") // there is none at first
	o.Crashed, _, _ = strings.Cut(string(why), "\n")
	f, err := os.Create(path + ".crash")
	if err == nil {
		err = debug.SetCrashOutput(f, debug.CrashOptions{})
	}
	if err != nil {
		fmt.Println("error", err)
		return
	}
	s, err := Open(context.Background(), o, slog.New(slog.DiscardHandler))
	if err != nil {
		fmt.Println("error", err)
		return
	}
	for _, q := range s.Status().Queues {
		if err := s.Attach(q.ID, &taker{}); err != nil {
			fmt.Println("error", err)
			return
		}
		for live := false; !live; {
			var ds []durable.Delivery
			if ds, live, err = s.Read(context.Background(), q.ID, 1, 10, 1<<20); err != nil {
				fmt.Println("error", err)
				return
			}
			for _, d := range ds {
				if string(d.Message.Payload) == "poison" {
					panic("a message that the code cannot take")
				}
				fmt.Println(q.Name, string(d.Message.Payload))
			}
		}
	}
	if err := s.Close(); err != nil {
		fmt.Println("error", err)
		return
	}
	os.Exit(0)
}

// A row that crashes the process at every start is out of the way after the third,
// kept as a dead letter, and the rest is delivered.
func TestRowThatCrashesIsQuarantined(t *testing.T) {
	o := onFile(t)
	s := open(t, o)
	q := uplink(t, s)
	alice := s.CreateSession("alice", 3600, nil)
	for _, payload := range []string{"1", "2", "poison", "4", "5"} {
		claims := []durable.Claim{{Queue: q, QoS: 1}, {Queue: alice, QoS: 1}}
		if err := put(t, s, msg("a", payload), claims, durable.Origin{}).wait(t); err != nil {
			t.Fatal(err)
		}
	}
	closeStore(t, s)
	crashes := 0
	for ; ; crashes++ {
		child := exec.CommandContext(t.Context(), os.Args[0])
		child.Env = append(os.Environ(), crashChildEnv+"="+o.Path)
		out, err := child.Output()
		if strings.Contains(string(out), "error") || crashes > 5 {
			t.Fatalf("after %d crashes: %s", crashes, out)
		}
		if err == nil {
			if want := "cloud 1\ncloud 2\ncloud 4\ncloud 5\nalice 1\nalice 2\nalice 4\nalice 5\n"; string(out) != want {
				t.Errorf("delivered %q, want %q", out, want)
			}
			break
		}
	}
	if crashes != crashesToQuarantine {
		t.Errorf("quarantined after %d crashes, want %d", crashes, crashesToQuarantine)
	}
	s = open(t, o)
	defer closeStore(t, s)
	for _, id := range []durable.QueueID{q, alice} {
		var dead []string
		err := s.DeadLetters(t.Context(), id, func(d DeadLetter) error {
			dead = append(dead, fmt.Sprintf("%s %d", d.Message.Payload, d.Code))
			return nil
		})
		if err != nil || !slices.Equal(dead, []string{"poison 1"}) {
			t.Errorf("dead letters of queue %d: %q, %v", id, dead, err)
		}
	}
	for _, x := range s.Status().Queues {
		if x.DeadLetters != 1 || x.Dropped["quarantined"] != 1 {
			t.Errorf("queue %s: %d dead letters, dropped %v", x.Name, x.DeadLetters, x.Dropped)
		}
	}
	if _, err := os.Stat(s.startsPath()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the crashes are not forgotten: %v", err)
	}
}

// Retained messages and wills are put aside likewise, and a row that crashes even then
// is deleted.
func TestQuarantineOfOtherRows(t *testing.T) {
	for _, x := range []suspect{{"retained", "r/1"}, {"will", "alice"}, {"message", "1"}} {
		for _, crashed := range []bool{false, true} {
			o := onFile(t)
			s := open(t, o)
			furnish(t, s)
			closeStore(t, s)
			o.Crashed = "it crashed"
			for range crashesToQuarantine - 1 {
				s = open(t, o)
				s.inHand("somebody", x.Table, x.Key)
				s.inHand("another", "message", fmt.Sprint(1000+time.Now().UnixNano())) // never the same
				s.inHand("last", x.Table, x.Key)
				s.probation.on.Store(false) // the next start finds the file
				b, err := os.ReadFile(s.startsPath())
				if err != nil {
					t.Fatal(err)
				}
				if crashed {
					b = []byte(strings.Replace(string(b), `"crashes"`, `"moving":{"table":"`+x.Table+`","key":"`+x.Key+`"},"crashes"`, 1))
				}
				closeStore(t, s)
				if err := os.WriteFile(o.Path+".starts", b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			s = open(t, o)
			st := s.Status()
			if st.Quarantined != 1 || st.Crashes != crashesToQuarantine || st.LastCrash != o.Crashed {
				t.Errorf("%v: %d quarantined after %d crashes", x, st.Quarantined, st.Crashes)
			}
			want := int64(1)
			if crashed {
				want = 0
			}
			if x.Table == "message" {
				want *= 2 // for the cloud and for alice
			}
			if n := one(t, s, "SELECT count(*) FROM dead_letter WHERE code = 1"); n != want {
				t.Errorf("%v, crashed %v: %d dead letters, want %d", x, crashed, n, want)
			}
			column := map[string]string{"retained": "topic", "will": "client_id", "message": "seq"}[x.Table]
			if n := one(t, s, "SELECT count(*) FROM "+x.Table+" WHERE "+column+" = '"+x.Key+"'"); n != 0 {
				t.Errorf("%v: it is still there", x)
			}
			closeStore(t, s)
		}
	}
}

// Who is killed has not crashed, however often: the head of a queue stays.
func TestKillsQuarantineNothing(t *testing.T) {
	o := onFile(t)
	q := seeded(t, o, 3)
	for range 5 {
		s := open(t, o)
		if err := s.Attach(q, &taker{}); err != nil {
			t.Fatal(err)
		}
		if ds := readAll(t, s, q, 1); len(ds) != 3 {
			t.Fatalf("read %d of 3", len(ds))
		}
		if _, err := os.Stat(s.startsPath()); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("rows are noted: %v", err)
		}
		closeStore(t, s)
	}
}
