// Package storetest is a disk for tests of what the store keeps: it holds files
// in memory, remembers which writes were synced, and can lose, tear and reorder
// the others when its power is cut, fill up, and fail. SQLite uses it through a
// VFS, without shared memory, so that a database on it has one connection.
//
// A [Disk] is safe for use by several goroutines. The package starts none.
package storetest

import (
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/psanford/sqlite3vfs"
)

// sector is what the disk writes in one piece.
const sector = 512

// Disk is one disk from the moment power comes until it is cut.
type Disk struct {
	id int

	mu    sync.Mutex
	files map[string]*file // guarded by mu, and all they hold
	// ghosts are files whose removal is not durable.
	ghosts map[string]*file
	dead   bool

	held        chan struct{} // syncs wait until it is closed; nil is no wait
	cutIn       int           // calls until the power fails; 0 is never
	capacity    int64         // 0 is no bound
	failWrites  fault
	failSyncs   fault
	syncsLand   bool // a failing sync has written everything all the same
	writes      int64
	writtenSize int64
	syncs       int64
}

// fault is when calls fail: after some more of them, that many times (-1: until
// the disk heals).
type fault struct{ after, times int }

func (f *fault) hit() bool {
	switch {
	case f.times == 0:
		return false
	case f.after > 0:
		f.after--
		return false
	case f.times > 0:
		f.times--
	}
	return true
}

type file struct {
	data    []byte  // as programs see it
	durable []byte  // as the platter has it
	pending []write // what separates the two, in order
	linked  bool    // its folder has it durably
	space   int64   // allocated and never written
}

// write is one call that has not been synced; a nil p truncates to off.
type write struct {
	off  int64
	p    []byte
	lost bool // a sync failed: the system will not try again
}

func (w *write) apply(b []byte) []byte {
	if w.p == nil {
		if w.off < int64(len(b)) {
			return b[:w.off]
		}
		return b
	}
	if end := w.off + int64(len(w.p)); end > int64(len(b)) {
		b = append(b, make([]byte, end-int64(len(b)))...)
	}
	copy(b[w.off:], w.p)
	return b
}

// NewDisk returns an empty disk.
func NewDisk() *Disk {
	return plug(&Disk{files: make(map[string]*file), ghosts: make(map[string]*file)})
}

// Path returns the name under which SQLite finds a file of this disk.
func (d *Disk) Path(name string) string { return "/" + strconv.Itoa(d.id) + "/" + name }

// VFS returns the name of the SQLite VFS.
func (d *Disk) VFS() string { return vfsName }

// Cut cuts the power. Every call on this disk fails from now on; the disk that
// is returned has what survived: all that was synced, and of the rest an
// arbitrary part, writes in any order and torn between sectors.
func (d *Disk) Cut(r *rand.Rand) *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dead = true
	next := NewDisk()
	keep := func(name string, f *file) { // under its name on the new disk
		next.files[next.Path(strings.TrimPrefix(name, d.Path("")))] = survivor(f, r)
	}
	for name, f := range d.ghosts {
		if _, again := d.files[name]; !again && r.IntN(2) == 0 {
			keep(name, f)
		}
	}
	for name, f := range d.files {
		if f.linked || r.IntN(2) == 0 {
			keep(name, f)
		}
	}
	return next
}

// CutAfter makes the power fail at one of the next calls that write or sync; Cut
// then says what survived.
func (d *Disk) CutAfter(calls int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cutIn = calls + 1
}

// powerLocked counts a call that writes and says whether there is power for it.
func (d *Disk) powerLocked() bool {
	if d.cutIn > 0 {
		if d.cutIn--; d.cutIn == 0 {
			d.dead = true
		}
	}
	return !d.dead
}

// survivor is what is left of a file.
func survivor(f *file, r *rand.Rand) *file {
	b := append([]byte(nil), f.durable...)
	mode := r.IntN(4)
	prefix := r.IntN(len(f.pending) + 1)
	for i, w := range f.pending {
		keep := false
		switch mode {
		case 0: // nothing
		case 1: // up to some moment
			keep = i < prefix
		case 2: // in any order
			keep = r.IntN(2) == 0
		case 3: // everything, some of it torn
			keep = true
		}
		if !keep || w.lost {
			continue
		}
		if mode >= 2 && r.IntN(3) == 0 && w.p != nil {
			b = tear(b, w, r)
			continue
		}
		b = w.apply(b)
	}
	return &file{data: append([]byte(nil), b...), durable: b, linked: true, space: f.space}
}

// tear applies some of the sectors of a write.
func tear(b []byte, w write, r *rand.Rand) []byte {
	for at := 0; at < len(w.p); {
		end := min(len(w.p), at+sector-int((w.off+int64(at))%sector))
		if r.IntN(2) == 0 {
			part := write{off: w.off + int64(at), p: w.p[at:end]}
			b = part.apply(b)
		}
		at = end
	}
	return b
}

