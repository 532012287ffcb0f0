package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// The rule: gateway online and device online and one session.
func TestWhoIsAlive(t *testing.T) {
	var f gateways
	for i, step := range []struct {
		topic, payload string
		want           []string
	}{
		{"holdfast/gw/status", `{"state":"online","session":1}`, []string{"gw online"}},
		{"holdfast/gw/device/pump/status", `{"state":"online","session":1}`, []string{"gw/pump online"}},
		{"holdfast/gw/device/pump/status", `{"state":"online","session":1}`, nil}, // said again
		{"holdfast/gw/device/tank/status", `{"state":"stale","session":1}`, []string{"gw/tank stale"}},
		{"holdfast/gw/status", `{"state":"offline","session":1,"reason":"connection lost"}`, []string{
			"gw offline (connection lost)", "gw/pump unreachable (the gateway is offline)", "gw/tank unreachable (the gateway is offline)",
		}},
		{"holdfast/gw/status", `{"state":"online","session":2}`, []string{
			"gw online", "gw/pump outdated (told before the gateway started anew)", "gw/tank outdated (told before the gateway started anew)",
		}},
		{"holdfast/gw/device/pump/status", `{"state":"online","session":2}`, []string{"gw/pump online"}},
		{"holdfast/gw/device/tank/status", "", []string{"gw/tank gone"}},
		{"holdfast/other/device/x/status", `{"state":"online","session":9}`, []string{"other/x online"}}, // its gateway has not spoken yet
		{"holdfast/gw/device/a/b/status", `{"state":"online"}`, nil},
		{"holdfast/gw/uplink/status", `{"state":"online"}`, nil},
		{"holdfast/gw/device/pump/status", `{"no":1}`, nil},
		{"holdfast/gw/device/pump/status", "\xff", nil},
		{"elsewhere", `{"state":"online"}`, nil},
		{"holdfast/gw/status", "", []string{"gw gone"}},
	} {
		var got []string
		for _, l := range f.follow(step.topic, []byte(step.payload)) {
			name := l.Gateway
			if l.Device != "" {
				name += "/" + l.Device
			}
			got = append(got, name+" "+l.State+because(l.Reason))
		}
		if !slices.Equal(got, step.want) {
			t.Errorf("step %d, %s %s:\n  %s\nwant\n  %s", i, step.topic, step.payload, strings.Join(got, "\n  "), strings.Join(step.want, "\n  "))
		}
	}
	if got := fmt.Sprint(len(f.all())); got != "2" {
		t.Errorf("%s lines in the end, want pump of gw and x of other: %v", got, f.all())
	}
}
