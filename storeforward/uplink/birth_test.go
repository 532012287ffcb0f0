package uplink

import (
	"encoding/json"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker/message"
	"holdfast/broker/packet"
)

// gatewayStatus is DefaultStatusPayload.
type gatewayStatus struct {
	State   string `json:"state"`
	Session uint64 `json:"session"`
	Reason  string `json:"reason"`
	Version string `json:"version"`
	Time    string `json:"time"`
}

func TestStatusTemplates(t *testing.T) {
	v := statusValues{
		gateway: "gw", clientID: `c"1`, version: "1.2", session: 7, state: "offline",
		reason: "a \"bad\" cable,\nunder {time}", at: time.Date(2026, 5, 1, 12, 0, 0, 1e6, time.FixedZone("", 7200)),
	}
	tests := map[string]struct{ template, want string }{
		"text":          {"{state}", "offline"},
		"text, as is":   {"{gateway} {reason}", "gw a \"bad\" cable,\nunder {time}"},
		"number":        {"{session}", "7"},
		"JSON":          {`{"s":"{state}","n":{session},"t":"{time}"}`, `{"s":"offline","n":7,"t":"2026-05-01T10:00:00.001Z"}`},
		"JSON, escaped": {`["{reason} of {client_id}"]`, `["a \"bad\" cable,\nunder {time} of c\"1"]`},
		"no places":     {"0", "0"},
		"nothing":       {"", ""},
		"other braces":  {"{}{ state }", "{}{ state }"},
		"no JSON":       {`{"s":{state}, "r":"{reason}"`, `{"s":offline, "r":"` + v.reason + `"`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := v.inPayload(tt.template); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
	var st gatewayStatus
	if err := json.Unmarshal([]byte(v.inPayload(DefaultStatusPayload)), &st); err != nil || st.Reason != v.reason || st.Session != 7 || st.State != "offline" {
		t.Errorf("the default is %+v, %v", st, err)
	}
}

// Will, birth and the last message go where and as the templates say.
func TestStatusKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) {
			o.BirthTopic, o.WillTopic = "up/{gateway}/{version}", "down/{client_id}"
			o.BirthPayload, o.WillPayload = "{state} {session}", "{state}: {reason}"
			o.StatusRetain, o.WillDelay, o.ClientID = false, 0, "me"
		})
		p := r.cloud.acceptWith(t, packet.Connack{})
		w := p.hello.Will
		if w == nil || w.Topic != "down/me" || string(w.Payload) != "offline: connection lost" || w.Retain || w.Properties.WillDelay != 0 {
			t.Errorf("will is %+v", w)
		}
		birth := p.expectPublish("online 1", 1, false)
		if string(birth.Topic) != "up/gw/1.2.3" || birth.Retain {
			t.Errorf("birth is %s", show(birth))
		}
		p.puback(birth)
		p.subscribed()
		go r.stop(errors.New("power saving"))
		last := p.expectPublish("offline: power saving", 1, false)
		if string(last.Topic) != "down/me" {
			t.Errorf("last message is %s", show(last))
		}
		p.puback(last)
		if d := expect[*packet.Disconnect](p); d.Reason != packet.ReasonSuccess {
			t.Errorf("DISCONNECT with %s", d.Reason)
		}
	})
}

// What is retained goes out before what waits, and only when something does or the
// cloud has lost the session.
func TestSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) {
			o.Routes = append([]Route{{Direction: DirectionOut, Filter: "s/state/+", Prefix: "site/", Snapshot: true}}, o.Routes...)
		})
		state := func(topic, payload string) {
			r.putMessage(&message.Message{Topic: topic, Payload: []byte(payload), QoS: 1, Retain: true, Received: time.Now()})
		}
		state("s/state/a", "old")
		r.put("s/x", "reading", 1)
		state("s/state/a", "new")
		state("s/other", "kept")
		pass(time.Second)
		p := r.cloud.welcome(t, packet.Connack{})
		p.subscribed()
		for _, want := range []string{"new", "old", "reading", "new", "kept"} {
			q := p.expectPublish(want, 1, false)
			if q.Retain != (want != "reading") {
				t.Errorf("got %s", show(q))
			}
			p.puback(q)
		}
		p.quiet()
		p.cut()
		p = r.cloud.welcome(t, packet.Connack{SessionPresent: true})
		p.quiet() // nothing waits, and the cloud has everything
		p.cut()
		p = r.cloud.welcome(t, packet.Connack{})
		p.subscribed()
		p.puback(p.expectPublish("new", 1, false))
		p.quiet()
		if st := r.up.Status(); st.Snapshot != 2 || st.Backlog != 0 || st.InFlight != 0 {
			t.Errorf("status is %+v", st)
		}
	})
}
