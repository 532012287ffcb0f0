package storeforward

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker/durable"
	"holdfast/broker/message"
)

// killChildEnv makes the test binary the process that is killed; it holds the
// path of the database.
const killChildEnv = "HOLDFAST_KILL_CHILD"

// killChild appends to two queues as fast as it can and prints what is safe. It
// never ends by itself, unless something fails.
func killChild(path string) {
	o := DefaultOptions()
	o.Path = path
	o.MaxSessionMessages, o.MaxSessionBytes = 2_000_000, 512<<20 // more than all rounds can append
	s, err := Open(context.Background(), o, slog.New(slog.DiscardHandler))
	if err != nil {
		fmt.Println("error", err)
		return
	}
	q, _, err := s.OpenUplink("cloud")
	if err != nil {
		fmt.Println("error", err)
		return
	}
	var alice durable.QueueID
	sessions, err := s.Sessions(context.Background())
	switch {
	case err != nil:
		fmt.Println("error", err)
		return
	case len(sessions) > 0:
		alice = sessions[0].Queue
	default:
		alice = s.CreateSession("alice", 3600, nil)
	}
	fmt.Println("start", s.StartNumber())
	inFlight := make(chan struct{}, 64)
	var out sync.Mutex
	for n := 0; ; n++ {
		inFlight <- struct{}{}
		payload := fmt.Sprintf("%d-%d", s.StartNumber(), n)
		m := &message.Message{Topic: "t", QoS: 1, Payload: []byte(payload), Retain: n%10 == 0}
		err := s.Append(m, []durable.Claim{{Queue: q, QoS: byte(1 + n%2)}, {Queue: alice, QoS: 1}}, durable.Origin{}, func(err error) {
			<-inFlight
			if err == nil {
				out.Lock()
				defer out.Unlock()
				fmt.Println(payload)
			}
		})
		if err != nil {
			fmt.Println("error", err)
			return
		}
	}
}

// TestKill kills a process that appends, again and again on the same database.
func TestKill(t *testing.T) {
	rounds := 25
	if testing.Short() {
		rounds = 5
	}
	o := onFile(t)
	safe := map[string]bool{}
	for range rounds {
		for _, payload := range runAndKill(t, o.Path, time.Duration(rand.Int64N(int64(80*time.Millisecond)))) {
			safe[payload] = true
		}
	}
	s := open(t, o)
	defer closeStore(t, s)
	if st := s.Status(); st.SetAside != "" {
		t.Fatalf("the database broke: %s", st.Salvaged)
	}
	for _, q := range s.Status().Queues {
		missing, have := 0, payloadsOf(t, s, q.ID)
		for payload := range safe {
			if !have[payload] {
				missing++
			}
		}
		t.Logf("%s %s: %d messages, %d acknowledged, %d of these missing", q.Kind, q.Name, len(have), len(safe), missing)
		if missing > 0 {
			t.Errorf("%s %s lost %d acknowledged messages", q.Kind, q.Name, missing)
		}
	}
	if len(safe) < rounds {
		t.Errorf("only %d messages were acknowledged in %d rounds", len(safe), rounds)
	}
}

func runAndKill(t *testing.T, path string, after time.Duration) (safe []string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), killChildEnv+"="+path)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	var kill *time.Timer
	for lines.Scan() {
		line := lines.Text()
		switch {
		case strings.HasPrefix(line, "start"):
			kill = time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
		case strings.HasPrefix(line, "error"):
			t.Errorf("child: %s", line)
		case strings.Contains(line, "-"):
			safe = append(safe, line)
		}
	}
	if kill != nil {
		kill.Stop()
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait() // killed, as it should be
	return safe
}

// payloadsOf reads all a queue holds, in both streams, and checks the order.
func payloadsOf(t *testing.T, s *Store, q durable.QueueID) map[string]bool {
	t.Helper()
	have := map[string]bool{}
	if err := s.Attach(q, &taker{}); err != nil {
		t.Fatal(err)
	}
	for qos := byte(1); qos <= 2; qos++ {
		last := durable.Seq(0)
		for {
			ds, live, err := s.Read(context.Background(), q, qos, 1000, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range ds {
				if d.Seq <= last {
					t.Errorf("queue %d: %d after %d", q, d.Seq, last)
				}
				last = d.Seq
				have[string(d.Message.Payload)] = true
			}
			if live {
				break
			}
			if len(ds) == 0 {
				t.Fatal("something is on its way in a store nobody writes to")
			}
			if len(ds) > 0 && qos == 1 {
				for _, d := range ds {
					s.Acked(q, d.Seq)
				}
			}
		}
	}
	return have
}

// processWritten is what this process has written, in bytes, as the kernel counts it.
func processWritten(t *testing.T) (n int64) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("/proc", "self", "io"))
	if err != nil {
		t.Skipf("no I/O accounting here: %v", err)
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "wchar: "); ok {
			_, err = fmt.Sscan(v, &n)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// P5 on the real file system, by the process's own accounting. Time is fake, so
// that nothing hangs on how busy the machine is: 20 s of a cloud that takes 100 ms
// for each acknowledgement.
func TestHealthyLinkWritesNothingToFiles(t *testing.T) {
	o := onFile(t)
	synctest.Test(t, func(t *testing.T) {
		s := open(t, o)
		defer closeStore(t, s)
		q := uplink(t, s)
		r := attachLive(t, s, q, 200)
		if err := s.Settle(t.Context()); err != nil {
			t.Fatal(err)
		}
		before := processWritten(t)
		const n = 20_000
		var unsafe []*outcome
		var sent []durable.Delivery
		for range n {
			unsafe = append(unsafe, put(t, s, msg("a", strings.Repeat("x", 100)), claimFor(q, 1), durable.Origin{}))
			sent = append(sent, r.take()...)
			wait(time.Millisecond)
			if len(sent) > 100 {
				s.Acked(q, sent[0].Seq)
				if err := unsafe[0].wait(t); err != nil {
					t.Fatal(err)
				}
				sent, unsafe = sent[1:], unsafe[1:]
			}
		}
		// The log of the test itself and the runtime may write a little.
		if wrote := processWritten(t) - before; wrote > 4096 {
			t.Errorf("%d bytes written for %d messages, want none", wrote, n)
		}
	})
}
