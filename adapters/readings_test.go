package adapters_test

import (
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/adapters"
	"holdfast/adapters/reading"
	"holdfast/broker/message"
)

// notes is a publisher that writes down what it takes.
type notes struct {
	mu  sync.Mutex
	all []string // guarded by mu
}

func (n *notes) Publish(m *message.Message, done func(error)) error {
	n.mu.Lock()
	n.all = append(n.all, m.Topic+" "+string(m.Payload))
	n.mu.Unlock()
	done(nil)
	return nil
}

// gate refuses until it is open.
type gate struct {
	notes
	open atomic.Bool
}

func (g *gate) Publish(m *message.Message, done func(error)) error {
	if !g.open.Load() {
		return errors.New("closed")
	}
	return g.notes.Publish(m, done)
}

func (g *gate) taken() (all []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, m := range g.all {
		all = append(all, strings.ReplaceAll(m, " ", ""))
	}
	return all
}

func TestReadingsAreNumberedAndRendered(t *testing.T) {
	at := reading.Stamp{Wall: time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC), Synchronised: true}
	put := func(s *adapters.Readings) {
		for range 2 {
			s.Put("sensors", 1, reading.Reading{Device: "boiler", Point: "flow", Value: 1.5, Time: at}, reading.Reading{Device: "boiler", Point: "level", Value: 2.0, Time: at})
		}
		s.Put("sensors", 1, reading.Reading{Device: "boiler", Point: "level", Value: 3.0, Time: at})
	}
	const tail = `,"quality":"good","time":"2026-01-02T15:04:05.000Z","clock":"synchronised","session":7,"seq":`
	tests := map[string]struct {
		change func(*adapters.ReadingsOptions)
		want   []string
	}{
		"by default": {func(*adapters.ReadingsOptions) {}, []string{
			`sensors/boiler/flow {"value":1.5` + tail + `1}`, `sensors/boiler/level {"value":2` + tail + `1}`,
			`sensors/boiler/flow {"value":1.5` + tail + `2}`, `sensors/boiler/level {"value":2` + tail + `2}`, `sensors/boiler/level {"value":3` + tail + `3}`,
		}},
		"of a device": {func(o *adapters.ReadingsOptions) {
			o.Per, o.Render, o.Template = adapters.PerDevice, reading.FormTemplate, "${gateway} ${session}.${seq} ${point}=${value}"
		}, []string{
			"sensors/boiler gw 7.1 flow=1.5\ngw 7.1 level=2", "sensors/boiler gw 7.2 flow=1.5\ngw 7.2 level=2", "sensors/boiler gw 7.3 level=3",
		}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			opts := adapters.DefaultReadingsOptions()
			tt.change(&opts)
			n := &notes{}
			out, err := adapters.NewOutbox("test", n, opts.OutboxOptions, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			s, err := adapters.NewReadings(out, "gw", 7, opts)
			if err != nil {
				t.Fatal(err)
			}
			put(s)
			if err := out.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got, want := strings.Join(n.all, "|"), strings.Join(tt.want, "|"); got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
	opts := adapters.DefaultReadingsOptions()
	opts.Per = "site"
	if _, err := adapters.NewReadings(nil, "gw", 7, opts); err == nil || !strings.Contains(err.Error(), "per: ") {
		t.Errorf("per = site: %v", err)
	}
}

// What a full outbox does, by its policy: four readings of two points fit.
func TestOutboxPolicies(t *testing.T) {
	for policy, want := range map[adapters.OutboxPolicy]string{
		adapters.DropOldest: "d/a5 d/b5 d/a6 d/b6",
		adapters.DropNewest: "d/a1 d/b1 d/a2 d/b2",
		adapters.Thin:       "d/a1 d/b1 d/a6 d/b6",
	} {
		t.Run(string(policy), func(t *testing.T) {
			opts := adapters.DefaultOutboxOptions()
			opts.MaxMessages, opts.Policy = 4, policy
			closed := &gate{}
			out, err := adapters.NewOutbox("test", closed, opts, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range "123456" {
				for _, point := range "ab" {
					out.Put("d", &message.Message{Topic: "d/" + string(point), Payload: []byte(string(n))})
				}
			}
			s := out.Status()
			if d := s.Devices["d"]; d.Put != 12 || d.Dropped != 8 || d.Queued != 4 || s.Queued != 4 || s.QueuedBytes != 4*4 {
				t.Errorf("%+v", s)
			}
			closed.open.Store(true)
			if err := out.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(closed.taken(), " "); got != want {
				t.Errorf("left %s, want %s", got, want)
			}
		})
	}
	opts := adapters.DefaultOutboxOptions()
	opts.Policy = "wait"
	if err := opts.Validate(); err == nil || !strings.HasPrefix(err.Error(), "policy: ") {
		t.Errorf("policy = wait: %v", err)
	}
}
