package port

import (
	"testing"

	"golang.org/x/sys/unix"
)

// What an adapter does instead of what it was told must be said by key. A pty
// cannot show it: it says 8N1 to everything.
func TestMismatches(t *testing.T) {
	type settings struct {
		cflag, ospeed uint32
	}
	tests := map[string]struct {
		change func(*Options)
		got    settings
		want   string // empty: as configured
	}{
		"as configured":                     {func(*Options) {}, settings{unix.CS8, 9600}, ""},
		"all of it, odd":                    {func(o *Options) { o.DataBits, o.Parity, o.StopBits = 7, "odd", 2 }, settings{unix.CS7 | unix.PARENB | unix.PARODD | unix.CSTOPB, 9600}, ""},
		"five bits, mark":                   {func(o *Options) { o.DataBits, o.Parity = 5, "mark" }, settings{unix.CS5 | unix.PARENB | unix.PARODD | unix.CMSPAR, 9600}, ""},
		"six bits, space":                   {func(o *Options) { o.DataBits, o.Parity = 6, "space" }, settings{unix.CS6 | unix.PARENB | unix.CMSPAR, 9600}, ""},
		"odd without parity means nothing":  {func(*Options) {}, settings{unix.CS8 | unix.PARODD, 9600}, ""},
		"even parity refused":               {func(o *Options) { o.Parity = "even" }, settings{unix.CS8, 9600}, `parity = "even" (it uses "none")`},
		"mark parity became odd":            {func(o *Options) { o.Parity = "mark" }, settings{unix.CS8 | unix.PARENB | unix.PARODD, 9600}, `parity = "mark" (it uses "odd")`},
		"space parity became even":          {func(o *Options) { o.Parity = "space" }, settings{unix.CS8 | unix.PARENB, 9600}, `parity = "space" (it uses "even")`},
		"seven bits refused":                {func(o *Options) { o.DataBits = 7 }, settings{unix.CS8, 9600}, "data_bits = 7 (it uses 8)"},
		"two stop bits refused":             {func(o *Options) { o.StopBits = 2 }, settings{unix.CS8, 9600}, "stop_bits = 2 (it uses 1)"},
		"a divider that does not fit":       {func(o *Options) { o.Baud = 250000 }, settings{unix.CS8, 230400}, "baud = 250000 (it uses 230400)"},
		"a divider off by less than it may": {func(o *Options) { o.Baud = 115200 }, settings{unix.CS8, 117647}, ""},
		"a driver that does not say":        {func(*Options) {}, settings{unix.CS8, 0}, ""},
		"two at once":                       {func(o *Options) { o.DataBits, o.StopBits = 7, 2 }, settings{unix.CS8, 9600}, "data_bits = 7 (it uses 8), stop_bits = 2 (it uses 1)"},
	}
	for name, tt := range tests {
		o := DefaultOptions()
		tt.change(&o)
		got := mismatches(&unix.Termios{Cflag: tt.got.cflag, Ospeed: tt.got.ospeed}, o)
		if got != tt.want {
			t.Errorf("%s: mismatches = %q, want %q", name, got, tt.want)
		}
	}
}
