package main

import (
	"context"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"holdfast/adapters/reading"
	"holdfast/broker/access"
	"holdfast/broker/message"
	"holdfast/cmd/holdfast/config"
)

// A database set aside at the start is reported on a topic.
func TestRepairIsPublished(t *testing.T) {
	cfg := config.Default()
	cfg.Gateway.ID = "gw"
	cfg.Store.Path = t.TempDir() + "/holdfast.db"
	if err := os.WriteFile(cfg.Store.Path, []byte(strings.Repeat("garbage ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	log := slog.New(slog.DiscardHandler)
	g, err := build(ctx, &cfg, &access.Rules{}, reading.NewClock(), log)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.broker.Start(ctx); err != nil {
		t.Fatal(err)
	}
	got := make(chan *message.Message, 1)
	stop := g.broker.Watch([]string{"holdfast/gw/store/repair"}, func(m *message.Message) { got <- m })
	gw := &gateway{log: log, g: g}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		gw.publishRepairs(ctx, cfg.Gateway.ID)
	}()
	select {
	case m := <-got:
		if !m.Retain || !strings.Contains(string(m.Payload), `"set_aside":"`+cfg.Store.Path+`.aside-`) {
			t.Errorf("report %s, retained %v", m.Payload, m.Retain)
		}
	case <-time.After(20 * time.Second):
		t.Error("no report")
	}
	stop()
	cancel()
	<-ended
	if err := g.broker.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if err := g.store.Close(); err != nil {
		t.Error(err)
	}
}
