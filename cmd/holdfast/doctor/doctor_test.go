package doctor

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"holdfast/adapters/port"
	"holdfast/cmd/holdfast/config"
)

// machine is a root with one mount and its disk.
func machine(mount string, files map[string]string) fs.FS {
	root := fstest.MapFS{"proc/self/mountinfo": {Data: []byte("1 0 8:1 / / rw - ext4 /dev/sda1 rw\n" + mount + "\n")}}
	for name, text := range files {
		root[name] = &fstest.MapFile{Data: []byte(text)}
		if name == "sys/block/sdb" { // the link of a USB disk
			root[name].Mode = fs.ModeSymlink
		}
	}
	return root
}

func TestMedium(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		mount string
		files map[string]string
		want  Medium
	}{
		"partition of an SD card": {
			mount: "20 1 179:2 / /data rw,noatime - ext4 /dev/mmcblk0p2 rw",
			files: map[string]string{
				"sys/dev/block/179:2/uevent": "MAJOR=179\nDEVNAME=mmcblk0p2\n", "sys/block/mmcblk0/mmcblk0p2/partition": "2",
				"sys/block/mmcblk0/queue/write_cache": "write back\n",
			},
			want: Medium{FileSystem: "ext4", Device: "mmcblk0", Kind: MMC, WriteCache: "write back"},
		},
		"btrfs with numbers of its own on a hard disk": {
			mount: "20 1 0:40 / /data rw - btrfs /dev/sda2 rw",
			files: map[string]string{"sys/block/sda/sda2/partition": "2", "sys/block/sda/queue/rotational": "1\n"},
			want:  Medium{FileSystem: "btrfs", Device: "sda", Kind: Rotating},
		},
		"LUKS on NVMe": {
			mount: "20 1 254:0 / /data rw - ext4 /dev/mapper/crypt rw",
			files: map[string]string{
				"sys/dev/block/254:0/uevent": "DEVNAME=dm-0\n", "sys/block/dm-0/slaves/nvme0n1p3/x": "", "sys/block/nvme0n1/nvme0n1p3/partition": "3",
			},
			want: Medium{FileSystem: "ext4", Device: "dm-0", Kind: NVMe},
		},
		"SSD": {
			mount: "20 1 8:16 / /data rw - ext4 /dev/sdc rw",
			files: map[string]string{"sys/dev/block/8:16/uevent": "DEVNAME=sdc\n", "sys/block/sdc/queue/rotational": "0\n"},
			want:  Medium{FileSystem: "ext4", Device: "sdc", Kind: SSD},
		},
		"disk of a virtual machine": {
			mount: "20 1 8:16 / /data rw - ext4 /dev/sdc rw",
			files: map[string]string{"sys/dev/block/8:16/uevent": "DEVNAME=sdc\n", "sys/block/sdc/queue/rotational": "1\n", "sys/block/sdc/device/vendor": "QEMU\n"},
			want:  Medium{FileSystem: "ext4", Device: "sdc", Kind: Virtual},
		},
		"tmpfs":   {mount: "20 1 0:30 / /data rw - tmpfs tmpfs rw", want: Medium{FileSystem: "tmpfs", Kind: RAM}},
		"overlay": {mount: "20 1 0:30 / /data rw - overlay overlay rw", want: Medium{FileSystem: "overlay", Kind: Overlay}},
		"NFS":     {mount: "20 1 0:30 / /data rw - nfs4 server:/x rw", want: Medium{FileSystem: "nfs4", Kind: Network}},
		"another folder that begins alike": {
			mount: "20 1 0:30 / /dat rw - tmpfs tmpfs rw", want: Medium{FileSystem: "ext4", Device: "sda1", Kind: Unknown},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := findMedium(machine(tc.mount, tc.files), "/data")
			if err != nil || got.FileSystem != tc.want.FileSystem || got.Device != tc.want.Device || got.Kind != tc.want.Kind || got.WriteCache != tc.want.WriteCache {
				t.Errorf("got %+v, %v; want %+v", got, err, tc.want)
			}
		})
	}
}

