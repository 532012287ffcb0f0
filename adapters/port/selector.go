package port

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// usbSelector is a parsed "usb:VID:PID[:SERIAL]".
type usbSelector struct {
	vendor, product string // four lower-case hexadecimal digits
	serial          string // empty: any
}

func parseUSB(s string) (sel usbSelector, isUSB bool, err error) {
	rest, isUSB := strings.CutPrefix(s, "usb:")
	if !isUSB {
		return sel, false, nil
	}
	// A serial number may hold colons, so it is whatever follows the second.
	parts := strings.SplitN(rest, ":", 3)
	if len(parts) < 2 || !isHex4(parts[0]) || !isHex4(parts[1]) {
		return sel, true, fmt.Errorf("%q is not of the form usb:VID:PID or usb:VID:PID:SERIAL with four hexadecimal digits each", s)
	}
	sel.vendor, sel.product = strings.ToLower(parts[0]), strings.ToLower(parts[1])
	if len(parts) == 3 {
		if parts[2] == "" {
			return sel, true, fmt.Errorf("%q ends in an empty serial number", s)
		}
		sel.serial = parts[2]
	}
	return sel, true, nil
}

func isHex4(s string) bool {
	return len(s) == 4 && strings.Trim(s, "0123456789abcdefABCDEF") == ""
}

func validateSelector(s string) error {
	if s == "" {
		return errNoDevice
	}
	if strings.ContainsRune(s, 0) {
		return fmt.Errorf("%q holds a NUL", s)
	}
	_, isUSB, err := parseUSB(s)
	if err != nil || isUSB {
		return err
	}
	if !filepath.IsAbs(s) {
		return fmt.Errorf("%q is neither an absolute path nor usb:VID:PID", s)
	}
	return nil
}

// resolve returns the path of the device file that the options select. The
// error is ErrUnplugged when there is none now.
func (o Options) resolve() (string, error) {
	sel, isUSB, err := parseUSB(o.Device)
	if err != nil {
		return "", err
	}
	if !isUSB {
		if _, err := os.Stat(o.Device); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return "", fmt.Errorf("%w: %w", ErrUnplugged, err)
			}
			return "", err
		}
		return o.Device, nil
	}
	names, err := sel.find(o.sysfs())
	switch {
	case err != nil:
		return "", err
	case len(names) == 0:
		return "", fmt.Errorf("%w: no serial port belongs to %s", ErrUnplugged, o.Device)
	case len(names) > 1:
		return "", fmt.Errorf("%s selects %d ports (%s): add the serial number, or use /dev/serial/by-path",
			o.Device, len(names), strings.Join(names, ", "))
	}
	return filepath.Join(o.dev(), names[0]), nil
}

// dev is where device files are.
func (o Options) dev() string {
	if o.Dev != "" {
		return o.Dev
	}
	return "/dev"
}

func (o Options) sysfs() string {
	if o.Sysfs != "" {
		return o.Sysfs
	}
	return "/sys"
}

// present is resolve for a device file that is there: the kernel tells of a
// device in /sys before there is a file in /dev.
func (o Options) present() (string, error) {
	path, err := o.resolve()
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%w: %w", ErrUnplugged, err)
	}
	return path, nil
}

// watchPath is a path that appears, or is replaced, when the device comes.
func (o Options) watchPath() string {
	if strings.HasPrefix(o.Device, "usb:") {
		return filepath.Join(o.dev(), "tty")
	}
	return o.Device
}

// find returns the names of the ttys that belong to a matching USB device, in
// order. Nothing is opened but sysfs attributes.
func (sel usbSelector) find(sysfs string) ([]string, error) {
	class := filepath.Join(sysfs, "class", "tty")
	entries, err := os.ReadDir(class)
	if err != nil {
		return nil, fmt.Errorf("look for usb devices: %w", err)
	}
	var names []string
	for _, e := range entries {
		// Without a device link it is a virtual terminal; most entries are.
		dir, err := filepath.EvalSymlinks(filepath.Join(class, e.Name(), "device"))
		if err != nil {
			continue
		}
		if sel.matches(dir) {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names, nil
}

// treeLevels are from a tty's device to the USB device it is part of: usb-serial
// port, interface, device; and some to spare.
const treeLevels = 5

// usbDevice climbs from a tty's device to the USB device it is part of; empty
// when it is part of none.
func usbDevice(dir string) string {
	for range treeLevels {
		if dir == "" {
			return ""
		}
		if attribute(dir, "idVendor") != "" {
			return dir
		}
		dir = filepath.Dir(dir)
	}
	return ""
}

// matches says whether a tty's device is part of the USB device selected.
func (sel usbSelector) matches(dir string) bool {
	usb := usbDevice(dir)
	return usb != "" && strings.EqualFold(attribute(usb, "idVendor"), sel.vendor) &&
		strings.EqualFold(attribute(usb, "idProduct"), sel.product) &&
		(sel.serial == "" || attribute(usb, "serial") == sel.serial)
}

func attribute(dir, name string) string {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
