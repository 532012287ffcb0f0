package adapters

import (
	"context"
	"time"

	"holdfast/broker/message"
)

// Publisher takes messages on their way; the gateway's router is one.
type Publisher interface {
	// Publish takes m or returns an error and keeps nothing of it. After a
	// nil error, done is called exactly once, from any goroutine, with nil
	// when m is safe for all who must have it, or with the reason why it
	// never will be. Publish must not block; done does not block and does not
	// call the publisher. m must not be changed any more.
	Publish(m *message.Message, done func(error)) error
}

// Adapter is one running field connection, such as a serial port with the
// devices behind it.
type Adapter interface {
	// Name is unique among the adapters of a gateway.
	Name() string
	// Run works until ctx is done or it can not go on, and returns only after
	// everything it started has ended. It is called again after a while, by
	// one goroutine at a time.
	Run(ctx context.Context) error
}

// Device describes a field device to whoever lists them.
type Device struct {
	Name string `json:"name"`
	// Adapter is the kind: "modbus", "serial".
	Adapter string `json:"adapter"`
	// Port is the name of the port or the address the device is behind.
	Port string `json:"port"`
	// Interval is how often it is polled, or the longest silence expected of
	// one that speaks by itself; 0 when unknown.
	Interval time.Duration `json:"interval_ns"`
	// Points are what it measures.
	Points []Point `json:"points"`
	// Pending says that the device tells itself what it measures, and has not
	// yet.
	Pending bool `json:"pending,omitempty"`
}
