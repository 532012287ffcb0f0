package broker

import (
	"context"
	"log/slog"
	"net"

	"holdfast/broker/durable"
	"holdfast/broker/message"
)

// Broker is an MQTT server. Use [New].
type Broker struct {
	opts  Options
	store Store
	log   *slog.Logger
}

// Route is one topic filter a [Recipient] wants, and the QoS it wants at most.
type Route struct {
	Filter string
	QoS    byte
}

// Recipient is a durable recipient inside the process: an uplink. Its QoS 1
// and 2 messages go through the store to whatever it attached to Queue there.
type Recipient struct {
	Name   string
	Queue  durable.QueueID
	Routes []Route
	// Offer0 takes QoS 0 messages; it must return at once. Nil drops them.
	Offer0 func(m *message.Message)
}

// Status is a snapshot of the broker.
type Status struct {
	Clients int `json:"clients"`
}

// New checks the options and returns a broker that is not yet started.
func New(opts Options, store Store, log *slog.Logger) (*Broker, error) {
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	return &Broker{opts: opts, store: store, log: log.With("component", "broker")}, nil
}

// Start loads sessions, retained messages and wills from the store.
func (b *Broker) Start(ctx context.Context) error { return ctx.Err() }

// Serve accepts connections until ctx ends, l is closed or the broker is shut
// down; it closes l. It returns nil unless accepting failed.
func (b *Broker) Serve(ctx context.Context, l net.Listener, policy Listener) error {
	_ = policy
	<-ctx.Done()
	return l.Close()
}

// Shutdown tells the clients (0x8B), keeps their sessions and wills, and waits
// for all goroutines until ctx ends.
func (b *Broker) Shutdown(ctx context.Context) error { return ctx.Err() }

// Publish takes a message from within the process: adapters, uplinks.
func (b *Broker) Publish(m *message.Message, from durable.Origin, done func(error)) error {
	return b.store.Append(m, nil, from, done)
}

// AddRecipient makes an uplink a recipient of everything its routes match.
func (b *Broker) AddRecipient(r Recipient) error { _ = r; return nil }

// RemoveRecipient ends that; what is queued for it stays in the store.
func (b *Broker) RemoveRecipient(name string) { _ = name }

// Watch calls fn for every message that matches one of the filters, best
// effort, from the goroutine that routes it; fn must return at once.
func (b *Broker) Watch(filters []string, fn func(*message.Message)) (stop func()) {
	_, _ = filters, fn
	return func() {}
}

// Status returns a snapshot.
func (b *Broker) Status() Status { return Status{} }
