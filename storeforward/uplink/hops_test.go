package uplink

import (
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"holdfast/broker/message"
	"holdfast/broker/packet"
	"holdfast/broker/topic"
)

func userProperties(tb testing.TB, users ...packet.UserProperty) []byte {
	tb.Helper()
	b, err := (&packet.PublishProperties{User: users}).AppendTo(nil)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// A message that two gateways send round between two clouds comes to an end; a
// reading carries no count.
func TestHops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		p := r.cloud.welcome(t, packet.Connack{})
		p.subscribed()
		kept := packet.UserProperty{Key: "unit", Value: "C"}
		send := func(from string, properties []byte) *packet.Publish {
			r.putMessage(&message.Message{Topic: "s/a", Payload: []byte("x"), QoS: 1, From: from, Properties: properties, Received: time.Now()})
			synctest.Wait()
			if r.backlog() == 0 {
				return nil
			}
			q := p.publish()
			p.puback(q)
			return q
		}
		if q := send("sensor", nil); len(q.Properties) != 0 {
			t.Errorf("a reading has properties: % x", q.Properties)
		}
		properties := userProperties(t, kept)
		for n := 1; ; n++ {
			q := send(RecipientName("other"), properties) // as the other uplink takes it in
			if q == nil {
				if n != maxHops+1 {
					t.Errorf("it went round %d times, want %d", n-1, maxHops)
				}
				break
			}
			props, err := packet.ParsePublishProperties(q.Properties)
			if err != nil || len(props.User) != 2 || props.User[0] != (packet.UserProperty{Key: hopsProperty, Value: strconv.Itoa(n)}) || props.User[1] != kept {
				t.Fatalf("after %d hops: %+v, %v", n, props, err)
			}
			properties = q.Properties
		}
		// A client that brings it back does not start it anew, nor does nonsense.
		if q := send("bridge", userProperties(t, packet.UserProperty{Key: hopsProperty, Value: "8"})); q != nil {
			t.Errorf("it went round again: %s", show(q))
		}
		if q := send("bridge", userProperties(t, packet.UserProperty{Key: hopsProperty, Value: "-1"})); q != nil {
			t.Errorf("it went round again: %s", show(q))
		}
		if n := r.up.Status().Dropped[dropLoop]; n != 3 {
			t.Errorf("%d dropped, want 3", n)
		}
	})
}

func TestOverlap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		level := rapid.SampledFrom([]string{"a", "b", "+"})
		filter := func(what string) string {
			ls := rapid.SliceOfN(level, 1, 3).Draw(t, what)
			if rapid.Bool().Draw(t, what+" all") {
				ls = append(ls, "#")
			}
			return strings.Join(ls, "/")
		}
		a, b := filter("a"), filter("b")
		want := false
		var try func(name string, levels int)
		try = func(name string, levels int) {
			want = want || topic.Match(a, name) && topic.Match(b, name)
			for _, l := range []string{"a", "b", "c"} {
				if levels > 0 {
					try(name+"/"+l, levels-1)
				}
			}
		}
		for _, l := range []string{"a", "b", "c"} {
			try(l, 3)
		}
		if got := overlap(a, b); got != want {
			t.Errorf("overlap(%q, %q) = %v, want %v", a, b, got, want)
		}
	})
}

func TestLoopsAreWarnedOf(t *testing.T) {
	both := func(protocol, prefix string) Options {
		o := testOptions()
		o.Protocol = protocol
		o.Routes = []Route{{Direction: DirectionBoth, Filter: "shared/#", Prefix: prefix}}
		return o
	}
	apart := testOptions()
	apart.Protocol = Protocol311
	tests := map[string]struct {
		uplinks map[string]Options
		want    []string // in each
	}{
		"one uplink, 5.0":              {map[string]Options{"a": both(ProtocolAuto, "")}, nil},
		"one uplink, 3.1.1":            {map[string]Options{"a": both(Protocol311, "x/")}, []string{`uplink.a: what goes out as "x/shared/#" comes back`}},
		"3.1.1 with different topics":  {map[string]Options{"a": apart}, nil},
		"two uplinks":                  {map[string]Options{"a": both(ProtocolAuto, "x/"), "b": both(ProtocolAuto, "y/")}, []string{`uplink.a: messages of its cloud that match "shared/#" go on to uplink b`}},
		"two uplinks, one of them old": {map[string]Options{"a": both(ProtocolAuto, ""), "b": both(Protocol311, "")}, []string{"nothing ends that", "uplink.b: what goes out"}},
		"two uplinks, one way":         {map[string]Options{"a": both(ProtocolAuto, ""), "b": testOptions()}, nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got := Loops([]string{"a", "b"}[:len(tt.uplinks)], tt.uplinks)
			if len(got) != len(tt.want) {
				t.Fatalf("got %q, want %q", got, tt.want)
			}
			for i := range got {
				if !strings.Contains(got[i], tt.want[i]) {
					t.Errorf("got %q, want %q in it", got[i], tt.want[i])
				}
			}
		})
	}
}
