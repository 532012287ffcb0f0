package port

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// Newer kernels put two layers between a UART and its tty, whose drivers say
// nothing.
func TestDriverOfAUARTIsThatOfTheChip(t *testing.T) {
	root := t.TempDir()
	chip := filepath.Join(root, "devices", "fe201000.serial")
	tty := filepath.Join(chip, "fe201000.serial:0", "fe201000.serial:0.0")
	mkdir(t, tty)
	link(t, "../bus/amba/drivers/uart-pl011", filepath.Join(chip, "driver"))
	for _, dir := range []string{tty, filepath.Dir(tty)} {
		link(t, "../bus/serial-base", filepath.Join(dir, "subsystem"))
		link(t, "../bus/serial-base/drivers/port", filepath.Join(dir, "driver"))
	}
	if got := kernelDriver(tty); got != "uart-pl011" {
		t.Errorf("driver = %q, want uart-pl011", got)
	}
	if got := kernelDriver(root); got != "" {
		t.Errorf("driver of nothing = %q", got)
	}
}

func TestPortsAreListedInTheOrderOfTheirNumbers(t *testing.T) {
	root := t.TempDir()
	for _, name := range []string{"ttyS10", "ttyS2", "ttyAMA0", "ttyGS0", "tty7"} {
		dir := filepath.Join(root, "sys", "class", "tty", name)
		mkdir(t, dir)
		if name != "ttyGS0" && name != "tty7" {
			link(t, ".", filepath.Join(dir, "device"))
		}
	}
	found, err := MachineAt(root).List()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range found {
		got = append(got, f.Path)
	}
	if want := []string{"/dev/ttyAMA0", "/dev/ttyGS0", "/dev/ttyS2", "/dev/ttyS10"}; !slices.Equal(got, want) {
		t.Errorf("List = %v, want %v", got, want)
	}
}

func TestUsersOfAPort(t *testing.T) {
	_, o := ptyPort(t)
	l := waitingLine(t, o)
	p, err := l.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	name := filepath.Join(t.TempDir(), "meter")
	link(t, o.Device, name)
	users, err := MachineAt("/").UsersOf(name)
	if err != nil || len(users) != 1 || users[0].PID != os.Getpid() || users[0].Name == "" {
		t.Errorf("UsersOf = %+v, %v, want this process once", users, err)
	}
	// This machine's own ports, whatever they are.
	if _, err := MachineAt("/").List(); err != nil {
		t.Errorf("List: %v", err)
	}
}
