package broker_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker"
	"holdfast/broker/brokertest"
	"holdfast/broker/durable"
	"holdfast/broker/packet"
)

// A session that an operator ends is gone with all it had, and durably; its will is
// published at once, and once.
func TestOperatorEndsASession(t *testing.T) {
	lasting := func(id string, v func(string) *packet.Connect) *packet.Connect {
		p := brokertest.Keep(v(id), 3600)
		p.Will = &packet.Will{Topic: "will", QoS: 1, Payload: []byte("of " + id)}
		if p.Version == packet.V5 {
			p.Will.Properties.WillDelay = 600
		}
		return p
	}
	tests := map[string]struct {
		connect *packet.Connect
		before  func(c *brokertest.Client) // what becomes of its client
		online  bool
		wills   []string
	}{
		"connected":        {connect: lasting("x", brokertest.V5), online: true, wills: []string{"of x"}},
		"connected, 3.1.1": {connect: lasting("x", brokertest.V4), online: true, wills: []string{"of x"}},
		"away, with its will waiting": {
			connect: lasting("x", brokertest.V5), before: (*brokertest.Client).Kill, wills: []string{"of x"},
		},
		"away, without a will": {
			connect: lasting("x", brokertest.V5), before: func(c *brokertest.Client) { c.Disconnect(packet.ReasonSuccess) },
		},
		"of its connection only": {connect: brokertest.V5("x"), online: true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := brokertest.New(t, nil, func(*broker.Options) {})
				watch := brokertest.Connect(t, b.Pipe(), brokertest.V5("watch"))
				watch.Subscribe(1, "will")
				c := brokertest.Connect(t, b.Pipe(), tt.connect)
				c.Subscribe(1, "a", "$share/g/b")
				if tt.before != nil {
					tt.before(c)
					synctest.Wait()
				}
				if err := b.EndSession(t.Context(), "x"); err != nil {
					t.Fatal(err)
				}
				if got := b.Status(); got.SessionsEnded != 1 || got.Sessions != 1 || got.Subscriptions != 1 || got.PendingWills != 0 {
					t.Errorf("status %+v", got)
				}
				if kept, err := b.Store.Sessions(t.Context()); err != nil || slices.ContainsFunc(kept, func(s durable.Session) bool { return s.ClientID == "x" || strings.Contains(s.ClientID, "$share") }) {
					t.Errorf("kept: %+v, %v", kept, err)
				}
				if tt.online {
					reason, told := c.Ended()
					if v5 := tt.connect.Version == packet.V5; told != v5 || v5 && reason != packet.ReasonAdministrativeAction {
						t.Errorf("DISCONNECT %v, %t", reason, told)
					}
				}
				if err := b.EndSession(t.Context(), "x"); !errors.Is(err, broker.ErrNoSession) {
					t.Errorf("again: %v", err)
				}
				again := brokertest.Connect(t, b.Pipe(), lasting("x", brokertest.V5))
				if again.Connack.SessionPresent {
					t.Error("the session is there again")
				}
				again.Disconnect(packet.ReasonSuccess)
				time.Sleep(time.Hour) //nolint:forbidigo // the bubble's time
				if got := watch.Messages(len(tt.wills)); !slices.Equal(got, tt.wills) || len(watch.Rest()) > 0 {
					t.Errorf("wills %q, want %q", got, tt.wills)
				}
			})
		})
	}
}

// A client that comes back at once, again and again, and a second operator: each
// is told when the session that was there is no more.
func TestEndingASessionOfAClientThatComesBack(t *testing.T) {
	b := brokertest.Start(t, nil)
	ctx, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() {
		for ctx.Err() == nil {
			c := brokertest.Raw(t, b.Dial(t), packet.V5)
			c.Send(brokertest.Keep(brokertest.V5("x"), 3600))
			c.Kill()
		}
	})
	var operators sync.WaitGroup
	for range 2 {
		operators.Go(func() {
			for range 50 {
				if err := b.EndSession(ctx, "x"); err != nil && !errors.Is(err, broker.ErrNoSession) {
					t.Errorf("end session: %v", err)
				}
			}
		})
	}
	operators.Wait()
	stop()
	all.Wait()
}

func TestSessionsForAnOperator(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t, nil, func(o *broker.Options) { o.Auth = users{} })
		here := brokertest.Connect(t, b.Pipe(), brokertest.Keep(as(brokertest.V5("here"), "alice"), durable.SessionExpiryNever))
		here.Subscribe(1, "a", "b")
		brokertest.Connect(t, b.Pipe(), brokertest.Keep(as(brokertest.V5("away"), "bob"), 60)).Disconnect(packet.ReasonSuccess)
		synctest.Wait()
		list := b.Sessions()
		slices.SortFunc(list, func(x, y broker.SessionInfo) int { return strings.Compare(x.ClientID, y.ClientID) })
		if len(list) != 2 {
			t.Fatalf("%+v", list)
		}
		list[1].Remote = strings.Repeat("x", min(1, len(list[1].Remote)))
		want := []broker.SessionInfo{
			{ClientID: "away", User: "bob", Expiry: 60, Expires: time.Now().Add(time.Minute)},
			{ClientID: "here", User: "alice", Remote: "x", Since: time.Now(), Expiry: durable.SessionExpiryNever, Subscriptions: 2},
		}
		if !slices.Equal(list, want) {
			t.Errorf("got  %+v\nwant %+v", list, want)
		}
	})
}
