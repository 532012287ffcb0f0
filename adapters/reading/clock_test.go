package reading

import (
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

func TestClockStampsThisMachine(t *testing.T) {
	c := NewClock()
	a, b := c.Now(), c.Now()
	if a.Boot == "" || len(a.Boot) != 36 {
		t.Errorf("Boot = %q, want a UUID", a.Boot)
	}
	if a.Boottime <= 0 || b.Boottime < a.Boottime {
		t.Errorf("Boottime %v then %v", a.Boottime, b.Boottime)
	}
	if time.Since(a.Wall) > time.Minute {
		t.Errorf("Wall = %v", a.Wall)
	}
}

func TestClockAsksAtMostOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked, unsync := 0, true
		c := &Clock{timesyncPath: filepath.Join(t.TempDir(), "synchronized"), unsync: func() bool { asked++; return unsync }}
		for range 100 {
			if c.Now().Synchronised {
				t.Error("synchronised, though the kernel says no and there is no file")
			}
		}
		if asked != 1 {
			t.Errorf("asked the kernel %d times for 100 stamps, want once", asked)
		}
		<-time.After(time.Second)
		unsync = false
		if !c.Now().Synchronised {
			t.Error("not synchronised, though the kernel says so")
		}
		<-time.After(time.Second)
		unsync = true
		if err := os.WriteFile(c.timesyncPath, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if !c.Now().Synchronised {
			t.Error("not synchronised, though timesyncd has set the clock")
		}
	})
}
