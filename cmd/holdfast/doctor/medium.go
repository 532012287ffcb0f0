package doctor

import (
	"bufio"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Medium is what a folder is kept on, as far as the kernel tells.
type Medium struct {
	FileSystem string // "ext4"
	Options    []string
	Device     string // "mmcblk0", empty when there is none
	Kind       Kind
	// WriteCache is "write back" (the kernel sends flushes), "write through"
	// (it sends none), or empty.
	WriteCache string
}

// Kind is a kind of medium.
type Kind string

// The kinds. What cannot be told apart in the kernel's files is one kind.
const (
	Rotating Kind = "hard disk"
	MMC      Kind = "SD card or eMMC"
	USB      Kind = "USB disk or stick"
	NVMe     Kind = "NVMe SSD"
	SSD      Kind = "SSD"
	RawFlash Kind = "raw flash"
	Virtual  Kind = "virtual disk"
	Loop     Kind = "file behind a loop device"
	RAM      Kind = "RAM"
	Network  Kind = "network file system"
	Overlay  Kind = "overlay (the inside of a container or a read-only root)"
	Unknown  Kind = "unknown medium"
)

// fileSystemKinds are file systems that say it all.
var fileSystemKinds = map[string]Kind{
	"tmpfs": RAM, "ramfs": RAM, "devtmpfs": RAM, "nfs": Network, "nfs4": Network, "cifs": Network, "smb3": Network, "9p": Network,
	"virtiofs": Network, "fuse.sshfs": Network, "ceph": Network, "overlay": Overlay, "ubifs": RawFlash, "jffs2": RawFlash, "yaffs2": RawFlash,
}

// mountOf finds the line of mountinfo (proc_pid_mountinfo(5)) that a folder is
// on: the longest mount point that leads to it, and of two the later one.
func mountOf(mountinfo, dir string) (m Medium, device, source string, err error) {
	best := -1
	for line := range strings.Lines(mountinfo) {
		left, right, ok := strings.Cut(strings.TrimSpace(line), " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 6 || len(r) < 2 {
			continue
		}
		point := unescape(l[4])
		if point != "/" && dir != point && !strings.HasPrefix(dir, point+"/") || len(point) < best {
			continue
		}
		best = len(point)
		device, source = l[2], unescape(r[1])
		m = Medium{FileSystem: r[0], Options: strings.Split(l[5], ",")}
		if len(r) > 2 {
			m.Options = append(m.Options, strings.Split(r[2], ",")...)
		}
	}
	if best < 0 {
		return m, "", "", fmt.Errorf("no mount leads to %s", dir)
	}
	return m, device, source, nil
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	for _, c := range []string{" ", "\t", "\n", `\`} {
		s = strings.ReplaceAll(s, fmt.Sprintf(`\%03o`, c[0]), c)
	}
	return s
}

// findMedium reads the kernel's files below root ("/" as a file system).
func findMedium(root fs.FS, dir string) (Medium, error) {
	info, err := fs.ReadFile(root, "proc/self/mountinfo")
	if err != nil {
		return Medium{}, err
	}
	m, device, source, err := mountOf(string(info), dir)
	if err != nil {
		return m, err
	}
	if k, ok := fileSystemKinds[m.FileSystem]; ok {
		m.Kind = k
		return m, nil
	}
	// btrfs has numbers of its own; then the source helps.
	name := deviceName(root, device)
	if name == "" && strings.HasPrefix(source, "/dev/") {
		name = path.Base(source)
	}
	m.Device, m.Kind, m.WriteCache = whole(root, name, 0)
	return m, nil
}

// deviceName reads the kernel's name of a block device from its numbers.
func deviceName(root fs.FS, numbers string) string {
	text, err := fs.ReadFile(root, "sys/dev/block/"+numbers+"/uevent")
	if err != nil {
		return ""
	}
	for s := bufio.NewScanner(strings.NewReader(string(text))); s.Scan(); {
		if name, ok := strings.CutPrefix(s.Text(), "DEVNAME="); ok {
			return name
		}
	}
	return ""
}

// whole goes from a partition to its disk, and from a mapped device to what is
// below it.
func whole(root fs.FS, name string, depth int) (disk string, k Kind, cache string) {
	const deepest = 8 // LVM on LUKS on RAID is three
	if name == "" || depth > deepest {
		return name, Unknown, ""
	}
	dirs, err := fs.ReadDir(root, "sys/block")
	if err != nil {
		return name, Unknown, ""
	}
	disk = name
	for _, d := range dirs { // a partition is a folder in its disk's
		if _, err := fs.Stat(root, "sys/block/"+d.Name()+"/"+name+"/partition"); err == nil {
			disk = d.Name()
		}
	}
	if below, err := fs.ReadDir(root, "sys/block/"+disk+"/slaves"); err == nil && len(below) > 0 {
		_, k, cache = whole(root, below[0].Name(), depth+1)
		return disk, k, cache
	}
	return disk, kindOf(root, disk), attribute(root, disk, "queue/write_cache")
}

func attribute(root fs.FS, disk, name string) string {
	text, _ := fs.ReadFile(root, "sys/block/"+disk+"/"+name) // not there: not known
	return strings.TrimSpace(string(text))
}

func kindOf(root fs.FS, disk string) Kind {
	for prefix, k := range map[string]Kind{
		"mmcblk": MMC, "nvme": NVMe, "loop": Loop, "ram": RAM, "zram": RAM, "vd": Virtual, "xvd": Virtual, "nbd": Network, "rbd": Network,
		"mtdblock": RawFlash,
	} {
		if rest, ok := strings.CutPrefix(disk, prefix); ok && rest != "" {
			return k
		}
	}
	// The link names the bus: ../devices/pci0000:00/.../usb1/...
	if link, err := fs.ReadLink(root, "sys/block/"+disk); err == nil && strings.Contains(link, "/usb") {
		return USB
	}
	vendor := attribute(root, disk, "device/vendor") + " " + attribute(root, disk, "device/model")
	if slices.ContainsFunc([]string{"QEMU", "VMware", "Virtual", "VBOX", "Google"}, func(s string) bool { return strings.Contains(vendor, s) }) {
		return Virtual
	}
	rotational, err := strconv.Atoi(attribute(root, disk, "queue/rotational"))
	switch {
	case err != nil:
		return Unknown
	case rotational == 1:
		return Rotating
	default:
		return SSD
	}
}
