//go:build powercut

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// A disk that remembers every write and every flush.
//
//	ext4 -> loop device -> FUSE file -> qemu-storage-daemon -> disk image
//	                                        |
//	                                        +-> log of blocks, in the format of
//	                                            the kernel's dm-log-writes
//
// A power cut is a prefix of the log, of which the writes since the last flush
// may be lost one by one: that is what a disk with a volatile cache is allowed
// to do.
type recorder struct {
	dir, mount, image, log string
	loop                   string
	daemon                 *exec.Cmd
}

const diskSize = 192 << 20

func command(ctx context.Context, name string, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out)), nil
}

func startRecorder(t *testing.T) *recorder {
	t.Helper()
	for _, tool := range []string{"qemu-storage-daemon", "losetup", "mkfs.ext4", "mount"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%v (Debian: qemu-system-common, mount, e2fsprogs)", err)
		}
	}
	dir := t.TempDir()
	r := &recorder{dir: dir, mount: filepath.Join(dir, "mnt"), image: filepath.Join(dir, "disk.img"), log: filepath.Join(dir, "log.img")}
	export := filepath.Join(dir, "export.img")
	for name, size := range map[string]int64{r.image: diskSize, r.log: 64 << 30, export: 0} {
		f, err := os.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(r.mount, 0o700); err != nil {
		t.Fatal(err)
	}
	r.daemon = exec.Command("qemu-storage-daemon",
		"--blockdev", "driver=file,node-name=disk,filename="+r.image,
		"--blockdev", "driver=file,node-name=log,filename="+r.log,
		"--blockdev", "driver=blklogwrites,node-name=both,file=disk,log=log,log-super-update-interval=1",
		"--export", "type=fuse,id=e,node-name=both,writable=on,mountpoint="+export)
	r.daemon.Stderr = t.Output()
	r.daemon.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := r.daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = r.daemon.Process.Signal(syscall.SIGTERM)
		_ = r.daemon.Wait()
	})
	waitUntil(t, "the export", func() bool {
		info, err := os.Stat(export)
		return err == nil && info.Size() == diskSize
	})
	r.loop = attachLoop(t, export)
	if _, err := command(t.Context(), "mkfs.ext4", "-q", r.loop); err != nil {
		t.Fatal(err)
	}
	mountAt(t, r.loop, r.mount)
	return r
}

func attachLoop(t *testing.T, file string) string {
	t.Helper()
	loop, err := command(t.Context(), "losetup", "-f", "--show", file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = command(context.Background(), "losetup", "-d", loop) })
	return loop
}

func mountAt(t *testing.T, loop, dir string) {
	t.Helper()
	if _, err := command(t.Context(), "mount", "-t", "ext4", loop, dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = command(context.Background(), "umount", dir) })
}

// written is how many writes and flushes the disk has seen.
func (r *recorder) written() (uint64, error) {
	f, err := os.Open(r.log)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var b [24]byte
	_, err = f.ReadAt(b[:], 0)
	return binary.LittleEndian.Uint64(b[16:]), err
}

// block is one entry of the log.
type block struct {
	sector, sectors, flags uint64
	at                     int64 // of the data in the log
}

// Flags of the entries, as in the kernel's dm-log-writes.
const (
	blockFlush   = 1
	blockDiscard = 4
)

// replay goes through the log once, cut by cut.
type replay struct {
	log, base *os.File
	entries   uint64
	next      int64 // where the following entry stands
	done      uint64
	volatile  []block // applied to nothing yet: written since the last flush
}

func (r *recorder) replay(t *testing.T) *replay {
	t.Helper()
	log, err := os.Open(r.log)
	if err != nil {
		t.Fatal(err)
	}
	base, err := os.Create(filepath.Join(r.dir, "base.img"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = log.Close(), base.Close() })
	if err := base.Truncate(diskSize); err != nil {
		t.Fatal(err)
	}
	n, err := r.written()
	if err != nil {
		t.Fatal(err)
	}
	return &replay{log: log, base: base, entries: n, next: sectorSize}
}

const sectorSize = 512

// to goes on to the state before the nth entry.
func (p *replay) to(n uint64) error {
	if n > p.entries {
		return fmt.Errorf("entry %d of %d", n, p.entries)
	}
	for ; p.done < n; p.done++ {
		var h [32]byte
		if _, err := p.log.ReadAt(h[:], p.next); err != nil {
			return err
		}
		b := block{
			sector: binary.LittleEndian.Uint64(h[0:]), sectors: binary.LittleEndian.Uint64(h[8:]),
			flags: binary.LittleEndian.Uint64(h[16:]), at: p.next + sectorSize,
		}
		p.next += sectorSize
		if b.flags&blockDiscard == 0 {
			p.next += int64(b.sectors) * sectorSize
		}
		if b.flags&blockFlush != 0 {
			for _, v := range p.volatile {
				if err := p.apply(p.base, v, v.sectors); err != nil {
					return err
				}
			}
			p.volatile = p.volatile[:0]
		}
		if b.sectors > 0 {
			p.volatile = append(p.volatile, b)
		}
	}
	return nil
}

func (p *replay) apply(disk *os.File, b block, sectors uint64) error {
	if b.flags&blockDiscard != 0 {
		zero := make([]byte, 1<<20)
		for off, left := int64(b.sector)*sectorSize, int64(sectors)*sectorSize; left > 0; {
			n, err := disk.WriteAt(zero[:min(left, int64(len(zero)))], off)
			if err != nil {
				return err
			}
			off, left = off+int64(n), left-int64(n)
		}
		return nil
	}
	data := make([]byte, sectors*sectorSize)
	if _, err := p.log.ReadAt(data, b.at); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	_, err := disk.WriteAt(data, int64(b.sector)*sectorSize)
	return err
}

// cut writes the disk as it is after a power cut now. What was not flushed is
// kept, lost or torn as rnd has it.
func (p *replay) cut(ctx context.Context, name string, rnd *rand.Rand) (kept, lost int, err error) {
	if _, err := command(ctx, "cp", "--sparse=always", p.base.Name(), name); err != nil {
		return 0, 0, err
	}
	disk, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, disk.Close()) }()
	volatile := slices.Clone(p.volatile)
	keep := 1.0 // the cache was written in time
	switch rnd.IntN(3) {
	case 0:
		keep = 0
	case 1:
		keep = rnd.Float64()
	}
	for _, v := range volatile {
		sectors := v.sectors
		switch {
		case rnd.Float64() >= keep:
			lost++
			continue
		case keep < 1 && rnd.IntN(8) == 0:
			sectors = rnd.Uint64N(v.sectors + 1) // torn
		}
		kept++
		if err := p.apply(disk, v, sectors); err != nil {
			return kept, lost, err
		}
	}
	return kept, lost, nil
}
