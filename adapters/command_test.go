package adapters_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"holdfast/adapters"
	"holdfast/broker/message"
)

func TestStaleCommands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const maxAge = 10 * time.Second
		now := time.Now()
		tests := map[string]struct {
			c    adapters.Command
			want string
		}{
			"fresh":                       {c: adapters.Command{Received: now}},
			"as old as it may be":         {c: adapters.Command{Received: now.Add(-maxAge)}},
			"older":                       {c: adapters.Command{Received: now.Add(-maxAge - 1)}, want: adapters.StaleTooOld},
			"within its interval":         {c: adapters.Command{Received: now.Add(-time.Second), Expiry: 2 * time.Second, HasExpiry: true}},
			"at the end of its interval":  {c: adapters.Command{Received: now.Add(-2 * time.Second), Expiry: 2 * time.Second, HasExpiry: true}, want: adapters.StaleExpired},
			"an interval of nothing":      {c: adapters.Command{Received: now, HasExpiry: true}, want: adapters.StaleExpired},
			"a long interval and old":     {c: adapters.Command{Received: now.Add(-time.Minute), Expiry: time.Hour, HasExpiry: true}, want: adapters.StaleTooOld},
			"fresh, but with RETAIN flag": {c: adapters.Command{Received: now, Retain: true}, want: adapters.StaleRetained},
		}
		for name, tt := range tests {
			if got := tt.c.Stale(now, maxAge); got != tt.want {
				t.Errorf("%s: Stale = %q, want %q", name, got, tt.want)
			}
		}
	})
}

func TestAnswerOfACommand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := adapters.Command{Topic: "a/set", AnswerTopic: "b", AnswerProperties: []byte{1}, QoS: 2, Retain: true}
		want := &message.Message{Topic: "b", Payload: []byte("x"), Properties: []byte{1}, QoS: 1, Received: time.Now()}
		if diff := cmp.Diff(want, c.Answer([]byte("x"))); diff != "" {
			t.Errorf("answer (-want +got):\n%s", diff)
		}
	})
}
