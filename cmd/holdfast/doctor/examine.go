package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/adapters/port"
	"holdfast/adapters/reading"
	"holdfast/cmd/holdfast/config"
)

// System is where the machine is looked at; tests have others.
type System struct {
	Root    fs.FS // the file system from / on
	Measure func(dir string) (Sync, error)
	Clock   func() (now time.Time, synchronised bool)
}

// Machine is this machine.
func Machine() System {
	return System{
		Root: os.DirFS("/"), Measure: MeasureSync,
		Clock: func() (time.Time, bool) {
			s := reading.NewClock().Now()
			return s.Wall, s.Synchronised
		},
	}
}

// Examine looks at everything that the configuration needs. files are the
// configuration files.
func Examine(sys System, cfg *config.Config, files []string) (found []Finding) {
	dir := cfg.Gateway.Data
	data, usable := dataFolder(dir)
	found = append(found, data...)
	if usable {
		found = append(found, sys.disk(dir)...)
		found = append(found, room(dir, cfg.Store.MaxBytes)...)
		found = append(found, database(cfg.Store.Path)...)
	}
	found = append(found, configFiles(cfg, files)...)
	found = append(found, sys.clock())
	return append(found, ports(cfg)...)
}

// dataFolder looks at who may do what with the data. Without the right to write
// there is nothing to measure.
func dataFolder(dir string) (found []Finding, usable bool) {
	const check = "data folder"
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return []Finding{{check, Problem, dir + " is not there", "start the service once, which makes it, or make it: install -d -m 750 -o holdfast -g holdfast " + dir}}, false
	case err != nil:
		return []Finding{{check, Problem, err.Error(), "run doctor as the user of the service, or as root"}}, false
	case !info.IsDir():
		return []Finding{{check, Problem, dir + " is not a folder", "name a folder in gateway.data"}}, false
	}
	if err := unix.Access(dir, unix.R_OK|unix.W_OK|unix.X_OK); err != nil {
		return []Finding{{check, Problem, fmt.Sprintf("%s cannot be written by user %d: %v", dir, os.Getuid(), err), "run doctor as the user of the service; if it was that, chown the folder to it"}}, false
	}
	if mode := info.Mode().Perm(); mode&0o007 != 0 {
		level := Warning
		if mode&0o002 != 0 {
			level = Problem
		}
		return []Finding{{check, level, fmt.Sprintf("%s is open to everybody (%04o); messages and session states are in it", dir, mode), "chmod 750 " + dir}}, true
	}
	return []Finding{{Check: check, Level: OK, Text: dir + " is there and can be written"}}, true
}

func (sys System) disk(dir string) []Finding {
	abs, err := filepath.Abs(dir)
	if err == nil {
		abs, err = filepath.EvalSymlinks(abs)
	}
	var m Medium
	if err == nil {
		m, err = findMedium(sys.Root, abs)
	}
	if err != nil {
		m = Medium{FileSystem: "unknown", Kind: Unknown}
	}
	s, err := sys.Measure(dir)
	if err != nil {
		return append([]Finding{{"flush", Problem, "cannot be measured: " + err.Error(), "see dmesg for what the disk says; a store cannot work on it"}}, options(m)...)
	}
	return judge(m, s)
}

// least room: below the first a start may fail, below the second it is a matter
// of time.
const (
	noRoom     = 32 << 20
	littleRoom = 256 << 20
)

func room(dir string, maxBytes int64) []Finding {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return []Finding{{"room", Problem, err.Error(), "see dmesg for what the disk says"}}
	}
	free := int64(st.Bavail) * int64(st.Bsize) //nolint:unconvert // it is an int32 on 32 bit
	f := Finding{Check: "room", Level: OK, Text: mega(free) + " free"}
	switch {
	case free < noRoom:
		f.Level, f.Remedy = Problem, "free some room: a full disk refuses messages"
	case free < littleRoom:
		f.Level, f.Remedy = Warning, "free some room, or lower store.max_bytes to what there is"
	case free < maxBytes:
		f.Level = Note
		f.Text += ", less than the " + mega(maxBytes) + " that store.max_bytes allows: the disk is full before the queues are"
		f.Remedy = "lower store.max_bytes, so that it is the queue policy that decides"
	}
	found := []Finding{f}
	const fewFiles = 100
	if st.Files > 0 && st.Ffree < fewFiles {
		found = append(found, Finding{"room", Problem, fmt.Sprintf("only %d files can be made", st.Ffree), "delete small files: the file system has run out of inodes"})
	}
	return found
}

func mega(n int64) string { return fmt.Sprintf("%d MB", n/1_000_000) }

