package port

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Found is a serial port of a machine.
type Found struct {
	// Path is the device file; ByID and ByPath are its names that stay the
	// same, empty where there are none.
	Path   string `json:"path"`
	ByID   string `json:"by_id,omitempty"`
	ByPath string `json:"by_path,omitempty"`
	// Driver is the kernel's, such as "ftdi_sio".
	Driver string `json:"driver,omitempty"`
	// Manufacturer, Product and Serial are what a USB device says of itself.
	Manufacturer string `json:"manufacturer,omitempty"`
	Product      string `json:"product,omitempty"`
	Serial       string `json:"serial,omitempty"`
	// USB is "VID:PID", as in a selector; empty when it is no USB device.
	USB string `json:"usb,omitempty"`
	// Hardware is false for a ttyS that the kernel has put aside for a chip
	// that is not there.
	Hardware bool `json:"hardware"`
	// Users have it open, as far as this user may know.
	Users []User `json:"users"`
}

// User is a process that has a port open.
type User struct {
	PID  int    `json:"pid"`
	Name string `json:"name"`
}

// Machine says where a machine's kernel and udev tell of devices.
type Machine struct{ Sysfs, Dev, Proc string }

// MachineAt is the machine whose file system is at root, which is "/" for this
// one.
func MachineAt(root string) Machine {
	return Machine{filepath.Join(root, "sys"), filepath.Join(root, "dev"), filepath.Join(root, "proc")}
}

// List lists the serial ports in the order of their names. It opens none of
// them: opening one raises DTR and RTS, which some devices take for a command.
// Paths are as the machine itself has them.
func (m Machine) List() ([]Found, error) {
	class := filepath.Join(m.Sysfs, "class", "tty")
	entries, err := os.ReadDir(class)
	if err != nil {
		return nil, fmt.Errorf("list serial ports: %w", err)
	}
	byID, byPath := m.links("by-id"), m.links("by-path")
	users := m.users()
	found := []Found{}
	for _, e := range entries {
		name := e.Name()
		dir, err := filepath.EvalSymlinks(filepath.Join(class, name, "device"))
		if err != nil && !strings.HasPrefix(name, "ttyGS") { // the only ones that have none
			continue
		}
		f := Found{
			Path: "/dev/" + name, ByID: byID[name], ByPath: byPath[name], Driver: kernelDriver(dir),
			Hardware: attribute(filepath.Join(class, name), "type") != "0", // PORT_UNKNOWN of linux/serial.h
			Users:    users["/dev/"+name],
		}
		if usb := usbDevice(dir); usb != "" {
			f.USB = attribute(usb, "idVendor") + ":" + attribute(usb, "idProduct")
			f.Manufacturer, f.Product, f.Serial = attribute(usb, "manufacturer"), attribute(usb, "product"), attribute(usb, "serial")
		}
		if f.Users == nil {
			f.Users = []User{}
		}
		found = append(found, f)
	}
	slices.SortFunc(found, func(a, b Found) int { return compareNumbered(a.Path, b.Path) })
	return found, nil
}

// compareNumbered puts ttyS2 before ttyS10.
func compareNumbered(a, b string) int {
	word := func(s string) (string, int) {
		w := strings.TrimRight(s, "0123456789")
		n, err := strconv.Atoi(s[len(w):])
		if err != nil {
			n = -1
		}
		return w, n
	}
	wa, na := word(a)
	wb, nb := word(b)
	return cmp.Or(strings.Compare(wa, wb), cmp.Compare(na, nb))
}

// links returns udev's names of one kind by the device's own.
func (m Machine) links(kind string) map[string]string {
	names := map[string]string{}
	entries, err := os.ReadDir(filepath.Join(m.Dev, "serial", kind))
	if err != nil {
		return names // no device with such a name is plugged in
	}
	for _, e := range entries {
		to, err := os.Readlink(filepath.Join(m.Dev, "serial", kind, e.Name()))
		if name := filepath.Base(to); err == nil && names[name] == "" {
			names[name] = "/dev/serial/" + kind + "/" + e.Name()
		}
	}
	return names
}

// kernelDriver is the driver of a tty's device; the layers that newer kernels
// put between a UART and its tty do not count.
func kernelDriver(dir string) string {
	for range treeLevels {
		bus, _ := os.Readlink(filepath.Join(dir, "subsystem")) // none: not a layer either
		driver, err := os.Readlink(filepath.Join(dir, "driver"))
		switch {
		case filepath.Base(bus) == "serial-base":
			dir = filepath.Dir(dir)
		case err != nil:
			return ""
		default:
			return filepath.Base(driver)
		}
	}
	return ""
}

// users finds out who has which device file open. Processes of others are left
// out unless we are root.
func (m Machine) users() map[string][]User {
	users := map[string][]User{}
	entries, err := os.ReadDir(m.Proc)
	if err != nil {
		return users
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		dir := filepath.Join(m.Proc, e.Name())
		fds, err := os.ReadDir(filepath.Join(dir, "fd"))
		if err != nil {
			continue // not ours to see, or it has ended
		}
		seen := map[string]bool{}
		for _, fd := range fds {
			to, err := os.Readlink(filepath.Join(dir, "fd", fd.Name()))
			if err != nil || !strings.HasPrefix(to, "/dev/") || seen[to] {
				continue
			}
			seen[to] = true
			users[to] = append(users[to], User{PID: pid, Name: attribute(dir, "comm")})
		}
	}
	return users
}

// UsersOf returns who has the device file open, a link being followed.
func (m Machine) UsersOf(path string) ([]User, error) {
	to, err := filepath.EvalSymlinks(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w: %w", ErrUnplugged, err)
		}
		return nil, err
	}
	return m.users()[to], nil
}
