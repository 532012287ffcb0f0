package broker_test

import (
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker"
	"holdfast/broker/brokertest"
)

func TestOptionsValidate(t *testing.T) {
	if err := broker.DefaultOptions().Validate(); err != nil {
		t.Errorf("the defaults: %v", err)
	}
	tests := map[string]func(*broker.Options){
		"broker.max_connections":          func(o *broker.Options) { o.MaxConnections = 0 },
		"broker.max_sessions":             func(o *broker.Options) { o.MaxSessions = -1 },
		"broker.max_connect_size":         func(o *broker.Options) { o.MaxConnectSize = 1 },
		"broker.receive_maximum":          func(o *broker.Options) { o.ReceiveMaximum = 65536 },
		"broker.max_unacknowledged_bytes": func(o *broker.Options) { o.MaxUnacknowledgedBytes = 1 },
		"broker.max_inflight":             func(o *broker.Options) { o.MaxInflight = 32768 },
		"broker.max_handshakes":           func(o *broker.Options) { o.MaxHandshakes = 0 },
		"broker.max_client_id_size":       func(o *broker.Options) { o.MaxClientIDSize = 22 },
		"broker.max_unreleased":           func(o *broker.Options) { o.MaxUnreleased = 65536 },
		"broker.publish_rate_policy":      func(o *broker.Options) { o.PublishRatePolicy = "never" },
		"broker.connect_timeout":          func(o *broker.Options) { o.ConnectTimeout = 0 },
		"broker.max_keep_alive":           func(o *broker.Options) { o.MaxKeepAlive = time.Millisecond },
		"broker.max_session_expiry":       func(o *broker.Options) { o.MaxSessionExpiry = -1 },
		"broker.sys_interval":             func(o *broker.Options) { o.SysInterval = time.Microsecond },
	}
	for key, change := range tests {
		t.Run(key, func(t *testing.T) {
			o := broker.DefaultOptions()
			change(&o)
			err := o.Validate()
			if err == nil || !strings.Contains(err.Error(), key+": ") {
				t.Errorf("Validate() = %v, want an error naming %s", err, key)
			}
			if _, err := broker.New(o, nil, slog.New(slog.DiscardHandler)); err == nil {
				t.Error("New took it")
			}
		})
	}
	if err := (broker.Listener{Anonymous: "sometimes"}).Validate(); err == nil || !strings.Contains(err.Error(), "listener.anonymous") {
		t.Errorf("listener: %v", err)
	}
}

func TestStartTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t, nil)
		if err := b.Start(t.Context()); err == nil {
			t.Error("a second Start succeeded")
		}
	})
}
