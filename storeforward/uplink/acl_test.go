package uplink

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker/packet"
)

// The routes in are the list of what the cloud may write: nothing else gets in,
// whatever it sends, and what does not is counted and refused.
func TestOnlyRoutesLetTheCloudIn(t *testing.T) {
	routes := []Route{
		{Direction: DirectionIn, Filter: "cmd/+/set", Prefix: "site/"},
		{Direction: DirectionIn, Filter: "config/#", Prefix: "site/", Retain: RetainStrip, QoS: new(1)},
		{Direction: DirectionBoth, Filter: "shared/+", Rename: "fleet/{1}/x"},
		{Direction: DirectionOut, Filter: "s/#", Prefix: "site/"},
		{Direction: DirectionIn, Filter: "#", Prefix: "all/"},
	}
	tests := map[string]struct {
		topic string
		want  string // here; empty: it does not get in
	}{
		"asked for":                       {"site/cmd/valve/set", "cmd/valve/set"},
		"one level less":                  {"site/cmd/set", ""},
		"one level more":                  {"site/cmd/a/b/set", ""},
		"an empty level":                  {"site/cmd//set", "cmd//set"},
		"without the prefix":              {"cmd/valve/set", ""},
		"with another prefix":             {"sites/cmd/valve/set", ""},
		"another case":                    {"site/CMD/valve/set", ""},
		"a whole tree":                    {"site/config/a/b", "config/a/b"},
		"renamed":                         {"fleet/a/x", "shared/a"},
		"not as renamed":                  {"fleet/a/y", ""},
		"as it is called here":            {"shared/a", ""},
		"what only goes out":              {"site/s/a", ""},
		"a topic of the cloud's broker":   {"$SYS/broker/uptime", ""},
		"a topic of our broker":           {"all/$SYS/broker/uptime", ""},
		"a shared subscription's name":    {"all/$share/g/a", ""},
		"nothing behind the prefix":       {"all/", ""},
		"the prefix without its slash":    {"all", ""},
		"dots":                            {"site/../cmd/valve/set", ""},
		"everything behind its prefix":    {"all/a/b", "a/b"},
		"a route's own filter as a topic": {"site/config", "config"},
	}
	for _, retain := range []bool{false, true} {
		for qos := byte(0); qos <= 2; qos++ {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, func(o *Options) { o.Routes = routes })
				p := r.cloud.welcome(t, packet.Connack{})
				p.subscribed()
				refused := uint64(0)
				for name, tt := range tests {
					before := len(r.local.messages())
					p.send(&packet.Publish{QoS: qos, PacketID: uint16(qos) * 7, Retain: retain, Topic: []byte(tt.topic), Payload: []byte("x")})
					want := packet.ReasonSuccess
					if tt.want == "" {
						want = packet.ReasonNotAuthorized
						refused++
					}
					switch qos {
					case 1:
						if ack := expect[*packet.Puback](p); ack.Reason != want {
							t.Errorf("%s: answer %s, want %s", name, ack.Reason, want)
						}
					case 2:
						rec := expect[*packet.Pubrec](p)
						if rec.Reason != want {
							t.Errorf("%s: answer %s, want %s", name, rec.Reason, want)
						}
						if !rec.Reason.Failed() {
							p.send(&packet.Pubrel{PacketID: rec.PacketID})
							expect[*packet.Pubcomp](p)
						}
					}
					synctest.Wait()
					got := r.local.messages()[before:]
					if tt.want == "" {
						if len(got) != 0 {
							t.Errorf("%s: %q got in as %q", name, tt.topic, got[0].Topic)
						}
						continue
					}
					if len(got) != 1 || got[0].Topic != tt.want {
						t.Errorf("%s: %q got in as %+v, want %q", name, tt.topic, got, tt.want)
						continue
					}
					config := strings.HasPrefix(tt.want, "config")
					if m := got[0]; m.Retain != (retain && !config) || config && m.QoS > 1 {
						t.Errorf("%s: retain %v qos %d", name, m.Retain, m.QoS)
					}
				}
				if n := r.up.Status().Dropped[dropInNoRoute]; n != refused {
					t.Errorf("%d counted, want %d", n, refused)
				}
			})
		}
	}
}

// A topic that is none ends the connection; nothing gets in.
func TestNoTopicOfTheCloud(t *testing.T) {
	for name, topic := range map[string]string{"wildcard": "site/cmd/+", "all": "site/cmd/#", "NUL": "site/cmd/\x00"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, nil)
				p := r.cloud.welcome(t, packet.Connack{})
				p.subscribed()
				// Encoded by hand: our own encoder refuses it.
				body := append([]byte{0x32, byte(2 + len(topic) + 2 + 1), 0, byte(len(topic))}, topic...)
				if _, err := p.nc.Write(append(body, 0, 1, 0)); err != nil {
					t.Fatal(err)
				}
				p.gone()
				pass(time.Millisecond)
				if n := len(r.local.messages()); n != 0 {
					t.Errorf("%d messages got in", n)
				}
				if st := r.up.Status(); st.State != StateBackingOff || st.Reason == "" {
					t.Errorf("status is %s, %q", st.State, st.Reason)
				}
			})
		})
	}
}
