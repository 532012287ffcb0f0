package uplink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"holdfast/broker/durable"
	"holdfast/broker/message"
	"holdfast/storeforward"
)

// The routes say what a full queue does, by the topics here.
func TestRoutePolicies(t *testing.T) {
	so := storeforward.DefaultOptions()
	so.Path = t.TempDir() + "/s.db"
	s, err := storeforward.Open(context.Background(), so, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	o := DefaultOptions()
	o.URL, o.Gateway, o.MaxMessages = "mqtt://localhost", "gw", 10
	o.Routes = []Route{
		{Direction: DirectionIn, Filter: "data/#"}, // says nothing about the way out
		{Direction: DirectionOut, Filter: "data/#", Prefix: "site/", LocalPrefix: "here/", Policy: durable.PolicyDropNewest},
		{Direction: DirectionBoth, Filter: "#"},
	}
	u, err := New("cloud", o, s, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 12 {
		for topic, want := range map[string]bool{"here/data/1": true, "data/1": i < 5} {
			m := &message.Message{Topic: topic, QoS: 1, Payload: fmt.Append(nil, i), Received: time.Now()}
			switch err := s.Append(m, []durable.Claim{{Queue: u.Queue(), QoS: 1}}, durable.Origin{}, nil); {
			case err != nil && !errors.Is(err, durable.ErrFull):
				t.Fatal(err)
			case (err == nil) != want:
				t.Errorf("message %d of %s: %v, want it taken: %v", i, topic, err, want)
			}
		}
	}
	if n := s.Status().Queues[0].Dropped["newest"]; n != 7 {
		t.Errorf("%d dropped, want 7", n)
	}
	for key, spoil := range map[string]func(*Options){
		"uplink.route[0].policy": func(o *Options) { o.Routes = []Route{{Direction: DirectionOut, Filter: "#", Policy: "forget"}} },
		"uplink.max_messages":    func(o *Options) { o.MaxMessages = -1 },
		"uplink.max_bytes":       func(o *Options) { o.MaxBytes = -1 },
		"uplink.max_age":         func(o *Options) { o.MaxAge = -time.Second },
	} {
		bad := o
		if spoil(&bad); bad.Validate() == nil || !strings.Contains(bad.Validate().Error(), key) {
			t.Errorf("%s: %v", key, bad.Validate())
		}
	}
}
