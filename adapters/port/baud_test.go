package port

import (
	"errors"
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// The rate of an open port is changed by the driver that can, to any there is; a
// refusal leaves the port open.
func TestSetBaud(t *testing.T) {
	for _, driver := range []string{DriverBugst, DriverTarm} {
		t.Run(driver, func(t *testing.T) {
			master, slave, err := pty.Open()
			if err != nil {
				t.Fatal(err)
			}
			defer master.Close()
			o := DefaultOptions()
			o.Device, o.Driver = slave.Name(), driver
			p, err := Open(t.Context(), o, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			slave.Close()
			rate := func() uint32 {
				tio, err := unix.IoctlGetTermios(int(master.Fd()), unix.TCGETS2)
				if err != nil {
					t.Fatal(err)
				}
				return tio.Ospeed
			}
			for _, baud := range []int{300, 19200, 12345} {
				err := p.SetBaud(baud)
				switch {
				case driver == DriverBugst && (err != nil || rate() != uint32(baud)):
					t.Errorf("SetBaud(%d) = %v, line has %d", baud, err, rate())
				case driver == DriverTarm && (err == nil || rate() != 9600 || !strings.Contains(err.Error(), `driver "tarm" cannot`)):
					t.Errorf("SetBaud(%d) = %v, line has %d", baud, err, rate())
				}
			}
			if err := p.SetBaud(9); err == nil || p.Err() != nil {
				t.Errorf("SetBaud(9) = %v, and the port ended: %v", err, p.Err())
			}
			if err := p.Close(); err != nil {
				t.Fatal(err)
			}
			if err := p.SetBaud(2400); !errors.Is(err, os.ErrClosed) {
				t.Errorf("SetBaud after Close = %v", err)
			}
		})
	}
}
