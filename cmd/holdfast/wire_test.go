package main

import (
	"fmt"
	"testing"
	"time"
)

// $SYS hears of each change of an uplink once, and of its end.
func TestConnectionsAreTold(t *testing.T) {
	t.Parallel()
	up := map[string]time.Duration{}
	uplinks := map[string]*running{}
	for _, name := range []string{"a", "b"} {
		uplinks[name] = &running{upFor: func() time.Duration { return up[name] }}
	}
	c := connections{}
	step := func(what, want string) {
		t.Helper()
		var got []string
		c.tell(uplinks, func(name, value string) { got = append(got, name+"="+value) })
		if fmt.Sprint(got) != want {
			t.Errorf("%s: %v, want %s", what, got, want)
		}
	}
	step("at the start", "[connection/a/state=0 connection/b/state=0]")
	up["b"] = time.Second
	step("one is up", "[connection/b/state=1]")
	step("nothing new", "[]")
	up["b"] = 0
	step("it is lost", "[connection/b/state=0]")
	delete(uplinks, "a")
	step("the other is gone", "[connection/a/state=]")
}
