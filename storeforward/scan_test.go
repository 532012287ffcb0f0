package storeforward

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/broker/durable"
)

// overwrite replaces bytes of a closed database.
func overwrite(t *testing.T, path string, at int64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err == nil {
		_, err = f.WriteAt(b, at)
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

func rootOf(t *testing.T, path, name string) int64 {
	t.Helper()
	d, err := openDB(path, url.Values{})
	if err != nil {
		t.Fatal(err)
	}
	n, err := d.queryInt("SELECT rootpage FROM sqlite_schema WHERE name = ?", name)
	if err != nil || n == 0 {
		t.Fatalf("root of %s: %d, %v", name, n, err)
	}
	if err := d.close(); err != nil {
		t.Fatal(err)
	}
	return n
}

const manyMessages = 3000

// manyRows is a closed store with something of every kind, and messages on many
// pages, some of them longer than a page. It returns what they say.
func manyRows(t *testing.T, o Options) (payloads []string) {
	t.Helper()
	s := open(t, o)
	furnish(t, s)
	q, _, err := s.OpenUplink("another")
	if err != nil {
		t.Fatal(err)
	}
	for i := range manyMessages {
		m := msg(fmt.Sprintf("many/%d", i), fmt.Sprintf("%d %s", i, strings.Repeat("x", 100)))
		if i%100 == 50 {
			m.Payload = append(m.Payload, bytes.Repeat([]byte("long "), 100*(i/100))...)
		}
		payloads = append(payloads, string(m.Payload))
		if o := put(t, s, m, claimFor(q, 1), durable.Origin{}); i%500 == 499 {
			if err := o.wait(t); err != nil {
				t.Fatal(err)
			}
		}
	}
	closeStore(t, s)
	return payloads
}

func payloadsFor(t *testing.T, s *Store, name string) (list []string) {
	t.Helper()
	q, _, err := s.OpenUplink(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Attach(q, &taker{}); err != nil {
		t.Fatal(err)
	}
	for _, d := range readAll(t, s, q, 1) {
		list = append(list, string(d.Message.Payload))
	}
	return list
}

// A lost page takes only its own rows with it: nothing at all when it is the first,
// or the top of a table.
func TestSalvagePageByPage(t *testing.T) {
	page := bytes.Repeat([]byte{0xA5}, 4096)
	tests := map[string]func(t *testing.T, path string){
		"the first page is lost": func(t *testing.T, path string) {
			t.Helper()
			overwrite(t, path, 0, page)
		},
		"the header is lost": func(t *testing.T, path string) {
			t.Helper()
			overwrite(t, path, 0, page[:100])
		},
		"the schema is lost": func(t *testing.T, path string) {
			t.Helper()
			overwrite(t, path, 100, page[:3996])
		},
		"the first page is zero": func(t *testing.T, path string) {
			t.Helper()
			overwrite(t, path, 0, make([]byte, 4096))
		},
		"the top of the messages": func(t *testing.T, path string) {
			t.Helper()
			overwrite(t, path, (rootOf(t, path, "message")-1)*4096, page)
		},
		"the first page and the top of the messages": func(t *testing.T, path string) {
			t.Helper()
			overwrite(t, path, (rootOf(t, path, "message")-1)*4096, page)
			overwrite(t, path, 0, page)
		},
	}
	for name, harm := range tests {
		t.Run(name, func(t *testing.T) {
			o := onFile(t)
			want := manyRows(t, o)
			harm(t, o.Path)
			s := open(t, o)
			defer closeStore(t, s)
			st := s.Status()
			t.Log(st.Salvaged)
			if st.SetAside == "" {
				t.Fatal("not set aside")
			}
			if got := payloadsFor(t, s, "another"); !slices.Equal(got, want) {
				t.Errorf("%d of %d messages saved", len(got), len(want))
			}
			checkDeliveries(t, s, 1, 2)
			if s.mark <= seqBlock {
				t.Errorf("numbers are given up to %d again", s.mark)
			}
			checkKept(t, s, 1, 2, 4)
			sessions, err := s.Sessions(t.Context())
			if err != nil || len(sessions) != 1 || len(sessions[0].Subscriptions) != 2 || len(sessions[0].Received) != 3 {
				t.Errorf("sessions %+v, %v", sessions, err)
			}
		})
	}
}

// The queue of the only uplink, whose row is lost, is that of the next one that has
// none.
func TestSalvageWithoutTheNameOfTheUplink(t *testing.T) {
	o := onFile(t)
	q := seeded(t, o, 20)
	overwrite(t, o.Path, (rootOf(t, o.Path, "uplink")-1)*4096, bytes.Repeat([]byte{0xA5}, 4096))
	s := open(t, o)
	if again := uplink(t, s); again != q || len(payloadsFor(t, s, "cloud")) != 20 {
		t.Errorf("queue %d, want %d: %s", again, q, s.Status().Salvaged)
	}
	closeStore(t, s)
	s = open(t, o)
	defer closeStore(t, s)
	if again := uplink(t, s); again != q {
		t.Errorf("queue %d after a restart, want %d", again, q)
	}
}

// Whatever pages are lost: what is on the others is saved, nothing comes twice or out
// of order, nothing is made up, and the next start finds nothing to mend.
func TestSalvageAfterRandomDamage(t *testing.T) {
	o := onFile(t)
	want := manyRows(t, o)
	whole, err := os.ReadFile(o.Path)
	if err != nil {
		t.Fatal(err)
	}
	rounds := 20
	if testing.Short() {
		rounds = 5
	}
	for seed := range uint64(rounds) {
		r := rand.New(rand.NewPCG(seed, 3))
		b := slices.Clone(whole)
		lost := 1 + r.IntN(4)
		for range lost {
			at := r.IntN(len(b)/4096) * 4096
			switch r.IntN(3) {
			case 0:
				clear(b[at : at+4096])
			case 1:
				for i := range 4096 {
					b[at+i] = byte(r.Uint32())
				}
			default: // a piece of it
				n := 8 + r.IntN(500)
				for i := range n {
					b[at+r.IntN(4096-n)+i] = byte(r.Uint32())
				}
			}
		}
		o := onFile(t)
		o.RetryMin, o.RetryMax = time.Millisecond, 10*time.Millisecond
		if err := os.WriteFile(o.Path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		s := open(t, o)
		st := s.Status()
		name := "another"
		if _, named := s.Uplinks()[name]; !named {
			name = "salvaged-5" // by its number: there were two, and no name is left
		}
		got := payloadsFor(t, s, name)
		seen, last := 0, -1
		for _, p := range got {
			n := slices.Index(want, p)
			if n < 0 {
				continue // bytes of its text were overwritten; nothing could tell
			}
			if n <= last {
				t.Fatalf("seed %d: %d after %d", seed, n, last)
			}
			last = n
			seen++
		}
		if least := manyMessages - 45*lost; seen < least && st.SetAside != "" {
			t.Errorf("seed %d: %d of %d messages saved with %d pages lost\n%s", seed, seen, manyMessages, lost, st.Salvaged)
		}
		closeStore(t, s)
		if st.SetAside == "" {
			continue // found by the check later, or harmless
		}
		s = open(t, o)
		if again := s.Status(); again.SetAside != "" {
			t.Errorf("seed %d: set aside again: %s", seed, again.Salvaged)
		}
		closeStore(t, s)
	}
}

// The shapes that the scan goes by are those of the migrations.
func TestSalvageTablesAreAllTables(t *testing.T) {
	s := open(t, onFile(t))
	defer closeStore(t, s)
	x := &scan{}
	if err := s.read(t.Context(), func(d *db) error { return x.learn(t.Context(), d, nil) }); err != nil {
		t.Fatal(err)
	}
	if n := one(t, s, "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"); int(n) != len(salvageTables) {
		t.Errorf("%d tables are salvaged of %d", len(salvageTables), n)
	}
	for i, sh := range x.shapes {
		var names []string
		for _, c := range sh.columns {
			names = append(names, c.name)
		}
		if got := strings.Join(names, ", "); got != salvageTables[i].columns {
			t.Errorf("%s has columns %s, salvaged are %s", sh.name, got, salvageTables[i].columns)
		}
	}
}

func FuzzDecodeRecord(f *testing.F) {
	f.Add([]byte{4, 0, 1, 0x13, 5, 'a', 'b', 'c'})
	f.Add(binary.AppendUvarint(nil, 1<<60))
	f.Fuzz(func(_ *testing.T, b []byte) { decodeRecord(b) })
}
