package storetest

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/psanford/sqlite3vfs"
)

func openFile(t *testing.T, d *Disk, name string) sqlite3vfs.File {
	t.Helper()
	f, _, err := vfs{}.Open(d.Path(name), 0)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func write1(t *testing.T, f sqlite3vfs.File, off int64, b byte, n int) {
	t.Helper()
	if _, err := f.WriteAt(bytes.Repeat([]byte{b}, n), off); err != nil {
		t.Fatal(err)
	}
}

// What was synced survives every cut; what was not survives some, whole, torn or
// not at all.
func TestCut(t *testing.T) {
	seen := map[string]int{}
	for seed := range uint64(200) {
		d := NewDisk()
		f := openFile(t, d, "x")
		write1(t, f, 0, 'a', 4096)
		if err := f.Sync(sqlite3vfs.SyncFull); err != nil {
			t.Fatal(err)
		}
		if err := d.SyncDir("/"); err != nil {
			t.Fatal(err)
		}
		write1(t, f, 4096, 'b', 4096)
		write1(t, f, 8192, 'c', 4096)
		next := d.Cut(rand.New(rand.NewPCG(seed, 1)))
		if _, err := f.WriteAt([]byte{1}, 0); err == nil {
			t.Fatal("a write without power")
		}
		got := next.files[next.Path("x")]
		if got == nil || len(got.data) < 4096 || !bytes.Equal(got.data[:4096], bytes.Repeat([]byte{'a'}, 4096)) {
			t.Fatalf("seed %d: what was synced is lost", seed)
		}
		rest := got.data[4096:]
		b, c := bytes.Count(rest, []byte{'b'}), bytes.Count(rest, []byte{'c'})
		switch {
		case b == 0 && c == 0:
			seen["nothing"]++
		case b == 4096 && c == 4096:
			seen["everything"]++
		case b == 0 && c == 4096:
			seen["out of order"]++
		case b%4096 != 0 || c%4096 != 0:
			seen["torn"]++
		}
		next.Unplug()
		d.Unplug()
	}
	for _, what := range []string{"nothing", "everything", "out of order", "torn"} {
		if seen[what] == 0 {
			t.Errorf("200 cuts and never %s: %v", what, seen)
		}
	}
}

// A sync that fails loses what it should have written, for later syncs too.
func TestFailedSyncLoses(t *testing.T) {
	for landed, want := range map[bool]int{false: 0, true: 100} {
		d := NewDisk()
		f := openFile(t, d, "x-wal")
		write1(t, f, 0, 'a', 100)
		d.FailSyncs(0, 1, landed)
		if f.Sync(sqlite3vfs.SyncFull) == nil {
			t.Fatal("the sync did not fail")
		}
		if err := f.Sync(sqlite3vfs.SyncFull); err != nil {
			t.Fatal(err)
		}
		next := d.Cut(rand.New(rand.NewPCG(1, 1)))
		if got := len(next.files[next.Path("x-wal")].data); got != want {
			t.Errorf("landed %v: %d bytes survive, want %d", landed, got, want)
		}
		next.Unplug()
		d.Unplug()
	}
}

func TestFaults(t *testing.T) {
	d := NewDisk()
	defer d.Unplug()
	f := openFile(t, d, "x")
	d.FailWrites(1, 1)
	for i, fails := range []bool{false, true, false} {
		if _, err := f.WriteAt([]byte{1}, 0); (err != nil) != fails {
			t.Errorf("write %d: %v, want failure %v", i, err, fails)
		}
	}
	d.SetCapacity(10)
	if _, err := f.WriteAt(make([]byte, 11), 0); err == nil {
		t.Error("11 bytes on a disk of 10")
	}
	d.Heal()
	d.CutAfter(0)
	if _, err := f.WriteAt([]byte{1}, 0); err == nil {
		t.Error("a write after the cut")
	}
	if _, err := d.Size(d.Path("x")); err == nil {
		t.Error("a size without power")
	}
}
