package doctor

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// leastSync is the shortest time in which a medium can have put 4 KB where they
// survive a power cut. Half of what the fastest of its kind that are known to be
// honest take, so that a good one is not accused.
var leastSync = map[Kind]time.Duration{
	Rotating: 2 * time.Millisecond,   // half a turn at 7200/min is 4 ms
	MMC:      250 * time.Microsecond, // programming a page of flash, without capacitors
	USB:      250 * time.Microsecond,
	RawFlash: 150 * time.Microsecond,
	SSD:      20 * time.Microsecond, // with capacitors its RAM counts
	NVMe:     5 * time.Microsecond,  // likewise
}

// slowSync is where a gateway starts to feel the disk.
const slowSync = 150 * time.Millisecond

// Sync is what flushing 4 KB took.
type Sync struct {
	Median, Worst time.Duration
	Count         int
}

// MeasureSync overwrites 4 KB in a file of its own in dir and flushes, over and
// over, for about a second: fdatasync(2) with no change of the file's size, so
// that only the data counts.
func MeasureSync(dir string) (s Sync, err error) {
	const size, most, length = 4096, 200, time.Second
	f, err := os.CreateTemp(dir, ".doctor*")
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	block := make([]byte, size)
	if _, err := f.WriteAt(block, 0); err != nil {
		return s, err
	}
	if err := f.Sync(); err != nil {
		return s, err
	}
	var took []time.Duration
	for began := time.Now(); len(took) < most && (len(took) < 3 || time.Since(began) < length); {
		for i := range block { // a disk may leave out what it has already
			block[i] = byte(len(took) + i)
		}
		at := time.Now()
		if _, err := f.WriteAt(block, 0); err != nil {
			return s, err
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			return s, fmt.Errorf("fdatasync: %w", err)
		}
		took = append(took, time.Since(at))
	}
	slices.Sort(took)
	return Sync{Median: took[len(took)/2], Worst: took[len(took)-1], Count: len(took)}, nil
}

// judge says whether a flush can be believed.
func judge(m Medium, s Sync) []Finding {
	where := string(m.Kind)
	if m.Device != "" {
		where += " " + m.Device
	}
	took := fmt.Sprintf("%s, %s: a flush takes %v (worst %v of %d)", where, m.FileSystem, round(s.Median), round(s.Worst), s.Count)
	f := Finding{Check: "flush", Level: OK, Text: took}
	switch least := leastSync[m.Kind]; {
	case m.Kind == RAM:
		f.Level, f.Text = Problem, "the data folder is in RAM ("+m.FileSystem+"): everything is gone with the power"
		f.Remedy = "put gateway.data on a disk"
	case m.Kind == Network:
		f.Level, f.Text = Problem, took+"; SQLite's log does not work across machines, and the network decides what is safe"
		f.Remedy = "put gateway.data on a disk of this machine"
	case m.Kind == Overlay:
		f.Level, f.Text = Warning, took+"; what is written here goes with the container, or with the next start"
		f.Remedy = "mount a volume for gateway.data"
	case s.Median < least:
		f.Level = Problem
		f.Text = fmt.Sprintf("%s; no %s can have stored 4 KB in that time (at least %v): it acknowledges flushes that it does not do, and a power cut loses what was acknowledged", took, m.Kind, least)
		f.Remedy = unbelievable(m)
	case m.Kind == Loop, m.Kind == Virtual, m.Kind == Unknown:
		f.Level, f.Text = Note, took+"; whether it can be believed is decided below, where it cannot be seen from here"
		f.Remedy = "run doctor on the host too, and do not run virtual disks with cache=unsafe"
	case s.Median > slowSync:
		f.Level, f.Text = Warning, took+"; that is slow, and QoS 2 and offline clients wait for it"
		f.Remedy = "use a better card (class A1 or A2, or an industrial one), or raise store.min_commit_interval so that commits do not queue up"
	}
	return append([]Finding{f}, options(m)...)
}

func round(d time.Duration) time.Duration {
	if d < time.Millisecond {
		return d.Round(time.Microsecond)
	}
	return d.Round(10 * time.Microsecond)
}

func unbelievable(m Medium) string {
	switch m.Kind {
	case Rotating, SSD:
		return "turn its write cache off (hdparm -W0 /dev/" + m.Device + ", and in a udev rule), unless a controller with a battery is in front of it"
	case MMC, USB:
		return "use another card or stick, best an industrial one with power-loss protection, or supply the gateway without breaks"
	default:
		return "use a disk with power-loss protection, or supply the gateway without breaks"
	}
}

// options finds what the mount or the kernel was told that undoes a flush.
func options(m Medium) (fs []Finding) {
	for _, o := range m.Options {
		if o == "nobarrier" || o == "barrier=0" || o == "volatile" {
			fs = append(fs, Finding{
				Check: "mount", Level: Problem, Text: "the file system is mounted with " + o + ": flushes do not reach the disk",
				Remedy: "take " + o + " out of /etc/fstab and mount again",
			})
		}
	}
	if strings.HasPrefix(m.FileSystem, "vfat") || m.FileSystem == "exfat" {
		fs = append(fs, Finding{
			Check: "mount", Level: Warning, Text: m.FileSystem + " has no journal: a power cut can damage the file system itself",
			Remedy: "use ext4 or f2fs for gateway.data",
		})
	}
	if slices.Contains(m.Options, "ro") {
		fs = append(fs, Finding{
			Check: "mount", Level: Problem, Text: "the file system is mounted read-only",
			Remedy: "if that was not on purpose the kernel found it damaged: see dmesg, check it (fsck), and mount it again",
		})
	}
	return fs
}
