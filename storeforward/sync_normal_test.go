package storeforward

import (
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker/durable"
)

// With sync = "normal" a power cut loses what its documentation says and no more: the
// newest, as much as the log holds. What is left is a moment of the past, whole and
// in order: nothing is missing in between and nothing that had gone is back.
func TestSyncNormalLosesOnlyTheNewest(t *testing.T) {
	lost := 0
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 11))
		synctest.Test(t, func(t *testing.T) {
			o, disk := onDisk(t)
			o.Sync, o.WALBytes, o.CommitWindow, o.ReserveBytes = SyncNormal, 64<<10, 0, 0
			s := open(t, o)
			q := uplink(t, s)
			rec := &taker{}
			if err := s.Attach(q, rec); err != nil {
				t.Fatal(err)
			}
			n := 50 + r.IntN(400)
			acked := 0 // by the peer
			for i := range n {
				if err := put(t, s, msg("a", strconv.Itoa(i)+strings.Repeat(".", 300)), claimFor(q, 1), durable.Origin{}).wait(t); err != nil {
					t.Fatal(err)
				}
				if r.IntN(3) > 0 {
					ds, _, err := s.Read(t.Context(), q, 1, 1, 1<<20)
					if err != nil {
						t.Fatal(err)
					}
					for _, d := range ds {
						s.Acked(q, d.Seq)
						acked++
					}
				}
			}
			time.Sleep(time.Duration(r.IntN(2)) * time.Second) //nolint:forbidigo // the bubble's time
			next := disk.Cut(r)
			_ = s.Close() // its disk is gone
			t.Cleanup(next.Unplug)
			o.Disk, o.Path = next, next.Path("holdfast.db")
			s = open(t, o)
			defer closeStore(t, s)
			if st := s.Status(); st.SetAside != "" {
				t.Fatalf("seed %d: set aside: %s", seed, st.Salvaged)
			}
			q = uplink(t, s) // the first of all may have been lost too
			if err := s.Attach(q, &taker{}); err != nil {
				t.Fatal(err)
			}
			first, at := -1, -1
			for _, d := range readAll(t, s, q, 1) {
				i, err := strconv.Atoi(strings.TrimRight(string(d.Message.Payload), "."))
				if err != nil || at >= 0 && i != at+1 {
					t.Fatalf("seed %d: %d after %d, %v", seed, i, at, err)
				}
				if at = i; first < 0 {
					first = i
				}
			}
			// A commit of one message takes a page or more in the log, which is
			// copied into the database by the next commit once it is too large.
			if missing := n - 1 - at; at >= 0 && missing > 0 {
				lost++
				if most := int(4 * o.WALBytes / 4096); missing > most {
					t.Errorf("seed %d: %d of %d lost, wanted at most %d", seed, missing, n, most)
				}
			}
			if first > acked {
				t.Errorf("seed %d: starts at %d, but only %d were acknowledged by the peer", seed, first, acked)
			}
		})
	}
	if lost == 0 {
		t.Error("nothing was ever lost: the cuts show nothing")
	}
	t.Logf("%d of 60 cuts lost something", lost)
}
