package reading

import (
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Stamp is a moment as the gateway knows it. Wall may be wrong before the
// clock has been set; Boot and Boottime are right even then, and allow the
// wall time to be put right later.
type Stamp struct {
	// Wall is the wall clock, with its monotonic reading.
	Wall time.Time
	// Boot is the kernel's id of this boot; empty when it cannot be had.
	Boot string
	// Boottime is the time since boot, suspend included (CLOCK_BOOTTIME).
	Boottime time.Duration
	// Synchronised says that the kernel or timesyncd takes the wall clock
	// for set from outside.
	Synchronised bool
	// Device is when the device itself says that it measured; zero if it does
	// not. Whether its clock is right nobody here knows.
	Device time.Time
}

// Whose word the time of a measurement is.
const (
	clockDevice         = "device"
	clockSynchronised   = "synchronised"
	clockUnsynchronised = "unsynchronised"
)

// Measured is the time of the measurement as it is to be published, and whose
// word that is: "device", or the gateway's clock, "synchronised" or not
// ("unsynchronised").
func (s Stamp) Measured() (t time.Time, clock string) {
	switch {
	case !s.Device.IsZero():
		return s.Device, clockDevice
	case s.Synchronised:
		return s.Wall, clockSynchronised
	default:
		return s.Wall, clockUnsynchronised
	}
}

// Where the system says it; variables of a Clock so that tests have others.
const (
	bootIDPath   = "/proc/sys/kernel/random/boot_id"
	timesyncPath = "/run/systemd/timesync/synchronized"
)

// syncEvery is how often the kernel is asked whether the clock is
// synchronised: it changes a few times a day, and a poll cycle makes hundreds
// of stamps a second.
const syncEvery = time.Second

// Clock makes stamps. It is safe for use by many goroutines; one serves the
// whole process.
type Clock struct {
	boot         string
	timesyncPath string
	unsync       func() bool // the kernel says the clock is not synchronised

	mu           sync.Mutex
	checked      time.Time // guarded by mu
	synchronised bool      // guarded by mu
}

// NewClock returns a clock of this machine.
func NewClock() *Clock {
	c := &Clock{timesyncPath: timesyncPath, unsync: kernelUnsync}
	if id, err := os.ReadFile(bootIDPath); err == nil {
		c.boot = strings.TrimSpace(string(id))
	}
	return c
}

// Now stamps this moment.
func (c *Clock) Now() Stamp {
	now := time.Now()
	s := Stamp{Wall: now, Boot: c.boot, Synchronised: c.isSynchronised(now)}
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) == nil {
		s.Boottime = time.Duration(ts.Nano())
	}
	return s
}

func (c *Clock) isSynchronised(now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.checked.IsZero() || now.Sub(c.checked) >= syncEvery {
		c.checked = now
		c.synchronised = !c.unsync()
		if !c.synchronised {
			// timesyncd leaves this file once it has set the clock; the
			// kernel flag may be up again after hours without a server.
			_, err := os.Stat(c.timesyncPath)
			c.synchronised = err == nil
		}
	}
	return c.synchronised
}

// kernelUnsync asks adjtimex(2), which needs no privilege for reading.
func kernelUnsync() bool {
	var tx unix.Timex
	_, err := unix.Adjtimex(&tx)
	return err != nil || tx.Status&unix.STA_UNSYNC != 0
}