func TestMountPointsWithSpaces(t *testing.T) {
	t.Parallel()
	m, _, _, err := mountOf(`20 1 0:30 / /my\040data rw - tmpfs tmpfs rw`, "/my data/x")
	if err != nil || m.FileSystem != "tmpfs" {
		t.Errorf("got %+v, %v", m, err)
	}
}

func TestJudge(t *testing.T) {
	t.Parallel()
	const us = time.Microsecond
	tests := map[string]struct {
		m      Medium
		median time.Duration
		want   Level
		text   string
	}{
		"an SD card that lies":       {Medium{FileSystem: "ext4", Kind: MMC, Device: "mmcblk0"}, 30 * us, Problem, "acknowledges flushes that it does not do"},
		"an honest SD card":          {Medium{FileSystem: "ext4", Kind: MMC}, 4 * time.Millisecond, OK, "SD card"},
		"a slow SD card":             {Medium{FileSystem: "ext4", Kind: MMC}, 400 * time.Millisecond, Warning, "slow"},
		"a hard disk with its cache": {Medium{FileSystem: "ext4", Kind: Rotating, Device: "sda"}, 100 * us, Problem, "hard disk"},
		"an SSD with capacitors":     {Medium{FileSystem: "ext4", Kind: SSD}, 40 * us, OK, "SSD"},
		"RAM":                        {Medium{FileSystem: "tmpfs", Kind: RAM}, us, Problem, "gone with the power"},
		"a virtual disk":             {Medium{FileSystem: "ext4", Kind: Virtual}, 100 * us, Note, "decided below"},
		"a network":                  {Medium{FileSystem: "nfs", Kind: Network}, time.Millisecond, Problem, "across machines"},
		"a container":                {Medium{FileSystem: "overlay", Kind: Overlay}, time.Millisecond, Warning, "container"},
		"no barriers":                {Medium{FileSystem: "ext4", Kind: SSD, Options: []string{"rw", "nobarrier"}}, time.Millisecond, Problem, "nobarrier"},
		"FAT":                        {Medium{FileSystem: "vfat", Kind: MMC}, time.Millisecond, Warning, "journal"},
		"read-only":                  {Medium{FileSystem: "ext4", Kind: MMC, Options: []string{"ro"}}, time.Millisecond, Problem, "read-only"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fs := judge(tc.m, Sync{Median: tc.median, Worst: tc.median, Count: 100})
			if Worst(fs) != tc.want || !slices.ContainsFunc(fs, func(f Finding) bool { return f.Level == tc.want && strings.Contains(f.Text, tc.text) }) {
				t.Errorf("got %+v, want %s with %q", fs, tc.want, tc.text)
			}
			for _, f := range fs {
				if f.Level != OK && f.Remedy == "" {
					t.Errorf("no remedy for %q", f.Text)
				}
			}
		})
	}
}

func TestMeasureSyncLeavesNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, err := MeasureSync(dir)
	if err != nil || s.Count < 3 || s.Median <= 0 || s.Worst < s.Median {
		t.Errorf("MeasureSync = %+v, %v", s, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// healthy is a machine and a configuration with nothing wrong.
func healthy(t *testing.T) (System, *config.Config, []string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "data")
	if err := os.Mkdir(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "h.toml")
	if err := os.WriteFile(file, nil, 0o640); err != nil {
		t.Fatal(err)
	}
	cfg := config.Default()
	cfg.Gateway.Data = dir
	cfg.Resolve()
	cfg.Store.MaxBytes = 1
	sys := Machine()
	sys.Root = machine("", map[string]string{"sys/dev/block/8:1/uevent": "DEVNAME=sda\n", "sys/block/sda/queue/rotational": "0"})
	sys.Measure = func(string) (Sync, error) { return Sync{time.Millisecond, time.Millisecond, 100}, nil }
	sys.Clock = func() (time.Time, bool) { return time.Now(), true }
	return sys, &cfg, []string{file}
}

func TestExamine(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		spoil func(t *testing.T, sys *System, cfg *config.Config, files []string)
		want  Level
		text  string
	}{
		"healthy": {func(*testing.T, *System, *config.Config, []string) {}, OK, ""},
		"no data folder": {func(_ *testing.T, _ *System, cfg *config.Config, _ []string) {
			cfg.Gateway.Data += "/none"
		}, Problem, "is not there"},
		"data open to everybody": {func(t *testing.T, _ *System, cfg *config.Config, _ []string) {
			t.Helper()
			chmod(t, cfg.Gateway.Data, 0o755)
		}, Warning, "open to everybody"},
		"database open to everybody": {func(t *testing.T, _ *System, cfg *config.Config, _ []string) {
			t.Helper()
			write(t, cfg.Store.Path)
			chmod(t, cfg.Store.Path, 0o644)
		}, Warning, "open to everybody"},
		"database set aside": {func(t *testing.T, _ *System, cfg *config.Config, _ []string) {
			t.Helper()
			write(t, cfg.Store.Path+".aside-20260101T000000")
		}, Warning, "set aside"},
		"configuration that everybody can change": {func(t *testing.T, _ *System, _ *config.Config, files []string) {
			t.Helper()
			chmod(t, files[0], 0o666)
		}, Problem, "changed by everybody"},
		"a key that everybody can read": {func(t *testing.T, _ *System, cfg *config.Config, _ []string) {
			t.Helper()
			cfg.Listeners[0].KeyFile = filepath.Join(t.TempDir(), "key")
			write(t, cfg.Listeners[0].KeyFile)
			chmod(t, cfg.Listeners[0].KeyFile, 0o644)
		}, Problem, "a secret"},
		"disk that fails": {func(_ *testing.T, sys *System, _ *config.Config, _ []string) {
			sys.Measure = func(string) (Sync, error) { return Sync{}, errors.New("input/output error") }
		}, Problem, "input/output error"},
		"clock of a board without a chip": {func(_ *testing.T, sys *System, _ *config.Config, _ []string) {
			sys.Clock = func() (time.Time, bool) { return time.Unix(0, 0), false }
		}, Problem, "before this program was made"},
		"clock not synchronised": {func(_ *testing.T, sys *System, _ *config.Config, _ []string) {
			sys.Clock = func() (time.Time, bool) { return time.Now(), false }
		}, Warning, "not synchronised"},
		"port unplugged": {func(_ *testing.T, _ *System, cfg *config.Config, _ []string) {
			cfg.Ports = map[string]config.Port{"rs485": {Options: port.Options{Device: "/dev/ttyNobody7"}}}
		}, Problem, "ttyNobody7"},
		"port that is a file": {func(_ *testing.T, _ *System, cfg *config.Config, files []string) {
			cfg.Ports = map[string]config.Port{"rs485": {Options: port.Options{Device: files[0]}}}
		}, Problem, "not a serial port"},
		"port that is there": {func(_ *testing.T, _ *System, cfg *config.Config, _ []string) {
			cfg.Ports = map[string]config.Port{"rs485": {Options: port.Options{Device: "/dev/null"}}}
		}, OK, ""},
		"queues may be larger than the disk": {func(_ *testing.T, _ *System, cfg *config.Config, _ []string) {
			cfg.Store.MaxBytes = 1 << 62
		}, Note, "less than the"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sys, cfg, files := healthy(t)
			tc.spoil(t, &sys, cfg, files)
			found := Examine(sys, cfg, files)
			if Worst(found) != tc.want || !slices.ContainsFunc(found, func(f Finding) bool { return f.Level == tc.want && strings.Contains(f.Text, tc.text) }) {
				t.Errorf("got %+v, want %s with %q", found, tc.want, tc.text)
			}
		})
	}
}

func chmod(t *testing.T, name string, mode fs.FileMode) {
	t.Helper()
	if err := os.Chmod(name, mode); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, name string) {
	t.Helper()
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
}
