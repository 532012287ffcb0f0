package uplink

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/broker/durable"
	"holdfast/broker/message"
	"holdfast/storeforward"
)

// The environment of the gateway process of TestKilled.
const (
	gatewayDir    = "UPLINK_TEST_GATEWAY" // folder of the database
	gatewayCloud  = "UPLINK_TEST_CLOUD"   // address
	gatewayNumber = "UPLINK_TEST_NUMBER"  // of the first message
)

// TestKilled kills a gateway process at random instants while it publishes over
// a link that is cut now and then, and starts it again. What was acknowledged
// to its publisher arrives, QoS 2 once, in order.
func TestKilled(t *testing.T) {
	kills := 12
	if testing.Short() {
		kills = 3
	}
	cloud := newHonest(t, 1)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for nc, err := l.Accept(); err == nil; nc, err = l.Accept() {
			wg.Go(func() { cloud.serve(nc) })
		}
	})
	defer wg.Wait()
	defer l.Close()

	g := gateway{t: t, dir: t.TempDir(), cloud: l.Addr().String(), safe: make(map[string]bool)}
	rnd := rand.New(rand.NewPCG(1, 1))
	for range kills {
		cloud.mu.Lock()
		cloud.cuts = rnd.IntN(3)
		cloud.mu.Unlock()
		g.run(true, func() bool {
			pass(time.Duration(100+rnd.IntN(500)) * time.Millisecond)
			return true
		})
	}
	cloud.mu.Lock()
	cloud.cuts = 0
	cloud.mu.Unlock()
	arrived := func() map[string]int {
		cloud.mu.Lock()
		defer cloud.mu.Unlock()
		n := make(map[string]int)
		for _, got := range cloud.got {
			n[strings.TrimPrefix(got, "site/")]++
		}
		return n
	}
	g.run(false, func() bool {
		for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); pass(50 * time.Millisecond) {
			missing := false
			n := arrived()
			for m := range g.safe {
				missing = missing || n[m] == 0
			}
			if !missing {
				break
			}
		}
		return true
	})
	n := arrived()
	for m := range g.safe {
		if n[m] == 0 {
			t.Errorf("%s was acknowledged and did not arrive", m)
		}
	}
	cloud.mu.Lock()
	defer cloud.mu.Unlock()
	for _, b := range cloud.breach {
		t.Errorf("against the protocol: %s", b)
	}
	lanes := inLanes(cloud.got)
	for name, got := range lanes {
		last := -1
		seen := make(map[string]bool)
		for _, m := range got {
			var i int
			fmt.Sscan(m, &i)
			if seen[m] && strings.HasSuffix(name, "/2") {
				t.Errorf("%s: %d arrives twice", name, i)
			}
			if !seen[m] && i < last {
				t.Errorf("%s: %d arrives first after %d", name, i, last)
			}
			seen[m] = true
			last = max(last, i)
		}
	}
	t.Logf("%d messages acknowledged, %d arrived, %d kills, %d lanes", len(g.safe), len(cloud.got), kills, len(lanes))
	if len(g.safe) < 10*kills {
		t.Errorf("only %d messages acknowledged: the test shows nothing", len(g.safe))
	}
}

// gateway runs the process and reads what it says.
type gateway struct {
	t     *testing.T
	dir   string
	cloud string
	next  int             // number of the next message
	safe  map[string]bool // topic/qos/number acknowledged to the publisher
}

// run starts the process, waits for until, and kills it.
func (g *gateway) run(publish bool, until func() bool) {
	g.t.Helper()
	number := -1
	if publish {
		number = g.next
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), gatewayDir+"="+g.dir, gatewayCloud+"="+g.cloud, fmt.Sprintf("%s=%d", gatewayNumber, number))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		g.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		g.t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			var i int
			var m string
			if n, _ := fmt.Sscanf(lines.Text(), "put %d", &i); n == 1 {
				g.next = i + 1
			} else if n, _ := fmt.Sscanf(lines.Text(), "safe %s", &m); n == 1 {
				g.safe[m] = true
			}
		}
	})
	until()
	cmd.Process.Kill()
	wg.Wait()
	cmd.Wait()
}

// runGateway is the process that gets killed.
func runGateway(dir string) {
	if err := publishForEver(dir); err != nil {
		fmt.Fprintln(os.Stderr, "gateway:", err)
		os.Exit(1)
	}
}

func publishForEver(dir string) error {
	log := slog.New(slog.DiscardHandler)
	so := storeforward.DefaultOptions()
	so.Path = filepath.Join(dir, "store.db")
	so.CommitWindow = 50 * time.Millisecond
	store, err := storeforward.Open(context.Background(), so, log)
	if err != nil {
		return err
	}
	o := testOptions()
	o.URL = "mqtt://" + os.Getenv(gatewayCloud)
	o.ReconnectMin, o.ReconnectMax = 10*time.Millisecond, 50*time.Millisecond
	u, err := New("cloud", o, store, &local{store: store}, log)
	if err != nil {
		return err
	}
	var number int
	fmt.Sscan(os.Getenv(gatewayNumber), &number)
	var wg sync.WaitGroup
	wg.Go(func() { _ = u.Run(context.Background()) })
	for i := number; number >= 0; i++ {
		fmt.Printf("put %d\n", i)
		for qos := byte(1); qos <= 2; qos++ {
			m := &message.Message{Topic: "s/x", Payload: fmt.Append(nil, i), QoS: qos, Received: time.Now()}
			said := fmt.Sprintf("safe s/x/%d/%d\n", qos, i)
			err := store.Append(m, []durable.Claim{{Queue: u.Queue(), QoS: qos}}, durable.Origin{}, func(err error) {
				if err == nil {
					os.Stdout.WriteString(said)
				}
			})
			if err != nil {
				return err
			}
		}
		pass(time.Millisecond)
	}
	wg.Wait()
	return nil
}
