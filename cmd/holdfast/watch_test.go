package main

import (
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/broker/packet"
	"holdfast/storeforward/uplink/dial"
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

// A broker that answers a SUBSCRIBE twice, and with more reason codes than it had
// filters, is no reason to fall over.
func TestWatchBearsOddAnswers(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() {
		served <- func() error {
			c, err := l.Accept()
			if err != nil {
				return err
			}
			defer c.Close()
			r := packet.NewReader(c, 0)
			odd := &packet.Suback{PacketID: 1, Reasons: []packet.ReasonCode{0, 0, packet.ReasonNotAuthorized}}
			for _, answers := range [][]packet.Packet{{&packet.Connack{}}, {odd, odd}} {
				if _, err := r.Next(); err != nil {
					return err
				}
				var b []byte
				for _, p := range answers {
					if b, err = p.AppendTo(b, packet.V5); err != nil {
						return err
					}
				}
				if _, err := c.Write(b); err != nil {
					return err
				}
			}
			_, err = io.Copy(io.Discard, c)
			return err
		}()
	}()
	o := &watchOptions{Options: dial.DefaultOptions(), gateway: "+", once: true, settle: 50 * time.Millisecond}
	o.URL = "mqtt://" + l.Addr().String()
	if err := watch(t.Context(), o, io.Discard, io.Discard); err != nil {
		t.Errorf("watch: %v", err)
	}
	l.Close()
	if err := <-served; err != nil {
		t.Errorf("the broker: %v", err)
	}
}
