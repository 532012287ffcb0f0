package adapters

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"holdfast/adapters/reading"
	"holdfast/broker/message"
)

// Values of ReadingsOptions.Per.
const (
	PerPoint  = "point"  // a message for each point, on PREFIX/DEVICE/POINT
	PerDevice = "device" // a message for each frame or answer of a device, on PREFIX/DEVICE
)

// ReadingsOptions say what readings look like here, and how many of them wait in
// memory while the store takes none.
type ReadingsOptions struct {
	// Render is the form of readings here, and Template that of the form
	// "template". Uplinks can render in other forms only what is "json" here.
	Render   reading.Form `toml:"render"`
	Template string       `toml:"template"`
	// Per is "point" or "device".
	Per string `toml:"per"`
	OutboxOptions
}

// DefaultReadingsOptions are JSON, a message for each point.
func DefaultReadingsOptions() ReadingsOptions {
	return ReadingsOptions{Render: reading.FormJSON, Per: PerPoint, OutboxOptions: DefaultOutboxOptions()}
}

// Validate reports the first value that is wrong, naming its key.
func (o ReadingsOptions) Validate() error {
	if _, err := reading.NewRenderer(o.Render, o.Template, ""); err != nil {
		return err
	}
	if pers := []string{PerPoint, PerDevice}; !slices.Contains(pers, o.Per) {
		return fmt.Errorf("per: %q is not one of %q", o.Per, pers)
	}
	return o.OutboxOptions.Validate()
}

// Readings turns readings into messages: it numbers them for each topic, renders
// them, and puts them into an outbox. It is safe for use by many goroutines.
type Readings struct {
	out     *Outbox
	session uint64
	per     string
	render  *reading.Renderer

	mu sync.Mutex
	// seqs are the last numbers, by topic. They stay for the life of the
	// process, also of devices that a reload has removed: a number never comes
	// twice in a session. The points that were ever configured bound it.
	seqs map[string]uint64 // guarded by mu
}

// NewReadings returns readings that go to out. session is the number of the
// gateway's start.
func NewReadings(out *Outbox, gateway string, session uint64, opts ReadingsOptions) (*Readings, error) {
	if err := opts.Validate(); err != nil {
		return nil, fmt.Errorf("readings: %w", err)
	}
	r, err := reading.NewRenderer(opts.Render, opts.Template, gateway)
	if err != nil {
		return nil, fmt.Errorf("readings: %w", err)
	}
	return &Readings{out: out, session: session, per: opts.Per, render: r, seqs: make(map[string]uint64)}, nil
}

// Put hands over what one frame or answer of one device said, at least one reading.
// It never blocks, and takes what it is given for its own.
func (s *Readings) Put(prefix string, qos byte, rs ...reading.Reading) {
	// The lock is held until they are in the outbox: their order is that of
	// their numbers.
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.per == PerDevice {
		s.putLocked(prefix+"/"+rs[0].Device, qos, rs, true)
		return
	}
	for i := range rs {
		s.putLocked(prefix+"/"+rs[i].Device+"/"+rs[i].Point, qos, rs[i:i+1], false)
	}
}

// PutMessage hands over what is no reading of a device, such as the answer to a
// command. It never blocks.
func (s *Readings) PutMessage(device string, m *message.Message) { s.out.Put(device, m) }

func (s *Readings) putLocked(topic string, qos byte, rs []reading.Reading, whole bool) {
	s.seqs[topic]++
	for i := range rs {
		rs[i].Session, rs[i].Seq = s.session, s.seqs[topic]
	}
	received := rs[0].Time.Wall
	if received.IsZero() {
		received = time.Now()
	}
	s.out.Put(rs[0].Device, &message.Message{
		Topic:    topic,
		Payload:  s.render.Append(make([]byte, 0, 160*len(rs)), topic, rs, whole), // a typical reading has 90 to 150 bytes
		QoS:      qos,
		Received: received,
	})
}