// database looks at the files of the store, if there are some: one that belongs
// to somebody else is what running a command as root leaves behind.
func database(path string) (found []Finding) {
	dir, err := owner(filepath.Dir(path))
	if err != nil {
		return nil
	}
	for _, suffix := range []string{"", "-wal", "-shm", ".lock"} {
		info, err := os.Stat(path + suffix)
		if err != nil {
			continue
		}
		if uid, err := owner(path + suffix); err == nil && uid != dir {
			found = append(found, Finding{
				"database", Problem, fmt.Sprintf("%s belongs to user %d, its folder to user %d", path+suffix, uid, dir),
				fmt.Sprintf("chown --reference=%s %s", filepath.Dir(path), path+suffix),
			})
		}
		if mode := info.Mode().Perm(); mode&0o007 != 0 && suffix == "" {
			found = append(found, Finding{"database", Warning, fmt.Sprintf("%s is open to everybody (%04o)", path, mode), "chmod 640 " + path})
		}
	}
	asides, err := filepath.Glob(path + ".aside-*")
	if err == nil {
		asides = slices.DeleteFunc(asides, func(s string) bool { return strings.HasSuffix(s, "-wal") || strings.HasSuffix(s, "-shm") })
	}
	if len(asides) > 0 {
		found = append(found, Finding{
			"database", Warning, fmt.Sprintf("%d databases were set aside, the last as %s: they could not be used", len(asides), asides[len(asides)-1]),
			"look at the log of that day; when nothing in them is missed any more, delete them",
		})
	}
	return found
}

func owner(path string) (uint32, error) {
	var st unix.Stat_t
	err := unix.Stat(path, &st)
	return st.Uid, err
}

// configFiles looks at who can change the configuration, and read its secrets.
func configFiles(cfg *config.Config, files []string) (found []Finding) {
	secrets := map[string]bool{}
	for _, l := range cfg.Listeners {
		secrets[l.KeyFile] = true
	}
	for _, u := range cfg.Uplinks {
		secrets[u.KeyFile] = true
	}
	secrets[cfg.Access.PasswordFile] = true
	delete(secrets, "")
	names := slices.Clone(files)
	for name := range secrets {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		info, err := os.Stat(name)
		switch {
		case err != nil:
			found = append(found, Finding{"files", Problem, err.Error(), "correct the name in the configuration, or let the service read it"})
		case info.Mode().Perm()&0o002 != 0:
			found = append(found, Finding{"files", Problem, fmt.Sprintf("%s can be changed by everybody (%04o)", name, info.Mode().Perm()), "chmod o-w " + name})
		case info.Mode().Perm()&0o004 != 0 && secrets[name]:
			found = append(found, Finding{"files", Problem, fmt.Sprintf("%s is a secret that everybody can read (%04o)", name, info.Mode().Perm()), "chmod o-r " + name + ", and make sure that the service's group can read it"})
		}
	}
	if len(found) == 0 && len(names) > 0 {
		found = append(found, Finding{Check: "files", Level: OK, Text: fmt.Sprintf("%d files of configuration and secrets are as they should be", len(names))})
	}
	return found
}

// released is a day before which this program did not exist.
var released = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func (sys System) clock() Finding {
	now, synchronised := sys.Clock()
	switch {
	case now.Before(released):
		return Finding{"clock", Problem, "it is " + now.UTC().Format(time.DateTime) + " here, which is before this program was made: certificates are not valid yet", "set the clock, or let NTP do it: timedatectl set-ntp true"}
	case !synchronised:
		return Finding{"clock", Warning, "the clock is not synchronised: readings are marked so, and time off does not count for expiry", "timedatectl set-ntp true; where there is no network, a clock chip and fake-hwclock help"}
	default:
		return Finding{Check: "clock", Level: OK, Text: "synchronised"}
	}
}

func ports(cfg *config.Config) (found []Finding) {
	for _, name := range sortedNames(cfg.Ports) {
		found = append(found, onePort("port "+name, cfg.Ports[name].Options)...)
	}
	return found
}

func sortedNames[V any](m map[string]V) (names []string) {
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func onePort(check string, o port.Options) []Finding {
	device, err := o.Find()
	if err != nil {
		return []Finding{{check, Problem, err.Error(), "plug it in, or name another: ls -l /dev/serial/by-id"}}
	}
	info, err := os.Stat(device)
	switch {
	case err != nil:
		return []Finding{{check, Problem, err.Error(), "plug it in, or name another: ls -l /dev/serial/by-id"}}
	case info.Mode()&fs.ModeCharDevice == 0:
		return []Finding{{check, Problem, device + " is not a serial port", "name a port: ls -l /dev/serial/by-id"}}
	}
	if err := unix.Access(device, unix.R_OK|unix.W_OK); err != nil {
		return []Finding{{check, Problem, fmt.Sprintf("%s cannot be opened by user %d: %v", device, os.Getuid(), err), "add the user of the service to the group of the port (dialout on Debian)"}}
	}
	return []Finding{{Check: check, Level: OK, Text: device + " is there"}}
}