// SetCapacity bounds the bytes in all files: what goes beyond fails. 0 lifts it.
func (d *Disk) SetCapacity(n int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.capacity = n
}

// Used returns the bytes in all files.
func (d *Disk) Used() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.usedLocked()
}

func (d *Disk) usedLocked() (n int64) {
	for _, f := range d.files {
		n += max(int64(len(f.data)), f.space)
	}
	return n
}

// FailWrites makes writes fail with EIO after some more of them, that many times
// (-1: until Heal).
func (d *Disk) FailWrites(after, times int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failWrites = fault{after: after, times: times}
}

// FailSyncs does the same for syncs. The data that a failing sync should have
// written is lost to later syncs too, as with Linux; with landed it has reached
// the disk although the error says otherwise.
func (d *Disk) FailSyncs(after, times int, landed bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failSyncs, d.syncsLand = fault{after: after, times: times}, landed
}

// Hold makes syncs wait until release is called: the disk is busy.
func (d *Disk) Hold() (release func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	held := make(chan struct{})
	d.held = held
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.held = nil
		close(held)
	}
}

// Heal ends all faults.
func (d *Disk) Heal() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failWrites, d.failSyncs, d.capacity = fault{}, fault{}, 0
}

// Counts returns the number of writes, their bytes, and the number of syncs.
func (d *Disk) Counts() (writes, bytes, syncs int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.writes, d.writtenSize, d.syncs
}

// Corrupt overwrites part of a file, on the platter too.
func (d *Disk) Corrupt(path string, off int64, p []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.files[path]
	if f == nil {
		f = &file{linked: true}
		d.files[path] = f
	}
	w := write{off: off, p: p}
	f.data, f.durable = w.apply(f.data), w.apply(f.durable)
}

// Files returns the names of all files.
func (d *Disk) Files() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	names := make([]string, 0, len(d.files))
	for name := range d.files {
		names = append(names, name)
	}
	return names
}

// Size of a file.
func (d *Disk) Size(name string) (int64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.files[name]
	switch {
	case d.dead:
		return 0, errPower
	case f == nil:
		return 0, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	default:
		return max(int64(len(f.data)), f.space), nil
	}
}

// ReadFile reads a file.
func (d *Disk) ReadFile(name string) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch f := d.files[name]; {
	case d.dead:
		return nil, errPower
	case f == nil:
		return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	default:
		return append([]byte(nil), f.data...), nil
	}
}

// WriteFile makes a file and syncs it; its name needs SyncDir.
func (d *Disk) WriteFile(name string, b []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case !d.powerLocked():
		return errPower
	case d.capacity > 0 && d.usedLocked()+int64(len(b)) > d.capacity:
		return fmt.Errorf("write %s: %w", name, syscall.ENOSPC)
	case d.failWrites.hit():
		return fmt.Errorf("write %s: %w", name, syscall.EIO)
	}
	f := &file{data: append([]byte(nil), b...), durable: append([]byte(nil), b...)}
	if old := d.files[name]; old != nil {
		f.linked = old.linked
	}
	d.files[name] = f
	return nil
}

// Rename a file, durably.
func (d *Disk) Rename(from, to string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.files[from]
	switch {
	case !d.powerLocked():
		return errPower
	case f == nil:
		return fmt.Errorf("%s: %w", from, fs.ErrNotExist)
	}
	delete(d.files, from)
	d.files[to] = f
	return nil
}

// Allocate makes a file take n bytes.
func (d *Disk) Allocate(name string, n int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.files[name]
	if f == nil {
		f = &file{}
	}
	switch {
	case d.dead:
		return errPower
	case d.capacity > 0 && n > f.space && d.usedLocked()+n-f.space > d.capacity:
		return fmt.Errorf("allocate %s: %w", name, syscall.ENOSPC)
	}
	f.space = n
	d.files[name] = f
	return nil
}

// Free returns the bytes left.
func (d *Disk) Free(string) (int64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.dead:
		return 0, errPower
	case d.capacity == 0:
		return 1 << 40, nil
	default:
		return max(0, d.capacity-d.usedLocked()), nil
	}
}

// Remove a file, durably.
func (d *Disk) Remove(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case !d.powerLocked():
		return errPower
	case d.files[name] == nil:
		return fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	delete(d.files, name)
	return nil
}

// SyncDir makes creations and removals durable.
func (d *Disk) SyncDir(string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.powerLocked() {
		return errPower
	}
	for _, f := range d.files {
		f.linked = true
	}
	clear(d.ghosts)
	return nil
}

// errPower is the answer of a disk without power.
var errPower = fmt.Errorf("no power: %w", io.ErrClosedPipe)

// errIO is what SQLite takes for EIO; the VFS has no way to say ENOSPC.
var errIO = sqlite3vfs.IOError
