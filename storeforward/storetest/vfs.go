package storetest

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"

	_ "github.com/mattn/go-sqlite3" // the SQLite that the VFS registers with
	"github.com/psanford/sqlite3vfs"
)

const vfsName = "holdfast-storetest"

// SQLite keeps a VFS for ever, so there is one for all disks; the first part of
// a path says which disk is meant.
var (
	plugged = struct {
		sync.Mutex
		once  sync.Once
		disks map[int]*Disk
		last  int
	}{disks: make(map[int]*Disk)}
)

// plug gives the disk its number.
func plug(d *Disk) *Disk {
	plugged.once.Do(func() {
		if err := sqlite3vfs.RegisterVFS(vfsName, vfs{}); err != nil {
			panic(fmt.Sprintf("register the test VFS: %v", err))
		}
	})
	plugged.Lock()
	defer plugged.Unlock()
	plugged.last++
	d.id = plugged.last
	plugged.disks[d.id] = d
	return d
}

// Unplug forgets the disk, once nothing uses it any more.
func (d *Disk) Unplug() {
	plugged.Lock()
	defer plugged.Unlock()
	delete(plugged.disks, d.id)
}

func diskOf(path string) *Disk {
	number, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	id, _ := strconv.Atoi(number) // 0 is no disk
	plugged.Lock()
	defer plugged.Unlock()
	return plugged.disks[id]
}

// vfs is the way of SQLite to the disks.
type vfs struct{}

// Open implements sqlite3vfs.VFS. It never fails, since the bridge would close
// what was not opened; a handle of a disk without power fails instead.
func (vfs) Open(name string, flags sqlite3vfs.OpenFlag) (sqlite3vfs.File, sqlite3vfs.OpenFlag, error) {
	d := diskOf(name)
	if d == nil { // a temporary file, or a disk that is gone
		d = &Disk{files: make(map[string]*file), ghosts: make(map[string]*file), dead: name != ""}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.files[name]
	if f == nil {
		f = &file{}
		if !d.dead {
			d.files[name] = f
		}
	}
	return &handle{d: d, f: f, name: name}, flags, nil
}

// Delete implements sqlite3vfs.VFS.
func (vfs) Delete(name string, dirSync bool) error {
	d := diskOf(name)
	if d == nil {
		return errIO
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead {
		return errIO
	}
	if f := d.files[name]; f != nil && !dirSync && f.linked {
		d.ghosts[name] = f
	}
	delete(d.files, name)
	return nil
}

// Access implements sqlite3vfs.VFS.
func (vfs) Access(name string, _ sqlite3vfs.AccessFlag) (bool, error) {
	d := diskOf(name)
	if d == nil {
		return false, nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.files[name] != nil, nil
}

// FullPathname implements sqlite3vfs.VFS.
func (vfs) FullPathname(name string) string { return name }

// handle is an open file.
type handle struct {
	d    *Disk
	f    *file
	name string
	lock sqlite3vfs.LockType
}

// Close implements sqlite3vfs.File.
func (h *handle) Close() error { return nil }

// ReadAt implements sqlite3vfs.File.
func (h *handle) ReadAt(p []byte, off int64) (int, error) {
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
	if h.d.dead {
		return 0, errIO
	}
	if off >= int64(len(h.f.data)) {
		return 0, io.EOF
	}
	n := copy(p, h.f.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt implements sqlite3vfs.File.
func (h *handle) WriteAt(p []byte, off int64) (int, error) {
	d := h.d
	d.mu.Lock()
	defer d.mu.Unlock()
	grows := max(0, off+int64(len(p))-int64(len(h.f.data)))
	if !d.powerLocked() || d.failWrites.hit() || d.capacity > 0 && grows > 0 && d.usedLocked()+grows > d.capacity {
		return 0, errIO
	}
	w := write{off: off, p: append([]byte{}, p...)}
	h.f.data = w.apply(h.f.data)
	h.f.pending = append(h.f.pending, w)
	d.writes++
	d.writtenSize += int64(len(p))
	return len(p), nil
}

// Truncate implements sqlite3vfs.File.
func (h *handle) Truncate(size int64) error {
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
	if !h.d.powerLocked() || h.d.failWrites.hit() {
		return errIO
	}
	w := write{off: size}
	h.f.data = w.apply(h.f.data)
	h.f.pending = append(h.f.pending, w)
	return nil
}

// Sync implements sqlite3vfs.File.
func (h *handle) Sync(sqlite3vfs.SyncType) error {
	d := h.d
	d.mu.Lock()
	held := d.held
	d.mu.Unlock()
	if held != nil {
		<-held
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.powerLocked() {
		return errIO
	}
	d.syncs++
	fails := d.failSyncs.hit()
	if !fails || d.syncsLand {
		h.f.sync()
		// The VFS of Unix syncs the folder with the first sync of a log.
		if strings.HasSuffix(h.name, "-wal") || strings.HasSuffix(h.name, "-journal") {
			h.f.linked = true
		}
	}
	if !fails {
		return nil
	}
	for i := range h.f.pending {
		h.f.pending[i].lost = true
	}
	return errIO
}

func (f *file) sync() {
	kept := f.pending[:0]
	for _, w := range f.pending {
		if w.lost {
			kept = append(kept, w)
			continue
		}
		f.durable = w.apply(f.durable)
	}
	f.pending = kept
}

// FileSize implements sqlite3vfs.File.
func (h *handle) FileSize() (int64, error) {
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
	if h.d.dead {
		return 0, errIO
	}
	return int64(len(h.f.data)), nil
}

// Lock implements sqlite3vfs.File. There is one connection, so a lock is always
// free.
func (h *handle) Lock(l sqlite3vfs.LockType) error {
	h.lock = max(h.lock, l)
	return nil
}

// Unlock implements sqlite3vfs.File.
func (h *handle) Unlock(l sqlite3vfs.LockType) error {
	h.lock = min(h.lock, l)
	return nil
}

// CheckReservedLock implements sqlite3vfs.File.
func (h *handle) CheckReservedLock() (bool, error) { return h.lock >= sqlite3vfs.LockReserved, nil }

// SectorSize implements sqlite3vfs.File.
func (h *handle) SectorSize() int64 { return sector }

// DeviceCharacteristics implements sqlite3vfs.File: as the VFS of Unix says it.
func (h *handle) DeviceCharacteristics() sqlite3vfs.DeviceCharacteristic {
	return sqlite3vfs.IocapPowersafeOverwrite
}
